"""Captions of 24x24 portraits in the grammar of Bespoke Punks: every feature with its colour, rows and columns, as measured."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pixelkit.dataset.captions.portrait import SIDE, Area, Portrait
from pixelkit.errors import DataError
from pixelkit.pixelgrid import measure_block
from pixelkit.sources.pixels import read_pixels
from pixelkit.sources.regions import load_region
from pixelkit.words.color_names import name_color, name_each

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.dataset.captions.portrait import Point, Span
    from pixelkit.sources.sprite import Sprite

_PLACE = re.compile(r"\(\d{1,2}, ?\d{1,2}\)|\b[xy] ?= ?\d{1,2}(?: ?- ?\d{1,2})?\b|\b[xy]\d{1,2}(?:-\d{1,2})?\b")


def is_coordinates(caption: str) -> bool:
    """Whether a caption is of this grammar: it names four places or more, as (8,12), x=10-13 or y16."""
    return len(_PLACE.findall(caption)) >= 4


def caption_portrait(sprite: Sprite) -> str:
    """The caption of a 24x24 portrait, also of one enlarged exactly. Raises DataError: another size, features not found."""
    portrait = Portrait(read_pixels(_at_native_size(sprite)))
    missing = find_missing(portrait)
    if missing:
        raise DataError(
            f"not found in the pixels: {', '.join(missing)}", hint="write this caption by hand, or use --mode template"
        )
    return write_portrait(portrait)


def find_missing(portrait: Portrait) -> list[str]:
    """The features that the grammar needs and the pixels do not show. Glasses may cover pupils, irises and nose."""
    covered = ("eyes", "nose") if portrait.glasses else ()
    features = ("hair", "eyes", "nose", "lips", "jaw", "collar")
    missing = [name for name in features if name not in covered and getattr(portrait, name) is None]
    return [part for name in missing for part in (("pupils", "irises") if name == "eyes" else (name,))]


def write_portrait(portrait: Portrait) -> str:
    """The measured features in words; what is not there is left out."""
    parts = [f"{_backdrop(portrait)} background"]
    if portrait.hair is not None:
        rows = np.flatnonzero(portrait.hair.any(axis=1))
        parts.append(f"{_name_main(portrait, portrait.hair)} hair {_span('y', (int(rows[0]), int(rows[-1])))}")
    if portrait.eyes:
        for noun, points in (("pupils", portrait.eyes.pupils), ("irises", portrait.eyes.irises)):
            parts.append(f"{_name_at(portrait, points[0])} {noun} at {_point(points[0])} and {_point(points[1])}")
    if portrait.nose:
        parts.append(f"{_name_at(portrait, portrait.nose)} nose at {_point(portrait.nose)}")
    if portrait.lips:
        parts.append(f"{_name_area(portrait, portrait.lips)} lips at {_area(portrait.lips)}")
    if portrait.jaw is not None:
        parts.append(f"jaw at y={portrait.jaw}")
    if portrait.collar:
        cloth = _inside(portrait.collar) & ~portrait.like_skin & ~portrait.backdrop
        parts.append(f"{_name_main(portrait, cloth)} collar at {_span('y', portrait.collar.y)}")
    if portrait.facing:
        parts.append(f"{portrait.facing}-facing")
    if not is_blended(portrait):
        parts.append("no anti-aliasing")
    rows, columns = (np.flatnonzero((~portrait.backdrop).any(axis=axis)) for axis in (1, 0))
    if min(rows[0], columns[0]) >= 1 and max(rows[-1], columns[-1]) <= SIDE - 2:
        parts.append("inside 22x22")
    if portrait.glasses:
        frame = _inside(portrait.glasses) & ~portrait.like_skin
        parts.append(f"{_name_main(portrait, frame)} glasses at {_area(portrait.glasses)}")
    return ", ".join(parts)


def is_blended(portrait: Portrait) -> bool:
    """Whether the contour is softened: half-transparent pixels, or a tenth of it lies between background and body in colour."""
    alpha = portrait.pixels[..., 3]
    if ((alpha > 0) & (alpha < 255)).any():
        return True
    mixed = edge = 0
    for y, x in np.argwhere(~portrait.backdrop[1:-1, 1:-1]) + 1:
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if portrait.backdrop[y + down, x + right] and not portrait.backdrop[y - down, x - right]:
                edge += 1
                outside, inside = portrait.lab[y + down, x + right], portrait.lab[y - down, x - right]
                mixed += _lies_between(portrait.lab[y, x], outside, inside)
    return edge > 0 and mixed >= edge / 10


def _lies_between(color: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """A third to two thirds of the way from one colour to another that is plainly different, and near that way."""
    way = other - one
    length = float(way @ way)
    if length < 0.15**2:
        return False
    share = float((color - one) @ way) / length
    return 0.33 < share < 0.67 and float(np.linalg.norm(color - one - share * way)) < 0.02


def _at_native_size(sprite: Sprite) -> Sprite:
    """The sprite with the block that makes it 24x24. Raises DataError where there is none."""
    width, height, factor = sprite.width, sprite.height, sprite.block
    if factor == 1 and width == height > SIDE and width % SIDE == 0:
        factor = width // SIDE
        if measure_block(load_region(sprite)).size % factor == 0:
            width = height = SIDE
    fits = (width, height) == (SIDE, SIDE)
    if not fits:
        raise DataError(f"it is {width}x{height}, and no enlarged portrait of 24x24", hint="use --mode template")
    return replace(sprite, width=SIDE, height=SIDE, block=factor)


def _backdrop(portrait: Portrait) -> str:
    """`transparent`, a colour with its hex value, or the two main colours of a pattern."""
    if (portrait.pixels[0, :, 3] < 128).mean() > 0.5:
        return "transparent"
    colors, counts = np.unique(portrait.pixels[portrait.backdrop][:, :3], axis=0, return_counts=True)
    red, green, blue = (int(value) for value in colors[counts.argmax()])
    if counts.max() >= 0.9 * counts.sum():
        return f"solid {name_color(colors[counts.argmax()])} #{red:02x}{green:02x}{blue:02x}"
    names: Counter[str] = Counter()
    for word, count in zip(name_each(colors), counts, strict=True):
        names[str(word)] += int(count)
    return f"{' and '.join(word for word, _ in names.most_common(2))} patterned"


def _name_main(portrait: Portrait, area: NDArray[np.bool_]) -> str:
    words = name_each(portrait.pixels[area][:, :3])
    return Counter(str(word) for word in words).most_common(1)[0][0]


def _name_area(portrait: Portrait, area: Area) -> str:
    return _name_main(portrait, _inside(area))


def _name_at(portrait: Portrait, point: Point) -> str:
    return name_color(portrait.pixels[point[1], point[0], :3])


def _inside(area: Area) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[area.y[0] : area.y[1] + 1, area.x[0] : area.x[1] + 1] = True
    return mask


def _point(point: Point) -> str:
    return f"({point[0]},{point[1]})"


def _area(area: Area) -> str:
    return f"{_span('x', area.x)} {_span('y', area.y)}"


def _span(axis: str, span: Span) -> str:
    return f"{axis}={span[0]}" if span[0] == span[1] else f"{axis}={span[0]}-{span[1]}"
