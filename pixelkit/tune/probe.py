"""A probe: a real training of the preset for a few steps, with other settings, of which only the pace and the memory are kept."""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psutil

from pixelkit.diagnosis import diagnose
from pixelkit.errors import PixelkitError
from pixelkit.launch import launch
from pixelkit.measures import images_per_step
from pixelkit.memory import GIB
from pixelkit.progress import Bar, Notice, Step
from pixelkit.ready import planned_data, render_configs
from pixelkit.tune.search import OUT_OF_MEMORY, STOPPED, Enough, Reading
from pixelkit.tune.settings import with_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pixelkit.launch import Exit, Order
    from pixelkit.plan import Plan
    from pixelkit.progress import Event
    from pixelkit.ready import Ready
    from pixelkit.rundir import RunDir
    from pixelkit.tune.settings import Settings

WARM_UP = 0.25  # share of the steps that caches, compilers and clocks need to settle
STALL = 3.0  # a step so many times as long as the usual one was held up by something else
SPARE_SHARE, SPARE_LEAST, SPARE_MOST = 0.05, 0.5 * GIB, 8 * GIB  # left to the system where memory is shared
QUIET = (
    "save_",
    "sample_",
    "log_",
    "logging_dir",
    "wandb_",
    "console_log_",
)  # sd-scripts' options that a probe goes without


@dataclass(kw_only=True)
class Trainings:
    """The bench of a real search: every reading is a short training in `run`, whose images are prepared.

    `recall` gives what earlier probes of a plan measured, newest first; `record` keeps a new one, as soon as it is there.
    `deadline` is in time.monotonic()'s seconds. `on_step` hears (steps of this probe done, of so many).
    """

    ready: Ready
    run: RunDir
    latents: Path
    steps: int
    deadline: float
    recall: Callable[[Plan], Sequence[Reading]]
    record: Callable[[Plan, Reading], None]
    on_step: Callable[[int, int], None] = lambda _done, _total: None
    _recalled: dict[Settings, Sequence[Reading]] = field(default_factory=dict)
    _slowest: float = 0.0
    _memory: dict[Settings, int] = field(default_factory=dict)

    def measure(self, settings: Settings, turn: int) -> Reading:
        """Recalled, or a training. Raises Enough where the time is up or the user stops it."""
        plan = plan_probe(self.ready.plan, settings, steps=self.steps)
        if settings not in self._recalled:
            self._recalled[settings] = self.recall(plan)
        known = self._recalled[settings]
        started = time.monotonic()
        if turn < len(known):
            reading = known[turn]
        elif needed := self._exceeds_memory(settings):
            reading = Reading(failed=OUT_OF_MEMORY, why=f"not tried: it would take about {needed / GIB:.1f} GiB")
        else:
            if started + self._slowest > self.deadline:
                raise Enough("the time is up")
            reading = self._train(plan)
            reading = replace(reading, took=time.monotonic() - started)
            self._slowest = max(self._slowest, reading.took)
            self.record(plan, reading)
        self._memory[settings] = max(reading.peak_memory, self._memory.get(settings, 0))
        return reading

    def _exceeds_memory(self, settings: Settings) -> float:
        """Bytes that this takes by the probes before it, where that is more than a machine with shared memory can give.

        There, running out may hang the machine in place of raising an error, so it must not be tried.
        """
        machine = self.ready.plan.machine
        if not machine.unified:
            return 0.0
        alike = [
            (other.batch_size, peak)
            for other, peak in self._memory.items()
            if peak
            and replace(other, batch_size=1, gradient_accumulation=1)
            == replace(settings, batch_size=1, gradient_accumulation=1)
        ]
        needed = extrapolate(alike, settings.batch_size)
        return needed if needed > machine.available_gib * GIB - spare_memory(machine.memory_gib * GIB) else 0.0

    def _train(self, plan: Plan) -> Reading:
        run, ready = self.run, replace(self.ready, plan=plan)
        for folder in (run.output, run.config):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (run.log, run.metrics):
            file.unlink(missing_ok=True)
        try:
            if problems := ready.engine.check(plan, ready.sd_scripts):
                return Reading(failed="refused", why=str(problems[0]))
            data = planned_data(ready, run, self.latents)
            render_configs(ready, run, data)
        except PixelkitError as error:
            return Reading(failed="refused", why=str(next(iter(error.problems), error.message)))
        watch = _Watch(steps=self.steps, deadline=self.deadline, unified=plan.machine.unified, on_step=self.on_step)
        command = ready.engine.command(plan, run, data)
        ended = launch(command, log=run.log, metrics=run.metrics, on_event=watch.see, orders=watch.order)
        return self._read(plan, ended, watch)

    def _read(self, plan: Plan, ended: Exit, watch: _Watch) -> Reading:
        events = [event for event in self.run.read_metrics() if event.get("event") == "step"]
        memory = max([ended.peak_memory * plan.machine.unified, *(event.get("memory") or 0 for event in events)])
        if watch.ordered == "memory":
            return Reading(failed=OUT_OF_MEMORY, peak_memory=memory, why="stopped before the machine's memory was full")
        if watch.done < self.steps:
            if watch.ordered == "time":
                raise Enough("the time is up")
            if ended.reason in {"stopped", "killed"}:
                raise Enough(STOPPED)
            diagnosis = diagnose(ended, ended.tail)
            return Reading(
                failed=diagnosis.kind, why=f"{diagnosis.what}; {diagnosis.why}" if diagnosis.why else diagnosis.what
            )
        seconds = pace(event.get("seconds") for event in events)
        return Reading(seconds_per_image=seconds / images_per_step(plan), peak_memory=memory)


@dataclass(kw_only=True)
class _Watch:
    """Looks on at one probe, and ends it when it has taken its steps: what it would save is of no use."""

    steps: int
    deadline: float
    unified: bool
    on_step: Callable[[int, int], None]
    done: int = 0
    ordered: str = ""

    def see(self, event: Event) -> None:
        """Count steps, and notice that the user wants to stop."""
        if isinstance(event, Step) or (isinstance(event, Bar) and event.name == "steps"):
            self.done = max(self.done, event.step)
            self.on_step(min(self.done, self.steps), self.steps)
        elif isinstance(event, Notice) and event.text.startswith(("saving, then stopping", "stopping")):
            self.ordered = self.ordered or "user"

    def order(self) -> Order | None:
        """Kill it when the steps are done, the time is up, the user stops, or the shared memory gets full."""
        if self.done >= self.steps:
            self.ordered = self.ordered or "done"
        elif time.monotonic() > self.deadline:
            self.ordered = self.ordered or "time"
        elif self.unified:
            memory = psutil.virtual_memory()
            if memory.available < spare_memory(memory.total):
                self.ordered = self.ordered or "memory"
        return "kill" if self.ordered else None


def plan_probe(plan: Plan, settings: Settings, *, steps: int) -> Plan:
    """The plan with the settings, for one step more than `steps` (in which it is ended), without pictures and checkpoints."""
    planned = with_settings(plan, settings)
    total = steps + 1
    train = replace(
        planned.train, steps=total, warmup_steps=min(plan.train.warmup_steps, total // 2), save_every_steps=0
    )
    return replace(
        planned,
        train=train,
        sample=replace(plan.sample, prompts=(), every_steps=0),
        network=replace(plan.network, start_from=None),
        base_loras=(),
        kohya={key: value for key, value in planned.kohya.items() if not key.startswith(QUIET)},
    )


def pace(seconds: Iterable[Any]) -> float:
    """Seconds per step: the mean of those after the warm-up, without the few that something else held up."""
    known = [float(value) for value in seconds if value]
    settled = known[min(len(known) - 1, max(1, round(len(known) * WARM_UP))) :]
    usual = statistics.median(settled)
    return statistics.fmean(value for value in settled if value <= STALL * usual)


def extrapolate(known: Sequence[tuple[int, int]], batch_size: int) -> float:
    """Bytes at a batch size on the line through the two nearest (batch size, bytes); 0 where fewer are known."""
    peaks: Mapping[int, int] = dict(known)
    nearest = sorted(peaks, key=lambda size: abs(size - batch_size))[:2]
    if len(nearest) < 2:
        return 0.0
    first, second = sorted(nearest)
    return peaks[first] + (batch_size - first) * (peaks[second] - peaks[first]) / (second - first)


def spare_memory(total: float) -> float:
    """Bytes of a machine's memory that a probe leaves to the rest of it."""
    return min(max(SPARE_SHARE * total, SPARE_LEAST), SPARE_MOST)
