"""Our entry, run as `-m toy_trainer`, with small stand-ins for the models that plain scripts of sd-scripts would load.

Only what loads a model or a tokenizer is replaced: the scripts train, sample and save these modules with their own
code. Weights are drawn from a fixed seed, and leave the random state alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kohya_bases
import torch
from kohya_bases import TOY_TOKENS as TOKENS
from library import flux_models, flux_utils, original_unet, sd3_models, sd3_utils, sdxl_original_unet, sdxl_train_util
from library.strategy_base import TokenizeStrategy

from pixelkit.engines.kohya import entry

if TYPE_CHECKING:
    from collections.abc import Callable


def narrow_sd15() -> None:
    """Let sd-scripts' own UNet be as wide as kohya_bases.make_toy's."""
    for name, value in {
        "BLOCK_OUT_CHANNELS": (32, 32, 64, 64),
        "TIMESTEP_INPUT_DIM": 32,
        "TIME_EMBED_DIM": 128,
        "NORM_GROUPS": 8,
        "TRANSFORMER_NORM_NUM_GROUPS": 8,
    }.items():
        setattr(original_unet, name, value)


def drawn(make: Callable[[], Any]) -> Any:
    """A module with weights of its own seed: normal with 0.05, norms 1, biases 0 (some models leave theirs empty)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = make().float()
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.05)
            else:
                weight.fill_(1.0 if name.endswith(("weight", "scale")) else 0.0)
        for name, buffer in model.named_buffers():
            if name == "pos_embed":
                buffer.normal_(std=0.05)
        return model


def load_tokenizer(_self: Any, model_class: Any, model_id: str, **_: Any) -> Any:
    """A small CLIP tokenizer in place of each."""
    from transformers import CLIPTokenizer

    folder = Path(os.environ["TOY_TOKENIZERS"]) / model_id.replace("/", "_")
    return CLIPTokenizer.from_pretrained(folder) if folder.is_dir() else CLIPTokenizer.from_pretrained(folder.parent)


def make_clip(*, projected: bool = False, width: int = 32, layers: int = 2) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=TOKENS,
        hidden_size=width,
        intermediate_size=64,
        projection_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        eos_token_id=TOKENS - 1,
        bos_token_id=TOKENS - 2,
    )
    return drawn(lambda: (CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def make_t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=width, d_kv=4, d_ff=40, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", vocab_size=TOKENS
    )
    return drawn(lambda: T5EncoderModel(config))


def load_sdxl(*_: Any) -> tuple[Any, ...]:
    """sdxl_train_util.py:65."""
    from diffusers import AutoencoderKL

    channels = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4}
    vae = drawn(lambda: AutoencoderKL(**kohya_bases.vae_blocks(4), **channels))
    # 2048 together, as sd-scripts' UNet has it in its text; the first gives its 11th layer of 12.
    first, second = make_clip(width=32, layers=12), make_clip(projected=True, width=2016)
    return True, first, second, vae, drawn(sdxl_original_unet.SdxlUNet2DConditionModel), None, None


def narrow_sdxl() -> None:
    sdxl_original_unet.MODEL_CHANNELS = 32
    sdxl_original_unet.TIME_EMBED_DIM = 128
    sdxl_original_unet.ADM_IN_CHANNELS = 32 + 6 * 256
    sdxl_train_util._load_target_model = load_sdxl


def narrow_flux() -> None:
    shape = {"in_channels": 64, "vec_in_dim": 32, "context_in_dim": 16, "hidden_size": 32, "mlp_ratio": 4.0}
    blocks = {"num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [4, 6, 6], "theta": 10_000}
    parameters = flux_models.FluxParams(**shape, **blocks, qkv_bias=True, guidance_embed=True)
    pictures = flux_models.AutoEncoderParams(
        resolution=64,
        in_channels=3,
        ch=32,
        out_ch=3,
        ch_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        z_channels=16,
        scale_factor=0.3611,
        shift_factor=0.1159,
    )
    flux_utils.analyze_checkpoint_state = lambda _path: (False, False, (2, 2), [])
    flux_utils.load_flow_model = lambda *_, **__: (False, drawn(lambda: flux_models.Flux(parameters)))
    flux_utils.load_ae = lambda *_: drawn(lambda: flux_models.AutoEncoder(pictures))
    flux_utils.load_clip_l = lambda *_: make_clip()
    flux_utils.load_t5xxl = lambda *_: make_t5(16)


class _Depth(int):
    """A number of blocks that makes a block 4 wide where sd-scripts' MMDiT would be 64 (`64 * depth`)."""

    def __rmul__(self, other: int) -> int:
        return 4 * int(self) if other == 64 else other * int(self)


def narrow_sd3() -> None:
    def make_mmdit(*_: Any) -> Any:
        return drawn(
            lambda: sd3_models.MMDiT(
                input_size=None,
                patch_size=2,
                in_channels=16,
                depth=_Depth(8),
                adm_in_channels=64,
                context_embedder_in_features=4096,
                context_embedder_out_features=32,
                num_patches=64,
                pos_embed_max_size=8,
                qk_norm="rms",
                x_block_self_attn_layers=[0],
            )
        )

    import library.sd3_train_utils  # noqa: F401 - before its parts are replaced
    import sd3_train

    sd3_train.load_safetensors = lambda *_, **__: {}
    sd3_utils.load_mmdit = make_mmdit
    sd3_utils.load_vae = lambda *_, **__: drawn(sd3_models.SDVAE)
    sd3_utils.load_clip_l = lambda *_, **__: make_clip(projected=True)
    sd3_utils.load_clip_g = lambda *_, **__: make_clip(projected=True)
    sd3_utils.load_t5xxl = lambda *_, **__: make_t5(4096)  # to which CLIP's are filled up


if __name__ == "__main__":
    TokenizeStrategy._load_tokenizer = load_tokenizer
    SCRIPT = sys.argv[sys.argv.index("--script") + 1]
    if SCRIPT.startswith("sdxl"):
        narrow_sdxl()
    elif SCRIPT.startswith("flux"):
        narrow_flux()
    elif SCRIPT.startswith("sd3"):
        narrow_sd3()
    else:
        narrow_sd15()
    entry.end_process(entry.main(sys.argv[1:]))
