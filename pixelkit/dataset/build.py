"""A set from an artist's folder: read, laid out for a base model, prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixelkit.catalog import find_spec
from pixelkit.errors import DataError, Problem
from pixelkit.plan.data import Layout, lay_out, remark_on
from pixelkit.sources import Reading, survey

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.catalog import BaseSpec
    from pixelkit.plan import PlannedSprite


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a set is to be made for: a base of the catalogue, and how sprites are read and laid out.

    `resolution` None is the base's.
    """

    base: str
    resolution: int | None = None
    scale: int | None = None
    caption: str = "{name}"
    trigger: str = ""
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Sprites with canvas and caption; what was left out; remarks; a background that the source already has."""

    spec: BaseSpec
    resolution: int
    sprites: tuple[PlannedSprite, ...]
    skipped: tuple[Problem, ...]
    remarks: tuple[str, ...]
    background: str | None


def plan_set(source: Path, wish: Wish) -> Planned:
    """Read a source and lay its sprites out. Raises DataError and CatalogError."""
    spec = find_spec(wish.base)
    found = survey(source, what="the source", reading=wish.reading)
    resolution = wish.resolution or spec.resolution
    layout = Layout(resolution=resolution, scale=wish.scale, caption=wish.caption, trigger=wish.trigger)
    return Planned(
        spec=spec,
        resolution=resolution,
        sprites=lay_out(found.sprites, spec, layout, what=f"{source}"),
        skipped=found.skipped,
        remarks=(*found.remarks, *remark_on(found.sprites)),
        background=found.background,
    )


def check_target(source: Path, target: Path) -> None:
    """Raises DataError where one lies in the other: sources are never written to."""
    mine, theirs = target.resolve(), source.resolve()
    if mine == theirs or mine.is_relative_to(theirs) or (theirs.is_dir() and theirs.is_relative_to(mine)):
        raise DataError(
            f"the output {target} and the source {source} lie in each other", hint="name a folder beside the source"
        )
