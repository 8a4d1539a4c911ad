"""Several LoRAs into one that does what all of them do together, each at its weight.

Without a rank the merge is exact: the matrices are put side by side ([w1 s1 up1 | w2 s2 up2], the downs stacked), so the
rank is the sum of the ranks and alpha is the rank. With a rank the sum is cut to its largest singular values, and how
much that costs is measured on what is written. sd-scripts' merge_lora.py adds `up` and `down` each by itself, which is
another function; its --concat is the exact one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters import read_lora
from converters.checkpoint import fits
from converters.errors import ConversionError
from converters.family import TITLES, family_of, stated_family
from converters.kohya_file import write
from converters.lineage import describe_network, merge_metadata, title_of
from converters.lora import Lora, Module, encode_alpha
from converters.low_rank import (
    Factors,
    build_module,
    decompose,
    decompose_matrix,
    difference,
    join,
    narrow,
    norm,
    read_factors,
    widest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from converters.lora import AnyModule
    from converters.names import Name

_CONVOLUTION = re.compile(r"unet\.(.+\.)?(conv1|conv2|conv|conv_in|conv_out)$")


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A LoRA that was made, and what that cost.

    `errors`: module -> |made - wanted| / |wanted| (Frobenius norms of the weights' change), `error` the same of all
    modules together. `widened` and `rounded` name modules that became float32, or lost their last bits even so.
    """

    lora: Lora
    errors: Mapping[str, float]
    error: float
    widened: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()


def merge(
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    weights: Sequence[float] = (),
    rank: int | None = None,
    dtype: str = "",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Changed:
    """Write the weighted sum of LoRA files or folders as a kohya file.

    `weights` one for each source (default: 1 each); `dtype` of a merge to a rank (default: the sources'). Raises
    ConversionError: sources of different bases, kinds that cannot be added, `out` there already.
    """
    check_target(out, overwrite=overwrite)
    loras = [read_lora(source)[1] for source in sources]
    titles = [title_of(lora.metadata, Path(source).stem) for lora, source in zip(loras, sources, strict=True)]
    made = merge_loras(
        loras, weights or [1.0] * len(loras), rank=rank, dtype=dtype, titles=titles, on_progress=on_progress
    )
    write(made.lora, Path(out))
    return made


def check_target(out: Path | str, *, overwrite: bool) -> None:
    """Raises ConversionError where something is in the way."""
    if Path(out).exists() and not overwrite:
        raise ConversionError(f"{out} is already there")


def merge_loras(
    loras: Sequence[Lora],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    dtype: str = "",
    titles: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> Changed:
    """The weighted sum of LoRAs; see merge."""
    if len(loras) != len(weights):
        raise ConversionError(f"{len(weights)} weights for {len(loras)} LoRAs")
    if not np.all(np.isfinite(weights)):
        raise ConversionError("a weight is no finite number")
    names, layers = _align(loras, weights)
    modules: dict[Name, AnyModule] = {}
    errors: dict[str, float] = {}
    widened: list[str] = []
    rounded: list[str] = []
    lost = wanted = 0.0
    for done, (layer, parts) in enumerate(layers.items(), 1):
        if rank is None:
            modules[names[layer]], wide, off = _join_exactly(parts)
            widened += [layer] * wide
            rounded += [layer] * off
        else:
            modules[names[layer]], away, size = _cut(layer, parts, rank=rank, dtype=dtype)
            errors[layer] = away / size if size else 0.0
            lost, wanted = lost + away**2, wanted + size**2
        if on_progress:
            on_progress(done, len(layers))
    shown = [
        title if weight == 1 else f"{title} x {weight:g}"
        for title, weight in zip(
            titles or [f"LoRA {number}" for number in range(1, len(loras) + 1)], weights, strict=True
        )
    ]
    kept = merge_metadata([lora.metadata for lora in loras], shown, title=" + ".join(titles))
    lora = Lora(modules=modules, metadata=kept)
    return Changed(
        lora=Lora(modules=modules, metadata={**kept, **describe_network(lora)}),
        errors=errors,
        error=(lost / wanted) ** 0.5 if wanted else 0.0,
        widened=tuple(widened),
        rounded=tuple(rounded),
    )


def _align(
    loras: Sequence[Lora], weights: Sequence[float]
) -> tuple[dict[str, Name], dict[str, list[tuple[float, AnyModule]]]]:
    """Layer -> its name as the first LoRA spells it, and what each adds there."""
    families = {family_of(lora) or stated_family(lora.metadata) for lora in loras} - {""}
    if len(families) > 1:
        raise ConversionError(f"LoRAs of different bases: {', '.join(sorted(TITLES[family] for family in families))}")
    names: dict[str, Name] = {}
    layers: dict[str, list[tuple[float, AnyModule]]] = {}
    for lora, weight in zip(loras, weights, strict=True):
        for name, module in lora.modules.items():
            layer = f"{name.component}.{name.path}"
            names.setdefault(layer, name)
            layers.setdefault(layer, []).append((weight, module))
    dora = [layer for layer, parts in layers.items() if any(part.magnitude is not None for _, part in parts)]
    if dora:
        raise ConversionError("DoRA modules, whose effect depends on the base: bake them into it instead", keys=dora)
    alien = [
        layer for layer, parts in layers.items() if not all(fits(parts[0][1].shape, part.shape) for _, part in parts)
    ]
    if alien:
        raise ConversionError("LoRAs of different bases: layers that differ in shape", keys=alien)
    return names, layers


def _join_exactly(parts: Sequence[tuple[float, AnyModule]]) -> tuple[AnyModule, bool, bool]:
    """The module that adds what all parts add; whether it became float32, whether it was rounded even so."""
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1], False, False
    modules = [module for _, module in parts if isinstance(module, Module)]
    if len(modules) < len(parts):
        raise ConversionError("LyCORIS modules have no exact sum with others: give the merge a rank")
    total = join(*(_weigh(weight, module) for weight, module in parts if isinstance(module, Module)))
    up, wide_up, off_up = narrow(total.up, widest({module.up.dtype for module in modules}))
    down, wide_down, off_down = narrow(total.down, widest({module.down.dtype for module in modules}))
    first, rank = modules[0], total.down.shape[0]
    made = Module(
        down=down.reshape(rank, *first.shape[1:]),
        up=up.reshape(first.shape[0], rank, *first.up.shape[2:]),
        alpha=encode_alpha(float(rank), up.dtype),
    )
    return made, wide_up or wide_down, off_up or off_down


def _weigh(weight: float, module: Module) -> Factors:
    factors = read_factors(module)
    return Factors(up=factors.up * (weight * module.scale), down=factors.down)


def _cut(path: str, parts: Sequence[tuple[float, AnyModule]], *, rank: int, dtype: str) -> tuple[Module, float, float]:
    """The sum cut to a rank; the norm of what is missing, and of the sum."""
    shape = _kernel_shape(path, [module.shape for _, module in parts])
    stored = widest({tensor.dtype for _, module in parts for key, tensor in module.parts.items() if key != "alpha"})
    dtype = dtype or ("F32" if stored.startswith("F8") else stored)
    if all(isinstance(module, Module) for _, module in parts):
        wanted = join(*(_weigh(weight, module) for weight, module in parts if isinstance(module, Module)))
        factors = decompose(wanted).cut(rank)
        module = build_module(factors, shape, alpha=float(factors.down.shape[0]), dtype=dtype)
        return module, difference(wanted, read_factors(module)), norm(wanted)
    total = np.zeros((shape[0], math.prod(shape[1:])))
    for weight, part in parts:
        total += weight * part.delta().reshape(total.shape)
    factors = decompose_matrix(total, rank).cut(rank)
    module = build_module(factors, shape, alpha=float(factors.down.shape[0]), dtype=dtype)
    found = read_factors(module)
    return module, float(np.linalg.norm(total - found.up @ found.down)), float(np.linalg.norm(total))


def _kernel_shape(path: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a layer's weight; a UNet's convolutions that LyCORIS wrote flat are 3x3."""
    longest = max(shapes, key=len)
    if len(longest) == 2 and _CONVOLUTION.search(path):
        return (longest[0], longest[1] // 9, 3, 3)
    return longest
