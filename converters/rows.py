"""Modules cut by the layer's outputs and put together again: what fused layers are made of (see fused.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from converters.modules import AnyModule, HadaModule, KronModule, Module
from converters.note import encode_alpha
from converters.tensors import ITEM_SIZE, Tensor, encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The tensors that have a row for each output (in a Kronecker product: for each run of outputs).
_BY_ROW: Mapping[type[AnyModule], tuple[str, ...]] = {
    Module: ("up", "magnitude"),
    HadaModule: ("w1_a", "w2_a", "magnitude"),
    KronModule: ("w1", "w1_a", "magnitude"),
}


def cut_rows(module: AnyModule, start: int, stop: int) -> AnyModule | None:
    """What a module adds to some of the layer's outputs, without a copy; None where its weights have no such rows."""
    if module.by_input or getattr(module, "t1", None) is not None:
        return None
    run = module.large[0] if isinstance(module, KronModule) else 1
    if start % run or stop % run:
        return None
    cut: dict[str, Tensor] = {}
    for field in _BY_ROW[type(module)]:
        tensor, step = getattr(module, field), 1 if field == "magnitude" else run
        if tensor is not None:
            cut[field] = _take(tensor, start // step, stop // step)
    return _with(module, cut)


def stack(parts: Sequence[AnyModule]) -> AnyModule | None:
    """The inverse of cut_rows; None unless the parts are equal in all that has no rows."""
    kind = type(parts[0])
    if any(type(part) is not kind for part in parts):
        return None
    stacked: dict[str, Tensor] = {}
    for field in kind.PARTS.values():
        tensors: list[Tensor | None] = [getattr(part, field) for part in parts]
        found = [tensor for tensor in tensors if tensor is not None]
        if len(found) not in {0, len(parts)}:
            return None
        if found and field in _BY_ROW[kind]:
            if len({(tensor.dtype, tensor.shape[1:]) for tensor in found}) > 1:
                return None
            stacked[field] = _concatenate(found)
        elif not all(_is_same(found[0], tensor) for tensor in found[1:]):
            return None
    return _with(parts[0], stacked)


def slim(parts: Sequence[AnyModule]) -> list[AnyModule]:
    """Parts of one layer without the rows of `down` that they do not use, if each has its own run of them; else [].

    That is the inverse of stack_diagonally. Done where alpha can be divided without rounding.
    """
    first, count = parts[0], len(parts)
    if not isinstance(first, Module) or first.mid is not None or len(first.down.shape) != 2 or first.rank % count:
        return []
    alpha, rank = first.alpha, first.rank // count
    if alpha is not None:
        value = float(alpha.to_float64().reshape(-1)[0])
        share = encode_alpha(value / count, alpha.dtype, alpha.shape)
        if share.dtype != alpha.dtype or float(share.to_float64().reshape(-1)[0]) * count != value:
            return []
        alpha = share
    found: list[AnyModule] = []
    for index, part in enumerate(parts):
        assert isinstance(part, Module)
        start, stop = index * rank, (index + 1) * rank
        up = part.up.data.reshape(part.up.shape[0], first.rank, -1)
        if up[:, :start].any() or up[:, stop:].any():
            return []
        data = np.ascontiguousarray(up[:, start:stop]).reshape(-1)
        own = Tensor(dtype=part.up.dtype, shape=(up.shape[0], rank), data=data)
        found.append(replace(part, down=_take(part.down, start, stop), up=own, alpha=alpha))
    return found


def stack_diagonally(parts: Sequence[AnyModule | None], sizes: Sequence[int]) -> Module | None:
    """Modules with a `down` each as one of the sum of their ranks; one that is missing has `sizes` rows of zeros.

    Of one dtype and scale: byte for byte. Else in float32, the scales multiplied in. None for what is no plain LoRA.
    """
    found = [part for part in parts if isinstance(part, Module) and part.mid is None and len(part.down.shape) == 2]
    magnitudes = [part.magnitude for part in found if part.magnitude is not None]
    if len(found) != sum(part is not None for part in parts) or len({part.shape[1] for part in found}) != 1:
        return None
    if len(magnitudes) not in {0, len(parts)} or any(part.by_input for part in found):
        return None
    dtypes = {tensor.dtype for part in found for tensor in (part.down, part.up)}
    if len(dtypes) > 1 or len({part.scale for part in found}) > 1:
        found = [_multiply_in(part) for part in found]
    rank, dtype = sum(part.rank for part in found), found[0].up.dtype
    up = np.zeros((sum(sizes), rank, ITEM_SIZE[dtype]), dtype=np.uint8)
    left, row, column = iter(found), 0, 0
    for place, size in zip(parts, sizes, strict=True):
        if place is not None:
            part = next(left)
            up[row : row + size, column : column + part.rank] = part.up.data.reshape(size, part.rank, -1)
            column += part.rank
        row += size
    alpha = found[0].alpha
    if alpha is not None and any(alpha.to_float32().reshape(-1)):
        alpha = encode_alpha(sum(part.alpha_value for part in found), alpha.dtype, alpha.shape)
    return Module(
        down=_concatenate([part.down for part in found]),
        up=Tensor(dtype=dtype, shape=(sum(sizes), rank), data=up.reshape(-1)),
        alpha=alpha,
        magnitude=_concatenate(magnitudes) if magnitudes else None,
    )


def _with(module: AnyModule, tensors: Mapping[str, Tensor]) -> AnyModule:
    """The module with some of its tensors replaced."""
    fields = {field: getattr(module, field) for field in module.PARTS.values()}
    return type(module)(**{**fields, **tensors})


def _multiply_in(part: Module) -> Module:
    """The module in float32, of scale 1."""
    up = encode(part.up.to_float64() * part.scale, "F32")
    return replace(part, down=encode(part.down.to_float32(), "F32"), up=up, alpha=None)


def _take(tensor: Tensor, start: int, stop: int) -> Tensor:
    size = tensor.data.size // tensor.shape[0]
    shape = (stop - start, *tensor.shape[1:])
    return Tensor(dtype=tensor.dtype, shape=shape, data=tensor.data[start * size : stop * size])


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    return Tensor(dtype=tensors[0].dtype, shape=shape, data=np.concatenate([tensor.data for tensor in tensors]))


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    return (one.dtype, one.shape) == (other.dtype, other.shape) and bool(np.array_equal(one.data, other.data))
