"""Damaged art back at native size: one colour per cell, and few colours in all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.words.oklab import to_oklab

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.pixelgrid.grid import Grid

    Floats = NDArray[np.float64]

CLEAR = 16  # opacities so near to 0 or 255 become 0 or 255
MOST_SAMPLES = 8
# Colours nearer than so many times the spread within cells are one colour, up to what an eye would call another.
SPREADS = 1.5
LARGEST_MERGE = 0.05
MOST_COLORS = 4096  # a picture of more is left as it is: it is no pixel art, and each is held against each


def snap(pixels: NDArray[np.uint8], grid: Grid) -> NDArray[np.uint8]:
    """(height, width, 3 or 4) -> native size, (rows, columns, 4): one pixel for each cell whose centre is in the picture.

    A cell's colour is the median of its inner half, which blur and ringing at its border do not reach. Colours that the
    damage alone can have driven apart (nearer than the spread within cells) become one, their median; art without damage
    keeps every colour as it is. Opacity is the median, too: below 16 it becomes 0 (and the colour black), above 239 it
    becomes 255; what is between stays, for shadows and glass.
    """
    columns = _place_samples(grid, pixels.shape[1], axis=0)
    rows = _place_samples(grid, pixels.shape[0], axis=1)
    samples = pixels[rows[:, None, :, None], columns[None, :, None, :]].reshape(
        len(rows), len(columns), -1, pixels.shape[2]
    )
    opacity = samples[..., 3:].astype(np.float64) / 255 if pixels.shape[2] == 4 else np.ones((*samples.shape[:3], 1))
    weighed = samples[..., :3] * opacity
    alpha = np.median(opacity, axis=2)
    color = np.median(weighed, axis=2) / np.maximum(alpha, 1 / 255)
    level = np.round(alpha * 255)
    level = np.where(level < CLEAR, 0, np.where(level > 255 - CLEAR, 255, level))
    visible = level[..., 0] > 0
    color = np.where(visible[..., None], np.clip(np.round(color), 0, 255), 0)
    if visible.any():
        spread = _measure_spread(weighed[visible])
        color[visible] = _merge_colors(color[visible], min(SPREADS * spread, LARGEST_MERGE))
    return np.concatenate([color, level], axis=2).astype(np.uint8)


def _place_samples(grid: Grid, length: int, *, axis: int) -> NDArray[np.int64]:
    """Pixels to look at in each cell, (cells, samples): spread evenly over the inner half."""
    step = grid.step[axis]
    number = min(max(2, round(step / 2)), MOST_SAMPLES)
    within = ((np.arange(number) + 0.5) / number - 0.5) * step / 2
    centers = np.array(grid.find_centers(length, axis=axis))
    return np.clip(np.floor(centers[:, None] + within + 1e-9).astype(np.int64), 0, length - 1)


def _measure_spread(samples: Floats) -> float:
    """How far samples lie from their cell's mean, on average, in OKLab: (cells, samples, 3)."""
    lab = to_oklab(samples)
    distances = np.linalg.norm(lab - lab.mean(axis=1, keepdims=True), axis=-1)
    return float(distances.mean())


def _merge_colors(colors: Floats, tolerance: float) -> Floats:
    """(n, 3): the colour with most pixels near it takes in all of them, then the next of the rest, and so on."""
    if tolerance <= 0:
        return colors
    for width in (1, 2, 4):
        bins, place, number = np.unique(colors // width, axis=0, return_inverse=True, return_counts=True)
        if len(bins) <= MOST_COLORS:
            break
    if len(bins) > MOST_COLORS:
        return colors
    place = place.ravel()
    lab = to_oklab(np.stack([np.bincount(place, channel) / number for channel in colors.T], axis=1))
    near = np.array([number[_lie_near(lab, each, tolerance)].sum() for each in lab])
    group = np.full(len(bins), -1)
    for leader in np.argsort(-near, kind="stable"):
        if group[leader] < 0:
            group[(group < 0) & _lie_near(lab, lab[leader], tolerance)] = leader
    merged = np.empty_like(colors)
    order = np.argsort(group[place], kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[place][order])) + 1):
        merged[members] = np.round(np.median(colors[members], axis=0))
    return merged


def _lie_near(lab: Floats, color: Floats, tolerance: float) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = ((lab - color) ** 2).sum(axis=1) <= tolerance**2
    return near
