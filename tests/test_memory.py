"""The guard of main memory, fed with readings; and what the kernel says of its kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelkit.catalog import list_hardware
from pixelkit.diagnosis import diagnose
from pixelkit.launch import Exit
from pixelkit.memory import GIB, MemoryGuard, count_oom_kills, read_available
from pixelkit.training import make_guard


def judge(*readings: tuple[float, float]) -> tuple[list[str | None], str]:
    """Verdicts for readings (seconds, GiB available) with a mark at 12 GiB."""
    left = [available for _, available in readings]
    guard = MemoryGuard(stop_below=12 * GIB, read=lambda: left.pop(0) * GIB)
    return [guard.judge(at) for at, _ in readings], guard.note


@pytest.mark.parametrize(
    ("readings", "verdicts"),
    [
        ([(0, 100), (1, 12), (2, 12.1)], [None, None, None]),
        ([(0, 13), (1, 11), (2, 10), (3, 9)], [None, "stop", None, None]),
        ([(0, 13), (1, 5.9)], [None, "kill"]),
        ([(0, 11), (10, 5)], ["stop", "kill"]),
        ([(0, 11), (29, 10), (31, 10)], ["stop", None, "kill"]),
        ([(0, 10), (31, 11), (60, 50)], ["stop", None, None]),
    ],
    ids=["above", "below", "far-below", "falls-further", "late-and-falling", "late-but-rising"],
)
def test_what_the_guard_does(readings: list[tuple[float, float]], verdicts: list[str | None]) -> None:
    assert judge(*readings)[0] == verdicts


def test_the_guard_says_its_figures() -> None:
    assert judge((0, 11.25))[1] == "11.2 GiB of the machine's memory are left, and training stops below 12.0 GiB"


def test_who_has_a_guard() -> None:
    marks = {name: profile.stop_below_gib for name, profile in list_hardware().items() if profile.stop_below_gib}
    assert marks == {"gb10": 12}
    guard = make_guard("gb10")
    assert guard is not None
    assert guard.stop_below == 12 * GIB
    assert make_guard("cpu") is None
    assert 0 < read_available() < 1 << 50


def test_kills_of_the_kernel_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: "pgfault 9\noom_kill 3\noom_kill_other 4\n")
    assert count_oom_kills() == 3
    monkeypatch.setattr(Path, "read_text", lambda *_: "pgfault 9\n")
    assert count_oom_kills() == 0


def ended(**fields: object) -> Exit:
    values = {"returncode": -9, "signal": "SIGKILL", "reason": "ended", "seconds": 1.0, "peak_memory": 3 * GIB}
    return Exit(**{**values, "last_step": 4, "tail": "", **fields})  # type: ignore[arg-type]


def test_memory_is_told_from_a_kill() -> None:
    assert diagnose(ended(), "").kind == "killed"
    found = diagnose(ended(oom_killed=True), "")
    assert (found.kind, found.what) == ("oom", "the kernel killed the trainer for want of memory, at 3.0 GiB")
    found = diagnose(ended(reason="memory", memory_note="5.0 GiB are left"), "")
    assert (found.kind, found.what) == ("oom", "5.0 GiB are left")
