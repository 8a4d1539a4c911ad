"""The grid of damaged art: blurred, compressed, noisy, jittered, or enlarged by a number that is not whole.

Where art was enlarged, change gathers at every `step`-th column and row. Summed over the other axis, it is a comb, and
a comb's spectrum has peaks at the whole multiples of 1 / step. A step's score is the mean power at its multiples times
the square root of how many there are (the matched filter: twice the step finds every second place empty, half the step
finds only half of the peaks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pixelkit.pixelgrid.grid import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SMALLEST_STEP = 1.9
FEWEST_CELLS = 8
SHORTEST_SIDE = 40  # pixels; below it, as in tiles of 32, chance draws combs too often
# What a grid must reach; measured with bench/grid.py on crawl tiles. Noise, gradients and native art stay below; a small
# native sprite with a wide margin comes nearest, with 5 to 7:
CONFIDENCE_FLOOR = 7.5
# How deep change swings with the grid. JPEG's own grid of 8 pixels over smooth pictures reaches .15, the seams of sheets
# .3, blocks begin at .4. What was enlarged with Lanczos swings by .2 to .3, but as a wave, without overtones.
BLOCK_DEPTH = 0.35
WAVE_DEPTH = 0.2
WAVE_OVERTONE = 0.35

_SEARCH = 0.004  # steps are tried 0.4% apart,
_REFINED = 0.02  # then around the best one, each axis for itself
_FINENESS = 8  # of the spectrum: places per 1 / length
_QUARTER = 0.3186  # a quarter of normal deviates lie within so many deviations of 0
_MOST_MULTIPLES = 16  # looked at when a grid is fitted
_ALIGNED = 0.95  # of the best score is enough for the grid that divides the picture into whole cells


def detect_grid(pixels: NDArray[np.uint8]) -> Grid | None:
    """The grid of (height, width, 3 or 4) pixels, or None where there is none that chance would not give as well.

    The step is about the same in x and y (within 2%). Art that was enlarged exactly is exact.measure_block's; it is found
    here, too, if it has enough contours.
    """
    height, width = pixels.shape[:2]
    largest = min(height, width) / FEWEST_CELLS
    if min(height, width) < SHORTEST_SIDE:
        return None
    energies = _sum_change(pixels)
    if not all(energy.any() for energy in energies):
        return None
    combs = [np.sqrt(energy) for energy in energies]
    steps = np.exp(np.arange(np.log(SMALLEST_STEP), np.log(largest), _SEARCH))
    scores = sum((_score_steps(comb, steps) for comb in combs), start=np.zeros(len(steps)))
    best = int(scores.argmax())
    middle = float(np.median(scores))
    confidence = (float(scores[best]) - middle) / (float(np.median(np.abs(scores - middle))) + 1e-9)
    if confidence < CONFIDENCE_FLOOR:
        return None
    (step_x, offset_x), (step_y, offset_y) = (_fit(comb, float(steps[best])) for comb in combs)
    fine = _sum_noise(pixels)
    first, second = (
        sum(_measure_depth(*pair, multiple) for pair in zip(energies, fine, (step_x, step_y), strict=True)) / 2
        for multiple in (1, 2)
    )
    wave = min(step_x, step_y) < 4 or second <= WAVE_OVERTONE * first  # below 4 the overtone cannot be seen
    if first < (WAVE_DEPTH if wave else BLOCK_DEPTH):
        return None
    return Grid(step=(step_x, step_y), offset=(offset_x, offset_y), confidence=confidence)


def _sum_change(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Squared change between neighbours, summed over channels and the other axis: (width - 1,) and (height - 1,).

    Hidden colour changes nothing: colours count as far as they are opaque, opacity as a channel of its own.
    """
    height, width, channels = pixels.shape
    across, down = np.zeros(width - 1), np.zeros(height - 1)
    for channel in range(channels):
        values = _weigh_channel(pixels, channel)
        across += (np.diff(values, axis=1) ** 2).sum(axis=0, dtype=np.float64)
        down += (np.diff(values, axis=0) ** 2).sum(axis=1, dtype=np.float64)
    return across, down


def _weigh_channel(pixels: NDArray[np.uint8], channel: int) -> NDArray[np.int32]:
    values = pixels[..., channel].astype(np.int32)
    return values * pixels[..., 3] // 255 if pixels.shape[2] == 4 and channel < 3 else values


def _score_steps(comb: Floats, steps: Floats) -> Floats:
    """Mean amplitude at the multiples of 1 / step above the whole spectrum's, times the root of their number."""
    length = (len(comb) + 1) * _FINENESS
    deviation = comb - comb.mean()
    spectrum = np.abs(np.fft.rfft(deviation, length)) / np.sqrt((deviation**2).sum() or 1.0)
    spectrum -= spectrum.mean()
    total, number = np.zeros(len(steps)), np.zeros(len(steps))
    for multiple in range(1, int(steps[-1] / 2) + 1):
        frequency = multiple / steps
        inside = frequency <= 0.5
        place = np.minimum(np.round(frequency * length).astype(np.int64), len(spectrum) - 1)
        total += np.where(inside, spectrum[place], 0)
        number += inside
    return total / np.sqrt(np.maximum(number, 1))


def _fit(comb: Floats, step: float) -> tuple[float, float]:
    """The step near `step`, and the offset, whose teeth hold most of the comb. Whole cells are preferred."""
    length = len(comb) + 1
    # Offsets are told apart at the last tooth by a quarter of a pixel.
    steps = np.linspace(step * (1 - _REFINED), step * (1 + _REFINED), 2 * int(np.ceil(length * 4 * _REFINED)) + 1)
    scores = [np.abs(_transform(comb, each)).sum() for each in steps]
    fitted = float(steps[int(np.argmax(scores))])
    offsets = np.linspace(0, fitted, 8 * int(np.ceil(fitted)), endpoint=False)
    teeth = _weigh_offsets(comb, fitted, offsets)
    whole = length / max(round(length / fitted), 1)
    if abs(whole / fitted - 1) < _REFINED and _weigh_offsets(comb, whole, np.zeros(1))[0] >= _ALIGNED * teeth.max():
        return whole, 0.0
    return fitted, float(offsets[teeth.argmax()])


def _transform(comb: Floats, step: float) -> NDArray[np.complex128]:
    """The comb's spectrum at the multiples of 1 / step; entry 0 of the comb is the boundary at 1."""
    multiples = np.arange(1, min(max(int(step / 2), 1), _MOST_MULTIPLES) + 1)
    places = np.arange(1, len(comb) + 1)
    waves: NDArray[np.complex128] = np.exp(-2j * np.pi / step * np.outer(multiples, places))
    spectrum: NDArray[np.complex128] = waves @ (comb - comb.mean())
    return spectrum


def _weigh_offsets(comb: Floats, step: float, offsets: Floats) -> Floats:
    """What of the comb lies on teeth at offset + k * step."""
    peaks = _transform(comb, step)
    turns = np.exp(2j * np.pi / step * np.outer(offsets, np.arange(1, len(peaks) + 1)))
    weights: Floats = (turns @ peaks).real
    return weights


def _sum_noise(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """What noise alone adds to the sums of _sum_change. Its variance is read from the flattest quarter of the picture
    through a kernel that no ramp passes (Immerkaer, Fast noise variance estimation, 1996).
    """
    height, width, channels = pixels.shape
    variance = 0.0
    for channel in range(channels):
        kernel = np.diff(np.diff(_weigh_channel(pixels, channel), 2, axis=0), 2, axis=1)
        variance += (float(np.quantile(np.abs(kernel), 0.25)) / (6 * _QUARTER)) ** 2
    return 2 * variance * height * (width - 1), 2 * variance * width * (height - 1)


def _measure_depth(energy: Floats, noise: float, step: float, multiple: int) -> float:
    """How deep change swings `multiple` times a step: 0 for everywhere alike, 1 for at the boundaries only."""
    waves = np.exp(-2j * np.pi * multiple / step * np.arange(len(energy)))
    total = float(energy.sum())
    return min(1.0, float(abs((energy * waves).sum())) / max(total - noise, total / 10))
