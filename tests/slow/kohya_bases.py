"""Base models with random weights, a tokenizer without the hub, and small data sets, for tests of the kohya engine."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from PIL import Image

CRAWL_TILES = Path(__file__).parents[2].parent / "shared" / "data" / "crawl-tiles"
SD15_BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
TOY_TOKENS = 514
"""What make_tokenizer makes without words: every byte, twice, and the two specials."""
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_tokenizer(folder: Path, *, length: int = 77, words: tuple[str, ...] = (), last_id: int = 49407) -> Path:
    """A CLIPTokenizer of single bytes (and whole `words`), the specials last, as CLIP's ids are."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(byte_letters().values())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    merges: list[str] = []
    for word in words:
        joined = word[0]
        for place, letter in enumerate(word[1:], start=2):
            right = f"{letter}</w>" if place == len(word) else letter
            merges.append(f"{joined} {right}")
            joined += right
            tokens.append(joined)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    vocabulary |= {"<|startoftext|>": last_id - 1, "<|endoftext|>": last_id}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges), ""]), encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"model_max_length": length, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return folder


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def make_toy(folder: Path, *, tokens: int = 49408) -> Path:
    """SD1.5 with its block names, but 32 to 64 channels and a text encoder of 2 layers: 64 px, under 10 MB."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    width: dict[str, Any] = {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8}
    unet = build(
        UNet2DConditionModel, sample_size=8, cross_attention_dim=32, attention_head_dim=4, **SD15_BLOCKS, **width
    )
    vae = build(
        AutoencoderKL, **vae_blocks(4), block_out_channels=(8, 8, 8, 8), norm_num_groups=4, scaling_factor=0.18215
    )
    return save_base(folder, unet, vae, text_width=32, text_layers=2, tokens=tokens)


def make_tiny(folder: Path) -> Path:
    """The shape of pixelkit-tiny: 32 px, AutoencoderTiny of factor 2, 16 tokens of an own vocabulary, v-prediction."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    unet = build(
        UNet2DConditionModel,
        sample_size=16,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = build(
        AutoencoderTiny,
        encoder_block_out_channels=(48, 48),
        decoder_block_out_channels=(48, 48),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
        scaling_factor=0.7,
    )
    return save_base(folder, unet, vae, text_width=128, text_layers=2, tokens=626, length=16, prediction="v_prediction")


def make_tiny_sd(folder: Path) -> Path:
    """The shape of segmind/tiny-sd: a UNet of 323 M parameters, three blocks, no middle."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = build(
        UNet2DConditionModel,
        sample_size=64,
        block_out_channels=(320, 640, 1280),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        mid_block_type=None,
    )
    return save_base(folder, unet, sd_vae(AutoencoderKL), text_width=768, text_layers=12, tokens=49408)


def make_sd15(folder: Path) -> Path:
    """SD1.5 in full, 1.07 G parameters, saved in half precision (2.1 GB)."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = build(
        UNet2DConditionModel,
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
        **SD15_BLOCKS,
    )
    return save_base(folder, unet, sd_vae(AutoencoderKL), text_width=768, text_layers=12, tokens=49408)


def make_sdxl(file: Path) -> Path:
    """SDXL in full, one file in half precision (6.9 GB), built in 9 GB. Runs in the folder of sd-scripts."""
    from library import model_util, sdxl_model_util, sdxl_original_unet
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    second = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    sdxl_model_util.save_stable_diffusion_checkpoint(
        str(file),
        build(CLIPTextModel, config=first),
        build(CLIPTextModelWithProjection, config=second),
        build(sdxl_original_unet.SdxlUNet2DConditionModel),
        0,
        0,
        None,
        build(sdxl_model_util.AutoencoderKL, **model_util.create_vae_diffusers_config()),
        None,
        {},
    )
    return file


def vae_blocks(count: int) -> dict[str, Any]:
    """The block types of an AutoencoderKL that halves `count` - 1 times."""
    return {"down_block_types": ("DownEncoderBlock2D",) * count, "up_block_types": ("UpDecoderBlock2D",) * count}


def sd_vae(vae_class: Any) -> Any:
    """The VAE of SD1.5."""
    channels = (128, 256, 512, 512)
    return build(vae_class, **vae_blocks(4), block_out_channels=channels, layers_per_block=2, latent_channels=4)


def build(model_class: Any, **config: Any) -> Any:
    """A model with quick random weights: normal with 0.02, norms 1, biases 0."""
    import torch

    with torch.device("meta"):
        model = model_class(**config)
    return fill(model)


def fill(model: Any) -> Any:
    """Weights for a model without any. Large ones repeat the same million numbers, which is quick."""
    import torch

    model.to_empty(device="cpu").half()
    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(1)) * 0.02).half()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                for part in weight.view(-1).split(len(noise)):
                    part.copy_(noise[: len(part)])
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
        for name, buffer in model.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return model


def save_base(
    folder: Path,
    unet: Any,
    vae: Any,
    *,
    text_width: int,
    text_layers: int,
    tokens: int,
    length: int = 77,
    prediction: str = "epsilon",
) -> Path:
    """A StableDiffusionPipeline's folder."""
    import torch
    from diffusers import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=text_width,
        intermediate_size=text_width * 4,
        projection_dim=text_width,
        num_hidden_layers=text_layers,
        num_attention_heads=max(2, text_width // 64),
        max_position_embeddings=length,
        eos_token_id=tokens - 1,
        bos_token_id=tokens - 2,
    )
    with torch.device("meta"):
        text_encoder = CLIPTextModel(config)
    fill(text_encoder).save_pretrained(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type=prediction).save_pretrained(folder / "scheduler")
    make_tokenizer(folder / "tokenizer", length=length, last_id=tokens - 1, words=("sprite", "knight", "slime"))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.32.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(vae).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def make_images(folder: Path, *, size: int, count: int = 20) -> Path:
    """`count` captioned sprites of `size` px on a plain ground: crawl tiles where they are, drawn squares elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    tiles = sorted((CRAWL_TILES / "mon").rglob("*.png"))[:count] if CRAWL_TILES.is_dir() else []
    dice = random.Random(1)
    for number in range(count):
        ground = Image.new("RGB", (size, size), (40, 44, 52))
        if number < len(tiles):
            with Image.open(tiles[number]) as tile:
                sprite = tile.convert("RGBA").resize((size, size), Image.Resampling.NEAREST)
            name = tiles[number].stem.replace("_", " ")
        else:
            sprite = Image.new("RGBA", (size // 2, size // 2), (*(dice.randrange(256) for _ in range(3)), 255))
            name = "square"
        ground.paste(sprite, (0, 0), sprite)
        ground.save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"pxl sprite, {name}", encoding="utf-8")
    return folder


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    make_sdxl(Path(sys.argv[1]))
