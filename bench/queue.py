"""What the queue costs beside bare SQLite: uv run python bench/queue.py [--jobs 1000] [--listed 10000]

Adding: `plan_jobs` and `add` for a matrix of so many points of one preset, against one transaction that inserts the same rows.
Listing: the rows and lines of `queue list --all`, against a bare SELECT of the same columns; `queue list`, without --all, and
both as commands, from process start to end, against `pixelkit --version`. Medians of so many repetitions.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.cli.queue_report import format_list
from pixelkit.queue.adding import Wish, plan_jobs
from pixelkit.queue.book import COLUMNS, Book
from pixelkit.queue.changes import add

if TYPE_CHECKING:
    from collections.abc import Callable


def clock(work: Callable[[], object], repeat: int) -> float:
    """Median of seconds."""
    spans = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        spans.append(time.perf_counter() - begun)
    return statistics.median(spans)


def time_adding(jobs: int, repeat: int) -> None:
    """Enqueue a matrix into a new book, each time."""
    ours, checks, bare = [], [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wish = Wish(presets=("quickstart",), matrix=(f"train.seed={','.join(map(str, range(jobs)))}",))
            with Book(folder / "queue.sqlite") as book:
                begun = time.perf_counter()
                planned = plan_jobs(wish, folder / "store")
                checks.append(time.perf_counter() - begun)
                assert len(add(book, planned)) == jobs
                ours.append(time.perf_counter() - begun)
                rows = book.ask(f"SELECT {COLUMNS} FROM jobs")
            begun = time.perf_counter()
            with contextlib.closing(sqlite3.connect(folder / "bare.sqlite", isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute(f"CREATE TABLE jobs ({COLUMNS})")
                db.execute("BEGIN")
                db.executemany(f"INSERT INTO jobs VALUES ({', '.join('?' * len(rows[0]))})", rows)
                db.execute("COMMIT")
            bare.append(time.perf_counter() - begun)
    whole, check, floor = map(statistics.median, (ours, checks, bare))
    print(
        f"add {jobs}: {whole:.3f} s (of that checking and copying {check:.3f} s); bare SQLite {floor:.3f} s", end="; "
    )
    print(f"writing alone is {(whole - check) / floor:.1f} times that")


def time_listing(jobs: int, repeat: int) -> None:
    """List a book of so many jobs in all states."""
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name)
        with Book.at(runs, create=True) as book:
            (one,) = plan_jobs(Wish(presets=("quickstart",)), runs / "store")
            add(book, [replace(one, name=f"sprites-{number}") for number in range(jobs)])
            with book.change() as db:
                db.execute(
                    "UPDATE jobs SET state = CASE id % 10 WHEN 0 THEN 'failed' WHEN 1 THEN 'waiting' ELSE 'done' END,"
                    " began = created, ended = created + 60, step = 300, total = 300, loss = 0.1, reason = 'a reason'"
                )
                db.execute("UPDATE jobs SET state = 'running', process = '' WHERE id <= 8")
            whole = clock(lambda: "\n".join(format_list(book, everything=True)), repeat)
            part = clock(lambda: "\n".join(format_list(book)), repeat)
        with contextlib.closing(sqlite3.connect(book.path)) as db:
            bare = clock(lambda: db.execute(f"SELECT {COLUMNS} FROM jobs ORDER BY id").fetchall(), repeat)
        print(
            f"list --all of {jobs}: {whole:.3f} s; bare SELECT {bare:.3f} s, ratio {whole / bare:.1f}; list {part:.3f} s"
        )
        command = [sys.executable, "-m", "pixelkit"]
        for words in (["--version"], ["queue", "list", "--runs", name], ["queue", "list", "--all", "--runs", name]):
            seconds = clock(
                lambda words=words: subprocess.run([*command, *words], check=True, capture_output=True), repeat
            )
            print(f"pixelkit {' '.join(words[: 2 + ('--all' in words)])}: {seconds:.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with contextlib.redirect_stderr(io.StringIO()):
        time_adding(arguments.jobs, arguments.repeat)
        time_listing(arguments.listed, arguments.repeat)
