"""LoRAs into the model they were made for: a checkpoint that needs no LoRA any more.

Tensor by tensor in float32, written in the checkpoint's own dtypes: what no LoRA touches keeps its bytes, and memory
holds a few tensors, not the model. What rounding takes of the LoRAs' effect is measured and told.
Reference: sd-scripts' networks/merge_lora.py (merge_to_sd_model); DoRA as LyCORIS' apply_weight_decompose.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters import read_lora
from converters.checkpoint import fits, open_checkpoint, view_part
from converters.errors import ConversionError
from converters.family import TITLES, family_of
from converters.fused import join, split
from converters.lineage import now, title_of
from converters.merge import check_target
from converters.tensors import Tensor, build_header, encode, order_names, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from converters.checkpoint import Checkpoint, Layer, Place
    from converters.lora import AnyModule, Lora
    from converters.tensors import Float32, Weights

_HASH = "modelspec.hash_sha256"


@dataclass(frozen=True, kw_only=True)
class Baked:
    """`layers` that were changed; `lost`: |rounding to the checkpoint's dtype| / |the LoRAs' change|, over all layers."""

    path: Path
    layers: int
    lost: float


def bake(
    sources: Sequence[Path | str],
    base: Path | str,
    out: Path | str,
    *,
    weights: Sequence[float] = (),
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Baked:
    """Write the checkpoint `base` (a safetensors file, or a folder as diffusers saves it) with LoRAs added to it.

    `weights` one for each LoRA (default: 1 each). Raises ConversionError: a LoRA of another base (with the layers that
    do not fit), tensors of a dtype that cannot be written, `out` there already.
    """
    check_target(out, overwrite=overwrite)
    out, base = Path(out), Path(base)
    if out.resolve() == base.resolve():
        raise ConversionError(f"{out}: the base itself is never overwritten")
    model = open_checkpoint(base)
    loras = [read_lora(source)[1] for source in sources]
    spelled = [split(lora) if base.is_dir() else join(lora, block_diagonal=True) for lora in loras]
    weights = weights or [1.0] * len(loras)
    if len(loras) != len(weights):
        raise ConversionError(f"{len(weights)} weights for {len(loras)} LoRAs")
    changes: dict[Path, dict[str, list[_Change]]] = defaultdict(lambda: defaultdict(list))
    for source, lora, weight in zip(sources, spelled, weights, strict=True):
        for change in _plan(Path(source), lora, weight, model):
            changes[change.place.file][change.place.key].append(change)
    titles = [title_of(lora.metadata, Path(source).stem) for source, lora in zip(sources, loras, strict=True)]
    tally = _Tally(total=sum(len(keys) for keys in changes.values()), on_progress=on_progress)
    if base.is_dir():
        _write_folder(model, changes, out, tally)
    else:
        weights_in = model.files[base]
        metadata = _describe(weights_in.metadata, base.stem, titles)
        _write(weights_in, changes[base], out, metadata, tally)
    return Baked(
        path=out,
        layers=len({change.layer for keys in changes.values() for found in keys.values() for change in found}),
        lost=(tally.rounding / tally.effect) ** 0.5 if tally.effect else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class _Change:
    layer: Layer
    place: Place
    module: AnyModule
    weight: float


@dataclass(kw_only=True)
class _Tally:
    total: int
    on_progress: Callable[[int, int], None] | None
    done: int = 0
    rounding: float = 0.0
    effect: float = 0.0


def _plan(source: Path, lora: Lora, weight: float, model: Checkpoint) -> list[_Change]:
    missing: list[str] = []
    found: list[_Change] = []
    for name, module in lora.modules.items():
        layer = (name.component, name.path)
        if layer in model.places and fits(model.shape(layer), module.shape):
            found.append(_Change(layer=layer, place=model.places[layer], module=module, weight=weight))
        else:
            missing.append(f"{name.component}.{name.path}")
    if missing:
        ours, theirs = family_of(lora), model.family
        about = (
            f" (a LoRA for {TITLES[ours]}, a model of {TITLES[theirs]})" if ours and theirs and ours != theirs else ""
        )
        raise ConversionError(f"{source}: {model.path} has no such layers{about}", keys=missing)
    return found


def _describe(metadata: Mapping[str, str], name: str, titles: Sequence[str]) -> dict[str, str]:
    """The checkpoint's own metadata, what is no longer true corrected."""
    kept = {key: value for key, value in metadata.items() if not key.startswith("sshs_") and key != _HASH}
    if "modelspec.sai_model_spec" in kept:
        merged = [title_of(metadata, name), *titles]
        kept |= {"modelspec.title": " + ".join(merged), "modelspec.merged_from": ", ".join(merged)}
        kept |= {"modelspec.date": now(), _HASH: f"0x{'0' * 64}"}
    return kept


def _write(
    weights: Weights, changes: Mapping[str, list[_Change]], out: Path, metadata: dict[str, str], tally: _Tally
) -> None:
    digest = hashlib.sha256()
    with replace_file(out) as temporary, temporary.open("wb") as handle:
        handle.write(build_header(weights.tensors, metadata))
        for name in order_names(weights.tensors):
            tensor = weights.tensors[name]
            if changed := changes.get(name):
                tensor = _apply(name, tensor, changed, tally)
            if _HASH in metadata:
                digest.update(tensor.raw)
            handle.write(tensor.raw)
            weights.tensors[name].release()
        if _HASH in metadata:  # as long as the zeros that stood for it
            handle.seek(0)
            handle.write(build_header(weights.tensors, {**metadata, _HASH: f"0x{digest.hexdigest()}"}))


def _write_folder(
    model: Checkpoint, changes: Mapping[Path, Mapping[str, list[_Change]]], out: Path, tally: _Tally
) -> None:
    """The folder copied, the changed weight files written anew; other precisions of changed ones are left out."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    touched = {file.parent for file in changes}

    def leave_out(folder: str, names: list[str]) -> set[str]:
        weights = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx")
        here = Path(folder)
        own = {name for name in names if here in touched and name.endswith(weights)}
        return own - {file.name for file in model.files if file not in changes}

    try:
        shutil.copytree(model.path, temporary, ignore=leave_out)
        for file, changed in changes.items():
            _write(model.files[file], changed, temporary / file.relative_to(model.path), {"format": "pt"}, tally)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _apply(name: str, tensor: Tensor, changes: Sequence[_Change], tally: _Tally) -> Tensor:
    if tensor.dtype.startswith("F8"):
        raise ConversionError(f"tensors of {tensor.dtype}: bake into a checkpoint of a wider dtype", keys=[name])
    before = tensor.to_float32()
    after = before.copy()
    for change in changes:
        part = view_part(after, change.place)
        part[...] = _add(part, change)
    made = encode(after, tensor.dtype)
    if not made.is_finite():
        raise ConversionError(f"the change is too large for {tensor.dtype}", keys=[name])
    tally.rounding += float(np.linalg.norm(made.to_float32() - after)) ** 2
    tally.effect += float(np.linalg.norm(after - before)) ** 2
    tally.done += 1
    if tally.on_progress:
        tally.on_progress(tally.done, tally.total)
    return made


def _add(weight: Float32, change: _Change) -> Float32:
    module = change.module
    changed: Float32 = weight + np.float32(change.weight) * module.delta().reshape(weight.shape)
    if module.magnitude is None:
        return changed
    kept = 1 if module.by_input else 0
    axes = tuple(axis for axis in range(changed.ndim) if axis != kept)
    norms = np.sqrt(np.sum(changed**2, axis=axes, keepdims=True)) + np.finfo(np.float32).eps
    scale = module.magnitude.to_float32().reshape(norms.shape) / norms
    changed *= np.float32(change.weight) * (scale - 1) + 1
    return changed
