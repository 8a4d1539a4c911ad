"""Trains the small base model on sprites of the painter and writes a diffusers pipeline, fp16, below 20 MB.

    python -m pixelkit.tiny.train --out pixelkit/tiny/weights

About an hour on one core of 2025 (bfloat16 instructions help). Interrupted, the same command goes on from the last
checkpoint in the work directory (OUT.work). The UNet and the text encoder are trained together, v-prediction, on
sprites drawn as they are needed; the VAE needs no training (see pixelkit.tiny.model).
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from pixelkit.tiny import model
from pixelkit.tiny.painter import KINDS, STYLES, caption, paint
from pixelkit.tiny.palettes import BACKGROUNDS, COLOURS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# Words that prompts and captions are likely to have beside the kinds and colours.
COMMON_WORDS = (
    "pixel art sprite style game a an the of with and on in no background outline icon item character "
    "small big large dark light bright old new left right up down front side view transparent 8 16 32 bit , . -"
)
MEDIUM = "pixel art"
# How often each of STYLES is drawn.
STYLE_SHARES = (0.18, 0.28, 0.18, 0.18, 0.1, 0.08)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training is made of; `seed` decides everything that is drawn."""

    out: Path
    steps: int = 5000
    word_steps: int = 1000
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: int = 150
    seed: int = 0
    threads: int = 1
    bfloat16: bool = True
    save_every: int = 200

    @property
    def work(self) -> Path:
        """Where checkpoints are kept."""
        return self.out.with_name(self.out.name + ".work")


class Parts(nn.Module):
    """What is trained."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = model.build_text_encoder(tokenizer)
        self.unet = model.build_unet()


def vocabulary() -> list[str]:
    """The words that are one token each."""
    return [*KINDS, *COLOURS, *BACKGROUNDS, *STYLES, *COMMON_WORDS.split()]


def draw_batch(rng: np.random.Generator, count: int) -> tuple[Tensor, list[str]]:
    """Sprites as pixels from -1 to 1, (count, 3, 32, 32), and their captions.

    The words vary as people's do: with and without the medium, the background or the style's name, here and there a
    word that means nothing (so that a trigger word alone changes little), and one in ten has no words at all.
    """
    kinds, colours, grounds, styles = list(KINDS), list(COLOURS), list(BACKGROUNDS), list(STYLES)
    images, texts = [], []
    for _ in range(count):
        kind, colour = kinds[rng.integers(len(kinds))], colours[rng.integers(len(colours))]
        others = [name for name in grounds if name != colour]
        ground = others[rng.integers(len(others))]
        style = styles[rng.choice(len(styles), p=STYLE_SHARES)]
        images.append(np.asarray(paint(kind, colour, ground, rng, style=STYLES[style], steady=True)))
        chance = rng.random(6)
        words = caption(kind, None if chance[0] < 0.06 else colour, None if chance[1] < 0.12 else ground)
        if chance[2] < 0.75:
            words = f"{MEDIUM}, {words}"
        if chance[3] < 0.5:
            words = f"{words}, {style}"
        if chance[4] < 0.1:
            words = f"{_nonsense(rng)}, {words}"
        texts.append("" if chance[5] < 0.1 else words)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, texts


def train(settings: Settings) -> None:
    """Trains to `settings.steps`, from the last checkpoint where there is one, and exports the pipeline."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    tokenizer = model.build_tokenizer(vocabulary(), settings.work / "tokenizer")
    parts = Parts(tokenizer)
    checkpoint = settings.work / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    if state is None:
        learn_words(parts, tokenizer, settings)
    average = copy.deepcopy(parts).eval().requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(
        parts.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    step = 0
    if state is not None:
        parts.load_state_dict(state["parts"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
        print(f"goes on from step {step} of {settings.steps} ({checkpoint})")
    parts.unet.to(memory_format=torch.channels_last)
    parts.unet.set_attn_processor(AttnProcessor())  # at these sizes faster on a CPU than the fused attention
    vae = model.build_vae()
    alphas = model.build_scheduler().alphas_cumprod
    started, first, loss_average = time.monotonic(), step, math.nan
    while step < settings.steps:
        rng = np.random.default_rng((settings.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(step, settings)
        loss = _loss(parts, rng, tokenizer=tokenizer, vae=vae, alphas=alphas, settings=settings)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(parts.parameters()), 1 - decay)
        value = loss.item()
        loss_average = value if math.isnan(loss_average) else 0.98 * loss_average + 0.02 * value
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} at step {step}; the last checkpoint is {checkpoint}")
        if step % 20 == 0 or step == settings.steps:
            pace = (time.monotonic() - started) / (step - first)
            left = round(pace * (settings.steps - step))
            print(f"step {step}/{settings.steps}  loss {loss_average:.4f}  {pace:.2f} s/step  {left // 60} min left")
            sys.stdout.flush()
        if step % settings.save_every == 0 or step == settings.steps:
            _save(checkpoint, parts=parts, average=average, optimizer=optimizer, step=step)
            export(tokenizer, average, settings.out)


def learn_words(parts: Parts, tokenizer: CLIPTokenizer, settings: Settings) -> None:
    """Teaches the text encoder and its pooling what the words look like: the mean sprite of a caption, by regression.

    A small network guesses the sprite at 16x16 from the pooled words, and is thrown away. Minutes here save the UNet
    most of an hour, in which it would learn backgrounds and colours, but no kinds.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    pooling = parts.unet.add_embedding
    width = pooling.proj.out_features
    guess = nn.Sequential(nn.Linear(width, 384), nn.SiLU(), nn.Linear(384, 3 * 16 * 16))
    for parameter in guess.parameters():
        nn.init.normal_(parameter, std=0.03, generator=generator)
    learned = [*parts.text_encoder.parameters(), *pooling.parameters(), *guess.parameters()]
    optimizer = torch.optim.AdamW(learned, 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(settings.word_steps):
        pixels, texts = draw_batch(np.random.default_rng((settings.seed, 1, step)), 48)
        along = step / settings.word_steps
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50, 4 * (1 - along))
        hidden = parts.text_encoder(_tokenize(tokenizer, texts))[0]
        wanted = nn.functional.avg_pool2d(pixels, 2).flatten(1)
        loss = nn.functional.mse_loss(guess(pooling(hidden)), wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"words {step + 1}/{settings.word_steps}  loss {loss.item():.4f}", flush=True)


def learning_rate_factor(step: int, settings: Settings) -> float:
    """Linear warm-up, constant, and over the last eighth half a cosine down to 1 %."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    along = max(0.0, step / settings.steps - 0.875) / 0.125
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(along, 1.0)))


def export(tokenizer: CLIPTokenizer, parts: Parts, out: Path) -> None:
    """Writes the pipeline in fp16; replaces a pipeline that is there, leaves other files (README.md) alone."""
    halves = copy.deepcopy(parts).half().eval()
    pipeline = model.assemble(tokenizer, halves.text_encoder, halves.unet)
    pipeline.vae.half()
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    out.mkdir(parents=True, exist_ok=True)
    for item in fresh.iterdir():
        old = out / item.name
        if old.is_dir():
            shutil.rmtree(old)
        item.replace(old)
    fresh.rmdir()


def _loss(
    parts: Parts,
    rng: np.random.Generator,
    *,
    tokenizer: CLIPTokenizer,
    vae: Any,
    alphas: Tensor,
    settings: Settings,
) -> Tensor:
    """Mean squared error of the predicted v over a fresh batch, its timesteps spread evenly."""
    pixels, texts = draw_batch(rng, settings.batch)
    noise_source = torch.Generator().manual_seed(int(rng.integers(2**62)))
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=noise_source)
    spread = (torch.arange(settings.batch) + torch.rand(settings.batch, generator=noise_source)) / settings.batch
    timesteps = (spread * len(alphas)).long().clamp(max=len(alphas) - 1)
    signal = alphas[timesteps].sqrt().view(-1, 1, 1, 1)
    spoil = (1 - alphas[timesteps]).sqrt().view(-1, 1, 1, 1)
    noisy = (signal * latents + spoil * noise).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
        hidden = parts.text_encoder(_tokenize(tokenizer, texts))[0]
        predicted = parts.unet(noisy, timesteps, hidden).sample
    return nn.functional.mse_loss(predicted.float(), signal * noise - spoil * latents)


def _tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, (batch, TOKENS)."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=model.TOKENS, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def _save(path: Path, **state: Any) -> None:
    """Writes a checkpoint so that an interruption leaves the old one whole."""
    plain = {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in state.items()}
    fresh = path.with_suffix(".new")
    torch.save(plain, fresh)
    fresh.replace(path)


def _nonsense(rng: np.random.Generator) -> str:
    """A word that is none: 3 to 9 letters."""
    letters = rng.integers(ord("a"), ord("z") + 1, int(rng.integers(3, 10)))
    return "".join(map(chr, letters.tolist())) + (" style" if rng.random() < 0.5 else "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pixelkit.tiny.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the pipeline; OUT.work keeps checkpoints")
    parser.add_argument("--unet-steps", type=int, default=Settings.steps)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--fp32", action="store_true", help="no bfloat16: for processors without its instructions")
    given = parser.parse_args()
    train(
        Settings(
            out=given.out,
            steps=given.unet_steps,
            batch=given.batch,
            threads=given.threads,
            seed=given.seed,
            bfloat16=not given.fp32,
        )
    )


if __name__ == "__main__":
    main()
