"""Those of the 25 (test_the_25.py) that only a training shows: without data, into NaN, stopped, resumed, nowhere to save."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import stock
from calls import DATA, QUICKSTART, TOP, check, finish, refuse, run_poisoned, start_pixelkit
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_every_key_arrives import make_plan, rendered

from pixelkit.engines.kohya import adapter as kohya
from pixelkit.errors import TrainingError
from pixelkit.rundir import RunDir
from pixelkit.ship import inspect_weights

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trainer(sd_scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> stock.Trainer:
    """Stock train_network.py on the toy base."""
    return stock.Trainer(sd_scripts, tmp_path_factory.mktemp("stock"))


def test_15_no_data(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "sprites").mkdir()
    code, said = check(TOP + DATA)
    assert code == 4 and "no image found" in said
    trainer = request.getfixturevalue("trainer")
    run = trainer.run("no_data", images=tmp_path / "sprites")
    assert (run.code, run.files) == (0, []), "nothing was trained, and all is well"


def test_16_a_lora_of_nan(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "nan.safetensors"
    save_file({"lora_unet_x.lora_up.weight": np.full((2, 2), np.nan, np.float32)}, file)
    with pytest.raises(TrainingError, match=r"not finite|NaN"):
        inspect_weights(file, newer_than=0)
    run = request.getfixturevalue("trainer").run("nan", learning_rate=1e30, max_train_steps=3)
    assert run.code == 0
    assert any(np.isnan(tensor).any() for tensor in load_file(run.out / "hero.safetensors").values())
    code, said = run_poisoned(tmp_path, "unet", "conv_in.bias")
    assert code == 7 and "error (nonfinite)" in said
    assert not list((tmp_path / "runs").glob("*/export")) and not list(
        (tmp_path / "runs").rglob("quickstart.safetensors")
    )


def test_24_no_output_folder(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert "[kohya] output_dir" in refuse(tmp_path, 'output_dir = ""')
    plan = make_plan(tmp_path, "", base="sd15")
    assert rendered(plan, tmp_path)["config"]["output_dir"]
    file = tmp_path / "config.toml"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "output_dir" not in line))
    files = {name: tmp_path / name for name in ("config.toml", "dataset.toml", "accelerate.yaml")}
    found = "\n".join(map(str, kohya.verify(plan, files)))
    assert "output_dir is missing: the training would crash after its last step" in found
    run = request.getfixturevalue("trainer").run("no_output", output_dir=None, max_train_steps=2)
    assert run.code == 1 and "2/2" in run.log and "TypeError" in run.log, "after the whole training"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Whatever still works on files in `folder`."""
    alive = (process for process in psutil.process_iter(["cmdline", "status"]) if process.info["status"] != "zombie")
    return [process for process in alive if str(folder) in " ".join(process.info["cmdline"] or [])]


def wait_until(met: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)


@dataclass(kw_only=True)
class Stopped:
    """A run of pixelkit that SIGTERM stopped in its second epoch or later, was resumed, and then stopped by Ctrl-C."""

    run: RunDir
    at: int
    codes: tuple[int, int]
    left: int
    before: dict[str, str]


@pytest.fixture(scope="module")
def stopped(sd_scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    runs = tmp_path_factory.mktemp("stopped") / "runs"
    settings = (
        "engine=kohya",
        "train.steps=5000",
        "train.batch_size=8",
        "train.save_every_steps=3",
        "sample.prompts=[]",
    )

    def last_step() -> int:
        events = [event for run in runs.glob("quickstart*") for event in RunDir(path=run).read_metrics()]
        return max((event["step"] for event in events if event["event"] == "step"), default=0)

    def stop(process: subprocess.Popen[str], number: signal.Signals, *, after: int) -> int:
        wait_until(lambda: last_step() > after or process.poll() is not None)
        process.send_signal(number)
        return finish(process)[0]

    overrides = [word for value in settings for word in ("--set", value)]
    first = stop(start_pixelkit("run", QUICKSTART, *overrides, runs=runs), signal.SIGTERM, after=7)
    (path,) = runs.glob("quickstart*")
    left, at = len(processes_of(runs)), last_step()
    before = {file.name: stock.hash_file(file) for file in (path / "output").glob("*.safetensors")}
    second = stop(start_pixelkit("resume", path, runs=runs), signal.SIGINT, after=at + 6)
    return Stopped(run=RunDir(path=path), at=at, codes=(first, second), left=left, before=before)


@pytest.fixture(scope="module")
def saved(trainer: stock.Trainer) -> stock.Run:
    """Stock: 6 steps, 2 an epoch, a state after the third."""
    run = trainer.run("saved", save_every_n_steps=3, save_state=True)
    assert run.code == 0 and run.read_steps("hero-step00000003-state") == (3, 3)
    return run


@pytest.fixture(scope="module")
def resumed(trainer: stock.Trainer, saved: stock.Run) -> stock.Run:
    """Stock, from that state, with --resume alone."""
    state = saved.out / "hero-step00000003-state"
    run = trainer.run("resumed", save_every_n_steps=3, save_state=True, resume=str(state))
    assert run.code == 0
    return run


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Stock, its launcher terminated, then Ctrl-C in its group: whether it went on without parent, and what it left."""

    went_on: bool
    log: str
    saved: list[str]


@pytest.fixture(scope="module")
def orphan(trainer: stock.Trainer) -> Orphan:
    launcher = trainer.start("orphan", max_train_steps=100_000, save_state=True, save_every_n_epochs=1000)
    log, out = trainer.log("orphan"), trainer.out("orphan")
    try:
        wait_until(lambda: b" 3/100000 " in log.read_bytes() or launcher.poll() is not None)
        launcher.terminate()
        launcher.wait(timeout=30)
        seen = log.stat().st_size
        (left,) = processes_of(log.parent)
        wait_until(lambda: log.stat().st_size > seen + 1000 or not left.is_running(), 60)
        went_on = left.is_running()
        os.killpg(launcher.pid, signal.SIGINT)
        left.wait(timeout=60)
    finally:
        for process in processes_of(log.parent):
            process.kill()
    saved = [path.name for path in out.iterdir()] if out.exists() else []
    return Orphan(went_on=went_on, log=log.read_text("utf-8", "replace"), saved=saved)


def test_18_a_trainer_without_parent_goes_on(orphan: Orphan, stopped: Stopped) -> None:
    assert orphan.went_on
    assert stopped.codes[0] == 130
    assert stopped.left == 0, "SIGTERM to pixelkit alone ends the trainer too"


def test_19_ctrl_c_saves_nothing(orphan: Orphan, stopped: Stopped) -> None:
    assert "KeyboardInterrupt" in orphan.log and orphan.saved == []
    assert stopped.codes[1] == 130
    assert f"quickstart-step{stopped.at:08d}.safetensors" in stopped.before, "SIGTERM saves"
    output = stopped.run.output
    last = max(int(path.stem[-8:]) for path in output.glob("quickstart-step*.safetensors"))
    assert last > stopped.at and (output / f"quickstart-step{last:08d}-state").is_dir(), "Ctrl-C saves"


def test_20_resume_counts_from_0(resumed: stock.Run, stopped: Stopped) -> None:
    assert resumed.read_steps("hero-step00000003-state") == (3, 6), "it says 3, and has done 6"
    events = list(stopped.run.read_metrics())
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > stopped.at + 6
    for file in stopped.run.output.glob("quickstart-step*.safetensors"):
        with safe_open(file, "numpy") as weights:
            assert weights.metadata()["ss_steps"] == str(int(file.stem[-8:]))


def test_21_resume_rewrites_step_files(saved: stock.Run, resumed: stock.Run, stopped: Stopped) -> None:
    name = "hero-step00000003.safetensors"
    assert stock.hash_file(saved.out / name) != stock.hash_file(resumed.out / name), "another model by the same name"
    output = stopped.run.output
    assert len(stopped.before) >= 3
    assert {name: stock.hash_file(output / name) for name in stopped.before} == stopped.before


def test_22_skip_until_initial_step_is_wrong(trainer: stock.Trainer, saved: stock.Run, stopped: Stopped) -> None:
    state = saved.out / "hero-step00000003-state"
    options: dict[str, Any] = {"save_every_n_steps": 3, "save_state": True, "resume": str(state)}
    run = trainer.run("skipped", skip_until_initial_step=True, **options)
    assert run.code == 0
    assert run.read_steps("hero-step00000003-state") == (3, 5), (
        "resumed after step 3, it takes the fourth for the second"
    )
    for folder in stopped.run.output.glob("quickstart-step*-state"):
        assert stock.read_steps(folder) == (int(folder.name[-14:-6]),) * 2
