"""The main colours of a sprite, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.dataset.masks import find_body, find_line
from pixelkit.words.color_names import COLORS, NEUTRALS, name_each
from pixelkit.words.oklab import to_oklch

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A word that only shades or lights another, with the hues at most so many degrees apart, counts to it: the brown of a gold
# coin is its yellow in the shade. The number is the area that the other must have, in areas of the word.
_SHADES: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("brown", ("red", "orange", "yellow"), 0.3),
    ("teal", ("cyan", "blue", "green"), 0.5),
    ("grey", ("white",), 0.5),
    ("pink", ("red", "purple"), 1.0),
    ("beige", ("brown", "orange", "yellow"), 1.0),
    ("cyan", ("teal", "blue"), 1.0),
)
_SHADE_HUES = 30.0
_BLACK_WEIGHT = 1 / 3
_SECOND = 0.22


def name_colors(pixels: NDArray[np.uint8]) -> tuple[str, ...]:
    """The one or two main colours of a sprite, RGBA (h, w, 4), the larger first; none for a sprite without a visible pixel.

    By area: the background and the dark line around (masks) do not count, black, which inner lines and shadows are made
    of, counts a third. A second colour is named from 22 % on.
    """
    body = find_body(pixels)
    inside = body & ~find_line(pixels, body)
    rgb, amounts = np.unique(pixels[inside if inside.any() else body][:, :3], axis=0, return_counts=True)
    if not amounts.size:
        return ()
    words = name_each(rgb)
    areas = {str(word): float(amounts[words == word].sum()) for word in np.unique(words)}
    hues = {word: _mean_hue(rgb[words == word], amounts[words == word]) for word in areas}
    for word, others, ratio in _SHADES:
        area = areas.get(word, np.inf)
        near = [
            other
            for other in others
            if areas.get(other, 0) >= ratio * area
            and (word in NEUTRALS or _turn(hues[word], hues[other]) <= _SHADE_HUES)
        ]
        if near:
            areas[max(near, key=areas.__getitem__)] += areas.pop(word)
    if "black" in areas:
        areas["black"] *= _BLACK_WEIGHT
    total = sum(areas.values())
    order = sorted(areas, key=lambda word: (-areas[word], COLORS.index(word)))[:2]
    return tuple(word for place, word in enumerate(order) if place == 0 or areas[word] >= _SECOND * total)


def _mean_hue(rgb: NDArray[np.uint8], amounts: NDArray[np.int64]) -> float:
    _, chroma, hue = to_oklch(rgb).T
    return float(np.degrees(np.angle((amounts * chroma * np.exp(1j * np.radians(hue))).sum())))


def _turn(first: float, second: float) -> float:
    return abs((first - second + 180) % 360 - 180)
