"""A 32x32 canvas of parts: each pixel knows its material and how much light it gets; colours come last.

Shapes are drawn in local coordinates, x and y from -16 to 16 with y downwards, and the canvas places them (scale,
rotation, mirror, shift). Light always falls from the top left of the screen, however the shape is turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZE = 32

Mask = NDArray[np.bool_]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the shape stands: `angle` in degrees clockwise, `scale` across and down, `shift` in pixels."""

    angle: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: Point = (0.0, 0.0)
    mirror: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of sprite: what draws it, and the angles (degrees) it is seen at."""

    draw: Callable[[Canvas], None]
    angles: tuple[float, ...] = (0.0,)


class Canvas:
    """Parts drawn one over the other; `material` names each pixel's material (index into `materials`, -1 = empty)."""

    def __init__(self, rng: np.random.Generator, placement: Placement | None = None) -> None:
        self.rng = rng
        self.materials: list[str] = []
        self.material: NDArray[np.int64] = np.full((SIZE, SIZE), -1)
        self.light: NDArray[np.float64] = np.zeros((SIZE, SIZE))
        place = placement or Placement()
        rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
        x = columns - SIZE / 2 - place.shift[0]
        y = rows - SIZE / 2 - place.shift[1]
        if place.mirror:
            x = -x
        turn = np.deg2rad(place.angle)
        self.x: NDArray[np.float64] = (x * np.cos(turn) + y * np.sin(turn)) / place.scale[0]
        self.y: NDArray[np.float64] = (y * np.cos(turn) - x * np.sin(turn)) / place.scale[1]

    @property
    def filled(self) -> Mask:
        """The pixels that something has been drawn on."""
        mask: Mask = self.material >= 0
        return mask

    def between(self, low: float, high: float) -> float:
        """A number drawn evenly from low to high."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return bool(self.rng.random() < probability)

    def pick(self, *options: str) -> str:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    # Masks ---------------------------------------------------------------------------------------------------------

    def ellipse(self, x: float, y: float, rx: float, ry: float | None = None) -> Mask:
        """A filled ellipse; a circle where `ry` is left out."""
        ry = rx if ry is None else ry
        mask: Mask = ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2 <= 1.0
        return mask

    def box(self, left: float, top: float, right: float, bottom: float) -> Mask:
        """A filled rectangle."""
        mask: Mask = (self.x >= left) & (self.x <= right) & (self.y >= top) & (self.y <= bottom)
        return mask

    def hoop(self, x: float, y: float, rx: float, ry: float, width: float) -> Mask:
        """An ellipse with a hole; `width` is that of its rim."""
        return self.ellipse(x, y, rx, ry) & ~self.ellipse(x, y, max(rx - width, 0.1), max(ry - width, 0.1))

    def polygon(self, *points: Point) -> Mask:
        """A filled polygon, even-odd."""
        inside: Mask = np.zeros((SIZE, SIZE), bool)
        for (ax, ay), (bx, by) in zip(points, (*points[1:], points[0]), strict=True):
            if ay == by:
                continue
            crosses = (self.y >= min(ay, by)) & (self.y < max(ay, by))
            inside ^= crosses & (self.x < ax + (self.y - ay) * (bx - ax) / (by - ay))
        return inside

    def stroke(self, points: Sequence[Point], width: float) -> Mask:
        """A line through the points with round ends."""
        mask: Mask = np.zeros((SIZE, SIZE), bool)
        for (ax, ay), (bx, by) in pairwise(points):
            dx, dy = bx - ax, by - ay
            along = np.clip(((self.x - ax) * dx + (self.y - ay) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
            mask |= (self.x - ax - along * dx) ** 2 + (self.y - ay - along * dy) ** 2 <= (width / 2) ** 2
        return mask

    # Parts ---------------------------------------------------------------------------------------------------------

    def add(self, mask: Mask, material: str, light: str = "round", *, level: float = 0.0, shadow: bool = True) -> None:
        """Paints a part over what is there.

        `light`: "round" (a ball), "tube" (an upright cylinder), "bevel" (lit top-left edges, dark bottom-right ones),
        "fall" (light above, dark below) or "flat". `level` adds light, in fifths. A part throws a thin shadow.
        """
        if not mask.any():
            return
        if shadow:
            below = (_moved(mask, 1, 1) | _moved(mask, 1, 0)) & ~mask & self.filled
            self.light[below] -= 0.2
        if material not in self.materials:
            self.materials.append(material)
        self.material[mask] = self.materials.index(material)
        self.light[mask] = (_LIGHTS[light](mask) + level / 5)[mask]

    def shade(self, mask: Mask, level: float) -> None:
        """Lightens (or, below 0, darkens) what is drawn there, in fifths."""
        self.light[mask] += level / 5

    def erase(self, mask: Mask) -> None:
        """Makes the pixels empty again."""
        self.material[mask] = -1


def _moved(mask: Mask, down: int, right: int) -> Mask:
    moved = np.zeros_like(mask)
    moved[max(down, 0) : SIZE + min(down, 0), max(right, 0) : SIZE + min(right, 0)] = mask[
        max(-down, 0) : SIZE + min(-down, 0), max(-right, 0) : SIZE + min(-right, 0)
    ]
    return moved


def border(mask: Mask) -> Mask:
    """The pixels outside `mask` that touch it by a side."""
    return (_moved(mask, 1, 0) | _moved(mask, -1, 0) | _moved(mask, 0, 1) | _moved(mask, 0, -1)) & ~mask


def _span(mask: Mask) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each pixel's place in the mask's bounding box, -1 to 1 across and down."""
    rows, columns = np.nonzero(mask)
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    half_width = max((columns.max() - columns.min() + 1) / 2, 1.0)
    half_height = max((rows.max() - rows.min() + 1) / 2, 1.0)
    across = (x - (columns.max() + columns.min()) / 2) / half_width
    down = (y - (rows.max() + rows.min()) / 2) / half_height
    return across, down


def _round(mask: Mask) -> NDArray[np.float64]:
    across, down = _span(mask)
    from_light: NDArray[np.float64] = np.hypot(across + 0.40, down + 0.45)
    return 0.98 - 0.50 * from_light


def _tube(mask: Mask) -> NDArray[np.float64]:
    across, _ = _span(mask)
    lit: NDArray[np.float64] = 0.88 - 0.50 * np.abs(across + 0.35)
    return lit


def _bevel(mask: Mask) -> NDArray[np.float64]:
    lit = np.full(mask.shape, 0.62)
    lit[mask & ~(_moved(mask, 1, 0) & _moved(mask, 0, 1))] = 0.86
    lit[mask & ~(_moved(mask, -1, 0) & _moved(mask, 0, -1))] = 0.36
    return lit


def _fall(mask: Mask) -> NDArray[np.float64]:
    across, down = _span(mask)
    return 0.62 - 0.28 * down - 0.06 * across


def _flat(mask: Mask) -> NDArray[np.float64]:
    return np.full(mask.shape, 0.65)


_LIGHTS = {"round": _round, "tube": _tube, "bevel": _bevel, "fall": _fall, "flat": _flat}
