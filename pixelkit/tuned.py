"""What `pixelkit tune` found out on this machine: a file beside the user's settings that the next run goes by."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pixelkit import paths
from pixelkit.errors import PresetError, StorageError
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pixelkit.catalog import Base, FamilySettings, HardwareProfile
    from pixelkit.hardware import Machine
    from pixelkit.preset import KohyaValue

Attention = Literal["sdpa", "xformers"]
Optimizer = Literal["adamw", "adamw8bit"]
# How sd-scripts is told: sdpa is what pixelkit's template says unless another is named.
ATTENTION_KEYS: Mapping[Attention, Mapping[str, KohyaValue]] = {
    "sdpa": {},
    "xformers": {"xformers": True, "sdpa": False},
}
HEADER = """\
# Measured on this machine by `pixelkit tune`. The next runs take these values in place of the hardware profile's, and a
# preset's own values win over both. An absent value was not tried. `pixelkit tune --forget` removes this file,
# `pixelkit tune PRESET --forget` one entry; `--hardware NAME` runs once without it.
"""


FACTS = {"at_batch", "images_per_second", "gain", "when", "pixelkit"}


class Place(BaseModel):
    """What an entry holds for. `base` is the base's name where its layout is not the family's usual one, else empty;
    `resolution` the preset's or the base's: canvases differ within it, the largest area does not.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    machine: str
    family: str
    method: str
    base: str = ""
    engine: str
    resolution: int


class Tuned(Place):
    """The fastest settings found for a place; None = not tried, because the preset said it or there was no choice.

    `at_batch`: the batch size that all else was measured with. `gain`: images per second as a multiple of the hardware
    profile's; None where that did not fit into the memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    at_batch: int = Field(ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool | None = None
    attention: Attention | None = None
    compile: bool | None = None
    workers: int | None = Field(default=None, ge=0)
    optimizer: Optimizer | None = None
    fused_optimizer: bool | None = None
    images_per_second: float
    gain: float | None = None
    when: str
    pixelkit: str

    @property
    def summary(self) -> str:
        """What it is for, and what was found, in one line."""
        values = self.model_dump(exclude_none=True, exclude=set(Place.model_fields) | FACTS)
        found = ", ".join(f"{key} = {str(value).lower()}" for key, value in values.items()) or "nothing better"
        base = f" on {self.base}" if self.base else ""
        return f"{self.family} {self.method}{base} at {self.resolution} px with {self.engine}: {found}"

    @property
    def place(self) -> Place:
        """The entry's key."""
        return Place.model_validate({name: getattr(self, name) for name in Place.model_fields})


def machine_name(machine: Machine) -> str:
    """A machine as entries name it."""
    cores = f", {machine.cores} cores" if machine.kind == "cpu" else ""
    return f"{machine.device}, {machine.memory_gib:.0f} GiB{cores}"


def place_of(machine: Machine, base: Base, *, method: str, engine: str, resolution: int) -> Place:
    """The key under which settings are kept."""
    return Place(
        machine=machine_name(machine),
        family=base.spec.family,
        method=method,
        base="" if base.spec.layout == "stock" else base.name,
        engine=engine,
        resolution=resolution,
    )


def tuned_file() -> Path:
    """`tuned.toml` beside the user's settings."""
    return paths.settings_file().with_name("tuned.toml")


def read_tuned() -> tuple[Tuned, ...]:
    """All entries; none where there is no file. Raises PresetError for a file that cannot be understood."""
    file = tuned_file()
    hint = "mend it, or remove it with `pixelkit tune --forget`"
    try:
        document = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        return ()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{file} is not valid TOML: {error}", hint=hint) from error
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from error
    entries = document.get("tuned", [])
    if not isinstance(entries, list) or document.keys() - {"tuned"}:
        raise PresetError(f"{file} holds something other than [[tuned]] tables", hint=hint)
    try:
        return tuple(Tuned.model_validate(entry) for entry in entries)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise PresetError(f"{file}: {faults}", hint=hint) from error


def find_tuned(place: Place) -> Tuned | None:
    """The entry for a place."""
    return next((entry for entry in read_tuned() if entry.place == place), None)


def keep_tuned(tuned: Tuned) -> Path:
    """Write an entry in place of the one that was there for its place; the file's path."""
    _write([*(entry for entry in read_tuned() if entry.place != tuned.place), tuned])
    return tuned_file()


def forget_tuned(place: Place | None = None) -> bool:
    """Remove one entry, or the whole file; whether there was anything."""
    if place is None:
        there = tuned_file().is_file()
        tuned_file().unlink(missing_ok=True)
        return there
    entries = read_tuned()
    kept = [entry for entry in entries if entry.place != place]
    if kept and len(kept) < len(entries):
        _write(kept)
    elif not kept:
        tuned_file().unlink(missing_ok=True)
    return len(kept) < len(entries)


def _write(entries: Sequence[Tuned]) -> None:
    import tomlkit  # noqa: PLC0415 - a twentieth of a second that only writing needs

    document = {"tuned": [entry.model_dump(exclude_none=True) for entry in entries]}
    write_atomically(tuned_file(), f"{HEADER}\n{tomlkit.dumps(document)}")


def apply_tuned(
    profile_name: str,
    profile: HardwareProfile,
    machine: Machine,
    base: Base,
    *,
    method: str,
    engine: str,
    resolution: int,
) -> tuple[HardwareProfile, str]:
    """The profile with what was measured here in place of what it says, and its name for the plan's sources.

    Where nothing was measured, both as they are. `resolution`: the preset's, else the base's.
    Raises PresetError for a file that cannot be understood.
    """
    family = base.spec.family
    if profile.kind != machine.kind or family not in profile.families:
        return profile, profile_name
    tuned = find_tuned(place_of(machine, base, method=method, engine=engine, resolution=resolution))
    if tuned is None:
        return profile, profile_name
    settings = _with_found(profile.families[family], tuned)
    found: dict[str, Any] = {"workers": tuned.workers, "optimizer": tuned.optimizer}
    found["fused_optimizer"] = tuned.fused_optimizer
    changes = {key: value for key, value in found.items() if value is not None}
    replaced = profile.model_copy(update={**changes, "families": {**profile.families, family: settings}})
    return replaced, f"{profile_name}, tuned here {tuned.when}"


def _with_found(settings: FamilySettings, tuned: Tuned) -> FamilySettings:
    """Checkpointing as found for the batch it was found with: off holds for smaller batches too, on for larger ones."""
    changes: dict[str, Any] = {}
    if tuned.batch_size is not None:
        changes["batch_size"] = tuned.batch_size
    if tuned.compile is not None:
        changes["compile"] = tuned.compile
    above = settings.checkpointing_above
    if tuned.gradient_checkpointing is False:
        changes["checkpointing_above"] = None if above is None else max(above, tuned.at_batch)
        changes["unchecked_needs_gib"] = None
    elif tuned.gradient_checkpointing:
        changes["checkpointing_above"] = tuned.at_batch - 1 if above is None else min(above, tuned.at_batch - 1)
    if tuned.attention is not None:
        others = {key: value for key, value in settings.kohya.items() if key not in {"xformers", "sdpa"}}
        changes["kohya"] = {**others, **ATTENTION_KEYS[tuned.attention]}
    return settings.model_copy(update=changes)
