"""A sprite's pixels, exactly as its artist left them, at native size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.errors import DataError
from pixelkit.sources.regions import load_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.sources.sprite import Sprite


def read_pixels(sprite: Sprite) -> NDArray[np.uint8]:
    """RGBA, (sprite.height, sprite.width, 4). 16-bit channels are rounded to 8; nothing else is changed.

    Raises DataError, whose message names no file, for what is cut off or damaged, and for an enlarged picture that is not
    made of exact blocks of `sprite.block` pixels.
    """
    pixels = read_region(sprite)
    if sprite.repair is not None:
        from pixelkit.pixelgrid.repair import snap  # noqa: PLC0415 - only damaged art needs it

        return snap(pixels, sprite.repair)
    return reduce_exactly(pixels, sprite.block) if sprite.block > 1 else pixels


def read_region(sprite: Sprite) -> NDArray[np.uint8]:
    """The pixels as they lie in the file, (h, w, 4) RGBA: frame and region applied, not yet reduced."""
    return np.asarray(load_region(sprite), dtype=np.uint8)


def reduce_exactly(pixels: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
    """(h, w, 4) -> (h / block, w / block, 4), losing nothing. Raises DataError where a block is not of one colour."""
    height, width = pixels.shape[0] // block, pixels.shape[1] // block
    small = pixels[::block, ::block]
    visible = np.where(pixels[..., 3:] > 0, pixels, 0)
    blocks = visible.reshape(height, block, width, block, 4)
    if (height * block, width * block) != pixels.shape[:2] or (blocks != blocks[:, :1, :, :1]).any():
        raise DataError(f"it is not made of exact blocks of {block}x{block} pixels", hint="--grid says another size")
    return small
