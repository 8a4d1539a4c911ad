"""Small pictures of sprites, pixel for pixel: for the contact sheet and for the page."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from typing import TYPE_CHECKING

from PIL import Image

from pixelkit.errors import DataError
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from pixelkit.dataset.inspect.measure import Measured


def draw_sprite(one: Measured, *, scale: int, side: int) -> Image.Image | None:
    """RGBA, enlarged `scale` times if that stays within `side` pixels, or else as far as it does; what is larger shows each
    n-th pixel. None where the file is gone or has changed since.
    """
    try:
        picture = Image.fromarray(read_pixels(one.sprite))
    except DataError:
        return None
    longest = max(picture.size)
    if longest > side:
        step = math.ceil(longest / side)
        return picture.resize((max(1, picture.width // step), max(1, picture.height // step)), Image.Resampling.NEAREST)
    factor = min(scale, side // longest)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def encode_picture(picture: Image.Image) -> str:
    """A PNG as a data URI."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
