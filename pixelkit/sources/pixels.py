"""A sprite's pixels, exactly as its artist left them, at native size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.pixelgrid import reduce_block
from pixelkit.sources.regions import load_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.sources.sprite import Sprite


def read_pixels(sprite: Sprite) -> NDArray[np.uint8]:
    """RGBA, (sprite.height, sprite.width, 4). 16-bit channels are rounded to 8; nothing else is changed.

    Raises DataError, whose message names no file, for what is cut off or damaged, and for an enlarged picture that is not
    made of exact blocks of `sprite.block` pixels.
    """
    if sprite.repair is not None:
        from pixelkit.pixelgrid.repair import snap  # noqa: PLC0415 - only damaged art needs it

        return snap(read_region(sprite), sprite.repair)
    return np.asarray(reduce_block(load_region(sprite), sprite.block), dtype=np.uint8)


def read_region(sprite: Sprite) -> NDArray[np.uint8]:
    """The pixels as they lie in the file, (h, w, 4) RGBA: frame and region applied, not yet reduced."""
    return np.asarray(load_region(sprite), dtype=np.uint8)
