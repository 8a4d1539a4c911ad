"""The book: one SQLite file in the runs folder. Every process opens it for itself; nothing of the queue is kept elsewhere."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from pixelkit.errors import PresetError, StorageError, did_you_mean
from pixelkit.rundir import now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

State = Literal["waiting", "running", "paused", "done", "failed", "cancelled"]
Asked = Literal["stop", "pause", "cancel"]
ENDED: Final = ("done", "failed", "cancelled")
FOLDER: Final = ".queue"
VERSION: Final = 1
PATIENCE: Final = 60.0
"""Seconds to wait for another process's write."""

_SCHEMA: Final = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    priority INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    preset TEXT NOT NULL,
    stored TEXT NOT NULL,
    overrides TEXT NOT NULL DEFAULT '[]',
    gpus INTEGER NOT NULL DEFAULT 1,
    memory_gib REAL,
    planned_gib REAL,
    retries INTEGER NOT NULL DEFAULT 0,
    registry TEXT NOT NULL DEFAULT '',
    not_before REAL NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    furthest INTEGER NOT NULL DEFAULT 0,
    run TEXT NOT NULL DEFAULT '',
    devices TEXT NOT NULL DEFAULT '',
    runner TEXT NOT NULL DEFAULT '',
    process TEXT NOT NULL DEFAULT '',
    asked TEXT NOT NULL DEFAULT '',
    beat REAL NOT NULL DEFAULT 0,
    phase TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    loss REAL,
    expected REAL,
    began REAL,
    ended REAL,
    exit_code INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    blocked_by INTEGER,
    told INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_in_turn ON jobs (state, priority DESC, id);
CREATE INDEX jobs_by_name ON jobs (name);
CREATE INDEX jobs_untold ON jobs (id) WHERE told = 0 AND state IN ('done', 'failed', 'cancelled');
CREATE TABLE needs (job INTEGER NOT NULL, needed INTEGER NOT NULL, PRIMARY KEY (job, needed)) WITHOUT ROWID;
CREATE INDEX needs_by_needed ON needs (needed);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, job INTEGER, what TEXT NOT NULL);
CREATE INDEX events_by_job ON events (job);
CREATE TABLE runners (id TEXT PRIMARY KEY, devices TEXT NOT NULL, began REAL NOT NULL, beat REAL NOT NULL);
CREATE TABLE switches (name TEXT PRIMARY KEY, is_on INTEGER NOT NULL);
INSERT INTO switches VALUES ('paused', 0), ('drained', 1)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A row of the book. Times are seconds since 1970 (UTC); `expected` is when training will be over.

    `preset` is what was asked for, `stored` the copy that is trained. `memory_gib` is what it shall have of a device,
    `planned_gib` what its plan expects. `retries` are those left. `registry`: the folder of the
    registry that its model goes to, empty for none. `attempt` counts each start, and is what a process
    shows to write as this job. `deaths` are the times in a row that its process was killed without training having got
    further than `furthest` steps.
    """

    id: int
    name: str
    state: State
    priority: int
    created: float
    preset: str
    stored: str
    overrides: str
    gpus: int
    memory_gib: float | None
    planned_gib: float | None
    retries: int
    registry: str
    not_before: float
    attempt: int
    deaths: int
    furthest: int
    run: str
    devices: str
    runner: str
    process: str
    asked: str
    beat: float
    phase: str
    step: int
    total: int
    loss: float | None
    expected: float | None
    began: float | None
    ended: float | None
    exit_code: int | None
    reason: str
    model: str
    blocked_by: int | None
    told: int

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides, as `--set` takes them."""
        return tuple(json.loads(self.overrides))

    def __str__(self) -> str:
        return f"job {self.id} ({self.name})"


COLUMNS: Final = ", ".join(field.name for field in fields(Job))


@dataclass(frozen=True, kw_only=True, slots=True)
class Happening:
    """A line of the book's log, which is only ever added to. `at` is ISO 8601, UTC."""

    at: str
    job: int | None
    what: str


class Book:
    """An open book. For one thread; close it, or use it as a context. Raises StorageError whatever SQLite says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
            self._db.execute("PRAGMA synchronous = FULL")  # what `add` has confirmed outlives a power cut
            self._db.execute("PRAGMA wal_autocheckpoint = 400")
            self._prepare()
        except sqlite3.Error as error:
            raise StorageError(f"cannot open the queue {path}: {error}") from error
        except OSError as error:
            raise StorageError(f"cannot open the queue {path}: {error.strerror}") from error

    @classmethod
    def at(cls, runs: Path, *, create: bool = False) -> Book:
        """The book of a runs folder. Raises StorageError where there is none and none is to be made."""
        path = (runs / FOLDER / "queue.sqlite").resolve()
        if not create and not path.is_file():
            raise StorageError(
                f"there is no queue in {runs}", hint="`pixelkit queue add PRESET` makes one; --runs DIR names another"
            )
        return cls(path)

    @property
    def runs(self) -> Path:
        """The runs folder that the book lies in."""
        return self.path.parent.parent

    def log_of(self, job: int) -> Path:
        """What a job's process printed."""
        return self.path.parent / "logs" / f"{job}.log"

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of the block is written, or nothing; no other process writes meanwhile."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StorageError(f"cannot write the queue {self.path}: {error}") from error

    def ask(self, sql: str, *values: object) -> list[Any]:
        """The rows that a SELECT finds."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the queue {self.path}: {error}") from error

    def jobs(self, where: str = "1", *values: object) -> list[Job]:
        """The jobs that a condition finds; ` ORDER BY` may follow it."""
        return [make_job(row) for row in self.ask(f"SELECT {COLUMNS} FROM jobs WHERE {where}", *values)]  # noqa: S608

    def job(self, number: int) -> Job | None:
        """A job by its id."""
        found = self.jobs("id = ?", number)
        return found[0] if found else None

    def find(self, text: str) -> Job:
        """A job by its id, its name, or `latest`. Raises PresetError with the nearest name."""
        if text == "latest":
            found = self.jobs("id = (SELECT max(id) FROM jobs)")
        else:
            found = self.jobs("id = ?", int(text)) if text.isdecimal() and len(text) < 19 else []
            found = found or self.jobs("name = ?", text)
        if found:
            return found[0]
        names = [str(name) for (name,) in self.ask("SELECT name FROM jobs ORDER BY id DESC LIMIT 2000")]
        hint = did_you_mean(text, names) or "`pixelkit queue list --all` shows them"
        raise PresetError(f"{text}: no such job in {self.runs}", hint=hint)

    def find_all(self, texts: Sequence[str]) -> list[Job]:
        """Jobs by id, name, `latest`, or a pattern of names like hero-*; each once. Raises PresetError where nothing fits."""
        found: dict[int, Job] = {}
        for text in texts:
            matching = self.jobs("name GLOB ? ORDER BY id", text) if "*" in text or "?" in text else []
            for job in matching or [self.find(text)]:
                found[job.id] = job
        return list(found.values())

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return dict(self.ask("SELECT state, count(*) FROM jobs GROUP BY state"))

    def needs(self, *, open_only: bool = True) -> dict[int, list[int]]:
        """Which jobs each job comes after; `open_only`: of these, those that are not done."""
        condition = "WHERE jobs.state != 'done'" if open_only else ""
        found: dict[int, list[int]] = {}
        for job, needed in self.ask(
            f"SELECT needs.job, needs.needed FROM needs JOIN jobs ON jobs.id = needs.needed {condition}"  # noqa: S608
        ):
            found.setdefault(job, []).append(needed)
        return found

    def count_left(self, *, most_gpus: int, most_memory_gib: float) -> int:
        """The jobs that run, or will run on such a machine if nobody does anything: all but the paused, the too large,
        and those that come after one of these."""
        held = (
            "WITH RECURSIVE held (id) AS (SELECT id FROM jobs WHERE state = 'paused'"
            " OR (state = 'waiting' AND (gpus > ? OR coalesce(memory_gib, 0) > ?))"
            " UNION SELECT needs.job FROM needs JOIN held ON needs.needed = held.id)"
            " SELECT count(*) FROM jobs WHERE state = 'running'"
            " OR (state = 'waiting' AND id NOT IN (SELECT id FROM held))"
        )
        return int(self.ask(held, most_gpus, most_memory_gib)[0][0])

    def happenings(self, job: int) -> list[Happening]:
        """A job's part of the log, oldest first."""
        rows = self.ask("SELECT at, job, what FROM events WHERE job = ? ORDER BY id", job)
        return [Happening(at=at, job=number, what=what) for at, number, what in rows]

    def is_on(self, switch: Literal["paused", "drained"]) -> bool:
        """Whether the whole queue is paused; whether it was told that it is empty."""
        return bool(self.ask("SELECT is_on FROM switches WHERE name = ?", switch)[0][0])

    def _prepare(self) -> None:
        """Make the tables, once; another process may be at it too."""
        end = time.monotonic() + PATIENCE
        while (version := self._db.execute("PRAGMA user_version").fetchone()[0]) == 0:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("BEGIN IMMEDIATE")
                if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    for statement in _SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {VERSION}")
                self._db.execute("COMMIT")
            except sqlite3.OperationalError:  # changing to WAL does not wait for others
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        if version > VERSION:
            raise StorageError(
                f"the queue {self.path} is of a later pixelkit (version {version})", hint="use that pixelkit for it"
            )


def make_job(row: Sequence[Any]) -> Job:
    """A row of COLUMNS as a Job."""
    return Job(**dict(zip(_NAMES, row, strict=True)))


_NAMES: Final = tuple(field.name for field in fields(Job))


def read_job(db: sqlite3.Connection, number: int) -> Job | None:
    """A job, within a transaction."""
    row = db.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (number,)).fetchone()  # noqa: S608
    return make_job(row) if row else None


def write_log(db: sqlite3.Connection, job: int | None, what: str) -> None:
    """Add a line to the log."""
    db.execute("INSERT INTO events (at, job, what) VALUES (?, ?, ?)", (now(), job, what))


def enter(
    db: sqlite3.Connection, job: Job, state: State, *, reason: str, exit_code: int | None = None, model: str = ""
) -> None:
    """Out of "running", or straight from "waiting", into a state in which nobody works on the job."""
    db.execute(
        "UPDATE jobs SET state = ?, reason = ?, exit_code = ?, model = ?, ended = ?, runner = '', process = '',"
        " devices = '', asked = '', phase = '', expected = NULL, not_before = 0 WHERE id = ?",
        (state, reason, exit_code, model, time.time() if state in ENDED else None, job.id),
    )
    write_log(db, job.id, f"{state}: {reason}" if reason and reason != state else state)


def cancel_after(db: sqlite3.Connection, job: Job, how: str) -> None:
    """What was to come after a job that will not be done is cancelled, and what was to come after that."""
    later = "SELECT id FROM jobs JOIN needs ON job = id WHERE needed = ? AND state IN ('waiting', 'paused')"
    for (number,) in db.execute(later, (job.id,)).fetchall():
        dependent = read_job(db, number)
        assert dependent
        enter(db, dependent, "cancelled", reason=f"{job} {how}")
        db.execute("UPDATE jobs SET blocked_by = ? WHERE id = ?", (job.id, number))
        cancel_after(db, dependent, "was cancelled")
