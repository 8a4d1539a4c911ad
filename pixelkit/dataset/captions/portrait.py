"""Where the features of a 24x24 portrait lie, measured in its pixels: hair, eyes, nose, lips, jaw, collar, glasses.

The measure of the head and the order of the features are those of Bespoke Punks. x counts from the left, y from the top, both
from 0. Colours are compared in OKLab, in which a distance of 0.02 is just seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pixelkit.words.oklab import to_oklch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 24
MIDDLE = slice(6, 18)
"""The columns that a face stands in."""
SEEN, PLAIN = 0.04, 0.1
"""OKLab distances: two colours differ; two colours differ plainly."""
DARK = 0.32
"""OKLab lightness below which a pixel can be a line or a pupil."""

Point = tuple[int, int]
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Area:
    """A feature's columns and rows, both ends included."""

    x: Span
    y: Span


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """Left and right pupil, and the iris beside each."""

    pupils: tuple[Point, Point]
    irises: tuple[Point, Point]


class Portrait:
    """The pixels of one portrait, RGBA (24, 24, 4), and what is found in them; None where a feature is not found."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        if pixels.shape != (SIDE, SIDE, 4):
            raise ValueError(f"a portrait is (24, 24, 4), not {pixels.shape}")
        self.pixels = pixels
        light, chroma, hue = np.moveaxis(to_oklch(pixels[..., :3]), -1, 0)
        angle = np.radians(hue)
        self.lab = np.stack([light, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
        self.light = light

    @cached_property
    def backdrop(self) -> NDArray[np.bool_]:
        """Pixels (24, 24) of the background: transparent, or of a colour that the border above the shoulders has."""
        clear = self.pixels[..., 3] < 128
        if clear[0].mean() > 0.5:
            return clear
        packed = self.pixels[..., :3].astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
        border = np.concatenate([packed[0], packed[1:12, 0], packed[1:12, -1]])
        return np.isin(packed, border)

    @cached_property
    def skin(self) -> NDArray[np.float64]:
        """The face's commonest colour, OKLab."""
        face = self.lab[10:19, 8:17].reshape(-1, 3)[~self.backdrop[10:19, 8:17].ravel()]
        if not len(face):
            return np.asarray(self.lab[SIDE // 2, SIDE // 2])
        colors, counts = np.unique(face, axis=0, return_counts=True)
        weight = counts * (colors[:, 0] > DARK / 2)
        return np.asarray(colors[weight.argmax()] if weight.any() else colors[counts.argmax()])

    @cached_property
    def like_skin(self) -> NDArray[np.bool_]:
        """Pixels (24, 24) of the skin or of its shades: lighter or darker, of nearly the same tint."""
        shade = self.lab - self.skin
        return ~self.backdrop & (np.abs(shade[..., 0]) < 0.2) & (np.hypot(shade[..., 1], shade[..., 2]) < 0.045)

    @cached_property
    def eyes(self) -> Eyes | None:
        """Two dark pupils in a row, four to six apart, each with an iris of another colour on the same side."""
        best, found = 0.0, None
        for y in range(9, 16):
            for gap in (4, 5, 6):
                for x in range(6, 19 - gap):
                    for side in (1, -1):
                        score = self._rate_eyes(x, x + gap, y, side)
                        if score > best:
                            best = score
                            found = Eyes(pupils=((x, y), (x + gap, y)), irises=((x + side, y), (x + gap + side, y)))
        return found

    def _rate_eyes(self, left: int, right: int, y: int, side: int) -> float:
        pupils, irises = self.lab[y, [left, right]], self.lab[y, [left + side, right + side]]
        inner = left + 2 if side > 0 else right - 2  # the outer eye may touch the contour
        around = self.lab[y, [left - side, right - side, inner]]
        contrast = _gap(irises, pupils).min()
        if (
            pupils[:, 0].max() > min(DARK, self.skin[0] - 0.08)
            or _gap(pupils[0], pupils[1]) > SEEN
            or _gap(irises[0], irises[1]) > SEEN
            or contrast < SEEN
            or irises[:, 0].min() < pupils[:, 0].max()
            or _gap(irises, self.skin).min() < SEEN / 3
            or _gap(around, pupils[0]).min() < SEEN
        ):
            return 0.0
        return float(contrast + _gap(irises, self.skin).min() + self.like_skin[y - 1 : y + 3, left : right + 2].mean())

    @cached_property
    def glasses(self) -> Area | None:
        """A band across both eyes with skin above it: at least eight columns of what is not skin, bridge included."""
        foreign = ~self.like_skin & ~self.backdrop
        for y in range(10, 14):
            forehead = np.flatnonzero(self.like_skin[y - 2 : y, 5:19].any(axis=0)) + 5
            if len(forehead) < 4:
                continue
            for left, right in _runs(foreign[y], max(5, int(forehead[0]) - 1), min(19, int(forehead[-1]) + 2)):
                bottom = y
                while bottom < 15 and foreign[bottom + 1, left : right + 1].mean() >= 0.4:
                    bottom += 1
                if right - left >= 7 and left <= 10 and right >= 14 and 1 <= bottom - y <= 3:
                    return Area(x=(left, right), y=(y, bottom))
        return None

    @cached_property
    def eye_row(self) -> int | None:
        """The row of the pupils, or the last of the glasses."""
        if self.eyes:
            return self.eyes.pupils[0][1]
        return self.glasses.y[1] if self.glasses else None

    @cached_property
    def nose(self) -> Point | None:
        """The pixel between and below the eyes that is darkest against both of its neighbours."""
        if self.eye_row is None:
            return None
        columns = range(self.eyes.pupils[0][0] + 1, self.eyes.pupils[1][0] + 1) if self.eyes else range(9, 16)
        best, found = PLAIN, None
        for y in range(self.eye_row + 1, self.eye_row + 5):
            for x in columns:
                drop = float(self.light[y, [x - 1, x + 1]].min() - self.light[y, x])
                if drop > best + 0.02:
                    best, found = drop, (x, y)
        return found

    @cached_property
    def lips(self) -> Area | None:
        """A short row of pixels under the nose that is redder or darker than the skin at both its ends."""
        start = self.nose[1] if self.nose else self.eye_row
        if start is None:
            return None
        best, found = 0.0, None
        for y in range(start + 1, min(start + 5, 21)):
            for left, right in self._pieces(y):
                if self.nose and not left - 1 <= self.nose[0] <= right + 1:
                    continue
                inside, ends = self.lab[y, left : right + 1].mean(axis=0), self.lab[y, [left - 1, right + 1]]
                redder, darker = inside[1] - ends[:, 1].max(), ends[:, 0].min() - inside[0]
                if not -0.2 < darker < 0.45 or max(redder * 2, darker) < 0.03 or _gap(ends, inside).min() < SEEN:
                    continue
                score = float(3 * redder + darker / 2)
                if score > best:
                    best, found = score, Area(x=(left, right), y=(y, y))
        return self._grow(found) if found else None

    def _pieces(self, y: int) -> list[Span]:
        """Stretches of two to six pixels of a row in which each looks like the one before."""
        cuts = [x for x in range(7, 18) if _gap(self.lab[y, x], self.lab[y, x - 1]) >= 0.06]
        return [(a, b - 1) for a, b in pairwise(cuts) if 2 <= b - a <= 6]

    def _grow(self, lips: Area) -> Area:
        """The rows above and below whose pixels look like the lips."""
        (left, right), (top, bottom) = lips.x, lips.y
        color = self.lab[top, left : right + 1].mean(axis=0)

        def belongs(y: int) -> bool:
            return bool((_gap(self.lab[y, left : right + 1], color) < 0.08).mean() >= 0.5)

        while belongs(top - 1) and bottom - top < 2:
            top -= 1
        while bottom < 21 and belongs(bottom + 1) and bottom - top < 2:
            bottom += 1
        return Area(x=(left, right), y=(top, bottom))

    @cached_property
    def jaw(self) -> int | None:
        """The row of the line under the chin; without a line, the face's last row before something else begins."""
        if self.lips is None:
            return None
        left, right = self.lips.x[0], self.lips.x[1]
        for y in range(self.lips.y[1] + 2, SIDE - 1):
            row = slice(left, right + 2)
            if (self.light[y, row] < min(DARK, self.skin[0] - PLAIN)).sum() >= 2:
                return y
            if (~self.like_skin[y, row]).mean() > 0.5 and _gap(self.lab[y, row], self.lab[y - 1, row]).mean() > PLAIN:
                return y - 1
        return None

    @cached_property
    def collar(self) -> Area | None:
        """What is worn under the jaw: the rows from the first in which the cloth's colour stands to the last."""
        if self.jaw is None:
            return None
        cloth = ~self.like_skin & ~self.backdrop
        cloth[: self.jaw + 1] = False
        bright = cloth & (self.light >= DARK / 2)
        worn = bright if bright[:, MIDDLE].sum() >= 4 else cloth
        rows = np.flatnonzero(worn[:, MIDDLE].sum(axis=1) >= 2)
        if not len(rows):
            return None
        columns = np.flatnonzero(worn[rows[0] : rows[-1] + 1].any(axis=0))
        return Area(x=(int(columns[0]), int(columns[-1])), y=(int(rows[0]), int(rows[-1])))

    @cached_property
    def hair(self) -> NDArray[np.bool_] | None:
        """Pixels (24, 24) of what covers the head, a hat too: the colours above the brow, as far down as they hang together."""
        if self.eye_row is None:
            return None
        brow = (self.glasses.y[0] if self.glasses else self.eye_row) - 2
        cover = ~self.like_skin & ~self.backdrop
        top = cover.copy()
        top[brow:] = False
        if top.sum() < 6:
            return None
        palette = np.unique(self.lab[top], axis=0)
        cover &= _gap(self.lab[:, :, None], palette[None, None]).min(axis=-1) < SEEN
        line = (self.light < 0.08) & ~top  # the contour of the face, where hair is black
        line[(self.jaw or SIDE - 1) + 1 :] = False
        return _connected(top, cover & ~line)

    @cached_property
    def facing(self) -> str | None:
        """`right` where the irises stand right of the pupils, else `left`; behind glasses, the side to which these lean."""
        if self.eyes:
            return "right" if self.eyes.irises[0][0] > self.eyes.pupils[0][0] else "left"
        if not self.glasses:
            return None
        face = np.flatnonzero(self.like_skin[self.glasses.y[1] + 1])
        lean = (self.glasses.x[0] - face[0]) - (face[-1] - self.glasses.x[1]) if len(face) else 0
        return "right" if lean > 0 else "left" if lean < 0 else "forward"


def _gap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(one - other, axis=-1))


def _runs(row: NDArray[np.bool_], start: int, stop: int) -> list[Span]:
    """Stretches of True within [start, stop), both ends included."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row[start:stop], [False]]).astype(int)))
    return [(start + int(a), start + int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _connected(seeds: NDArray[np.bool_], area: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What of `area` hangs together with the seeds, corners included."""
    found = seeds & area
    while True:
        padded = np.pad(found, 1)
        spread = np.zeros_like(found)
        for down in range(3):
            for right in range(3):
                spread |= padded[down : down + SIDE, right : right + SIDE]
        spread &= area
        if (spread == found).all():
            return found
        found = spread
