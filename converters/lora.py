"""A LoRA between two formats: each module's pair of matrices and its alpha, and how a kohya file spelled them.

Reference for what the numbers mean: sd-scripts' networks/lora.py, where a module adds
`up(down(x)) * alpha / rank`, and an alpha that is missing or 0 stands for the rank.

Formats that hold less than a kohya file (no alpha, other names) carry the rest as a note in their metadata, so that
the way back gives the same bytes. A file without the note is read by the rules of its own format.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from converters.errors import ConversionError
from converters.names import Name, Naming
from converters.tensors import FLOATS, Tensor, Weights, encode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NOTE = "pixelkit.kohya"
# Not carried from file to file: what describes one file's bytes or its container.
_OWN_TO_A_FILE = frozenset({"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "format", NOTE})


@dataclass(frozen=True, kw_only=True)
class Module:
    """One adapted layer: `down` (rank, in[, kh, kw]), `up` (out, rank[, 1, 1]), `alpha` as the file had it, or None."""

    down: Tensor
    up: Tensor
    alpha: Tensor | None

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return self.down.shape[0]

    @property
    def alpha_value(self) -> float:
        """alpha as a number; the rank where it is missing or 0."""
        value = float(self.alpha.to_float32().reshape(-1)[0]) if self.alpha is not None else 0.0
        return value or float(self.rank)

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied with."""
        return self.alpha_value / self.rank


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Modules by name, and the metadata that belongs to the LoRA rather than to one file of it."""

    modules: Mapping[Name, Module]
    metadata: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.modules:
            raise ConversionError("no LoRA module in it")
        places = Counter((name.component, name.path) for name in self.modules)
        twins = [f"{component}.{path}" for (component, path), count in places.items() if count > 1]
        if twins:
            raise ConversionError("modules that occur under two names", keys=twins)
        wrong = [f"{name.component}.{name.path}" for name, module in self.modules.items() if not _fits(module)]
        if wrong:
            raise ConversionError("matrices whose shapes or dtypes do not make a LoRA", keys=wrong)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that was opened, or a folder (`weights` is None)."""

    path: Path
    weights: Weights | None


@dataclass(frozen=True, kw_only=True)
class Written:
    """The paths that were written; the tensors that became float32, and those that lost their last bit there."""

    paths: tuple[Path, ...]
    widened: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a kohya file wrote a module: what another format may be unable to hold."""

    prefix: str
    naming: str
    rank: int
    alpha: float
    alpha_dtype: str  # empty: the file had no alpha
    alpha_shape: tuple[int, ...]
    down_dtype: str
    up_dtype: str
    scaled: str = ""  # the matrix that a format without alpha multiplied with the scale: down, up or none

    def alpha_tensor(self, alpha: float) -> Tensor | None:
        """`alpha` as the file wrote it; as F32 where the file's dtype cannot hold the number."""
        if not self.alpha_dtype:
            return None
        return encode_alpha(alpha, self.alpha_dtype, self.alpha_shape)


def encode_alpha(alpha: float, dtype: str, shape: tuple[int, ...] = ()) -> Tensor:
    """An alpha as a tensor of `dtype`, or of F32 where `dtype` cannot hold it."""
    if dtype in FLOATS and not dtype.startswith("F8"):
        tensor = encode([alpha], dtype)
        if float(tensor.to_float32()[0]) == alpha:
            return tensor.reshape(*shape)
    elif alpha.is_integer() and dtype not in FLOATS:
        return encode([int(alpha)], dtype).reshape(*shape)
    return encode([alpha], "F32").reshape(*shape)


def carry_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The part of a file's metadata that goes with the LoRA into another format."""
    return {key: value for key, value in metadata.items() if key not in _OWN_TO_A_FILE}


def write_note(
    modules: Mapping[Name, Module], *, scaled: Mapping[Name, str] | None = None, tensors_hash: str = ""
) -> str:
    """The spelling of every module as compact JSON: the most common one once, the others by module."""
    spellings = {
        f"{name.component}.{name.path}": _spell(name, module, (scaled or {}).get(name, ""))
        for name, module in modules.items()
    }
    common = Counter(spellings.values()).most_common(1)[0][0]
    others = {
        key: {field: value for field, value in asdict(spelling).items() if value != asdict(common)[field]}
        for key, spelling in spellings.items()
        if spelling != common
    }
    note = {"version": 1, "tensors": tensors_hash, "all": asdict(common), "but": others}
    return json.dumps(note, separators=(",", ":"))


def read_note(metadata: Mapping[str, str], keys: list[str], *, tensors_hash: str = "") -> dict[str, Spelling]:
    """Module (`unet.conv_in`) -> its spelling; empty where there is no note or it speaks of other tensors."""
    try:
        note: dict[str, Any] = json.loads(metadata.get(NOTE, ""))
        if note["version"] != 1 or note["tensors"] != tensors_hash:
            return {}
        common = note["all"]
        return {key: _read_spelling(common | note["but"].get(key, {})) for key in keys}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def guess_prefix(component: str, places: list[tuple[str, str]]) -> str:
    """The kohya prefix of a component where no note tells: SDXL is known by its second text encoder, or by its UNet."""
    if component == "unet":
        return "lora_unet_"
    if component == "text_encoder_2":
        return "lora_te2_"
    sdxl = any(
        part == "text_encoder_2" or (part == "unet" and re.search(r"transformer_blocks\.[1-9]|^add_embedding", path))
        for part, path in places
    )
    return "lora_te1_" if sdxl else "lora_te_"


def spelled_name(component: str, path: str, spelling: Spelling | None, *, prefix: str) -> Name:
    """The name of a module as the note has it; `prefix` and diffusers' naming where there is none."""
    return Name(
        component=cast("Any", component),
        path=path,
        prefix=spelling.prefix if spelling else prefix,
        naming=cast("Naming", spelling.naming) if spelling else "diffusers",
    )


def _spell(name: Name, module: Module, scaled: str) -> Spelling:
    return Spelling(
        prefix=name.prefix,
        naming=name.naming,
        rank=module.rank,
        alpha=module.alpha_value,
        alpha_dtype=module.alpha.dtype if module.alpha is not None else "",
        alpha_shape=module.alpha.shape if module.alpha is not None else (),
        down_dtype=module.down.dtype,
        up_dtype=module.up.dtype,
        scaled=scaled,
    )


def _read_spelling(fields: Mapping[str, Any]) -> Spelling:
    spelling = Spelling(**{**fields, "alpha_shape": tuple(fields["alpha_shape"])})
    if spelling.naming not in {"diffusers", "sai"}:
        raise ValueError(spelling.naming)
    return spelling


def _fits(module: Module) -> bool:
    down, up = module.down, module.up
    if down.dtype not in FLOATS or up.dtype not in FLOATS or len(down.shape) != len(up.shape):
        return False
    if len(down.shape) not in {2, 4} or down.shape[0] != up.shape[1] or up.shape[2:] not in {(), (1, 1)}:
        return False
    return down.shape[0] > 0 and (module.alpha is None or module.alpha.data.size > 0)
