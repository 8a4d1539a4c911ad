"""The plan's data set: the canvas and the final caption of each sprite, and the buckets that they fall into."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelkit.canvas import choose_canvases, count_buckets
from pixelkit.errors import DataError, Problem
from pixelkit.plan.model import DatasetPlan, PlannedSprite
from pixelkit.sources import Sprite, Survey, lossy_images, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.catalog import Base, BaseSpec
    from pixelkit.plan.settle import Resolver

FEW_SPRITES = 10


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How sprites are laid out: `resolution` squared is the largest area; `caption` stands for a missing one,
    `prompt` for every one; `trigger` comes first; `repeats` multiplies what a kohya folder asks for.
    """

    resolution: int
    scale: int | None = None
    caption: str = "{name}"
    prompt: str | None = None
    trigger: str = ""
    repeats: int = 1


def lay_out(sprites: Sequence[Sprite], spec: BaseSpec, layout: Layout, *, what: str) -> tuple[PlannedSprite, ...]:
    """Canvas and caption of each sprite. Raises DataError that names each size that does not fit; `what` begins it."""
    sizes = Counter((sprite.width, sprite.height) for sprite in sprites)
    canvases, unfit = choose_canvases(
        sizes,
        resolution=layout.resolution,
        step=spec.bucket_step,
        latent_scale=spec.latent_scale,
        scale=layout.scale,
    )
    if unfit:
        names = {size: [s.path.name for s in sprites if (s.width, s.height) == size] for size in unfit}
        problems = [
            Problem(where=_name_some(names[size]), what=error.message, hint=error.hint) for size, error in unfit.items()
        ]
        count = sum(sizes[size] for size in unfit)
        raise DataError(f"{what}: {count} of {len(sprites)} sprites do not fit", problems=problems)
    return tuple(
        PlannedSprite(
            sprite=sprite,
            canvas=canvases[sprite.width, sprite.height],
            caption=_caption(sprite, layout),
            repeats=layout.repeats * (sprite.repeats or 1),
        )
        for sprite in sprites
    )


def _caption(sprite: Sprite, layout: Layout) -> str:
    text = layout.prompt or sprite.caption or layout.caption.replace("{name}", words_of(sprite.name))
    # sd-scripts reads one line of a caption file
    return " ".join(_with_trigger(layout.trigger, text).split())


def plan_dataset(resolver: Resolver, base: Base, survey: Survey, class_sprites: Sequence[Sprite]) -> DatasetPlan:
    """Raises DataError that names each size of sprite that does not fit."""
    sprites = survey.sprites
    preset = resolver.loaded.preset.dataset
    resolution = resolver.settle("dataset.resolution", (base.spec.resolution, resolver.base_name))
    planned = lay_out(
        sprites,
        base.spec,
        Layout(
            resolution=resolution,
            scale=preset.scale,
            caption=preset.caption,
            prompt=preset.instance_prompt,
            trigger="" if preset.instance_prompt else preset.trigger,
            repeats=preset.repeats,
        ),
        what=f"{resolver.loaded.where('dataset', 'path')} path",
    )
    class_planned = lay_out(
        class_sprites,
        base.spec,
        Layout(resolution=resolution, scale=preset.scale, caption=preset.caption, prompt=preset.class_prompt),
        what=f"{resolver.loaded.where('dataset', 'class_path')} class_path",
    )
    seen = Counter({sprite.canvas: 0 for sprite in (*planned, *class_planned)})
    for sprite in planned:
        seen[sprite.canvas] += sprite.repeats
    # sd-scripts shows as many class images as sprites (train_util.py:2062)
    turns, rest = divmod(sum(sprite.repeats for sprite in planned), max(1, len(class_planned)))
    for index, sprite in enumerate(class_planned):
        seen[sprite.canvas] += turns + (index < rest)
    _warn_dataset(resolver, planned, sprites)
    for key in ("dataset.background", "dataset.alpha", "dataset.repeats", "dataset.trigger"):
        resolver.settle(key)
    background = preset.background
    if background == "auto" and survey.background:
        background, resolver.sources["dataset.background"] = survey.background, "the prepared set"
    return DatasetPlan(
        source=resolver.loaded.resolve_path(preset.path, "dataset", "path"),
        sprites=planned,
        class_sprites=class_planned,
        background=background,
        alpha=preset.alpha,
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


def remark_on(sprites: Sequence[Sprite], *, captioned: bool = False) -> list[str]:
    """What an artist should know of the files; `captioned`: one caption for all is given."""
    remarks = []
    if lossy := lossy_images(sprites):
        remarks.append(
            f"{len(lossy)} JPEG files, {lossy[0].name} first: their pixels are no longer the artist's; use PNG"
        )
    if (bare := sum(sprite.caption is None for sprite in sprites)) and not captioned:
        remarks.append(f"{bare} of {len(sprites)} sprites have no .txt caption and are captioned by their file name")
    return remarks


def _warn_dataset(resolver: Resolver, planned: Sequence[PlannedSprite], sprites: Sequence[Sprite]) -> None:
    preset = resolver.loaded.preset.dataset
    if len(planned) < FEW_SPRITES:
        resolver.warnings.append(f"{len(planned)} sprites are few; 30 to 100 in one style teach better")
    resolver.warnings += remark_on(sprites, captioned=bool(preset.instance_prompt))
    padded = max((sprite.canvas.padding for sprite in planned), default=0.0)
    if padded > 0.5:
        resolver.warnings.append(
            f"up to {padded:.0%} of a canvas is background; dataset.resolution or dataset.scale can mend that"
        )
