"""One job's process: `python -m pixelkit.queue.job BOOK ID ATTEMPT`, started by a runner. Trains, and writes what came of it.

Whoever starts such a process (a runner here, another machine's launcher) has claimed the attempt before, and settles it
if the process ends without a word.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from pixelkit.errors import Interrupted, PixelkitError
from pixelkit.queue.attempts import RETRY_AFTER, Outcome, begin, report, settle
from pixelkit.queue.book import Book
from pixelkit.queue.life import own_life

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from pixelkit.progress import Event
    from pixelkit.queue.book import Job
    from pixelkit.rundir import RunDir

BEAT_EVERY: Final = 1.0
"""Seconds between looks at what the job is asked, and between reports of progress."""
IDLE_BEAT: Final = 10.0
"""Seconds between signs of life while nothing changes."""


def carry_out(
    path: Path, number: int, attempt: int, work: Callable[[Job, Pulse], str], *, retry_after: float = RETRY_AFTER
) -> int:
    """Take up an attempt, do `work` (which returns the model's path, or raises), settle it. Returns an exit code."""
    with Book(path) as book, Interruptible() as interruptible:
        life = str(own_life())
        job = begin(book, number, attempt, life)
        if job is None:
            print(f"job {number} was taken back before attempt {attempt} began", flush=True)
            return 0
        try:
            with Pulse(job, book) as pulse, interruptible.inside():
                model = work(job, pulse)
            outcome = Outcome(kind="done", model=model)
        except (Interrupted, KeyboardInterrupt) as stop:
            hold = isinstance(stop, Interrupted) and not interruptible.was_signalled()
            outcome = Outcome(kind="held" if hold else "stopped", exit_code=130, reason=_HELD if hold else "")
            print(f"stopped {stop}".strip(), flush=True)
        except PixelkitError as error:
            print(f"error: {error}", flush=True)
            outcome = Outcome(kind="failed", exit_code=error.exit_code, reason=error.message, retry_after=retry_after)
        except Exception as error:  # whatever it is, the book shall say that the job failed
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            outcome = Outcome(kind="failed", exit_code=1, reason=reason, retry_after=retry_after)
        settle(book, number, attempt, life, outcome)
    return outcome.exit_code or 0


_HELD: Final = "its run was stopped; `pixelkit queue resume` goes on"


class Interruptible:
    """Signals end the work inside, and are ignored around it: nothing shall cut the book's last word off."""

    def __init__(self) -> None:
        self._inside = False

    def __enter__(self) -> Self:
        self._arrived, note = socket.socketpair()
        self._note = note
        for end in (self._arrived, note):
            end.settimeout(0)
        # Whoever handles it: while a trainer runs, that is launch().
        signal.set_wakeup_fd(note.fileno(), warn_on_full_buffer=False)
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._arrived.close()
        self._note.close()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Where a signal ends the work."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def was_signalled(self) -> bool:
        """Whether any signal has arrived so far; if not, it was an order to the run that stopped it."""
        try:
            return bool(self._arrived.recv(1))
        except BlockingIOError:
            return False

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self._inside:
            raise KeyboardInterrupt


class Pulse:
    """Tells the book how a job gets on, from a thread of its own, and passes on what the book asks for.

    Trouble with the book never ends a training: the next beat tries again.
    """

    def __init__(self, job: Job, book: Book) -> None:
        self._job = job
        self._book = book
        self._news: dict[str, object] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._signalled = False
        self._thread = threading.Thread(target=self._beat, name="pixelkit-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def runs(self) -> Path:
        """Where run directories go."""
        return self._book.runs

    def tell(self, **fields: object) -> None:
        """News for the next beat: columns of the book."""
        with self._lock:
            self._news.update(fields)

    def tell_now(self, **fields: object) -> None:
        """News that must not be lost. Only from the thread that opened the book."""
        report(self._book, self._job.id, self._job.attempt, **fields)

    def _beat(self) -> None:
        while not self._ended.is_set():
            try:
                with Book(self._book.path) as book:
                    self._watch(book)
            except PixelkitError as error:
                print(error, flush=True)

    def _watch(self, book: Book) -> None:
        told_at = time.monotonic()
        while not self._ended.wait(BEAT_EVERY):
            with self._lock:
                news, self._news = self._news, {}
            try:
                if news or time.monotonic() > told_at + IDLE_BEAT:
                    told_at = time.monotonic()
                    asked: str = report(book, self._job.id, self._job.attempt, **news)
                else:
                    asked = _read_asked(book, self._job)
            except PixelkitError:
                with self._lock:
                    self._news = {**news, **self._news}
                raise
            if asked and not self._signalled:
                self._signalled = True
                print("asked to stop" if asked != "lost" else "the job was taken back", flush=True)
                interrupt_main()


def _read_asked(book: Book, job: Job) -> str:
    rows = book.ask("SELECT asked FROM jobs WHERE id = ? AND attempt = ? AND state = 'running'", job.id, job.attempt)
    return rows[0][0] if rows else "lost"


def interrupt_main() -> None:
    """Ctrl-C to the main thread: while a trainer runs it means to save and stop, before and after to end."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


def train(job: Job, pulse: Pulse) -> str:
    """The line of `pixelkit run`, or of `pixelkit resume` where the job has a run directory. Returns the model's path."""
    from pixelkit.display import Display  # noqa: PLC0415 - the job is taken up before anything slow
    from pixelkit.pipeline import Watcher, resume_run, run_preset  # noqa: PLC0415
    from pixelkit.ready import Choices  # noqa: PLC0415
    from pixelkit.rundir import RunDir, is_run  # noqa: PLC0415

    run = RunDir(path=Path(job.run)) if job.run else None
    resumes = run is not None and is_run(run.path)
    if run and resumes:
        manifest = run.read_manifest()
        if manifest.get("state") == "done":
            _shelve(job, run)
            return str(manifest.get("model", ""))
    with Display(stream=sys.stdout) as display:
        progress = Progress(pulse)

        def show(event: Event) -> None:
            display.show(event)
            progress.show(event)

        watcher = Watcher(
            on_run=lambda begun: _note_run(pulse, begun), on_prepared=progress.show_prepared, on_event=show
        )
        if run and resumes:
            shipment = resume_run(str(run.path), Choices(), watcher)
        else:
            shipment = run_preset(job.stored, Choices(overrides=job.settings, runs=pulse.runs), watcher)
    for line in shipment.summary:
        print(line)
    _shelve(job, RunDir(path=shipment.model.parents[1]))
    print(shipment.model, flush=True)
    return str(shipment.model)


def _shelve(job: Job, run: RunDir) -> None:
    """Put the model into the registry that the job names. What goes wrong is told: the model is trained all the same."""
    if not job.registry:
        return
    from pixelkit.registry.adding import Wish, add_model  # noqa: PLC0415
    from pixelkit.registry.facts import find_shipped  # noqa: PLC0415
    from pixelkit.registry.store import open_registry  # noqa: PLC0415

    try:
        entry = add_model(open_registry(Path(job.registry)), find_shipped(run), Wish(reason=f"trained by {job}"))
        print(f"in the registry: {entry.place}", flush=True)
    except PixelkitError as error:
        print(f"warning: not in the registry: {error.message}", flush=True)


def _note_run(pulse: Pulse, run: RunDir) -> None:
    """Before anything is trained: should this process be killed, the next goes on there."""
    import json  # noqa: PLC0415

    try:
        planned = json.loads(run.plan.read_text("utf-8")).get("memory_gib")
    except (OSError, ValueError):
        planned = None
    pulse.tell_now(run=str(run.path), planned_gib=planned if isinstance(planned, int | float) else None)


class Progress:
    """A training's events as columns of the book."""

    def __init__(self, pulse: Pulse) -> None:
        from pixelkit.progress import Average, Rate  # noqa: PLC0415

        self._pulse = pulse
        self._loss = Average()
        self._rate = Rate()
        self._total = 0

    def show_prepared(self, done: int, total: int) -> None:
        """Sprites are prepared before training, and pictures of the class."""
        self._pulse.tell(phase=f"preparing {done}/{total}" if done < total else "loading")

    def show(self, event: Event) -> None:
        """Take one event in."""
        from pixelkit.progress import Bar, Begin, End, Step  # noqa: PLC0415

        match event:
            case Begin():
                self._total = event.total
                self._pulse.tell(phase="training", total=event.total)
            case Step():
                self._loss.add(event.loss)
                self._advance(event.step, self._total, self._loss.value)
            case Bar() if event.name == "steps":
                self._advance(event.step, event.total, event.loss)
            case End():
                self._pulse.tell(phase="shipping", expected=None)
            case _:
                pass

    def _advance(self, step: int, total: int, loss: float | None) -> None:
        self._rate.see(step, time.monotonic())
        left = self._rate.seconds_left(total)
        expected = None if left is None else time.time() + left
        self._pulse.tell(phase="training", step=step, total=total, loss=loss, expected=expected)


def main() -> None:
    """Started by a runner."""
    book, number, attempt = sys.argv[1:]
    sys.exit(carry_out(Path(book), int(number), int(attempt), train))


if __name__ == "__main__":
    main()
