"""kohya's module names <-> the module paths of diffusers and PEFT.

kohya joins a prefix and a path and turns every dot into an underscore (`lora_unet_down_blocks_0_attentions_0_proj_in`),
so the way back needs to know which underscores were dots. name_tables.py holds every layer's path of the known models
with block numbers taken out; a layout of fewer, more or other blocks (tiny-sd, pixelkit-tiny) is then known as well.
For SDXL, sd-scripts names the UNet's layers as Stability's code does (`input_blocks_4_1_...`): a rule of its own.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from converters import name_tables
from converters.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Mapping

Component = Literal["unet", "text_encoder", "text_encoder_2"]
Naming = Literal["diffusers", "sai"]

# kohya prefix -> component; SD 1 and 2 have one text encoder (`lora_te`), SDXL two.
PREFIXES: Mapping[str, Component] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_LISTS = "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks|layers"
_DOTTED = re.compile(rf"(?<![^.])({_LISTS})\.(0|[1-9]\d*)(?=\.)")
_JOINED = re.compile(rf"({_LISTS})_(0|[1-9]\d*)(?=_)")
_SAI_ATTENTION = re.compile(r"(input_blocks_\d+_1|middle_block_1|output_blocks_\d+_1)_(.+)")
_DIFFUSERS_ATTENTION = re.compile(
    r"(down_blocks_\d+_attentions_\d+|mid_block_attentions_0|up_blocks_\d+_attentions_\d+)_(.+)"
)


@dataclass(frozen=True, kw_only=True)
class Name:
    """A module of a model: its component, its path there (dots), and how the kohya name spelled it."""

    component: Component
    path: str
    prefix: str
    naming: Naming = "diffusers"


def abstract_path(path: str) -> str:
    """A layer's path with the block numbers taken out: `down_blocks.#.attentions.#.proj_in`."""
    return _DOTTED.sub(r"\1.#", path)


def is_layer(component: Component, path: str) -> bool:
    """Whether `path` (with dots) is a layer that a model of a known kind can have."""
    return abstract_path(path) in _paths(component)


def parse_kohya(name: str) -> Name:
    """The module that a kohya name (`lora_unet_...`, without `.lora_down.weight`) stands for.

    Raises ConversionError for a name of no known model.
    """
    for prefix, component in PREFIXES.items():
        if not name.startswith(prefix):
            continue
        rest = name.removeprefix(prefix)
        sai = _read_sai(rest) if component == "unet" else ""
        path = _split(component, sai or rest)
        if path:
            return Name(component=component, path=path, prefix=prefix, naming="sai" if sai else "diffusers")
    raise ConversionError("no module of a known model", keys=[name])


def join_kohya(component: Component, path: str, *, prefix: str = "", naming: Naming = "diffusers") -> str:
    """The kohya name of a module. `prefix` tells `lora_te_` (SD 1, 2; the default) from `lora_te1_` (SDXL)."""
    if not is_layer(component, path):
        raise ConversionError("no module of a known model", keys=[f"{component}.{path}"])
    joined = path.replace(".", "_")
    if component == "unet":
        return "lora_unet_" + (_write_sai(joined) if naming == "sai" else joined)
    return (prefix or ("lora_te2_" if component == "text_encoder_2" else "lora_te_")) + joined


@functools.cache
def _paths(component: Component) -> frozenset[str]:
    return frozenset(name_tables.UNET if component == "unet" else name_tables.TEXT_ENCODER)


@functools.cache
def _joined_paths(component: Component) -> Mapping[str, str]:
    return {path.replace(".", "_"): path for path in _paths(component)}


def _split(component: Component, joined: str) -> str:
    """Underscored path -> dotted path, or an empty string if no known layer is called so."""
    numbers = iter([match.group(2) for match in _JOINED.finditer(joined)])
    abstract = _joined_paths(component).get(_JOINED.sub(r"\1_#", joined), "")
    return re.sub("#", lambda _: next(numbers), abstract)


@functools.cache
def _sai_places() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """SDXL's layers outside attention, and its attentions: Stability's name -> diffusers', both with underscores.

    Three blocks of two resnets each (sd-scripts: library/sdxl_model_util.py, make_unet_conversion_map).
    """
    resnets = {"middle_block_0": "mid_block_resnets_0", "middle_block_2": "mid_block_resnets_1"}
    attentions = {"middle_block_1": "mid_block_attentions_0"}
    layers = {
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
        "time_embed_0": "time_embedding_linear_1",
        "time_embed_2": "time_embedding_linear_2",
        "label_emb_0_0": "add_embedding_linear_1",
        "label_emb_0_2": "add_embedding_linear_2",
    }
    for block in range(3):
        for layer in range(3):
            down, up = f"input_blocks_{3 * block + layer + 1}", f"output_blocks_{3 * block + layer}"
            if layer < 2:
                resnets[f"{down}_0"] = f"down_blocks_{block}_resnets_{layer}"
                attentions[f"{down}_1"] = f"down_blocks_{block}_attentions_{layer}"
            resnets[f"{up}_0"] = f"up_blocks_{block}_resnets_{layer}"
            attentions[f"{up}_1"] = f"up_blocks_{block}_attentions_{layer}"
        if block < 2:
            layers[f"input_blocks_{3 * block + 3}_0_op"] = f"down_blocks_{block}_downsamplers_0_conv"
            layers[f"output_blocks_{3 * block + 2}_2_conv"] = f"up_blocks_{block}_upsamplers_0_conv"
    parts = {
        "in_layers_2": "conv1",
        "out_layers_3": "conv2",
        "emb_layers_1": "time_emb_proj",
        "skip_connection": "conv_shortcut",
    }
    for place, path in resnets.items():
        layers |= {f"{place}_{part}": f"{path}_{name}" for part, name in parts.items()}
    return layers, attentions


def _read_sai(name: str) -> str:
    """Stability's name of an SDXL layer -> diffusers', or an empty string."""
    layers, attentions = _sai_places()
    match = _SAI_ATTENTION.fullmatch(name)
    if match and match.group(1) in attentions:
        return f"{attentions[match.group(1)]}_{match.group(2)}"
    return layers.get(name, "")


def _write_sai(name: str) -> str:
    """The inverse of _read_sai. Raises ConversionError for a layer that SDXL has not."""
    layers, attentions = ({path: place for place, path in table.items()} for table in _sai_places())
    match = _DIFFUSERS_ATTENTION.fullmatch(name)
    if match and match.group(1) in attentions:
        return f"{attentions[match.group(1)]}_{match.group(2)}"
    if name not in layers:
        raise ConversionError("no layer of SDXL", keys=[name])
    return layers[name]
