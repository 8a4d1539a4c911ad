"""Plain words for colours: the eleven basic colour terms of English (Berlin and Kay, 1969), and teal, cyan, beige."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.dataset.masks import find_body, find_line
from pixelkit.dataset.oklab import to_oklch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

NEUTRALS = ("black", "grey", "white")
COLORS = (*NEUTRALS, "brown", "beige", "red", "orange", "yellow", "green", "teal", "cyan", "blue", "purple", "pink")

# The first row that holds names the colour: hue from, to (degrees, -25 to 335), lightness from, to, chroma from, to.
_ANY = (-25, 335)
_UP = 2.0
_RULES: tuple[tuple[str, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ("black", _ANY, (0.0, 0.11), (0.0, _UP)),
    ("black", _ANY, (0.0, 0.21), (0.0, 0.07)),
    ("black", _ANY, (0.0, 0.27), (0.0, 0.03)),
    ("white", _ANY, (0.93, _UP), (0.0, 0.03)),
    ("grey", _ANY, (0.0, _UP), (0.0, 0.03)),
    ("grey", (110, 335), (0.0, _UP), (0.0, 0.04)),
    ("blue", (185, 200), (0.9, _UP), (0.0, 0.08)),
    ("pink", (-25, -5), (0.56, _UP), (0.0, _UP)),
    ("purple", (-25, -5), (0.0, _UP), (0.0, _UP)),
    ("pink", (-5, 13), (0.6, _UP), (0.0, _UP)),
    ("pink", (-5, 13), (0.53, _UP), (0.2, _UP)),
    ("red", (-5, 13), (0.0, _UP), (0.1, _UP)),
    ("purple", (-5, 5), (0.0, _UP), (0.0, _UP)),
    ("brown", (5, 13), (0.0, _UP), (0.0, _UP)),
    ("pink", (13, 27), (0.69, _UP), (0.0, _UP)),
    ("pink", (13, 27), (0.6, _UP), (0.0, 0.13)),
    ("red", (13, 27), (0.0, _UP), (0.11, _UP)),
    ("red", (13, 31), (0.0, 0.4), (0.08, _UP)),
    ("brown", (13, 27), (0.0, _UP), (0.0, _UP)),
    ("pink", (27, 36), (0.72, _UP), (0.0, 0.15)),
    ("red", (27, 33), (0.0, _UP), (0.13, _UP)),
    ("red", (27, 36), (0.0, 0.64), (0.14, _UP)),
    ("orange", (27, 36), (0.64, _UP), (0.13, _UP)),
    ("brown", (27, 36), (0.0, _UP), (0.0, _UP)),
    ("orange", (36, 79), (0.54, _UP), (0.155, _UP)),
    ("orange", (36, 79), (0.63, _UP), (0.125, _UP)),
    ("orange", (36, 70), (0.72, _UP), (0.11, _UP)),
    ("beige", (36, 79), (0.72, _UP), (0.0, _UP)),
    ("brown", (36, 79), (0.0, _UP), (0.0, _UP)),
    ("yellow", (90, 113), (0.66, _UP), (0.13, _UP)),
    ("yellow", (79, 113), (0.72, _UP), (0.1, _UP)),
    ("beige", (79, 113), (0.72, _UP), (0.0, _UP)),
    ("brown", (79, 104), (0.0, _UP), (0.0, _UP)),
    ("yellow", (113, 123), (0.9, _UP), (0.1, _UP)),
    ("green", (104, 165), (0.0, _UP), (0.0, _UP)),
    ("cyan", (165, 200), (0.72, _UP), (0.0, _UP)),
    ("teal", (165, 205), (0.0, 0.6), (0.0, _UP)),
    ("teal", (165, 200), (0.0, _UP), (0.0, _UP)),
    ("blue", (200, 284), (0.0, _UP), (0.0, _UP)),
    ("pink", (326, 335), (0.68, _UP), (0.0, _UP)),
    ("purple", (284, 335), (0.0, _UP), (0.0, _UP)),
)

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


def name_each(rgb: ArrayLike) -> NDArray[np.str_]:
    """The word for each colour: sRGB of 0 to 255, (..., 3) -> (...), words of COLORS."""
    light, chroma, hue = np.moveaxis(to_oklch(rgb), -1, 0)
    hue = (hue + 25) % 360 - 25
    holds = [
        (hue >= hues[0])
        & (hue < hues[1])
        & (light >= lights[0])
        & (light < lights[1])
        & (chroma >= chromas[0])
        & (chroma < chromas[1])
        for _, hues, lights, chromas in _RULES
    ]
    return np.asarray(np.select(holds, [name for name, *_ in _RULES], default=""))


def name_color(rgb: ArrayLike) -> str:
    """The word for one colour, sRGB of 0 to 255."""
    return str(name_each(rgb))


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
