"""From a preset, a base and a machine to a plan in which nothing is left open."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Literal

from pixelkit.canvas import batches_per_epoch
from pixelkit.catalog import Base, HardwareProfile, expected_memory
from pixelkit.errors import PresetError
from pixelkit.plan.data import plan_dataset
from pixelkit.plan.effects import FLOW, STABLE_DIFFUSION, find_idle, why_no_text_encoder
from pixelkit.plan.model import DatasetPlan, Plan, SamplePlan, TrainPlan, makes
from pixelkit.plan.network import plan_base_loras, plan_embedding, plan_network
from pixelkit.plan.settle import Resolver
from pixelkit.sources import Survey

if TYPE_CHECKING:
    from pixelkit.hardware import Machine
    from pixelkit.preset_file import LoadedPreset

DEFAULT_STEPS = 1500
EMBEDDING_RATE = 5e-4  # diffusers' textual_inversion script; a hundredth of it hardly moves a vector


def resolve(
    loaded: LoadedPreset,
    base: Base,
    profile_name: str,
    profile: HardwareProfile,
    machine: Machine,
    *,
    engine: Literal["kohya", "diffusers"],
    survey: Survey,
    class_survey: Survey | None = None,
    shown_profile: str = "",
) -> Plan:
    """Leave nothing open; what the surveys remark becomes warnings. `shown_profile`: the profile's name as a source.

    Raises PresetError or DataError where no plan is possible.
    """
    preset = loaded.preset
    resolver = Resolver(loaded, base, shown_profile or profile_name)
    class_survey = class_survey or Survey(sprites=())
    resolver.warnings += [*survey.remarks, *class_survey.remarks]
    family = profile.families.get(base.spec.family)
    if family is None:
        raise PresetError(
            f"{profile.title} cannot train {base.spec.family}: no profile for it",
            hint="choose a smaller base, or --hardware for another machine",
        )
    dataset = plan_dataset(resolver, base, survey, class_survey.sprites)
    train = _plan_train(resolver, base, profile, machine, dataset)
    network = plan_network(resolver, base)
    area = max(bucket.width * bucket.height for bucket in dataset.buckets)
    memory = expected_memory(
        base.spec,
        batch_size=train.batch_size,
        checkpointing=train.gradient_checkpointing,
        canvas_area=area,
        optimizer=train.optimizer if makes(preset.method) == "model" else None,
    )
    kohya = {**profile.kohya, **family.kohya, **base.spec.kohya}
    if preset.method != "lora":  # only a base that a LoRA's script holds still can be kept in 8 bits
        kohya = {key: value for key, value in kohya.items() if key not in {"fp8_base", "fp8_base_unet"}}
    if base.spec.family == "flux" and makes(preset.method) == "model":
        kohya |= _whole_flux(train)
    kohya |= preset.kohya
    savers = {"fp8_base", "fp8_base_unet", "blocks_to_swap"} & kohya.keys()
    _warn_machine(resolver, profile, machine, train)
    if memory > machine.available_gib and not savers:
        resolver.warnings.append(
            f"about {memory:.0f} GiB of memory are expected (computed, not measured), {machine.available_gib:.0f} GiB are free;"
            " lower train.batch_size or set train.gradient_checkpointing = true"
        )
    _warn_ranges(resolver, base)
    for key in kohya:
        source = (
            str(loaded.origin("kohya", key))
            if key in preset.kohya
            else resolver.base_name
            if key in base.spec.kohya
            else resolver.hardware_name
        )
        resolver.sources[f"kohya.{key}"] = source
    plan = Plan(
        name=preset.name,
        method=preset.method,
        engine=engine,
        base=base,
        base_loras=plan_base_loras(resolver, base),
        hardware=profile_name,
        device=profile.kind,
        machine=machine,
        environment=profile.environment,
        dataset=dataset,
        network=network,
        embedding=plan_embedding(resolver, dataset.trigger),
        train=train,
        sample=_plan_sample(resolver, base, dataset, train),
        preset=preset,
        kohya=kohya,
        memory_gib=memory,
        sources=resolver.sources,
        warnings=(),
    )
    return dataclasses.replace(plan, warnings=(*resolver.warnings, *find_idle(loaded, plan)))


def _whole_flux(train: TrainPlan) -> dict[str, bool]:
    """Twelve billion weights: in bf16 throughout, and each updated as soon as its gradient is there (flux_train.py:476)."""
    options = {"full_bf16": True} if train.precision == "bf16" else {}
    if train.optimizer == "adafactor" and train.gradient_accumulation == 1:
        options["fused_backward_pass"] = True
    return options


def _warn_machine(resolver: Resolver, profile: HardwareProfile, machine: Machine, train: TrainPlan) -> None:
    if profile.kind not in {machine.kind, "cpu"}:
        resolver.warnings.append(
            f"{resolver.hardware_name} is for {profile.kind}, and this machine has none: it will not train"
        )
    if profile.kind in {"cpu", "mps"}:
        if train.precision == "fp16":
            raise PresetError(
                f"{resolver.sources['train.precision']} precision = fp16: only GPUs of NVIDIA and AMD train in it",
                hint='use "no", or remove it',
            )
        if train.optimizer.lower().endswith("8bit"):
            raise PresetError(
                f"{resolver.sources['train.optimizer']} optimizer = {train.optimizer}: bitsandbytes needs a GPU of NVIDIA or AMD",
                hint='use "adamw", or remove it',
            )


def _plan_train(
    resolver: Resolver, base: Base, profile: HardwareProfile, machine: Machine, dataset: DatasetPlan
) -> TrainPlan:
    preset = resolver.loaded.preset.train
    batch, accumulation = _plan_batch(resolver, profile, base)
    batches = batches_per_epoch(dataset.buckets, batch_size=batch)
    gpus = resolver.settle("train.gpus")
    steps_per_epoch = math.ceil(math.ceil(batches / gpus) / accumulation)
    if preset.epochs:
        steps, source = (
            preset.epochs * steps_per_epoch,
            f"{preset.epochs} epochs ({resolver.loaded.origin('train', 'epochs')})",
        )
        resolver.sources["train.steps"] = source
    else:
        steps = resolver.settle("train.steps", (DEFAULT_STEPS, "default"))
    scheduler = resolver.overrule("train.scheduler", "lr_scheduler", resolver.settle("train.scheduler"))
    warmup = resolver.settle("train.warmup_steps", (min(100, steps // 20), "5% of the steps, at most 100"))
    if scheduler in {"constant", "adafactor"}:
        warmup, resolver.sources["train.warmup_steps"] = 0, f"scheduler = {scheduler}"
    elif warmup > steps // 2:
        resolver.warnings.append(f"warm-up of {warmup} steps in {steps} steps: lowered to {steps // 10}")
        warmup, resolver.sources["train.warmup_steps"] = steps // 10, f"lowered from {warmup}"
    train_text_encoder = _plan_text_encoder(resolver, base)
    family, flow = profile.families[base.spec.family], base.spec.family in FLOW
    above = family.checkpointing_above
    unchecked = (above is None or batch <= above) and (family.unchecked_needs_gib or 0) <= machine.available_gib
    precision, precision_source = profile.precision, resolver.hardware_name
    if (
        precision == "bf16"
        and machine.kind == "cuda"
        and machine.capability < (8, 0)
        and not resolver.hardware_name.startswith("hardware gb10")
    ):
        precision, precision_source = "fp16", f"{machine.device} has no bf16"
    checkpointing = resolver.settle("train.gradient_checkpointing", (not unchecked, resolver.hardware_name))
    made = makes(resolver.loaded.preset.method)
    learning_rate = resolver.settle(
        "train.learning_rate", *([(EMBEDDING_RATE, "textual-inversion")] if made == "embedding" else ())
    )
    whole_flux = [("adafactor", "the whole of FLUX")] if made == "model" and base.spec.family == "flux" else []
    optimizer = resolver.settle("train.optimizer", *whole_flux, (profile.optimizer, resolver.hardware_name))
    for key in (
        "max_grad_norm",
        "min_snr_gamma",
        "noise_offset",
        "caption_dropout",
        "shuffle_caption",
        "seed",
    ):
        resolver.settle(f"train.{key}")
    return TrainPlan(
        steps=steps,
        epochs=round(steps / steps_per_epoch, 2),
        steps_per_epoch=steps_per_epoch,
        batch_size=batch,
        gradient_accumulation=accumulation,
        learning_rate=learning_rate,
        train_text_encoder=train_text_encoder,
        text_encoder_learning_rate=resolver.settle(
            "train.text_encoder_learning_rate",
            (learning_rate / 2, "half of learning_rate") if made == "lora" else (learning_rate, "learning_rate"),
        ),
        cache_text_encoder=_may_cache_text_encoder(resolver, base, train_text_encoder=train_text_encoder),
        optimizer=resolver.overrule("train.optimizer", "optimizer_type", optimizer),
        fused_optimizer=profile.fused_optimizer and profile.kind == "cuda",
        scheduler=scheduler,
        warmup_steps=warmup,
        max_grad_norm=preset.max_grad_norm,
        min_snr_gamma=0.0 if flow else preset.min_snr_gamma,
        noise_offset=0.0 if flow else preset.noise_offset,
        caption_dropout=preset.caption_dropout,
        shuffle_caption=preset.shuffle_caption,
        gradient_checkpointing=checkpointing,
        gpus=gpus,
        compile=family.compile and base.spec.layout == "stock" and (base.spec.family != "sdxl" or not checkpointing),
        precision=resolver.settle("train.precision", (precision, precision_source)),
        save_precision=profile.save_precision,
        workers=profile.workers,
        seed=preset.seed,
        save_every_steps=_every(resolver, "train.save_every", steps_per_epoch),
        clip_skip=resolver.settle("train.clip_skip", (1, "default")) if base.spec.family in STABLE_DIFFUSION else 1,
    )


def _plan_batch(resolver: Resolver, profile: HardwareProfile, base: Base) -> tuple[int, int]:
    """(batch size, accumulation): the artist's where given; an effective batch is split as the machine can hold it."""
    preset = resolver.loaded.preset.train
    most = profile.families[base.spec.family].batch_size
    if preset.effective_batch:
        origin = str(resolver.loaded.origin("train", "effective_batch"))
        share, odd = divmod(preset.effective_batch, preset.gpus)
        if odd or (preset.batch_size and share % preset.batch_size):
            raise PresetError(
                f"{origin} effective_batch = {preset.effective_batch} is no multiple of"
                f" {f'batch_size = {preset.batch_size} on ' if preset.batch_size else ''}{preset.gpus} GPUs"
            )
        batch = preset.batch_size or max(size for size in range(1, share + 1) if share % size == 0 and size <= most)
        resolver.sources["train.batch_size"] = (
            str(resolver.loaded.origin("train", "batch_size")) if preset.batch_size else resolver.hardware_name
        )
        resolver.sources["train.gradient_accumulation"] = f"effective_batch {preset.effective_batch} ({origin})"
        return batch, share // batch
    batch = resolver.settle("train.batch_size", (most, resolver.hardware_name))
    if not preset.batch_size and preset.steps:
        resolver.warnings.append(
            f"batch size {batch} comes from {resolver.hardware_name}; your {preset.steps} steps are kept, so another machine"
            " may show the sprites more or less often; train.effective_batch or train.epochs would fix that"
        )
    return batch, resolver.settle("train.gradient_accumulation", (1, "default"))


def _plan_text_encoder(resolver: Resolver, base: Base) -> bool:
    """Whether the text encoder is trained: by the method and the network where they leave no choice."""
    preset = resolver.loaded.preset
    wanted = bool(resolver.settle("train.text_encoder", (base.spec.train_text_encoder, resolver.base_name)))
    why = why_no_text_encoder(preset.method, preset.network.kind, base.spec.family)
    if why:
        resolver.sources["train.text_encoder"] = why
    return wanted and not why


def _may_cache_text_encoder(resolver: Resolver, base: Base, *, train_text_encoder: bool) -> bool:
    """SDXL, SD3 and FLUX keep the captions' encodings, so that the text encoders leave the memory (train_util.py:1102)."""
    preset = resolver.loaded.preset.train
    word = resolver.loaded.preset.method == "textual-inversion"
    if base.spec.family in {"sd15", "sd2"} or train_text_encoder or word:
        return False
    if preset.caption_dropout or preset.shuffle_caption:
        resolver.warnings.append(
            "caption_dropout and shuffle_caption keep the text encoders in memory; without them their output would be cached"
        )
        return False
    return True


def _every(resolver: Resolver, name: str, steps_per_epoch: int) -> int:
    table, _, stem = name.partition(".")
    settings = getattr(resolver.loaded.preset, table)
    steps, epochs = getattr(settings, f"{stem}_steps"), getattr(settings, f"{stem}_epochs")
    if steps:
        resolver.sources[f"{name}_steps"] = str(resolver.loaded.origin(table, f"{stem}_steps"))
        return int(steps)
    if epochs:
        resolver.sources[f"{name}_steps"] = f"{epochs} epochs ({resolver.loaded.origin(table, f'{stem}_epochs')})"
        return int(epochs * steps_per_epoch)
    resolver.sources[f"{name}_steps"] = "default"
    return 0


def _plan_sample(resolver: Resolver, base: Base, dataset: DatasetPlan, train: TrainPlan) -> SamplePlan:
    preset = resolver.loaded.preset.sample
    canvas = Counter((sprite.canvas.width, sprite.canvas.height) for sprite in dataset.sprites).most_common(1)[0][0]
    return SamplePlan(
        prompts=tuple(prompt.replace("{trigger}", dataset.trigger) for prompt in preset.prompts),
        negative=preset.negative,
        every_steps=_every(resolver, "sample.every", train.steps_per_epoch),
        steps=resolver.settle("sample.steps", (base.spec.sample.steps, resolver.base_name)),
        guidance=float(resolver.settle("sample.guidance", (base.spec.sample.guidance, resolver.base_name))),
        seed=preset.seed,
        sampler=resolver.settle("sample.sampler", (base.spec.sample.sampler, resolver.base_name)),
        width=resolver.settle("sample.width", (_drawable(canvas[0]), "the most common canvas")),
        height=resolver.settle("sample.height", (_drawable(canvas[1]), "the most common canvas")),
    )


def _drawable(side: int) -> int:
    """Pictures are drawn only in multiples of 8 pixels."""
    return math.ceil(side / 8) * 8


def _warn_ranges(resolver: Resolver, base: Base) -> None:
    for name, (low, high) in base.spec.ranges.items():
        table, _, key = name.partition(".")
        value = getattr(getattr(resolver.loaded.preset, table), key)
        if value is not None and resolver.loaded.is_written(table, key) and not low <= value <= high:
            where = resolver.loaded.where(table, key)
            resolver.warnings.append(
                f"{where} {key} = {value:g} is outside the usual {low:g} to {high:g} for {base.name}"
            )
