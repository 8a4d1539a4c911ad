"""One run in two processes, as two GPUs would have it; here on the CPU, through accelerate's own launcher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
from kohya_bench import Bench, assert_lora, read_metadata
from safetensors.numpy import load_file

# 20 images at batch 2: 10 batches, 5 for each process, with accumulation 2 an epoch of 3 steps.
OPTIONS: dict[str, Any] = {
    "processes": 2,
    "module": "cpu_pair",
    "max_train_steps": 8,
    "batch": 2,
    "gradient_accumulation_steps": 2,
    "save_state": True,
    "captions": {"caption_dropout_rate": 0.3, "shuffle_caption": True},
    "save_precision": "float",
}


def test_stopped_and_resumed(bench: Bench, toy: Path) -> None:
    straight = bench.start(toy, "--layout", "diffusers", **OPTIONS, output_dir=str(bench.folder / "straight"))
    assert straight.finish() == 0, straight.log.read_text(errors="replace")[-3000:]
    kinds = [event["event"] for event in straight.events]
    assert kinds == ["begin", "sample", *["step"] * 8, "sample", "state", "save", "end"]
    assert [event["epoch"] for event in straight.of("step")] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert len(list((bench.folder / "straight" / "sample").glob("*.png"))) == 2
    assert_lora(bench.folder / "straight" / "hero.safetensors", unet_modules=192)

    run = bench.start(toy, "--layout", "diffusers", **OPTIONS)
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 3)
    run.order("stop\n")
    assert run.finish() == 0, run.log.read_text(errors="replace")[-3000:]
    last = run.events[-1]["step"]
    assert [event["event"] for event in run.events[-3:]] == ["save", "state", "stopped"]
    assert 4 <= last < 8
    state = Path(run.of("state")[0]["path"])
    assert json.loads((state / "train_state.json").read_text())["current_step"] == last
    assert sorted(path.name for path in state.glob("random_states_*")) == ["random_states_0.pkl", "random_states_1.pkl"]
    assert not [name for name in load_file(state / "model.safetensors") if name.startswith("module.")]

    again = bench.start(toy, "--layout", "diffusers", **OPTIONS, resume=str(state))
    assert again.finish() == 0, again.log.read_text(errors="replace")[-3000:]
    losses = {event["step"]: event["loss"] for event in (*run.of("step"), *again.of("step"))}
    assert losses == {event["step"]: event["loss"] for event in straight.of("step")}
    expected, found = (load_file(folder / "hero.safetensors") for folder in (bench.folder / "straight", bench.out))
    assert all((expected[name] == found[name]).all() for name in expected)
    assert read_metadata(bench.out / "hero.safetensors")["ss_steps"] == "8"


def test_nothing_is_left(bench: Bench, toy: Path) -> None:
    """The pipe ends: both processes and the launcher end, with weights and a state saved."""
    options = OPTIONS | {"max_train_steps": 100000, "sample_prompts": None}
    run = bench.start(toy, "--layout", "diffusers", **options)
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 2)
    family = psutil.Process(run.process.pid).children(recursive=True)
    assert len(family) >= 2
    assert run.process.stdin is not None
    run.process.stdin.close()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    run.finish()
    assert len(list(bench.out.glob("hero-step*-state/train_state.json"))) == 1


def test_launcher_killed(bench: Bench, toy: Path) -> None:
    """kill -9 of the launcher's group does not reach the processes, which torchrun puts in sessions of their own."""
    options = OPTIONS | {"max_train_steps": 100000, "sample_prompts": None}
    run = bench.start(toy, "--layout", "diffusers", **options)
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 1)
    family = psutil.Process(run.process.pid).children(recursive=True)
    run.process.kill()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
