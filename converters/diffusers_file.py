"""diffusers' LoRA file, `pytorch_lora_weights.safetensors`.

It has no place for an alpha that every release reads, and releases scale ranks that differ by the first module's
(0.31: wrong by 0.59 in a UNet; 0.32: by 1.1 in a text encoder; 0.42 is right). So each module is written with its scale
multiplied in, and the modules of a component that has several ranks are filled up with zeros to the highest: alpha is
the rank everywhere, and all of these releases agree with sd-scripts to 1e-6. Where a file's dtype cannot hold the
multiplied numbers exactly, that one tensor is written as float32. Text encoder paths keep `text_model.`: diffusers with
transformers 5.23 reads them as well as with 4.54 (without it, the latter raises).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.errors import ConversionError
from converters.lora import (
    NOTE,
    Lora,
    Module,
    Spelling,
    Written,
    carry_metadata,
    encode_alpha,
    guess_prefix,
    read_note,
    spelled_name,
    write_note,
)
from converters.metadata import hash_tensors
from converters.names import Component, Name, is_layer
from converters.peft_folder import COMPONENTS, deepen_path, find_alpha
from converters.tensors import ITEM_SIZE, Tensor, Weights, encode, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.lora import Source

_KEY = re.compile(
    r"(unet|text_encoder|text_encoder_2)\.(.+?)"
    r"(?:\.lora_(A|B)|\.lora\.(down|up)|\.lora_linear_layer\.(down|up)|_lora\.(down|up))\.weight"
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
    """The tensors and metadata of a file."""
    highest = {name.component: 0 for name in lora.modules}
    for name, module in lora.modules.items():
        highest[name.component] = max(highest[name.component], module.rank)
    tensors: dict[str, Tensor] = {}
    widened: list[str] = []
    rounded: list[str] = []
    scaled: dict[Name, str] = {}
    for name, module in lora.modules.items():
        # In a text encoder, 0.32 knows `lora_A` for attention layers only.
        style = ("lora_A", "lora_B") if name.component == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")
        down_key, up_key = (f"{name.component}.{name.path}.{part}.weight" for part in style)
        down, up, exact = _multiply_in(module)
        scaled[name] = "down" if down is not module.down else "up" if up is not module.up else ""
        changed = down_key if scaled[name] == "down" else up_key
        widened += [changed] if (down.dtype, up.dtype) != (module.down.dtype, module.up.dtype) else []
        rounded += [] if exact else [changed]
        rank = highest[name.component]
        tensors[down_key] = _fill_up(down, axis=0, size=rank)
        tensors[up_key] = _fill_up(up, axis=1, size=rank)
    note = write_note(lora.modules, scaled=scaled, tensors_hash=hash_tensors(tensors))
    metadata = {**lora.metadata, "format": "pt", NOTE: note}
    return Built(weights=Weights(tensors=tensors, metadata=metadata), widened=tuple(widened), rounded=tuple(rounded))


def parse_weights(weights: Weights) -> Lora:
    """Raises ConversionError with the keys that are no part of a plain LoRA of a known model."""
    pairs = _pair_up(weights)
    keys = [f"{component}.{path}" for component, path in pairs]
    spellings: Mapping[str, Spelling] = {}
    if NOTE in weights.metadata:
        spellings = read_note(weights.metadata, keys, tensors_hash=hash_tensors(weights.tensors))
    adapter = _read_adapter(weights.metadata)
    places: list[tuple[str, str]] = list(pairs)
    modules: dict[Name, Module] = {}
    for (component, path), (down, up) in pairs.items():
        spelling = spellings.get(f"{component}.{path}")
        prefix = guess_prefix(component, places)
        name = spelled_name(component, path, spelling, prefix=prefix)
        if spelling:
            modules[name] = _divide_out(down, up, spelling)
        else:
            rank = down.shape[0]
            settings = adapter.get(component)
            alpha = find_alpha(settings, path, rank=rank) if settings else float(rank)
            modules[name] = Module(down=down, up=up, alpha=encode_alpha(alpha, down.dtype))
    return Lora(modules=modules, metadata=carry_metadata(weights.metadata))


def _pair_up(weights: Weights) -> dict[tuple[Component, str], tuple[Tensor, Tensor]]:
    found: dict[tuple[Component, str], dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in weights.tensors.items():
        match = _KEY.fullmatch(key)
        component = next((part for part in COMPONENTS if match and match.group(1) == part), None)
        if not match or not component:
            unknown.append(key)
            continue
        path = match.group(2).replace(".processor.", ".")
        path = deepen_path(component, _modernise(component, path))
        if is_layer(component, path):
            letter = next(group for group in match.groups()[2:] if group)
            found.setdefault((component, path), {})["down" if letter in {"A", "down"} else "up"] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise ConversionError("keys of no known model", keys=unknown)
    halves = [".".join(place) for place, pair in found.items() if set(pair) != {"down", "up"}]
    if halves:
        raise ConversionError("modules with one of the two matrices only", keys=halves)
    return {place: (pair["down"], pair["up"]) for place, pair in found.items()}


def _modernise(component: Component, path: str) -> str:
    """Attention layers as old releases called them -> the layers' paths."""
    if component == "unet":
        return f"{path}.0" if path.endswith(".to_out") else path
    return re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", path)


def _read_adapter(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """diffusers' own record of PEFT settings: component -> settings."""
    try:
        settings = json.loads(metadata.get(_ADAPTER, "{}"))
        return {
            part: {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}
            for part in COMPONENTS
        }
    except (ValueError, AttributeError) as error:
        raise ConversionError(f"{_ADAPTER} in the metadata cannot be read") from error


def _multiply_in(module: Module) -> tuple[Tensor, Tensor, bool]:
    """down, up with the scale in one of them, and whether nothing was rounded.

    F16 cannot halve its smallest numbers, so the scale goes where it is exact; else the smaller matrix is widened.
    """
    down, up, scale = module.down, module.up, module.scale
    if scale == 1:
        return down, up, True
    if (scaled := _scale(down, scale)) is not None:
        return scaled, up, True
    if (scaled := _scale(up, scale)) is not None:
        return down, scaled, True
    smaller = up if up.data.size <= down.data.size else down
    product = smaller.to_float64() * scale
    wide = encode(product, "F64" if smaller.dtype == "F64" else "F32")
    exact = bool(np.array_equal(wide.to_float64(), product))
    return (down, wide, exact) if smaller is up else (wide, up, exact)


def _scale(tensor: Tensor, factor: float) -> Tensor | None:
    """tensor * factor in the tensor's dtype, or None where that would round."""
    if tensor.dtype.startswith("F8"):
        return None
    # Powers of two times a half float are exact in float32, which takes half the time.
    narrow = tensor.dtype in {"F16", "BF16"} and abs(math.frexp(factor)[0]) == 0.5
    glance = tensor.data[: 64 * ITEM_SIZE[tensor.dtype]]  # most scales that round at all do so at once
    for data in (glance, tensor.data):
        part = Tensor(dtype=tensor.dtype, shape=(data.size // ITEM_SIZE[tensor.dtype],), data=data)
        product = part.to_float32() * np.float32(factor) if narrow else part.to_float64() * factor
        scaled = encode(product, tensor.dtype)
        back = scaled.to_float32() if narrow else scaled.to_float64()
        if not np.array_equal(back, product):
            return None
    return scaled.reshape(*tensor.shape)


def _divide_out(down: Tensor, up: Tensor, spelling: Spelling) -> Module:
    """The module as the kohya file had it: the same bits unless float32 was rounded on the way out."""
    down, up = _cut(down, axis=0, size=spelling.rank), _cut(up, axis=1, size=spelling.rank)
    scale = spelling.alpha / spelling.rank
    if spelling.scaled == "down":
        down = encode(down.to_float64() / scale, spelling.down_dtype)
    elif spelling.scaled == "up":
        up = encode(up.to_float64() / scale, spelling.up_dtype)
    return Module(down=down, up=up, alpha=spelling.alpha_tensor(spelling.alpha))


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
