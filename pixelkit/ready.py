"""Before a run: preset loaded, base and machine looked up, plan resolved, checked, rehearsed. Leaves nothing, loads little."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.catalog import find_base, list_hardware
from pixelkit.engines.adapter import EngineData, Subset
from pixelkit.engines.choice import ENGINES, choose_engine
from pixelkit.errors import DataError, EngineError, PixelkitError, RenderError
from pixelkit.hardware import choose_profile, detect_machine
from pixelkit.paths import EngineLocation, locate_sd_scripts, read_settings, user_path
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import LoadedPreset, load_preset, shipped_presets
from pixelkit.render import Rendered, render
from pixelkit.rundir import RunDir
from pixelkit.sources import Reading, survey
from pixelkit.sources.prepared import CLASS, subset_folder
from pixelkit.sources.sheets import parse_cells
from pixelkit.start import plan_start
from pixelkit.track import check_tracking
from pixelkit.tuned import apply_tuned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixelkit.engines.adapter import Engine
    from pixelkit.preset import Dataset


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line adds to a preset."""

    overrides: tuple[str, ...] = ()
    hardware: str | None = None
    engine: str | None = None
    sd_scripts: Path | None = None
    runs: Path | None = None
    templates: Path | None = None
    retry: bool = True


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A plan, and the engine that will carry it out; what make_ready returns has passed every check."""

    loaded: LoadedPreset
    plan: Plan
    engine: Engine
    location: EngineLocation | None
    choices: Choices = field(default_factory=Choices)

    @property
    def sd_scripts(self) -> Path | None:
        """The checkout's folder, where there is one."""
        return self.location.path if self.location else None


def make_ready(preset: str, choices: Choices) -> Ready:
    """Steps 1 to 4: load, look up, resolve, check; 7 and 8 are rehearsed. Leaves nothing behind."""
    ready = make_plan(preset, choices)
    if problems := [*check_tracking(ready.loaded), *ready.engine.check(ready.plan, ready.sd_scripts)]:
        raise EngineError(
            f"{ready.loaded.file.name}: {len(problems)} problem{'s'[: len(problems) > 1]} before launch",
            problems=problems,
        )
    rehearse(ready)
    return ready


def make_plan(preset: str, choices: Choices, *, elsewhere: bool = False) -> Ready:
    """Steps 1 to 3: load, look up, resolve. `elsewhere`: it will not run here, so the engine need not be here."""
    overrides = [*choices.overrides]
    overrides += [f"hardware={json.dumps(choices.hardware)}"] if choices.hardware else []
    overrides += [f"engine={json.dumps(choices.engine)}"] if choices.engine else []
    loaded = absorb_kohya(load_preset(preset, overrides))
    wanted = loaded.preset
    models = read_settings().get("models")
    with _written_at(loaded, "base"):
        base = find_base(
            wanted.base,
            wanted.family,
            folder=loaded.origin("base").folder,
            models=user_path(models) if models else None,
        )
    location = locate_sd_scripts(choices.sd_scripts)
    nowhere = EngineLocation(path=Path(), named_by="") if elsewhere else None
    with _written_at(loaded, "engine"):
        engine_name = choose_engine(wanted.engine, base, location or nowhere)
    machine = detect_machine()
    profiles = list_hardware()
    with _written_at(loaded, "hardware"):
        profile_name, _ = choose_profile(wanted.hardware, machine, profiles)
    profile, shown = profiles[profile_name], profile_name
    if wanted.hardware == "auto":  # a profile that is named is taken as it is
        profile, shown = apply_tuned(
            profile_name,
            profile,
            machine,
            base,
            method=wanted.method,
            engine=engine_name,
            resolution=wanted.dataset.resolution or base.spec.resolution,
        )
    folders = _find_folders(loaded)
    reading = read_how(wanted.dataset)
    found = {
        key: survey(folder, what=f"{loaded.where('dataset', key)} {key}", reading=reading)
        for key, folder in folders.items()
    }
    plan = resolve(
        loaded,
        base,
        profile_name,
        profile,
        machine,
        engine=engine_name,
        survey=found["path"],
        class_survey=found.get("class_path"),
        shown_profile=shown,
    )
    return Ready(loaded=loaded, plan=plan, engine=ENGINES[engine_name], location=location, choices=choices)


def read_how(dataset: Dataset) -> Reading:
    """How a preset wants its sources to be read."""
    sheet = parse_cells(dataset.sheet) if dataset.sheet else None
    return Reading(sheet=sheet, grid=dataset.grid, repair=dataset.repair)


def _find_folders(loaded: LoadedPreset) -> dict[str, Path]:
    """The sprites' folder and, where there is one, that of the class images. Raises DataError where they cannot be meant."""
    written = {"path": loaded.preset.dataset.path, "class_path": loaded.preset.dataset.class_path}
    folders = {key: loaded.resolve_path(value, "dataset", key) for key, value in written.items() if value}
    for key, folder in folders.items():
        file = loaded.origin("dataset", key).file
        if file and file in shipped_presets().values() and not folder.is_dir():
            raise DataError(
                f"{loaded.where('dataset', key)} {key}: the preset {file.stem} comes without sprites",
                hint=f"`pixelkit presets copy {file.stem} my.toml`, and name your folder there",
            )
    path, class_path = folders["path"], folders.get("class_path")
    if class_path and (path.is_relative_to(class_path) or class_path.is_relative_to(path)):
        raise DataError(
            f"{loaded.where('dataset', 'class_path')} class_path = {class_path}: one of path and class_path lies in the other",
            hint="put the class images into a folder of their own",
        )
    return folders


def rehearse(ready: Ready) -> None:
    """Render and verify into a folder that is then removed, so that nothing begins that would fail at it.

    Raises RenderError.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(path=Path(folder))
        render_configs(ready, run, planned_data(ready, run))


def render_configs(ready: Ready, run: RunDir, data: EngineData) -> Rendered:
    """Steps 7 and 8: render the engine's files and read them back. Raises RenderError with every finding."""
    contexts = ready.engine.context(ready.plan, run, data)
    rendered = render(ready.plan.engine, contexts, run.config, templates=ready.choices.templates)
    if problems := ready.engine.verify(ready.plan, rendered.files):
        named = [replace(problem, where=problem.where.replace(f"{run.config}{os.sep}", "")) for problem in problems]
        raise RenderError("what was rendered is not what the trainer understands", problems=named)
    return rendered


def planned_data(ready: Ready, run: RunDir, latents: Path | None = None) -> EngineData:
    """Where all that the engine reads lies, or will lie."""
    dataset = ready.plan.dataset
    start = plan_start(ready.plan, run, runs_folder(ready.choices))
    repeats = sorted({sprite.repeats for sprite in dataset.sprites})
    return EngineData(
        root=run.dataset,
        images=tuple(Subset(folder=run.dataset / subset_folder(number, repeats), repeats=number) for number in repeats),
        class_images=run.dataset / CLASS / subset_folder(1, {1}) if dataset.class_sprites else None,
        latents=latents or run.path / "latents",
        sd_scripts=ready.sd_scripts,
        base=start.base,
        weights=start.weights,
    )


@contextmanager
def _written_at(loaded: LoadedPreset, key: str) -> Iterator[None]:
    """Put in front of an error where the preset says what it is about."""
    try:
        yield
    except PixelkitError as error:
        if loaded.is_written(key):
            error.message = f"{loaded.where(key)} {error.message}"
        raise


def runs_folder(choices: Choices) -> Path:
    """--runs, else the user's setting, else ./runs."""
    return choices.runs or user_path(read_settings().get("runs", "runs"))
