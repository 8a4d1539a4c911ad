"""A run that is killed and resumed, twice, against one that was not: the same losses and files, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kohya_bench import Bench, Training, read_metadata
from safetensors.numpy import load_file

# 5 batches an epoch: with accumulation 2 an epoch has 3 steps, of 2, 2 and 1 batches, so 12 steps have 4 epochs.
CAPTIONS: dict[str, object] = {
    "shuffle_caption": True,
    "caption_dropout_rate": 0.3,
    "caption_tag_dropout_rate": 0.2,
    "flip_aug": True,
}


def read_losses(training: Training) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in training.of("step")}


def kill_at(training: Training, step: int) -> None:
    """kill -9 once `step` is done, which is after the state that the next one starts from."""
    training.wait_for(lambda event: event["event"] == "step" and event["step"] >= step)
    training.kill()


@pytest.mark.parametrize(("accumulation", "workers", "scheduler"), [(2, 0, "cosine"), (1, 1, "constant")])
def test_killed_twice(bench: Bench, toy: Path, accumulation: int, workers: int, scheduler: str) -> None:
    options: dict[str, Any] = {
        "max_train_steps": 12,
        "save_every_n_steps": 1,
        "save_state": True,
        "save_last_n_steps_state": 4,
        "gradient_accumulation_steps": accumulation,
        "max_data_loader_n_workers": workers,
        "lr_scheduler": scheduler,
        "network_dropout": 0.1,
        "captions": CAPTIONS,
        "save_precision": "float",
        "sample_every_n_steps": 5,
    }
    straight = bench.start(toy, "--layout", "diffusers", **options, output_dir=str(bench.folder / "straight"))
    assert straight.finish() == 0
    losses = read_losses(straight)
    assert list(losses) == list(range(1, 13))
    assert len(set(losses.values())) == 12

    first = bench.start(toy, "--layout", "diffusers", **options)
    kill_at(first, 6)
    found = read_losses(first)
    for stop in (5, 9):
        state = bench.out / f"hero-step{stop:08d}-state"
        assert json.loads((state / "train_state.json").read_text())["current_step"] == stop
        again = bench.start(toy, "--layout", "diffusers", **options, resume=str(state))
        if stop == 5:
            kill_at(again, 10)
        else:
            assert again.finish() == 0
        assert again.of("begin")[0]["step"] == stop
        resumed = read_losses(again)
        assert min(resumed) == stop + 1
        found |= resumed
    assert found == losses

    files = sorted(path.name for path in (bench.folder / "straight").glob("*.safetensors"))
    assert len(files) == 13
    assert sorted(path.name for path in bench.out.glob("*.safetensors")) == files
    for name in files:
        expected, tensors = load_file(bench.folder / "straight" / name), load_file(bench.out / name)
        assert all((expected[key] == tensors[key]).all() for key in expected), name
        step = name.partition("-step")[2][:8] or "12"
        assert read_metadata(bench.out / name)["ss_steps"] == str(int(step))


def test_going_on_from_weights(bench: Bench, toy: Path) -> None:
    """After a change of optimizer: no state, but steps, the learning rate and the order of batches go on."""
    options: dict[str, Any] = {
        "max_train_steps": 8,
        "save_every_n_steps": 4,
        "lr_scheduler": "linear",
        "sample_prompts": None,
    }
    run = bench.start(toy, "--layout", "diffusers", **options)
    assert run.finish() == 0
    rates = {event["step"]: event["lr"] for event in run.of("step")}
    weights = bench.out / "hero-step00000004.safetensors"
    changed = {"initial_step": 4, "network_weights": str(weights), "optimizer_type": "Adafactor"}
    changed |= {"optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"]}
    again = bench.start(toy, "--layout", "diffusers", **options, **changed)
    assert again.finish() == 0
    assert again.of("begin")[0]["step"] == 4
    assert {event["step"]: event["lr"] for event in again.of("step")} == {step: rates[step] for step in range(5, 9)}
    assert [Path(event["path"]).name for event in again.of("save")] == [
        "hero-step00000008.safetensors",
        "hero.safetensors",
    ]
    assert read_metadata(bench.out / "hero.safetensors")["ss_steps"] == "8"
