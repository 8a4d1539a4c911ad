"""What is known of a sprite: kind, category and direction from its name and folders, colours and background from its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from pixelkit.dataset.captions.words import describe_folders, describe_name
from pixelkit.dataset.main_colors import name_colors
from pixelkit.sources.pixels import read_pixels
from pixelkit.words.color_names import name_color
from pixelkit.words.directions import DIRECTIONS, find_direction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.sources.catsith import Drawing
    from pixelkit.sources.sprite import Sprite

CLEAR_BORDER, ONE_COLOR_BORDER = 0.5, 0.75
"""Shares of the border's pixels from which on a background is said to be transparent, or of one colour."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """`category`: what the folders say, the nearest first: `weapon, item`. `direction`: 0 up, then clockwise to 7 up-left.

    `colors`: one or two words, the larger area first. `background`: `transparent`, a colour, or empty where it is none.
    """

    kind: str = ""
    category: str = ""
    direction: int | None = None
    colors: tuple[str, ...] = ()
    background: str = ""


def facts_of(sprite: Sprite, drawing: Drawing | None = None) -> Facts:
    """Everything that a sprite's name, folders and pixels say; of an entity in CatSith's metadata.json, what stands there.

    Raises DataError for an image that cannot be read.
    """
    pixels = read_pixels(sprite)
    if drawing:
        return Facts(
            kind=drawing.entity.kind.replace("_", " "),
            category=drawing.entity.category.replace("_", " "),
            direction=drawing.direction,
            colors=name_colors(pixels),
            background=name_background(pixels),
        )
    name, variant, _ = sprite.name.partition("+")
    direction = find_direction(name.rsplit("/", 1)[-1])
    kind = describe_name(name)
    folders = describe_folders(name)
    if direction is not None:
        kind = _without_direction(kind) or (folders.pop(0) if folders else "")
    return Facts(
        kind=kind,
        category=", ".join(folders),
        direction=None if variant else direction,  # a prepared set's variants may be mirrored
        colors=name_colors(pixels),
        background=name_background(pixels),
    )


def write_facts(facts: Facts) -> str:
    """`orc wizard, monster, facing left, red and black, transparent background`: what is not known is left out."""
    parts = (
        facts.kind,
        facts.category,
        "" if facts.direction is None else f"facing {DIRECTIONS[facts.direction]}",
        " and ".join(facts.colors),
        f"{facts.background} background" if facts.background else "",
    )
    return ", ".join(part for part in parts if part)


def name_background(pixels: NDArray[np.uint8]) -> str:
    """What lies behind a sprite, RGBA (h, w, 4), by its border: `transparent`, a colour's name, or empty."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    if (border[:, 3] < 128).mean() >= CLEAR_BORDER:
        return "transparent"
    colors, counts = np.unique(border[:, :3], axis=0, return_counts=True)
    return name_color(colors[counts.argmax()]) if counts.max() >= ONE_COLOR_BORDER * len(border) else ""


def _without_direction(text: str) -> str:
    """The words less the fewest neighbouring ones that say where it faces: `goblin walk up left` -> `goblin walk`."""
    words = text.split()
    for start, end in sorted(combinations(range(len(words) + 1), 2), key=lambda span: (span[1] - span[0], -span[0])):
        rest = [*words[:start], *words[end:]]
        if find_direction("_".join(rest)) is None:
            return " ".join(rest)
    return ""
