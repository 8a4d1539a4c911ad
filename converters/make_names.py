"""Makes converters/name_tables.py: `python -m converters.make_names [SD_SCRIPTS]`.

Builds the models that kohya LoRAs are trained on without memory for their weights (meta device), and writes down every
linear and convolution layer's path, block numbers taken out. Needs torch, diffusers and transformers, which nothing
else in this package does; and for the transformers as they were published sd-scripts, whose folder is the argument
(without it, those tables stay as they are). tests/slow/test_names.py remakes the tables and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import name_tables
from converters.names import abstract_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_HEAD = '''"""Layer paths without their block numbers; made by `python -m converters.make_names`.

UNET, TEXT_ENCODER (CLIP), T5, FLUX and SD3 are diffusers' and transformers'; *_ORIGINAL those of sd-scripts' own classes.
"""

from __future__ import annotations
'''
ORIGINALS = ("FLUX_ORIGINAL", "SD3_ORIGINAL")


def collect_paths(sd_scripts: Path | None) -> dict[str, tuple[str, ...]]:
    """Table -> the abstract paths of its layers, sorted; ORIGINALS as they are where there is no sd-scripts."""
    found = {
        "UNET": _list_layers(build_unets()),
        "TEXT_ENCODER": _list_layers(build_clips()),
        "T5": _list_layers([build_t5()]),
        "FLUX": _list_layers([build_flux()]),
        "SD3": _list_layers(build_sd3s()),
    }
    if sd_scripts is None:
        return found | {name: getattr(name_tables, name) for name in ORIGINALS}
    return found | {
        "FLUX_ORIGINAL": _list_layers([build_flux_original(sd_scripts)]),
        "SD3_ORIGINAL": _list_layers(build_sd3_originals(sd_scripts)),
    }


def render_tables(paths: Mapping[str, Iterable[str]]) -> str:
    """The text of name_tables.py."""
    tables = ["\n".join([f"{name} = (", *(f'    "{path}",' for path in found), ")"]) for name, found in paths.items()]
    return "\n\n".join([_HEAD.rstrip(), *tables]) + "\n"


def build_unets() -> list[Any]:
    """SD 1.5, SD 2 (linear projections) and SDXL."""
    import torch
    from diffusers import UNet2DConditionModel

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
        return [
            UNet2DConditionModel(cross_attention_dim=768),
            UNet2DConditionModel(cross_attention_dim=1024, use_linear_projection=True),
            UNet2DConditionModel(**sdxl),
        ]


def build_clips() -> list[Any]:
    """CLIP ViT-L as in SD 1.5, SDXL and FLUX; with a projection as in SDXL's second and both of SD 3."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12)
    with torch.device("meta"):
        return [CLIPTextModel(config), CLIPTextModelWithProjection(config)]


def build_t5() -> Any:
    """T5 v1.1 XXL, the encoder of SD 3 and FLUX."""
    import torch
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, feed_forward_proj="gated-gelu", vocab_size=32128
    )
    with torch.device("meta"):
        return T5EncoderModel(config)


def build_flux() -> Any:
    """FLUX.1 dev; schnell has the same layers without guidance."""
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True)


def build_sd3s() -> list[Any]:
    """SD 3 medium, SD 3.5 large, SD 3.5 medium (a second attention in its first 13 blocks)."""
    import torch
    from diffusers import SD3Transformer2DModel

    medium = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "sample_size": 128}
    large = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
    with torch.device("meta"):
        return [
            SD3Transformer2DModel(**medium, pos_embed_max_size=192),
            SD3Transformer2DModel(**large, sample_size=128, pos_embed_max_size=192),
            SD3Transformer2DModel(
                **medium, qk_norm="rms_norm", pos_embed_max_size=384, dual_attention_layers=tuple(range(13))
            ),
        ]


def build_flux_original(sd_scripts: Path) -> Any:
    """FLUX.1 dev as sd-scripts has it."""
    import torch

    flux_models = _import_from(sd_scripts, "library.flux_models")
    with torch.device("meta"):
        return flux_models.Flux(flux_models.configs["dev"].params)


def build_sd3_originals(sd_scripts: Path) -> list[Any]:
    """SD 3 medium, SD 3.5 large and SD 3.5 medium as sd-scripts has them (library/sd3_utils.py, analyze_state_dict)."""
    import torch

    sd3_models = _import_from(sd_scripts, "library.sd3_models")
    kinds: list[dict[str, Any]] = [
        {"depth": 24, "num_patches": 36864, "pos_embed_max_size": 192},
        {"depth": 38, "num_patches": 36864, "pos_embed_max_size": 192, "qk_norm": "rms"},
        {
            "depth": 24,
            "num_patches": 147456,
            "pos_embed_max_size": 384,
            "qk_norm": "rms",
            "x_block_self_attn_layers": list(range(13)),
        },
    ]
    with torch.device("meta"):
        return [
            sd3_models.MMDiT(
                input_size=None,
                patch_size=2,
                in_channels=16,
                adm_in_channels=2048,
                context_embedder_in_features=4096,
                context_embedder_out_features=64 * kind["depth"],
                **kind,
            )
            for kind in kinds
        ]


def _import_from(folder: Path, name: str) -> Any:
    import importlib

    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def _list_layers(models: list[Any]) -> tuple[str, ...]:
    kinds = {"Linear", "Conv2d"}
    found = {name for model in models for name, layer in model.named_modules() if type(layer).__name__ in kinds}
    return tuple(sorted({abstract_path(name) for name in found}))


if __name__ == "__main__":
    target = Path(__file__).with_name("name_tables.py")
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    target.write_text(render_tables(collect_paths(folder)), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
