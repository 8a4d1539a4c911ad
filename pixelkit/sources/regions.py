"""A sprite's region of its file as an image: frame, box, turn and trimming applied."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from PIL import Image

from pixelkit.errors import DataError
from pixelkit.sources.decode import load_frame
from pixelkit.sources.files import read_time

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.sources.sprite import Sprite


def load_region(sprite: Sprite) -> Image.Image:
    """RGBA, not yet reduced. Raises DataError for what cannot be read to its end."""
    if sprite.box is None:
        image = load_frame(sprite.path, sprite.frame)
    else:
        image = _load_shared(sprite.path, sprite.frame, read_time(sprite.path))
        left, top, right, bottom = sprite.box
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            raise DataError(f"its region {sprite.box} lies outside of the image, which is {image.width}x{image.height}")
        image = image.crop(sprite.box)
    if sprite.turned:
        image = image.transpose(Image.Transpose.ROTATE_90)
    if sprite.canvas:
        left, top, width, height = sprite.canvas
        whole = Image.new("RGBA", (width, height))
        whole.paste(image, (left, top))
        return whole
    return image


@functools.lru_cache(maxsize=2)
def _load_shared(path: Path, frame: int, _changed: int) -> Image.Image:
    """A sheet is not read anew for each of its cells. Nobody changes what this returns."""
    return load_frame(path, frame)
