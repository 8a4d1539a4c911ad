"""What a trainer writes, bytes in, events out. Pure: no files, no processes, no clock.

A trainer with an entry of ours writes events: the byte 0x1e, a JSON object, a newline; the mark may follow text that
has no newline yet (tqdm's). A plain script is read from its tqdm bars. All else is LogLine.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

EVENT_MARK: Final = b"\x1e"
LONGEST_LINE: Final = 1 << 20
"""Bytes after which a line without an end is taken as it stands."""

_MARK: Final = EVENT_MARK.decode()
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_BAR = re.compile(
    r"(?P<name>[^|%:]*?)(?:: *)? *\d+%\|[^|]*\| *(?P<step>\d+)/(?P<total>\d+) "
    r"\[[\d:]+<[\d:?]+, *(?P<rate>[\d.]+|\?)(?P<unit>s/it|it/s)(?:, (?P<more>[^\]]*))?\]"
)
_BAR_LOSS = re.compile(r"\b(?:avr_)?loss=([-+.\w]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Anything a trainer tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogLine(Event):
    """A line of text for people; terminal escapes are removed, it is never blank."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice(Event):
    """A word of pixelkit itself to who watches: stopping, the log cannot be written ..."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar(Event):
    """A tqdm bar. The training bar of sd-scripts is called "steps"; its loss is a moving average, NaN included."""

    name: str
    step: int
    total: int
    seconds_per_step: float | None
    loss: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Emitted(Event):
    """An event of our entry; `raw` is the object as it came, with what this version does not know."""

    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Begin(Emitted):
    """Everything is loaded; `total` optimizer steps follow."""

    total: int
    epochs: int
    pid: int
    engine: str
    versions: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(Emitted):
    """An optimizer step, from 1. `seconds` it took; `memory` bytes at peak on the device (on CPU: of the process)."""

    step: int
    epoch: int
    loss: float | None
    lr: float | None
    seconds: float | None
    memory: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Emitted):
    """A sample image is complete; step 0 is before training."""

    step: int
    index: int
    seed: int | None
    prompt: str
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Save(Emitted):
    """A weights file is complete."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class State(Emitted):
    """A folder that training can resume from is complete."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped(Emitted):
    """Stopped as asked, everything saved; reason "control", "signal" or "parent"."""

    step: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NonFinite(Emitted):
    """`what` (loss, gradients ...) is NaN or infinite; the trainer ends with code 65."""

    step: int
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class End(Emitted):
    """Training is complete and `path` is its result."""

    step: int
    path: str


class Parser:
    """Cuts a trainer's output into events. However the bytes are cut into chunks, the events are the same."""

    def __init__(self) -> None:
        self._pending = b""
        self._logged = 0  # so many bytes of _pending are in the log already
        self._log: list[bytes] = []

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes."""
        block = self._pending + data
        end = max(block.rfind(b"\n"), block.rfind(b"\r")) + 1
        if EVENT_MARK in block or len(block) > LONGEST_LINE:
            return list(self._take_lines(block, end))
        self._log.append(block[self._logged :])
        self._pending = block[end:]
        self._logged = len(self._pending)
        events: list[Event] = []
        for line in block[:end].decode("utf-8", "replace").replace("\r", "\n").split("\n"):
            events.extend(_read_text(line))
        return events

    def close(self) -> list[Event]:
        """The events of a last line that has no end."""
        line, self._pending = self._pending, b""
        return list(self._take_line(line))

    def take_log(self) -> bytes:
        """The bytes since the last call as they came, without the events."""
        log, self._log = b"".join(self._log), []
        return log

    def _take_lines(self, block: bytes, end: int) -> Iterator[Event]:
        start = 0
        for found in re.finditer(rb"[\r\n]", block):
            for cut in range(start, found.end(), LONGEST_LINE):
                yield from self._take_line(block[cut : min(cut + LONGEST_LINE, found.end())])
            start = found.end()
        while len(block) - end > LONGEST_LINE:
            yield from self._take_line(block[end : end + LONGEST_LINE])
            end += LONGEST_LINE
        self._pending = block[end:]
        shown = self._pending.split(EVENT_MARK, 1)[0]
        self._log.append(shown[self._logged :])
        self._logged = max(self._logged, len(shown))

    def _take_line(self, line: bytes) -> Iterator[Event]:
        text, *objects = line.split(EVENT_MARK)
        kept = [text]
        yield from _read_text(text.decode("utf-8", "replace").strip("\r\n"))
        for item in objects:
            event = read_event(item)
            if event is None:
                kept.append(EVENT_MARK + item)
                yield from _read_text(item.decode("utf-8", "replace").strip("\r\n"))
            else:
                yield event
        self._log.append(b"".join(kept)[self._logged :])
        self._logged = 0


def read_event(data: bytes) -> Emitted | None:
    """One event from its JSON; None if it is none that we know."""
    try:
        raw = json.loads(data.decode("utf-8"), parse_constant=lambda _name: None)
        return _READERS[raw["event"]](raw)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_text(line: str) -> Iterator[Event]:
    if "\x1b" in line:
        line = _ESCAPES.sub("", line)
    if "%|" in line and (found := _BAR.search(line)):
        rate = found["rate"]
        seconds = None if rate == "?" or float(rate) == 0 else float(rate)
        loss = _BAR_LOSS.search(found["more"] or "")
        if before := line[: found.start()].strip():
            yield LogLine(text=before)
        yield Bar(
            name=found["name"].strip(),
            step=int(found["step"]),
            total=int(found["total"]),
            seconds_per_step=1 / seconds if seconds and found["unit"] == "it/s" else seconds,
            loss=_to_float(loss[1]) if loss else None,
        )
        line = line[found.end() :].strip()
    if line and not line.isspace():
        yield LogLine(text=line.rstrip())


def _to_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(value)
    return value


def _integer_or_none(value: object) -> int | None:
    return None if value is None else _integer(value)


def _number_or_none(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Emitted]]] = {
    "begin": lambda raw: Begin(
        total=_integer(raw["total"]),
        epochs=_integer(raw.get("epochs", 1)),
        pid=_integer(raw.get("pid", 0)),
        engine=_text(raw.get("engine", "")),
        versions=dict(raw.get("versions") or {}),
        raw=raw,
    ),
    "step": lambda raw: Step(
        step=_integer(raw["step"]),
        epoch=_integer(raw.get("epoch", 1)),
        loss=_number_or_none(raw.get("loss")),
        lr=_number_or_none(raw.get("lr")),
        seconds=_number_or_none(raw.get("seconds")),
        memory=_integer_or_none(raw.get("memory")),
        raw=raw,
    ),
    "sample": lambda raw: Sample(
        step=_integer(raw["step"]),
        index=_integer(raw.get("index", 0)),
        seed=_integer_or_none(raw.get("seed")),
        prompt=_text(raw.get("prompt", "")),
        path=_text(raw["path"]),
        raw=raw,
    ),
    "save": lambda raw: Save(step=_integer(raw["step"]), path=_text(raw["path"]), raw=raw),
    "state": lambda raw: State(step=_integer(raw["step"]), path=_text(raw["path"]), raw=raw),
    "stopped": lambda raw: Stopped(step=_integer(raw["step"]), reason=_text(raw.get("reason", "")), raw=raw),
    "nonfinite": lambda raw: NonFinite(step=_integer(raw["step"]), what=_text(raw.get("what", "loss")), raw=raw),
    "end": lambda raw: End(step=_integer(raw["step"]), path=_text(raw["path"]), raw=raw),
}


class Average:
    """Exponential moving average, right from the first value on (Adam's bias correction). None is passed over."""

    def __init__(self, *, weight: float = 0.05) -> None:
        self._weight = weight
        self._sum = 0.0
        self._mass = 0.0

    def add(self, value: float | None) -> None:
        """Count one more value."""
        if value is not None:
            self._sum += self._weight * (value - self._sum)
            self._mass += self._weight * (1 - self._mass)

    @property
    def value(self) -> float | None:
        """The average; None before the first value."""
        return self._sum / self._mass if self._mass else None


class Rate:
    """Steps against the clock. The first step, slow for its warm-up, sets the start and is not counted."""

    def __init__(self, *, window: int = 32) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=window + 1)
        self._first: tuple[int, float] | None = None

    def see(self, step: int, at: float) -> None:
        """`step` is complete at `at` seconds. Steps that do not grow are passed over."""
        if self._recent and step <= self._recent[-1][0]:
            return
        self._first = self._first or (step, at)
        self._recent.append((step, at))

    @property
    def seconds_per_step(self) -> float | None:
        """Of the last steps; None before the second."""
        return _slope(self._recent[0], self._recent[-1]) if len(self._recent) > 1 else None

    def seconds_left(self, total: int) -> float | None:
        """Until `total` steps at the pace since the first, saves and samples included; None before the second step."""
        if self._first is None or len(self._recent) < 2:
            return None
        return max(0, total - self._recent[-1][0]) * _slope(self._first, self._recent[-1])


def _slope(first: tuple[int, float], last: tuple[int, float]) -> float:
    return (last[1] - first[1]) / (last[0] - first[0])
