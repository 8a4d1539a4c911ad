"""Runs that survive: memory that runs out, orders from outside, two that want one run, numbers that run away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fake_runs import Runs, at_step
from fake_trainer import ROOT

from pixelkit import launch as launch_module
from pixelkit import memory, training
from pixelkit.errors import Interrupted, PixelkitError, StorageError, TrainingError
from pixelkit.memory import GIB, MemoryGuard
from pixelkit.preset_file import load_preset
from pixelkit.progress import Event, Sample, Save, Step
from pixelkit.ready import Choices, make_ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelkit.rundir import RunDir


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")


# --- memory


def test_down_the_ladder_and_on_from_the_last_state(runs: Runs) -> None:
    runs.engine.how = {"fits": 1, "until": 5}
    runs.start()
    assert runs.state() == "done"
    retries = runs.run.read_manifest()["retries"]
    assert [entry["rung"] for entry in retries] == ["gradient checkpointing", "smaller batch", "smaller batch"]
    assert [entry["at_step"] for entry in retries] == [4, 4, 4]
    state = str(runs.run.output / "quickstart-step00000003-state")
    assert {entry["from_state"] for entry in retries} == {state}
    assert [path and path.name for path in runs.engine.resumed_from] == [None, *["quickstart-step00000003-state"] * 3]
    assert runs.steps() == list(range(1, 13)), "one curve"
    assert runs.losses() == [1 / (step + 4) for step in range(1, 13)], "the effective batch stayed"
    assert len(runs.engine.told) == 3
    assert "batch size 1 with gradient accumulation 4" in runs.engine.told[2]
    assert "overrules train.batch_size of your preset" in runs.engine.told[1]
    assert "from step 3" in runs.engine.told[0]


def test_a_rung_that_works_is_kept(runs: Runs) -> None:
    runs.engine.how = {"fits": 2, "until": 5, "fails": 8, "how": "os.kill(os.getpid(), 9)"}
    with pytest.raises(TrainingError) as caught:
        runs.start()
    assert caught.value.kind == "killed"
    kept = load_preset(str(runs.run.resolved)).preset.train
    assert (kept.batch_size, kept.gradient_accumulation, kept.gradient_checkpointing) == (2, 2, True)
    assert json.loads(runs.run.plan.read_text())["train"]["batch_size"] == 2
    runs.engine.how = {"fits": 2}
    told = len(runs.engine.told)
    runs.resume()
    assert len(runs.engine.told) == told, "nothing had to be found out again"
    assert runs.steps() == list(range(1, 13))


def test_epochs_keep_their_number_of_steps(runs: Runs) -> None:
    runs.overrides = [entry for entry in runs.overrides if "steps=" not in entry]
    runs.engine.how = {"fits": 1}
    runs.start("train.epochs=2", "train.save_every_epochs=1")
    assert runs.steps() == [1, 2, 3, 4], "8 sprites, 4 a step, 2 epochs"


def test_without_retry_it_ends_there(runs: Runs) -> None:
    runs.engine.how = {"fits": 2}
    with pytest.raises(TrainingError) as caught:
        runs.start(retry=False)
    assert caught.value.kind == "oom"
    assert "retries" not in runs.run.read_manifest()
    assert not runs.engine.told


def test_the_ladders_end_says_what_was_tried(runs: Runs) -> None:
    runs.engine.how = {"fits": 0}
    with pytest.raises(TrainingError) as caught:
        runs.start()
    assert caught.value.kind == "oom"
    assert caught.value.message == "MemoryError"
    assert "gradient checkpointing on (slower by about a third); batch size 2 with" in caught.value.hint
    assert "a smaller base" in caught.value.hint
    assert runs.state() == "failed"
    assert len(runs.run.read_manifest()["retries"]) == 3
    assert load_preset(str(runs.run.resolved)).preset.train.batch_size == 4, "what did not work is not kept"


def test_the_kernels_kill_is_want_of_memory(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's counter rises while the trainer is killed; another time it does not."""
    kills: list[int] = []
    monkeypatch.setattr(launch_module, "count_oom_kills", lambda: len(kills))
    runs.engine.how = {"fails": 5, "how": "if batch > 2: os.kill(os.getpid(), 9)"}
    with pytest.raises(TrainingError) as caught:
        runs.start()
    assert caught.value.kind == "killed", "somebody killed it: that is no want of memory"
    runs.resume(on_event=at_step(4, lambda: kills.append(1)))
    assert [entry["rung"] for entry in runs.run.read_manifest()["retries"]] == [
        "gradient checkpointing",
        "smaller batch",
    ]
    assert "the kernel killed the trainer for want of memory" in runs.run.read_manifest()["retries"][0]["reason"]
    assert runs.steps() == list(range(1, 13))


def sink(runs: Runs, monkeypatch: pytest.MonkeyPatch, left: Callable[[], float]) -> None:
    """A machine with a guard at 12 GiB, that has `left` GiB."""
    monkeypatch.setattr(training, "make_guard", lambda _: MemoryGuard(stop_below=12 * GIB, read=lambda: left() * GIB))
    monkeypatch.setattr(launch_module, "MEMORY_EVERY", 0.05)
    runs.engine.how = {"pause": 0.1}


def test_the_guard_saves_and_stops_and_the_ladder_goes_on(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[float] = []

    def left() -> float:
        trainers = len(runs.engine.resumed_from)
        return 9.5 if trainers == 1 and readings else 40.0

    sink(runs, monkeypatch, left)
    runs.start(on_event=at_step(4, lambda: readings.append(1)))
    manifest = runs.run.read_manifest()
    assert [entry["rung"] for entry in manifest["retries"]] == ["gradient checkpointing"]
    said = "9.5 GiB of the machine's memory are left, and training stops below 12.0 GiB"
    assert manifest["retries"][0]["reason"] == said
    assert f"pixelkit: {said}: saving, then stopping" in runs.run.log.read_text()
    assert manifest["retries"][0]["from_step"] >= 4, "saved when it was told to stop, not at the rhythm"
    assert runs.steps() == list(range(1, 13))


@pytest.mark.parametrize("deaf", [False, True])
def test_the_guard_kills_where_there_is_no_time(runs: Runs, monkeypatch: pytest.MonkeyPatch, deaf: bool) -> None:
    """Memory is nearly gone at once; or it falls on, and the trainer does not stop."""
    monkeypatch.setattr(memory, "STOP_PATIENCE", 0.5)
    falling = iter(range(1000))
    at = []

    def left() -> float:
        if not at or len(runs.engine.resumed_from) > 1:
            return 40.0
        return 11 - next(falling) / 1000 if deaf else 5.0

    sink(runs, monkeypatch, left)
    runs.engine.how |= {"fails": 4, "how": "if not state: time.sleep(60)"}
    started = time.monotonic()
    runs.start(on_event=at_step(3, lambda: at.append(1)))
    assert time.monotonic() - started < 30
    assert [entry["rung"] for entry in runs.run.read_manifest()["retries"]] == ["gradient checkpointing"]
    assert "killing the trainer" in runs.run.log.read_text()
    assert runs.steps() == list(range(1, 13))


# --- orders, owners


def test_orders_reach_the_trainer(runs: Runs) -> None:
    runs.engine.how = {"pause": 0.1}
    seen: list[RunDir] = []
    saved: list[int] = []

    def order(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            seen[0].leave_order("sample")
        if isinstance(event, Sample):
            seen[0].leave_order("save")
        if isinstance(event, Save) and event.step == min(saved, default=event.step):
            saved.append(event.step)
            seen[0].leave_order("stop")

    with pytest.raises(Interrupted, match="weights and state are saved"):
        runs.start("train.steps=60", "train.save_every_steps=1000", on_run=seen.append, on_event=order)
    assert seen == [runs.run]
    events = [(event["event"], event["step"]) for event in runs.run.read_metrics() if event["event"] != "step"]
    assert [kind for kind, _ in events] == ["begin", "sample", "save", "state", "save", "state", "stopped"]
    assert runs.state() == "interrupted"
    runs.resume(on_run=seen.append)
    assert seen == [runs.run] * 2, "also when it is resumed"
    assert runs.steps() == list(range(1, 61))


def test_a_stop_while_sprites_are_prepared(runs: Runs) -> None:
    def stop(done: int, _: int) -> None:
        if done == 5:
            runs.run.leave_order("stop")

    with pytest.raises(Interrupted, match="while the sprites were prepared"):
        runs.start(on_prepared=stop)
    assert runs.state() == "interrupted"
    runs.resume()
    assert runs.state() == "done"


def test_of_two_that_resume_at_once_one_goes_on(runs: Runs) -> None:
    runs.engine.how = {"pause": 0.05, "fails": 5, "how": "sys.exit(1)"}
    with pytest.raises(TrainingError):
        runs.start()
    runs.engine.how = {"pause": 0.05}
    ends: list[object] = []

    def resume() -> None:
        try:
            ends.append(runs.resume())
        except PixelkitError as error:
            ends.append(error)

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [end for end in ends if isinstance(end, StorageError)]
    assert len(refused) == 3
    assert all("is at work" in str(end) for end in refused), refused
    assert runs.state() == "done"
    assert runs.steps() == list(range(1, 13))


HOLDER = """
import os, sys, time
from pathlib import Path
from pixelkit.errors import StorageError
from pixelkit.rundir import RunDir
run = RunDir(path=Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    with run.hold():
        alone = os.open(run.path / "alone", os.O_CREAT | os.O_EXCL)
        time.sleep(1.5)
        os.unlink(run.path / "alone")
        print("held")
except StorageError as error:
    print("refused" if "is at work" in str(error) else error)
"""


def test_of_processes_that_want_a_run_one_holds_it(runs: Runs) -> None:
    runs.start()
    argv = [sys.executable, "-c", HOLDER, str(runs.run.path)]
    holders = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    for holder in holders:
        assert holder.stdout
        assert holder.stdout.readline() == "ready\n"
    for holder in holders:
        assert holder.stdin
        holder.stdin.write("\n")
        holder.stdin.flush()
    assert sorted(holder.communicate()[0] for holder in holders) == ["held\n", *["refused\n"] * 3]


# --- numbers


@pytest.mark.parametrize(
    ("settings", "step", "what", "why", "change"),
    [
        ((), 7, "loss", "a learning rate that is too high", {"learning_rate": 1e-3}),
        (
            ("train.learning_rate=0.02",),
            7,
            "gradient",
            "above the usual range of pixelkit-tiny",
            {"learning_rate": 0.01},
        ),
        ((), 1, "loss", "the base's file is damaged", None),
        ((), 1, "latents", "even in full precision", None),
    ],
)
def test_numbers_that_run_away(
    runs: Runs, settings: tuple[str, ...], step: int, what: str, why: str, change: dict[str, Any] | None
) -> None:
    end = f"control.emit('nonfinite', step={step}, what={what!r}); sys.exit(65)"
    runs.engine.how = {"fails": step, "how": end}
    with pytest.raises(TrainingError) as caught:
        runs.start(*settings)
    assert caught.value.kind == "nonfinite"
    assert why in caught.value.hint
    mended = runs.run.path / "mended.toml"
    assert mended.exists() == bool(change)
    if step > 3:
        assert runs.run.last_state() == (runs.run.output / "quickstart-step00000006-state", 6), "the last finite one"
    if not change:
        return
    assert f"`pixelkit run {mended}`" in caught.value.hint
    before, after = (load_preset(str(file)).preset.model_dump() for file in (runs.run.resolved, mended))
    assert after == {**before, "train": {**before["train"], **change}}
    assert make_ready(str(mended), Choices()).plan.train.learning_rate == change["learning_rate"]
