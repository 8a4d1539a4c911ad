"""OKLab, the space in which the data room compares, names and turns colours: even steps look even, hue keeps its name.

Björn Ottosson: A perceptual color space for image processing (2020), https://bottosson.github.io/posts/oklab/.
CIE Lab's blues turn to purple when only their lightness changes; here they do not, which a ramp depends on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Linear sRGB -> cone responses; their cube roots -> L, a, b.
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FROM_CONES, _FROM_LAB = np.linalg.inv(_TO_CONES), np.linalg.inv(_TO_LAB)
_HALVINGS = 24


def to_oklab(rgb: ArrayLike) -> Floats:
    """sRGB of 0 to 255, (..., 3) -> lightness 0 to 1, a, b: (..., 3). Distances times 100 are about CIEDE2000's."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T)


def to_oklch(rgb: ArrayLike) -> Floats:
    """sRGB of 0 to 255, (..., 3) -> lightness 0 to 1, chroma 0 to about 0.32, hue in degrees: (..., 3)."""
    light, a, b = np.moveaxis(to_oklab(rgb), -1, 0)
    return np.stack([light, np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360], axis=-1)


def from_oklch(colors: ArrayLike) -> NDArray[np.uint8]:
    """The way back, (..., 3) uint8. Where sRGB has no such colour, chroma gives way; lightness and hue stay."""
    light, chroma, hue = np.moveaxis(np.asarray(colors, dtype=np.float64), -1, 0)
    low, high = np.zeros_like(chroma), np.ones_like(chroma)
    inside = _fits(_linear(light, chroma, hue))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = _fits(_linear(light, chroma * middle, hue))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    linear = np.clip(_linear(light, chroma * np.where(inside, 1.0, low), hue), 0, 1)
    value = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(value * 255).astype(np.uint8)


def _linear(light: Floats, chroma: Floats, hue: Floats) -> Floats:
    angle = np.radians(hue)
    lab = np.stack([light, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    return np.asarray((lab @ _FROM_LAB.T) ** 3 @ _FROM_CONES.T)


def _fits(linear: Floats) -> NDArray[np.bool_]:
    return np.asarray(((linear >= -1e-6) & (linear <= 1 + 1e-6)).all(axis=-1))
