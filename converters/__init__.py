"""LoRA files from one format into another: files in, files out; numpy and safetensors, no torch.

    from converters import convert
    convert("hero.safetensors", to="peft", out="hero-peft")

Formats: `kohya` (one file; sd-scripts, ComfyUI, A1111, Forge), `peft` (a folder with one folder per component),
`diffusers` (one file, `pytorch_lora_weights.safetensors`), `catsith` and `catsith-compact` (JSON). What a file is, is
read from its content, not its name. Reference for the numbers: sd-scripts applying its own network.
More LoRAs than one, and whole models: merge.py, bake.py, resize.py, extract.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from converters import catsith, diffusers_file, fused, kohya_file, peft_folder
from converters.errors import ConversionError
from converters.family import check_family
from converters.lora import Lora, Source, name_places
from converters.pickles import looks_like_pickle, read_pickle
from converters.strangers import describe_file, describe_tensors, read_head
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
        """Write `lora` to the path `out`, whole or not at all.

        Raises ConversionError; where the format cannot hold some modules, its keys are those modules' places.
        """


FORMATS: Mapping[str, Format] = {
    "kohya": kohya_file,
    "peft": peft_folder,
    "diffusers": diffusers_file,
    "catsith": catsith.FULL,
    "catsith-compact": catsith.COMPACT,
}
_SPLIT = frozenset({"peft", "diffusers"})  # they hold a transformer's layers as diffusers has them


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was done: the `source` format, files and folders written; tensors that became float32, or were rounded.

    `dropped`: modules that the target cannot hold; empty unless the caller allowed it.
    """

    source: str
    written: tuple[Path, ...]
    widened: tuple[str, ...]
    rounded: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def convert(
    src: Path | str,
    to: str,
    out: Path | str,
    *,
    drop_unsupported: bool = False,
    flat_text_encoder: bool = False,
    block_diagonal: bool = False,
    metadata: Mapping[str, str] | None = None,
    unsafe_pickle: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write the LoRA at `src` in the format `to` (a key of FORMATS) to the path `out`.

    `drop_unsupported` leaves out modules that the target cannot hold, and lists them, instead of refusing.
    `flat_text_encoder` names text encoder layers as transformers 5.6 and later do (`peft` needs to know; see there).
    `block_diagonal` lets a kohya or CatSith file hold parts of one SD 3 or FLUX layer that were trained each on its own,
    as one module of the sum of their ranks (see fused.py).
    `metadata` is laid over the file's own; hashes are computed anew. `unsafe_pickle`: see read_lora.
    Raises ConversionError: source unreadable, of no known format, with keys that are unknown or that the target cannot
    hold (listed in `.keys`), `out` already there.
    """
    if to not in FORMATS:
        raise ConversionError(f"no format {to}; one of {', '.join(FORMATS)}")
    out = Path(out)
    if out.exists() and not overwrite:
        raise ConversionError(f"{out} is already there")
    if out.exists() and out.samefile(src):
        raise ConversionError(f"{out}: the source itself is never overwritten")
    source, lora = read_lora(src, unsafe_pickle=unsafe_pickle)
    if metadata:
        lora = Lora(modules=lora.modules, metadata={**lora.metadata, **metadata})
    if block_diagonal and to not in _SPLIT:
        lora = fused.join(lora, block_diagonal=True)
    done, dropped = _write(lora, to, out, drop_unsupported=drop_unsupported, flat_text_encoder=flat_text_encoder)
    return Conversion(source=source, written=done.paths, widened=done.widened, rounded=done.rounded, dropped=dropped)


def recognise(src: Path | str) -> str:
    """The format of a file or folder. Raises ConversionError where it is none of FORMATS."""
    return _open(Path(src), unsafe_pickle=False)[0]


def read_lora(src: Path | str, *, unsafe_pickle: bool = False) -> tuple[str, Lora]:
    """The format of a LoRA file or folder, and its modules.

    `unsafe_pickle` also opens what torch.save wrote, by torch's weights_only reader. Raises ConversionError: what is
    unreadable, no LoRA, holds unknown keys or numbers that are not finite, or says it is for another base than it is.
    """
    name, source = _open(Path(src), unsafe_pickle=unsafe_pickle)
    try:
        lora = FORMATS[name].parse(source)
        check_family(lora)
    except ConversionError as error:
        message = error.message if str(src) in error.message else f"{src}: {error.message}"
        raise ConversionError(message, keys=error.keys) from error
    return name, lora


def _open(path: Path, *, unsafe_pickle: bool) -> tuple[str, Source]:
    if path.is_dir() or catsith.looks_like_json(path):
        source = Source(path=path, weights=None)
    elif unsafe_pickle and looks_like_pickle(path):
        source = Source(path=path, weights=read_pickle(path))
    else:
        source = Source(path=path, weights=read_file(path))
    for name, candidate in FORMATS.items():
        if candidate.matches(source):
            return name, source
    if path.is_dir():
        raise ConversionError(f"{path}: no LoRA folder (unet/adapter_config.json or text_encoder/adapter_config.json)")
    if source.weights is None:
        raise ConversionError(f"{path}: {describe_file(read_head(path)) or 'JSON, but no LoRA of CatSith'}")
    what = describe_tensors(source.weights.tensors)
    if what:
        raise ConversionError(f"{path}: {what}")
    raise ConversionError(f"{path}: no LoRA of a known format", keys=source.weights.tensors)


def _write(
    lora: Lora, to: str, out: Path, *, drop_unsupported: bool, flat_text_encoder: bool
) -> tuple[Written, tuple[str, ...]]:
    """Write, leaving out what the format names as impossible if that is allowed; what was left out."""
    dropped: set[str] = set()
    while True:
        try:
            lora = fused.split(lora) if to in _SPLIT else lora
            return FORMATS[to].write(lora, out, flat_text_encoder=flat_text_encoder), tuple(sorted(dropped))
        except ConversionError as error:
            places = dict(zip(name_places(lora.modules), lora.modules, strict=True))
            refused = set(error.keys)
            if not drop_unsupported or not refused or not refused < places.keys():
                raise
            dropped |= refused
            kept = {name: lora.modules[name] for place, name in places.items() if place not in refused}
            lora = Lora(modules=kept, metadata=lora.metadata)
