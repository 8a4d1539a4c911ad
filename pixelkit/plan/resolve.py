"""From a preset, a base and a machine to a plan in which nothing is left open."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from pixelkit.canvas import Canvas, batches_per_epoch, count_buckets, fit_canvas
from pixelkit.catalog import Base, HardwareProfile, expected_memory
from pixelkit.errors import DataError, PresetError, Problem
from pixelkit.plan.model import DatasetPlan, NetworkPlan, Plan, PlannedSprite, SamplePlan, TrainPlan
from pixelkit.preset import Preset
from pixelkit.survey import Sprite, lossy_images, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixelkit.hardware import Machine
    from pixelkit.preset_file import LoadedPreset

DEFAULT_STEPS = 1500
FEW_SPRITES = 10
# sd-scripts' names for what a preset says in its own terms: `[kohya] max_train_steps` is train.steps.
KOHYA_TERMS: Mapping[str, tuple[str, str]] = {
    "max_train_steps": ("train", "steps"),
    "max_train_epochs": ("train", "epochs"),
    "train_batch_size": ("train", "batch_size"),
    "gradient_accumulation_steps": ("train", "gradient_accumulation"),
    "learning_rate": ("train", "learning_rate"),
    "unet_lr": ("train", "learning_rate"),
    "lr_warmup_steps": ("train", "warmup_steps"),
    "max_grad_norm": ("train", "max_grad_norm"),
    "min_snr_gamma": ("train", "min_snr_gamma"),
    "noise_offset": ("train", "noise_offset"),
    "gradient_checkpointing": ("train", "gradient_checkpointing"),
    "mixed_precision": ("train", "precision"),
    "seed": ("train", "seed"),
    "save_every_n_steps": ("train", "save_every_steps"),
    "save_every_n_epochs": ("train", "save_every_epochs"),
    "clip_skip": ("train", "clip_skip"),
    "caption_dropout_rate": ("train", "caption_dropout"),
    "shuffle_caption": ("train", "shuffle_caption"),
    "network_dim": ("network", "rank"),
    "network_alpha": ("network", "alpha"),
    "network_dropout": ("network", "dropout"),
    "prior_loss_weight": ("dataset", "prior_weight"),
    "sample_every_n_steps": ("sample", "every_steps"),
    "sample_every_n_epochs": ("sample", "every_epochs"),
}


def absorb_kohya(loaded: LoadedPreset) -> LoadedPreset:
    """Move what [kohya] says in sd-scripts' names into the preset's own terms, so that the plan shows what will happen.

    Raises PresetError if a value is not possible there.
    """
    moved = {name: term for name, term in KOHYA_TERMS.items() if name in loaded.preset.kohya}
    if not moved:
        return loaded
    values = loaded.preset.model_dump(exclude_unset=True)
    origins = dict(loaded.origins)
    for name, (table, key) in moved.items():
        values.setdefault(table, {})[key] = values["kohya"].pop(name)
        for other in ({"steps": "epochs", "epochs": "steps", "gradient_accumulation": "effective_batch"}.get(key, ""),):
            values[table].pop(other, None)
        origins[table, key] = origins["kohya", name]
    try:
        preset = Preset.model_validate(values)
    except ValueError as error:
        problems = [
            Problem(where=loaded.where("kohya", name), what=f"{name} = {loaded.preset.kohya[name]!r}: not possible")
            for name in moved
        ]
        raise PresetError(f"{loaded.file.name}: [kohya] {error}", problems=problems) from None
    return dataclasses.replace(loaded, preset=preset, origins=origins)


class _Resolver:
    """Collects sources and warnings while values are settled."""

    def __init__(self, loaded: LoadedPreset, base: Base, profile_name: str) -> None:
        self.loaded = loaded
        self.base_name = f"base {base.name}"
        self.hardware_name = f"hardware {profile_name}"
        self.sources: dict[str, str] = {}
        self.warnings: list[str] = []

    def settle(self, name: str, *candidates: tuple[Any, str]) -> Any:
        """The preset's value if it was written, else the first candidate that is not None."""
        path = tuple(name.split("."))
        table: Any = self.loaded.preset
        for part in path:
            table = getattr(table, part)
        if path in self.loaded.origins and table is not None and table != "auto":
            self.sources[name] = str(self.loaded.origin(*path))
            return table
        for value, source in (*candidates, (table, "default")):
            if value is not None:
                self.sources[name] = source
                return value
        raise AssertionError(f"{name} has no value")


def resolve(
    loaded: LoadedPreset,
    base: Base,
    profile_name: str,
    profile: HardwareProfile,
    machine: Machine,
    *,
    engine: Literal["kohya", "diffusers"],
    sprites: Sequence[Sprite],
    class_sprites: Sequence[Sprite] = (),
) -> Plan:
    """Leave nothing open. Raises PresetError or DataError where no plan is possible."""
    preset = loaded.preset
    resolver = _Resolver(loaded, base, profile_name)
    family = profile.families.get(base.spec.family)
    if family is None:
        raise PresetError(
            f"{profile.title} cannot train {base.spec.family}: no profile for it",
            hint="choose a smaller base, or --hardware for another machine",
        )
    dataset = _plan_dataset(resolver, base, sprites, class_sprites)
    train = _plan_train(resolver, base, profile, machine, dataset)
    network = _plan_network(resolver)
    area = max(bucket.width * bucket.height for bucket in dataset.buckets)
    memory = expected_memory(
        base.spec, batch_size=train.batch_size, checkpointing=train.gradient_checkpointing, canvas_area=area
    )
    savers = {"fp8_base", "fp8_base_unet", "blocks_to_swap"} & (
        profile.kohya.keys() | family.kohya.keys() | preset.kohya.keys()
    )
    if memory > machine.available_gib and not savers:
        resolver.warnings.append(
            f"about {memory:.0f} GiB of memory are expected (computed, not measured), {machine.available_gib:.0f} GiB are free;"
            " lower train.batch_size or set train.gradient_checkpointing = true"
        )
    _warn_ranges(resolver, base)
    kohya = {**profile.kohya, **family.kohya, **base.spec.kohya, **preset.kohya}
    for key in kohya:
        written = ("kohya", key) in loaded.origins
        source = (
            str(loaded.origin("kohya", key))
            if written
            else resolver.base_name
            if key in base.spec.kohya
            else resolver.hardware_name
        )
        resolver.sources[f"kohya.{key}"] = source
    return Plan(
        name=preset.name,
        method=preset.method,
        engine=engine,
        base=base,
        hardware=profile_name,
        device=profile.kind,
        machine=machine,
        environment=profile.environment,
        dataset=dataset,
        network=network,
        train=train,
        sample=_plan_sample(resolver, base, dataset, train),
        preset=preset,
        kohya=kohya,
        memory_gib=memory,
        sources=resolver.sources,
        warnings=tuple(resolver.warnings),
    )


def _plan_dataset(
    resolver: _Resolver, base: Base, sprites: Sequence[Sprite], class_sprites: Sequence[Sprite]
) -> DatasetPlan:
    preset = resolver.loaded.preset.dataset
    resolution = resolver.settle("dataset.resolution", (base.spec.resolution, resolver.base_name))
    problems: list[Problem] = []
    canvases: dict[tuple[int, int], Canvas] = {}

    def plan_sprites(found: Sequence[Sprite], prompt: str | None, trigger: str) -> tuple[PlannedSprite, ...]:
        planned = []
        for sprite in found:
            size = (sprite.width, sprite.height)
            try:
                if size not in canvases:
                    canvases[size] = fit_canvas(
                        *size,
                        resolution=resolution,
                        step=base.spec.bucket_step,
                        latent_scale=base.spec.latent_scale,
                        scale=preset.scale,
                    )
            except DataError as error:
                problems.append(Problem(where=sprite.path.name, what=error.message, hint=error.hint))
                continue
            caption = prompt or sprite.caption or preset.caption.replace("{name}", words_of(sprite.path))
            planned.append(
                PlannedSprite(path=sprite.path, canvas=canvases[size], caption=_with_trigger(trigger, caption))
            )
        return tuple(planned)

    planned = plan_sprites(sprites, preset.instance_prompt, "" if preset.instance_prompt else preset.trigger)
    class_planned = plan_sprites(class_sprites, preset.class_prompt, "")
    if problems:
        raise DataError(f"{len(problems)} sprites do not fit", problems=problems)
    seen = [sprite.canvas for sprite in planned for _ in range(preset.repeats)]
    if class_planned:  # sd-scripts shows as many class images as sprites (train_util.py:2062)
        seen += [class_planned[index % len(class_planned)].canvas for index in range(len(seen))]
    _warn_dataset(resolver, planned, sprites)
    for key in ("dataset.background", "dataset.repeats", "dataset.trigger"):
        resolver.settle(key)
    return DatasetPlan(
        source=resolver.loaded.resolve_path(preset.path, "dataset", "path"),
        sprites=planned,
        class_sprites=class_planned,
        background=preset.background,
        trigger=preset.trigger,
        resolution=resolution,
        repeats=preset.repeats,
        prior_weight=preset.prior_weight,
        buckets=count_buckets(seen),
    )


def _with_trigger(trigger: str, caption: str) -> str:
    return caption if not trigger or caption.startswith(trigger) else f"{trigger}, {caption}"


def _warn_dataset(resolver: _Resolver, planned: Sequence[PlannedSprite], sprites: Sequence[Sprite]) -> None:
    preset = resolver.loaded.preset.dataset
    if len(planned) < FEW_SPRITES:
        resolver.warnings.append(f"{len(planned)} sprites are few; 30 to 100 in one style teach better")
    if lossy := lossy_images(sprites):
        resolver.warnings.append(
            f"{len(lossy)} JPEG files, {lossy[0].name} first: their pixels are no longer the artist's; use PNG"
        )
    uncaptioned = sum(sprite.caption is None for sprite in sprites)
    if uncaptioned and not preset.instance_prompt:
        resolver.warnings.append(
            f"{uncaptioned} of {len(sprites)} sprites have no .txt caption and are captioned by their file name"
        )
    blurred = max((sprite.canvas.padding for sprite in planned), default=0.0)
    if blurred > 0.5:
        resolver.warnings.append(
            f"up to {blurred:.0%} of a canvas is background; dataset.resolution or dataset.scale can mend that"
        )


def _plan_train(
    resolver: _Resolver, base: Base, profile: HardwareProfile, machine: Machine, dataset: DatasetPlan
) -> TrainPlan:
    preset = resolver.loaded.preset.train
    batch, accumulation = _plan_batch(resolver, profile, base)
    batches = batches_per_epoch(dataset.buckets, batch_size=batch)
    steps_per_epoch = math.ceil(batches / accumulation)
    if preset.epochs:
        steps, source = (
            preset.epochs * steps_per_epoch,
            f"{preset.epochs} epochs ({resolver.loaded.origin('train', 'epochs')})",
        )
        resolver.sources["train.steps"] = source
    else:
        steps = resolver.settle("train.steps", (DEFAULT_STEPS, "default"))
    warmup = resolver.settle("train.warmup_steps", (min(100, steps // 20), "5% of the steps, at most 100"))
    if preset.scheduler == "constant":
        warmup = 0
    elif warmup > steps // 2:
        resolver.warnings.append(f"warm-up of {warmup} steps in {steps} steps: lowered to {steps // 10}")
        warmup, resolver.sources["train.warmup_steps"] = steps // 10, f"lowered from {warmup}"
    train_text_encoder = resolver.settle("train.text_encoder", (base.spec.train_text_encoder, resolver.base_name))
    family = profile.families[base.spec.family]
    above = family.checkpointing_above
    unchecked = (above is None or batch <= above) and (family.unchecked_needs_gib or 0) <= machine.available_gib
    precision, precision_source = profile.precision, resolver.hardware_name
    if (
        precision == "bf16"
        and machine.kind == "cuda"
        and machine.capability < (8, 0)
        and resolver.hardware_name != "hardware gb10"
    ):
        precision, precision_source = "fp16", f"{machine.device} has no bf16"
    checkpointing = resolver.settle("train.gradient_checkpointing", (not unchecked, resolver.hardware_name))
    learning_rate = resolver.settle("train.learning_rate")
    for key in (
        "scheduler",
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
            "train.text_encoder_learning_rate", (learning_rate / 2, "half of learning_rate")
        ),
        cache_text_encoder=_may_cache_text_encoder(resolver, base, train_text_encoder=train_text_encoder),
        optimizer=resolver.settle("train.optimizer", (profile.optimizer, resolver.hardware_name)),
        fused_optimizer=profile.fused_optimizer and profile.kind == "cuda",
        scheduler=preset.scheduler,
        warmup_steps=warmup,
        max_grad_norm=preset.max_grad_norm,
        min_snr_gamma=preset.min_snr_gamma,
        noise_offset=preset.noise_offset,
        caption_dropout=preset.caption_dropout,
        shuffle_caption=preset.shuffle_caption,
        gradient_checkpointing=checkpointing,
        compile=family.compile and base.spec.layout == "stock" and (base.spec.family != "sdxl" or not checkpointing),
        precision=resolver.settle("train.precision", (precision, precision_source)),
        save_precision=profile.save_precision,
        workers=profile.workers,
        seed=preset.seed,
        save_every_steps=_every(resolver, "train.save_every", steps_per_epoch),
        clip_skip=preset.clip_skip or 1,
    )


def _plan_batch(resolver: _Resolver, profile: HardwareProfile, base: Base) -> tuple[int, int]:
    """(batch size, accumulation): the artist's where given; an effective batch is split as the machine can hold it."""
    preset = resolver.loaded.preset.train
    most = profile.families[base.spec.family].batch_size
    if preset.effective_batch:
        origin = str(resolver.loaded.origin("train", "effective_batch"))
        batch = preset.batch_size or max(
            size for size in range(1, preset.effective_batch + 1) if preset.effective_batch % size == 0 and size <= most
        )
        resolver.sources["train.batch_size"] = (
            str(resolver.loaded.origin("train", "batch_size")) if preset.batch_size else resolver.hardware_name
        )
        resolver.sources["train.gradient_accumulation"] = f"effective_batch {preset.effective_batch} ({origin})"
        return batch, preset.effective_batch // batch
    batch = resolver.settle("train.batch_size", (most, resolver.hardware_name))
    if not preset.batch_size and preset.steps:
        resolver.warnings.append(
            f"batch size {batch} comes from {resolver.hardware_name}; your {preset.steps} steps are kept, so another machine"
            " may show the sprites more or less often; train.effective_batch or train.epochs would fix that"
        )
    return batch, resolver.settle("train.gradient_accumulation", (1, "default"))


def _may_cache_text_encoder(resolver: _Resolver, base: Base, *, train_text_encoder: bool) -> bool:
    """SDXL, SD3 and FLUX keep the captions' encodings, so that the text encoders leave the memory (train_util.py:1102)."""
    preset = resolver.loaded.preset.train
    if base.spec.family in {"sd15", "sd2"} or train_text_encoder:
        return False
    if preset.caption_dropout or preset.shuffle_caption:
        resolver.warnings.append(
            "caption_dropout and shuffle_caption keep the text encoders in memory; without them their output would be cached"
        )
        return False
    return True


def _every(resolver: _Resolver, name: str, steps_per_epoch: int) -> int:
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


def _plan_network(resolver: _Resolver) -> NetworkPlan:
    network = resolver.loaded.preset.network
    rank = resolver.settle("network.rank")
    conv_rank = network.conv_rank or 0
    resolver.settle("network.dropout")
    return NetworkPlan(
        rank=rank,
        alpha=float(resolver.settle("network.alpha", (float(rank), "the rank"))),
        dropout=network.dropout,
        conv_rank=conv_rank,
        conv_alpha=float(network.conv_alpha or conv_rank),
    )


def _plan_sample(resolver: _Resolver, base: Base, dataset: DatasetPlan, train: TrainPlan) -> SamplePlan:
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
        width=resolver.settle("sample.width", (canvas[0], "the most common canvas")),
        height=resolver.settle("sample.height", (canvas[1], "the most common canvas")),
    )


def _warn_ranges(resolver: _Resolver, base: Base) -> None:
    for name, (low, high) in base.spec.ranges.items():
        table, _, key = name.partition(".")
        value = getattr(getattr(resolver.loaded.preset, table), key)
        if value is not None and (table, key) in resolver.loaded.origins and not low <= value <= high:
            where = resolver.loaded.where(table, key)
            resolver.warnings.append(
                f"{where} {key} = {value:g} is outside the usual {low:g} to {high:g} for {base.name}"
            )
