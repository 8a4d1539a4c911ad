"""Tensors times a number, with a word on whether anything was rounded; in pieces that stay in a processor's cache.

Powers of two are the common case (alpha is half the rank): they only move a float's exponent, which is done on the bits
of a whole piece at once wherever no number leaves the dtype's normal range. All else goes through float32 where that is
exact for certain, and through float64 where not.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from converters.tensors import ITEM_SIZE, Tensor, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1 << 15
_GLANCE = 64  # most products that round at all do so among the first numbers
_PRECISION = {"F8_E5M2": 3, "F8_E4M3": 4, "F16": 11, "BF16": 8, "F32": 24, "F64": 53}
_EXPONENT_BITS = {"F16": 5, "BF16": 8, "F32": 8, "F64": 11}


def multiply_exactly(tensor: Tensor, factor: float) -> Tensor | None:
    """tensor * factor in the tensor's dtype, or None where that would round a number, or for an 8-bit float.

    Of F64, whose products no wider float checks, powers of two alone are known to be exact.
    """
    if tensor.dtype not in _EXPONENT_BITS:
        return None
    product = np.empty_like(tensor.data)
    for start, piece in _split(tensor):
        data = _shift(piece, factor)
        if data is None:
            if _drops_bits(piece, factor):
                return None
            scaled, exact = _multiply(piece, factor)
            rounded = encode(scaled, tensor.dtype)
            back = rounded.to_float32() if scaled.dtype == np.float32 else rounded.to_float64()
            if not exact or not np.array_equal(back, scaled):
                return None
            data = rounded.data
        product[start : start + data.size] = data
    return Tensor(dtype=tensor.dtype, shape=tensor.shape, data=product)


def multiply_widened(tensor: Tensor, factor: float) -> tuple[Tensor, bool]:
    """tensor * factor as F32 (an F64 stays one), and whether nothing was rounded."""
    dtype = "F64" if tensor.dtype == "F64" else "F32"
    size, all_exact = ITEM_SIZE[dtype], True
    product = np.empty(math.prod(tensor.shape) * size, np.uint8)
    for start, piece in _split(tensor):
        first = start // ITEM_SIZE[tensor.dtype] * size
        place = product[first : first + math.prod(piece.shape) * size]
        scaled, exact = _multiply(piece, factor, out=place.view(np.float32) if dtype == "F32" else None)
        if scaled.base is not product:
            place[:] = encode(scaled, dtype).data
            exact = exact and np.array_equal(Tensor(dtype=dtype, shape=scaled.shape, data=place).to_float64(), scaled)
        all_exact &= exact
    return Tensor(dtype=dtype, shape=tensor.shape, data=product), all_exact


def divide(tensor: Tensor, factor: float, dtype: str) -> Tensor:
    """tensor / factor, rounded to `dtype`: what was multiplied exactly comes back as it was."""
    size = ITEM_SIZE[dtype]
    halving = abs(math.frexp(factor)[0]) == 0.5  # then dividing is multiplying with the inverse
    quotient = np.empty(math.prod(tensor.shape) * size, np.uint8)
    for start, piece in _split(tensor):
        data = _shift(piece, 1 / factor) if halving and dtype == tensor.dtype else None
        if data is None:
            scaled, exact = _multiply(piece, 1 / factor)
            data = encode(scaled if halving and exact else piece.to_float64() / factor, dtype).data
        first = start // ITEM_SIZE[tensor.dtype] * size
        quotient[first : first + data.size] = data
    return Tensor(dtype=dtype, shape=tensor.shape, data=quotient)


def _shift(piece: Tensor, factor: float) -> npt.NDArray[np.uint8] | None:
    """The bytes of piece * factor, where it is a power of two and no number is or becomes subnormal or infinite."""
    fraction, power = math.frexp(factor)
    if fraction != 0.5 or piece.dtype not in _EXPONENT_BITS or not piece.data.size:
        return None
    size, power = ITEM_SIZE[piece.dtype], power - 1
    bits = piece.data.view(f"<u{size}")
    mantissa = 8 * size - 1 - _EXPONENT_BITS[piece.dtype]
    magnitude = bits & bits.dtype.type((1 << (8 * size - 1)) - 1)
    highest = int(magnitude.max())
    lowest = (int((magnitude - bits.dtype.type(1)).min()) + 1) % (1 << 8 * size)  # zero is passed over
    last = (1 << _EXPONENT_BITS[piece.dtype]) - 1
    if highest:
        first_exponent, last_exponent = lowest >> mantissa, highest >> mantissa
        if min(first_exponent, first_exponent + power) < 1 or max(last_exponent, last_exponent + power) >= last:
            return None
    moved = bits + bits.dtype.type((power << mantissa) % (1 << 8 * size))
    return (moved if magnitude.all() else np.where(magnitude, moved, bits)).view(np.uint8)


def _drops_bits(piece: Tensor, factor: float) -> bool:
    """A glance that spares work: for powers of two below 1, whether a number at the lower end has its last bit set."""
    fraction, power = math.frexp(factor)
    if fraction != 0.5 or power > 0:
        return False
    size = ITEM_SIZE[piece.dtype]
    bits = piece.data.view(f"<u{size}")
    magnitude = bits & bits.dtype.type((1 << (8 * size - 1)) - 1)
    below = bits.dtype.type(2 << (8 * size - 1 - _EXPONENT_BITS[piece.dtype]))
    return bool(((magnitude < below) & (bits & bits.dtype.type(1)).astype(bool)).any())


def _multiply(
    piece: Tensor, factor: float, *, out: npt.NDArray[np.float32] | None = None
) -> tuple[npt.NDArray[Any], bool]:
    """The product, float32 (into `out`) where that holds it for certain, else float64; and whether it is exact."""
    bits = _PRECISION[piece.dtype] + _count_bits(factor)
    if bits <= 24 and 2.0**-40 < abs(factor) < 2.0**40:
        values = piece.to_numpy() if piece.dtype in {"F16", "F32"} else piece.to_float32()
        with np.errstate(over="ignore"):
            product = np.multiply(values, np.float32(factor), out=out, dtype=np.float32)
        # A half float is far from float32's ends; of others, none may have come near them.
        if piece.dtype == "F16" or _is_far_from_ends(values, product):
            return product, True
    values = piece.to_float64()
    return values * factor, bits <= 53 or not values.any()


def _is_far_from_ends(values: npt.NDArray[Any], product: npt.NDArray[np.float32]) -> bool:
    magnitude = np.abs(product)
    if not magnitude.max(initial=0) < 2.0**120:
        return False
    return bool(np.count_nonzero(magnitude > 2.0**-100) == np.count_nonzero(values))


def _count_bits(factor: float) -> int:
    """How many bits a float's significand needs."""
    numerator = abs(factor.as_integer_ratio()[0])
    return (numerator // max(numerator & -numerator, 1)).bit_length()


def _split(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First byte and content of each piece of a tensor."""
    size = ITEM_SIZE[tensor.dtype]
    edges = [0, _GLANCE * size, *range(_PIECE * size, tensor.data.size, _PIECE * size), tensor.data.size]
    for start, end in itertools.pairwise(edges):
        data = tensor.data[start:end]
        if not data.size:
            return
        yield start, Tensor(dtype=tensor.dtype, shape=(data.size // size,), data=data)
