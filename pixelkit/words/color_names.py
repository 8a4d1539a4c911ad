"""Plain words for colours: the eleven basic colour terms of English (Berlin and Kay, 1969), and teal, cyan, beige."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.words.oklab import to_oklch

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
