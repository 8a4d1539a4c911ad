"""pixelkit's own trainer on diffusers and peft as an engine: LoRA for models of SD1.x's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixelkit.engines.adapter import ACCELERATE, CONFIG, EngineData, launch_command
from pixelkit.engines.diffusers.settings import load_settings
from pixelkit.errors import Problem, RenderError
from pixelkit.paths import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixelkit.plan import Plan
    from pixelkit.process import Command
    from pixelkit.rundir import RunDir

OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULERS: Mapping[str, str] = {
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",  # its warm-up is a number of its own
    "linear": "linear",
}


def check(plan: Plan, sd_scripts: Path | None) -> list[Problem]:  # noqa: ARG001 - the protocol's
    """What of the plan this trainer cannot do."""
    problems = []

    def refuse(name: str, value: object, hint: str) -> None:
        where = plan.sources.get(name, "")
        problems.append(
            Problem(
                where=f"{where} [{name.partition('.')[0]}]" if where else "",
                what=f"{name} = {value}: not with the diffusers engine",
                hint=hint,
            )
        )

    if plan.base.spec.family != "sd15":
        refuse("base", plan.base.name, 'engine = "kohya" trains it')
    if plan.method != "lora":
        refuse("method", plan.method, 'engine = "kohya" does it')
    if plan.network.kind != "lora":
        refuse("network.kind", plan.network.kind, 'engine = "kohya" does it')
    if plan.network.start_from:
        refuse("network.start_from", plan.network.start_from.name, 'engine = "kohya" does it; base_loras bakes it in')
    if plan.train.gpus > 1:
        refuse("train.gpus", plan.train.gpus, 'engine = "kohya" does it')
    if plan.train.optimizer not in OPTIMIZERS:
        refuse("train.optimizer", plan.train.optimizer, f"it has {', '.join(OPTIMIZERS)}")
    if plan.train.scheduler not in SCHEDULERS:
        refuse("train.scheduler", plan.train.scheduler, f"it has {', '.join(SCHEDULERS)}")
    if plan.train.shuffle_caption:
        refuse("train.shuffle_caption", "true", "remove it")
    if plan.dataset.alpha == "mask":
        refuse("dataset.alpha", "mask", 'engine = "kohya" does it, or alpha = "flatten"')
    if plan.train.clip_skip > 1:
        refuse("train.clip_skip", plan.train.clip_skip, "remove it")
    problems += [
        Problem(
            where=f"{plan.sources[f'kohya.{key}']} [kohya]",
            what=f"{key}: the diffusers engine reads no [kohya]",
            hint='remove it, or engine = "kohya"',
        )
        for key in plan.preset.kohya
    ]
    return problems


def context(plan: Plan, run: RunDir, data: EngineData) -> Mapping[str, Mapping[str, object]]:
    """Variables of config.toml (see settings.py) and accelerate.yaml."""
    train, network, sample = plan.train, plan.network, plan.sample
    export = plan.preset.export
    config: dict[str, object] = {
        "base": data.base or plan.base.location,
        "output_dir": run.output,
        "output_name": plan.name,
        "seed": train.seed,
        "precision": train.precision,
        "dataset": {
            "images": [subset.folder for subset in data.images],
            "repeats": [subset.repeats for subset in data.images],
            "class_images": data.class_images or "",
            "caption_dropout": train.caption_dropout,
            "batch_size": train.batch_size,
            "workers": train.workers,
        },
        "network": {
            "rank": network.rank,
            "alpha": network.alpha,
            "dropout": network.dropout,
            "conv_rank": network.conv_rank,
            "conv_alpha": network.conv_alpha,
            "train_text_encoder": train.train_text_encoder,
        },
        "train": {
            "steps": train.steps,
            "gradient_accumulation": train.gradient_accumulation,
            "learning_rate": train.learning_rate,
            "text_encoder_learning_rate": train.text_encoder_learning_rate,
            "optimizer": train.optimizer,
            "weight_decay": 0.01,
            "scheduler": SCHEDULERS[train.scheduler],
            "warmup_steps": train.warmup_steps,
            "max_grad_norm": train.max_grad_norm,
            "min_snr_gamma": train.min_snr_gamma,
            "noise_offset": train.noise_offset,
            "prior_loss_weight": plan.dataset.prior_weight,
            "gradient_checkpointing": train.gradient_checkpointing,
            "save_every_steps": train.save_every_steps,
            "compile": train.compile,
        },
        "sample": {
            "prompts": sample.prompts,
            "negative": sample.negative,
            "every_steps": sample.every_steps,
            "steps": sample.steps,
            "guidance": sample.guidance,
            "seed": sample.seed,
            "width": sample.width,
            "height": sample.height,
            "sampler": sample.sampler,
        },
        "metadata": {
            "ss_sd_model_name": plan.base.name,
            "modelspec.title": export.title or plan.name,
            **{
                f"modelspec.{key}": text
                for key, text in (
                    ("author", export.author),
                    ("license", export.license),
                    ("description", export.description),
                )
                if text
            },
            **({"modelspec.trigger_phrase": plan.dataset.trigger} if plan.dataset.trigger else {}),
        },
    }
    return {CONFIG: config, ACCELERATE: {"precision": train.precision, "cpu": plan.device == "cpu", "gpus": 1}}


def verify(plan: Plan, files: Mapping[str, Path]) -> list[Problem]:  # noqa: ARG001 - the protocol's
    """config.toml read back by the trainer's own strict reader."""
    try:
        load_settings(files[CONFIG])
    except RenderError as error:
        return list(error.problems) or [Problem(what=error.message)]
    return []


def command(plan: Plan, run: RunDir, data: EngineData, *, resume: Path | None = None) -> Command:  # noqa: ARG001 - the protocol's
    """Our trainer under `accelerate launch`."""
    arguments = ["--config", str(run.config / CONFIG)]
    if resume:
        arguments += ["--resume", str(resume)]
    return launch_command(plan, run, module="pixelkit.engines.diffusers.entry", arguments=arguments, cwd=PACKAGE.parent)
