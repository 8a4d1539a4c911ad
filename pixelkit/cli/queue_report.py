"""How the queue looks on a terminal: the list, one job, and logs that are followed."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pixelkit.queue.book import ENDED
from pixelkit.queue.life import Life

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pixelkit.queue.book import Book, Job

SHOWN: Final = 20
"""Ended jobs, and waiting ones, that are shown without --all."""
COLOURS: Final = {"running": "cyan", "done": "green", "failed": "red", "cancelled": "yellow", "paused": "yellow"}
HEADER: Final = ("id", "name", "state", "progress", "step", "left", "loss", "on", "time", "")
TIMES: Final = ("created", "beat", "expected", "began", "ended", "not_before")
_MOST: Final = 1_000_000


def read_story(book: Book, *, everything: bool) -> tuple[list[Job], int]:
    """The jobs in the order of a night: what ended, what runs, what is paused, what comes next; and how many are left out."""
    most = _MOST if everything else SHOWN
    ended = book.jobs("state IN ('done', 'failed', 'cancelled') ORDER BY ended DESC LIMIT ?", most)[::-1]
    if not everything:  # what needs somebody is always shown
        told = {job.id for job in ended}
        failed = book.jobs("state = 'failed' ORDER BY ended DESC LIMIT ?", most)[::-1]
        ended = [job for job in failed if job.id not in told] + ended
    running = book.jobs("state = 'running' ORDER BY began, id")
    paused = book.jobs("state = 'paused' ORDER BY id LIMIT ?", most)
    waiting = book.jobs("state = 'waiting' ORDER BY priority DESC, id LIMIT ?", most)
    shown = [*ended, *running, *paused, *waiting]
    return shown, 0 if everything else sum(book.counts().values()) - len(shown)


def format_list(book: Book, *, everything: bool = False) -> list[str]:
    """The list, line by line: a row for each job, then what the whole queue is doing."""
    jobs, left_out = read_story(book, everything=everything)
    needs = book.needs()
    now = time.time()
    rows = [_row(job, needs.get(job.id, ()), now) for job in jobs]
    lines = []
    if rows:
        widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
        widths[-1] = 0
        width = shutil.get_terminal_size((200, 50)).columns if sys.stdout.isatty() else 1000
        lines.append(click.style(_join(HEADER, widths)[:width], bold=True))
        lines += [_colour(_join(row, widths)[:width], job.state, widths) for job, row in zip(jobs, rows, strict=True)]
    if left_out:
        lines.append(f"... and {left_out} more: --all shows them")
    lines.append(describe_queue(book, now))
    return lines


def describe_queue(book: Book, now: float) -> str:
    """One line: how many jobs are in each state, how long it may take, who works on it."""
    counts = book.counts()
    if not counts:
        return "no jobs: `pixelkit queue add PRESET` adds one"
    parts = [", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "cancelled", "running", "paused", "waiting")
                       if state in counts)]  # fmt: skip
    alive = [devices for life, devices, beat in book.ask("SELECT id, devices, beat FROM runners")
             if Life.read(life).is_alive(beat, now)]  # fmt: skip
    if book.is_on("paused"):
        parts.append("the queue is paused: `pixelkit queue resume` goes on")
    elif alive:
        parts.append(f"working on {' and '.join(alive)}")
        if left := _estimate(book, counts, now):
            parts.append(f"about {show_seconds(left)} left at the pace so far")
    elif counts.get("waiting") or counts.get("running"):
        parts.append("nobody works on it: `pixelkit queue run`")
    return "; ".join(parts)


def _estimate(book: Book, counts: Mapping[str, int], now: float) -> float | None:
    """Seconds until all that waits is done, if the next jobs take as long as the done ones; None before the first is done."""
    ((mean, running_left),) = book.ask(
        "SELECT (SELECT avg(ended - began) FROM jobs WHERE state = 'done' AND ended > began),"
        " (SELECT sum(max(0, expected - ?)) FROM jobs WHERE state = 'running')",
        now,
    )
    running = counts.get("running", 0)
    if mean is None or not running:
        return None
    return float((counts.get("waiting", 0) * mean + (running_left or running * mean / 2)) / running)


def _row(job: Job, needs: Sequence[int], now: float) -> tuple[str, ...]:
    running = job.state == "running"
    share = min(1.0, job.step / job.total) if job.total else None
    progress = _bar(share) if running and share is not None else job.phase if running else ""
    if job.total and not running and job.state != "done":
        progress = f"{100 * job.step // job.total}%"
    if job.state in ENDED:
        spent = (job.ended or now) - (job.began or job.ended or now)
    else:
        spent = now - (job.began if running and job.began else job.created)
    return (
        str(job.id),
        job.name if len(job.name) <= 48 else f"{job.name[:45]}...",
        job.state,
        progress,
        f"{job.step}/{job.total}" if job.total else "",
        show_seconds(max(0, job.expected - now)) if running and job.expected else "",
        f"{job.loss:.4f}" if job.loss is not None else "",
        job.devices,
        show_seconds(spent),
        _note(job, needs, now),
    )


def _note(job: Job, needs: Sequence[int], now: float) -> str:
    parts = []
    if job.state == "running" and job.asked:
        parts.append("saving, then stopping")
    if job.state == "running" and job.total and job.phase != "training":
        parts.append(job.phase)
    if job.state == "waiting" and job.not_before > now:
        parts.append(f"in {show_seconds(job.not_before - now)}")
    if job.state in {"waiting", "paused"} and needs:
        parts.append(f"after {', '.join(map(str, needs))}")
    if job.state == "waiting" and job.memory_gib:
        parts.append(f"takes {job.memory_gib:g} GiB")
    if job.priority and job.state == "waiting":
        parts.append(f"priority {job.priority}")
    if job.reason and job.reason != job.state:
        parts.append(job.reason)
    return "; ".join(parts)


def _bar(share: float) -> str:
    full, empty = ("█", "░") if (sys.stdout.encoding or "").lower().startswith("utf") else ("#", "-")
    filled = int(share * 10)
    return f"{full * filled}{empty * (10 - filled)} {share:4.0%}"


def _join(row: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _colour(line: str, state: str, widths: Sequence[int]) -> str:
    start = widths[0] + widths[1] + 4
    word = line[start : start + len(state)]
    return f"{line[:start]}{click.style(word, fg=COLOURS.get(state))}{line[start + len(state) :]}"


def show_seconds(seconds: float) -> str:
    """A span of time, in two units at most: 45 s, 3 min 10 s, 2 h 5 min, 3 d 4 h."""
    left = round(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit} {rest} {part}" if rest else f"{left // size} {unit}"
    return f"{left} s"


def as_json(jobs: Iterable[Job], needs: Mapping[int, Sequence[int]]) -> str:
    """Jobs for programs: every column, times in ISO 8601 (UTC)."""
    return json.dumps([_plain(job, needs) for job in jobs], indent=2)


def _plain(job: Job, needs: Mapping[int, Sequence[int]]) -> dict[str, object]:
    values = asdict(job)
    for key in ("runner", "told", "stored", "deaths", "furthest"):
        values.pop(key)
    for key in TIMES:
        values[key] = show_time(values[key]) or None
    return {**values, "overrides": list(job.settings), "process": _pid(job), "after": list(needs.get(job.id, ()))}


def _pid(job: Job) -> int | None:
    return Life.read(job.process).pid if job.process else None


def show_time(at: float | None) -> str:
    """A time as ISO 8601, UTC, seconds; empty for none."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds") if at else ""


def print_job(book: Book, job: Job) -> None:
    """All that the book knows of a job, and what happened to it."""
    click.echo(
        f"{click.style(job.name, bold=True)} (job {job.id}): {click.style(job.state, fg=COLOURS.get(job.state))}"
    )
    facts = {
        "reason": job.reason,
        "preset": job.preset,
        "as it was": job.stored,
        "settings": "  ".join(job.settings),
        "priority": job.priority or "",
        "after": ", ".join(map(str, book.needs(open_only=False).get(job.id, ()))),
        "GPUs": job.gpus if job.gpus > 1 else "",
        "GPU memory": f"{job.memory_gib:g} GiB" if job.memory_gib else "",
        "retries": f"{job.retries} left" if job.retries else "",
        "run": job.run,
        "model": job.model,
        "progress": f"{job.phase} {job.step}/{job.total}".strip() if job.total else job.phase,
        "loss": f"{job.loss:.4f}" if job.loss is not None else "",
        "on": job.devices,
        "process": _pid(job) or "",
        "exit code": job.exit_code or "",
        "log": book.log_of(job.id) if book.log_of(job.id).is_file() else "",
        "added": show_time(job.created),
        "began": show_time(job.began),
        "expected": show_time(job.expected),
        "ended": show_time(job.ended),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        if value != "":
            click.echo(f"  {name.ljust(width)}  {value}")
    for happening in book.happenings(job.id):
        click.echo(f"  {click.style(happening.at, dim=True)}  {happening.what}")


def print_logs(book: Book, job: Job, *, lines: int, follow: bool) -> None:
    """What pixelkit said of a job, then what its trainer printed; `follow`: and what they add, until the job ends."""
    ends: dict[Path, int] = {}
    while True:
        current = book.job(job.id)
        for path in (book.log_of(job.id), *([Path(current.run) / "log.txt"] if current and current.run else [])):
            if path.is_file():
                ends[path] = _print_file(path, ends.get(path), lines)
        if not follow or current is None or current.state in ENDED:
            break
        time.sleep(0.3)
    if not ends and not follow:
        click.echo(f"{job} has printed nothing yet", err=True)


def _print_file(path: Path, begin: int | None, lines: int) -> int:
    """Print a file from a byte on, or its last lines; returns where it ended."""
    with path.open("rb") as stream:
        if begin is None:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 400 * lines) if lines else 0)
            text = b"".join(stream.read().splitlines(keepends=True)[-lines:])
        else:
            stream.seek(begin)
            text = stream.read()
        click.echo(text.decode("utf-8", "replace"), nl=False)
        return stream.tell()
