"""Scale factor and canvas, chosen together: every sprite pixel becomes an exact k x k block on a canvas that is taken as it is.

sd-scripts leaves an image alone only where its sides are multiples of the bucket step and its area is at most
resolution squared (library/train_util.py:279); everything else it resamples or crops off the grid.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


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
    aligned = largest // latent_scale * latent_scale
    chosen = canvas_at(aligned if aligned * 10 >= largest * 6 else largest)
    assert chosen is not None
    return chosen


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
