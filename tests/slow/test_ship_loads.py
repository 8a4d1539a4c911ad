"""Exports of a real training, loaded again by the programs they are for: right ones pass, broken ones are caught."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.tensors import Tensor, Weights, encode, read_file, write_file
from pixelkit.catalog import Base, find_base
from pixelkit.ship import Loader, Loading

ROOT = Path(__file__).parents[2]
PARITY = 1e-5
FILES = {"kohya": "quickstart.safetensors", "peft": "peft", "diffusers": "pytorch_lora_weights.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of three steps, without sd-scripts."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("runs")
    environment = {key: value for key, value in os.environ.items() if key != "PIXELKIT_SD_SCRIPTS"}
    short = ("--set", "train.steps=3", "--set", "sample.prompts=[]", "--engine", "diffusers")
    formats = 'export.formats=["kohya","peft","diffusers","catsith"]'
    command = [sys.executable, "-m", "pixelkit", "run", "quickstart", *short, "--set", formats, "--runs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=420, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.iterdir()
    return found


@pytest.fixture
def exports(run: Path, tmp_path: Path) -> dict[str, Path]:
    """A copy to break."""
    shutil.copytree(run / "export", tmp_path / "export")
    return {name: tmp_path / "export" / file for name, file in FILES.items()}


def load(sd_scripts: Path | None, exports: dict[str, Path], base: Base | None = None) -> Loading:
    base = base or find_base("pixelkit-tiny", None, folder=ROOT, models=None)
    with Loader(sd_scripts) as loader:
        return loader.load(base, exports)


def states(loading: Loading) -> dict[str, str]:
    return {check.format: check.state for check in loading.checks}


def scale(file: Path, part: str, factor: float) -> None:
    """Multiply the first tensor whose name holds `part`."""
    weights = read_file(file)
    name = next(name for name in weights.tensors if part in name)
    found = weights.tensors[name]
    rewrite(file, weights, {**weights.tensors, name: encode(found.to_float32() * np.float32(factor), found.dtype)})


def drop(file: Path, part: str) -> None:
    """Leave out the module of the first tensor whose name holds `part`."""
    weights = read_file(file)
    module = next(name for name in weights.tensors if part in name).partition(".lora_")[0]
    rewrite(file, weights, {name: found for name, found in weights.tensors.items() if not name.startswith(module)})


def rewrite(file: Path, weights: Weights, tensors: dict[str, Tensor]) -> None:
    copies = {name: encode(found.to_float32().copy(), found.dtype) for name, found in tensors.items()}
    metadata = dict(weights.metadata)
    file.unlink()
    write_file(file, copies, metadata)


def test_what_a_run_ships_was_loaded_again(run: Path) -> None:
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    sidecar = json.loads((run / "export" / "quickstart.pixelkit.json").read_text())
    loading = manifest["loading"]
    assert sidecar["loading"] == loading
    assert loading["checked"] == "outputs"
    assert [check["state"] for check in loading["checks"]] == ["passed"] * len(loading["checks"])
    assert {check["format"] for check in loading["checks"]} >= set(FILES)
    assert 0 <= loading["parity"] <= PARITY
    for check in loading["checks"]:
        if check["format"] in FILES:
            assert set(check["effect"]) == {"unet", "text_encoder"}
            assert min(check["effect"].values()) > 100 * PARITY, "the LoRA changes both models"
            assert max(check["difference"].values()) <= PARITY


def test_a_scaled_tensor_and_a_dropped_module_are_caught(exports: dict[str, Path]) -> None:
    scale(exports["peft"] / "unet" / "adapter_model.safetensors", "lora_B", 1.1)
    drop(exports["diffusers"], "unet.mid_block")
    loading = load(None, exports)
    assert loading.reference == "pixelkit's diffusers engine"
    assert states(loading) == {"kohya": "passed", "peft": "failed", "diffusers": "failed"}
    assert all("unet's output differs" in check.why for check in loading.failed)


def test_the_same_against_sd_scripts(exports: dict[str, Path], sd_scripts: Path) -> None:
    drop(exports["peft"] / "text_encoder" / "adapter_model.safetensors", "lora_A")
    exports["diffusers"].write_bytes(exports["diffusers"].read_bytes()[:-1])
    loading = load(sd_scripts, exports)
    assert loading.reference == "sd-scripts"
    assert states(loading) == {"kohya": "passed", "peft": "failed", "diffusers": "failed"}
    why = {check.format: check.why for check in loading.failed}
    assert "text_encoder's output differs" in why["peft"]
    assert "does not load" in why["diffusers"]


def test_a_file_of_other_keys_does_not_pass_with_sd_scripts(exports: dict[str, Path], sd_scripts: Path) -> None:
    weights = read_file(exports["kohya"])
    renamed = {name.replace("lora_unet_down", "lora_unet_dawn"): found for name, found in weights.tensors.items()}
    rewrite(exports["kohya"], weights, renamed)
    loading = load(sd_scripts, {"kohya": exports["kohya"]})
    assert states(loading) == {"kohya": "failed"}


def test_a_base_that_is_not_here_is_checked_by_module(exports: dict[str, Path], sd_scripts: Path) -> None:
    """SD 1.5 from the hub, not downloaded: its layers are known, so an SD 1.5 LoRA is held against them."""
    names = [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_mid_block_resnets_0_conv1",
        "lora_te_text_model_encoder_layers_11_mlp_fc1",
    ]
    shapes = [(320, 320), (1280, 1280, 3, 3), (3072, 768)]
    rng = np.random.default_rng(5)
    tensors: dict[str, Tensor] = {}
    for name, shape in zip(names, shapes, strict=True):
        tensors[f"{name}.lora_down.weight"] = encode(rng.normal(0, 0.1, (3, *shape[1:])), "F16")
        tensors[f"{name}.lora_up.weight"] = encode(rng.normal(0, 0.1, (shape[0], 3, *shape[2:])[: len(shape)]), "F16")
        if len(shape) == 4:
            tensors[f"{name}.lora_up.weight"] = encode(rng.normal(0, 0.1, (shape[0], 3, 1, 1)), "F16")
        tensors[f"{name}.alpha"] = encode(2.0, "F16")
    folder = exports["kohya"].parent
    kohya = folder / "hero.safetensors"
    write_file(kohya, tensors, {})
    from converters import convert

    files = {"kohya": kohya, "peft": folder / "hero-peft", "diffusers": folder / "hero-diffusers.safetensors"}
    for name in ("peft", "diffusers"):
        convert(kohya, name, files[name])
    drop(files["diffusers"], "mid_block")
    nowhere = find_base("sd15", None, folder=ROOT, models=None)
    assert not nowhere.local
    loading = load(sd_scripts, files, nowhere)
    assert loading.checked == "modules"
    assert "the base does not load here" in loading.why or "memory" in loading.why
    assert states(loading) == {"kohya": "passed", "peft": "passed", "diffusers": "failed"}
    assert "1 of 3 modules are not loaded, unet.mid_block" in loading.failed[0].why


def test_what_takes_too_long_is_not_made(exports: dict[str, Path]) -> None:
    base = find_base("pixelkit-tiny", None, folder=ROOT, models=None)
    with Loader(None) as loader:
        loading = loader.load(base, exports, limit=0.2)
    assert loading.checked is None
    assert not loading.failed
    assert "more than 0 s" in loading.why
