"""Plain scripts of sd-scripts under watch: their own code on small stand-ins for the models (toy_trainer.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kohya_bases
import numpy as np
import pytest
from kohya_bases import TOY_TOKENS as TOKENS
from kohya_bench import Bench, Training, open_bench
from safetensors.numpy import load_file, save_file

from pixelkit.engines.kohya import resume

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN: dict[str, Any] = {"network_module": None, "network_dim": None, "network_alpha": None, "save_precision": "float"}
EMBEDDING = {"token_string": "hero", "init_word": "knight", "num_vectors_per_token": 2, "save_model_as": "safetensors"}
TEXT = {"ae": "ae", "clip_l": "clip_l", "t5xxl": "t5xxl", "t5xxl_max_token_length": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "train_db": {"save_model_as": "safetensors"},
    "sdxl_train": {"save_model_as": "safetensors", "train_text_encoder": True, "learning_rate_te2": 0.0},
    "flux_train": TEXT | {"sample_sampler": None, "guidance_scale": 1.0},
    "sd3_train": {"clip_l": "c", "clip_g": "c", "t5xxl": "c", "t5xxl_max_token_length": 32, "sample_sampler": None},
    "train_textual_inversion": EMBEDDING,
    "sdxl_train_textual_inversion": EMBEDDING,
}


@pytest.fixture
def bench(sd_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    folder = kohya_bases.make_tokenizer(tmp_path / "tokenizers", last_id=TOKENS - 1)
    monkeypatch.setenv("TOY_TOKENIZERS", str(folder))
    yield from open_bench(sd_scripts, tmp_path)


@pytest.fixture(scope="session")
def toy(sd_scripts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kohya_bases.make_toy(tmp_path_factory.mktemp("bases") / "toy", tokens=TOKENS)


def start(bench: Bench, toy: Path, script: str, **changes: Any) -> Training:
    return bench.start(toy, script=script, module="toy_trainer", **PLAIN | OPTIONS[script] | changes)


@pytest.mark.parametrize("script", OPTIONS)
def test_lines_are_where_the_resume_expects_them(sd_scripts: Path, script: str) -> None:
    source = "train_textual_inversion" if "textual" in script else script
    lines = (sd_scripts / f"{source}.py").read_text(encoding="utf-8").splitlines()
    for number, old, _ in resume.PATCHES[source]:
        assert lines[number - 1].count(old) == 1, f"{source}.py:{number}"


@pytest.mark.parametrize("script", OPTIONS)
def test_stopped_and_resumed(bench: Bench, toy: Path, script: str) -> None:
    """Straight against stopped in the second epoch: the same losses and the same result, bit for bit."""
    options: dict[str, Any] = {
        "max_train_steps": 8,
        "gradient_accumulation_steps": 2,
        "captions": {"shuffle_caption": True},
    }
    straight = start(bench, toy, script, **options, output_dir=str(bench.folder / "straight"))
    assert straight.finish() == 0, straight.log.read_text(errors="replace")[-3000:]
    kinds = [event["event"] for event in straight.events]
    assert kinds == ["begin", "sample", *["step"] * 8, "sample", "save", "end"]
    assert {"total": 8, "epochs": 3, "step": 0, "engine": "kohya"}.items() <= straight.events[0].items()
    steps = straight.of("step")
    assert [(event["step"], event["epoch"]) for event in steps] == [(step, (step + 2) // 3) for step in range(1, 9)]
    assert all(0 < event["loss"] < 100 for event in steps)
    assert [event["step"] for event in straight.of("sample")] == [0, 8]

    run = start(bench, toy, script, **options)
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 3)
    run.order("sample\nstop\n")
    assert run.finish() == 0
    last = run.events[-1]["step"]
    assert [event["event"] for event in run.events[-3:]] == ["save", "state", "stopped"]
    assert 4 <= last < 8
    assert json.loads(Path(run.of("state")[0]["path"], "train_state.json").read_text())["current_step"] == last
    again = start(bench, toy, script, **options, resume=run.of("state")[0]["path"])
    assert again.finish() == 0, again.log.read_text(errors="replace")[-3000:]
    losses = {event["step"]: event["loss"] for event in (*run.of("step"), *again.of("step"))}
    assert losses == {event["step"]: event["loss"] for event in steps}
    whole, resumed = (load_file(Path(training.of("end")[0]["path"])) for training in (straight, again))
    assert whole.keys() == resumed.keys()
    assert all((whole[name] == resumed[name]).all() for name in whole)
    assert not list(bench.out.glob("*.part*"))


def test_saved_in_rhythm_and_on_request(bench: Bench, toy: Path) -> None:
    run = start(bench, toy, "train_db", max_train_steps=100000, save_every_n_steps=4, sample_every_n_steps=3)
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 9)
    run.order("save\nsample\n")
    ordered = run.wait_for(lambda event: event["event"] == "state")["step"]
    run.wait_for(lambda event: event["event"] == "step" and event["step"] >= ordered + 5)
    assert run.process.stdin is not None
    run.process.stdin.close()
    run.finish()
    saves = {event["step"] for event in run.of("save")}
    assert {4, 8, ordered} <= saves
    assert {3, 6, 9, ordered} <= {event["step"] for event in run.of("sample")}
    assert len(list(bench.out.glob("hero-step*-state/train_state.json"))) == 2, (
        "the parent went: weights and state stay"
    )


def test_folders_of_diffusers(bench: Bench, toy: Path) -> None:
    run = start(bench, toy, "train_db", max_train_steps=2, save_model_as="diffusers", use_safetensors=True)
    assert run.finish() == 0
    assert run.events[-1]["path"] == str(bench.out / "hero")
    unet = load_file(bench.out / "hero" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in unet.values())
    assert not list(bench.out.glob("*.part*"))


def test_overflow_is_not_saved(bench: Bench, toy: Path) -> None:
    """A weight that float32 holds and half precision does not."""
    run = start(bench, toy, "train_db", max_train_steps=1, learning_rate=1e6, save_precision="fp16")
    assert run.finish() != 0
    assert run.events[-1] == {"event": "nonfinite", "step": 1, "what": "weights"}
    assert not list(bench.out.glob("*.safetensors"))


def test_loss_not_finite(bench: Bench, toy: Path) -> None:
    run = start(bench, toy, "train_db", learning_rate=1e30, save_every_n_steps=1)
    assert run.finish() != 0
    assert run.events[-1]["event"] == "nonfinite"
    for file in bench.out.glob("*.safetensors"):
        assert all((abs(tensor) < float("inf")).all() for tensor in load_file(file).values())


@pytest.mark.parametrize("cached", [True, False])
def test_latents_not_finite(bench: Bench, tmp_path: Path, cached: bool) -> None:
    base = kohya_bases.make_toy(tmp_path / "toy", tokens=TOKENS)
    weights = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    weights["encoder.conv_in.bias"][0] = np.nan
    save_file(weights, base / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    run = start(bench, base, "train_db", cache_latents=cached, cache_latents_to_disk=cached, sample_prompts=None)
    assert run.finish() != 0
    assert run.events[-1]["event"] == "nonfinite"
    assert run.events[-1]["what"] == "latents"
    assert not list((tmp_path / "images").glob("*.npz")), "a poisoned cache must not stay"
    assert not list(bench.out.glob("*"))


def test_no_data(bench: Bench, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = start(bench, toy, "train_db", images=tmp_path / "empty", cache_latents=False)
    assert run.finish() != 0
    assert run.of("end") == []


@pytest.mark.parametrize(
    ("script", "missing"), [("train_db", "output_dir"), ("train_textual_inversion", "token_string")]
)
def test_refused_before_loading(bench: Bench, toy: Path, script: str, missing: str) -> None:
    run = start(bench, toy, script, **{missing: None})
    assert run.finish() != 0
    assert run.events == []
    assert f"{missing} is not set" in run.log.read_text()
