"""diffusers' LoRA file, `pytorch_lora_weights.safetensors`.

It has no place for an alpha that every release reads, and releases scale ranks that differ by the first module's
(0.31: wrong by 0.59 in a UNet; 0.32: by 1.1 in a text encoder; 0.42 is right). So each module is written with its scale
multiplied in, and the modules of a component that has several ranks are filled up with zeros to the highest: alpha is
the rank everywhere, and all of these releases agree with sd-scripts to 1e-6. (0.35 and later also read alphas from the
metadata: a file that needs this is wrong in older ones.) Where a file's dtype cannot hold the multiplied numbers
exactly, that one tensor is written as float32. A Tucker core is multiplied in, in float32. DoRA is held where all of a
component's modules have it: diffusers makes DoRA of all or none.

Text encoder paths keep `text_model.`: diffusers with transformers 5.23 reads them as well as with 4.54 (without it, the
latter raises).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converters import fused
from converters.errors import ConversionError
from converters.lora import NOTE, Lora, Module, Written, carry_metadata, check_finite, encode_alpha, name_places
from converters.metadata import fingerprint_tensors
from converters.names import Component, Name, is_layer, unknown_layers
from converters.note import Spelling, guess_prefix, read_note, shape_magnitude, spelled_name, write_note
from converters.peft_config import find_alpha
from converters.peft_folder import deepen_path
from converters.scaling import divide, multiply_exactly, multiply_widened
from converters.tensors import ITEM_SIZE, Tensor, Weights, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.lora import Source

# What diffusers' pipelines have loaders for: not T5, whose keys they pass over in silence.
_COMPONENTS: tuple[Component, ...] = ("unet", "transformer", "text_encoder", "text_encoder_2")
_KEY = re.compile(
    rf"({'|'.join(_COMPONENTS)})\.(.+?)"
    r"(?:(?:\.lora_(A|B)|\.lora\.(down|up)|\.lora_linear_layer\.(down|up)|_lora\.(down|up))\.weight"
    r"|\.lora_(magnitude)_vector(?:\.weight)?)"
)
_ADAPTER = "lora_adapter_metadata"  # where diffusers 0.35 and later keep alphas that are not multiplied in


@dataclass(frozen=True, kw_only=True)
class Built:
    """A file's content; `widened` and `rounded` name the tensors that became float32, or lost their last bit there."""

    weights: Weights
    widened: tuple[str, ...]
    rounded: tuple[str, ...]


def matches(source: Source) -> bool:
    """Whether a file's keys are those of a diffusers LoRA."""
    return source.weights is not None and any(_KEY.fullmatch(key) for key in source.weights.tensors)


def parse(source: Source) -> Lora:
    """The LoRA in an opened file; see parse_weights."""
    return parse_weights(source.weights or read_file(source.path))


def write(lora: Lora, out: Path, *, flat_text_encoder: bool = False) -> Written:  # noqa: ARG001 one file for both
    """Write the file; the result names the tensors that became float32 or were rounded."""
    built = build(lora)
    write_file(out, built.weights.tensors, built.weights.metadata)
    return Written(paths=(out,), widened=built.widened, rounded=built.rounded)


def build(lora: Lora) -> Built:
    """The tensors and metadata of a file. Raises ConversionError with the modules that diffusers cannot load."""
    lora = fused.split(lora)
    _refuse(lora)
    highest = {name.component: 0 for name in lora.modules}
    for name, module in lora.modules.items():
        highest[name.component] = max(highest[name.component], module.rank)
    tensors: dict[str, Tensor] = {}
    widened: list[str] = []
    rounded: list[str] = []
    plain: dict[Name, Module] = {}
    scaled: dict[Name, str] = {}
    for name, module in lora.modules.items():
        assert isinstance(module, Module)
        plain[name], exact = module.make_plain()
        down_key, up_key, magnitude_key = _write_keys(name)
        down, up, kept = _multiply_in(plain[name], keep_down=fused.is_part(name))
        scaled[name] = "down" if down is not plain[name].down else "up" if up is not plain[name].up else ""
        widened += [down_key] if down.dtype != module.down.dtype else []
        widened += [up_key] if up.dtype != module.up.dtype else []
        rounded += [] if exact and kept else [up_key if exact and scaled[name] == "up" else down_key]
        tensors[down_key] = _fill_up(down, axis=0, size=highest[name.component])
        tensors[up_key] = _fill_up(up, axis=1, size=highest[name.component])
        if module.magnitude is not None:
            shape = (module.shape[0],) if len(down.shape) == 2 else (1, module.shape[0], 1, 1)
            tensors[magnitude_key] = module.magnitude.reshape(*shape)
    note = write_note(plain, scaled=scaled, tensors_hash=fingerprint_tensors(tensors))
    metadata = {**lora.metadata, "format": "pt", NOTE: note}
    return Built(weights=Weights(tensors=tensors, metadata=metadata), widened=tuple(widened), rounded=tuple(rounded))


def parse_weights(weights: Weights) -> Lora:
    """Raises ConversionError with the keys that are no part of a plain LoRA of a known model."""
    found = _collect_parts(weights)
    check_finite(weights.tensors)
    keys = [f"{component}.{path}" for component, path in found]
    spellings: Mapping[str, Spelling] = {}
    if NOTE in weights.metadata:
        spellings = read_note(weights.metadata, keys, tensors_hash=fingerprint_tensors(weights.tensors))
    adapter = _read_adapter(weights.metadata)
    places: list[tuple[str, str]] = list(found)
    modules: dict[Name, Module] = {}
    for (component, path), parts in found.items():
        spelling = spellings.get(f"{component}.{path}")
        name = spelled_name(component, path, spelling, prefix=guess_prefix(component, places))
        module = Module(down=parts["down"], up=parts["up"], magnitude=parts.get("magnitude"))
        if spelling:
            module = _divide_out(module, spelling)
        else:
            settings = adapter.get(component)
            alpha = find_alpha(settings, path, rank=module.rank) if settings else float(module.rank)
            module = replace(module, alpha=encode_alpha(alpha, module.down.dtype))
        modules[name] = replace(module, magnitude=shape_magnitude(module, spelling))
    return Lora(modules=modules, metadata=carry_metadata(weights.metadata))


def _refuse(lora: Lora) -> None:
    """Raises ConversionError for what diffusers' loaders raise on, pass over, or read as something else."""
    strange = [name for name, module in lora.modules.items() if not isinstance(module, Module)]
    if strange:
        raise ConversionError("LoHa or LoKr: diffusers has no loader for them", keys=name_places(strange))
    homeless = [name for name in lora.modules if name.component not in _COMPONENTS]
    if homeless:
        raise ConversionError("T5: diffusers has no loader for a LoRA of it", keys=name_places(homeless))
    by_input = [name for name, module in lora.modules.items() if module.by_input]
    if by_input:
        raise ConversionError(
            "DoRA by input, dora_scale of shape (1, in): diffusers has none", keys=name_places(by_input)
        )
    dora = {name.component for name, module in lora.modules.items() if module.magnitude is not None}
    mixed = [name for name, module in lora.modules.items() if name.component in dora and module.magnitude is None]
    if mixed:
        message = "modules without dora_scale beside some with it: diffusers would make DoRA of all"
        raise ConversionError(message, keys=name_places(mixed))


def _write_keys(name: Name) -> tuple[str, str, str]:
    """The keys of down, up and magnitude. In a text encoder, 0.32 knows `lora_A` for attention layers only."""
    encoder = name.component.startswith("text_encoder")
    parts = ("lora_linear_layer.down", "lora_linear_layer.up") if encoder else ("lora_A", "lora_B")
    down, up = (f"{name.component}.{name.path}.{part}.weight" for part in parts)
    return down, up, f"{name.component}.{name.path}.lora_magnitude_vector"


def _collect_parts(weights: Weights) -> dict[tuple[Component, str], dict[str, Tensor]]:
    """Component and path -> `down`, `up` and, with DoRA, `magnitude`."""
    found: dict[tuple[Component, str], dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in weights.tensors.items():
        match = _KEY.fullmatch(key)
        component = next((part for part in _COMPONENTS if match and match.group(1) == part), None)
        if not match or not component:
            unknown.append(key)
            continue
        path = match.group(2).replace(".processor.", ".")
        path = deepen_path(component, _modernise(component, path))
        if is_layer(component, path):
            letter = next(group for group in match.groups()[2:] if group)
            part = {"A": "down", "B": "up"}.get(letter, letter)
            found.setdefault((component, path), {})[part] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise unknown_layers("keys of no known model", unknown)
    halves = [".".join(place) for place, parts in found.items() if not {"down", "up"} <= set(parts)]
    if halves:
        raise ConversionError("modules with one of the two matrices only", keys=halves)
    return found


def _modernise(component: Component, path: str) -> str:
    """Attention layers as old releases called them -> the layers' paths."""
    if component == "unet":  # and in transformers, `attn.to_out.0` has always been called so
        return f"{path}.0" if path.endswith(".to_out") else path
    return re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", path)


def _read_adapter(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """diffusers' own record of PEFT settings: component -> settings."""
    try:
        settings = json.loads(metadata.get(_ADAPTER, "{}"))
        return {
            part: {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
            for part in _COMPONENTS
        }
    except (ValueError, AttributeError) as error:
        raise ConversionError(f"{_ADAPTER} in the metadata cannot be read") from error


def _multiply_in(module: Module, *, keep_down: bool) -> tuple[Tensor, Tensor, bool]:
    """down, up with the scale in one of them, and whether nothing was rounded.

    F16 cannot halve its smallest numbers, so the scale goes where it is exact; else the smaller matrix is widened.
    `keep_down` is for parts of one kohya module: they are one again if their `down` is the same in all.
    """
    down, up, scale = module.down, module.up, module.scale
    if scale == 1:
        return down, up, True
    if scaled := multiply_exactly(down, scale):
        down.release()
        return scaled, up, True
    if scaled := multiply_exactly(up, scale):
        up.release()
        return down, scaled, True
    if keep_down or up.data.size <= down.data.size:
        wide, exact = multiply_widened(up, scale)
        up.release()
        return down, wide, exact
    wide, exact = multiply_widened(down, scale)
    down.release()
    return wide, up, exact


def _divide_out(module: Module, spelling: Spelling) -> Module:
    """The module as the kohya file had it: the same bits unless float32 was rounded on the way out."""
    down, up = _cut(module.down, axis=0, size=spelling.rank), _cut(module.up, axis=1, size=spelling.rank)
    if spelling.scaled == "down":
        down = divide(down, spelling.scale, spelling.down_dtype)
        module.down.release()
    elif spelling.scaled == "up":
        up = divide(up, spelling.scale, spelling.up_dtype)
        module.up.release()
    return replace(module, down=down, up=up, alpha=spelling.alpha_tensor())


def _fill_up(tensor: Tensor, *, axis: int, size: int) -> Tensor:
    """The tensor with zeros behind it along `axis`, as bytes: zero is all bits 0 in every float format."""
    if tensor.shape[axis] == size:
        return tensor
    shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
    filled = np.zeros((*shape, ITEM_SIZE[tensor.dtype]), dtype=np.uint8)
    part = tensor.data.reshape(*tensor.shape, -1)
    filled[tuple(slice(length) for length in tensor.shape)] = part
    return Tensor(dtype=tensor.dtype, shape=shape, data=filled.reshape(-1))


def _cut(tensor: Tensor, *, axis: int, size: int) -> Tensor:
    """The inverse of _fill_up."""
    if tensor.shape[axis] == size:
        return tensor
    shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
    part = tensor.data.reshape(*tensor.shape, -1)[tuple(slice(length) for length in shape)]
    return Tensor(dtype=tensor.dtype, shape=shape, data=np.ascontiguousarray(part).reshape(-1))
