"""Converted LoRAs against sd-scripts applying its own network: the same numbers, or the conversion is wrong.

The models are small but laid out as SD 1.5 (all of its module names), with random weights, in float32. The LoRA has a
rank and an alpha of its own in every module, convolutions included: one whose alpha is its rank everywhere cannot tell
right from wrong. Measured on the pinned stack: see the gates below; with them, an effect that is not 0.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from converters import convert
from converters.names import Component, join_kohya
from converters.tensors import Tensor, encode, write_file

if TYPE_CHECKING:
    from pathlib import Path

UNET_GATE, TEXT_GATE, EFFECT = 5e-6, 1e-5, 0.1


@pytest.fixture(scope="module")
def models() -> dict[Component, Any]:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 64, 64),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=24, intermediate_size=48, num_hidden_layers=12, num_attention_heads=4
    )
    return {"unet": unet.eval(), "text_encoder": transformers.CLIPTextModel(config).eval()}


def make_lora(models: dict[Component, Any], path: Path, *, seed: int, mixed: bool, dtype: str = "F32") -> int:
    """Write a kohya LoRA over every layer that sd-scripts trains, and return how many there are."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    trained = {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "CLIPAttention", "CLIPMLP"}
    for component, model in models.items():
        for parent, outer in model.named_modules():
            if type(outer).__name__ not in trained:
                continue
            for child, layer in outer.named_modules():
                if type(layer).__name__ not in {"Linear", "Conv2d"}:
                    continue
                name = join_kohya(component, f"{parent}.{child}")
                rank = int(rng.choice([8, 5, 2])) if mixed else 4
                alpha = float(rng.choice([3, 2, 1, 0.5])) if mixed else 4.0
                shape = tuple(layer.weight.shape)
                down, up = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
                tensors[f"{name}.lora_down.weight"] = encode(rng.normal(0, 0.3, down), dtype)
                tensors[f"{name}.lora_up.weight"] = encode(rng.normal(0, 0.1, up), dtype)
                tensors[f"{name}.alpha"] = encode(alpha, dtype)
    write_file(path, tensors, {"ss_network_module": "networks.lora"})
    return len(tensors) // 3


def run(models: dict[Component, Any]) -> dict[Component, Any]:
    """What the models make of one fixed input."""
    import torch

    rng = torch.Generator().manual_seed(2)
    latents, context = torch.randn(1, 4, 16, 16, generator=rng), torch.randn(1, 7, 24, generator=rng)
    with torch.no_grad():
        return {
            "unet": models["unet"](latents, 500, context).sample,
            "text_encoder": models["text_encoder"](torch.arange(16)[None]).last_hidden_state,
        }


def run_sd_scripts(models: dict[Component, Any], path: Path) -> dict[Component, Any]:
    from networks import lora

    models = copy.deepcopy(models)
    network, weights = lora.create_network_from_weights(1.0, str(path), None, models["text_encoder"], models["unet"])
    network.apply_to(models["text_encoder"], models["unet"])
    found = network.load_state_dict({key: value.float() for key, value in weights.items()})
    assert not found.missing_keys
    assert not found.unexpected_keys
    return run(models)


def run_peft(models: dict[Component, Any], folder: Path) -> dict[Component, Any]:
    from peft import PeftModel

    models = copy.deepcopy(models)
    return run({part: PeftModel.from_pretrained(model, str(folder / part)) for part, model in models.items()})


def run_diffusers(models: dict[Component, Any], path: Path) -> dict[Component, Any]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    models = copy.deepcopy(models)
    state, alphas = Loader.lora_state_dict(str(path))
    Loader.load_lora_into_unet(state, alphas, models["unet"])
    Loader.load_lora_into_text_encoder(state, alphas, models["text_encoder"])
    return run(models)


def measure(found: dict[Component, Any], reference: dict[Component, Any]) -> tuple[float, float]:
    """Largest absolute difference: UNet, text encoder."""
    return tuple(float((found[part] - reference[part]).abs().max()) for part in ("unet", "text_encoder"))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_conversions_do_what_sd_scripts_does(
    models: dict[Component, Any],
    sd_scripts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed: bool,
    dtype: str,
) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    source = tmp_path / "t.safetensors"
    assert make_lora(models, source, seed=3, mixed=mixed, dtype=dtype) == 278 + 72
    reference = run_sd_scripts(models, source)
    effect = measure(run(models), reference)
    convert(source, "peft", tmp_path / "peft")
    convert(source, "diffusers", tmp_path / "d.safetensors")
    peft = measure(run_peft(models, tmp_path / "peft"), reference)
    diffusers = measure(run_diffusers(models, tmp_path / "d.safetensors"), reference)
    sys.stdout.write(f"mixed={mixed} {dtype}: effect {effect}, peft {peft}, diffusers {diffusers}\n")
    assert min(effect) > EFFECT
    for unet, text in (peft, diffusers):
        assert unet <= UNET_GATE
        assert text <= TEXT_GATE
