"""The preview beside the model and the thumbnail in it: the best sample, by whole factors, nearest neighbour only."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

from PIL import Image

from pixelkit.evaluate.palette import measure_adherence
from pixelkit.evaluate.samples import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pixelkit.evaluate.palette import Color
    from pixelkit.evaluate.samples import Samples

PREVIEW = 512
THUMBNAIL = 128
THUMBNAIL_BYTES = 48_000  # the metadata stands in a file's header, which every tool reads whole


def choose_sample(samples: Samples, palette: Sequence[Color]) -> Path | None:
    """The last step's picture with the most pixels in the sprites' palette; the first one without a palette."""
    if not samples:
        return None
    found: dict[Path, float] = {}
    for _, picture in sorted(samples[max(samples)].items()):
        try:
            with Image.open(picture.path) as image:
                image.load()
                share = measure_adherence(image, palette, TOLERANCE) if palette else 0.0
        except (OSError, SyntaxError, ValueError):
            continue
        found[picture.path] = share if math.isfinite(share) else 0.0
    return max(found, key=lambda path: found[path]) if found else None


def fit_picture(image: Image.Image, side: int, *, cell: int = 1) -> Image.Image:
    """The picture at a whole multiple or a whole fraction of its size, neither side above `side` pixels.

    `cell`: the side of one sprite pixel's block; a fraction of its size is taken where one is small enough.
    """
    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    step = math.ceil(longest / side)
    step = next((divisor for divisor in range(step, cell + 1) if cell % divisor == 0), step)
    width, height = image.width // step, image.height // step
    kept = (0, 0, width * step, height * step)
    return image.resize((width, height), Image.Resampling.NEAREST, box=kept)


def draw_preview(path: Path, *, cell: int) -> bytes:
    """A PNG of at most PREVIEW pixels a side."""
    with Image.open(path) as image:
        return _encode(fit_picture(image.convert("RGB"), PREVIEW, cell=cell))


def draw_thumbnail(path: Path, *, cell: int) -> str:
    """A data URL for `modelspec.thumbnail`; empty where even a small PNG is too large for a header."""
    with Image.open(path) as image:
        small = _encode(fit_picture(image.convert("RGB"), THUMBNAIL, cell=cell))
    return f"data:image/png;base64,{base64.b64encode(small).decode()}" if len(small) <= THUMBNAIL_BYTES else ""


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
