"""A job's attempts: claimed by a runner, taken up by a process, reported on, settled. Each function is one transaction.

waiting -> running (claim) -> done | failed | cancelled | paused | waiting (settle). Every start has a number, and a
process shows that of its own: once the job was taken from it, nothing that it says counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pixelkit.queue.book import COLUMNS, Asked, Book, Job, cancel_after, enter, make_job, read_job, write_log

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

NEVER_AGAIN: Final = frozenset({3, 4, 5, 6})
"""Exit codes of a bad preset, data, engine or rendering: another try would end the same way."""
MOST_DEATHS: Final = 5
"""A job whose process is killed so often in a row without getting further has failed."""
RETRY_AFTER: Final = 30.0
LATEST_RETRY: Final = 600.0
"""Seconds before a failed training is tried again: doubled each time, up to the latter."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a running job takes: its devices, and of each so much memory, if known."""

    devices: tuple[str, ...]
    runner: str
    memory_gib: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended.

    "stopped": as asked, to be gone on with; "held": by somebody, to be gone on with when they say so; "died": its process
    was killed, or its machine was.
    """

    kind: Literal["done", "failed", "stopped", "held", "died"]
    exit_code: int | None = None
    reason: str = ""
    model: str = ""
    retry_after: float = RETRY_AFTER
    counts: bool = True
    """Whether a death is held against the job: not where the whole machine went down."""


def claim(
    book: Book, runner: str, choose: Callable[[Job, Sequence[Taken]], tuple[str, ...] | None], *, who: str = ""
) -> Job | None:
    """Take the next job: by priority, then age. `choose` says on which devices it can run now.

    None passes a job over for now; no devices means to wait for this one, and nothing is taken.
    """
    with book.change() as db:
        if db.execute("SELECT is_on FROM switches WHERE name = 'paused'").fetchone()[0]:
            return None
        taken = [
            Taken(devices=tuple(devices.split(",")), runner=owner, memory_gib=memory)
            for devices, owner, memory in db.execute(
                "SELECT devices, runner, coalesce(memory_gib, planned_gib) FROM jobs WHERE state = 'running'"
            )
        ]
        waiting = db.execute(
            f"SELECT {COLUMNS} FROM jobs WHERE state = 'waiting' AND not_before <= ? AND NOT EXISTS"  # noqa: S608
            " (SELECT 1 FROM needs JOIN jobs AS needed ON needed.id = needs.needed"
            "  WHERE needs.job = jobs.id AND needed.state != 'done')"
            " ORDER BY priority DESC, id",
            (time.time(),),
        )
        for row in waiting:
            job = make_job(row)
            devices = choose(job, taken)
            if devices == ():
                return None
            if devices:
                db.execute(
                    "UPDATE jobs SET state = 'running', attempt = attempt + 1, runner = ?, devices = ?, process = '',"
                    " asked = '', phase = 'starting', reason = '', exit_code = NULL, began = coalesce(began, ?),"
                    " ended = NULL, beat = ?, told = 0 WHERE id = ?",
                    (runner, ",".join(devices), time.time(), time.time(), job.id),
                )
                write_log(db, job.id, f"attempt {job.attempt + 1} on {', '.join(devices)}{f' by {who}' if who else ''}")
                return read_job(db, job.id)
    return None


def begin(book: Book, number: int, attempt: int, process: str) -> Job | None:
    """A process takes up the attempt that it was started for. None: the job was taken back meanwhile, and it must end."""
    with book.change() as db:
        changed = db.execute(
            "UPDATE jobs SET process = ?, beat = ? WHERE id = ? AND attempt = ? AND state = 'running' AND process = ''",
            (process, time.time(), number, attempt),
        ).rowcount
        if changed:
            write_log(db, number, f"process {process.split('|')[3]} is at work")
        return read_job(db, number) if changed else None


def report(book: Book, number: int, attempt: int, **fields: object) -> Asked | Literal["", "lost"]:
    """A sign of life, with what is new. Says what the job is asked to do, or that it was taken from this process."""
    names = "".join(f", {name} = ?" for name in fields)
    with book.change() as db:
        row = db.execute(
            f"UPDATE jobs SET beat = ?{names} WHERE id = ? AND attempt = ? AND state = 'running' RETURNING asked",  # noqa: S608
            (time.time(), *fields.values(), number, attempt),
        ).fetchone()
    asked: Asked | Literal[""] = row[0] if row else ""
    return asked if row else "lost"


def settle(book: Book, number: int, attempt: int, process: str, outcome: Outcome) -> Job | None:
    """An attempt has ended: `process` (none: "") that had taken it up. None where it is another's now, or was settled."""
    with book.change() as db:
        job = read_job(db, number)
        if job is None or job.state != "running" or (job.attempt, job.process) != (attempt, process):
            return None
        _settle(db, job, outcome)
        return read_job(db, number)


def _settle(db: sqlite3.Connection, job: Job, outcome: Outcome) -> None:
    deaths, furthest = _count_death(job) if outcome.kind == "died" and outcome.counts and not job.asked else (0, 0)
    failed = outcome.kind == "failed" or deaths >= MOST_DEATHS
    reason = outcome.reason
    if deaths >= MOST_DEATHS:
        reason = f"its process was killed {deaths} times without getting further; is there enough memory?"
    if outcome.kind == "done":
        enter(db, job, "done", reason="", exit_code=0, model=outcome.model)
        # The trainer may have gone on to its end after a runner was killed above it.
        db.execute("UPDATE jobs SET step = total WHERE id = ?", (job.id,))
    elif job.asked == "cancel":
        enter(db, job, "cancelled", reason=reason or "cancelled", exit_code=outcome.exit_code)
        cancel_after(db, job, "was cancelled")
    elif not failed and (job.asked == "pause" or (outcome.kind == "held" and not job.asked)):
        enter(db, job, "paused", reason=reason or "paused")
    elif not failed:
        enter(db, job, "waiting", reason=reason or "stopped; goes on where it was")
        db.execute("UPDATE jobs SET deaths = ?, furthest = ? WHERE id = ?", (deaths, furthest, job.id))
    elif outcome.kind == "failed" and outcome.exit_code not in NEVER_AGAIN and job.retries > 0:
        # The delay grows with the attempts, most of which are tries of this kind.
        delay = min(LATEST_RETRY, outcome.retry_after * 2 ** min(job.attempt - 1, 10))
        enter(db, job, "waiting", reason=f"tried again after: {reason}", exit_code=outcome.exit_code)
        db.execute("UPDATE jobs SET retries = retries - 1, not_before = ? WHERE id = ?", (time.time() + delay, job.id))
    else:
        enter(db, job, "failed", reason=reason, exit_code=outcome.exit_code or 1)
        cancel_after(db, job, "failed")


def _count_death(job: Job) -> tuple[int, int]:
    return (1, job.step) if job.step > job.furthest else (job.deaths + 1, job.furthest)


def adopt(book: Book, number: int, *, runner: str, heir: str) -> bool:
    """Watch over a job whose runner is dead while its process lives on. False where another was faster."""
    with book.change() as db:
        changed = db.execute(
            "UPDATE jobs SET runner = ? WHERE id = ? AND runner = ? AND state = 'running'", (heir, number, runner)
        ).rowcount
        if changed:
            write_log(db, number, "its runner is gone; another watches over it")
        return bool(changed)


def ask_all(book: Book, runner: str, word: Asked) -> None:
    """Ask all jobs of one runner."""
    with book.change() as db:
        db.execute("UPDATE jobs SET asked = ? WHERE runner = ? AND state = 'running' AND asked = ''", (word, runner))


def take_untold(book: Book) -> list[Job]:
    """Jobs that have ended and of which nobody has told yet; each is given out once."""
    if not book.ask("SELECT 1 FROM jobs WHERE told = 0 AND state IN ('done', 'failed', 'cancelled') LIMIT 1"):
        return []
    with book.change() as db:
        ended = (
            f"UPDATE jobs SET told = 1 WHERE told = 0 AND state IN ('done', 'failed', 'cancelled') RETURNING {COLUMNS}"  # noqa: S608
        )
        rows = db.execute(ended).fetchall()
    return sorted((make_job(row) for row in rows), key=lambda job: job.id)
