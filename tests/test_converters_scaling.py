"""Multiplying tensors: exact, or said not to be; and dividing brings the same bits back."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converters.scaling import divide, multiply_exactly, multiply_widened
from converters.tensors import ITEM_SIZE, Tensor, encode

FACTORS = st.one_of(
    st.sampled_from([0.5, 2.0, 0.25, 0.0625, 4.0, -0.5, 1.0, 0.375, 1 / 3, 1e-30, 2.0**-60, 1.0000001]),
    st.builds(lambda alpha, rank: alpha / rank, st.integers(1, 64), st.integers(1, 64)),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(["F16", "BF16", "F32", "F64"]))
    size = ITEM_SIZE[dtype]
    codes = draw(st.lists(st.integers(0, 2 ** (8 * size) - 1), max_size=20))
    tame = draw(st.lists(st.floats(-4, 4, width=16), max_size=20))
    raw = np.array(codes, f"<u{size}").view(np.uint8)
    made = Tensor(dtype=dtype, shape=(len(codes),), data=raw)
    finite = made.data.reshape(-1, size)[np.isfinite(made.to_float64()) & (draw(st.integers(0, 2)) > 0)].reshape(-1)
    data = np.concatenate([encode(tame, dtype).data, finite])
    return Tensor(dtype=dtype, shape=(data.size // size,), data=data)


def to_fractions(tensor: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.to_float64().tolist()]


@given(tensors(), FACTORS)
@example(encode([0.0, -0.0, 1.0, 6.2e-5], "F16"), 0.5)
@example(encode([6e-5], "F16"), 2.0)
@example(encode([65504.0], "F16"), 2.0)
@example(encode([0.0], "F16"), 1 / 3)
def test_exact_is_exact_and_comes_back(tensor: Tensor, factor: float) -> None:
    product = multiply_exactly(tensor, factor)
    want = [value * Fraction(factor) for value in to_fractions(tensor)]
    held = [Fraction(value) for value in encode_or_nan([float(value) for value in want], tensor.dtype)]
    if tensor.dtype != "F64":  # no wider float to tell with: None there may be too careful
        assert (product is not None) == (held == want)
    if product is not None:
        assert (product.dtype, product.shape) == (tensor.dtype, tensor.shape)
        assert to_fractions(product) == want
        assert bytes(divide(product, factor, tensor.dtype).raw) == bytes(tensor.raw)


def encode_or_nan(values: list[float], dtype: str) -> list[float]:
    found = encode(values, dtype).to_float64()
    return [value if np.isfinite(value) else 0.1234567890123 for value in found.tolist()]


@given(tensors(), FACTORS)
def test_widened_says_whether_it_rounded(tensor: Tensor, factor: float) -> None:
    product, exact = multiply_widened(tensor, factor)
    assert product.dtype == ("F64" if tensor.dtype == "F64" else "F32")
    with np.errstate(over="ignore"):
        nearest = (tensor.to_float64() * factor).astype(np.float64 if tensor.dtype == "F64" else np.float32)
    np.testing.assert_array_equal(product.to_float64(), nearest.astype(np.float64))
    if exact:
        assert to_fractions(product) == [value * Fraction(factor) for value in to_fractions(tensor)]
        if tensor.dtype != "F64":
            assert bytes(divide(product, factor, tensor.dtype).raw) == bytes(tensor.raw)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_all_pieces_are_looked_at(dtype: str) -> None:
    """The number that cannot be halved, or scaled by three eighths, stands far behind the first piece."""
    values = np.ones(100_001)
    whole = multiply_exactly(encode(values, dtype), 0.375)
    assert whole is not None
    assert whole.to_float64().tolist() == (values * 0.375).tolist()
    last = encode(values, dtype)
    last.data[-ITEM_SIZE[dtype] :] = np.array([1] + [0] * (ITEM_SIZE[dtype] - 1), np.uint8)
    assert multiply_exactly(last, 0.5) is None
    wide, exact = multiply_widened(last, 0.5)
    assert exact is (dtype != "F32")
    assert wide.shape == (100_001,)


def test_eight_bit_floats_are_widened() -> None:
    small = Tensor(dtype="F8_E4M3", shape=(2,), data=np.array([0x38, 0xB8], np.uint8))
    assert multiply_exactly(small, 0.5) is None
    wide, exact = multiply_widened(small, 0.5)
    assert exact
    assert wide.to_float32().tolist() == [0.5, -0.5]
