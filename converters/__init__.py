"""LoRA files from one format into another: files in, files out; numpy and safetensors, no torch.

    from converters import convert
    convert("hero.safetensors", to="peft", out="hero-peft")

Formats: `kohya` (one file; sd-scripts, ComfyUI, A1111, Forge), `peft` (a folder with one folder per component),
`diffusers` (one file, `pytorch_lora_weights.safetensors`). What a file is, is read from its content, not its name.
Reference for the numbers: sd-scripts applying its own network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from converters import diffusers_file, kohya_file, peft_folder
from converters.errors import ConversionError
from converters.lora import Lora, Source
from converters.tensors import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.lora import Written

__all__ = ["FORMATS", "Conversion", "ConversionError", "convert", "read_lora", "recognise"]


class Format(Protocol):
    """What a format's module offers."""

    def matches(self, source: Source) -> bool:
        """Whether an opened file or folder is of this format."""

    def parse(self, source: Source) -> Lora:
        """The LoRA in it. Raises ConversionError."""

    def write(self, lora: Lora, out: Path, *, flat_text_encoder: bool) -> Written:
        """Write `lora` to the path `out`, whole or not at all. Raises ConversionError."""


FORMATS: Mapping[str, Format] = {"kohya": kohya_file, "peft": peft_folder, "diffusers": diffusers_file}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was done: the `source` format, files and folders written; tensors that became float32, or were rounded."""

    source: str
    written: tuple[Path, ...]
    widened: tuple[str, ...]
    rounded: tuple[str, ...]


def convert(
    src: Path | str,
    to: str,
    out: Path | str,
    *,
    flat_text_encoder: bool = False,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the LoRA at `src` in the format `to` (a key of FORMATS) to the path `out`.

    `flat_text_encoder` names text encoder layers as transformers 5.6 and later do (`peft` needs to know; see there).
    `metadata` is laid over the file's own; hashes are computed anew. Raises ConversionError: source unreadable, of no
    known format, with keys that are unknown or that the target cannot hold (listed in `.keys`), `out` already there.
    """
    if to not in FORMATS:
        raise ConversionError(f"no format {to}; one of {', '.join(FORMATS)}")
    out = Path(out)
    if out.exists() and not overwrite:
        raise ConversionError(f"{out} is already there")
    source, lora = read_lora(src)
    if metadata:
        lora = Lora(modules=lora.modules, metadata={**lora.metadata, **metadata})
    done = FORMATS[to].write(lora, out, flat_text_encoder=flat_text_encoder)
    return Conversion(source=source, written=done.paths, widened=done.widened, rounded=done.rounded)


def recognise(src: Path | str) -> str:
    """The format of a file or folder. Raises ConversionError where it is none of FORMATS."""
    return _open(Path(src))[0]


def read_lora(src: Path | str) -> tuple[str, Lora]:
    """The format of a LoRA file or folder, and its modules."""
    name, source = _open(Path(src))
    try:
        return name, FORMATS[name].parse(source)
    except ConversionError as error:
        message = error.message if str(src) in error.message else f"{src}: {error.message}"
        raise ConversionError(message, keys=error.keys) from error


def _open(path: Path) -> tuple[str, Source]:
    source = Source(path=path, weights=None if path.is_dir() else read_file(path))
    for name, candidate in FORMATS.items():
        if candidate.matches(source):
            return name, source
    if source.weights is None:
        raise ConversionError(f"{path}: no LoRA folder (unet/adapter_config.json or text_encoder/adapter_config.json)")
    raise ConversionError(f"{path}: no LoRA of a known format", keys=source.weights.tensors)
