"""What people want of the queue: jobs added, cancelled, paused, tried again, cleared. Each function is one transaction."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pixelkit.errors import PresetError
from pixelkit.queue.book import ENDED, Book, Job, cancel_after, enter, read_job, write_log

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence


COPY_KEPT: Final = 3600.0
"""Seconds for which a copy of a preset is kept, in any case."""


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be added. `after`: ids of jobs that must be done first."""

    name: str
    preset: str
    stored: str
    overrides: tuple[str, ...] = ()
    priority: int = 0
    gpus: int = 1
    memory_gib: float | None = None
    retries: int = 0
    registry: str = ""
    after: tuple[int, ...] = ()


def add(book: Book, jobs: Sequence[NewJob]) -> list[Job]:
    """Write jobs into the book, all or none. A name that is taken gets a number.

    Raises PresetError where a job to come after has failed or was cancelled.
    """
    with book.change() as db:
        taken = {name for (name,) in db.execute("SELECT name FROM jobs")}
        for needed in {needed for job in jobs for needed in job.after}:
            before = read_job(db, needed)
            if before and before.state in {"failed", "cancelled"}:
                raise PresetError(f"{before} is {before.state}", hint=f"`pixelkit queue retry {before.id}` first")
        ids = []
        for job in jobs:
            name = _free_name(job.name, taken)
            taken.add(name)
            cursor = db.execute(
                "INSERT INTO jobs (name, created, preset, stored, overrides, priority, gpus, memory_gib, retries, registry)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    time.time(),
                    job.preset,
                    job.stored,
                    json.dumps(job.overrides),
                    job.priority,
                    job.gpus,
                    job.memory_gib,
                    job.retries,
                    job.registry,
                ),
            )
            assert cursor.lastrowid
            ids.append(cursor.lastrowid)
            db.executemany("INSERT OR IGNORE INTO needs VALUES (?, ?)", [(ids[-1], needed) for needed in job.after])
            write_log(db, ids[-1], f"added: {job.preset}")
        db.execute("UPDATE switches SET is_on = 0 WHERE name = 'drained'")
    return book.jobs("id BETWEEN ? AND ? ORDER BY id", ids[0], ids[-1]) if ids else []


def cancel(book: Book, jobs: Iterable[Job]) -> list[Job]:
    """Waiting and paused jobs are cancelled at once; those that run are asked to save and stop. Others are left alone."""
    return _for_each(book, jobs, _cancel)


def _cancel(db: sqlite3.Connection, job: Job) -> None:
    if job.state == "running":
        db.execute("UPDATE jobs SET asked = 'cancel' WHERE id = ?", (job.id,))
        write_log(db, job.id, "asked to save and stop for good")
    elif job.state in {"waiting", "paused"}:
        enter(db, job, "cancelled", reason="cancelled")
        cancel_after(db, job, "was cancelled")


def pause(book: Book, jobs: Iterable[Job]) -> list[Job]:
    """Jobs that wait are passed over from now on; those that run are asked to save and stop."""
    return _for_each(book, jobs, _pause)


def _pause(db: sqlite3.Connection, job: Job) -> None:
    if job.state == "running":
        db.execute("UPDATE jobs SET asked = 'pause' WHERE id = ? AND asked != 'cancel'", (job.id,))
        write_log(db, job.id, "asked to save and pause")
    elif job.state == "waiting":
        enter(db, job, "paused", reason="paused")


def resume(book: Book, jobs: Iterable[Job]) -> list[Job]:
    """Paused jobs wait for their turn again."""
    return _for_each(book, jobs, _resume)


def _resume(db: sqlite3.Connection, job: Job) -> None:
    if job.state == "paused":
        _wait_again(db, job, "resumed")
    elif job.state == "running" and job.asked == "pause":
        db.execute("UPDATE jobs SET asked = 'stop' WHERE id = ?", (job.id,))  # it is on its way out, and back
        write_log(db, job.id, "to be resumed as soon as it has stopped")


def retry(book: Book, jobs: Iterable[Job], *, fresh: bool = False) -> list[Job]:
    """Ended jobs wait again, to go on in their run directory, or anew; and with them what was cancelled because of them.

    Raises PresetError for a job that has not ended, or that comes after one that will not be done.
    """
    chosen = list(jobs)
    numbers = {job.id for job in chosen}

    def wait(db: sqlite3.Connection, job: Job) -> None:
        revived = job.state == "waiting" and next(one for one in chosen if one.id == job.id).blocked_by in numbers
        if not revived:
            _retry(db, job, numbers, fresh=fresh)

    return _for_each(book, chosen, wait)


def _retry(db: sqlite3.Connection, job: Job, chosen: set[int], *, fresh: bool) -> None:
    if job.state not in ENDED:
        raise PresetError(f"{job} is {job.state}", hint="only a job that has ended can be tried again")
    if job.state == "done" and not fresh:
        raise PresetError(f"{job} is done: {job.model}", hint="--fresh trains it anew")
    for (needed,) in db.execute("SELECT needed FROM needs WHERE job = ?", (job.id,)).fetchall():
        before = read_job(db, needed)
        if before and before.id not in chosen and before.state in {"failed", "cancelled"}:
            raise PresetError(f"{job} comes after {before}, which is {before.state}", hint=f"retry {before.id}")
    if fresh:
        db.execute("UPDATE jobs SET run = '', step = 0, total = 0, loss = NULL, model = '' WHERE id = ?", (job.id,))
    _wait_again(db, job, "to be tried anew" if fresh else "to be tried again")
    for (number,) in db.execute(
        "SELECT id FROM jobs WHERE blocked_by = ? AND state = 'cancelled'", (job.id,)
    ).fetchall():
        dependent = read_job(db, number)
        assert dependent
        _retry(db, dependent, {*chosen, job.id}, fresh=False)


def _wait_again(db: sqlite3.Connection, job: Job, what: str) -> None:
    db.execute(
        "UPDATE jobs SET state = 'waiting', reason = '', exit_code = NULL, ended = NULL, not_before = 0, deaths = 0,"
        " furthest = 0, blocked_by = NULL, told = 0 WHERE id = ?",
        (job.id,),
    )
    db.execute("UPDATE switches SET is_on = 0 WHERE name = 'drained'")
    write_log(db, job.id, what)


def clear(book: Book, states: Sequence[str]) -> int:
    """Remove ended jobs from the book, with their logs and the copies of presets that nothing needs now.

    Run directories are not touched. A job that another one waits for stays.
    """
    marks = ", ".join("?" * len(states))
    with book.change() as db:
        gone = db.execute(
            f"DELETE FROM jobs WHERE state IN ({marks}) AND state IN ('done', 'failed', 'cancelled') AND id NOT IN"  # noqa: S608
            " (SELECT needed FROM needs JOIN jobs AS later ON later.id = needs.job"
            "  WHERE later.state IN ('waiting', 'running', 'paused')) RETURNING id, stored",
            tuple(states),
        ).fetchall()
        db.execute("DELETE FROM needs WHERE job NOT IN (SELECT id FROM jobs)")
        if gone:
            write_log(db, None, f"{len(gone)} jobs cleared: {', '.join(states)}")
        needed = {stored for (stored,) in db.execute("SELECT DISTINCT stored FROM jobs")}
    for number, _ in gone:
        book.log_of(number).unlink(missing_ok=True)
    for stored in {Path(stored) for _, stored in gone if stored not in needed}:
        with suppress(OSError):  # one that was just looked at may be about to be added again
            if time.time() - stored.stat().st_mtime > COPY_KEPT:
                stored.unlink()
                stored.parent.rmdir()
    return len(gone)


def switch(book: Book, name: Literal["paused", "drained"], *, on: bool) -> bool:
    """Set a switch of the whole queue. False where it stood so already: of many at once, one gets True."""
    with book.change() as db:
        changed = db.execute("UPDATE switches SET is_on = ? WHERE name = ? AND is_on != ?", (on, name, on)).rowcount
        if changed and name == "paused":
            write_log(db, None, "the queue is paused" if on else "the queue goes on")
    return bool(changed)


def _for_each(book: Book, jobs: Iterable[Job], act: Callable[[sqlite3.Connection, Job], None]) -> list[Job]:
    """Act on each job as it stands in the book now, all or none; returns them as they stand then."""
    with book.change() as db:
        numbers = [job.id for job in jobs]
        for number in numbers:
            if current := read_job(db, number):
                act(db, current)
        return [job for number in numbers if (job := read_job(db, number))]


def _free_name(wanted: str, taken: set[str]) -> str:
    if wanted not in taken:
        return wanted
    number = 2
    while f"{wanted}-{number}" in taken:
        number += 1
    return f"{wanted}-{number}"
