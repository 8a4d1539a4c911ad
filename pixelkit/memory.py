"""The machine's main memory while a training runs: what is left of it, and whom the kernel killed for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

STOP_PATIENCE: Final = 30.0
GIB: Final = 2**30


def read_available() -> float:
    """Bytes that programs can still take."""
    return float(psutil.virtual_memory().available)


def count_oom_kills() -> int:
    """How many processes Linux has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@dataclass(kw_only=True)
class MemoryGuard:
    """Ends a training before the machine's main memory is full: where GPU and processor share it, the whole machine may hang.

    Below `stop_below` bytes available the trainer shall save and stop; below half of that, or when it is still there
    STOP_PATIENCE seconds later with less available, it is killed. `note` says the figures.
    """

    stop_below: float
    read: Callable[[], float] = read_available
    note: str = ""
    _stopped_at: float = math.inf
    _had: float = 0.0

    def judge(self, now: float) -> Literal["stop", "kill"] | None:
        """What to do at `now` (seconds of a monotonic clock); asked each second."""
        available = self.read()
        late = now > self._stopped_at + STOP_PATIENCE and available < self._had
        if available >= self.stop_below and not late:
            return None
        if available >= self.stop_below / 2 and not late and self._stopped_at < math.inf:
            return None
        self.note = (
            f"{available / GIB:.1f} GiB of the machine's memory are left, "
            f"and training stops below {self.stop_below / GIB:.1f} GiB"
        )
        if late or available < self.stop_below / 2:
            return "kill"
        self._stopped_at, self._had = now, available
        return "stop"
