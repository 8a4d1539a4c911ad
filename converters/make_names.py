"""Makes converters/name_tables.py: `python -m converters.make_names`.

Builds the models that kohya LoRAs are trained on without memory for their weights (meta device), and writes down every
linear and convolution layer's path, block numbers taken out. Needs torch, diffusers and transformers, which nothing
else in this package does; tests/slow/test_names.py remakes the tables and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from converters.names import abstract_path

_TEMPLATE = '''"""Layer paths without their block numbers; made by `python -m converters.make_names`."""

from __future__ import annotations

UNET = (
{unet}
)

TEXT_ENCODER = (
{text_encoder}
)
'''


def collect_paths() -> dict[str, list[str]]:
    """`unet` and `text_encoder` -> the abstract paths of their layers, sorted."""
    unets, encoders = _build_models()
    return {
        "unet": sorted({abstract_path(name) for model in unets for name in _list_layers(model)}),
        "text_encoder": sorted({abstract_path(name) for model in encoders for name in _list_layers(model)}),
    }


def render_tables(paths: dict[str, list[str]]) -> str:
    """The text of name_tables.py."""
    lines = {key: "\n".join(f'    "{path}",' for path in found) for key, found in paths.items()}
    return _TEMPLATE.format(**lines)


def _build_models() -> tuple[list[Any], list[Any]]:
    """SD 1.5 with either kind of projection (SD 2 uses linear ones), SDXL; CLIP ViT-L as in SD, OpenCLIP as in SDXL."""
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sdxl = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unets = [
            UNet2DConditionModel(cross_attention_dim=768),
            UNet2DConditionModel(cross_attention_dim=1024, use_linear_projection=True),
            UNet2DConditionModel(**sdxl),
        ]
        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12)
        encoders = [CLIPTextModel(config), CLIPTextModelWithProjection(config)]
    return unets, encoders


def _list_layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ in {"Linear", "Conv2d"}]


if __name__ == "__main__":
    target = Path(__file__).with_name("name_tables.py")
    target.write_text(render_tables(collect_paths()), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
