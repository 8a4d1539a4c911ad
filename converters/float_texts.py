"""Many floats as JSON numbers at once: the shortest decimals that read back, as float32 or float64, to the same value.

The texts of a 16-bit float's 65,536 values are a table, filled as they occur. float32 is written by arithmetic on whole
arrays: the fewest digits (up to 9) of which float64 arithmetic is certain that they read back to the same float32. The
texts of an array are copied to where each begins, in order, as records of one size: what a record has too much, the
next one overwrites.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from converters.tensors import ITEM_SIZE, Tensor, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 16  # bytes of the longest text and the comma behind it: -1.17549435e-38,
_PIECE = 1 << 15
_POWERS = 10.0 ** np.arange(23)  # exact in float64, as are the integers that are divided by them
_THREE_DIGITS = np.array([f"{number:03}" for number in range(1000)], "S3")
_EXPONENTS = np.array([f"e{power:+03}," for power in range(-60, 60)], "S5")


def write_matrix(tensor: Tensor) -> Iterator[bytes]:
    """A 2-D tensor of finite floats as a JSON list of rows, in pieces."""
    rows, columns = tensor.shape
    size = ITEM_SIZE[tensor.dtype]
    step = max(1, _PIECE // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        data = tensor.data[first * columns * size : (first + count) * columns * size]
        text = _write_rows(Tensor(dtype=tensor.dtype, shape=(count, columns), data=data))
        yield (b"[" if first == 0 else b",") + text
    yield b"]"


def _write_rows(tensor: Tensor) -> bytes:
    """Rows without the brackets around them all: `[1.0,2.0],[3.0,4.0]`."""
    rows, columns = tensor.shape
    if tensor.dtype == "F64":
        return json.dumps(tensor.to_float64().tolist(), separators=(",", ":")).encode()[1:-1]
    if tensor.dtype == "F32":
        lengths, copy = _lay_out_float32(tensor.to_float32().reshape(-1))
    else:
        codes = tensor.data if ITEM_SIZE[tensor.dtype] == 1 else tensor.data.view("<u2")
        records, widths = _table(tensor.dtype)
        lengths = widths.take(codes)
        if not lengths.all():
            _fill_table(tensor.dtype, np.unique(codes[lengths == 0]))
            lengths = widths[codes]

        def copy(out: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> None:
            _windows(out, _WIDTH)[starts] = np.take(records, codes)

    lengths.reshape(rows, columns)[:, -1] += 2  # ` ],[ ` in place of the comma behind a row's last number
    ends = np.cumsum(lengths, dtype=np.int64)
    ends += 1
    out = np.empty(int(ends[-1]) + _WIDTH, np.uint8)
    out[0] = ord("[")
    copy(out, ends - lengths)
    last = ends[columns - 1 :: columns]
    for offset, sign in ((3, "]"), (2, ","), (1, "[")):
        out[last - offset] = ord(sign)
    return out[: int(ends[-1]) - 2].tobytes()


@functools.cache
def _table(dtype: str) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint8]]:
    """For every value its text with a comma, and how long that is: 0 where it was not asked for yet."""
    count = 1 << 8 * ITEM_SIZE[dtype]
    return np.zeros(count, f"V{_WIDTH}"), np.zeros(count, np.uint8)


def _fill_table(dtype: str, codes: npt.NDArray[Any]) -> None:
    values = Tensor(dtype=dtype, shape=(codes.size, 1), data=codes.view(np.uint8)).to_float32()
    text = _write_rows(encode(values, "F32")).decode()
    # 2.5e-02 -> 2.5e-2, 1.0e+00 -> 1.0, 5.0e-01 -> 5e-1
    for long, short in (("],[", ","), ("e-0", "e-"), ("e+0", "e"), ("]", ","), ("e0,", ","), (".0e", "e")):
        text = text.replace(long, short)
    texts = [f"{number}," for number in text[1:-1].split(",")]
    records, widths = _table(dtype)
    records[codes] = np.array(texts, f"S{_WIDTH}").view(f"V{_WIDTH}")
    widths[codes] = [len(number) for number in texts]


def _lay_out_float32(values: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], Any]:
    """The lengths of the texts (`-1.2345e-02,`), and what copies them to where they start."""
    digits, counts, powers = _find_digits(np.abs(values))
    negative = np.signbit(values)
    counts = np.maximum(counts, 2)  # 1.0e+00
    scaled = digits * (10 ** np.arange(10))[9 - counts]
    nine = np.empty((values.size, 11), np.uint8)
    groups = (scaled // 1_000_000, scaled // 1000 % 1000, scaled % 1000)
    triples = [_THREE_DIGITS[group].view(np.uint8).reshape(-1, 3) for group in groups]
    nine[:, 0] = triples[0][:, 0]
    nine[:, 1] = ord(".")
    nine[:, 2:4], nine[:, 4:7], nine[:, 7:10] = triples[0][:, 1:], triples[1], triples[2]
    tails = _EXPONENTS[powers + 60]
    lengths = (counts + 6 + negative).astype(np.uint8)

    def copy(out: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> None:
        begins = starts + negative
        _windows(out, 11)[begins] = nine.view("V11").reshape(-1)
        _windows(out, 5)[begins + counts + 1] = tails.view("V5")
        out[starts[negative]] = ord("-")

    return lengths, copy


def _find_digits(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each value >= 0 its shortest digits as an integer, how many they are, and the exponent of the first one."""
    exact = values.astype(np.float64)
    with np.errstate(divide="ignore"):
        powers = np.floor(np.log10(np.where(values > 0, exact, 1.0))).astype(np.int64)
    digits, counts = np.zeros(values.size, np.int64), np.ones(values.size, np.int64)
    usual = (values > 0) & (powers >= -13) & (powers <= 0)
    # A little less than half the way to the next float32 below, which is the nearer one.
    below = ((np.maximum(values.view(np.uint32), 1) - 1) & 0x7F800000).view(np.float32)
    half_gap = below.astype(np.float64) * (0.4999 * 2.0**-23)
    left = np.flatnonzero(usual)
    found = np.zeros(values.size, bool)
    for count in (8, 9, 7, 6, 5, 4, 3, 2, 1):
        # Those that eight digits tell apart may need fewer still; the others need nine.
        chosen = left if count == 8 else np.flatnonzero(usual & ~found) if count == 9 else left
        scale = _POWERS[count - 1 - powers[chosen]]
        number = np.rint(exact[chosen] * scale)
        right = np.abs(number / scale - exact[chosen]) < half_gap[chosen]
        good = chosen[right]
        digits[good], counts[good], found[good] = number[right].astype(np.int64), count, True
        if count != 9:
            left = good
    over = digits >= 10**counts  # rounded up to the next power of ten
    digits[over] //= 10
    powers[over] += 1
    for index in np.flatnonzero((values > 0) & (~found | (digits < 10 ** (counts - 1)))):
        text = np.format_float_scientific(values[index], unique=True, trim="-")
        mantissa, _, power = text.partition("e")
        whole = mantissa.replace(".", "")
        digits[index], counts[index], powers[index] = int(whole), len(whole), int(power)
    widened = counts < 2
    digits[widened] *= 10
    return digits, counts, np.where(values > 0, powers, 0)


def _windows(buffer: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.void]:
    """Records of `width` bytes that start at every byte of `buffer`."""
    count = buffer.size - width + 1
    return np.lib.stride_tricks.as_strided(
        buffer[:width].view(f"V{width}"), shape=(count,), strides=(1,), writeable=True
    )
