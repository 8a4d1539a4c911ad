"""How long a plan will train and how much memory it will take, each with where the figure comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pixelkit.measures.known import Pace, compute, compute_picture, find_published
from pixelkit.measures.setup import images_per_step, setup_of

if TYPE_CHECKING:
    from pixelkit.measures.book import MeasureBook
    from pixelkit.measures.figures import Figures
    from pixelkit.measures.setup import Setup
    from pixelkit.plan import Plan

NOTHING_KNOWN = "nothing like it was measured here, published or can be computed; the first run will tell"
PLAIN = 0.12  # bounds nearer than this are not worth a word


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of a plan: wall-clock seconds of its training and GiB of memory at the peak. None = unknown: nothing is claimed.

    `seconds_source` and `memory_source` say where the numbers come from. `left_out`: what the seconds do not hold.
    """

    seconds: float | None
    seconds_low: float | None
    seconds_high: float | None
    seconds_per_step: float | None
    images_per_second: float | None
    seconds_basis: Literal["here", "scaled", "elsewhere", "computed", "unknown"]
    seconds_source: str
    left_out: tuple[str, ...] = ()
    memory_gib: float
    memory_source: str
    available_gib: float
    machine_gib: float


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The pace of the steps, and what comes on top. None = not known."""

    pace: Pace
    basis: Literal["here", "scaled", "elsewhere", "computed"]
    before: float | None
    picture: float | None
    save: float


def forecast(plan: Plan, book: MeasureBook) -> Forecast:
    """The best that is known: measured here, scaled from what was measured here, measured elsewhere, computed; else unknown."""
    setup = setup_of(plan)
    parts = _find_parts(plan, setup, book)
    memory, memory_source = plan.memory_gib, "computed"
    if parts and parts.pace.memory_gib:
        memory, memory_source = parts.pace.memory_gib, parts.pace.source
    common = {
        "memory_gib": memory,
        "memory_source": memory_source,
        "available_gib": plan.machine.available_gib,
        "machine_gib": plan.machine.memory_gib,
    }
    if parts is None:
        return Forecast(
            seconds=None, seconds_low=None, seconds_high=None, seconds_per_step=None, images_per_second=None,
            seconds_basis="unknown", seconds_source=NOTHING_KNOWN, **common,  # type: ignore[arg-type]
        )  # fmt: skip
    pace, steps = parts.pace, plan.train.steps
    pictures = 0 if pace.whole else count_pictures(plan)
    extra = (parts.before or 0.0) + pictures * (parts.picture or 0.0) + count_saves(plan) * parts.save
    left_out: tuple[str, ...] = () if pace.whole or parts.before is not None else ("loading",)
    left_out += ("sample pictures",) if pictures and parts.picture is None else ()
    return Forecast(
        seconds=steps * pace.seconds + extra,
        seconds_low=steps * pace.low + extra,
        seconds_high=steps * pace.high + extra,
        seconds_per_step=pace.seconds,
        images_per_second=images_per_step(plan) / pace.seconds,
        seconds_basis=parts.basis,
        seconds_source=pace.source,
        left_out=left_out,
        **common,  # type: ignore[arg-type]
    )


def count_pictures(plan: Plan) -> int:
    """Sample pictures of the whole run: before it, on the way, and at the end."""
    sample, steps = plan.sample, plan.train.steps
    on_the_way = (steps - 1) // sample.every_steps if sample.every_steps else 0
    return len(sample.prompts) * (2 + on_the_way)


def count_saves(plan: Plan) -> int:
    """Weights that are written: on the way, and at the end."""
    every = plan.train.save_every_steps
    return 1 + (plan.train.steps // every if every else 0)


def describe(forecast: Forecast) -> list[str]:
    """Lines for `check`: time, and memory."""
    if forecast.seconds is None or forecast.seconds_low is None or forecast.seconds_high is None:
        time = f"time      unknown: {forecast.seconds_source}"
    else:
        low, high = say_duration(forecast.seconds_low), say_duration(forecast.seconds_high)
        wide = forecast.seconds_high - forecast.seconds_low > 2 * PLAIN * forecast.seconds and low != high
        without = f"; without {' and '.join(forecast.left_out)}" if forecast.left_out else ""
        time = (
            f"time      about {say_duration(forecast.seconds)}{f', {low} to {high}' if wide else ''}"
            f" ({forecast.seconds_source}{without})"
        )
    free = f"{forecast.available_gib:.1f} of {forecast.machine_gib:.1f} GiB free"
    return [time, f"memory    about {forecast.memory_gib:.1f} GiB ({forecast.memory_source}), {free}"]


def say_duration(seconds: float) -> str:
    """Seconds in words, to two figures or so: 50 s, 12 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 99:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 10:
        minutes, rest = divmod(round(seconds / 10) * 10, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 600:
        minutes = round(minutes / 5) * 5
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    hours += minutes >= 30
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days and hours else f"{days} d" if days else f"{hours} h"


def _find_parts(plan: Plan, setup: Setup, book: MeasureBook) -> _Parts | None:
    memory = plan.base.spec.memory
    per_image = memory.per_image_checkpointed if setup.gradient_checkpointing else memory.per_image
    for elsewhere in (False, True):
        found = book.find(setup, elsewhere=elsewhere)
        alike = book.like(setup, elsewhere=elsewhere, gib_per_pixel=per_image / plan.base.spec.resolution**2)
        if figures := found or alike:
            basis: Literal["here", "scaled", "elsewhere"] = "elsewhere" if elsewhere else "here" if found else "scaled"
            return _Parts(
                pace=_pace_of(figures, setup),
                basis=basis,
                before=figures.seconds_before or None,
                picture=_draw(plan, figures, alike),
                save=figures.seconds_per_save,
            )
    published = find_published(setup)
    pace = published or compute(setup)
    if pace is None:
        return None
    sample = plan.sample
    picture = compute_picture(setup, pace, steps=sample.steps, area=sample.width * sample.height)
    return _Parts(pace=pace, basis="elsewhere" if published else "computed", before=None, picture=picture, save=0.0)


def _draw(plan: Plan, *figures: Figures | None) -> float | None:
    """Seconds of a sample picture by the first that knows: probes, which draw none, may be the nearest."""
    size = {"steps": plan.sample.steps, "area": plan.sample.width * plan.sample.height}
    drawn = (known.draw(**size) for known in figures if known)
    return next((seconds for seconds in drawn if seconds is not None), None)


def _pace_of(figures: Figures, setup: Setup) -> Pace:
    newest, count = figures.measures[0], len(figures.measures)
    where = f"elsewhere ({newest.elsewhere})" if newest.elsewhere else "here"
    kinds = f"{count} {newest.kind}{'s'[: count > 1]}"
    source = (
        f"measured {where} on {newest.when[:10]}, {kinds}{_say_scaling(newest.setup, setup) if figures.scaled else ''}"
    )
    return Pace(
        seconds=figures.seconds_per_step,
        low=figures.low,
        high=figures.high,
        source=source,
        memory_gib=figures.peak_memory_gib,
    )


def _say_scaling(measured: Setup, setup: Setup) -> str:
    """What the measured ones had otherwise."""
    words = []
    if measured.batch_size != setup.batch_size or measured.images_per_step != setup.images_per_step:
        times = f" x {measured.gradient_accumulation}" if measured.gradient_accumulation > 1 else ""
        words.append(f"batch {measured.batch_size}{times}")
    if measured.canvas_area != setup.canvas_area:
        words.append(f"canvases of {measured.canvas_area**0.5:.0f} px")
    if measured.rank != setup.rank:
        words.append(f"rank {measured.rank}")
    if measured.workers != setup.workers:
        words.append(f"{measured.workers} workers")
    return f", scaled from {', '.join(words)}" if words else ""
