"""One sprite: where its pixels lie, at which size, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.pixelgrid import Grid

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """A picture, a frame of an animation, or a region of a sheet.

    `path` may lead into a zip (`set.zip/hero.png`). `name` is unique below its source: folders, file and part without
    suffix (`mon/orc_wizard`, `hero/walk#3`). `width`, `height`: native size in sprite pixels. `box`: left, top, right,
    bottom in the file. `block`: every sprite pixel is an exact block of so many pixels there. `repair`: the grid that
    damaged art is snapped to. `repeats`: what a kohya folder `10_hero` asks for. `turned`: an atlas holds the region turned
    by 90 degrees clockwise. `canvas`: an atlas trimmed the region; left, top in, width and height of the untrimmed picture.
    `lossy`: the file's compression has changed the pixels.
    """

    path: Path
    name: str
    width: int
    height: int
    caption: str | None = None
    frame: int = 0
    box: Box | None = None
    block: int = 1
    repair: Grid | None = None
    repeats: int | None = None
    turned: bool = False
    canvas: Box | None = None
    lossy: bool = False
