"""`pixelkit queue run`: takes jobs from the book, starts a process for each, and sees that none is lost.

A runner knows nothing that the book does not: killed at any moment, the next one, or one beside it, finds each job whose
process lives and watches over it, and takes back each whose process is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pixelkit.errors import Interrupted, PixelkitError, StorageError
from pixelkit.queue.attempts import Outcome, Taken, adopt, ask_all, claim, settle, take_untold
from pixelkit.queue.changes import switch
from pixelkit.queue.devices import Device, choose_devices, list_devices, make_environment
from pixelkit.queue.life import MARK, Life, find_marked, kill_marked, mark_of, own_life
from pixelkit.queue.telling import Teller
from pixelkit.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pixelkit.queue.book import Book, Job

JOB_COMMAND: Final = (sys.executable, "-m", "pixelkit.queue.job")
SAME_REQUEST: Final = 0.5
"""Signals this close together are one request."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds. `left`: for what a killed job's process leaves running, to save and end, before it is killed."""

    tick: float = 0.2
    look: float = 2.0
    beat: float = 5.0
    left: float = 45.0


@dataclass(kw_only=True)
class _Ending:
    """A job whose process is gone without a word, while something of it may still run."""

    job: Job
    outcome: Outcome
    kill_at: float
    look_at: float = 0.0


class Runner:
    """One `queue run`. `say` gets a line for people, now and then. `job_command` is what starts a job's process.

    `devices`, asked before each claim, says what there is and how much memory is free.
    """

    def __init__(
        self,
        book: Book,
        *,
        devices: Callable[[], Sequence[Device]] = lambda: list_devices(None),
        drain: bool = False,
        say: Callable[[str], None] = lambda _text: None,
        job_command: Sequence[str] = JOB_COMMAND,
        pace: Pace = Pace(),
    ) -> None:
        self._book = book
        self._list_devices = devices
        self._drain = drain
        self._say = say
        self._command = tuple(job_command)
        self._pace = pace
        self._life = str(own_life())
        self._children: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._endings: dict[int, _Ending] = {}
        self._requests = 0
        self._requested_at = 0.0
        self._teller = Teller(say)
        self._next_claim = self._next_look = self._next_beat = self._next_count = 0.0
        self._asked_to_stop = self._killed = False

    def run(self) -> None:
        """Until the queue is drained, if that was asked for. Raises Interrupted after Ctrl-C or SIGTERM, once all is saved."""
        devices = self._list_devices()
        names = ", ".join(f"{device.name} x{device.slots}" if device.slots > 1 else device.name for device in devices)
        with self._book.change() as db:
            db.execute(
                "INSERT OR REPLACE INTO runners VALUES (?, ?, ?, ?)", (self._life, names, time.time(), time.time())
            )
        self._say(f"working on {names}; jobs are in {self._book.path}")
        try:
            with self._signals():
                self._work(devices)
        finally:
            with contextlib.suppress(PixelkitError), self._book.change() as db:
                db.execute("DELETE FROM runners WHERE id = ?", (self._life,))
            self._teller.close()

    def _work(self, devices: Sequence[Device]) -> None:
        troubled = False
        while True:
            try:
                if self._do_round(devices):
                    return
                troubled = False
            except StorageError as error:  # a full disk, a lock held too long: the jobs train on, and so does this
                if not troubled:
                    self._say(f"{error.message}; trying on")
                troubled = True
                time.sleep(self._pace.beat)
            time.sleep(self._pace.tick)

    def _do_round(self, devices: Sequence[Device]) -> bool:
        """Look at everything once, and begin what can begin. True when the queue is drained, if that was asked for."""
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + self._pace.beat
            self._beat()
        self._reap()
        if now >= self._next_look:
            self._next_look = now + self._pace.look
            self._look_after_all()
        self._bury(now)
        self._teller.tell(take_untold(self._book))
        if self._requests:
            self._stop()
            return False
        while self._take(devices):
            self._next_count = 0.0
        if not self._drain or self._children or now < self._next_count:
            return False
        self._next_count = now + 1.0
        return self._is_drained(devices)

    def _stop(self) -> None:
        """As asked by a signal: have running jobs save and stop; by a second one: kill them."""
        if not self._asked_to_stop:
            self._say("running jobs save and stop, and will go on next time; once more kills them")
            ask_all(self._book, self._life, "stop")
            self._asked_to_stop = True
        if self._requests > 1 and not self._killed:
            self._kill_all()
            self._killed = True
        if not self._own_jobs():
            raise Interrupted("stopped; `pixelkit queue run` goes on")

    def _take(self, devices: Sequence[Device]) -> bool:
        """Claim one job and start its process."""
        if time.monotonic() < self._next_claim:
            return False
        if not self._book.ask("SELECT 1 FROM jobs WHERE state = 'waiting' AND not_before <= ? LIMIT 1", time.time()):
            return False
        if len(self._own_jobs()) >= sum(device.slots for device in devices):
            return False
        now_free = self._list_devices()

        def choose(job: Job, taken: Sequence[Taken]) -> tuple[str, ...] | None:
            return choose_devices(job, taken, now_free, self._life)

        job = claim(self._book, self._life, choose, who=f"runner {os.getpid()}") if now_free else None
        if job is None:
            self._next_claim = time.monotonic() + 1.0
            return False
        self._start(job, [device for device in now_free if device.name in job.devices.split(",")])
        return True

    def _start(self, job: Job, devices: Sequence[Device]) -> None:
        log = self._book.log_of(job.id)
        argv = [*self._command, str(self._book.path), str(job.id), str(job.attempt)]
        environment = {**os.environ, **make_environment(devices), MARK: mark_of(self._book.path, job.id, job.attempt)}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    argv,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
        except OSError as error:
            reason = f"its process could not be started: {error.filename or argv[0]}: {error.strerror}"
            settle(self._book, job.id, job.attempt, "", Outcome(kind="failed", exit_code=1, reason=reason))
            return
        self._children[job.id] = (job.attempt, process)
        self._say(f"{job} begins on {job.devices}" if job.attempt == 1 else f"{job} goes on, on {job.devices}")

    def _reap(self) -> None:
        """Take note of processes of ours that have ended."""
        for number, (attempt, process) in list(self._children.items()):
            code = process.poll()
            if code is None:
                continue
            del self._children[number]
            self._next_claim = 0.0
            job = self._book.job(number)
            if job and job.state == "running" and job.attempt == attempt:
                self._note_end(job, _judge(code))

    def _note_end(self, job: Job, outcome: Outcome) -> None:
        if job.id not in self._endings:
            kill_at = time.monotonic() + self._pace.left
            self._endings[job.id] = _Ending(job=job, outcome=outcome, kill_at=kill_at)

    def _bury(self, now: float) -> None:
        """Settle jobs that ended without a word, as soon as nothing of them runs any more: a trainer may still be saving."""
        for number, ending in list(self._endings.items()):
            if now < ending.look_at:
                continue
            ending.look_at = now + min(1.0, self._pace.look)
            job = ending.job
            current = self._book.job(number)
            if current is None or (current.attempt, current.process) != (job.attempt, job.process):
                del self._endings[number]  # another was faster, or its process was only late
                continue
            mark = mark_of(self._book.path, number, job.attempt)
            if find_marked(mark):
                if now < ending.kill_at:
                    continue
                kill_marked(mark)
            del self._endings[number]
            settle(self._book, number, job.attempt, job.process, _read_end(current) or ending.outcome)
            self._next_claim = 0.0

    def _look_after_all(self) -> None:
        """Jobs in the book as running that are no child of ours: those of dead runners are watched over, or taken back."""
        now = time.time()
        for job in self._book.jobs("state = 'running' ORDER BY id"):
            if job.id in self._children or job.id in self._endings:
                continue
            if self._requests and job.runner != self._life:
                continue
            if job.runner != self._life and Life.read(job.runner).is_alive(self._runner_seen(job.runner), now):
                continue
            process = Life.read(job.process) if job.process else None
            if process and process.is_alive(job.beat, now):
                if job.runner != self._life and adopt(self._book, job.id, runner=job.runner, heir=self._life):
                    self._say(f"{job} goes on; its runner is gone, this one watches over it")
                continue
            rebooted = process is not None and not process.is_near
            self._note_end(job, Outcome(kind="died", counts=process is not None and not rebooted, reason=_LOST))
        with self._book.change() as db:
            for life, beat in db.execute("SELECT id, beat FROM runners").fetchall():
                if not Life.read(life).is_alive(beat, now):
                    db.execute("DELETE FROM runners WHERE id = ?", (life,))

    def _runner_seen(self, runner: str) -> float:
        rows = self._book.ask("SELECT beat FROM runners WHERE id = ?", runner)
        return float(rows[0][0]) if rows else 0.0

    def _beat(self) -> None:
        with self._book.change() as db:
            db.execute("UPDATE runners SET beat = ? WHERE id = ?", (time.time(), self._life))

    def _own_jobs(self) -> list[int]:
        return [number for (number,) in self._book.ask(_OWN, self._life)]

    def _kill_all(self) -> None:
        self._say("killing running jobs")
        for job in self._book.jobs("state = 'running' AND runner = ?", self._life):
            kill_marked(mark_of(self._book.path, job.id, job.attempt))

    def _is_drained(self, devices: Sequence[Device]) -> bool:
        most = max(device.total_gib for device in devices)
        if self._book.count_left(most_gpus=len(devices), most_memory_gib=most):
            return False
        self._teller.tell(take_untold(self._book))
        counts = self._book.counts()
        if not switch(self._book, "drained", on=True):
            return True
        self._teller.tell_drained(counts, str(self._book.runs))
        return True

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGHUP ask to stop; what this process ignores (nohup) stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [
            getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
        ]
        before = {number: signal.getsignal(number) for number in numbers}
        changed = [number for number, handler in before.items() if handler not in {signal.SIG_IGN, None}]
        try:
            for number in changed:
                signal.signal(number, self._receive)
            yield
        finally:
            for number in changed:
                signal.signal(number, before[number])

    def _receive(self, _number: int, _frame: object) -> None:
        if time.monotonic() > self._requested_at + SAME_REQUEST:
            self._requests += 1
        self._requested_at = time.monotonic()


def kill_now(book: Book, job: Job) -> Job:
    """Kill what runs of a job that is asked to end, and settle it, whether a runner watches it or not."""
    kill_marked(mark_of(book.path, job.id, job.attempt))
    current = book.job(job.id) or job
    settle(book, job.id, job.attempt, current.process, Outcome(kind="died", reason="killed"))
    return book.job(job.id) or job


_OWN: Final = "SELECT id FROM jobs WHERE state = 'running' AND runner = ?"
_LOST: Final = "its process was killed; goes on from the last saved state"


def _judge(code: int) -> Outcome:
    """What a process's exit code says that settled nothing itself."""
    if code < 0:
        return Outcome(kind="died", reason=_LOST)
    if code == Interrupted.exit_code:
        return Outcome(kind="stopped")
    reason = f"its process ended with code {code} without a word; its log may tell more"
    return Outcome(kind="failed", exit_code=code or 1, reason=reason)


def _read_end(job: Job) -> Outcome | None:
    """A run that is done, whatever happened to the process after that."""
    if not job.run:
        return None
    try:
        manifest = RunDir(path=Path(job.run)).read_manifest()
    except PixelkitError:
        return None
    return Outcome(kind="done", model=str(manifest.get("model", ""))) if manifest.get("state") == "done" else None
