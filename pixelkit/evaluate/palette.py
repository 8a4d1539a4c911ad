"""Palettes: colour distance as eyes see it, the colours of a set, and how much of a picture keeps to them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Color = tuple[int, int, int]
Floats = NDArray[np.float64]
Pixels = Image.Image | NDArray[np.uint8]

# Linear sRGB -> XYZ of the D65 white (IEC 61966-2-1), the rows divided by the white point.
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_XYZ = _TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)
_CHUNK = 2048


def to_lab(rgb: ArrayLike) -> Floats:
    """sRGB of 0 to 255, (..., 3) -> CIE L*a*b* under D65, (..., 3)."""
    value = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    cubic = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(cubic, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def measure_distance(first: ArrayLike, second: ArrayLike) -> Floats:
    """CIEDE2000 between Lab colours, (..., 3) against (..., 3), broadcast: 1 is about what an eye just sees.

    Sharma, Wu, Dalal: The CIEDE2000 color-difference formula (2005), with all weights 1.
    """
    light_1, a_1, b_1 = np.moveaxis(np.asarray(first, dtype=np.float64), -1, 0)
    light_2, a_2, b_2 = np.moveaxis(np.asarray(second, dtype=np.float64), -1, 0)
    mean_7 = ((np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(mean_7 / (mean_7 + 25.0**7))
    a_1, a_2 = a_1 * stretch, a_2 * stretch
    chroma_1, chroma_2 = np.hypot(a_1, b_1), np.hypot(a_2, b_2)
    hue_1, hue_2 = np.degrees(np.arctan2(b_1, a_1)) % 360, np.degrees(np.arctan2(b_2, a_2)) % 360
    grey = chroma_1 * chroma_2 == 0

    turn = (hue_2 - hue_1 + 180) % 360 - 180
    # Exactly opposite hues: the formula keeps +180 where hue_2 is the larger.
    turn = np.where((turn == -180) & (hue_2 > hue_1), 180.0, turn)
    turn = np.where(grey, 0.0, turn)
    d_light, d_chroma = light_2 - light_1, chroma_2 - chroma_1
    d_hue = 2 * np.sqrt(chroma_1 * chroma_2) * np.sin(np.radians(turn) / 2)

    total = hue_1 + hue_2
    far = np.abs(hue_1 - hue_2) > 180
    mean_hue = np.where(far, np.where(total < 360, total + 360, total - 360), total) / 2
    mean_hue = np.where(grey, total, mean_hue)
    mean_light, mean_chroma = (light_1 + light_2) / 2, (chroma_1 + chroma_2) / 2

    weight = (
        1
        - 0.17 * np.cos(np.radians(mean_hue - 30))
        + 0.24 * np.cos(np.radians(2 * mean_hue))
        + 0.32 * np.cos(np.radians(3 * mean_hue + 6))
        - 0.20 * np.cos(np.radians(4 * mean_hue - 63))
    )
    off_50 = (mean_light - 50) ** 2
    s_light = 1 + 0.015 * off_50 / np.sqrt(20 + off_50)
    s_chroma, s_hue = 1 + 0.045 * mean_chroma, 1 + 0.015 * mean_chroma * weight
    mean_7 = mean_chroma**7
    turn_blue = 30 * np.exp(-(((mean_hue - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(mean_7 / (mean_7 + 25.0**7)) * np.sin(np.radians(2 * turn_blue))
    light, chroma, hue = d_light / s_light, d_chroma / s_chroma, d_hue / s_hue
    return np.asarray(np.sqrt(light**2 + chroma**2 + hue**2 + rotation * chroma * hue))


def palette_of(images: Iterable[Pixels], limit: int = 256) -> tuple[Color, ...]:
    """The colours of pictures, the most frequent first, at most `limit`. Transparent pixels do not count."""
    counts: Counter[Color] = Counter()
    for image in images:
        colors, amounts = _count_colors(image)
        counts.update(dict(zip(map(_as_color, colors.tolist()), amounts.tolist(), strict=True)))
    return tuple(color for color, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit])


def measure_adherence(image: Pixels, palette: Sequence[Color], tolerance: float = 2.0) -> float:
    """The share of a picture's visible pixels that lie within `tolerance` (CIEDE2000) of a colour of the palette.

    0 to 1; nan for a picture without a visible pixel.
    """
    colors, amounts = _count_colors(image)
    if not amounts.size:
        return float("nan")
    if not palette:
        return 0.0
    near = _are_near(to_lab(colors), to_lab(np.array(palette)), tolerance)
    return float(amounts[near].sum() / amounts.sum())


def arrange_colors(palette: Sequence[Color]) -> tuple[Color, ...]:
    """The colours as a person would lay them out: greys first, then around the wheel, each sector dark to light."""
    if not palette:
        return ()
    lab = to_lab(np.array(palette))
    chroma, hue = np.hypot(lab[:, 1], lab[:, 2]), np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    sector = np.where(chroma < 9, -1, hue // 45)
    return tuple(palette[index] for index in np.lexsort((lab[:, 0], sector)))


def _are_near(colors: Floats, palette: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Which colours have one of the palette within the tolerance.

    Lightness alone rules most pairs out: its weight in the formula is at most 1.75 at either end of the scale.
    """
    palette = palette[np.argsort(palette[:, 0])]
    order = np.argsort(colors[:, 0])
    near = np.zeros(len(colors), dtype=bool)
    reach = 1.75 * tolerance
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        low, high = np.searchsorted(palette[:, 0], [colors[part[0], 0] - reach, colors[part[-1], 0] + reach])
        if low < high:
            near[part] = (measure_distance(colors[part, None], palette[None, low:high]) <= tolerance).any(axis=1)
    return near


def _count_colors(image: Pixels) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The colours of the visible pixels, (n, 3), and how many pixels have each."""
    pixels = np.asarray(image.convert("RGBA")) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] not in {3, 4}:
        raise ValueError(f"a picture is (height, width, 3 or 4), not {pixels.shape}")
    flat = pixels.reshape(-1, pixels.shape[2]).astype(np.uint32)
    if pixels.shape[2] == 4:
        flat = flat[flat[:, 3] > 0]
    values, amounts = np.unique((flat[:, 0] << 16) | (flat[:, 1] << 8) | flat[:, 2], return_counts=True)
    return np.stack([values >> 16, (values >> 8) & 255, values & 255], axis=1).astype(np.uint8), amounts.astype(
        np.int64
    )


def _as_color(values: list[int]) -> Color:
    red, green, blue = values
    return red, green, blue
