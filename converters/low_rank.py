"""Products of two thin matrices: their singular values without the full product, their norm, their best short form.

Everything here is float64: a core of rank x rank costs little, and what is reported as an error is then one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from converters.lora import Module, encode_alpha
from converters.tensors import Float64, Tensor, encode


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A matrix (out, in) as `up` (out, k) @ `down` (k, in)."""

    up: Float64
    down: Float64


@dataclass(frozen=True, kw_only=True)
class Svd:
    """A matrix as `left` (out, k) * `values` (k,) @ `right` (k, in), values falling; of a matrix of `full` values."""

    left: Float64
    values: Float64
    right: Float64
    full: int

    def cut(self, rank: int) -> Factors:
        """The best factors of that rank; the values go into `up`, as in sd-scripts.

        Which way a pair of vectors points is free: each row of `down` has its largest number positive.
        """
        rank = min(rank, self.values.size)
        right = self.right[:rank]
        largest = np.take_along_axis(right, np.argmax(np.abs(right), axis=1)[:, None], axis=1)
        signs = np.where(largest < 0, -1.0, 1.0)
        return Factors(up=self.left[:, :rank] * (self.values[:rank] * signs[:, 0]), down=right * signs)


def read_factors(module: Module) -> Factors:
    """A module's matrices without its scale: a convolution flattened, a Tucker core multiplied into `down`."""
    plain = module.make_plain()[0]
    down = plain.down.to_float64().reshape(plain.rank, -1)
    return Factors(up=plain.up.to_float64().reshape(-1, plain.rank), down=down)


def decompose(factors: Factors) -> Svd:
    """The singular values of a product: QR of either side, and the SVD of a rank x rank core."""
    left, left_core = np.linalg.qr(factors.up)
    right, right_core = np.linalg.qr(factors.down.T)
    inner_left, values, inner_right = np.linalg.svd(left_core @ right_core.T)
    count = values.size
    return Svd(
        left=left @ inner_left[:, :count],
        values=values,
        right=inner_right[:count] @ right.T,
        full=min(factors.up.shape[0], factors.down.shape[1]),
    )


def decompose_matrix(matrix: Float64, rank: int) -> Svd:
    """The `rank` largest singular values of a full matrix, by the eigenvectors of its smaller square.

    Squaring leaves values below 1e-8 of the largest without meaning; float32 weights have none below 1e-7.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    small = matrix if wide else matrix.T
    _, vectors = np.linalg.eigh(small @ small.T)
    inner = vectors[:, ::-1][:, :rank]
    product = inner.T @ small  # values * the other side
    values = np.linalg.norm(product, axis=1)
    outer = np.divide(product, values[:, None], out=np.zeros_like(product), where=values[:, None] > 0)
    left, right = (inner, outer) if wide else (outer.T, inner.T)
    return Svd(left=left, values=values, right=right, full=min(matrix.shape))


def norm(factors: Factors) -> float:
    """The Frobenius norm of a product. Differences are exact to 1e-8 of what cancels."""
    squared = float(np.sum((factors.up.T @ factors.up) * (factors.down @ factors.down.T)))
    return math.sqrt(max(squared, 0.0))


def join(*parts: Factors) -> Factors:
    """The factors of a sum."""
    return Factors(
        up=np.concatenate([part.up for part in parts], axis=1),
        down=np.concatenate([part.down for part in parts], axis=0),
    )


def difference(one: Factors, other: Factors) -> float:
    """The Frobenius norm of one product minus another."""
    return norm(join(one, Factors(up=-other.up, down=other.down)))


def narrow(values: Float64, dtype: str) -> tuple[Tensor, bool, bool]:
    """Values in `dtype` if that holds them exactly, else in F32; whether they became F32, whether they were rounded."""
    for candidate in dict.fromkeys((dtype, "F32") if dtype not in {"F8_E4M3", "F8_E5M2"} else ("F32",)):
        tensor = encode(values, candidate)
        exact = bool(np.array_equal(tensor.to_float64(), values))
        if exact:
            break
    return tensor, tensor.dtype != dtype, not exact


def widest(dtypes: set[str]) -> str:
    """The one dtype of several tensors, or the one that holds them all exactly."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return "F64" if "F64" in dtypes else "F32"


def build_module(factors: Factors, shape: tuple[int, ...], *, alpha: float, dtype: str) -> Module:
    """A plain module from factors, for a weight of `shape`, rounded to `dtype`."""
    rank = factors.down.shape[0]
    return Module(
        down=encode(factors.down.reshape(rank, *shape[1:]), dtype),
        up=encode(factors.up.reshape(shape[0], rank, *[1] * (len(shape) - 2)), dtype),
        alpha=encode_alpha(alpha, dtype),
    )
