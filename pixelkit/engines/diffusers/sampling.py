"""The base as a pipeline, and sample images from it: one prompt at a time, noise from the CPU, no resampling."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel

from pixelkit.errors import EngineError
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pixelkit.engines.diffusers.settings import SampleSettings, Settings

SAMPLERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}


def load_pipeline(base: str, device: torch.device) -> Any:
    """A fresh StableDiffusionPipeline in fp32 on `device`. Raises EngineError if `base` is none of SD1.x's shape."""
    options: dict[str, Any] = {"torch_dtype": torch.float32, "safety_checker": None, "requires_safety_checker": False}
    path = Path(base).expanduser()
    try:
        if path.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(str(path), **options)
        else:
            if path.is_dir():
                options |= {"local_files_only": True, "variant": _find_variant(path)}
            pipeline = StableDiffusionPipeline.from_pretrained(base, **options)
    except Exception as error:  # diffusers, transformers, safetensors and the hub each raise their own
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineError(f"cannot load {base} as a Stable Diffusion pipeline: {what[0]}") from error
    if not isinstance(pipeline.unet, UNet2DConditionModel) or not isinstance(pipeline.text_encoder, CLIPTextModel):
        raise EngineError(f"{base} is no Stable Diffusion 1.x: its UNet is a {type(pipeline.unet).__name__}, "
                          f"its text encoder a {type(pipeline.text_encoder).__name__}")  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        model.eval().requires_grad_(requires_grad=False)
    return pipeline


def _find_variant(folder: Path) -> str | None:
    """`fp16` where the UNet is there under that name only."""
    names = [path.name for path in (folder / "unet").glob("diffusion_pytorch_model*")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


def draw_samples(
    pipeline: Any,
    settings: Settings,
    step: int,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    skip_existing: bool = False,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, int, str, Path]]:
    """Draw and write every prompt, yielding (index, seed, prompt, path).

    The same prompt, seed and weights give the same PNG, whatever else is drawn. `skip_existing` keeps what is there.
    """
    sample = settings.sample
    pipeline.scheduler, trained_with = _make_sampler(sample, pipeline), pipeline.scheduler
    try:
        for index, prompt in enumerate(sample.prompts):
            if is_stopped():
                return
            seed = sample.seed + index
            path = Path(settings.output_dir) / "sample" / f"{settings.output_name}_{step:06d}_{index:02d}_{seed}.png"
            if not (skip_existing and path.exists()):
                with torch.inference_mode(), autocast():
                    drawn = pipeline(
                        prompt,
                        negative_prompt=sample.negative or None,
                        width=sample.width,
                        height=sample.height,
                        num_inference_steps=sample.steps,
                        guidance_scale=sample.guidance,
                        generator=torch.Generator("cpu").manual_seed(seed),
                    )
                buffer = BytesIO()
                drawn.images[0].save(buffer, format="PNG")
                write_atomically(path, buffer.getvalue())
            yield index, seed, prompt, Path(os.path.abspath(path))  # noqa: PTH100  (no symlinks resolved)
    finally:
        pipeline.scheduler = trained_with


def _make_sampler(sample: SampleSettings, pipeline: Any) -> Any:
    return SAMPLERS[sample.sampler].from_config(pipeline.scheduler.config)
