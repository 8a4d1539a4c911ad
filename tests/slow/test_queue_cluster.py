"""The queue on a cluster of two nodes: nodes, runners and what stands between them are killed, each job ends once."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pixelkit.queue import changes
from pixelkit.queue.book import Book
from pixelkit.queue.changes import NewJob, add
from pixelkit.queue.life import MARK
from tests.slow.ray_nodes import PATIENCE, Nodes, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("ray")
FAKE = str(Path(__file__).with_name("fake_ray_job.py"))
ROOT = str(Path(__file__).parents[2])
RUNNER = """
import sys
from pathlib import Path
from pixelkit.queue.book import Book
from pixelkit.queue.ray import on_cluster
from pixelkit.queue.runner import Pace, Runner

address, path, fake, journal = sys.argv[1:]
with Book(Path(path)) as book, on_cluster(address) as (devices, command):
    command = (*command[:-1], fake, journal, address)
    pace = Pace(tick=0.1, look=0.5, beat=1.0, left=20.0)
    say = lambda text: print(text, flush=True)
    Runner(book, devices=devices, job_command=command, drain=True, say=say, pace=pace).run()
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(folder=Path(folder), environment={"PYTHONPATH": ROOT})
        try:
            nodes.start(2)
            yield nodes
        finally:
            nodes.stop()


class Queue:
    """A book, its journal and runners."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.path = folder / "runs" / ".queue" / "queue.sqlite"
        self.journal = folder / "journal"
        self.log = folder / "runner.log"
        self.nodes = nodes
        self.book = Book(self.path)
        self.runners: list[subprocess.Popen[bytes]] = []

    def add(self, count: int, steps: int) -> None:
        add(
            self.book,
            [NewJob(name=f"job{n}", preset="fake", stored="fake", overrides=(f"steps={steps}",)) for n in range(count)],
        )

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            runner = subprocess.Popen(
                [sys.executable, "-c", RUNNER, self.nodes.address, str(self.path), FAKE, str(self.journal)],
                env={**environment(), "PYTHONPATH": ROOT},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.runners.append(runner)
        return runner

    def wait_until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, f"{self.log.read_text()}\n{self.story()}"
            time.sleep(0.1)

    def story(self) -> str:
        logs = [self.book.log_of(job.id) for job in self.book.jobs()]
        return "\n".join([str(self.lines()[-20:]), *(log.read_text() for log in logs if log.exists())])

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def counted(self, job: int) -> int:
        return sum(words[:2] == ["count", str(job)] for words in self.lines())

    def processes(self) -> list[psutil.Process]:
        """Of its jobs: here and on the nodes."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK, "").startswith(f"{self.path.resolve()}:"):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def check(self, jobs: int, steps: int) -> None:
        """All done, each count made, none by two at once, nothing left behind."""
        assert [job.state for job in self.book.jobs("1 ORDER BY id")] == ["done"] * jobs, self.story()
        for job in range(1, jobs + 1):
            seen = Counter(int(words[2]) for words in self.lines() if words[:2] == ["count", str(job)])
            assert sorted(seen) == list(range(1, steps + 1))
            at_work: set[str] = set()
            for words in self.lines():
                if words[:2] == ["begin", str(job)]:
                    assert all(not psutil.pid_exists(int(pid)) for pid in at_work), "two at once"
                    at_work = {words[3]}
                elif words[:2] == ["end", str(job)]:
                    at_work.discard(words[3])
        self.wait_until(lambda: not self.processes())
        assert not list(self.path.parent.glob("seen-*"))


@pytest.fixture
def queue(tmp_path: Path, nodes: Nodes) -> Iterator[Queue]:
    (tmp_path / "runs").mkdir()
    queue = Queue(tmp_path, nodes)
    yield queue
    for runner in queue.runners:
        runner.kill()
        runner.wait()
    for process in queue.processes():
        process.kill()
    queue.book.close()


def test_a_node_lost_in_mid_job(queue: Queue, nodes: Nodes) -> None:
    """Three jobs on two nodes; one node loses its power. Its job waits again, and goes on where it was, elsewhere."""
    steps = 150
    queue.add(3, steps)
    runner = queue.start()
    queue.wait_until(lambda: queue.counted(1) > 10 and queue.counted(2) > 10)
    nodes.kill(nodes.started[-1])
    nodes.add()  # for the tests that follow; the job does not wait for it
    assert runner.wait(timeout=2 * PATIENCE) == 0, queue.log.read_text()
    queue.check(3, steps)
    attempts = [job.attempt for job in queue.book.jobs("1 ORDER BY id")]
    assert sorted(attempts) == [1, 1, 2], "the lost one, and only that, began twice"
    lost = next(job for job in queue.book.jobs() if job.attempt == 2)
    assert any("its node was lost" in line.what for line in queue.book.happenings(lost.id))
    assert queue.counted(lost.id) <= steps + 1, "it went on where it was"
    assert lost.deaths == 0


def test_the_runner_and_what_it_started_are_killed(queue: Queue) -> None:
    """A runner's death changes nothing on the cluster; where the job's process here dies too, the job saves and goes on."""
    steps = 120
    queue.add(2, steps)
    first = queue.start()
    queue.wait_until(lambda: queue.counted(1) > 5 and queue.counted(2) > 5)
    first.kill()
    first.wait()
    queue.start()
    queue.wait_until(lambda: "this one watches over it" in queue.log.read_text())
    job = queue.book.job(2)
    assert job is not None
    assert job.attempt == 1
    psutil.Process(int(job.process.split("|")[3])).kill()
    assert queue.runners[-1].wait(timeout=2 * PATIENCE) == 0, queue.log.read_text()
    queue.check(2, steps)
    assert [one.attempt for one in queue.book.jobs("1 ORDER BY id")] == [1, 2]
    assert Counter(words[1] for words in queue.lines() if words[0] == "end") == {"1": 1, "2": 2}, (
        "it saved when left alone"
    )


def test_cancel_pause_and_stop_reach_the_node(queue: Queue) -> None:
    queue.add(2, 3000)
    runner = queue.start()
    queue.wait_until(lambda: queue.counted(1) > 5 and queue.counted(2) > 5)
    queue.wait_until(lambda: all(job.phase == "training" and job.total == 3000 for job in queue.book.jobs()))
    changes.cancel(queue.book, queue.book.jobs("id = 1"))
    queue.wait_until(lambda: queue.book.jobs("id = 1")[0].state == "cancelled")
    runner.send_signal(signal.SIGINT)
    assert runner.wait(timeout=PATIENCE) != 0
    (second,) = queue.book.jobs("id = 2")
    assert second.state == "waiting"
    assert 5 < second.step < 3000
    assert [words[:2] for words in queue.lines() if words[0] == "end"] == [["end", "1"], ["end", "2"]]
    assert "counting from 0" in queue.book.log_of(2).read_text()
    assert not queue.processes()


def test_a_real_training(nodes: Nodes, tmp_path: Path) -> None:
    """The quickstart, a few steps of it, as a user types it."""
    pytest.importorskip("torch")

    def type_in(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pixelkit", *words, "--runs", str(tmp_path)],
            env={**environment(), "PYTHONPATH": ROOT, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    few = ("engine=diffusers", "train.steps=4")
    added = type_in("queue", "add", "quickstart", *(word for one in few for word in ("--set", one)))
    assert added.returncode == 0, added.stderr
    ran = type_in("queue", "run", "--ray", nodes.address, "--drain")
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}\n{type_in('queue', 'logs', '1').stdout}"
    with Book.at(tmp_path) as book:
        (job,) = book.jobs()
        assert (job.state, job.attempt, job.step, job.total) == ("done", 1, 4, 4)
        assert Path(job.model).is_file()
        assert Path(job.run).parent == tmp_path
    assert "on node" in type_in("queue", "logs", "1").stdout
