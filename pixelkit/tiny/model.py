"""The parts of the small base model: a StableDiffusionPipeline of 32x32 pixels whose latents are the pixels.

Why f = 1: a decoder made of nearest-neighbour enlargement and convolutions, as Stable Diffusion's is, cannot tell the
pixels of a latent's cell apart except by the cell's neighbours, so even dithers come out grey. At 32x32 the UNet can
work on pixels: four latent channels at full size (red, green, blue and their mean), exact to a fraction of an 8-bit
step, in the class every trainer expects (AutoencoderKL, `latent_dist`, scaling_factor 0.18215), with nothing to train.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SIZE = 32
TOKENS = 32
WIDTH = 128
SCALING = 0.18215
# Latents times SCALING are pixels (-1 to 1) times this, which gives them a variance near 1 over the training sprites.
GAIN = 1.5
# The constant that GroupNorm sees beside the pixels: large, so that it divides every image by the same number.
ANCHOR = 64.0

START, END = "<|startoftext|>", "<|endoftext|>"

Word = tuple[str, ...]


def build_tokenizer(words: Iterable[str], directory: Path) -> CLIPTokenizer:
    """Writes a CLIP tokenizer whose vocabulary has each of `words` as one token, and loads it.

    Byte pairs are merged, the most frequent first, until every word is whole; what is not in the list is spelled with
    the pieces and bytes there are, so a trigger word needs no place in the vocabulary.
    """
    letters = _byte_letters()
    splits: dict[str, Word] = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(set(words))}
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in splits.values()):
        pairs = Counter(pair for pieces in splits.values() for pair in pairwise(pieces))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        splits = {word: _merge(pieces, best) for word, pieces in splits.items()}
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    vocabulary_file.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    # CLIPTokenizer drops the first line, and reads as many merges as CLIP's own vocabulary has.
    merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        vocab_file=str(vocabulary_file),
        merges_file=str(merges_file),
        model_max_length=TOKENS,
        pad_token=END,
        unk_token=END,
    )
    tokenizer.save_pretrained(directory)
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers, 128 wide, random weights; SD1.5's module names, so LoRA tools find CLIPAttention and CLIPMLP."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """32x32 latents, four levels; attention at 16x16, 8x8 and, between down and up, 4x4; random weights."""
    return UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 160, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,  # the number of heads, as in SD1.5
        cross_attention_dim=WIDTH,
        # The words' gist goes to every block beside the time: with cross-attention alone, a small model takes ten
        # times as long to notice which thing it is asked for.
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
    )


def build_vae() -> AutoencoderKL:
    """An AutoencoderKL with weights set by hand: latents are the pixels, turned by a matrix.

    Convolutions carry each value as the pair (x, -x), which SiLU keeps, as silu(x) - silu(-x) = x. GroupNorm over one
    group sees the pairs (mean 0) and the pair (ANCHOR, -ANCHOR), which sets the variance; its weight undoes that.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=SIZE,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
    )
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    pixels_to_latents = torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)]) * GAIN / SCALING
    latents_to_pixels = torch.linalg.pinv(pixels_to_latents)
    with torch.no_grad():
        for part, enters in ((vae.encoder, torch.eye(3)), (vae.decoder, latents_to_pixels)):
            part.conv_in.weight[0:6:2, :, 1, 1] = enters
            part.conv_in.weight[1:6:2, :, 1, 1] = -enters
            part.conv_in.bias[6:] = torch.tensor([ANCHOR, -ANCHOR])
            part.conv_norm_out.weight.fill_(ANCHOR / 2)
        vae.encoder.conv_out.weight[:4, 0:6:2, 1, 1] = pixels_to_latents
        vae.encoder.conv_out.weight[:4, 1:6:2, 1, 1] = -pixels_to_latents
        vae.encoder.conv_out.bias[4:] = -30.0  # log variance: no noise
        vae.decoder.conv_out.weight[:, 0:6:2, 1, 1] = torch.eye(3)
        vae.decoder.conv_out.weight[:, 1:6:2, 1, 1] = -torch.eye(3)
        vae.quant_conv.weight[:, :, 0, 0] = torch.eye(8)
        vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(4)
    return vae.eval()


def build_scheduler() -> DDIMScheduler:
    """SD1.5's betas with the last step pure noise: flat backgrounds take their colour from the words alone."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,  # diffusers asks for it; trailing timesteps have no offset
    )


def assemble(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> Any:
    """The StableDiffusionPipeline of these parts, without safety checker and feature extractor."""
    return StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _merge(pieces: Word, pair: tuple[str, str]) -> Word:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def _byte_letters() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in its order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
