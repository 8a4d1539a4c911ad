"""What runs on a node of a cluster: `Worker`, an actor, starts `python -m pixelkit.queue.node`, which trains one job.

The process tells what is new as lines of JSON on a pipe; what it prints is kept for who asks. It saves and stops as soon as
the actor is gone: its standard input ends. The job's lock, on the shared folder, sees to it that the next attempt, wherever it
is, waits for that.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from pixelkit import __version__
from pixelkit.errors import EngineError, Interrupted, PixelkitError, StorageError
from pixelkit.locks import try_lock
from pixelkit.queue.book import Job
from pixelkit.queue.job import Interruptible, Pulse, interrupt_main, train
from pixelkit.queue.life import MARK, find_marked, kill_marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TRAIN: Final = ("-m", "pixelkit.queue.node")
LOCK_PATIENCE: Final = 300.0
"""Seconds to wait for an earlier attempt to end; a node without power keeps its locks until they run out."""
LEFT: Final = 45.0
"""Seconds for what a killed process leaves running, to save and end."""


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One attempt at a job. Every node must see `runs`, and in it `marker`, which says `token`.

    `mark`: of what runs on the node, and of nothing else: the node may be the machine of the queue itself. `threads`:
    OMP_NUM_THREADS, or nothing.
    """

    job: Job
    runs: Path
    marker: Path
    token: str
    mark: str
    version: str = __version__
    arguments: tuple[str, ...] = TRAIN
    threads: str = ""

    @property
    def lock(self) -> Path:
        """Held by the process that trains, wherever it is."""
        return self.marker.parent / "locks" / str(self.job.id)

    def check(self) -> None:
        """Raises EngineError for another pixelkit, StorageError where this node does not see the runs folder."""
        if self.version != __version__:
            raise EngineError(
                f"node {platform.node()} has pixelkit {__version__}, not {self.version}",
                hint="install the same everywhere",
            )
        try:
            seen = self.marker.read_text("ascii")
        except OSError:
            seen = ""
        if seen != self.token:
            raise StorageError(
                f"node {platform.node()} does not see {self.runs}",
                hint="the runs folder must lie where every node mounts it, at the same path",
            )


@dataclass(frozen=True, kw_only=True)
class Look:
    """`news`: the latest of all columns of the book; `text`: printed since the place that was asked for; `end`: how it ended."""

    news: Mapping[str, Any]
    text: bytes
    end: Mapping[str, Any] | None


class Worker:
    """The actor. Each of its methods returns at once. What it raises, it returns: errors must arrive as they are."""

    def __init__(self) -> None:
        self._news: dict[str, Any] = {}
        self._text = bytearray()
        self._dropped = 0
        self._end: dict[str, Any] | None = None

    def start(self, errand: Errand) -> str | PixelkitError:
        """Begin. Returns the node's name."""
        try:
            errand.check()
        except PixelkitError as error:
            return error
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb"):
            self._process = subprocess.Popen(
                [sys.executable, *errand.arguments, str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env=_environment(errand),
                cwd=errand.runs,
                start_new_session=True,
            )
        errand_text = json.dumps({"job": asdict(errand.job), "runs": str(errand.runs), "lock": str(errand.lock)})
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(errand_text.encode() + b"\n")
        self._process.stdin.flush()
        threading.Thread(target=self._read_text, args=(self._process.stdout,), daemon=True).start()
        threading.Thread(target=self._read_news, args=(os.fdopen(reading), errand.mark), daemon=True).start()
        return platform.node()

    def look(self, place: int) -> Look:
        """How it gets on; `place` bytes of what it printed have arrived."""
        ended = self._end
        del self._text[: max(0, place - self._dropped)]
        self._dropped = max(self._dropped, place)
        return Look(news=dict(self._news), text=bytes(self._text), end=ended)

    def stop(self) -> None:
        """Ask to save and stop."""
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGINT)

    def _read_text(self, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 1 << 16):
            self._text += chunk

    def _read_news(self, stream: IO[str], mark: str) -> None:
        end = None
        for line in stream:
            told = json.loads(line)
            end = told.pop("end", end)
            self._news = {**self._news, **told}
        code = self._process.wait()
        patience = time.monotonic() + LEFT
        while find_marked(mark) and time.monotonic() < patience:
            time.sleep(0.2)
        kill_marked(mark)
        self._end = end or {"kind": "died", "exit_code": code}


def _environment(errand: Errand) -> dict[str, str]:
    """Ray's, without the number of threads that it sets to the number of processors that were asked for."""
    environment = {**os.environ, MARK: errand.mark, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment.pop("OMP_NUM_THREADS", None)
    return environment | ({"OMP_NUM_THREADS": errand.threads} if errand.threads else {})


class Wire(Pulse):
    """Tells the actor what others tell the book."""

    def __init__(self, runs: Path, target: int) -> None:
        self._runs = runs
        self._target = target

    @property
    def runs(self) -> Path:
        """Where run directories go."""
        return self._runs

    def tell(self, **fields: object) -> None:
        """One line of news."""
        with contextlib.suppress(OSError):  # the actor is gone; this process is about to be asked to stop
            os.write(self._target, json.dumps(fields).encode() + b"\n")

    tell_now = tell


def run_errand(work: Callable[[Job, Pulse], str], arguments: Sequence[str]) -> None:
    """Read an errand from standard input, do `work`, tell how it ended."""
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, signal.valid_signals()
    )  # Ray's workers block Ctrl-C, and so would a trainer
    told = json.loads(_read_line(0))
    job = Job(**told["job"])
    with Interruptible() as interruptible:
        threading.Thread(target=_stop_with, args=(0,), daemon=True).start()
        wire = Wire(Path(told["runs"]), int(arguments[0]))
        end: dict[str, Any]
        try:
            with interruptible.inside(), _hold(Path(told["lock"]), wire):
                end = {"kind": "done", "model": work(job, wire)}
        except (Interrupted, KeyboardInterrupt):
            end = {"kind": "stopped"}
        except PixelkitError as error:
            end = {"kind": "failed", "exit_code": error.exit_code, "reason": error.message, "hint": error.hint}
        except Exception as error:  # whatever it is, the book shall say that the job failed
            traceback.print_exc()
            end = {"kind": "failed", "exit_code": 1, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
        sys.stdout.flush()
        wire.tell(end=end)


def _read_line(source: int) -> bytes:
    """Unbuffered: a thread that waited for a buffer would break the interpreter's end."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(source, 1 << 16)
        if not chunk:
            raise SystemExit("no errand came")
        line += chunk
    return line


def _stop_with(source: int) -> None:
    """When the actor is gone, nobody is told any more: save and stop."""
    while os.read(source, 1 << 16):
        pass
    interrupt_main()


@contextmanager
def _hold(path: Path, wire: Wire) -> Iterator[None]:
    """Own the job. Raises StorageError where an earlier attempt does not end. Where the file system knows no locks: at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + LOCK_PATIENCE
    with path.open("ab") as stream:
        while not try_lock(stream, optional=True):
            if time.monotonic() > end:
                raise StorageError("an earlier attempt at this job is still at work", hint="look for it")
            wire.tell(phase="waiting for the earlier attempt to end")
            time.sleep(0.5)
        yield


def main() -> None:
    """Started by `Worker`."""
    run_errand(train, sys.argv[1:])


if __name__ == "__main__":
    main()
