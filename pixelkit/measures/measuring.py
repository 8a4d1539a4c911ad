"""What a run took, read from its metrics and its manifest."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pixelkit.measures.book import MeasureBook, warn
from pixelkit.measures.setup import Measure, setup_of
from pixelkit.memory import GIB
from pixelkit.rundir import now

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir

LEAST_STEPS = 5
WARM_UP = 0.1  # share of the steps in which compilers, caches and clocks settle
WARM_UP_STEPS = (2, 20)  # at least, at most
PARTS = 9


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """Seconds of one process of the trainer, by what they went into."""

    steps: tuple[float, ...]
    pictures: tuple[tuple[float, int], ...]  # (seconds, pictures) each time that some were drawn
    saves: tuple[float, ...]
    span: float  # from the first event to the last


def remember(run: RunDir, plan: Plan) -> None:
    """Keep what a run took, for the next forecast. Never raises; what goes wrong is told on standard error."""
    try:
        MeasureBook().add(measure_run(run, plan))
    except Exception as error:  # a finished training must not fail for its stopwatch
        warn(f"{run.path.name} could not be measured ({error!r})")


def measure_run(run: RunDir, plan: Plan) -> Measure | None:
    """What a run took: done, failed or interrupted. None with fewer than five steps after the warm-up.

    A step takes from the event before it to its own, so that loading data counts and drawing and saving do not. The first
    tenth of the steps (2 to 20) is warm-up; the others are cut into nine parts, and the median of the parts' means is
    taken: canvases of all sizes count, a single hold-up does not. Where a trainer was started more than once,
    its last time counts: before it the settings may have been others.
    """
    training = run.read_manifest().get("training") or {}
    events = _take_last(run.read_metrics())
    costs = _read_costs(events)
    warm_up = min(max(WARM_UP_STEPS[0], round(len(costs.steps) * WARM_UP)), WARM_UP_STEPS[1])
    steady = costs.steps[warm_up:]
    if len(steady) < LEAST_STEPS:
        return None
    seconds = settle(steady)
    outside = max(0.0, float(training.get("seconds") or 0.0) - costs.span)
    pictures = [total / count for total, count in costs.pictures]
    return Measure(
        setup=setup_of(plan),
        seconds_per_step=round(seconds, 5),
        seconds_before=round(outside + _find_rest(costs, warm_up, seconds), 2),
        seconds_per_picture=round(statistics.median(pictures), 4) if pictures else None,
        picture_steps=plan.sample.steps,
        picture_area=plan.sample.width * plan.sample.height,
        seconds_per_save=round(statistics.median(costs.saves), 3) if costs.saves else None,
        peak_memory_gib=_find_peak(events, training, plan),
        steps=len(steady),
        when=now(),
        run=run.path.name,
    )


def settle(seconds: Sequence[float]) -> float:
    """Seconds per step: the median of the means of nine parts of the steps, or of fewer steps their median."""
    parts = min(PARTS, len(seconds))
    cuts = [round(number * len(seconds) / parts) for number in range(parts + 1)]
    return statistics.median(statistics.fmean(seconds[start:end]) for start, end in pairwise(cuts))


def _take_last(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events of the last process of the trainer."""
    last: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("event") == "begin":
            last = []
        last.append(event)
    return last


def _read_costs(events: Sequence[Mapping[str, Any]]) -> _Costs:
    """Each event took the time since the one before it; a first step what it says itself, after which all is loaded."""
    steps: list[float] = []
    drawn: dict[int, tuple[float, int]] = {}
    saves: dict[int, float] = {}
    last: float | None = None
    for event in events:
        name, step, time = event.get("event"), event.get("step", 0), event.get("time")
        gap = max(0.0, time - last) if time is not None and last is not None else None
        if name == "step":
            said = event.get("seconds")
            took = said if gap is None or (not steps and said is not None) else gap
            steps.append(float(took or 0.0))
        elif name == "sample":
            seconds, count = drawn.get(step, (0.0, 0))
            drawn[step] = seconds + (gap or 0.0), count + 1
        elif name in {"save", "state"}:
            saves[step] = saves.get(step, 0.0) + (gap or 0.0)
        last = time if time is not None else last
    times = [event["time"] for event in events if event.get("time") is not None]
    return _Costs(
        steps=tuple(steps),
        pictures=tuple(drawn.values()),
        saves=tuple(saves.values()),
        span=max(0.0, times[-1] - times[0]) if times else 0.0,
    )


def _find_rest(costs: _Costs, warm_up: int, seconds: float) -> float:
    """Seconds of a process's life that are neither steps at their pace nor pictures nor saves."""
    drawing = sum(took for took, _ in costs.pictures)
    between = max(0.0, costs.span - sum(costs.steps) - drawing - sum(costs.saves))
    return between + max(0.0, sum(costs.steps[:warm_up]) - warm_up * seconds)


def _find_peak(events: Iterable[Mapping[str, Any]], training: Mapping[str, Any], plan: Plan) -> float | None:
    """GiB: of the device where it has its own memory, else of all processes (NVIDIA's shared memory: both, it is not in
    the processes' own).
    """
    device = max((event.get("memory") or 0 for event in events if event.get("event") == "step"), default=0)
    processes = training.get("peak_memory_bytes") or 0
    own = plan.device in {"cuda", "rocm"}
    peak = device + processes * plan.machine.unified if own else max(device, processes)
    return round(peak / GIB, 2) if peak else None
