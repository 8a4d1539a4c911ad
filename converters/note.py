"""How a kohya file spelled its modules, kept as a note in the metadata of formats that hold less.

Formats without an alpha, or with other names and shapes, carry the rest in this note, so that the way back gives the
same bytes. A file without the note, or whose tensors are no longer those it speaks of, is read by its format's rules.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from converters.modules import Module, read_alpha
from converters.names import NAMINGS, Name, Naming
from converters.tensors import FLOATS, Tensor, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.modules import AnyModule

NOTE = "pixelkit.kohya"


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a kohya file wrote a module: what another format may be unable to hold."""

    prefix: str
    naming: str
    rank: int
    alpha: float  # as the file had it: 0 is not the rank here
    alpha_dtype: str  # empty: the file had no alpha
    alpha_shape: tuple[int, ...]
    down_dtype: str = ""
    up_dtype: str = ""
    scaled: str = ""  # the matrix that a format without alpha multiplied with the scale: down, up or none
    magnitude_shape: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """alpha / rank, as kohya means it."""
        return (self.alpha or self.rank) / self.rank

    def alpha_tensor(self, alpha: float | None = None) -> Tensor | None:
        """The file's alpha; `alpha` in its dtype and shape (or as F32) where it is another one by now."""
        stated = self.alpha or float(self.rank)
        if alpha is None or alpha == stated:
            return encode_alpha(self.alpha, self.alpha_dtype, self.alpha_shape) if self.alpha_dtype else None
        return encode_alpha(alpha, self.alpha_dtype or "F32", self.alpha_shape)


def encode_alpha(alpha: float, dtype: str, shape: tuple[int, ...] = ()) -> Tensor:
    """An alpha as a tensor of `dtype`, or of F32 where `dtype` cannot hold it."""
    if dtype in FLOATS and not dtype.startswith("F8"):
        tensor = encode([alpha], dtype)
        if float(tensor.to_float32()[0]) == alpha:
            return tensor.reshape(*shape)
    elif alpha.is_integer() and dtype not in FLOATS:
        return encode([int(alpha)], dtype).reshape(*shape)
    return encode([alpha], "F32").reshape(*shape)


def write_note(
    modules: Mapping[Name, AnyModule], *, scaled: Mapping[Name, str] | None = None, tensors_hash: str = ""
) -> str:
    """The spelling of every module as compact JSON: the most common one once, the others by module."""
    spellings = {
        f"{name.component}.{name.path}": _spell(name, module, (scaled or {}).get(name, ""))
        for name, module in modules.items()
    }
    common = Counter(spellings.values()).most_common(1)[0][0]
    usual = asdict(common)
    others = {
        key: {field: value for field, value in asdict(spelling).items() if value != usual[field]}
        for key, spelling in spellings.items()
        if spelling != common
    }
    note = {"version": 1, "tensors": tensors_hash, "all": usual, "but": others}
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
    """The kohya prefix of a component where no note tells.

    The only text encoder of SD 1 and 2 is `lora_te_`. Their UNet has no transformer of several blocks, as SDXL's has.
    """
    if component in {"unet", "transformer"}:
        return "lora_unet_"
    if component != "text_encoder":
        return "lora_te2_" if component == "text_encoder_2" else "lora_te3_"
    several = any(
        part in {"transformer", "text_encoder_2", "text_encoder_3"}
        or (part == "unet" and re.search(r"transformer_blocks\.[1-9]|^add_embedding", path))
        for part, path in places
    )
    return "lora_te1_" if several else "lora_te_"


def spelled_name(component: str, path: str, spelling: Spelling | None, *, prefix: str) -> Name:
    """The name of a module as the note has it; `prefix` and diffusers' naming where there is none."""
    return Name(
        component=cast("Any", component),
        path=path,
        prefix=spelling.prefix if spelling else prefix,
        naming=cast("Naming", spelling.naming) if spelling else "diffusers",
    )


def shape_magnitude(module: AnyModule, spelling: Spelling | None) -> Tensor | None:
    """A module's magnitude as the kohya file had it; as LyCORIS writes it, (out, 1[, 1, 1]), where no note tells."""
    if module.magnitude is None:
        return None
    shape = spelling.magnitude_shape if spelling else ()
    if math.prod(shape) != module.shape[0] or not shape:
        shape = (module.shape[0], *[1] * (len(module.shape) - 1))
    fits = math.prod(shape) == math.prod(module.magnitude.shape)
    return module.magnitude.reshape(*shape) if fits else module.magnitude


def _spell(name: Name, module: AnyModule, scaled: str) -> Spelling:
    plain = module if isinstance(module, Module) else None
    magnitude = module.magnitude.shape if module.magnitude is not None else ()
    return Spelling(
        prefix=name.prefix,
        naming=name.naming,
        rank=module.rank,
        alpha=read_alpha(module.alpha) if module.alpha is not None else 0.0,
        alpha_dtype=module.alpha.dtype if module.alpha is not None else "",
        alpha_shape=module.alpha.shape if module.alpha is not None else (),
        down_dtype=plain.down.dtype if plain else "",
        up_dtype=plain.up.dtype if plain else "",
        scaled=scaled,
        magnitude_shape=magnitude,
    )


def _read_spelling(fields: Mapping[str, Any]) -> Spelling:
    shapes = {field: tuple(fields[field]) for field in ("alpha_shape", "magnitude_shape")}
    spelling = Spelling(**{**fields, **shapes})
    if spelling.naming not in NAMINGS:
        raise ValueError(spelling.naming)
    return spelling
