"""Plans on machines that nobody has, and measures that nobody took."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.catalog import find_base, list_hardware
from pixelkit.hardware import Machine
from pixelkit.measures import Measure, setup_of
from pixelkit.plan import resolve
from pixelkit.preset_file import load_preset
from pixelkit.sources import Sprite, Survey

if TYPE_CHECKING:
    from pixelkit.measures import Setup
    from pixelkit.plan import Plan


def make_plan(
    name: str = "quickstart", *set_to: str, device: str = "Made CPU", profile: str = "cpu", sprites: int = 40
) -> Plan:
    """The plan of a shipped preset for so many sprites of 32 x 32 pixels, on a machine of that name."""
    loaded, hardware = load_preset(name, list(set_to)), list_hardware()[profile]
    gib = hardware.memory_gib or 16.0
    machine = Machine(
        kind=hardware.kind,
        device=device,
        memory_gib=gib,
        available_gib=gib,
        capability=(9, 0),
        unified=hardware.unified,
        cores=2,
    )
    base = find_base(loaded.preset.base, loaded.preset.family, folder=loaded.file.parent, models=None)
    found = [
        Sprite(path=Path(f"s{number}.png"), name=f"s{number}.png", width=32, height=32, caption="a sprite")
        for number in range(sprites)
    ]
    engine = "diffusers" if loaded.preset.base == "pixelkit-tiny" else "kohya"
    return resolve(loaded, base, profile, hardware, machine, engine=engine, survey=Survey(sprites=tuple(found)))


@cache
def _quickstart() -> Setup:
    return setup_of(make_plan())


def make_setup(**changes: Any) -> Setup:
    """The quickstart preset's setup, changed."""
    return replace(_quickstart(), **changes)


def make_measure(seconds: float | None = 0.5, *, setup: Setup | None = None, **fields: Any) -> Measure:
    """A measure of the quickstart preset, or of another setup."""
    known: dict[str, Any] = {"steps": 36, "when": "2026-11-20T12:00:00+00:00", "run": "a-run", **fields}
    return Measure(setup=setup or make_setup(), seconds_per_step=seconds, **known)
