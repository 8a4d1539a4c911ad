"""The loss curve of a run, from its metrics.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pixelkit.evaluate.drawing import ACCENT, BRIGHT, FAINT, PAGE, PANEL, RULE, SECOND, Typeface

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Floats = NDArray[np.float64]
WIDTH, HEIGHT, RATE_HEIGHT = 1100, 420, 110
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = 84, 28, 84, 40, 54
_FINE = 3  # lines are drawn this much larger and scaled down, to be smooth


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run reported at each optimizer step; nan where it reported none. `saves` are the steps of checkpoints.

    `rate` is the learning rate, `seconds` a step's time, `memory` the peak in GiB.
    """

    steps: Floats
    loss: Floats
    rate: Floats
    seconds: Floats
    memory: Floats
    saves: tuple[int, ...]


def collect_progress(events: Iterable[dict[str, object]]) -> Progress:
    """The steps of a run's events, in order. A step reported twice (a resumed run) counts as it was last."""
    steps: dict[int, tuple[float, ...]] = {}
    saves: list[int] = []
    for event in events:
        number = event.get("step")
        if not isinstance(number, int):
            continue
        if event.get("event") == "step":
            steps[number] = tuple(_as_number(event.get(key)) for key in ("loss", "lr", "seconds", "memory"))
        elif event.get("event") == "save":
            saves.append(number)
    order = sorted(steps)
    loss, rate, seconds, memory = np.array([steps[number] for number in order], dtype=np.float64).reshape(-1, 4).T
    return Progress(
        steps=np.array(order, dtype=np.float64),
        loss=loss,
        rate=rate,
        seconds=seconds,
        memory=memory / (1 << 30),
        saves=tuple(sorted(set(saves))),
    )


def smooth(values: Floats, span: float) -> Floats:
    """Mean over about `span` values around each, weighted as a bell; nan counts nothing."""
    reach = max(1, round(span))
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (span / 4)) ** 2)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), bell)[reach : reach + len(values)]
    weight = np.convolve(finite.astype(np.float64), bell)[reach : reach + len(values)]
    return np.asarray(np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 1e-9))


def measure_loss(progress: Progress) -> float | None:
    """The loss at the end, a mean over the last steps: a single step's tells little but the noise level it drew."""
    finite = progress.loss[np.isfinite(progress.loss)]
    return float(smooth(finite, choose_span(finite.size))[-1]) if finite.size else None


def draw_curve(progress: Progress, *, title: str) -> Image.Image | None:
    """The loss, raw and smoothed, above the learning rate, over the steps; None where no loss was reported."""
    finite = np.isfinite(progress.loss)
    if not finite.any():
        return None
    span = choose_span(int(finite.sum()))
    mean = smooth(progress.loss, span)
    low, high = choose_range(progress.loss[finite], mean[finite])
    has_rate = bool(np.isfinite(progress.rate).any())
    height = HEIGHT + (RATE_HEIGHT + _GAP if has_rate else 0) + _TOP + _BOTTOM
    picture = Image.new("RGB", (WIDTH, height), PAGE)
    draw = ImageDraw.Draw(picture)
    first, last = float(progress.steps[0]), float(progress.steps[-1])
    reach = (0.0 if first <= 0.2 * last else first, max(last, first + 1))
    loss = Panel(top=_TOP, height=HEIGHT, reach=reach, low=low, high=high)
    loss.draw_frame(draw)
    loss.draw_lines(picture, [(progress.steps, progress.loss, (122, 98, 72), 1.2), (progress.steps, mean, ACCENT, 2.6)])
    lowest = loss
    if has_rate:
        top = float(np.nanmax(progress.rate)) or 1.0
        lowest = Panel(top=_TOP + HEIGHT + _GAP, height=RATE_HEIGHT, reach=reach, low=0.0, high=top * 1.08)
        lowest.draw_frame(draw, ticks=2)
        lowest.draw_lines(picture, [(progress.steps, progress.rate, SECOND, 2.0)])
        Typeface(size=14).write(draw, (_LEFT, lowest.top - 8), "learning rate", SECOND, anchor="ls")
    lowest.draw_steps(draw)
    loss.draw_saves(draw, progress.saves)
    _write_head(draw, title, progress, mean, span)
    return picture


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One field of a picture with its axes: `reach` are the steps it shows, `low` to `high` the values. Logarithmic axes need
    a reach and a low above 0."""

    top: int
    height: int
    reach: tuple[float, float]
    low: float
    high: float
    log_x: bool = False
    log_y: bool = False

    @property
    def bottom(self) -> int:
        """The pixel row of the lower edge."""
        return self.top + self.height

    def x(self, step: Floats | float) -> Floats:
        """The pixel column of a step."""
        return _LEFT + _share(step, *self.reach, log=self.log_x) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: Floats | float) -> Floats:
        """The pixel row of a value; what is far out lies just outside the field."""
        return self.bottom - np.clip(_share(value, self.low, self.high, log=self.log_y), -0.01, 1.01) * self.height

    def draw_frame(self, draw: ImageDraw.ImageDraw, ticks: int = 5) -> None:
        """The field, with a line at each round value."""
        draw.rectangle((_LEFT, self.top, WIDTH - _RIGHT, self.bottom), fill=PANEL)
        face = Typeface(size=14)
        for value in (choose_log_ticks if self.log_y else choose_ticks)(self.low, self.high, ticks):
            y = float(self.y(value))
            draw.line((_LEFT, y, WIDTH - _RIGHT, y), fill=RULE)
            face.write(draw, (_LEFT - 10, y), f"{value:.3g}", FAINT, anchor="rm")

    def draw_steps(self, draw: ImageDraw.ImageDraw) -> None:
        """The axis of the steps, below the field."""
        face = Typeface(size=14)
        for value in (choose_log_ticks if self.log_x else choose_ticks)(*self.reach, 8):
            if value == int(value):
                x = float(self.x(value))
                draw.line((x, self.bottom, x, self.bottom + 5), fill=RULE)
                face.write(draw, (x, self.bottom + 9), f"{int(value):,}", FAINT, anchor="ma")
        face.write(draw, (WIDTH - _RIGHT, self.bottom + 30), "optimizer steps", FAINT, anchor="ra")

    def draw_saves(self, draw: ImageDraw.ImageDraw, saves: Sequence[int]) -> None:
        """A small mark on the axis where a checkpoint was saved."""
        for step in saves:
            if self.reach[0] <= step <= self.reach[1]:
                draw_mark(draw, float(self.x(float(step))), self.bottom)

    def draw_lines(
        self, picture: Image.Image, lines: Sequence[tuple[Floats, Floats, tuple[int, int, int], float]]
    ) -> None:
        """Lines of (steps, values, colour, width), broken where a value is nan."""
        box = (_LEFT, self.top, WIDTH - _RIGHT, self.bottom)
        area = picture.crop(box)
        fine = area.resize((area.width * _FINE, area.height * _FINE), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(fine)
        for steps, values, paint, width in lines:
            points = np.stack([self.x(steps) - _LEFT, self.y(values) - self.top], axis=1) * _FINE
            for part in _split_at_gaps(points):
                if len(part) == 1:
                    (x, y), radius = part[0], 1.5 * _FINE
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint)
                else:
                    draw.line(
                        [(float(x), float(y)) for x, y in part], fill=paint, width=round(width * _FINE), joint="curve"
                    )
        picture.paste(fine.resize(area.size, Image.Resampling.LANCZOS), box[:2])


def draw_mark(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    """The mark of a checkpoint: a small triangle that stands on (x, y)."""
    draw.polygon([(x - 5, y), (x + 5, y), (x, y - 8)], fill=BRIGHT)


def choose_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them, a step of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def choose_log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` to `high` (both above 0) for a logarithmic axis: powers of ten, or 1, 2, 5 of each."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) <= max(count, 2) * 2:
            return found
    return found[:: math.ceil(len(found) / max(count, 1))]


def choose_span(count: int) -> float:
    """Over how many of `count` values a line is smoothed, where nobody says."""
    return max(3.0, min(200.0, count / 20))


def _share(value: Floats | float, low: float, high: float, *, log: bool) -> Floats:
    """Where values lie between two others, 0 to 1; nan where a logarithm has none."""
    values = np.asarray(value, dtype=np.float64)
    if log:
        values = np.log10(np.where(values > 0, values, np.nan))
        low, high = math.log10(low), math.log10(high)
    return np.asarray((values - low) / (high - low))


def choose_range(loss: Floats, mean: Floats) -> tuple[float, float]:
    """From 0, or from near the lowest where all lie close together; single spikes may stick out at the top."""
    high = max(float(np.quantile(loss, 0.995)), float(mean.max()))
    low = min(float(loss.min()), float(mean.min()))
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.5 * high else low - room), high + room


def _split_at_gaps(points: Floats) -> list[Floats]:
    finite = np.isfinite(points).all(axis=1)
    edges = np.flatnonzero(np.diff(finite.astype(np.int8))) + 1
    return [part for part in np.split(points, edges) if np.isfinite(part).all() and len(part)]


def _write_head(draw: ImageDraw.ImageDraw, title: str, progress: Progress, mean: Floats, span: float) -> None:
    large, small = Typeface(size=24), Typeface(size=14)
    large.write(draw, (_LEFT, 20), large.cut(title, WIDTH - _LEFT - _RIGHT), BRIGHT)
    last = int(progress.steps[-1])
    lowest = int(np.nanargmin(mean))
    lost = int((~np.isfinite(progress.loss)).sum())
    parts = [
        f"loss {mean[np.isfinite(mean)][-1]:.4g} after {last:,} steps",
        f"lowest {mean[lowest]:.4g} at step {int(progress.steps[lowest]):,}",
        f"line: mean over about {round(span)} steps",
    ]
    parts += [f"{lost} without a finite loss"] if lost else []
    text = " · ".join(parts)
    small.write(draw, (_LEFT, 54), text, FAINT)
    if progress.saves:
        small.write(draw, (WIDTH - _RIGHT, 54), "checkpoint", FAINT, anchor="ra")
        draw_mark(draw, WIDTH - _RIGHT - small.measure("checkpoint") - 12, 67)


def _as_number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
