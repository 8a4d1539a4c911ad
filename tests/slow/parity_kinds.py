"""LoRAs of every kind that LyCORIS trains, made by its own modules, with what the models give under its own forward.

Not a test: test_parity.py holds the converters against it. LyCORIS is looked for on the path, then in the folder
PIXELKIT_LYCORIS (`pip install --target FOLDER --no-deps lycoris-lora`).
"""

from __future__ import annotations

import copy
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from converters.names import Component, join_kohya
from converters.tensors import Tensor, encode, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRAINED = {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "CLIPAttention", "CLIPMLP"}
# Kind -> LyCORIS' module and its arguments. Ranks are low: the models are small, and LyCORIS takes whole matrices else.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("locon", {"weight_decompose": True}),
    "locon tucker": ("locon", {"use_tucker": True}),
    "loha": ("loha", {}),
    "loha tucker": ("loha", {"use_tucker": True}),
    "lokr": ("lokr", {}),
    "lokr both": ("lokr", {"decompose_both": True}),
    "lokr factor 4": ("lokr", {"factor": 4}),
    "lokr tucker": ("lokr", {"use_tucker": True}),
    "lokr whole": ("lokr", {"full_matrix": True}),
}


def make_models() -> dict[Component, Any]:
    """SD 1.5's layout, all layers, narrow, with random weights that are the same every time."""
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


def list_layers(models: dict[Component, Any]) -> Iterator[tuple[Component, str, Any]]:
    """Component, path and module of every layer that sd-scripts and LyCORIS train."""
    for component, model in models.items():
        for parent, outer in model.named_modules():
            if type(outer).__name__ not in TRAINED:
                continue
            for child, layer in outer.named_modules():
                if type(layer).__name__ in {"Linear", "Conv2d"}:
                    yield component, f"{parent}.{child}", layer


def write_lora(models: dict[Component, Any], path: Path, *, seed: int, mixed: bool, dtype: str = "F32") -> int:
    """Write a kohya LoRA over every layer that sd-scripts trains, and return how many there are."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Tensor] = {}
    for component, place, layer in list_layers(models):
        name = join_kohya(component, place)
        rank = int(rng.choice([8, 5, 2])) if mixed else 4
        alpha = float(rng.choice([3, 2, 1, 0.5])) if mixed else 4.0
        shape = tuple(layer.weight.shape)
        down, up = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
        tensors[f"{name}.lora_down.weight"] = encode(rng.normal(0, 0.3, down), dtype)
        tensors[f"{name}.lora_up.weight"] = encode(rng.normal(0, 0.1, up), dtype)
        tensors[f"{name}.alpha"] = encode(alpha, dtype)
    write_file(path, tensors, {"ss_network_module": "networks.lora"})
    return len(tensors) // 3


def apply_lycoris(models: dict[Component, Any], path: Path, kind: str) -> tuple[dict[Component, Any], dict[str, Any]]:
    """Write a file of `kind` ("mixed": of several); the models under it, and the delta of each `component.path`."""
    import torch

    lycoris = _import_lycoris()
    models = copy.deepcopy(models)
    rng = np.random.default_rng(5)
    torch.manual_seed(5)
    tensors: dict[str, Tensor] = {}
    deltas: dict[str, Any] = {}
    for component, place, layer in list(list_layers(models)):
        chosen = str(rng.choice(["loha", "lokr whole", "lokr both", "dora"])) if kind == "mixed" else kind
        algorithm, arguments = KINDS[chosen]
        rank, alpha = int(rng.choice([1, 2, 3])), float(rng.choice([3, 2, 1, 0.5]))
        name = join_kohya(component, place)
        module = lycoris[algorithm](name, layer, 1.0, rank, alpha, **arguments)
        with torch.no_grad():
            parameters = {key: found for key, found in module.named_parameters() if key != "dora_scale"}
            for parameter in parameters.values():
                parameter.normal_()
            own = module.make_weight() * module.scale if algorithm == "locon" else module.get_weight(module.shape)
            factor = 0.1 / float(own.std())
            next(iter(parameters.values())).mul_(factor)
            deltas[f"{component}.{place}"] = (own * factor).detach().numpy()
            if "weight_decompose" in arguments:
                module.dora_scale.mul_(torch.empty_like(module.dora_scale).uniform_(0.7, 1.3))
            for key, tensor in module.custom_state_dict().items():
                tensors[f"{name}.{key}"] = encode(tensor.detach().numpy(), "F32")
        module.apply_to()
    write_file(path, tensors, {"ss_network_module": "lycoris.kohya"})
    return models, deltas


def _import_lycoris() -> dict[str, Any]:
    if folder := os.environ.get("PIXELKIT_LYCORIS"):
        sys.path.append(folder)
    try:
        modules = pytest.importorskip("lycoris.modules", reason="no LyCORIS (PIXELKIT_LYCORIS)")
    finally:
        if folder:
            sys.path.remove(folder)
    return {"locon": modules.LoConModule, "loha": modules.LohaModule, "lokr": modules.LokrModule}
