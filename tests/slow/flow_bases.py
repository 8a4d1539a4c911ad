"""FLUX and SD 3.5 with random weights and as few layers as sd-scripts' own loaders take. Run in the folder of sd-scripts:

    python flow_bases.py flux|sd3 FOLDER        (with tests/slow/narrow on PYTHONPATH)

FLUX keeps its width of 3072 and has one block of each kind (1.1 GB in bf16); SD 3.5's MMDiT is 128 wide, of two blocks.
T5 and CLIP-G have two layers each, at their true widths.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from kohya_bases import fill, make_tokenizer


def main(family: str, folder: Path) -> None:
    """The base and the files that go with it."""
    import torch
    from library import flux_utils, sd3_utils
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    folder.mkdir(parents=True, exist_ok=True)
    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12)
    save(CLIPTextModel, folder / "clip_l.safetensors", config=first)
    t5 = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128
    )
    save(T5EncoderModel, folder / "t5xxl_fp16.safetensors", config=t5)
    if family == "flux":
        from library import flux_models

        known = flux_models.configs["dev"]
        params = dataclasses.replace(known.params, depth=1, depth_single_blocks=1)
        save(flux_models.Flux, folder / "flux1-dev.safetensors", params=params)
        save(flux_models.AutoEncoder, folder / "ae.safetensors", params=known.ae_params)
    else:
        second = CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=2,
            num_attention_heads=20,
            projection_dim=1280,
            hidden_act="gelu",
        )
        save(CLIPTextModelWithProjection, folder / "clip_g.safetensors", config=second)
        save_sd3(folder / "sd3.5_medium.safetensors")
    tokenizers = folder / "tokenizers"
    for name in ("openai_clip-vit-large-patch14", "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"):
        make_tokenizer(tokenizers / name)
    t5_tokenizer = tokenizers / "google_t5-v1_1-xxl"
    t5_tokenizer.mkdir(parents=True, exist_ok=True)
    for file in Path("configs/t5_old").glob("*"):
        if file.name != "config.json":
            (t5_tokenizer / file.name).write_bytes(file.read_bytes())
    assert flux_utils
    assert sd3_utils
    assert torch


def save(kind: Any, file: Path, **arguments: Any) -> None:
    """A model of that class in bf16."""
    import torch
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = kind(**arguments)
    state = {key: value.bfloat16().contiguous() for key, value in fill(model).state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)  # T5's second name for `shared`
    save_file(state, file, {"format": "pt"})


def save_sd3(file: Path) -> None:
    """MMDiT and VAE in one file, as Stability publishes them."""
    import torch
    from library import sd3_models
    from safetensors.torch import save_file

    params = sd3_models.SD3Params(
        patch_size=2,
        depth=2,
        num_patches=64 * 64,
        pos_embed_max_size=64,
        adm_in_channels=2048,
        qk_norm="rms",
        x_block_self_attn_layers=[0],
        context_embedder_in_features=4096,
        context_embedder_out_features=128,
        model_type="5-medium",
    )
    mmdit = sd3_models.create_sd3_mmdit(params, "torch")
    vae = sd3_models.SDVAE(torch.float32, "cpu")
    state = {f"model.diffusion_model.{key}": value for key, value in fill(mmdit).state_dict().items()}
    state |= {f"first_stage_model.{key}": value for key, value in fill(vae).state_dict().items()}
    save_file({key: value.bfloat16().contiguous() for key, value in state.items()}, file, {"format": "pt"})


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main(sys.argv[1], Path(sys.argv[2]))
