"""Whole models: which tensor of a checkpoint holds a layer's weight.

Layers are called as everywhere here, by component and diffusers' path. Known are a folder as diffusers saves it and a
single file with Stability's names (SD 1, SD 2, SDXL, and Flux and SD 3 under the names that kohya's files use, too).
The blocks of a UNet are counted from the keys, so that a model of fewer blocks is read as well.
Reference: sd-scripts, library/model_util.py (convert_ldm_unet_checkpoint, convert_ldm_clip_checkpoint_v2).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from converters.errors import ConversionError
from converters.family import find_family
from converters.names import COMPONENTS, Component, is_layer, parse_kohya
from converters.peft_folder import deepen_path
from converters.tensors import FLOATS, Float32, Tensor, Weights, read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

Layer: TypeAlias = tuple[Component, str]

_UNET = "model.diffusion_model."
# Where a single file keeps its text encoders; the second of a pair says whether OpenCLIP named the layers.
_TEXT_ENCODERS: Mapping[str, tuple[str, bool]] = {
    "cond_stage_model.transformer.": ("text_encoder", False),
    "cond_stage_model.model.": ("text_encoder", True),
    "conditioner.embedders.0.transformer.": ("text_encoder", False),
    "conditioner.embedders.0.model.": ("text_encoder_2", True),  # SDXL's refiner
    "conditioner.embedders.1.model.": ("text_encoder_2", True),
    "text_encoders.clip_l.transformer.": ("text_encoder", False),
    "text_encoders.clip_g.transformer.": ("text_encoder_2", False),
    "text_encoders.t5xxl.transformer.": ("text_encoder_3", False),
}
_LAYERS = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_OPEN_CLIP = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_BLOCK = re.compile(r"((?:input_blocks\.\d+|output_blocks\.\d+|middle_block)\.\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A tensor, or one of `parts` equal blocks of its rows (q, k and v in one); `turned`: stored transposed."""

    file: Path
    key: str
    part: int = 0
    parts: int = 1
    turned: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened model: its weight files, and the place of every layer's weight there."""

    path: Path
    files: Mapping[Path, Weights]
    places: Mapping[Layer, Place]

    @property
    def family(self) -> str:
        """See family.find_family."""
        return find_family({layer: self.shape(layer) for layer in self.places})

    def tensor(self, layer: Layer) -> Tensor:
        """The whole tensor that holds a layer's weight."""
        place = self.places[layer]
        return self.files[place.file].tensors[place.key]

    def shape(self, layer: Layer) -> tuple[int, ...]:
        """The shape of a layer's weight: (out, in[, kh, kw])."""
        place, stored = self.places[layer], self.tensor(layer).shape
        return stored[::-1] if place.turned else (stored[0] // place.parts, *stored[1:])

    def read(self, layer: Layer) -> Float32:
        """A layer's weight."""
        return view_part(self.tensor(layer).to_float32(), self.places[layer])


def view_part(values: Float32, place: Place) -> Float32:
    """The part of a whole tensor that belongs to a layer, as a view: what is written there is written to the whole."""
    if place.turned:
        return values.T
    size = values.shape[0] // place.parts
    return values[place.part * size : (place.part + 1) * size]


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors file or a folder as diffusers saves it. Raises ConversionError for anything else."""
    if path.is_dir():
        return _open_folder(path)
    weights = read_file(path)
    places = {
        layer: place
        for layer, place in _find_places(path, weights)
        if weights.tensors[place.key].dtype in FLOATS and len(weights.tensors[place.key].shape) >= 2
    }
    if not any(component in {"unet", "transformer"} for component, _ in places):
        raise ConversionError(f"{path}: no checkpoint of a known kind (SD 1, SD 2, SDXL, Flux, SD 3)")
    return Checkpoint(path=path, files={path: weights}, places=places)


def _open_folder(path: Path) -> Checkpoint:
    files: dict[Path, Weights] = {}
    places: dict[Layer, Place] = {}
    for component in COMPONENTS:
        for file in _weight_files(path / component):
            files[file] = read_file(file)
            for key, tensor in files[file].tensors.items():
                layer = deepen_path(component, key.removesuffix(".weight"))
                if key.endswith(".weight") and len(tensor.shape) >= 2 and is_layer(component, layer):
                    places[component, layer] = Place(file=file, key=key)
    if not places:
        raise ConversionError(f"{path}: no model as diffusers saves it (unet/diffusion_pytorch_model.safetensors)")
    return Checkpoint(path=path, files=files, places=places)


def _weight_files(folder: Path) -> list[Path]:
    """A component's files: the shards of its index, or the file without a variant's name, or the only one."""
    if not folder.is_dir():
        return []
    found = sorted(folder.glob("*.safetensors"))
    plain = [file for file in found if file.name in {"diffusion_pytorch_model.safetensors", "model.safetensors"}]
    indexes = sorted(folder.glob("*.safetensors.index.json"), key=lambda file: len(file.name))
    if plain or len(found) <= 1:
        return plain or found
    if not indexes:
        raise ConversionError(f"{folder}: several weight files and nothing that says which count")
    try:
        names = set(json.loads(indexes[0].read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConversionError(f"{indexes[0]}: cannot be read: {error}") from error
    if missing := names - {file.name for file in found}:
        raise ConversionError(f"{folder}: weight files that are not there", keys=missing)
    return [file for file in found if file.name in names]


def _find_places(path: Path, weights: Weights) -> Iterator[tuple[Layer, Place]]:
    keys = [key for key in weights.tensors if key.endswith("weight")]
    unet = {key.removeprefix(_UNET).removesuffix(".weight"): key for key in keys if key.startswith(_UNET)}
    if any(name.startswith("input_blocks.") for name in unet):
        for name, layer in name_unet(unet):
            yield ("unet", layer), Place(file=path, key=unet[name])
    else:
        bare = unet or {key.removesuffix(".weight"): key for key in keys if not key.startswith(tuple(_TEXT_ENCODERS))}
        for name, key in bare.items():
            if found := _read_kohya(name):
                yield found, Place(file=path, key=key)
    for key in weights.tensors:
        for prefix, (component, open_clip) in _TEXT_ENCODERS.items():
            if key.startswith(prefix):
                part = cast("Component", component)
                yield from _name_text(path, key, key.removeprefix(prefix), part, open_clip=open_clip)


def name_unet(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Stability's names of a UNet's modules (`input_blocks.1.0.in_layers.2`) with diffusers' paths."""
    modules = set(modules)
    blocks = _number_blocks(modules)
    for module in modules:
        match = _BLOCK.match(module)
        kind, block = blocks.get(match[1], ("", "")) if match else ("", "")
        rest = module[match.end() :] if match else ""
        if module in _LAYERS:
            layer = _LAYERS[module]
        elif module in blocks:
            layer = blocks[module][1]
        else:
            layer = f"{block}.{_RESNET.get(rest, '') if kind == 'resnet' else rest}"
        if is_layer("unet", layer):
            yield module, layer


def _number_blocks(modules: set[str]) -> dict[str, tuple[str, str]]:
    """Block (`input_blocks.1.0`) -> its kind and diffusers' path; levels end where the picture's size changes."""
    tops = {module.rpartition(".")[0] for module in modules} | modules
    heads = {".".join(top.split(".")[:2]) for top in tops}
    found = {
        "middle_block.0": ("resnet", "mid_block.resnets.0"),
        "middle_block.1": ("attention", "mid_block.attentions.0"),
        "middle_block.2": ("resnet", "mid_block.resnets.1"),
    }
    for side, path in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks")):
        level = layer = 0
        for number in range(side == "input_blocks", sum(head.startswith(f"{side}.") for head in heads)):
            block = f"{side}.{number}"
            if f"{block}.0.op" in modules:
                found[f"{block}.0.op"] = ("layer", f"{path}.{level}.downsamplers.0.conv")
                level, layer = level + 1, 0
                continue
            found[f"{block}.0"] = ("resnet", f"{path}.{level}.resnets.{layer}")
            found[f"{block}.1"] = ("attention", f"{path}.{level}.attentions.{layer}")
            layer += 1
            if upsampler := {f"{block}.1.conv", f"{block}.2.conv"} & modules:
                found[upsampler.pop()] = ("layer", f"{path}.{level}.upsamplers.0.conv")
                level, layer = level + 1, 0
    return found


def _read_kohya(name: str) -> Layer | None:
    try:
        found = parse_kohya("lora_unet_" + name.replace(".", "_"))
    except ConversionError:
        return None
    return found.component, found.path


def _name_text(
    path: Path, key: str, name: str, component: Component, *, open_clip: bool
) -> Iterator[tuple[Layer, Place]]:
    if not open_clip:
        layer = deepen_path(component, name.removesuffix(".weight"))
        if is_layer(component, layer):
            yield (component, layer), Place(file=path, key=key)
        return
    if name == "text_projection":  # OpenCLIP multiplies from the other side
        yield (component, name), Place(file=path, key=key, turned=True)
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._]weight", name)
    if match is None:
        return
    block = f"text_model.encoder.layers.{match[1]}"
    if match[2] == "attn.in_proj":
        for part, letter in enumerate("qkv"):
            layer = f"{block}.self_attn.{letter}_proj"
            yield (component, layer), Place(file=path, key=key, part=part, parts=3)
    elif match[2] in _OPEN_CLIP:
        yield (component, f"{block}.{_OPEN_CLIP[match[2]]}"), Place(file=path, key=key)


def fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two weights have the same shape; a 1x1 convolution is a matrix, and one of them may be flat (out, rest)."""
    one, two = (sizes[:2] if set(sizes[2:]) <= {1} else sizes for sizes in (shape, other))
    flat = len(one) != len(two) and (one[0], math.prod(one[1:])) == (two[0], math.prod(two[1:]))
    return one == two or flat
