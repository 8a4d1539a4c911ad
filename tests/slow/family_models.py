"""SDXL, SD 3.5 and FLUX in every layer they have, but narrow: sd-scripts' own classes beside diffusers'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's models with weights of zero: what a LoRA is merged to is then its delta, without rounding.

    `arguments` make sd-scripts' network train all it can; `others` are layers that it does not train but that other
    programs' kohya files have. `compare` maps the deltas of the published model and of diffusers' to the same keys, by
    code of sd-scripts or of diffusers, not ours.
    """

    component: str
    original: Any
    diffusers: Any
    encoders: Mapping[str, Any]
    network: str
    arguments: Mapping[str, Any]
    others: tuple[str, ...]
    version: str
    compare: Callable[[State, State], tuple[State, State]]


def make_clip(*, projected: bool = False, width: int = 24) -> Any:
    """A CLIP text encoder of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=50, hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def make_t5() -> Any:
    """A T5 v1.1 encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(d_model=16, d_kv=4, d_ff=40, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", vocab_size=50)
    )


def make_sdxl(monkeypatch: pytest.MonkeyPatch) -> Family:
    """SDXL a fifth as wide: 64 channels in the first block."""
    from diffusers import UNet2DConditionModel
    from library import sdxl_model_util, sdxl_original_unet

    monkeypatch.setattr(sdxl_original_unet, "MODEL_CHANNELS", 64)
    monkeypatch.setattr(sdxl_original_unet, "TIME_EMBED_DIM", 256)
    monkeypatch.setattr(sdxl_original_unet, "ADM_IN_CHANNELS", 96)
    diffusers = UNet2DConditionModel(
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=96,
    )
    return Family(
        component="unet",
        original=sdxl_original_unet.SdxlUNet2DConditionModel(),
        diffusers=diffusers,
        encoders={"text_encoder": make_clip(), "text_encoder_2": make_clip(projected=True, width=32)},
        network="networks.lora",
        arguments={"conv_dim": "3", "conv_alpha": "2"},
        others=("input_blocks.0.0", "out.2", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2"),
        version="sdxl_base_v1-0",
        compare=lambda original, theirs: (
            sdxl_model_util.convert_sdxl_unet_state_dict_to_diffusers(original),
            theirs,
        ),
    )


def make_flux(monkeypatch: pytest.MonkeyPatch) -> Family:
    """FLUX.1 dev with all of its 19 and 38 blocks, 32 wide."""
    from diffusers import FluxTransformer2DModel
    from library import flux_models, flux_utils

    parameters = flux_models.FluxParams(
        in_channels=8,
        vec_in_dim=24,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=4.0,
        num_heads=2,
        depth=19,
        depth_single_blocks=38,
        axes_dim=[4, 6, 6],
        theta=10_000,
        qkv_bias=True,
        guidance_embed=True,
    )
    diffusers = FluxTransformer2DModel(
        in_channels=8,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=24,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return Family(
        component="transformer",
        original=flux_models.Flux(parameters),
        diffusers=diffusers,
        encoders={"text_encoder": make_clip(), "text_encoder_3": make_t5()},
        network="networks.lora_flux",
        arguments={"train_t5xxl": "True", "in_dims": "[3,2,3,2,3]", "img_attn_dim": "3", "single_dim": "2"},
        others=("final_layer.linear", "final_layer.adaLN_modulation.1"),
        version="flux1",
        compare=lambda original, theirs: (original, flux_utils.convert_diffusers_sd_to_bfl(theirs)),
    )


class _Depth(int):
    """A number of blocks that makes a block 4 wide where sd-scripts' MMDiT would be 64 (`64 * depth`)."""

    def __rmul__(self, other: int) -> int:
        assert other == 64
        return 4 * int(self)


def make_sd3(monkeypatch: pytest.MonkeyPatch) -> Family:
    """SD 3.5 medium with all of its 24 blocks, 13 of them with a second attention; 96 wide."""
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
    from library import sd3_models

    original = sd3_models.MMDiT(
        input_size=None,
        patch_size=2,
        in_channels=4,
        depth=_Depth(24),
        adm_in_channels=24,
        context_embedder_in_features=16,
        context_embedder_out_features=96,
        num_patches=64,
        pos_embed_max_size=8,
        qk_norm="rms",
        x_block_self_attn_layers=list(range(13)),
    )
    diffusers = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=24,
        attention_head_dim=4,
        num_attention_heads=24,
        joint_attention_dim=16,
        caption_projection_dim=96,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    return Family(
        component="transformer",
        original=original,
        diffusers=diffusers,
        encoders={
            "text_encoder": make_clip(projected=True),
            "text_encoder_2": make_clip(projected=True, width=32),
            "text_encoder_3": make_t5(),
        },
        network="networks.lora_sd3",
        arguments={"train_t5xxl": "True", "emb_dims": "[3,2,3,2,3,2]", "x_attn_dim": "3", "context_mlp_dim": "2"},
        others=(),
        version="sd3-m",
        compare=lambda original, theirs: (convert_sd3_transformer_checkpoint_to_diffusers(original), theirs),
    )


def make_sd3_split(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The same, trained with split_qkv: every part of a qkv has a `down` of its own, in a file that holds one qkv."""
    family = make_sd3(monkeypatch)
    return replace(family, arguments={**family.arguments, "split_qkv": "True"})
