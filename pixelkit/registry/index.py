"""The index: a SQLite file in the registry's folder with models, styles and the log, which nothing can change later."""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pixelkit.errors import StorageError
from pixelkit.registry.names import ModelName, parse_name
from pixelkit.registry.rollout import Deployment
from pixelkit.registry.steps import as_plain, from_plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pixelkit.registry.steps import Step

Stage = Literal["staging", "production", "archive"]
FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS models (
    name TEXT PRIMARY KEY, style TEXT NOT NULL, stage TEXT NOT NULL, metadata TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS styles (style TEXT PRIMARY KEY, deployment TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pending (id INTEGER PRIMARY KEY CHECK (id = 1), change TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS log (
    id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, who TEXT NOT NULL, event TEXT NOT NULL,
    style TEXT NOT NULL, model TEXT NOT NULL, "from" TEXT, "to" TEXT, reason TEXT NOT NULL, forced TEXT NOT NULL,
    details TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS log_keeps_rows BEFORE DELETE ON log
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS log_keeps_values BEFORE UPDATE ON log
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS log_replaces_nothing BEFORE INSERT ON log WHEN EXISTS (SELECT 1 FROM log WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""
_REPAIR = "`pixelkit models verify --rebuild` makes the index anew from the files"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of the registry: its stage, and its metadata as it lies beside it."""

    name: ModelName
    stage: Stage
    metadata: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The model's file, relative to the registry's folder."""
        return f"{self.stage}/{self.name.file}"

    @property
    def place(self) -> str:
        """Stage and name, as the log has them."""
        return f"{self.stage}/{self.name}"

    @property
    def sha256(self) -> str:
        """Of the file."""
        return str(self.metadata.get("file", {}).get("sha256", ""))


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the registry as a whole: steps on disk, rows of the index, one row of the log.

    `models`: name -> its entry, None = no longer. `forced`: why it was refused before --force.
    """

    event: str
    style: str
    model: str
    source: str | None
    target: str | None
    time: str
    who: str
    reason: str = ""
    forced: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    models: Mapping[str, Entry | None] = field(default_factory=dict)
    deployments: Sequence[Deployment] = ()

    def as_text(self) -> str:
        """As JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in {"steps", "models", "deployments"}}
        models = {
            name: entry and {"stage": entry.stage, "metadata": entry.metadata} for name, entry in self.models.items()
        }
        deployments = [deployment.as_plain() for deployment in self.deployments]
        return json.dumps({**plain, "steps": as_plain(self.steps), "models": models, "deployments": deployments})

    @classmethod
    def from_text(cls, text: str) -> Change:
        """What as_text made."""
        plain = json.loads(text)
        models = {name: value and _entry(name, **value) for name, value in plain.pop("models").items()}
        deployments = tuple(Deployment.from_plain(value) for value in plain.pop("deployments"))
        return cls(**plain | {"steps": from_plain(plain["steps"]), "models": models, "deployments": deployments})


def _entry(name: str, stage: Stage, metadata: Mapping[str, Any]) -> Entry:
    parsed = parse_name(name)
    if parsed is None:
        raise StorageError(f"the index holds {name}, which is no model's name", hint=_REPAIR)
    return Entry(name=parsed, stage=stage, metadata=metadata)


def _put_model(database: sqlite3.Connection, entry: Entry) -> None:
    row = (str(entry.name), entry.name.style, entry.stage, json.dumps(entry.metadata))
    database.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?)", row)


def _put_style(database: sqlite3.Connection, deployment: Deployment) -> None:
    row = (deployment.style, json.dumps(deployment.as_plain()))
    database.execute("INSERT OR REPLACE INTO styles VALUES (?, ?)", row)


class Index:
    """An open index. Every method that writes is one transaction. Raises StorageError for a file that is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._clear_errors():
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
            self._database.execute("PRAGMA synchronous = FULL")
        if version > FORMAT:
            self.close()
            raise StorageError(f"{path} was made by a later pixelkit", hint="use that, or a newer one")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            busy = isinstance(error, sqlite3.OperationalError)
            hint = "is the disk full, the folder writable?" if busy else _REPAIR
            raise StorageError(f"the index {self._path}: {error}", hint=hint) from error

    def _select(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._clear_errors():
            return self._database.execute(query, values).fetchall()

    def models(self) -> list[Entry]:
        """All models, by style and version."""
        rows = self._select("SELECT name, stage, metadata FROM models")
        found = (_entry(row["name"], row["stage"], json.loads(row["metadata"])) for row in rows)
        return sorted(found, key=lambda entry: entry.name)

    def deployments(self) -> dict[str, Deployment]:
        """What is deployed of each style that ever was."""
        rows = self._select("SELECT deployment FROM styles ORDER BY style")
        found = (Deployment.from_plain(json.loads(row["deployment"])) for row in rows)
        return {deployment.style: deployment for deployment in found}

    def log(self, style: str | None = None) -> list[dict[str, Any]]:
        """All rows of the log in order, or those of one style."""
        chosen, values = ("WHERE style = ?", (style,)) if style else ("", ())
        rows = self._select(f"SELECT * FROM log {chosen} ORDER BY id", *values)  # noqa: S608 - fixed words
        return [{**dict(row), "details": json.loads(row["details"])} for row in rows]

    def pending(self) -> Change | None:
        """A change that was begun and not ended."""
        rows = self._select("SELECT change FROM pending")
        return Change.from_text(rows[0]["change"]) if rows else None

    def begin(self, change: Change) -> None:
        """Note what is about to be done."""
        with self._clear_errors():
            self._database.execute("INSERT INTO pending VALUES (1, ?)", (change.as_text(),))

    def drop(self) -> None:
        """Forget what was about to be done."""
        with self._clear_errors():
            self._database.execute("DELETE FROM pending")

    def end(self, change: Change) -> None:
        """Note what was done: rows, log, and no longer pending, all at once."""
        with self._clear_errors(), self._transaction() as database:
            for name, entry in change.models.items():
                if entry is None:
                    database.execute("DELETE FROM models WHERE name = ?", (name,))
                else:
                    _put_model(database, entry)
            for deployment in change.deployments:
                _put_style(database, deployment)
            self._append(change)
            database.execute("DELETE FROM pending")

    def replace(self, entries: Sequence[Entry], deployments: Sequence[Deployment], change: Change) -> None:
        """All models and styles anew; the log goes on."""
        with self._clear_errors(), self._transaction() as database:
            for table in ("models", "styles", "pending"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608 - fixed words
            for entry in entries:
                _put_model(database, entry)
            for deployment in deployments:
                _put_style(database, deployment)
            self._append(change)

    def check(self) -> list[str]:
        """What SQLite finds wrong with the file."""
        return [str(row[0]) for row in self._select("PRAGMA quick_check") if row[0] != "ok"]

    def _append(self, change: Change) -> None:
        self._database.execute(
            'INSERT INTO log (timestamp, who, event, style, model, "from", "to", reason, forced, details)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                change.time,
                change.who,
                change.event,
                change.style,
                change.model,
                change.source,
                change.target,
                change.reason,
                change.forced,
                json.dumps(change.details),
            ),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
