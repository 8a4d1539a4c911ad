"""Scale factor and canvas, chosen together: every sprite pixel becomes an exact k x k block on a canvas that is taken as it is.

sd-scripts leaves an image alone only where its sides are multiples of the bucket step and its area is at most
resolution squared (library/train_util.py:279); everything else it resamples or crops off the grid.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixelkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# So many images are worth a bucket of their own.
ENOUGH = 10


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """One sprite size's way to the trainer: sizes in pixels, `scale` the side of one sprite pixel's block."""

    sprite_width: int
    sprite_height: int
    scale: int
    width: int
    height: int

    @property
    def offset(self) -> tuple[int, int]:
        """Where the enlarged sprite's top left corner lies: centred, on the sprite's own pixel grid."""
        across = (self.width - self.sprite_width * self.scale) // 2
        down = (self.height - self.sprite_height * self.scale) // 2
        return across // self.scale * self.scale, down // self.scale * self.scale

    @property
    def padding(self) -> float:
        """Share of the canvas that is background, 0 to 1."""
        return 1 - self.sprite_width * self.sprite_height * self.scale**2 / (self.width * self.height)


def fit_canvas(
    width: int, height: int, *, resolution: int, step: int, latent_scale: int, scale: int | None = None
) -> Canvas:
    """The largest canvas for a sprite of width x height pixels.

    `resolution`: no canvas has more than resolution squared pixels. `step`: both sides are multiples of it.
    `latent_scale`: pixels per latent cell; a scale that is a multiple of it makes a sprite pixel cover whole cells and is
    taken if the sprite keeps at least 60% of the side that the largest possible scale gives. `scale` fixes the factor.
    Raises DataError if not even scale 1 (or the fixed scale) fits.
    """
    area = resolution * resolution

    def canvas_at(factor: int) -> Canvas | None:
        across, down = (math.ceil(side * factor / step) * step for side in (width, height))
        if across * down > area:
            return None
        return Canvas(sprite_width=width, sprite_height=height, scale=factor, width=across, height=down)

    if scale is not None:
        fixed = canvas_at(scale)
        if fixed is None:
            raise DataError(
                f"a sprite of {width}x{height} at scale {scale} does not fit into {resolution}x{resolution}",
                hint="lower dataset.scale or raise dataset.resolution",
            )
        return fixed
    upper = math.isqrt(area // (width * height))
    largest = next((factor for factor in range(upper, 0, -1) if canvas_at(factor)), 0)
    if largest == 0:
        raise DataError(
            f"a sprite of {width}x{height} does not fit into {resolution}x{resolution} without being resampled",
            hint="raise dataset.resolution, or reduce art that was enlarged to its native size",
        )
    chosen = canvas_at(_align(largest, latent_scale))
    assert chosen is not None
    return chosen


def choose_canvases(
    sizes: Mapping[tuple[int, int], int], *, resolution: int, step: int, latent_scale: int, scale: int | None = None
) -> tuple[dict[tuple[int, int], Canvas], dict[tuple[int, int], DataError]]:
    """A canvas for each size of a set (`sizes`: how many sprites have it), and why there is none for the others.

    Each size gets the largest canvas that fits. Then sizes whose canvas few sprites share move onto a canvas of others,
    padded, where they keep at least 60% of their scale and fill at least half of it: few buckets, few batches that are
    not full.
    """
    canvases: dict[tuple[int, int], Canvas] = {}
    unfit: dict[tuple[int, int], DataError] = {}
    for size in sizes:
        try:
            canvases[size] = fit_canvas(*size, resolution=resolution, step=step, latent_scale=latent_scale, scale=scale)
        except DataError as error:
            unfit[size] = error
    buckets: Counter[tuple[int, int]] = Counter()
    for size, canvas in canvases.items():
        buckets[canvas.width, canvas.height] += sizes[size]
    kept = [bucket for bucket, number in buckets.items() if number >= ENOUGH]
    rare = (size for size, canvas in canvases.items() if (canvas.width, canvas.height) not in kept)
    for size in sorted(rare, key=lambda size: (-sizes[size], size)):
        own = canvases[size]
        moved = [_move(own, *bucket, latent_scale=latent_scale, scale=scale) for bucket in kept]
        canvases[size] = min(filter(None, moved), key=lambda canvas: (-canvas.scale, canvas.padding), default=own)
        if canvases[size] is own:
            kept.append((own.width, own.height))
    return canvases, unfit


def _move(canvas: Canvas, width: int, height: int, *, latent_scale: int, scale: int | None) -> Canvas | None:
    """The same sprite, as large as it fits, on a canvas of width x height; None where it would lose too much."""
    largest = scale or min(width // canvas.sprite_width, height // canvas.sprite_height, canvas.scale)
    if largest * canvas.sprite_width > width or largest * canvas.sprite_height > height:
        return None
    moved = replace(canvas, scale=scale or _align(largest, latent_scale), width=width, height=height)
    return moved if moved.scale * 10 >= canvas.scale * 6 and moved.padding <= 0.5 else None


def _align(largest: int, latent_scale: int) -> int:
    """The largest multiple of the latent scale, where it is no less than 60% of what fits."""
    aligned = largest // latent_scale * latent_scale
    return aligned if aligned * 10 >= largest * 6 else largest


@dataclass(frozen=True, kw_only=True)
class View:
    """What sd-scripts makes of an image: resized to `resized`, then cut in the middle to `bucket` (width, height).

    `same`: the pixels were compared, and are those of the file.
    """

    resized: tuple[int, int]
    bucket: tuple[int, int]
    same: bool = True

    def keeps(self, width: int, height: int) -> bool:
        """Whether an image of this size reaches the VAE as it is."""
        return self.same and self.resized == self.bucket == (width, height)


def foresee(width: int, height: int, *, resolution: int, step: int) -> View:
    """BucketManager.select_bucket (train_util.py:305) with buckets on and no enlargement, as pixelkit renders it.

    A bucket of 0 is what sd-scripts crashes on: the image is smaller than one step.
    """
    resized = (width, height)
    if width * height > resolution * resolution:
        aspect = width / height
        across = math.sqrt(resolution * resolution * aspect)
        by_width = _round_to(across, step)
        by_height = _round_to(resolution * resolution / across, step)
        height_for = _round_to(by_width / aspect, step)
        width_for = _round_to(by_height * aspect, step)
        if not height_for or not by_height:
            return View(resized=resized, bucket=(0, 0))
        if abs(by_width / height_for - aspect) < abs(width_for / by_height - aspect):
            resized = (by_width, int(by_width / aspect + 0.5))
        else:
            resized = (int(by_height * aspect + 0.5), by_height)
    return View(resized=resized, bucket=(resized[0] // step * step, resized[1] // step * step))


def _round_to(side: float, step: int) -> int:
    whole = int(side + 0.5)
    return whole - whole % step


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """All images of an epoch that share one canvas size, repeats counted."""

    width: int
    height: int
    images: int


def count_buckets(images: Mapping[Canvas, int]) -> tuple[Bucket, ...]:
    """The buckets that sd-scripts will form of so many images of each canvas, largest first."""
    counts: Counter[tuple[int, int]] = Counter()
    for canvas, number in images.items():
        counts[canvas.width, canvas.height] += number
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Bucket(width=width, height=height, images=number) for (width, height), number in ordered if number)


def batches_per_epoch(buckets: Iterable[Bucket], *, batch_size: int) -> int:
    """Batches in one epoch; a batch never mixes buckets, so each bucket rounds up by itself (train_util.py:1079)."""
    return sum(math.ceil(bucket.images / batch_size) for bucket in buckets)
