"""Sprites as vision models see them: on a plain background, enlarged by a whole number, so that no pixel is blurred."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from pixelkit.sources.sprite import Sprite

GREY, WHITE = (128, 128, 128), (255, 255, 255)


def draw_sprite(sprite: Sprite, side: int, background: tuple[int, int, int] = GREY) -> Image.Image:
    """RGB, (side, side): the sprite in the middle, enlarged as often as it fits; larger art is made smaller. Raises DataError."""
    pixels = read_pixels(sprite).astype(np.uint16)
    alpha = pixels[..., 3:]
    flat = ((pixels[..., :3] * alpha + np.array(background, dtype=np.uint16) * (255 - alpha) + 127) // 255).astype(
        np.uint8
    )
    height, width = flat.shape[:2]
    image = Image.fromarray(flat)
    if max(width, height) > side:
        image.thumbnail((side, side), Image.Resampling.BOX)
    else:
        factor = side // max(width, height)
        image = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (side, side), background)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
