"""`pixelkit tune`: from a preset to an entry in the local profile."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pixelkit import __version__
from pixelkit.catalog import list_hardware
from pixelkit.errors import Interrupted
from pixelkit.hardware import choose_profile, detect_machine
from pixelkit.pipeline import latents_folder, prepare_images, require_trainer
from pixelkit.preset_file import load_preset
from pixelkit.ready import Choices, Ready, make_ready
from pixelkit.rundir import RunDir
from pixelkit.tune.probe import Trainings
from pixelkit.tune.search import STOPPED, Found, Reading, count_most, search
from pixelkit.tune.settings import Settings, Space, find_space, settings_of
from pixelkit.tuned import Optimizer, Place, Tuned, find_tuned, keep_tuned, place_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelkit.tune.remembering import Memory


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a search may take, and how many optimizer steps a probe has."""

    minutes: float = 30.0
    steps: int = 12


@dataclass(frozen=True, kw_only=True)
class Onlooker:
    """Who looks on. `on_begin` hears the plan's settings, the space and the most probes; `on_reading` each probe;
    `on_progress` steps done and steps at most.
    """

    on_begin: Callable[[Ready, Space, int], None] = lambda _ready, _space, _most: None
    on_prepared: Callable[[int, int], None] = lambda _done, _total: None
    on_progress: Callable[[int, int], None] = lambda _done, _most: None
    on_reading: Callable[[Settings, Reading], None] = lambda _settings, _reading: None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What came of it. `kept` is the entry that the next run goes by, None where nothing could be measured; `used` whether
    this preset goes by it: one that names its hardware takes that profile as it is.
    """

    ready: Ready
    space: Space
    found: Found
    kept: Tuned | None
    file: Path | None
    used: bool


def tune(preset: str, choices: Choices, limits: Limits, memory: Memory, onlooker: Onlooker) -> Tuning:
    """Search for the preset's fastest settings on this machine, and keep them.

    It starts from the hardware profile, without what an earlier search found. Raises PixelkitError where the preset
    cannot be trained, Interrupted where the user stopped before the first probe ended.
    """
    deadline = time.monotonic() + limits.minutes * 60
    ready, used = ready_untuned(preset, choices)
    require_trainer()
    space, start = find_space(ready.plan, ready.loaded), settings_of(ready.plan)
    most = count_most(space)
    onlooker.on_begin(ready, space, most)
    with tempfile.TemporaryDirectory(prefix="pixelkit-tune-") as folder:
        run = RunDir(path=Path(folder).resolve())
        try:
            prepared = prepare_images(ready.plan.dataset, run.dataset, onlooker.on_prepared)
        except KeyboardInterrupt:
            raise Interrupted(STOPPED) from None
        progress = _Progress(most=most, steps=limits.steps, onlooker=onlooker)
        bench = Trainings(
            ready=ready,
            run=run,
            latents=latents_folder(ready, prepared),
            steps=limits.steps,
            deadline=deadline,
            recall=memory.recall,
            record=memory.record,
            on_step=progress.step,
        )
        found = search(space, start, bench, progress.finish)
    if not found.rate(found.best):
        if found.ended == STOPPED:
            raise Interrupted("stopped before the first probe ended")
        return Tuning(ready=ready, space=space, found=found, kept=None, file=None, used=used)
    if most == 1:
        return Tuning(ready=ready, space=space, found=found, kept=None, file=None, used=used)
    tuned = describe_found(found, place_of_plan(ready))
    return Tuning(ready=ready, space=space, found=found, kept=tuned, file=keep_tuned(tuned), used=used)


def ready_untuned(preset: str, choices: Choices) -> tuple[Ready, bool]:
    """The preset made ready with its hardware profile as shipped, and whether a run of it would go by what was tuned."""
    overrides = [f"hardware={choices.hardware}"] if choices.hardware else []
    wanted = load_preset(preset, [*choices.overrides, *overrides]).preset.hardware
    profile, _ = choose_profile(wanted, detect_machine(), list_hardware())
    named = Choices(**{**vars(choices), "hardware": profile})
    return make_ready(preset, named), wanted == "auto"


def place_of_plan(ready: Ready) -> Place:
    """The key of a plan's entry."""
    plan = ready.plan
    return place_of(plan.machine, plan.base, method=plan.method, engine=plan.engine, resolution=plan.dataset.resolution)


def tuned_for(preset: str, choices: Choices) -> tuple[Place, Tuned | None]:
    """The place that a preset's entry has, and the entry."""
    place = place_of_plan(ready_untuned(preset, choices)[0])
    return place, find_tuned(place)


def describe_found(found: Found, place: Place) -> Tuned:
    """The entry: of the best settings those that were tried, or that had to change for it to train at all."""
    best, start = found.best, found.start

    def is_found(*names: str) -> bool:
        return names[0] in found.tried or any(getattr(best, name) != getattr(start, name) for name in names)

    optimizer = is_found("optimizer", "fused_optimizer")
    return Tuned(
        **place.model_dump(),
        at_batch=best.batch_size,
        batch_size=best.batch_size if is_found("batch_size") else None,
        gradient_checkpointing=best.gradient_checkpointing if is_found("gradient_checkpointing") else None,
        attention=best.attention if is_found("attention") else None,
        compile=best.compile if is_found("compile") else None,
        workers=best.workers if is_found("workers") else None,
        optimizer=cast("Optimizer", best.optimizer) if optimizer else None,
        fused_optimizer=best.fused_optimizer if optimizer else None,
        images_per_second=float(f"{found.rate(best):.4g}"),
        gain=round(found.gain, 3) if found.gain else None,
        when=datetime.now().astimezone().date().isoformat(),
        pixelkit=__version__,
    )


@dataclass(kw_only=True)
class _Progress:
    """Steps done of the steps at most, over all probes."""

    most: int
    steps: int
    onlooker: Onlooker
    finished: int = 0

    def step(self, done: int, _total: int) -> None:
        self.onlooker.on_progress(self.finished * self.steps + done, self.most * self.steps)

    def finish(self, settings: Settings, reading: Reading) -> None:
        self.finished += 1
        self.step(0, self.steps)
        self.onlooker.on_reading(settings, reading)
