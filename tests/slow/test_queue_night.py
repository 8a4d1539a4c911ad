"""A night in small: three presets on the diffusers engine; one fails, one is killed together with the runner and goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from pixelkit.queue.book import Book, Job
from pixelkit.queue.life import Life
from pixelkit.queue.service import write_unit
from pixelkit.registry.store import open_registry

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 400.0  # of a machine that does much else; alone it takes a tenth
PRESET = """\
name = "{name}"
base = "pixelkit-tiny"
engine = "diffusers"

[dataset]
path = "{name}"

[train]
steps = {steps}
batch_size = 1
save_every_steps = 3

[export]
formats = ["kohya"]
"""


def write_preset(folder: Path, name: str, steps: int) -> Path:
    (folder / name).mkdir()
    for number in range(2):
        Image.new("RGBA", (16, 16), (200, 40 * number, 30, 255)).save(folder / name / f"{number}.png")
    path = folder / f"{name}.toml"
    path.write_text(PRESET.format(name=name, steps=steps))
    return path


def pixelkit(folder: Path, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", "pixelkit", "queue", *map(str, words), "--runs", str(folder / "runs")]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "PIXELKIT_SD_SCRIPTS"}
    return {**kept, "XDG_CONFIG_HOME": str(tmp_path / "settings"), "CUDA_VISIBLE_DEVICES": ""}


def wait_for(what: Callable[[], bool], runner: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it did not come"
        assert runner is None or runner.poll() is None, "the runner has ended"
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_night_in_small(tmp_path: Path, environment: dict[str, str]) -> None:
    presets = [
        write_preset(tmp_path, "long", 30),
        write_preset(tmp_path, "lost", 3),
        write_preset(tmp_path, "quick", 3),
    ]
    done = subprocess.run(
        pixelkit(tmp_path, "add", *presets, "--registry", tmp_path / "models"),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "job 1 (long) is waiting",
        "job 2 (lost) is waiting",
        "job 3 (quick) is waiting",
    ]
    shutil.rmtree(tmp_path / "lost")
    presets[2].write_text("edited later, and wrong")
    book = Book.at(tmp_path / "runs")

    def job(number: int) -> Job:
        found = book.job(number)
        assert found
        return found

    log = (tmp_path / "runner.log").open("ab")
    first = subprocess.Popen(pixelkit(tmp_path, "run", "--drain"), env=environment, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: job(1).step >= 4, first)
        process = Life.read(job(1).process)
        run = job(1).run
    finally:
        first.kill()
        first.wait()
    process.kill()
    assert Path(run).is_dir() and job(1).state == "running"
    second = subprocess.Popen(pixelkit(tmp_path, "run", "--drain"), env=environment, stderr=log, start_new_session=True)
    try:
        assert second.wait(PATIENCE) == 0
    finally:
        second.kill()
    story = (tmp_path / "runner.log").read_text()
    assert [job(number).state for number in (1, 2, 3)] == ["done", "failed", "done"], story
    assert (job(1).attempt, job(1).run) == (2, run), "it went on in its run directory"
    events = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    begins = [event["step"] for event in events if event["event"] == "begin"]
    assert len(begins) == 2 and begins[1] > 0, f"from a saved state, not from the start: {begins}"
    assert job(2).exit_code == 4 and not job(2).run
    for number in (1, 3):
        assert Path(job(number).model).is_file()
    assert "the queue is drained: 2 done, 1 failed" in story
    listed = subprocess.run(
        pixelkit(tmp_path, "list"), env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "30/30" in listed and "2 done, 1 failed" in listed
    with open_registry(tmp_path / "models").reading() as index:
        entries = {str(entry.name): entry for entry in index.models()}
    assert sorted(entries) == ["long_v1.0", "quick_v1.0"], "what succeeded, and nothing else"
    for entry in entries.values():
        assert entry.stage == "staging"
        assert entry.metadata["hyperparameters"]["steps"] in {30, 3}
        assert entry.metadata["dataset"]["size"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_saves_and_a_cancelled_job_stays_cancelled(tmp_path: Path, environment: dict[str, str]) -> None:
    preset = write_preset(tmp_path, "long", 20_000)
    subprocess.run(pixelkit(tmp_path, "add", preset), env=environment, check=True, capture_output=True)
    book = Book.at(tmp_path / "runs")

    def job() -> Job:
        found = book.job(1)
        assert found
        return found

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(pixelkit(tmp_path, "run"), env=environment, stderr=subprocess.DEVNULL)

    runner = start()
    try:
        wait_for(lambda: job().step > 0, runner)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(PATIENCE) == 130
        assert (job().state, job().deaths) == ("waiting", 0)
        assert list(Path(job().run).glob("output/*-state")), "it saved"
        runner = start()
        wait_for(lambda: job().attempt == 2 and job().phase == "training", runner)
        subprocess.run(pixelkit(tmp_path, "cancel", "long"), env=environment, check=True, capture_output=True)
        wait_for(lambda: job().state == "cancelled", runner)
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(PATIENCE) == 130
    finally:
        runner.kill()
        runner.wait()


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    runs = tmp_path / "my runs 100%"
    runs.mkdir()
    unit = tmp_path / "pixelkit-queue.service"
    unit.write_text(write_unit(runs, 2))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    verify = ["systemd-analyze", "verify", "--user", str(unit)]
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "pixelkit-queue" not in done.stderr, done.stderr
    unit.write_text(unit.read_text().replace("KillMode=process", "KilMode=process"))
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, check=False)
    assert "KilMode" in done.stderr, "it looks at what we write"
