"""A queue whose jobs sleep: python fake_queue.py run BOOK WORKERS JOURNAL | job JOURNAL BOOK ID ATTEMPT

The runner, the book and a job's process are the real ones; only the training is replaced, by a child process, in a
session of its own, that sleeps. A job named ...-fails ends as a training that failed; what its overrides say is how long
it sleeps. Each begin and end goes to the journal, written under a lock by the process at work.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pixelkit.errors import TrainingError
from pixelkit.queue.book import Book, Job
from pixelkit.queue.job import Pulse, carry_out
from pixelkit.queue.life import MARK


def note(journal: Path, *words: object) -> None:
    with journal.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(" ".join(map(str, (f"{time.time():.4f}", *words))) + "\n")
        stream.flush()


def is_at_work_elsewhere(book: Path, job: Job) -> bool:
    """Whether a process of another attempt at the same job is alive."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ().get(MARK, "")
            if mark.startswith(f"{book}:{job.id}:") and mark != f"{book}:{job.id}:{job.attempt}":
                return process.status() != psutil.STATUS_ZOMBIE
    return False


def sleep(journal: Path, job: Job, pulse: Pulse) -> str:
    seconds = job.settings[0].partition("=")[2]
    child = subprocess.Popen(["sleep", seconds], start_new_session=True)
    what = "begin-twice" if is_at_work_elsewhere(Path(os.environ[MARK].split(":")[0]), job) else "begin"
    note(journal, what, job.id, job.attempt, os.getpid(), child.pid)
    pulse.tell(phase="training", step=1, total=2)
    try:
        child.wait()
    finally:
        child.kill()
        child.wait()
        note(journal, "end", job.id, job.attempt, os.getpid(), child.pid)
    if job.name.endswith("-fails"):
        raise TrainingError("on purpose", kind="test")
    return "/model"


def main() -> None:
    kind, *rest = sys.argv[1:]
    if kind == "job":
        journal, book, number, attempt = rest
        sys.exit(
            carry_out(
                Path(book), int(number), int(attempt), lambda *given: sleep(Path(journal), *given), retry_after=0.2
            )
        )
    run(*rest)


def run(path: str, workers: str, journal: str) -> None:
    from pixelkit.queue.devices import Device
    from pixelkit.queue.runner import Pace, Runner

    device = Device(name="cpu", slots=int(workers), free_gib=8, total_gib=8, is_gpu=False)
    with Book(Path(path)) as book:
        Runner(
            book,
            devices=lambda: (device,),
            drain=True,
            say=lambda text: print(text, flush=True),
            job_command=(sys.executable, __file__, "job", journal),
            pace=Pace(tick=0.05, look=0.3, beat=1.0, left=0.5),
        ).run()


if __name__ == "__main__":
    main()
