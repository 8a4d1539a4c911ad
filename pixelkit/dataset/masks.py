"""Segmentation masks of sprites: background, subject, outline, found from the pixels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pixelkit.words.oklab import to_oklch

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKGROUND, SUBJECT, OUTLINE = 0, 1, 2
# What each looks like in a mask file: slate, sand, red. They differ in lightness too.
MASK_COLORS = ((38, 43, 56), (236, 214, 158), (208, 52, 60))

# Of the picture's border, the share that must have its commonest colour exactly, and in OKLab within the reach of it.
_BACKDROP_FLAT, _BACKDROP_SHARE = 0.5, 0.7
_BACKDROP_REACH = 0.02
_DARK, _DARKER = 0.45, 0.12
_FAINT = 32


def segment(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What each pixel of a sprite is: RGBA (h, w, 4) -> uint8 (h, w) of BACKGROUND, SUBJECT and OUTLINE.

    The outline is the dark line around what is not background (find_line); and where there is no dark line, the contour
    itself: each pixel that has background along a side and subject behind it. A whip or a string without a line around it
    has nothing behind it and is subject.
    """
    body = find_body(pixels)
    line = find_line(pixels, body)
    contour = _find_contour(body)
    behind = body & ~contour & ~line
    outline = line | (contour & _spread(behind, corners=True))
    return np.where(outline, OUTLINE, np.where(body, SUBJECT, BACKGROUND)).astype(np.uint8)


def find_body(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where an RGBA sprite, (h, w, 4), is not background.

    Background are pixels of less than 32 of 255 alpha. Where every pixel is opaque, it is the backdrop: the commonest
    colour of the picture's border, with what looks the same, as far as it hangs together with the border along sides. It
    must make up half of the border, and 70 % with what looks the same: a texture has none. Where there is no background, or
    nothing else, all is body.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise ValueError(f"a sprite is (height, width, 4), not {pixels.shape}")
    if (pixels[..., 3] < 255).any():
        return np.asarray(pixels[..., 3] >= _FAINT)
    lab = _to_lab(pixels)
    rim = _find_rim(lab)
    colors, counts = np.unique(lab[rim], axis=0, return_counts=True)
    alike = np.asarray(np.linalg.norm(lab - colors[counts.argmax()], axis=-1) <= _BACKDROP_REACH)
    flat = counts.max() / counts.sum() >= _BACKDROP_FLAT
    if not flat or alike[rim].mean() < _BACKDROP_SHARE or alike.all():
        return np.ones(rim.shape, dtype=bool)
    return ~_flood(alike & rim, alike)


def find_line(pixels: NDArray[np.uint8], body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The dark line around a body, (h, w) bool.

    Dark is less than 0.45 of OKLab lightness and 0.12 darker than the body's upper quartile: a black cat has no line. The
    line is what is dark on the contour (background along a side); what goes on dark from there along the picture's edge,
    which may have cut the background off; and of what is dark and two pixels from the background at most, what touches it:
    the inner corners of a line, and its second pixel.
    """
    if not body.any():
        return np.zeros(body.shape, dtype=bool)
    light = to_oklch(pixels[..., :3])[..., 0]
    dark = body & (light < min(_DARK, float(np.quantile(light[body], 0.75)) - _DARKER))
    line = _find_contour(body) & dark
    line |= _flood(line, dark & _find_rim(body))
    near = _spread(_spread(~body, corners=True), corners=True)
    return line | (near & dark & _spread(line, corners=True))


def mask_image(segments: NDArray[np.uint8]) -> Image.Image:
    """The segments (h, w) as a palette picture: its indices are the segments, its colours MASK_COLORS."""
    image = Image.fromarray(np.ascontiguousarray(segments, dtype=np.uint8)).convert("L")
    image.putpalette([channel for color in MASK_COLORS for channel in color])
    return image


def _find_contour(body: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return body & _spread(~body)


def _find_rim(picture: NDArray[Any]) -> NDArray[np.bool_]:
    rim = np.ones(picture.shape[:2], dtype=bool)
    rim[1:-1, 1:-1] = False
    return rim


def _to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    light, chroma, hue = np.moveaxis(to_oklch(pixels[..., :3]), -1, 0)
    return np.stack([light, chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))], axis=-1)


def _flood(seeds: NDArray[np.bool_], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All of `free` that hangs together with a seed along sides: whole runs of rows, then of columns, until none is new."""
    reached = seeds & free
    count = -1
    while count != (count := int(reached.sum())):
        reached = _fill_runs(reached, free)
        reached = _fill_runs(reached.T, free.T).T
    return reached


def _fill_runs(reached: NDArray[np.bool_], free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Every run of `free` within a row that holds a reached pixel, filled."""
    begins = free.copy()
    begins[:, 1:] &= ~free[:, :-1]
    runs = np.cumsum(begins).reshape(free.shape)
    hit = np.zeros(runs.max(initial=0) + 1, dtype=bool)
    hit[runs[reached]] = True
    return free & hit[runs]


def _spread(mask: NDArray[np.bool_], *, corners: bool = False) -> NDArray[np.bool_]:
    """The mask and its neighbours along sides, or along sides and corners."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    source = tall if corners else mask
    wide = tall.copy()
    wide[:, 1:] |= source[:, :-1]
    wide[:, :-1] |= source[:, 1:]
    return wide
