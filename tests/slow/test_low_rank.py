"""Resizing, extracting and baking against sd-scripts' own scripts, on small models laid out as SD 1.5."""

from __future__ import annotations

import argparse
import copy
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from parity_kinds import make_models

from converters import read_lora
from converters.bake import bake
from converters.checkpoint import open_checkpoint
from converters.extract import Cut, extract
from converters.names import join_kohya
from converters.resize import Size, resize
from converters.tensors import encode, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from converters.tensors import Tensor


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    made = make_models()
    return made["text_encoder"], made["unet"]


def save(path: Path, text: Any, unet: Any) -> Path:
    """A single file as Stability names it, by sd-scripts' own table."""
    from library import model_util

    state = model_util.convert_unet_state_dict_to_sd(False, unet.state_dict())
    found = {f"model.diffusion_model.{key}": value for key, value in state.items()}
    found |= {f"cond_stage_model.transformer.{key}": value for key, value in text.state_dict().items()}
    write_file(path, {key: encode(value.numpy(), "F32") for key, value in found.items() if value.is_floating_point()})
    return path


def write_lora(path: Path, models: tuple[Any, Any], *, scale: float = 0.1) -> Path:
    """A LoRA of mixed ranks and alphas on every layer that sd-scripts trains."""
    rng = np.random.default_rng(3)
    tensors: dict[str, Tensor] = {}
    trained = {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "CLIPAttention", "CLIPMLP"}
    for component, model in zip(("text_encoder", "unet"), models, strict=True):
        for parent, outer in model.named_modules():
            for child, layer in outer.named_modules() if type(outer).__name__ in trained else ():
                if type(layer).__name__ in {"Linear", "Conv2d"}:
                    name = join_kohya(component, f"{parent}.{child}")
                    rank, shape = int(rng.choice([8, 5, 3])), tuple(layer.weight.shape)
                    up = (shape[0], rank, *[1] * (len(shape) - 2))
                    tensors[f"{name}.lora_down.weight"] = encode(rng.normal(0, 0.3, (rank, *shape[1:])), "F32")
                    tensors[f"{name}.lora_up.weight"] = encode(rng.normal(0, scale, up), "F32")
                    tensors[f"{name}.alpha"] = encode(float(rng.choice([3, 2, 0.5])), "F32")
    write_file(path, tensors, {"ss_network_module": "networks.lora"})
    return path


@pytest.mark.parametrize(
    ("size", "method"),
    [
        (Size(rank=2, conv_rank=1), None),
        (Size(rank=8, keep="fro", amount=0.9), "sv_fro"),
        (Size(rank=8, keep="cumulative", amount=0.7), "sv_cumulative"),
        (Size(rank=8, conv_rank=4, keep="ratio", amount=3.0), "sv_ratio"),
    ],
)
def test_resized_as_sd_scripts_does(
    models: tuple[Any, Any],
    sd_scripts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: Size,
    method: str | None,
) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    import torch
    from networks import resize_lora

    source = write_lora(tmp_path / "a.safetensors", models)
    before, _ = resize_lora.load_state_dict(str(source), torch.float)
    wanted, _, _ = resize_lora.resize_lora_model(
        before, size.rank, size.conv_rank or size.rank, torch.float, "cpu", method, size.amount, verbose=False
    )
    made = resize(source, tmp_path / "b.safetensors", size)
    found = read_file(tmp_path / "b.safetensors").tensors
    worst = 0.0
    ranks = set()
    for key in found:
        if key.endswith(".lora_down.weight"):
            name = key.removesuffix(".lora_down.weight")
            old = before[key].shape[0]
            want, got = (product(table, name) for table in (wanted, found))
            # sd-scripts fills up what the old rank cannot give with noise of 1e-7; here the rank stays.
            rank = min(wanted[key].shape[0], old)
            assert found[key].shape[0] == rank, name
            ranks.add(rank)
            worst = max(worst, float(np.max(np.abs(got - want))))
    sys.stdout.write(f"{method}: ranks {sorted(ranks)}, largest difference {worst:.2e}, error {made.error:.4f}\n")
    assert worst < 1e-5  # their SVD is float32
    if method:
        assert len(ranks) > 1


def product(table: Any, name: str) -> Any:
    down, up, alpha = (
        value.to_float64() if hasattr(value, "to_float64") else value.double().numpy()
        for value in (table[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
    )
    rank = down.shape[0]
    return up.reshape(-1, rank) @ down.reshape(rank, -1) * (float(alpha.reshape(-1)[0]) / rank)


class Shadow:
    """A module with one part exchanged."""

    def __init__(self, module: Any, **parts: Any) -> None:
        self.__dict__.update(parts)
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@pytest.mark.parametrize("conv_rank", [None, 3])
def test_extracted_as_sd_scripts_does(
    models: tuple[Any, Any],
    sd_scripts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conv_rank: int | None,
) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    monkeypatch.syspath_prepend(str(sd_scripts / "networks"))
    import torch
    from networks import extract_lora_from_models as script

    tuned = tuple(copy.deepcopy(model) for model in models)
    torch.manual_seed(5)
    with torch.no_grad():
        for model in tuned:
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    first = save(tmp_path / "first.safetensors", *models)
    second = save(tmp_path / "second.safetensors", *tuned)
    loaded = {"first": (models[0], None, models[1]), "second": (tuned[0], None, tuned[1])}
    monkeypatch.setattr(
        script.model_util,
        "load_models_from_stable_diffusion_checkpoint",
        lambda _v2, name: tuple(copy.deepcopy(part) for part in loaded[name]),
    )
    monkeypatch.setattr(script, "args", argparse.Namespace(device=None), raising=False)

    def turned(matrix: Any) -> Any:
        """Their SVD with vectors that point as ours: what a clamp cuts depends on it."""
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
        return left * signs.T, values, right * signs

    linalg = argparse.Namespace(svd=turned)
    monkeypatch.setattr(script, "torch", Shadow(torch, linalg=linalg))
    script.svd(
        model_org="first", model_tuned="second", save_to=str(tmp_path / "theirs.safetensors"), dim=4, v2=False,
        sdxl=False, conv_dim=conv_rank, save_precision="float", clamp_quantile=0.98,
    )  # fmt: skip
    cut = Cut(rank=4, conv_rank=conv_rank, clamp=0.98)
    made = extract(first, second, tmp_path / "ours.safetensors", cut, dtype="F32")
    wanted, found = (read_file(tmp_path / f"{who}.safetensors").tensors for who in ("theirs", "ours"))
    assert set(found) == set(wanted)
    worst = 0.0
    for key in wanted:
        if key.endswith(".alpha"):
            name = key.removesuffix(".alpha")
            want, got = product(wanted, name), product(found, name)
            worst = max(worst, float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    unclamped = extract(first, second, tmp_path / "plain.safetensors", Cut(rank=4, conv_rank=conv_rank), dtype="F32")
    sys.stdout.write(f"conv {conv_rank}: {len(made.errors)} modules, difference {worst:.2e}, error {made.error:.3f}, ")
    sys.stdout.write(f"without clamp {unclamped.error:.3f}\n")
    assert worst < 1e-3  # noise has singular values close together, whose vectors float32 tells apart badly
    assert 0 < unclamped.error < made.error < 1


def test_extracted_without_clamp_is_the_best_of_its_rank(
    models: tuple[Any, Any], sd_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    lora = write_lora(tmp_path / "a.safetensors", models)
    first = save(tmp_path / "first.safetensors", *models)
    bake([lora], first, tmp_path / "second.safetensors")
    made = extract(first, tmp_path / "second.safetensors", tmp_path / "b", Cut(rank=8, conv_rank=8), dtype="F32")
    wanted = {(name.component, name.path): module.delta() for name, module in read_lora(lora)[1].modules.items()}
    for name, module in made.lora.modules.items():
        np.testing.assert_allclose(module.delta(), wanted[name.component, name.path], atol=3e-6)
    assert len(made.lora.modules) == len(wanted)
    assert made.error < 1e-4


@pytest.mark.parametrize("weight", [1.0, -0.6])
def test_baked_as_sd_scripts_merges(
    models: tuple[Any, Any], sd_scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    monkeypatch.syspath_prepend(str(sd_scripts / "networks"))
    import torch
    from networks import merge_lora

    lora = write_lora(tmp_path / "a.safetensors", models)
    base = save(tmp_path / "base.safetensors", *models)
    done = bake([lora], base, tmp_path / "baked.safetensors", weights=[weight])
    text, unet = (copy.deepcopy(model) for model in models)
    merge_lora.merge_to_sd_model(text, unet, [str(lora)], [weight], torch.float)
    wanted = read_file(save(tmp_path / "wanted.safetensors", text, unet)).tensors
    found, before = (read_file(tmp_path / name).tensors for name in ("baked.safetensors", "base.safetensors"))
    assert set(found) == set(wanted)
    worst = max(float(np.max(np.abs(found[key].to_float32() - wanted[key].to_float32()))) for key in wanted)
    changed = sum(bytes(found[key].raw) != bytes(before[key].raw) for key in wanted)
    sys.stdout.write(f"weight {weight}: {done.layers} layers, largest difference {worst:.2e}\n")
    assert worst < 1e-6
    assert changed == done.layers == len(read_lora(lora)[1].modules) == 278 + 72


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_every_layer_of_a_published_checkpoint_is_found(
    sd_scripts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """sd-scripts' own tables write the keys; every weight matrix must come back to the layer that it was."""
    monkeypatch.syspath_prepend(str(sd_scripts))
    import torch
    from diffusers import UNet2DConditionModel
    from library import model_util, sdxl_model_util
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = sdxl_model_util.DIFFUSERS_SDXL_UNET_CONFIG
    with torch.device("meta"):
        if kind == "sdxl":
            unet = UNet2DConditionModel(**config).state_dict()
        else:
            unet = UNet2DConditionModel(**model_util.create_unet_diffusers_config(kind == "sd21", True)).state_dict()
    width, layers = {"sd15": (768, 12), "sd21": (1024, 23), "sdxl": (768, 12)}[kind]

    def text(width: int, layers: int, model: Any) -> dict[str, Any]:
        settings = CLIPTextConfig(
            vocab_size=8, hidden_size=width, intermediate_size=8, num_hidden_layers=layers, projection_dim=width
        )
        with torch.device("meta"):
            return dict(model(settings).state_dict())

    first = text(width, layers, CLIPTextModel)
    wanted = {("unet", key): value for key, value in unet.items()} | {
        ("text_encoder", key): value for key, value in first.items()
    }
    # Every tensor becomes a number that names it; shapes stay as they are, without their bytes.
    numbers = {layer: number for number, layer in enumerate(wanted)}
    if kind == "sdxl":
        state = sdxl_model_util.convert_diffusers_unet_state_dict_to_sdxl({key: numbers["unet", key] for key in unet})
        second = text(1280, 32, CLIPTextModelWithProjection)
        numbers |= {("text_encoder_2", key): len(numbers) + place for place, key in enumerate(second)}
        wanted |= {("text_encoder_2", key): value for key, value in second.items()}
        prefixes = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    else:
        state = model_util.convert_unet_state_dict_to_sd(False, {key: numbers["unet", key] for key in unet})
        second = first if kind == "sd21" else {}
        prefixes = ("cond_stage_model.transformer.", "cond_stage_model.model.")
    by_number = {number: layer for layer, number in numbers.items()}
    tensors = {}
    for key, number in state.items():
        tensors[f"model.diffusion_model.{key}"] = small(wanted[by_number[number]].shape, number)
    if kind != "sd21":
        for key, value in first.items():
            tensors[prefixes[0] + key] = small(value.shape, numbers["text_encoder", key])
    part = "text_encoder" if kind == "sd21" else "text_encoder_2"
    tensors |= {prefixes[1] + key: value for key, value in open_clip(second, part, numbers).items()}
    write_file(tmp_path / "x.safetensors", tensors)
    model = open_checkpoint(tmp_path / "x.safetensors")
    matrices = {
        (component, key.removesuffix(".weight"))
        for (component, key), value in wanted.items()
        if key.endswith(".weight")
        and value.ndim >= 2
        and "embedding" not in key.replace("time_embedding", "").replace("add_embedding", "")
    }
    if kind == "sd21":
        matrices -= {("text_encoder", "text_projection")}
    assert set(model.places) == matrices
    for layer in matrices:
        assert float(model.read(layer).flat[0]) == numbers[layer[0], f"{layer[1]}.weight"], layer


def small(shape: Any, number: int) -> Tensor:
    """A tensor with one input, to be small; its first number tells which it is."""
    sizes = (*tuple(shape)[:1], *[1] * (len(shape) - 1))
    return encode(np.full(sizes, number, np.float32), "F32")


def open_clip(state: dict[str, Any], part: str, numbers: dict[tuple[str, str], int]) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names: q, k and v are one tensor (sd-scripts: convert_ldm_clip_checkpoint_v2)."""
    import torch

    found: dict[str, Tensor] = {}
    for key, value in state.items():
        layer = key.replace("text_model.encoder.layers.", "transformer.resblocks.")
        for new, old in (("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
            layer = layer.replace(old, new)
        if ".q_proj.weight" in key:
            rows = [np.full((value.shape[0], 1), numbers[part, key.replace("q_proj", f"{x}_proj")]) for x in "qkv"]
            found[layer.replace("self_attn.q_proj.weight", "attn.in_proj_weight")] = encode(np.concatenate(rows), "F32")
        elif "_proj." not in key.replace("out_proj", "") and value.dtype == torch.float32 and value.ndim >= 2:
            found[layer] = small(value.shape, numbers[part, key])
        if key == "text_projection.weight":
            found["text_projection"] = encode(np.full((1, value.shape[0]), numbers[part, key], np.float32), "F32")
    found.pop("text_projection.weight", None)
    return found
