"""A training that counts, on a node: python fake_ray_job.py JOURNAL FD, started by the queue's worker there.

It counts to what the job's override says, ten a second, and saves how far it is: the next attempt goes on there. Each begin,
count and end goes to the journal.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.queue.node import run_errand

if TYPE_CHECKING:
    from pixelkit.queue.job import Job, Pulse


def note(journal: Path, *words: object) -> None:
    with journal.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(" ".join(map(str, words)) + "\n")
        stream.flush()


def count(journal: Path, job: Job, pulse: Pulse) -> str:
    total = int(job.settings[0].partition("=")[2])
    state = pulse.runs / f"{job.id}.state"
    done = int(state.read_text()) if state.exists() else 0
    note(journal, "begin", job.id, job.attempt, os.getpid())
    print(f"counting from {done}", flush=True)
    try:
        for step in range(done + 1, total + 1):
            time.sleep(0.1)
            state.with_suffix(".new").write_text(str(step))
            state.with_suffix(".new").replace(state)
            note(journal, "count", job.id, step)
            pulse.tell(phase="training", step=step, total=total, loss=1 / step)
    finally:
        note(journal, "end", job.id, job.attempt, os.getpid())
    return f"/models/{job.id}"


if __name__ == "__main__":
    run_errand(lambda job, pulse: count(Path(sys.argv[1]), job, pulse), sys.argv[2:])
