"""What a LoRA adds to one layer: four kinds of module, and the arithmetic of each.

References: sd-scripts' networks/lora.py for plain LoRA (`up(down(x)) * alpha / rank`; an alpha that is missing or 0
stands for the rank), and the forward of LyCORIS 4.1.3 for the others (lycoris/modules/locon.py, loha.py, lokr.py). Not
LyCORIS' merge_to: there, LoHa and decomposed LoKr get alpha / rank twice.

`delta()` is what is added to the layer's weight. A file does not always tell a convolution's kernel from its input
channels: `shape` is then (out, the rest), and reshaping to the layer's weight is right. With DoRA (`magnitude`), the
layer's weight W becomes `magnitude * (W + delta) / norm of each output's row of (W + delta)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from converters.errors import ConversionError
from converters.tensors import FLOATS, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.tensors import Float32, Tensor

_COMMON = {"alpha": "alpha", "dora_scale": "magnitude"}


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What all kinds share: tensors under the names of a kohya file, and alpha as the file had it, or None."""

    PARTS: ClassVar[Mapping[str, str]]  # the name in a kohya file -> the field
    alpha: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors by the names they have in a kohya file."""
        found = {part: getattr(self, field) for part, field in self.PARTS.items()}
        return {part: tensor for part, tensor in found.items() if tensor is not None}

    @property
    def rank(self) -> int:
        """What alpha is divided by."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of delta()."""
        raise NotImplementedError

    @property
    def alpha_value(self) -> float:
        """alpha as a number; the rank where it is missing or 0."""
        return (read_alpha(self.alpha) if self.alpha is not None else 0.0) or float(self.rank)

    @property
    def scale(self) -> float:
        """What the product of the matrices is multiplied with."""
        return self.alpha_value / self.rank

    @property
    def fits(self) -> bool:
        """Whether dtypes and shapes belong together."""
        tensors = [tensor for part, tensor in self.parts.items() if part != "alpha"]
        if not all(tensor.dtype in FLOATS and tensor.data.size for tensor in tensors):
            return False
        if self.alpha is not None and math.prod(self.alpha.shape) != 1:
            return False
        return self._multiplies() and (self.magnitude is None or self._is_by_row(self.magnitude) or self.by_input)

    @property
    def by_input(self) -> bool:
        """Whether `magnitude` belongs to the layer's inputs, (1, in), as LyCORIS before 3.0 had it."""
        if self.magnitude is None or self._is_by_row(self.magnitude):
            return False
        shape = self.magnitude.shape
        return len(shape) in {2, 4} and shape[0] == 1 and math.prod(shape) == shape[1] and self.shape[1] % shape[1] == 0

    def _is_by_row(self, magnitude: Tensor) -> bool:
        return len(magnitude.shape) > 0 and magnitude.shape[0] == self.shape[0] == math.prod(magnitude.shape)

    def _multiplies(self) -> bool:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Module(_Parts):
    """LoRA: `down` (rank, in[, kh, kw]), `up` (out, rank[, 1, 1]).

    Tucker (LoCon): `mid` (rank, rank, kh, kw) stands between a `down` and an `up` of kernel 1.
    """

    PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid", **_COMMON}  # noqa: RUF012
    down: Tensor
    up: Tensor
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of rows of `down`."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in[, kh, kw])."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def delta(self) -> Float32:
        """What is added to the layer's weight, float32."""
        plain = self.down.to_float32() if self.mid is None else self._contract().astype(np.float32)
        up = self.up.to_float32().reshape(self.up.shape[0], -1)
        return _scaled(up @ plain.reshape(self.rank, -1), self.scale).reshape(self.shape)

    def make_plain(self) -> tuple[Module, bool]:
        """The same without a Tucker core, and whether float32 holds it without rounding.

        mid(down(x)) is one convolution: its weight, multiplied out in float64, is the new `down`.
        """
        if self.mid is None:
            return self, True
        product = self._contract()
        down = encode(product, "F32")
        exact = bool(np.array_equal(down.to_float64(), product))
        return Module(down=down, up=self.up, alpha=self.alpha, magnitude=self.magnitude), exact

    def _contract(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        assert self.mid is not None
        core, down = self.mid.to_float64(), self.down.to_float64().reshape(self.rank, -1)
        return np.ascontiguousarray(np.moveaxis(np.tensordot(core, down, axes=(1, 0)), -1, 1))

    def _multiplies(self) -> bool:
        down, up, mid = self.down.shape, self.up.shape, self.mid.shape if self.mid else None
        if len(down) != len(up) or len(down) not in {2, 4} or down[0] != up[1] or up[2:] not in {(), (1, 1)}:
            return False
        return mid is None or (len(mid) == 4 and mid[:2] == (down[0], down[0]) and down[2:] == (1, 1))


@dataclass(frozen=True, kw_only=True)
class HadaModule(_Parts):
    """LoHa: the product, number by number, of `w1_a @ w1_b` and `w2_a @ w2_b`; (out, rank) and (rank, in * kh * kw).

    Tucker: cores `t1`, `t2` (rank, rank, kh, kw) with `_a` (rank, out) and `_b` (rank, in).
    """

    PARTS = {  # noqa: RUF012
        **{f"hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}, **_COMMON
    }  # fmt: skip
    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of rows of `w1_b`."""
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, kh, kw) with cores, else (out, in * kh * kw)."""
        if self.t1 is None:
            return (self.w1_a.shape[0], self.w1_b.shape[1])
        return (self.w1_a.shape[1], self.w1_b.shape[1], *self.t1.shape[2:])

    def delta(self) -> Float32:
        """What is added to the layer's weight, float32."""
        first = _rebuild(self.t1, self.w1_a, self.w1_b)
        return _scaled(first * _rebuild(self.t2, self.w2_a, self.w2_b), self.scale)

    def _multiplies(self) -> bool:
        if (self.t1 is None) != (self.t2 is None):
            return False
        halves = ((self.t1, self.w1_a, self.w1_b), (self.t2, self.w2_a, self.w2_b))
        if not all(_joins(*half, self.rank) for half in halves):
            return False
        cores = (self.t1.shape, self.t2.shape) if self.t1 and self.t2 else ((), ())
        return (self.w1_a.shape, self.w1_b.shape, cores[0]) == (self.w2_a.shape, self.w2_b.shape, cores[1])


@dataclass(frozen=True, kw_only=True)
class KronModule(_Parts):
    """LoKr: the Kronecker product of a small matrix and a large one.

    `w1` (out1, in1) or `w1_a @ w1_b`; `w2` (out2, in2[, kh, kw]) or `w2_a @ w2_b` (out2, in2 * kh * kw), which with a
    Tucker core `t2` (rank, rank, kh, kw) are (rank, out2) and (rank, in2). Where both are whole, alpha has no meaning.
    """

    PARTS = {  # noqa: RUF012
        **{f"lokr_{part}": part for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}, **_COMMON
    }  # fmt: skip
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None

    @property
    def is_whole(self) -> bool:
        """Whether neither factor is a product of two: the scale is then 1, whatever alpha says."""
        return self.w1 is not None and self.w2 is not None

    @property
    def rank(self) -> int:
        """The number of rows of `w2_b`, or of `w1_b`; 1 where both factors are whole."""
        inner = self.w2_b if self.w2_b is not None else self.w1_b
        return 1 if inner is None else inner.shape[0]

    @property
    def alpha_value(self) -> float:
        """alpha as a number; the rank where it is missing or 0, or where both factors are whole."""
        return float(self.rank) if self.is_whole else super().alpha_value

    @property
    def small(self) -> tuple[int, int]:
        """The shape of the first factor."""
        if self.w1 is not None:
            return (self.w1.shape[0], self.w1.shape[1])
        assert self.w1_a is not None
        assert self.w1_b is not None
        return (self.w1_a.shape[0], self.w1_b.shape[1])

    @property
    def large(self) -> tuple[int, ...]:
        """The shape of the second factor."""
        if self.w2 is not None:
            return self.w2.shape
        assert self.w2_a is not None
        assert self.w2_b is not None
        if self.t2 is None:
            return (self.w2_a.shape[0], self.w2_b.shape[1])
        return (self.w2_a.shape[1], self.w2_b.shape[1], *self.t2.shape[2:])

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in[, kh, kw]); (out, in * kh * kw) where `w2_b` holds the kernel in its columns."""
        return (self.small[0] * self.large[0], self.small[1] * self.large[1], *self.large[2:])

    def delta(self) -> Float32:
        """What is added to the layer's weight, float32."""
        first = _factor(self.w1, None, self.w1_a, self.w1_b)
        second = _factor(self.w2, self.t2, self.w2_a, self.w2_b)
        return _scaled(np.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second), self.scale)

    def _multiplies(self) -> bool:
        pairs = ((self.w1, None, self.w1_a, self.w1_b), (self.w2, self.t2, self.w2_a, self.w2_b))
        for whole, core, left, right in pairs:
            if whole is not None:
                if left or right or core or len(whole.shape) not in ({2} if whole is self.w1 else {2, 4}):
                    return False
            elif left is None or right is None or not _joins(core, left, right, self.rank):
                return False
        return True


AnyModule = Module | HadaModule | KronModule
KINDS: tuple[type[Module | HadaModule | KronModule], ...] = (Module, HadaModule, KronModule)
PART_NAMES = frozenset(part for kind in KINDS for part in kind.PARTS)


def build_module(parts: Mapping[str, Tensor]) -> AnyModule:
    """The module made of tensors under a kohya file's names. Raises ConversionError with the parts that miss or clash.

    The shapes are not looked at: that is done by `fits`.
    """
    for kind in KINDS:
        own = set(kind.PARTS) - set(_COMMON)
        if not own & set(parts):
            continue
        strange = set(parts) - set(kind.PARTS)
        missing = _missing(kind, set(parts))
        if strange or missing:
            raise ConversionError("parts that do not go together", keys=strange | missing)
        return kind(**{kind.PARTS[part]: tensor for part, tensor in parts.items()})
    raise ConversionError("an alpha or a dora_scale without matrices", keys=parts)


def read_alpha(alpha: Tensor) -> float:
    """An alpha's number as the file has it."""
    return float(alpha.to_float32().reshape(-1)[0])


def _missing(kind: type, parts: set[str]) -> set[str]:
    if kind is Module:
        return {"lora_down.weight", "lora_up.weight"} - parts
    if kind is HadaModule:
        return {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} - parts
    missing: set[str] = set()
    for whole in ("lokr_w1", "lokr_w2"):
        if whole not in parts:
            missing |= {f"{whole}_a", f"{whole}_b"} - parts
    return missing


def _joins(core: Tensor | None, left: Tensor, right: Tensor, rank: int) -> bool:
    """Whether two matrices multiply to something through `rank`, or through a core of (rank, rank, kh, kw)."""
    if len(left.shape) != 2 or len(right.shape) != 2 or right.shape[0] != rank:
        return False
    if core is None:
        return left.shape[1] == rank
    return left.shape[0] == rank and len(core.shape) == 4 and core.shape[:2] == (rank, rank)


def _rebuild(core: Tensor | None, left: Tensor, right: Tensor) -> Float32:
    """left @ right; with a core (i, j, kh, kw), left (i, out) and right (j, in): (out, in, kh, kw)."""
    if core is None:
        return left.to_float32() @ right.to_float32()
    inner = np.tensordot(left.to_float32(), core.to_float32(), axes=(0, 0))
    return np.ascontiguousarray(np.moveaxis(np.tensordot(inner, right.to_float32(), axes=(1, 0)), -1, 1))


def _factor(whole: Tensor | None, core: Tensor | None, left: Tensor | None, right: Tensor | None) -> Float32:
    if whole is not None:
        return whole.to_float32()
    assert left is not None
    assert right is not None
    return _rebuild(core, left, right)


def _scaled(product: Float32, scale: float) -> Float32:
    return product if scale == 1 else product * np.float32(scale)
