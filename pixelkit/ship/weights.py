"""Is what training left a file of numbers that something was learned in? Read in pieces, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converters import ConversionError
from converters.tensors import FLOATS, Tensor, read_file
from pixelkit.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_PIECE = 1 << 24
_CLOCK = 2.0  # seconds that a file system may round a time stamp by
# The exponent bits of each float: all of them set means infinite or not a number (E4M3 has no infinity).
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger], int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


# What starts as 0 in each kind of network, so that it says whether anything was learned.
_LEARNED = frozenset({"lora_up.weight", "hada_w2_a", "lokr_w2_b", "lokr_w2", "oft_blocks"})


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What a weights file holds: numbers of tensors and parameters, bytes on disk, the dtypes of its floats."""

    tensors: int
    parameters: int
    size: int
    dtypes: tuple[str, ...]


def inspect_weights(path: Path, newer_than: float) -> WeightsReport:
    """Check that training made this file and that something was learned; it is read in pieces, without torch.

    `newer_than` is a unix time. Raises TrainingError with kind `no-file`, `stale` (older than that), `broken`,
    `nonfinite`, or `untrained` (everything that begins as 0 still is; in a file of no known kind, everything).
    """
    try:
        about = path.stat()
    except OSError as error:
        raise TrainingError(
            f"the trainer ended without an error, but {path} is not there", kind="no-file", hint="see the log's end"
        ) from error
    if about.st_mtime < newer_than - _CLOCK:
        raise TrainingError(f"{path} is older than this training", kind="stale", hint="the trainer wrote elsewhere")
    try:
        weights = read_file(path)
    except ConversionError as error:
        raise TrainingError(str(error), kind="broken", hint="is the disk full?") from error
    floats = {name: tensor for name, tensor in weights.tensors.items() if tensor.dtype in FLOATS}
    bad = sorted(name for name, tensor in floats.items() if not _is_finite(tensor))
    if bad:
        raise TrainingError(
            f"{len(bad)} of {len(floats)} tensors in {path.name} hold NaN or infinity, {bad[0]} for one",
            kind="nonfinite",
            hint="halve train.learning_rate, or set train.precision to bf16; an earlier checkpoint may be sound",
        )
    learned = [tensor for name, tensor in floats.items() if name.partition(".")[2] in _LEARNED]
    learned = learned or list(floats.values())
    if not any(np.any(tensor.data) for tensor in learned):
        raise TrainingError(
            f"nothing was learned: every weight that training moves is still 0 in {path.name}",
            kind="untrained",
            hint="is train.learning_rate above 0, and did at least one optimizer step run?",
        )
    return WeightsReport(
        tensors=len(weights.tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in weights.tensors.values()),
        size=about.st_size,
        dtypes=tuple(sorted({tensor.dtype for tensor in floats.values()})),
    )


def _is_finite(tensor: Tensor) -> bool:
    kind, exponent = _EXPONENT[tensor.dtype]
    bits: NDArray[np.unsignedinteger] = tensor.data.view(kind)
    mask = kind(exponent)
    return not any(np.any((bits[start : start + _PIECE] & mask) == mask) for start in range(0, bits.size, _PIECE))
