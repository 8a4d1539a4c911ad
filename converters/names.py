"""kohya's module names <-> the module paths of diffusers and PEFT.

kohya joins a prefix and a path and turns every dot into an underscore (`lora_unet_down_blocks_0_attentions_0_proj_in`),
so the way back needs to know which underscores were dots. name_tables.py holds every layer's path of the known models
with block numbers taken out; a layout of fewer, more or other blocks (tiny-sd, pixelkit-tiny) is then known as well.
Where sd-scripts has models of its own, its names differ: SDXL's UNet has Stability's (`input_blocks_4_1_...`, a rule in
stability.py), the transformers of SD 3 and FLUX have layers that hold several of diffusers' (fused.py).
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from converters import name_tables, stability
from converters.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Component = Literal["unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]
# How a kohya name spells a path: as diffusers, as Stability's SDXL, as the published SD 3 or FLUX; "diagonal" is a part
# of such a layer that had rows of `down` of its own there (fused.py).
Naming = Literal["diffusers", "sai", "original", "diagonal"]

COMPONENTS: tuple[Component, ...] = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
NAMINGS: frozenset[str] = frozenset({"diffusers", "sai", "original", "diagonal"})
# kohya prefix -> components; SD 1 and 2 have one text encoder (`lora_te`), the others up to three, the last being T5
# (FLUX has the first and the third). `lora_transformer` is what OneTrainer writes, with diffusers' paths.
PREFIXES: Mapping[str, tuple[Component, ...]] = {
    "lora_unet_": ("unet", "transformer"),
    "lora_transformer_": ("transformer",),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3",),
}
_LISTS = (
    "double_blocks|single_blocks|joint_blocks|single_transformer_blocks|transformer_blocks|down_blocks|up_blocks"
    "|resnets|attentions|downsamplers|upsamplers|layers|block|layer"
)
_DOTTED = re.compile(rf"(?<![^.])({_LISTS})\.(0|[1-9]\d*)(?=\.)")
_JOINED = re.compile(rf"({_LISTS})_(0|[1-9]\d*)(?=_)")
_MODULE_AND_PARAMETER = re.compile(
    r"(?:\w+: )?(?:base_model\.model\.)?(.+?)(\.(?:lora|alpha|dora|hada|lokr)\b.*|\.(?:lora|dora|hada|lokr)_.*)?"
)


@dataclass(frozen=True, kw_only=True)
class Name:
    """A module of a model: its component, its path there (dots), and how the kohya name spelled it.

    The path is diffusers', except under the naming "original" (a transformer of SD 3 or FLUX as published).
    """

    component: Component
    path: str
    prefix: str
    naming: Naming = "diffusers"


def abstract_path(path: str) -> str:
    """A layer's path with the block numbers taken out: `down_blocks.#.attentions.#.proj_in`."""
    return _DOTTED.sub(r"\1.#", path)


def block_numbers(path: str) -> tuple[str, ...]:
    """What abstract_path takes out, in order."""
    return tuple(match.group(2) for match in _DOTTED.finditer(path))


def is_layer(component: Component, path: str, naming: Naming = "diffusers") -> bool:
    """Whether `path` (with dots) is a layer that a model of a known kind can have."""
    return abstract_path(path) in _paths(component, naming if naming == "original" else "diffusers")


def parse_kohya(name: str) -> Name:
    """The module that a kohya name (`lora_unet_...`, without `.lora_down.weight`) stands for.

    Raises ConversionError for a name of no known model.
    """
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    rest = name.removeprefix(prefix)
    for component in PREFIXES.get(prefix, ()):
        naming = _naming_behind(prefix, component)
        sai = stability.read(rest) if component == "unet" else ""
        path = _split(component, sai or rest, naming)
        if path:
            return Name(component=component, path=path, prefix=prefix, naming="sai" if sai else naming)
    raise ConversionError("no module of a known model", keys=[name])


def join_kohya(component: Component, path: str, *, prefix: str = "", naming: Naming = "diffusers") -> str:
    """The kohya name of a module. `prefix` tells `lora_te_` (SD 1, 2; the default) from `lora_te1_` (the others)."""
    if not is_layer(component, path, naming):
        raise ConversionError("no module of a known model", keys=[f"{component}.{path}"])
    joined = path.replace(".", "_")
    default = next(known for known, parts in PREFIXES.items() if component in parts)
    return (prefix or default) + (stability.write(joined) if naming == "sai" else joined)


def unknown_layers(message: str, keys: Iterable[str]) -> ConversionError:
    """The error about names that no known model has; the first of them with the known name most like it."""
    listed = sorted(keys)
    near = next((f"{key}: did you mean {found}?" for key in listed[:5] if (found := nearest_name(key))), "")
    return ConversionError(f"{message} ({near})" if near else message, keys=listed)


def nearest_name(key: str) -> str:
    """The known name most like `key` (kohya's, or a path with or without its component); empty where none is."""
    match = _MODULE_AND_PARAMETER.fullmatch(key)
    if not match:
        return ""
    key, parameter = match.group(1), match.group(2) or ""
    lists, known = (_JOINED, _known_joined()) if "." not in key else (_DOTTED, _known_dotted())
    numbers = [match.group(2) for match in lists.finditer(key)]
    abstract = lists.sub(lambda match: f"{match.group(0)[: -len(match.group(2))]}#", key)
    for found in difflib.get_close_matches(abstract, known, n=3, cutoff=0.75):
        if found.count("#") == len(numbers):
            return re.sub("#", lambda _: numbers.pop(0), found) + parameter
    return ""


@functools.cache
def _paths(component: Component, naming: Naming = "diffusers") -> frozenset[str]:
    if component == "unet":
        return frozenset(name_tables.UNET)
    if component == "text_encoder_3":
        return frozenset(name_tables.T5)
    if component != "transformer":
        return frozenset(name_tables.TEXT_ENCODER)
    if naming == "original":
        return frozenset(name_tables.FLUX_ORIGINAL) | frozenset(name_tables.SD3_ORIGINAL)
    return frozenset(name_tables.FLUX) | frozenset(name_tables.SD3)


@functools.cache
def _joined_paths(component: Component, naming: Naming) -> Mapping[str, str]:
    return {path.replace(".", "_"): path for path in _paths(component, naming)}


def _split(component: Component, joined: str, naming: Naming) -> str:
    """Underscored path -> dotted path, or an empty string if no known layer is called so."""
    numbers = iter([match.group(2) for match in _JOINED.finditer(joined)])
    abstract = _joined_paths(component, naming).get(_JOINED.sub(r"\1_#", joined), "")
    return re.sub("#", lambda _: next(numbers), abstract)


def _naming_behind(prefix: str, component: Component) -> Naming:
    return "original" if (prefix, component) == ("lora_unet_", "transformer") else "diffusers"


@functools.cache
def _known_joined() -> tuple[str, ...]:
    """Every kohya name without block numbers."""
    start = "mid_block.attentions.#."
    inner = [path.removeprefix(start).replace(".", "_") for path in name_tables.UNET if path.startswith(start)]
    layers, attentions = stability.places()
    found = {f"lora_unet_{layer}" for layer in layers}
    found |= {f"lora_unet_{place}_{path}" for place in attentions for path in inner}
    for prefix, components in PREFIXES.items():
        for component in components:
            found |= {prefix + joined for joined in _joined_paths(component, _naming_behind(prefix, component))}
    return tuple(sorted(found))


@functools.cache
def _known_dotted() -> tuple[str, ...]:
    """Every path without block numbers, alone and behind its component."""
    paths = {(component, path) for component in COMPONENTS for path in _paths(component)}
    return tuple(sorted({path for _, path in paths} | {f"{component}.{path}" for component, path in paths}))
