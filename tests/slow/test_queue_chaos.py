"""The queue under kill -9: runners, jobs' processes and what these start are killed at random; each job still ends once.

PIXELKIT_QUEUE_JOBS sets how many jobs (40; the whole proof is 1,000).
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import pytest

from pixelkit.queue.attempts import MOST_DEATHS
from pixelkit.queue.book import ENDED, Book
from pixelkit.queue.changes import NewJob, add

FAKE = Path(__file__).parent / "fake_queue.py"
JOBS = int(os.environ.get("PIXELKIT_QUEUE_JOBS", "40"))
RUNNERS, WORKERS = 2, 4
KINDS = ("runner", "job", "child", "runners and job")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock and sessions")


def start_runner(book: Path, journal: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(FAKE), "run", str(book), str(WORKERS), str(journal)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def of_this_queue(book: Path) -> list[psutil.Process]:
    """Every living process that a job of this book has started, and jobs' processes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PIXELKIT_QUEUE_JOB", "").startswith(f"{book}:"):
                found.append(process)
    return found


def test_each_job_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    chance = random.Random(6)
    path, journal, log = (tmp_path / name for name in ("queue.sqlite", "journal", "runner.log"))
    with Book(path) as book:
        jobs = [
            NewJob(
                name=f"job{number}{'-fails' if number % 10 == 0 else ''}",
                preset="fake.toml",
                stored="fake.toml",
                overrides=(f"seconds={chance.uniform(0.2, 1.2):.2f}",),
                priority=chance.randrange(3),
                retries=number // 10 % 2,
                after=(),
            )
            for number in range(JOBS)
        ]
        added = {job.id: job for job in add(book, jobs)}
        runners = [start_runner(path, journal, log) for _ in range(RUNNERS)]
        kills: Counter[str] = Counter()
        end = time.monotonic() + 30 + JOBS
        next_kill = time.monotonic() + 0.5
        try:
            while True:
                counts = book.counts()
                if sum(counts.get(state, 0) for state in ENDED) == JOBS:
                    break
                assert time.monotonic() < end, f"not done in time: {counts}\n{log.read_text()[-3000:]}"
                for number, runner in enumerate(runners):
                    if runner.poll() is not None:
                        runners[number] = start_runner(path, journal, log)
                if time.monotonic() > next_kill and sum(kills.values()) < JOBS // 2:
                    next_kill = time.monotonic() + chance.uniform(0.1, 0.4)
                    victims, kind = choose_victims(chance, runners, path, kills)
                    kills[kind] += bool(victims)
                    for victim in victims:
                        with contextlib.suppress(psutil.Error, ProcessLookupError):
                            victim.kill()
                time.sleep(0.05)
            for runner in runners:
                runner.wait(timeout=20)
        finally:
            for runner in runners:
                runner.kill()
        left = of_this_queue(path)
        ended = {job.id: job for job in book.jobs()}
        events = book.ask("SELECT job, what FROM events WHERE job IS NOT NULL ORDER BY id")
    print(f"{JOBS} jobs, killed: {dict(kills)}, {len(events)} events, {counts}")
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not left, f"orphans: {left}"
    assert min(kills[kind] for kind in KINDS) >= 1, kills
    assert ended.keys() == added.keys()
    for job in ended.values():
        killed_off = job.state == "failed" and job.deaths + 1 >= MOST_DEATHS
        expected = "failed" if job.name.endswith("-fails") else "done"
        assert killed_off or job.state == expected, f"{job} {job.state}: {job.reason}"
        assert not job.process and not job.runner
    finals = Counter(job for job, what in events if what.split(":")[0] in {"done", "failed"})
    assert finals == Counter(added.keys()), "each ends exactly once"
    check_never_twice_at_once(journal)


def choose_victims(
    chance: random.Random, runners: list[subprocess.Popen[bytes]], book: Path, kills: Counter[str]
) -> tuple[list[subprocess.Popen[bytes] | psutil.Process], str]:
    """Of a kind that was killed least so far; the last: all runners together with one job's process."""
    kind = min(KINDS, key=lambda one: (kills[one], chance.random()))
    if kind == "runner":
        return [chance.choice(runners)], kind
    found = []
    for process in of_this_queue(book):
        with contextlib.suppress(psutil.Error):
            if (process.name() == "sleep") == (kind == "child"):
                found.append(process)
    chosen = [chance.choice(found)] if found else []
    return [*runners, *chosen] if kind == "runners and job" and chosen else chosen, kind


def check_never_twice_at_once(journal: Path) -> None:
    """No attempt begins while a process of an earlier one lives (each looks, before it says that it begins), or ends after."""
    spans = defaultdict(list)
    for line in journal.read_text().splitlines():
        at, what, job, attempt, pid, child = line.split()
        spans[int(job)].append((float(at), what, int(attempt), pid, child))
    assert len(spans) == JOBS
    for job, notes in spans.items():
        assert not [one for one in notes if one[1] == "begin-twice"], f"job {job}: {notes}"
        attempts = [attempt for _, what, attempt, _, _ in notes if what == "begin"]
        assert attempts == sorted(set(attempts)), f"job {job}: {notes}"
        at_work = None
        for _, what, attempt, _, _ in notes:
            if what == "end":
                assert attempt == at_work, f"job {job}: attempt {attempt} ends while {at_work} is at work: {notes}"
                at_work = None
            else:
                at_work = attempt
