"""Where measures are kept: an SQLite file beside the user's settings, for all processes of this user."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pixelkit import paths
from pixelkit.errors import StorageError
from pixelkit.measures.figures import Figures, scale, take_together
from pixelkit.measures.setup import Measure, read_measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pixelkit.measures.setup import Setup

PATIENCE = 5.0  # seconds that another process may keep the file locked
MOST = 200  # measures that are looked at, newest first
SCHEMA = """
CREATE TABLE IF NOT EXISTS measures (
    id INTEGER PRIMARY KEY,
    setup TEXT NOT NULL,
    place TEXT NOT NULL,
    kind TEXT NOT NULL,
    elsewhere TEXT NOT NULL,
    made TEXT NOT NULL,
    measure TEXT NOT NULL UNIQUE
);
CREATE INDEX IF NOT EXISTS by_setup ON measures (setup);
CREATE INDEX IF NOT EXISTS by_place ON measures (place);
"""
FORMAT = "pixelkit measures"

_Answer = TypeVar("_Answer")
Kind = Literal["run", "probe"]


def book_file() -> Path:
    """`measures.sqlite` beside the user's settings."""
    return paths.settings_file().with_name("measures.sqlite")


def warn(text: str) -> None:
    """Tell it on standard error."""
    sys.stderr.write(f"measures: {text}\n")


@dataclass(kw_only=True)
class MeasureBook:
    """All measures. Safe for several processes. A file that is broken, locked or unwritable is told of once, and then
    nothing is remembered and nothing found: no training fails for it. `strict`: it raises StorageError instead.
    """

    file: Path = field(default_factory=book_file)
    on_trouble: Callable[[str], None] = warn
    strict: bool = False
    _told: bool = False

    def add(self, *measures: Measure | None) -> int:
        """Remember measures, passing over None and what is known already; how many were new."""
        rows = [_row(measure) for measure in measures if measure is not None]

        def insert(connection: sqlite3.Connection) -> int:
            before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO measures (setup, place, kind, elsewhere, made, measure) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            return connection.total_changes - before

        return self._ask(insert, 0) if rows else 0

    def recall(
        self, setup: Setup, *, kind: Kind | None = None, elsewhere: bool = False, most: int = MOST
    ) -> tuple[Measure, ...]:
        """All measures of exactly this setup, newest first, failed ones too; with `elsewhere` those of others instead."""
        return self._select("setup = ?", (_key(setup),), kind=kind, elsewhere=elsewhere, most=most)

    def find(self, setup: Setup, *, kind: Kind | None = None, elsewhere: bool = False) -> Figures | None:
        """The median of the last measures of exactly this setup; of runs where there are any, else of probes."""
        return take_together(self.recall(setup, kind=kind, elsewhere=elsewhere))

    def like(
        self, setup: Setup, *, kind: Kind | None = None, elsewhere: bool = False, gib_per_pixel: float = 0.0
    ) -> Figures | None:
        """Figures scaled from other batches, accumulations, canvases or ranks at the same place (see figures.scale)."""
        found = self._select("place = ?", (_text(setup.place),), kind=kind, elsewhere=elsewhere, most=MOST)
        return scale(setup, found, gib_per_pixel=gib_per_pixel)

    def list_measures(self) -> tuple[Measure, ...]:
        """Everything, newest first."""
        return self._select("1", (), kind=None, elsewhere=None, most=-1)

    def forget(self, *, machine: str | None = None, elsewhere: str | None = None) -> int:
        """Remove all measures, or those of a machine, or those of someone else by name; how many there were."""

        def remove(connection: sqlite3.Connection) -> int:
            doomed = [
                number
                for number, text in connection.execute("SELECT id, measure FROM measures").fetchall()
                if _is_meant(text, machine, elsewhere)
            ]
            connection.executemany("DELETE FROM measures WHERE id = ?", [(number,) for number in doomed])
            return len(doomed)

        return self._ask(remove, 0)

    def export_json(self) -> str:
        """All measures made here, as JSON that `import_json` reads elsewhere. Runs' names are left out."""
        own = [replace(measure, run="").as_dict() for measure in self.list_measures() if not measure.elsewhere]
        return json.dumps({FORMAT: 1, "measures": own}, indent=1) + "\n"

    def import_json(self, text: str, *, name: str) -> int:
        """Take in another's measures under that name; how many were new. Raises StorageError for another file."""
        try:
            document = json.loads(text)
            found = [read_measure(entry) for entry in document["measures"]] if FORMAT in document else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StorageError(f"{name}: no measures in it: {error}") from error
        if found is None:
            raise StorageError(f"{name}: not written by `pixelkit measures export`")
        return self.add(*(replace(measure, elsewhere=measure.elsewhere or name) for measure in found))

    def _select(
        self, where: str, values: tuple[str, ...], *, kind: Kind | None, elsewhere: bool | None, most: int
    ) -> tuple[Measure, ...]:
        where += "" if kind is None else " AND kind = ?"
        where += "" if elsewhere is None else " AND elsewhere != ''" if elsewhere else " AND elsewhere = ''"
        statement = f"SELECT measure FROM measures WHERE {where} ORDER BY made DESC, id DESC LIMIT ?"  # noqa: S608 - no user's text

        def select(connection: sqlite3.Connection) -> list[tuple[str]]:
            return connection.execute(statement, (*values, *([kind] if kind else []), most)).fetchall()

        rows: list[tuple[str]] = self._ask(select, []) if self.file.is_file() else []
        return tuple(_readable(text for (text,) in rows))

    def _ask(self, question: Callable[[sqlite3.Connection], _Answer], otherwise: _Answer) -> _Answer:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=PATIENCE)) as connection, connection:
                if not connection.execute("PRAGMA user_version").fetchone()[0]:
                    _lay_out(connection)
                return question(connection)
        except (sqlite3.Error, OSError) as error:
            if self.strict:
                raise StorageError(
                    f"{self.file} cannot be used: {error}", hint="if it is broken, remove it: measures are made again"
                ) from error
            if not self._told:
                self._told = True
                self.on_trouble(f"{self.file} cannot be used ({error}); going on without it")
            return otherwise


def _lay_out(connection: sqlite3.Connection) -> None:
    """Make the tables. Of several processes that begin at once, SQLite refuses some the change to WAL without waiting."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = 1; COMMIT;")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            connection.rollback()
            time.sleep(0.02)
        else:
            return


def _row(measure: Measure) -> tuple[str, ...]:
    setup = measure.setup
    text = json.dumps(measure.as_dict(), sort_keys=True)
    return (_key(setup), _text(setup.place), measure.kind, measure.elsewhere, measure.when, text)


def _key(setup: Setup) -> str:
    return json.dumps(vars(setup), sort_keys=True)


def _text(parts: Sequence[str]) -> str:
    return json.dumps(parts)


def _readable(texts: Iterable[str]) -> Iterable[Measure]:
    for text in texts:
        try:
            yield read_measure(json.loads(text))
        except ValueError:
            continue  # of a version that knew other fields


def _is_meant(text: str, machine: str | None, elsewhere: str | None) -> bool:
    try:
        measure: dict[str, Any] = json.loads(text)
        return (machine is None or measure["setup"]["machine"] == machine) and (
            elsewhere is None or measure["elsewhere"] == elsewhere
        )
    except (ValueError, TypeError, KeyError):
        return machine is None and elsewhere is None
