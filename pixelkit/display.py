"""What a person sees while a trainer works, on standard error: standard output is kept for results.

On a terminal: a bar with pace, time left, loss, learning rate and memory; before the first step, what the trainer is
doing. Elsewhere: plain lines without control characters, the first step's, then one in a while.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Final, Self, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from pixelkit.progress import (
    Average,
    Bar,
    Begin,
    End,
    Event,
    LogLine,
    NonFinite,
    Notice,
    Rate,
    Save,
    State,
    Step,
    Stopped,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN_EVERY: Final = 30.0
"""Seconds between plain lines."""
PLAIN_SHARE: Final = 0.1
"""A plain line also each time that this share of the steps is done."""
TRAINING_BAR: Final = "steps"


class Display:
    """Fed with events: `with Display() as display: launch(..., on_event=display.show)`.

    Trouble with the stream (a closed terminal, a broken pipe) silences it and never reaches the training.
    """

    def __init__(
        self, *, title: str = "training", stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title = title
        self._clock = clock
        self._console = Console(
            file=cast("IO[str]", _Tolerant(stream or sys.stderr)), highlight=False, emoji=False, markup=False
        )
        # rich also believes FORCE_COLOR that a pipe is a terminal; a file full of control characters helps nobody.
        self._live = self._console.file.isatty() and self._console.is_terminal and not self._console.is_dumb_terminal
        self._progress = Progress(
            SpinnerColumn("dots" if self._console.encoding.startswith("utf") else "line"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self._console,
            expand=True,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID | None = None
        self._begun = False
        self._over = False
        self._total = 0
        self._step = 0
        self._loss = Average()
        self._rate = Rate()
        self._lr: float | None = None
        self._memory: int | None = None
        self._bar_pace: float | None = None
        self._plain_at = clock()
        self._plain_step = 0

    def __enter__(self) -> Self:
        if self._live:
            self._task = self._progress.add_task(self._title, total=None, facts="starting")
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def show(self, event: Event) -> None:
        """Take one event in and show what changed."""
        match event:
            case Begin():
                self._begin(event.total)
            case Step():
                self._loss.add(event.loss)
                self._lr = event.lr
                self._memory = event.memory
                self._advance(event.step)
            case Bar():
                self._take_bar(event)
            case LogLine() if not self._step and not self._over:
                self._tell_phase(event.text)
            case Notice():
                self._say(event.text)
            case Save() | State() | Stopped() | NonFinite() | End():
                self._over = not isinstance(event, Save | State)  # what its launcher says of its end tells nobody more
                self._say(describe_event(event))
            case _:
                pass

    def _begin(self, total: int) -> None:
        self._begun, self._over = True, False
        self._total = total
        if self._task is not None:
            self._progress.update(self._task, total=total)

    def _take_bar(self, bar: Bar) -> None:
        if bar.name != TRAINING_BAR:
            if not self._step:
                name = f"{bar.name} " if bar.name else ""
                self._tell_phase(f"{name}{bar.step}/{bar.total}")
        elif not self._begun:  # a plain script, without events
            self._total = bar.total
            if self._task is not None:
                self._progress.update(self._task, total=bar.total)
            if bar.step:
                self._bar_pace = bar.seconds_per_step
                if bar.loss is not None and math.isfinite(bar.loss):
                    self._loss = Average()  # it is an average already
                    self._loss.add(bar.loss)
                self._advance(bar.step)

    def _advance(self, step: int) -> None:
        first = not self._step
        self._step = step
        now = self._clock()
        self._rate.see(step, now)
        if self._task is not None:
            self._progress.update(
                self._task, completed=step, description=f"{self._title} {self._count()}", facts=self._facts()
            )
            return
        share = (step - self._plain_step) / self._total if self._total else 0
        late = now >= self._plain_at + PLAIN_EVERY
        if first or late or (share >= PLAIN_SHARE and now >= self._plain_at + 1) or step == self._total:
            self._plain_at, self._plain_step = now, step
            self._say(f"{self._count()}  {self._facts()}")

    def _tell_phase(self, text: str) -> None:
        text = shorten(text, max(20, self._console.width - len(self._title) - 24))
        if self._task is not None:
            self._progress.update(self._task, facts=text)
        elif self._clock() >= self._plain_at + PLAIN_EVERY:
            self._plain_at = self._clock()
            self._say(text)

    def _say(self, text: str) -> None:
        """One line that stays."""
        if self._live:
            self._progress.console.print(Text(text), soft_wrap=True)
        else:
            self._console.file.write(f"{self._title}: {clean(text)}\n")
            self._console.file.flush()

    def _count(self) -> str:
        return f"{self._step}/{self._total or '?'}"

    def _facts(self) -> str:
        pace = self._rate.seconds_per_step or self._bar_pace
        left = self._rate.seconds_left(self._total) if self._total else None
        facts = (
            f"loss {self._loss.value:.4f}" if self._loss.value is not None else "",
            f"{format_seconds(left)} left" if left is not None else "",
            format_pace(pace) if pace is not None else "",
            f"lr {self._lr:.2g}" if self._lr is not None else "",
            format_memory(self._memory) if self._memory else "",
        )
        return "  ".join(fact for fact in facts if fact)


class _Tolerant(io.TextIOBase):
    """A stream whose trouble never reaches the training, nor rich's refreshing thread: it falls silent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "replace").decode())
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def describe_event(event: Save | State | Stopped | NonFinite | End) -> str:
    """One line on an event that a person wants to keep."""
    match event:
        case Save():
            return f"step {event.step}: saved {PurePath(event.path).name}"
        case State():
            return f"step {event.step}: saved the state to resume from, {PurePath(event.path).name}"
        case Stopped():
            return f"stopped at step {event.step}; everything is saved"
        case NonFinite():
            return f"step {event.step}: the {event.what} is no longer a number; stopping"
        case End():
            return f"trained {event.step} steps: {PurePath(event.path).name}"


def format_seconds(seconds: float) -> str:
    """12 s, 3:07 min, 2:05 h, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours}:{rest:02} h" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def format_pace(seconds: float) -> str:
    """Seconds a step; steps a second where that reads better."""
    return f"{seconds:.2f} s/step" if seconds >= 0.1 else f"{1 / max(seconds, 1e-9):.0f} steps/s"


def format_memory(size: int) -> str:
    """Bytes as GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def clean(text: str) -> str:
    """Without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def shorten(text: str, width: int) -> str:
    """The beginning of one line, at most `width` characters."""
    text = " ".join(clean(text).split())
    return text if len(text) <= width else text[: width - 1] + "…"
