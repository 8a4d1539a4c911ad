"""LoRAs made for tests, and what they add to each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from converters import read_lora
from converters.tensors import Tensor, encode, write_file

if TYPE_CHECKING:
    from pathlib import Path

RESNET = "lora_unet_up_blocks_1_resnets_0_conv1"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PROJ = "lora_unet_down_blocks_0_attentions_0_proj_in"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def part(
    name: str, *, rank: int = 2, alpha: float | None = 1.0, dtype: str = "F32", kernel: int = 0, seed: int = 0,
    out: int = 6, inputs: int = 5, scale: float = 1.0,
) -> dict[str, Tensor]:  # fmt: skip
    rng = np.random.default_rng(seed)
    down, up = ((rank, inputs, kernel, kernel), (out, rank, 1, 1)) if kernel else ((rank, inputs), (out, rank))
    found = {
        f"{name}.lora_down.weight": encode(rng.normal(size=down), dtype),
        f"{name}.lora_up.weight": encode(rng.normal(size=up) * scale, dtype),
    }
    return found if alpha is None else {**found, f"{name}.alpha": encode(alpha, dtype)}


def save(path: Path, *parts: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    write_file(path, {key: tensor for found in parts for key, tensor in found.items()}, metadata or {})
    return path


def deltas(path: Path) -> dict[str, Any]:
    lora = read_lora(path)[1]
    return {f"{name.component}.{name.path}": module.delta().astype(np.float64) for name, module in lora.modules.items()}
