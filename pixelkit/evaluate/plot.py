"""Runs side by side on one picture: loss, learning rate, seconds a step, memory, over the optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from pixelkit.evaluate.curve import WIDTH as CURVE_WIDTH
from pixelkit.evaluate.curve import Floats, Panel, choose_range, choose_span, draw_mark, smooth
from pixelkit.evaluate.drawing import ACCENT, BRIGHT, FAINT, PAGE, PANEL, SECOND, TEXT, Paint, Typeface

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.evaluate.curve import Progress

# Told apart by people who see red and green alike, too (after Okabe and Ito), on a dark page.
COLOURS: tuple[Paint, ...] = (
    ACCENT,
    SECOND,
    (120, 220, 150),
    (240, 130, 180),
    (240, 228, 96),
    (186, 156, 255),
    (235, 110, 80),
    (170, 176, 190),
)
LEFT, RIGHT = 84, 28
LOSS_HEIGHT, SMALL_HEIGHT, GAP, FOOT = 380, 104, 44, 54
LOG_FROM = 20.0
"""A value that spans more than this factor gets a logarithmic axis by itself."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's curve and what to call it."""

    name: str
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class _Field:
    title: str
    height: int
    values: tuple[Floats, ...]
    smoothed: bool
    from_zero: bool


def draw_runs(
    curves: Sequence[Curve], *, span: int | None = None, log: frozenset[str] = frozenset()
) -> Image.Image | None:
    """A picture of all runs; None where none of them reported a step.

    `span`: steps that the lines are averaged over (1 = as they are; None = chosen for each run). `log` holds "x", "y" or both
    for logarithmic steps and losses; a loss that spans much is drawn so anyway.
    """
    curves = [curve for curve in curves if curve.progress.steps.size]
    fields = [field for field in _list_fields(curves) if any(np.isfinite(values).any() for values in field.values)]
    if not fields:
        return None
    head = 24 + 24 * len(curves) + 36
    height = head + sum(field.height + GAP for field in fields) - GAP + FOOT
    picture = Image.new("RGB", (CURVE_WIDTH, height), PAGE)
    draw = ImageDraw.Draw(picture)
    _write_legend(draw, curves, span)
    first = min(float(curve.progress.steps[0]) for curve in curves)
    last = max(float(curve.progress.steps[-1]) for curve in curves)
    log_x = "x" in log and last > 1
    reach = (max(first, 1.0) if log_x else 0.0 if first <= 0.2 * last else first, max(last, first + 1))
    top = head
    for field in fields:
        panel = _draw_field(picture, draw, field, curves, top=top, reach=reach, span=span, log=log, log_x=log_x)
        if field is fields[-1]:
            panel.draw_steps(draw)
        if field is fields[0] and len(curves) == 1:
            panel.draw_saves(draw, curves[0].progress.saves)
        top += field.height + GAP
    return picture


def _list_fields(curves: Sequence[Curve]) -> list[_Field]:
    def field(
        title: str, key: str, *, height: int = SMALL_HEIGHT, smoothed: bool = False, from_zero: bool = True
    ) -> _Field:
        values = tuple(getattr(curve.progress, key) for curve in curves)
        return _Field(title=title, height=height, values=values, smoothed=smoothed, from_zero=from_zero)

    return [
        field("loss", "loss", height=LOSS_HEIGHT, smoothed=True, from_zero=False),
        field("learning rate", "rate"),
        field("seconds a step", "seconds", smoothed=True),
        field("memory at peak, GiB", "memory"),
    ]


def _draw_field(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    field: _Field,
    curves: Sequence[Curve],
    *,
    top: int,
    reach: tuple[float, float],
    span: int | None,
    log: frozenset[str],
    log_x: bool,
) -> Panel:
    # The first step, which compiles and warms up, shall not lift the average of those after it.
    even = [_cut_peaks(values) if field.from_zero else values for values in field.values]
    means = [_average(values, span) if field.smoothed else values for values in even]
    every, mean = (_join_finite(values) for values in (field.values, means))
    low, high = choose_range(every, mean)
    if field.from_zero:
        low, high = 0.0, (max(float(np.quantile(every, 0.99)), float(np.median(every))) or 1.0) * 1.12
    lowest = float(mean[mean > 0].min()) if (mean > 0).any() else 0.0
    wants_log = not field.from_zero and ("y" in log or (lowest and float(mean.max()) / lowest > LOG_FROM))
    log_y = bool(wants_log and lowest)
    if log_y:
        low, high = min(lowest * 0.8, float(np.quantile(every[every > 0], 0.005))), float(every.max()) * 1.1
    panel = Panel(top=top, height=field.height, reach=reach, low=low, high=high, log_x=log_x, log_y=log_y)
    panel.draw_frame(draw, ticks=5 if field.height == LOSS_HEIGHT else 3)
    lines: list[tuple[Floats, Floats, Paint, float]] = []
    if field.smoothed and span != 1:
        faint = 0.42 if len(curves) == 1 else 0.22
        lines += [
            (curve.progress.steps, values, _fade(_colour(number), faint), 1.2)
            for number, (curve, values) in enumerate(zip(curves, field.values, strict=True))
        ]
    lines += [
        (curve.progress.steps, values, _colour(number), 2.4)
        for number, (curve, values) in enumerate(zip(curves, means, strict=True))
    ]
    panel.draw_lines(picture, lines)
    note = " (logarithmic)" if log_y else ""
    Typeface(size=14).write(draw, (LEFT, top - 8), f"{field.title}{note}", TEXT, anchor="ls")
    return panel


def _average(values: Floats, span: int | None) -> Floats:
    """The values themselves for a span of 1. What was not reported stays a gap."""
    finite = np.isfinite(values)
    if span == 1 or not finite.any():
        return values
    mean = smooth(values, span or choose_span(int(finite.sum())))
    return np.where(finite, mean, np.nan)


def _cut_peaks(values: Floats) -> Floats:
    finite = values[np.isfinite(values)]
    return np.minimum(values, np.quantile(finite, 0.99)) if finite.size else values


def _join_finite(series: Sequence[Floats]) -> Floats:
    joined = np.concatenate(series)
    return joined[np.isfinite(joined)]


def _write_legend(draw: ImageDraw.ImageDraw, curves: Sequence[Curve], span: int | None) -> None:
    face, small = Typeface(size=17), Typeface(size=14)
    for number, curve in enumerate(curves):
        y = 24 + 24 * number
        draw.rectangle((LEFT, y + 5, LEFT + 18, y + 15), fill=_colour(number))
        said = _describe(curve.progress, span)
        room = CURVE_WIDTH - RIGHT - LEFT - 28 - small.measure(said) - 20
        face.write(draw, (LEFT + 28, y + 10), face.cut(curve.name, room), BRIGHT, anchor="lm")
        small.write(draw, (CURVE_WIDTH - RIGHT, y + 10), said, FAINT, anchor="rm")
    if len(curves) == 1 and curves[0].progress.saves:
        y = 24 + 24 + 18
        small.write(draw, (CURVE_WIDTH - RIGHT, y), "checkpoint", FAINT, anchor="rm")
        draw_mark(draw, CURVE_WIDTH - RIGHT - small.measure("checkpoint") - 12, y + 4)


def _describe(progress: Progress, span: int | None) -> str:
    parts = [f"{int(progress.steps[-1]):,} steps"]
    mean = _average(progress.loss, span)
    if (finite := mean[np.isfinite(mean)]).size:
        parts.append(f"loss {finite[-1]:.4g}, lowest {finite.min():.4g}")
    if (seconds := progress.seconds[np.isfinite(progress.seconds)]).size:
        parts.append(f"{np.median(seconds):.3g} s/step")
    if (memory := progress.memory[np.isfinite(progress.memory)]).size:
        parts.append(f"{memory.max():.3g} GiB")
    return " · ".join(parts)


def _colour(number: int) -> Paint:
    return COLOURS[number % len(COLOURS)]


def _fade(paint: Paint, share: float) -> Paint:
    red, green, blue = (round(back + (front - back) * share) for front, back in zip(paint, PANEL, strict=True))
    return red, green, blue
