"""Named colours and ramps: what a sprite is coloured with.

A ramp is five RGB colours from dark to light. Shadows turn towards violet and lights towards yellow, as pixel artists
shift hue along a ramp rather than only lightness.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
Ramp = NDArray[np.uint8]

SHADES = 5

COLOURS: dict[str, Colour] = {
    "red": (208, 44, 48),
    "orange": (236, 124, 36),
    "yellow": (244, 208, 56),
    "lime": (150, 216, 60),
    "green": (52, 152, 68),
    "teal": (36, 168, 164),
    "blue": (60, 108, 224),
    "navy": (40, 52, 124),
    "purple": (136, 68, 188),
    "pink": (244, 136, 184),
    "brown": (136, 84, 48),
    "grey": (136, 140, 152),
    "white": (232, 236, 240),
    "black": (52, 48, 60),
}

# What a material looks like whatever the sprite's own colour is.
MATERIALS: dict[str, Colour] = {
    "steel": (164, 176, 192),
    "gold": (236, 188, 60),
    "wood": (140, 92, 52),
    "leather": (112, 72, 52),
    "stone": (124, 120, 128),
    "cream": (236, 220, 184),
    "bone": (228, 220, 196),
    "skin": (236, 180, 136),
    "leaf": (72, 160, 64),
    "glass": (184, 216, 228),
    "flame": (252, 216, 92),
    "blood": (212, 52, 60),
    "sky": (124, 196, 240),
    "snow": (240, 240, 248),
    "ink": (28, 24, 36),
    "spark": (255, 252, 232),
}

BACKGROUNDS: dict[str, Colour] = {
    **{name: colour for name, colour in COLOURS.items() if name not in ("black", "white")},
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


def make_ramp(base: Colour, *, shift: float = 1.0, contrast: float = 1.0) -> Ramp:
    """Five shades around `base` (the fourth), dark to light; `shift` scales the turn of the hue."""
    red, green, blue = (channel / 255 for channel in base)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    shades = []
    for step in (-3, -2, -1, 0, 1):
        amount = step * contrast
        if amount <= 0:
            shade_value = value * (1 + 0.215 * amount)
            shade_saturation = saturation + (0.05 * -amount) * (1 - saturation) + 0.02 * -amount
        else:
            shade_value = value + (1 - value) * 0.55 * amount
            shade_saturation = saturation * (1 - 0.32 * amount)
        turn = _turn(hue, 0.72 if amount < 0 else 0.14, abs(amount) * 0.018 * shift)
        shades.append(colorsys.hsv_to_rgb(turn, min(max(shade_saturation, 0.0), 1.0), min(max(shade_value, 0.03), 1.0)))
    return np.round(np.array(shades) * 255).astype(np.uint8)


def jitter_colour(base: Colour, rng: np.random.Generator, amount: float = 1.0) -> Colour:
    """`base` moved a little in hue, saturation and value, so that no two reds are the same red."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in base))
    hue = (hue + rng.normal(0, 0.010) * amount) % 1.0
    saturation = min(max(saturation * (1 + rng.normal(0, 0.06) * amount), 0.0), 1.0)
    value = min(max(value * (1 + rng.normal(0, 0.04) * amount), 0.0), 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _turn(hue: float, target: float, amount: float) -> float:
    """`hue` moved towards `target` by `amount` along the shorter way round the circle."""
    distance = (target - hue + 0.5) % 1.0 - 0.5
    return (hue + float(np.clip(distance, -amount, amount))) % 1.0
