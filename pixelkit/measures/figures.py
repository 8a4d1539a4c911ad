"""From measures to the figures of a setup: of the same one, or scaled from those of its like."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pixelkit.measures.setup import Measure, Setup

LATEST = 5  # a machine changes: drivers, libraries, what else runs on it
SPREAD = 0.1  # how much runs of one setup may differ where only one was measured


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds and GiB of one setup, and the measures that they rest on, newest first.

    `low` and `high` bound seconds_per_step. `scaled`: those measures are of other batches, canvases or ranks; `alike` are all
    that were looked at.
    """

    seconds_per_step: float
    low: float
    high: float
    seconds_before: float
    seconds_per_save: float
    peak_memory_gib: float | None
    measures: tuple[Measure, ...]
    alike: tuple[Measure, ...] = ()
    scaled: bool = False

    def draw(self, *, steps: int, area: int) -> float | None:
        """Seconds for one sample picture of so many sampling steps and pixels; None where none was ever drawn."""
        for measures in (self.measures, self.alike):  # probes, which draw none, may be the nearest
            seconds = _median(
                measure.seconds_per_picture * steps * area / (measure.picture_steps * measure.picture_area)
                for measure in measures
                if measure.seconds_per_picture and measure.picture_steps and measure.picture_area
            )
            if seconds is not None:
                return seconds
        return None


def take_together(measures: Sequence[Measure]) -> Figures | None:
    """The median of measures of one setup, newest first; None where all of them failed."""
    known = _choose(measures)[:LATEST]
    seconds = [measure.seconds_per_step for measure in known if measure.seconds_per_step]
    if not seconds:
        return None
    middle = statistics.median(seconds)
    return Figures(
        seconds_per_step=middle,
        low=min(middle * (1 - SPREAD), *seconds),
        high=max(middle * (1 + SPREAD), *seconds),
        seconds_before=_median(measure.seconds_before for measure in known) or 0.0,
        seconds_per_save=_median(measure.seconds_per_save for measure in known) or 0.0,
        peak_memory_gib=max((measure.peak_memory_gib or 0.0 for measure in known), default=0.0) or None,
        measures=tuple(known),
    )


def scale(setup: Setup, measures: Sequence[Measure], *, gib_per_pixel: float = 0.0) -> Figures | None:
    """Figures for a setup that was not measured, from those of its place and manner, newest first.

    A pass of the model takes a + b * pixels: fitted where passes of two sizes were measured; with one size in proportion to
    the pixels, bounded by "the same time". Memory is fitted likewise; with one size it grows by `gib_per_pixel`.
    """
    groups: dict[Setup, list[Measure]] = {}
    for measure in measures:
        if measure.setup.place == setup.place and measure.setup.manner == setup.manner and not measure.failed:
            groups.setdefault(measure.setup, []).append(measure)
    found = {other: figures for other, group in groups.items() if (figures := take_together(group))}
    if not found:
        return None
    nearest = min(found, key=lambda other: _distance(other, setup))
    known = found[nearest]
    passes = [
        (other.pixels, figures.seconds_per_step / other.gradient_accumulation) for other, figures in found.items()
    ]
    at = known.seconds_per_step / nearest.gradient_accumulation
    proportional = at * setup.pixels / nearest.pixels
    line = _fit(passes)
    middle = line(setup.pixels) if line else proportional
    inside = min(pixels for pixels, _ in passes) <= setup.pixels <= max(pixels for pixels, _ in passes)
    bounds = (middle,) if inside else (middle, proportional) if line else (at, proportional)
    accumulation = setup.gradient_accumulation
    return Figures(
        seconds_per_step=middle * accumulation,
        low=min(bounds) * (1 - SPREAD) * accumulation,
        high=max(bounds) * (1 + SPREAD) * accumulation,
        seconds_before=known.seconds_before,
        seconds_per_save=known.seconds_per_save,
        peak_memory_gib=_scale_memory(setup, nearest, found, gib_per_pixel),
        measures=known.measures,
        alike=tuple(measure for group in groups.values() for measure in group),
        scaled=True,
    )


def _scale_memory(setup: Setup, nearest: Setup, found: dict[Setup, Figures], gib_per_pixel: float) -> float | None:
    peaks = [(other.pixels, figures.peak_memory_gib) for other, figures in found.items() if figures.peak_memory_gib]
    if line := _fit(peaks):
        return line(setup.pixels)
    known = found[nearest].peak_memory_gib
    return max(known / 2, known + (setup.pixels - nearest.pixels) * gib_per_pixel) if known else None


def _choose(measures: Sequence[Measure]) -> list[Measure]:
    """Those that ended well; runs before probes, which are short and draw nothing."""
    well = [measure for measure in measures if measure.seconds_per_step and not measure.failed]
    return [measure for measure in well if measure.kind == "run"] or well


def _distance(one: Setup, other: Setup) -> float:
    """How far apart the sizes of two passes are."""
    return max(one.pixels, other.pixels) / max(1.0, min(one.pixels, other.pixels))


def _fit(points: Sequence[tuple[float, float]]) -> Callable[[float], float] | None:
    """A line through points of at least two places: neither falling nor below zero at zero."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if len(set(xs)) < 2:
        return None
    slope, start = statistics.linear_regression(xs, ys)
    if slope < 0:
        slope, start = 0.0, statistics.fmean(ys)
    elif start < 0:
        slope, start = statistics.linear_regression(xs, ys, proportional=True)
    return lambda x: start + slope * x


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
