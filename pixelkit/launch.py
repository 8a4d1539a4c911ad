"""One trainer process: started in a group of its own, watched, stopped, and nothing of it left behind.

The lines between the two: a pipe on the trainer's standard input carries orders (engines/control.py) and, by its end,
the news that pixelkit is gone; a pipe on its standard output and error carries text and events (progress.py).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, Literal, Self

from pixelkit.diagnosis import trainer_returncode
from pixelkit.errors import StorageError
from pixelkit.memory import count_oom_kills
from pixelkit.process import ProcessTree
from pixelkit.progress import Bar, Emitted, End, Event, LogLine, NonFinite, Notice, Parser, Step, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pixelkit.memory import MemoryGuard
    from pixelkit.process import Command

TICK: Final = 0.2
"""Seconds between looks at signals, orders and the leader."""
MEMORY_EVERY: Final = 1.0
SAVE_GRACE: Final = 120.0
"""Seconds for a trainer to save after its launcher was killed above it, or to be gone after its last event."""
LEFT_GRACE: Final = 5.0
"""Seconds between asking and killing what outlives the trainer."""
PIPE_GRACE: Final = 2.0
OOM_LOOKS: Final = 15
"""So many looks back, a process that the kernel killed for want of memory counts as the cause of the trainer's end."""
SAME_REQUEST: Final = 0.5
"""Signals this close together are one request: a terminal and a wrapper such as `uv run` may both deliver it."""
TAIL_LINES: Final = 1000

Order = Literal["stop", "kill", "save", "sample"]
Reason = Literal["ended", "stopped", "killed", "nonfinite", "memory"]


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a trainer ended.

    `returncode` is the trainer's own, also where accelerate stands between (which turns every failure into 1); negative
    is a signal, and `signal` its name. `reason`: "ended" by itself, well or not; "stopped" as asked, saved; "killed" by
    us, on the second request; "nonfinite": the loss was no number; "memory": by the guard of main memory. `peak_memory`:
    bytes resident in main memory, summed over the process tree, sampled every second. `oom_killed`: the kernel killed
    processes for want of memory when the trainer was killed. `nonfinite` is what was no number: loss, gradient, latents
    ... `memory_note`: the guard's figures. `tail`: the last lines of the log, without bars.
    """

    returncode: int
    signal: str | None
    reason: Reason
    seconds: float
    peak_memory: int
    last_step: int
    tail: str
    oom_killed: bool = False
    nonfinite: str = ""
    memory_note: str = ""


def launch(
    command: Command,
    *,
    log: Path,
    metrics: Path,
    on_event: Callable[[Event], None] | None = None,
    orders: Callable[[], Order | None] | None = None,
    guard: MemoryGuard | None = None,
) -> Exit:
    """Run `command` until nothing of it is left. `log` gets its output, `metrics` a JSON line for each of its events.

    `on_event` is called here, in this thread, in order. `orders` is asked several times a second. In the main thread,
    Ctrl-C, SIGTERM and SIGHUP mean "stop": save and end; a second one (but SIGHUP) means "kill". `guard` may end it too.
    Raises EngineError where the command cannot start, StorageError where log or metrics cannot be opened; a disk that
    fills up later is told once, and training goes on.
    """
    with _Record(log) as log_record, _Record(metrics) as metrics_record:
        watch = _Watch(command, log_record, metrics_record, on_event or (lambda _event: None), guard)
        try:
            with _signals(watch.receive):
                return watch.run(orders or (lambda: None))
        finally:
            watch.trainer.end()


class _Watch:
    """The loop around one trainer."""

    def __init__(
        self,
        command: Command,
        log: _Record,
        metrics: _Record,
        on_event: Callable[[Event], None],
        guard: MemoryGuard | None,
    ) -> None:
        self.trainer = ProcessTree(command, purpose=str(log.path.absolute()))
        self._guard = guard
        self._oom_kills: deque[int] = deque([count_oom_kills()], maxlen=OOM_LOOKS)
        self._nonfinite = ""
        self._log = log
        self._metrics = metrics
        self._on_event = on_event
        self._parser = Parser()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._signals: list[tuple[int, float]] = []
        self._signalled_at = -math.inf
        self._asked: Order | None = None
        self._reason: Reason = "ended"
        self._last_step = 0
        self._bar: Bar | None = None
        self._done_at = math.inf  # the trainer's last event
        self._exited_at = math.inf  # the leader's exit
        self._kill_at = math.inf  # what is left then is killed

    def receive(self, number: int, _frame: object) -> None:
        """A signal arrived. Only noted: the loop acts on it."""
        self._signals.append((number, time.monotonic()))

    def run(self, orders: Callable[[], Order | None]) -> Exit:
        """Until the leader has ended, nothing else is left, and all output is read."""
        started = time.monotonic()
        chunks: queue.Queue[bytes] = queue.Queue(maxsize=64)
        assert self.trainer.process.stdout
        output = self.trainer.process.stdout.fileno()
        threading.Thread(target=_read_chunks, args=(output, chunks), name="pixelkit-reader", daemon=True).start()
        reading = True
        next_tick = next_look = started + TICK
        while True:
            with contextlib.suppress(queue.Empty):
                chunk = chunks.get(timeout=TICK)
                reading = reading and chunk != b""
                self._take(self._parser.feed(chunk))
            now = time.monotonic()
            if reading and now < next_tick:
                continue
            next_tick = now + TICK
            if now >= next_look and self._exited_at == math.inf:
                next_look = now + min(MEMORY_EVERY, now - started)
                self._look(now)
            self._obey(self._read_signals() or orders())
            if self._is_over(now) and (not reading or now > self._exited_at + PIPE_GRACE):
                break
        self._take(self._parser.close())
        self._write_bar()
        return self._describe_exit(time.monotonic() - started)

    def _describe_exit(self, seconds: float) -> Exit:
        tail = "\n".join(self._tail)
        code = self.trainer.process.returncode
        inner = trainer_returncode(tail)
        code = inner if code == 1 and inner is not None else code
        asked_to_end = not self.trainer.obeys_control or code in (-signal.SIGTERM, -signal.SIGINT)
        if self._asked == "stop" and self._reason == "ended" and asked_to_end:
            self._reason = "stopped"
        return Exit(
            returncode=code,
            signal=_signal_name(-code) if code < 0 else None,
            reason=self._reason,
            seconds=seconds,
            peak_memory=self.trainer.peak_memory,
            last_step=self._last_step,
            tail=tail,
            oom_killed=code in (-9, 137) and count_oom_kills() > self._oom_kills[0],
            nonfinite=self._nonfinite,
            memory_note=self._guard.note if self._guard else "",
        )

    def _look(self, now: float) -> None:
        """At memory: the trainer's, the machine's, and whom the kernel killed for it."""
        self.trainer.look()
        self._oom_kills.append(count_oom_kills())
        word = self._guard.judge(now) if self._guard else None
        if word is None or self._asked == "kill" or (word == "stop" and self._asked):
            return
        assert self._guard
        self._reason = "memory" if self._asked is None or self._reason == "memory" else "killed"
        self._asked = word
        what = "saving, then stopping" if word == "stop" else "killing the trainer"
        self._tell(f"{self._guard.note}: {what}")
        if trouble := self._log.write(f"\npixelkit: {self._guard.note}: {what}\n".encode()):
            self._tell(trouble)
        if word == "stop":
            self.trainer.stop()
        else:
            self.trainer.signal_all(kill=True)

    def _is_over(self, now: float) -> bool:
        """Whether the leader and all others have ended; sees to it that they do."""
        code = self.trainer.process.poll()
        if code is None:
            if now > self._done_at + SAVE_GRACE and self._kill_at == math.inf:
                self._tell("the trainer is done but does not end: killing it")
                self._kill_at = now
        elif not self.trainer.left():
            self._exited_at = min(self._exited_at, now)
            return True
        elif self._exited_at == math.inf:
            self._exited_at = now
            if code < 0 and self._asked != "kill" and self.trainer.obeys_control:
                # The launcher was killed above the trainer, as by a service manager: the trainer shall still save.
                self.trainer.stop()
                self._kill_at = min(self._kill_at, now + SAVE_GRACE)
            else:
                self.trainer.signal_all(kill=False)
                self._kill_at = min(self._kill_at, now + LEFT_GRACE)
        if now >= self._kill_at:
            self.trainer.signal_all(kill=True)
        return False

    def _read_signals(self) -> Order | None:
        order: Order | None = None
        while self._signals:
            number, at = self._signals.pop(0)
            if (self._asked is None or self._reason == "memory") and order is None:
                order = "stop"
            elif at > self._signalled_at + SAME_REQUEST and number != getattr(signal, "SIGHUP", None):
                order = "kill"
            self._signalled_at = at
        return order

    def _obey(self, order: Order | None) -> None:
        if order == "kill" and self._asked != "kill":
            self._asked, self._reason = "kill", "killed"
            self._tell("killing the trainer")
            self.trainer.signal_all(kill=True)
        elif order == "stop" and self._reason == "memory":
            self._reason = "stopped"  # the user's word, which ends the run, over the guard's
        elif order == "stop" and self._asked is None:
            self._asked = "stop"
            self._tell("saving, then stopping; once more kills" if self.trainer.obeys_control else "stopping")
            self.trainer.stop()
        elif order in {"save", "sample"}:
            self.trainer.order(order)

    def _take(self, events: list[Event]) -> None:
        if (log := self._parser.take_log()) and (trouble := self._log.write(log)):
            self._tell(trouble)
        for event in events:
            if isinstance(event, LogLine):
                self._tail.append(event.text)
            elif isinstance(event, Emitted):
                self._take_emitted(event)
            elif isinstance(event, Bar) and event.name == "steps" and not self.trainer.obeys_control:
                self._take_bar(event)
            self._on_event(event)

    def _take_emitted(self, event: Emitted) -> None:
        self._write_metric(event.raw)
        if isinstance(event, Step | Stopped | NonFinite | End):
            self._last_step = event.step
        if isinstance(event, Stopped | NonFinite | End):
            self._done_at = time.monotonic()
        if isinstance(event, Stopped) and self._reason == "ended":
            self._reason = "stopped"
        if isinstance(event, End) and self._reason == "memory":
            self._reason = "ended"  # it was through before it could obey
        if isinstance(event, NonFinite):
            self._reason, self._nonfinite = "nonfinite", event.what

    def _take_bar(self, bar: Bar) -> None:
        """A plain script's training bar. It is drawn more than once a step; the last drawing has the step's loss."""
        if self._bar is None:
            self._write_metric({"event": "begin", "step": max(0, bar.step - 1), "total": bar.total})
        elif bar.step > self._bar.step:
            self._write_bar()
        self._bar = bar
        self._last_step = bar.step
        if bar.loss is not None and not math.isfinite(bar.loss) and self._reason == "ended":
            self._reason, self._nonfinite = "nonfinite", "loss"
            self._tell(f"the loss is {bar.loss}: ending the trainer")
            self.trainer.signal_all(kill=False)
            self._kill_at = time.monotonic() + LEFT_GRACE

    def _write_bar(self) -> None:
        if self._bar and self._bar.step:
            loss = self._bar.loss if self._bar.loss is not None and math.isfinite(self._bar.loss) else None
            step = {"event": "step", "step": self._bar.step, "loss": loss, "seconds": self._bar.seconds_per_step}
            self._write_metric(step)

    def _write_metric(self, fields: Mapping[str, object]) -> None:
        line = json.dumps({**fields, "time": time.time()}, separators=(",", ":")) + "\n"
        if trouble := self._metrics.write(line.encode()):
            self._tell(trouble)

    def _tell(self, text: str) -> None:
        self._on_event(Notice(text=text))


class _Record:
    """A file that is appended to, unbuffered, and whose trouble never ends a training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = False

    def __enter__(self) -> Self:
        try:
            self._file: IO[bytes] = self.path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        if _is_cut_off(self.path):
            self.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def write(self, data: bytes) -> str | None:
        """Append `data`; what to tell the user, the first time that it fails."""
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            told, self._told = self._told, True
            return None if told else f"cannot write {self.path} ({error.strerror}); training goes on without it"
        return None


def _is_cut_off(path: Path) -> bool:
    """Whether a file's last line has no end: who wrote it was killed."""
    try:
        with path.open("rb") as stream:
            return stream.seek(0, os.SEEK_END) > 0 and stream.seek(-1, os.SEEK_END) >= 0 and stream.read(1) != b"\n"
    except OSError:
        return False


@contextlib.contextmanager
def _signals(receive: Callable[[int, object], None]) -> Iterator[None]:
    """Route what asks a program to end to `receive`. What this process ignores (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    changed = [number for number, handler in before.items() if handler not in {signal.SIG_IGN, None}]
    try:
        for number in changed:
            signal.signal(number, receive)
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


def _read_chunks(descriptor: int, chunks: queue.Queue[bytes]) -> None:
    chunk = b"-"
    while chunk:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except OSError:
            chunk = b""
        chunks.put(chunk)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
