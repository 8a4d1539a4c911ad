"""The kohya entry through the real `accelerate launch` and the pinned sd-scripts, on bases with random weights."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import kohya_bases
import psutil
import pytest
from kohya_bench import ROOT, Bench, assert_lora, read_metadata
from safetensors.numpy import load_file

from pixelkit.engines.control import Control
from pixelkit.engines.kohya import endings, resume
from pixelkit.engines.kohya.watch import Watch


def test_whole_run_then_resumed(bench: Bench, toy: Path) -> None:
    options: dict[str, object] = {"max_train_steps": 12, "save_every_n_steps": 3, "save_state": True}
    run = bench.start(toy, "--layout", "diffusers", sample_every_n_steps=4, **options)
    assert run.finish() == 0
    kinds = [event["event"] for event in run.events]
    assert kinds[:3] == ["begin", "sample", "step"]
    assert kinds[-1] == "end"
    assert {"total": 12, "epochs": 3, "engine": "kohya"}.items() <= run.events[0].items()
    steps = run.of("step")
    assert [(event["step"], event["epoch"]) for event in steps] == [(step, (step + 4) // 5) for step in range(1, 13)]
    assert all(0 < event["loss"] < 10 and event["seconds"] > 0 and event["memory"] > 1 << 20 for event in steps)
    assert {event["lr"] for event in steps} == {1e-3}
    assert [event["step"] for event in run.of("sample")] == [0, 4, 8, 12]
    assert all(event["seed"] == 7 and Path(event["path"]).is_file() for event in run.of("sample"))
    assert run.of("sample")[0]["prompt"] == "pxl sprite, knight"
    saved = {f"hero-step{step:08d}.safetensors": step for step in (3, 6, 9, 12)} | {"hero.safetensors": 12}
    assert {Path(event["path"]).name: event["step"] for event in run.of("save")} == saved
    assert_lora(bench.out / "hero.safetensors", unet_modules=192)
    metadata = read_metadata(bench.out / "hero.safetensors")
    expected = {"ss_steps": "12", "ss_network_dim": "4", "ss_sd_model_name": "toy", "modelspec.resolution": "64x64"}
    assert expected.items() <= metadata.items()
    assert len(metadata["ss_new_sd_model_hash"]) == 64
    assert "IsADirectory" not in metadata.values()
    assert not list(bench.out.glob("*.part*"))

    # Resumed within the second epoch: the count, the rhythm, the names and the weights go on.
    whole = load_file(bench.out / "hero-step00000009.safetensors")
    (bench.out / "hero-step00000009.safetensors").unlink()
    state = bench.out / "hero-step00000006-state"
    again = bench.start(toy, "--layout", "diffusers", save_every_n_epochs=2, resume=str(state), **options)
    assert again.finish() == 0
    assert {"total": 12, "epochs": 3, "step": 6}.items() <= again.of("begin")[0].items()
    assert [(event["step"], event["epoch"]) for event in again.of("step")] == [(s, 2 + (s > 10)) for s in range(7, 13)]
    assert [event["step"] for event in again.of("sample")] == [12]
    names = ["hero-step00000009.safetensors", "hero-000002.safetensors", "hero-step00000012.safetensors"]
    assert [Path(event["path"]).name for event in again.of("save")] == [*names, "hero.safetensors"]
    assert read_metadata(bench.out / "hero-step00000009.safetensors")["ss_steps"] == "9"
    assert read_metadata(bench.out / "hero.safetensors")["ss_steps"] == "12"
    assert json.loads((bench.out / "hero-000002-state/train_state.json").read_text())["current_step"] == 10
    resumed = load_file(bench.out / "hero-step00000009.safetensors")
    change = max(abs(resumed[name].astype("f4") - whole[name].astype("f4")).max() for name in whole)
    assert change < 0.02, "the weights of the state were not taken up"


def test_resume_refused(tmp_path: Path) -> None:
    def train(self: object, args: object) -> None:
        """Not the pinned one."""

    with pytest.raises(endings.Refusal, match="is not the pinned sd-scripts"):
        resume.continue_train(train, 3)
    (tmp_path / "train_state.json").write_text('{"current_epoch": 2, "current_step": 12}')
    known = {"resume_from_huggingface": False, "initial_step": None, "initial_epoch": None, "max_train_steps": 12}
    args = argparse.Namespace(resume=str(tmp_path), **known)
    assert resume.find_first_step(args, None) == 12
    watch = Watch(Control(), first_step=12, versions={}, loaded=threading.Event())
    with pytest.raises(endings.Refusal, match="nothing left to train: the state was saved at step 12"):
        watch.refuse_nothing_left(args)
    (tmp_path / "train_state.json").write_text("{}")
    with pytest.raises(endings.Refusal, match="does not say at which step"):
        resume.find_first_step(args, None)
    (tmp_path / "train_state.json").unlink()
    with pytest.raises(endings.Refusal, match="give --resume-step"):
        resume.find_first_step(args, None)
    assert resume.find_first_step(args, 5) == args.initial_step == 5


@pytest.mark.parametrize(
    ("steps", "batches", "accumulation", "expected"),
    [(3, 5, 1, 3), (7, 5, 1, 7), (4, 5, 2, 7), (3, 5, 2, 5), (2, 5, 2, 4), (0, 5, 2, 0), (2, 3, 8, 6)],
)
def test_batches_behind_a_step(steps: int, batches: int, accumulation: int, expected: int) -> None:
    assert resume.Resumed(first_step=steps).count_batches(batches, accumulation) == expected


def test_orders(bench: Bench, toy: Path) -> None:
    run = bench.start(toy, "--layout", "diffusers", max_train_steps=100000, max_data_loader_n_workers=1)
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 2)
    run.order("save\n")
    saved = run.wait_for(lambda event: event["event"] == "state")["step"]
    run.order("sample\n")
    assert run.wait_for(lambda event: event["event"] == "sample")["step"] > saved
    run.wait_for(lambda event: event["event"] == "step" and event["step"] >= saved + 7)
    assert len(run.of("save")) == 1, "saving now must not go on at each step"
    run.order("stop\n")
    assert run.finish() == 0
    stopped = run.events[-1]
    assert stopped["event"] == "stopped"
    assert stopped["reason"] == "control"
    last = stopped["step"]
    assert [event["step"] for event in run.of("save")] == [saved, last]
    assert_lora(bench.out / f"hero-step{last:08d}.safetensors", unet_modules=192)
    state = json.loads((bench.out / f"hero-step{last:08d}-state" / "train_state.json").read_text())
    assert state["current_step"] == last
    assert not (bench.out / "hero.safetensors").exists()


def test_parent_gone(bench: Bench, toy: Path) -> None:
    run = bench.start(toy, "--layout", "diffusers", max_train_steps=100000, sample_prompts=None)
    child = psutil.Process(run.wait_for(lambda event: event["event"] == "begin")["pid"])
    run.wait_for(lambda event: event["event"] == "step" and event["step"] == 3)
    assert run.process.stdin is not None
    run.process.stdin.close()
    child.wait(timeout=30)
    run.finish()
    files = list(bench.out.glob("hero-step*.safetensors"))
    assert len(files) == 1
    assert_lora(files[0], unet_modules=192)
    assert len(list(bench.out.glob("hero-step*-state/train_state.json"))) == 1


def test_loss_not_finite(bench: Bench, toy: Path) -> None:
    run = bench.start(toy, "--layout", "diffusers", learning_rate=1e30, save_every_n_steps=1, save_precision="float")
    assert run.finish() != 0
    assert run.events[-1]["event"] == "nonfinite"
    assert run.events[-1]["step"] == 2
    assert "not finite" in run.log.read_text() or "is nan" in run.log.read_text()
    assert not (bench.out / "hero.safetensors").exists()
    for file in bench.out.glob("*.safetensors"):
        assert all((abs(tensor) < float("inf")).all() for tensor in load_file(file).values())


def test_latents_not_finite(bench: Bench, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file

    base = kohya_bases.make_toy(tmp_path / "toy")
    weights = load_torch(base / "vae" / "diffusion_pytorch_model.safetensors")
    weights["encoder.conv_in.bias"][0] = torch.nan
    save_file(weights, base / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    run = bench.start(base, "--layout", "diffusers", cache_latents_to_disk=True)
    assert run.finish() != 0
    assert [event["event"] for event in run.events] == ["nonfinite"]
    assert run.events[0]["what"] == "latents"
    assert "the latents of 20 images are not finite (000.png, 001.png, 002.png ...)" in run.log.read_text()
    assert not list((tmp_path / "images").glob("*.npz")), "a poisoned cache must not stay"


def test_no_data(bench: Bench, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = bench.start(toy, "--layout", "diffusers", images=tmp_path / "empty")
    assert run.finish() != 0
    assert run.events == []
    assert "No data found" in run.log.read_text()


def test_shape_of_pixelkit_tiny(bench: Bench, sd_scripts: Path, tmp_path: Path) -> None:
    base = kohya_bases.make_tiny(tmp_path / "tiny")
    run = bench.start(base, "--layout", "diffusers", size=32, max_train_steps=5, max_token_length=150)
    assert run.finish() == 0
    assert [event["step"] for event in run.of("sample")] == [0, 5]
    assert_lora(bench.out / "hero.safetensors", unet_modules=84)
    metadata = read_metadata(bench.out / "hero.safetensors")
    assert metadata["modelspec.prediction_type"] == "v"
    layout = json.loads(metadata["ss_base_layout"])
    assert layout["vae_factor"] == 2
    assert layout["vae_scale"] == 0.7


def test_sd15_with_the_stock_loader(bench: Bench, sd_scripts: Path, tmp_path: Path) -> None:
    if psutil.virtual_memory().available < 9 << 30:
        pytest.skip("needs 9 GB of free memory")
    base = kohya_bases.make_sd15(tmp_path / "sd15")
    tokenizers = tmp_path / "tokenizers"
    kohya_bases.make_tokenizer(tokenizers / "openai_clip-vit-large-patch14")
    run = bench.start(base, max_train_steps=1, tokenizer_cache_dir=str(tokenizers))
    assert run.finish() == 0
    assert [event["step"] for event in run.of("sample")] == [0, 1]
    assert_lora(bench.out / "hero.safetensors", unet_modules=192)
    assert len(load_file(bench.out / "hero.safetensors")) == 3 * 264


def test_script_without_trainer(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(
        "import os, sys, time\nprint(sys.argv, 'TQDM_ASCII' in os.environ, flush=True)\ntime.sleep(600)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "pixelkit.engines.kohya.entry", "--script", "loop", "--", "--max_train_steps", "3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TQDM_ASCII": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert run.stdin is not None
    assert run.stdout is not None
    assert run.stdout.readline() == b"['loop.py', '--max_train_steps', '3'] False\n"
    run.stdin.write(b"stop\n")
    run.stdin.flush()
    assert run.stdout.readline() == b'\x1e{"event":"stopped","step":0,"reason":"control"}\n'
    assert run.wait(timeout=10) == 0
    run.stdin.close()
    run.stdout.close()


@pytest.mark.skipif(not os.environ.get("PIXELKIT_TEST_SDXL"), reason="18 GB of memory; set PIXELKIT_TEST_SDXL=1")
def test_sdxl(bench: Bench, sd_scripts: Path, tmp_path: Path) -> None:
    file = tmp_path / "sdxl.safetensors"
    subprocess.run([sys.executable, kohya_bases.__file__, str(file)], cwd=sd_scripts, check=True)
    tokenizers = tmp_path / "tokenizers"
    for name in ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"):
        kohya_bases.make_tokenizer(tokenizers / name)
    run = bench.start(
        file,
        script="sdxl_train_network",
        max_train_steps=1,
        mixed_precision="bf16",
        cache_text_encoder_outputs=True,
        network_train_unet_only=True,
        no_half_vae=True,
        gradient_checkpointing=True,
        sample_prompts=None,
        tokenizer_cache_dir=str(tokenizers),
    )
    assert run.finish() == 0
    assert [event["event"] for event in run.events] == ["begin", "step", "save", "end"]
    metadata = read_metadata(bench.out / "hero.safetensors")
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    tensors = load_file(bench.out / "hero.safetensors")
    assert len(tensors) == 3 * 722
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name)
