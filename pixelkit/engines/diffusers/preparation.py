"""What comes before a training's first step: device, cached latents, tokens, models in their modes, optimizer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from pixelkit.engines.diffusers.examples import Example, read_pixels
from pixelkit.errors import EngineError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.engines.diffusers.network import Layer
    from pixelkit.engines.diffusers.settings import Settings


class NonFiniteError(Exception):
    """A loss, gradient, weight or latent is NaN or infinite: nothing more is written."""


def claim_folder(folder: str) -> None:
    """Make the output folder, and find out before the training whether it can be written to. Raises StorageError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error


def start_accelerator(settings: Settings) -> Accelerator:
    """One process on the best device there is."""
    try:
        accelerator = Accelerator(mixed_precision=settings.precision)
    except (ValueError, RuntimeError, ImportError) as error:
        what = f"precision {settings.precision} does not work here: {error}"
        raise EngineError(what, hint='use "no" or "bf16"') from error
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise EngineError("precision fp16 does not work on a CPU", hint='use "no" or "bf16"')
    if accelerator.num_processes > 1:
        raise EngineError("this engine trains in one process", hint="start it with --num_processes 1")
    return accelerator


@torch.no_grad()
def cache_latents(vae: Any, examples: Sequence[Example], workers: int) -> list[Tensor]:
    """The scaled latents of every example, fp32, on the CPU. Of an AutoencoderKL the mean: nothing random is added."""
    found = []
    for start in range(0, len(examples), 64):
        for pixels in read_pixels(examples[start : start + 64], workers):
            encoded = vae.encode(torch.from_numpy(pixels)[None].to(vae.device))
            latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
            found.append((latent[0] * vae.config.scaling_factor).cpu())
    if not all(bool(latent.isfinite().all()) for latent in found):
        raise NonFiniteError("latents")
    return found


def tokenize(pipeline: Any, captions: set[str]) -> dict[str, Tensor]:
    """Each caption's token ids, (1, length); says how many are cut off."""
    length = min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    encode = partial(pipeline.tokenizer, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    cut = [caption for caption in sorted(captions) if len(pipeline.tokenizer(caption).input_ids) > length]
    if cut:
        print(f"{len(cut)} captions are longer than {length} tokens and cut, among them: {cut[0]}", flush=True)
    return {caption: encode(caption).input_ids.to(pipeline.device) for caption in sorted(captions)}


def prepare_models(pipeline: Any, settings: Settings) -> None:
    """Memory layout, gradient checkpointing, compilation, and which model is in training mode."""
    if pipeline.device.type == "cpu":
        pipeline.unet.to(memory_format=torch.channels_last)  # a tenth faster
    if settings.train.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
        if settings.network.train_text_encoder:
            pipeline.text_encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings.train.compile:
        pipeline.unet.compile()
    set_train_mode(pipeline, settings)


def set_train_mode(pipeline: Any, settings: Settings) -> None:
    """Dropout and checkpointing act where weights are trained."""
    pipeline.unet.train()
    pipeline.text_encoder.train(settings.network.train_text_encoder)


def make_optimizer(settings: Settings, layers: Sequence[Layer], device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the LoRA, the text encoder's layers at their own rate. Raises EngineError without bitsandbytes."""
    train, groups = settings.train, []
    for prefix, rate in (("lora_unet_", train.learning_rate), ("lora_te_", train.text_encoder_learning_rate)):
        parameters = [p for layer in layers if layer.name.startswith(prefix) for p in (layer.down, layer.up)]
        if parameters:
            groups.append({"params": parameters, "lr": rate, "full_lr": rate})
    if train.optimizer == "adamw":
        fused = device.type in {"cpu", "cuda"} and settings.precision != "fp16"
        return torch.optim.AdamW(groups, weight_decay=train.weight_decay, fused=fused)
    try:
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, RuntimeError, OSError) as error:
        what = f"adamw8bit needs bitsandbytes, which does not load here: {error}"
        raise EngineError(what, hint='use optimizer = "adamw"') from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, weight_decay=train.weight_decay)
    return optimizer


def measure_memory(device: torch.device) -> int:
    """Bytes: the peak on a CUDA device, what is allocated on MPS, the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return int(psutil.Process().memory_info().rss)
