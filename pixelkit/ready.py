"""Before a run: preset loaded, base and machine looked up, plan resolved and checked. Writes nothing, loads little."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.catalog import find_base, list_hardware
from pixelkit.engines.choice import ENGINES, choose_engine
from pixelkit.errors import EngineError
from pixelkit.hardware import choose_profile, detect_machine
from pixelkit.paths import EngineLocation, locate_sd_scripts, read_settings
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import LoadedPreset, load_preset
from pixelkit.survey import survey_folder

if TYPE_CHECKING:
    from pixelkit.engines.adapter import Engine


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line adds to a preset."""

    overrides: tuple[str, ...] = ()
    hardware: str | None = None
    engine: str | None = None
    sd_scripts: Path | None = None
    runs: Path | None = None
    templates: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A plan that has passed every check, and the engine that will carry it out."""

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
    """Steps 1 to 4: load, look up, resolve, check. Writes nothing."""
    overrides = [*choices.overrides]
    overrides += [f"hardware={json.dumps(choices.hardware)}"] if choices.hardware else []
    overrides += [f"engine={json.dumps(choices.engine)}"] if choices.engine else []
    loaded = absorb_kohya(load_preset(preset, overrides))
    wanted = loaded.preset
    models = read_settings().get("models")
    base = find_base(
        wanted.base, wanted.family, folder=loaded.origin("base").folder, models=Path(models) if models else None
    )
    location = locate_sd_scripts(choices.sd_scripts)
    engine_name = choose_engine(wanted.engine, base, location)
    machine = detect_machine()
    profiles = list_hardware()
    profile_name, _ = choose_profile(wanted.hardware, machine, profiles)
    sprites = survey_folder(
        loaded.resolve_path(wanted.dataset.path, "dataset", "path"), what=loaded.where("dataset", "path") + " path"
    )
    class_path = wanted.dataset.class_path
    class_sprites = (
        survey_folder(
            loaded.resolve_path(class_path, "dataset", "class_path"),
            what=loaded.where("dataset", "class_path") + " class_path",
        )
        if class_path
        else ()
    )
    plan = resolve(
        loaded,
        base,
        profile_name,
        profiles[profile_name],
        machine,
        engine=engine_name,
        sprites=sprites,
        class_sprites=class_sprites,
    )
    engine = ENGINES[engine_name]
    if problems := engine.check(plan, location.path if location else None):
        raise EngineError(
            f"{loaded.file.name}: {len(problems)} problem{'s'[: len(problems) > 1]} before launch", problems=problems
        )
    return Ready(loaded=loaded, plan=plan, engine=engine, location=location, choices=choices)


def runs_folder(choices: Choices) -> Path:
    """--runs, else the user's setting, else ./runs."""
    return choices.runs or Path(read_settings().get("runs", "runs")).expanduser()
