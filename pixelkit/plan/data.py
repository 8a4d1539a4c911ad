"""The plan's data set: the canvas and the final caption of each sprite, and the buckets that they fall into."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pixelkit.canvas import Canvas, count_buckets, fit_canvas
from pixelkit.errors import DataError, Problem
from pixelkit.plan.model import DatasetPlan, PlannedSprite
from pixelkit.survey import Sprite, lossy_images, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.catalog import Base
    from pixelkit.plan.settle import Resolver

FEW_SPRITES = 10


def plan_dataset(
    resolver: Resolver, base: Base, sprites: Sequence[Sprite], class_sprites: Sequence[Sprite]
) -> DatasetPlan:
    """Raises DataError that names each size of sprite that does not fit."""
    preset = resolver.loaded.preset.dataset
    resolution = resolver.settle("dataset.resolution", (base.spec.resolution, resolver.base_name))
    unfit: dict[tuple[int, int], tuple[DataError, list[str]]] = {}
    canvases: dict[tuple[int, int], Canvas] = {}

    def plan_sprites(found: Sequence[Sprite], prompt: str | None, trigger: str) -> tuple[PlannedSprite, ...]:
        planned = []
        for sprite in found:
            size = (sprite.width, sprite.height)
            if size in unfit:
                unfit[size][1].append(sprite.path.name)
                continue
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
                unfit[size] = (error, [sprite.path.name])
                continue
            caption = prompt or sprite.caption or preset.caption.replace("{name}", words_of(sprite.path))
            # sd-scripts reads one line of a caption file
            caption = " ".join(_with_trigger(trigger, caption).split())
            planned.append(PlannedSprite(path=sprite.path, canvas=canvases[size], caption=caption))
        return tuple(planned)

    planned = plan_sprites(sprites, preset.instance_prompt, "" if preset.instance_prompt else preset.trigger)
    class_planned = plan_sprites(class_sprites, preset.class_prompt, "")
    if unfit:
        problems = [
            Problem(where=_name_some(names), what=error.message, hint=error.hint) for error, names in unfit.values()
        ]
        count = sum(len(names) for _, names in unfit.values())
        where = resolver.loaded.where("dataset", "path")
        raise DataError(
            f"{where} path: {count} of {len(sprites) + len(class_sprites)} sprites do not fit", problems=problems
        )
    seen = Counter(dict.fromkeys(canvases.values(), 0))
    for sprite in planned:
        seen[sprite.canvas] += preset.repeats
    # sd-scripts shows as many class images as sprites (train_util.py:2062)
    turns, rest = divmod(len(planned) * preset.repeats, max(1, len(class_planned)))
    for index, sprite in enumerate(class_planned):
        seen[sprite.canvas] += turns + (index < rest)
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


def _name_some(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more:" if len(names) > 1 else names[0]


def _with_trigger(trigger: str, caption: str) -> str:
    """The trigger words first, unless the caption begins with them (as whole words: `hero` is not in `heroic`)."""
    begins = caption.startswith(trigger) and not caption[len(trigger) :][:1].isalnum()
    return caption if not trigger or begins else f"{trigger}, {caption}"


def _warn_dataset(resolver: Resolver, planned: Sequence[PlannedSprite], sprites: Sequence[Sprite]) -> None:
    preset = resolver.loaded.preset.dataset
    if len(planned) < FEW_SPRITES:
        resolver.warnings.append(f"{len(planned)} sprites are few; 30 to 100 in one style teach better")
    if animated := [sprite.path.name for sprite in sprites if sprite.frames > 1]:
        resolver.warnings.append(
            f"{len(animated)} animations, {animated[0]} first: only their first frame is taken; save each frame as a file"
        )
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
