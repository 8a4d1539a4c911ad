"""Every sprite of a source read once, and only its features kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixelkit.dataset.inspect.features import Features, measure_features
from pixelkit.errors import DataError, Problem
from pixelkit.pixelgrid.comb import detect_grid
from pixelkit.pixelgrid.repair import snap
from pixelkit.sources import Reading, Sprite, survey
from pixelkit.sources.grids import DAMAGE_FROM, find_grids
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A sprite and its features. Where its grid is damaged, `sprite.repair` has it, and the features are as repaired."""

    sprite: Sprite
    features: Features

    @property
    def name(self) -> str:
        """`mon/orc_wizard`."""
        return self.sprite.name

    @property
    def folder(self) -> str:
        """The first folder below the source; empty for what lies at its top."""
        return self.name.partition("/")[0] if "/" in self.name else ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a source holds: the sprites that can be read; `left_out`: what cannot, and why; `remarks` of the survey."""

    sprites: tuple[Measured, ...]
    left_out: tuple[Problem, ...]
    remarks: tuple[str, ...]


def measure_source(path: Path, reading: Reading, on_progress: Callable[[int, int], None] | None = None) -> Source:
    """Read a folder, a zip or a prepared set. Raises DataError only where there is no image that can be read."""
    as_it_is = replace(reading, grid=reading.grid or 1, repair=False, keep_going=True)
    found = survey(path, what="the source", reading=as_it_is)
    sprites, remarks, left_out = list(found.sprites), list(found.remarks), list(found.skipped)
    search = reading.grid is None and found.background is None  # a prepared set knows its grids
    if search:
        grids = find_grids(sprites, grid=None, repair=False)
        settled = {sprite.name: sprite for sprite in grids.sprites}
        sprites = [settled.get(sprite.name, sprite) for sprite in sprites]
        remarks += grids.remarks
    measured: list[Measured] = []
    for done, sprite in enumerate(sprites, start=1):
        try:
            measured.append(_measure(sprite, search=search))
        except DataError as error:
            left_out.append(Problem(where=sprite.name, what=error.message, hint=error.hint))
        if on_progress:
            on_progress(done, len(sprites))
    if not measured:
        raise DataError(f"{path}: none of {len(left_out)} images can be read", problems=left_out)
    return Source(sprites=tuple(measured), left_out=tuple(left_out), remarks=tuple(dict.fromkeys(remarks)))


def _measure(sprite: Sprite, *, search: bool) -> Measured:
    pixels = read_pixels(sprite)
    if (
        search
        and sprite.block == 1
        and min(sprite.width, sprite.height) >= DAMAGE_FROM
        and (grid := detect_grid(pixels))
    ):
        pixels = snap(pixels, grid)
        sprite = replace(sprite, repair=grid, width=pixels.shape[1], height=pixels.shape[0])
    return Measured(sprite=sprite, features=measure_features(pixels))
