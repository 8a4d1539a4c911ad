"""Shipping: what training left is looked at before it is believed; what goes out is whole and says only what is so."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest
from PIL import Image

from converters import read_lora, recognise
from converters.metadata import hash_file, sign
from converters.tensors import Tensor, encode, read_file, write_file
from pixelkit.catalog import find_base, list_hardware
from pixelkit.errors import ShipError, TrainingError
from pixelkit.hardware import Machine
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import load_preset
from pixelkit.rundir import RunDir
from pixelkit.ship import Check, Loading, Shipment, Sidecar, inspect_weights, write_sidecar
from pixelkit.ship import ship as ship_for_real
from pixelkit.sources import Sprite, Survey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixelkit.catalog import Base

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CPU = Machine(kind="cpu", device="x86_64", memory_gib=24, available_gib=20, unified=True, cores=2)


def make_lora(dtype: str = "F16", *, rank: int = 4, alpha: float = 2.0, up: float = 0.25) -> dict[str, Tensor]:
    return {
        f"{NAME}.lora_down.weight": encode(np.linspace(0.1, 0.9, rank * 8).reshape(rank, 8), dtype),
        f"{NAME}.lora_up.weight": encode(np.full((8, rank), up), dtype),
        f"{NAME}.alpha": encode(alpha, dtype),
    }


def make_run(
    tmp_path: Path, text: str = "", base: str = "sd15", tensors: dict[str, Tensor] | None = None
) -> tuple[Plan, RunDir]:
    preset = tmp_path / "hero.toml"
    dataset = '[dataset]\npath = "sprites"\ntrigger = "hero, pixel"\n'
    preset.write_text(f'name = "hero"\nbase = "{base}"\n{dataset}{text}', "utf-8")
    loaded = absorb_kohya(load_preset(str(preset)))
    found = find_base(base, None, folder=tmp_path, models=None)
    sprites = tuple(
        Sprite(path=tmp_path / f"sprites/{n}.png", name=f"{n}", width=32, height=32, caption="a sword")
        for n in range(20)
    )
    profile = "cpu" if base == "sd15" else "gb10"
    plan = resolve(
        loaded, found, profile, list_hardware()[profile], CPU, engine="kohya", survey=Survey(sprites=tuple(sprites))
    )
    run = RunDir(path=tmp_path / "run")
    run.output.mkdir(parents=True)
    metadata = sign(tensors or make_lora(), {"ss_network_dim": "4", "modelspec.title": "old", "ss_steps": "9"})
    write_file(run.model("hero"), tensors or make_lora(), metadata)
    run.update(state="shipping", engine_commit="48d368f")
    events: list[dict[str, object]] = [{"event": "step", "step": n, "loss": 1 / n, "lr": 1e-4} for n in range(1, 10)]
    for number, color in ((0, (0, 0, 255)), (9, (255, 0, 0))):
        path = run.output / f"{number}.png"
        Image.new("RGB", (32, 32), color).save(path)
        events.append({"event": "sample", "step": number, "index": 0, "seed": 1, "prompt": "hero", "path": str(path)})
    run.metrics.write_text("".join(json.dumps(event) + "\n" for event in events))
    return plan, run


class Loads:
    """Stands for the process that loads exports: says what it is told to."""

    def __init__(self, loading: Loading | None = None) -> None:
        self.loading = loading
        self.asked: list[dict[str, Path]] = []

    def __call__(self, sd_scripts: Path | None) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def load(self, base: Base, files: Mapping[str, Path]) -> Loading:
        self.asked.append(dict(files))
        checks = [
            Check(
                format=name,
                name=path.name,
                program="its program",
                state="passed",
                effect={"unet": 0.3},
                difference={"unet": 1e-6 * number},
            )
            for number, (name, path) in enumerate(files.items())
        ]
        return self.loading or Loading(checked="outputs", reference="sd-scripts", checks=tuple(checks))


def ship(plan: Plan, run: RunDir, *, palette: list[tuple[int, int, int]], fingerprint: str) -> Shipment:
    return ship_for_real(plan, run, palette=palette, fingerprint=fingerprint, start_loader=Loads())


def test_a_whole_shipment(tmp_path: Path) -> None:
    plan, run = make_run(tmp_path, '[export]\nlicense = "CC0-1.0"\nauthor = "me"\nstrength = 0.7\n')
    before = run.model("hero").read_bytes()
    shipped = ship(plan, run, palette=[(255, 0, 0)], fingerprint="f" * 64)
    assert run.model("hero").read_bytes() == before
    assert sorted(path.name for path in run.export.iterdir()) == [
        "hero-loss.png",
        "hero-sheet.png",
        "hero.civitai.info",
        "hero.comfyui.json",
        "hero.json",
        "hero.metadata.json",
        "hero.pixelkit.json",
        "hero.preview.png",
        "hero.safetensors",
        "peft",
        "pytorch_lora_weights.safetensors",
    ]
    assert set(shipped.exports) == set(run.export.iterdir())
    assert shipped.model == run.export / "hero.safetensors"
    assert any("0.0% before, 100.0% after" in line for line in shipped.summary)

    weights = read_file(shipped.model)
    assert {name: bytes(tensor.raw) for name, tensor in weights.tensors.items()} == {
        name: bytes(tensor.raw) for name, tensor in make_lora().items()
    }
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "hero",
        "modelspec.author": "me",
        "modelspec.license": "CC0-1.0",
        "modelspec.trigger_phrase": "hero, pixel",
        "ss_network_dim": "4",
        "modelspec.hash_sha256": f"0x{weights.metadata['sshs_model_hash']}",
    }
    assert {key: weights.metadata.get(key) for key in expected} == expected
    assert "Strength 0.7" in weights.metadata["modelspec.usage_hint"]
    assert sign(weights.tensors, weights.metadata) == weights.metadata

    assert recognise(run.export / "peft") == "peft"
    assert recognise(run.export / "pytorch_lora_weights.safetensors") == "diffusers"
    (module,) = read_lora(run.export / "peft")[1].modules.values()
    assert module.scale == 0.5

    about = json.loads((run.export / "hero.pixelkit.json").read_text())
    assert about["dataset"] == {"name": "sprites", "size": 20, "version": "f" * 64}
    assert about["metrics"] == {
        "fid": None,
        "clip_score": None,
        "human_rating": None,
        "palette_share_base": 0.0,
        "palette_share_lora": 1.0,
        "loss": pytest.approx(0.118, abs=0.01),
    }
    assert (about["model_name"], about["base_model"], about["type"], about["status"]) == (
        "hero",
        "sd15",
        "lora",
        "staging",
    )
    assert about["trigger_words"] == ["hero", "pixel"]
    assert about["recommended_strength"] == 0.7
    assert about["hyperparameters"]["rank"] == plan.network.rank
    assert about["engine"] == {"name": "kohya", "commit": "48d368f"}
    hashes = hash_file(shipped.model)
    assert (about["file"]["sha256"], about["file"]["AutoV3"]) == (hashes.sha256, hashes.auto_v3)
    assert about["file"]["AutoV2"] == hashes.sha256[:10]
    assert about["file"]["sshs_model_hash"] == weights.metadata["sshs_model_hash"]
    assert about["exports"] == ["hero.safetensors", "peft", "pytorch_lora_weights.safetensors"]
    assert about["loading"] == run.read_manifest()["loading"]
    assert (about["loading"]["checked"], about["loading"]["parity"]) == ("outputs", 2e-6)
    assert any(line.startswith("loaded again: hero.safetensors by its program, peft") for line in shipped.summary)
    trained = datetime.fromisoformat(about["training_date"])
    assert trained.tzinfo == UTC
    assert abs(trained.timestamp() - run.model("hero").stat().st_mtime) <= 1


def test_shipping_again_replaces(tmp_path: Path) -> None:
    plan, run = make_run(tmp_path)
    first = ship(plan, run, palette=[], fingerprint="a")
    assert first.metrics["palette_share_lora"] is None
    second = ship(plan, run, palette=[(255, 0, 0)], fingerprint="b")
    assert set(second.exports) == set(run.export.iterdir()) == set(first.exports)
    assert json.loads((run.export / "hero.pixelkit.json").read_text())["dataset"]["version"] == "b"


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    plan, run = make_run(tmp_path, '[export]\nformats = ["peft"]\n')
    run.metrics.write_text("")
    shipped = ship(plan, run, palette=[(1, 2, 3)], fingerprint="a")
    assert [path.name for path in shipped.exports][:3] == ["hero.safetensors", "peft", "hero.pixelkit.json"]
    assert not (run.export / "pytorch_lora_weights.safetensors").exists()
    assert not (run.export / "hero.preview.png").exists(), "there is no sample"


def test_what_a_format_cannot_hold_is_told(tmp_path: Path) -> None:
    tensors = make_lora() | {"lora_unet_mystery.lora_up.weight": encode(np.ones((4, 4)), "BF16")}
    plan, run = make_run(tmp_path, tensors=tensors)
    loads = Loads()
    shipped = ship_for_real(plan, run, palette=[], fingerprint="a", start_loader=loads)
    assert not any(path.name in {"peft", "pytorch_lora_weights.safetensors"} for path in shipped.exports)
    told = [line for line in shipped.summary if line.startswith("not exported as")]
    assert len(told) == 2
    assert all("mystery" in line for line in told)
    assert loads.asked == [{"kohya": run.export / "hero.safetensors"}]


def test_an_export_that_does_not_load_fails_the_shipment(tmp_path: Path) -> None:
    plan, run = make_run(tmp_path)
    bad = Check(
        format="peft",
        name="peft",
        program="PEFT",
        state="failed",
        why="the unet's output differs by 0.4",
        difference={"unet": float("nan")},
    )
    with pytest.raises(ShipError, match=r"(?s)peft PEFT: the unet's output differs.*the model is trained") as caught:
        ship_for_real(
            plan, run, palette=[], fingerprint="a", start_loader=Loads(Loading(checked="outputs", checks=(bad,)))
        )
    assert caught.value.exit_code == 8
    assert run.model("hero").is_file()
    assert not (run.export / "peft").exists(), "nothing broken is left under a good name"
    assert not (run.export / "hero.pixelkit.json").exists()
    (check,) = run.read_manifest()["loading"]["checks"]
    assert check["state"] == "failed"
    assert check["difference"] == {"unet": None}
    assert ship(plan, run, palette=[], fingerprint="a").model.is_file(), "and then it can be shipped again"


def test_a_check_that_was_not_made_is_told_and_not_called_passed(tmp_path: Path) -> None:
    plan, run = make_run(tmp_path)
    missing = Loading(checked=None, why="not installed: peft")
    shipped = ship_for_real(plan, run, palette=[], fingerprint="a", start_loader=Loads(missing))
    assert any("were not loaded again: not installed: peft" in line for line in shipped.summary)
    assert not any(line.startswith("loaded again") for line in shipped.summary)
    loading = json.loads((run.export / "hero.pixelkit.json").read_text())["loading"]
    assert (loading["checked"], loading["parity"], loading["why"]) == (None, None, "not installed: peft")


def test_inexact_scales_are_told(tmp_path: Path) -> None:
    plan, run = make_run(tmp_path, tensors=make_lora(alpha=3.0, up=0.1))
    shipped = ship(plan, run, palette=[], fingerprint="a")
    assert any("1 tensor as float32" in line for line in shipped.summary)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_sound_weights_pass(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.safetensors"
    tensors = make_lora(dtype) | {"odd": encode([1, 2], "I64")}
    write_file(path, tensors)
    report = inspect_weights(path, newer_than=time.time())
    assert (report.tensors, report.parameters) == (4, 32 + 32 + 1 + 2)
    assert report.dtypes == (dtype,)
    assert report.size == path.stat().st_size


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E5M2", "F8_E4M3"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(tmp_path: Path, dtype: str, value: float) -> None:
    path = tmp_path / "x.safetensors"
    if dtype.startswith("F8"):
        code = {"F8_E5M2": 0xFC, "F8_E4M3": 0xFF}[dtype]
        bad = Tensor(dtype=dtype, shape=(2,), data=np.array([0, code], np.uint8))
    else:
        bad = encode([0.0, value], dtype)
    write_file(path, make_lora() | {"bad": bad})
    with pytest.raises(TrainingError, match="NaN or infinity, bad") as caught:
        inspect_weights(path, newer_than=0)
    assert caught.value.kind == "nonfinite"


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    write_file(
        tmp_path / "x", make_lora() | {"big": encode([65504.0, -65504.0], "F16"), "max": encode([3.4e38], "F32")}
    )
    inspect_weights(tmp_path / "x", newer_than=0)


def test_what_training_did_not_leave(tmp_path: Path) -> None:
    def kind(path: Path, newer_than: float = 0.0) -> str:
        with pytest.raises(TrainingError) as caught:
            inspect_weights(path, newer_than=newer_than)
        assert caught.value.exit_code == 7
        assert caught.value.hint
        return caught.value.kind

    path = tmp_path / "x.safetensors"
    assert kind(path) == "no-file"
    write_file(path, make_lora(up=0.0))
    assert kind(path) == "untrained"
    write_file(path, {"a": encode(np.zeros(4), "F32")})
    assert kind(path) == "untrained"
    write_file(path, make_lora())
    os.utime(path, (time.time() - 3600,) * 2)
    assert kind(path, time.time() - 60) == "stale"
    path.write_bytes(path.read_bytes()[:-1])
    assert kind(path) == "broken"


def test_a_sidecar_holds_no_nan(tmp_path: Path) -> None:
    model = tmp_path / "x.safetensors"
    write_file(model, make_lora())
    about = Sidecar(
        model_name="x", base_model="sd15", type="lora", training_date=datetime(2025, 1, 2, tzinfo=UTC),
        dataset_name="d", dataset_size=1, dataset_version="v", hyperparameters={"rank": 4},
        metrics={"fid": float("nan"), "loss": 0.5},
        trigger_words=("é",), recommended_strength=0.8, status="staging", license="", engine="kohya", exports=(),
    )  # fmt: skip
    write_sidecar(tmp_path / "x.json", about, model, engine_commit=None)
    found = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert found["metrics"] == {"fid": None, "loss": 0.5}
    assert found["training_date"] == "2025-01-02T00:00:00+00:00"
    assert found["license"] is None
    with pytest.raises(ShipError):
        write_sidecar(tmp_path / "y.json", about, tmp_path / "none", engine_commit=None)
