"""The diffusers engine trains a toy Stable Diffusion (0.4 M parameters, 16 px) as it promises to train a real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixelkit.engines.control import Control
from pixelkit.engines.diffusers.settings import (
    DatasetSettings,
    NetworkSettings,
    SampleSettings,
    Settings,
    TrainSettings,
)
from pixelkit.errors import EngineError, PixelkitError
from pixelkit.render import render

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from accelerate.state import AcceleratorState  # noqa: E402
from diffusers import AutoencoderKL, AutoencoderTiny  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from toy_pipeline import make_base  # noqa: E402

from pixelkit.engines.diffusers import entry, network, preparation, training  # noqa: E402


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two bases (v-prediction with AutoencoderTiny, epsilon with AutoencoderKL) and two folders of images."""
    folder = tmp_path_factory.mktemp("toys")
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    kl = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8, layers_per_block=1,
    )  # fmt: skip
    random = np.random.default_rng(0)
    for name, sizes in (("images", [(16, 16)] * 3 + [(24, 16)] * 2), ("classes", [(16, 16)] * 2)):
        (folder / name).mkdir()
        for index, (width, height) in enumerate(sizes):
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
            (folder / name / f"{index}.txt").write_text(f"{name}, {index}", "utf-8")
    return SimpleNamespace(
        v=make_base(folder / "v", v_prediction=True, vae=tiny),
        epsilon=make_base(folder / "e", v_prediction=False, vae=kl),
        images=folder / "images",
        classes=folder / "classes",
    )


def forget_accelerator() -> None:
    """accelerate keeps one precision for a process's whole life."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread of the CPU, whatever else there is."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    forget_accelerator()
    yield
    torch.set_num_threads(threads)


Make = Callable[..., Settings]


@pytest.fixture
def make(toys: SimpleNamespace, tmp_path: Path) -> Make:
    """Settings with everything switched on; keyword arguments replace fields of whichever table has them."""

    def build(**changes: Any) -> Settings:
        settings = Settings(
            base=str(toys.v), output_dir=str(tmp_path / "out"), output_name="toy", seed=3, precision="no",
            dataset=DatasetSettings(
                images=(str(toys.images),), repeats=(2,), class_images="", caption_dropout=0.2, batch_size=2, workers=1
            ),
            network=NetworkSettings(
                rank=4, alpha=2.0, dropout=0.1, conv_rank=3, conv_alpha=1.0, train_text_encoder=True
            ),
            train=TrainSettings(
                steps=6, gradient_accumulation=2, learning_rate=2e-3, text_encoder_learning_rate=1e-3, optimizer="adamw",
                weight_decay=0.01, scheduler="cosine", warmup_steps=2, max_grad_norm=1.0, min_snr_gamma=5.0,
                noise_offset=0.05, prior_loss_weight=1.0, gradient_checkpointing=False, save_every_steps=0,
                compile=False,
            ),
            sample=SampleSettings(
                prompts=(), negative="", every_steps=0, steps=2, guidance=3.0, seed=5, width=16, height=16, sampler="ddim"
            ),
            metadata={},
        )  # fmt: skip
        for name in ("dataset", "network", "train", "sample"):
            table = getattr(settings, name)
            # `steps` alone is the training's; sampling always takes 2.
            mine = {
                key: value
                for key, value in changes.items()
                if key in asdict(table) and (name, key) != ("sample", "steps")
            }
            settings = replace(settings, **{name: replace(table, **mine)})
        return replace(settings, **{key: value for key, value in changes.items() if key in asdict(settings)})

    return build


class Recorder(Control):
    """Keeps the events; `at` maps a step to an order that comes during it."""

    def __init__(self, at: dict[int, str] | None = None) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.at = at or {}

    def emit(self, event: str, **fields: object) -> None:
        self.events.append({"event": event, **fields})
        order = self.at.get(int(str(fields.get("step", -1)))) if event == "step" else None
        if order == "stop":
            self.stop_requested = "control"
        self._save = self._save or order == "save"
        self._sample = self._sample or order == "sample"

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def run(settings: Settings, *, resume: Path | None = None, at: dict[int, str] | None = None) -> Recorder:
    control = Recorder(at)
    assert training.train(settings, control, resume=resume) == 0
    return control


def bytes_of(path: Path) -> dict[str, bytes]:
    return {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}


def out(settings: Settings, name: str = "toy.safetensors") -> Path:
    return Path(settings.output_dir) / name


def test_two_runs_are_equal_and_a_resumed_one_ends_as_a_straight_one(make: Make, tmp_path: Path) -> None:
    straight, again, broken = (make(output_dir=str(tmp_path / name)) for name in ("straight", "again", "broken"))
    control = run(straight)
    assert [event["step"] for event in control.of("step")] == [1, 2, 3, 4, 5, 6]
    assert [event["epoch"] for event in control.of("step")] == [1, 1, 2, 2, 2, 3]  # 5 batches an epoch, 2 a step
    assert control.of("step")[0]["lr"] == 0
    assert control.of("step")[2]["lr"] == 2e-3
    run(again)
    assert bytes_of(out(again)) == bytes_of(out(straight))

    stopped = run(broken, at={3: "stop"})
    assert stopped.of("stopped") == [{"event": "stopped", "step": 3, "reason": "control"}]
    assert not out(broken).exists()
    state = Path(stopped.of("state")[0]["path"])
    assert state.name == "toy-step00000003-state"
    assert len(load_file(stopped.of("save")[0]["path"])) == len(load_file(out(straight)))
    resumed = run(broken, resume=state)
    assert [event["step"] for event in resumed.of("step")] == [4, 5, 6]
    assert bytes_of(out(broken)) == bytes_of(out(straight))

    finished = run(replace(broken, train=replace(broken.train, steps=3)), resume=state)
    assert not finished.of("step")
    assert finished.of("end")[0]["step"] == 3
    with pytest.raises(EngineError, match="was saved with network"):
        training.train(make(output_dir=str(tmp_path / "broken"), rank=5), Recorder(), resume=state)
    with pytest.raises(EngineError, match="no state to resume from"):
        training.train(broken, Recorder(), resume=tmp_path)


def test_file_is_what_kohya_reads(make: Make, toys: SimpleNamespace) -> None:
    settings = make(
        base=str(toys.epsilon), steps=1, warmup_steps=0, metadata={"modelspec.title": "My Toy", "mine": "1"}
    )
    run(settings)
    with safe_open(out(settings), framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
        tensors = {key: file.get_tensor(key) for key in keys}
    assert {key.partition(".")[2] for key in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}
    names = {key.partition(".")[0] for key in keys}
    assert "lora_te_text_model_encoder_layers_1_mlp_fc1" in names
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0" in names
    assert tensors["lora_unet_down_blocks_0_downsamplers_0_conv.lora_down.weight"].shape == (3, 32, 3, 3)
    assert tensors["lora_unet_down_blocks_1_resnets_0_conv_shortcut.lora_down.weight"].shape == (4, 32, 1, 1)
    assert tensors["lora_unet_down_blocks_1_resnets_0_conv_shortcut.alpha"] == 2
    assert tensors["lora_unet_mid_block_resnets_0_conv1.alpha"] == 1
    expected = {
        "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_v2": "False",
        "ss_base_model_version": "sd_v1", "ss_steps": "1", "ss_num_epochs": "1", "ss_learning_rate": "0.002",
        "ss_num_train_images": "10", "ss_num_batches_per_epoch": "5", "ss_resolution": "(16, 16)", "mine": "1",
        "modelspec.title": "My Toy", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.prediction_type": "epsilon", "modelspec.hash_sha256": f"0x{metadata['sshs_model_hash']}",
    }  # fmt: skip
    assert {key: metadata.get(key) for key in expected} == expected
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "1.0"}
    assert json.loads(metadata["ss_tag_frequency"])["images"]["0"] == 1


def test_sd_scripts_applies_the_file_as_it_was_trained(
    make: Make, sd_scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(learning_rate=0.1, text_encoder_learning_rate=0.1, dropout=0.0, scheduler="constant")
    trainer = training.Trainer.prepare(settings, Recorder(), preparation.start_accelerator(settings), resume=None)
    for step in range(1, 5):
        trainer.take_step(step)
    path = trainer.save(numbered=False, state=False)

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 12, generator=generator)
    ids = torch.randint(500, (2, 16), generator=generator)

    @torch.no_grad()
    def predict(unet: Any, text_encoder: Any) -> tuple[Any, Any]:
        texts = text_encoder.eval()(ids)[0]
        return unet.eval()(latents, 500, texts).sample, texts

    trained = predict(trainer.pipeline.unet, trainer.pipeline.text_encoder)
    base, merged = (training.load_pipeline(settings.base, torch.device("cpu")) for _ in range(2))
    untouched = predict(base.unet, base.text_encoder)
    assert network.merge_file(path, merged.unet, merged.text_encoder) == len(trainer.layers)

    monkeypatch.syspath_prepend(sd_scripts)
    from library import sai_model_spec, train_util
    from networks import lora

    theirs, _ = lora.create_network_from_weights(1.0, str(path), None, [base.text_encoder], base.unet)
    theirs.apply_to([base.text_encoder], base.unet)
    result = theirs.load_weights(str(path))
    assert not result.missing_keys
    assert not result.unexpected_keys
    applied, ours = predict(base.unet, base.text_encoder), predict(merged.unet, merged.text_encoder)
    for before, reference, *others in zip(untouched, applied, trained, ours, strict=True):
        assert (reference - before).abs().max() > 0.05
        for other in others:
            assert (other - reference).abs().max() <= 5e-6

    tensors = dict(sorted(load_file(path).items()))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    model_hash, legacy_hash = train_util.precalculate_safetensors_hashes(tensors, metadata)
    assert (model_hash, legacy_hash) == (metadata["sshs_model_hash"], metadata["sshs_legacy_hash"])
    assert sai_model_spec.precalculate_safetensors_hashes(tensors) == metadata["modelspec.hash_sha256"]


def test_prior_preservation_sizes_and_orders(make: Make, toys: SimpleNamespace) -> None:
    settings = make(
        class_images=str(toys.classes), steps=9, save_every_steps=4, prompts=("a",), caption_dropout=0.0, repeats=(1,)
    )
    control = run(settings, at={2: "save", 3: "sample"})
    assert [Path(event["path"]).name for event in control.of("save")] == [
        "toy-step00000002.safetensors", "toy-step00000004.safetensors", "toy-step00000008.safetensors", "toy.safetensors",
    ]  # fmt: skip
    assert [path.name for path in Path(settings.output_dir).glob("*-state")] == ["toy-step00000008-state"]
    assert [event["step"] for event in control.of("sample")] == [0, 3, 9]
    # 3 + 2 images in two sizes, and 5 class images of one size: 8 in fours, 2 in ones.
    assert json.loads(describe(out(settings))["ss_bucket_info"])["buckets"]["1"] == {"resolution": [24, 16], "count": 2}
    assert describe(out(settings))["ss_num_reg_images"] == "5"
    plain = make(class_images="", steps=9, caption_dropout=0.0, repeats=(1,), output_name="plain")
    run(plain)
    assert bytes_of(out(plain, "plain.safetensors")) != bytes_of(out(settings))


def describe(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_precision_checkpointing_and_plain_lora(make: Make) -> None:
    options = {"conv_rank": 0, "dropout": 0.0, "steps": 4, "warmup_steps": 0, "scheduler": "linear"}
    plain = make(**options, output_name="plain", train_text_encoder=False)
    checkpointed = replace(plain, output_name="checkpointed", train=replace(plain.train, gradient_checkpointing=True))
    run(plain)
    run(checkpointed)
    first, second = (load_file(out(s, f"{s.output_name}.safetensors")) for s in (plain, checkpointed))
    assert not [key for key in first if "lora_te" in key or "resnets" in key]
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)
    both = make(**options, output_name="both", gradient_checkpointing=True)
    run(both)
    up = [
        tensor for key, tensor in load_file(out(both, "both.safetensors")).items() if "lora_te" in key and "up" in key
    ]
    assert all(float(tensor.abs().max()) > 0 for tensor in up)


def test_bf16(make: Make) -> None:
    settings = make(precision="bf16", prompts=("a",), every_steps=2, steps=4)
    control = run(settings)
    assert [event["step"] for event in control.of("sample")] == [0, 2, 4]
    tensors = load_file(out(settings))
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert all(event["loss"] < 2 for event in control.of("step"))


def test_what_does_not_work_is_said(
    make: Make, toys: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    for settings, told in (
        (make(precision="fp16"), "fp16 does not work on a CPU"),
        (make(base=str(tmp_path)), "as a Stable Diffusion pipeline"),
        (make(optimizer="adamw8bit"), "needs bitsandbytes"),
        (make(images=(str(tmp_path),)), "no PNG files"),
        (make(output_dir=str(toys.images / "0.png" / "out")), "cannot write to"),
    ):
        forget_accelerator()
        with pytest.raises(PixelkitError, match=told):
            training.train(settings, Recorder())


def test_not_finite_ends_with_65_and_overwrites_nothing(make: Make, toys: SimpleNamespace, tmp_path: Path) -> None:
    settings = make(learning_rate=1e38, warmup_steps=0, save_every_steps=1, max_grad_norm=0.0)
    Path(settings.output_dir).mkdir()
    save_file({"a": torch.zeros(1)}, str(out(settings)))
    before = out(settings).read_bytes()
    folder = render("diffusers", {"config.toml": asdict(settings)}, tmp_path / "config").folder
    control = Recorder()
    assert entry.main(["--config", str(folder / "config.toml")], control) == 65
    assert control.events[-1]["event"] == "nonfinite"
    assert control.events[-1]["what"] in {"loss", "weights"}
    assert out(settings).read_bytes() == before
    for path in Path(settings.output_dir).glob("*-step*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())

    vae = load_file(toys.v / "vae" / "diffusion_pytorch_model.safetensors")
    broken = tmp_path / "broken"
    shutil.copytree(toys.v, broken)
    poisoned = {
        key: tensor * float("nan") if key.startswith("encoder.layers.0") else tensor for key, tensor in vae.items()
    }
    save_file(poisoned, str(broken / "vae" / "diffusion_pytorch_model.safetensors"))
    control = Recorder()
    assert training.train(make(base=str(broken)), control) == 65
    assert control.events[-1]["what"] == "latents"


def test_the_whole_of_it_as_a_process(make: Make, tmp_path: Path) -> None:
    """accelerate launch, the rendered config, events on stdout, samples, and a stop on stdin."""
    settings = make(prompts=("images, 1", "classes"), steps=100_000, train_text_encoder=False, every_steps=20)
    config = render("diffusers", {"config.toml": asdict(settings)}, tmp_path / "config").files["config.toml"]
    argv = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--cpu",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1",
        "-m", "pixelkit.engines.diffusers.entry", "--config", str(config),
    ]  # fmt: skip
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    limit = threading.Timer(120, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    events = []
    for line in process.stdout:
        if b"\x1e" in line:
            events.append(json.loads(line.partition(b"\x1e")[2]))
            if events[-1]["event"] == "step" and events[-1]["step"] == 40:
                process.stdin.write(b"stop\n")
                process.stdin.flush()
    assert process.wait() == 0
    limit.cancel()
    kinds = [event["event"] for event in events]
    assert kinds[0] == "begin"
    assert kinds[-3:] == ["save", "state", "stopped"]
    assert events[0]["total"] == 100_000
    samples = [event for event in events if event["event"] == "sample"]
    drawn = [(event["step"], event["index"], event["seed"]) for event in samples]
    assert drawn[:4] == [(0, 0, 5), (0, 1, 6), (20, 0, 5), (20, 1, 6)]
    for event in samples:
        assert Path(event["path"]).name == f"toy_{event['step']:06d}_{event['index']:02d}_{event['seed']}.png"
        with Image.open(event["path"]) as image:
            assert image.size == (16, 16)
    assert events[-1]["reason"] == "control"
    assert events[-1]["step"] >= 40
