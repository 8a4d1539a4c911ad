"""What one sprite is like, in numbers and fingerprints: under 2 KB, whatever its size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Mask = NDArray[np.bool_]

THUMB = 16  # cells a side
PALETTE = 32  # colours kept, the commonest

# A blend is a colour that occurs once and lies on the way between two opposite neighbours that differ clearly.
_CONTRAST = 48
_BETWEEN = (0.15, 0.85)
_OFF_THE_WAY = 8
# The border ring of a picture: where so much is transparent, or of one colour, that is its background.
_CLEAR = 0.25
_PLAIN = 0.75

Background = Literal["transparent", "plain", "filled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One sprite at native size. Shares are of its visible pixels, 0 to 1.

    `colors`: how many are visible. `palette`: the commonest of them, 3 bytes each; `weights`: the share of each, as a byte.
    `density`: the visible share of all pixels. `translucent`, `levels`: pixels between clear and opaque, and how many
    opacities they have. `blends`: anti-aliased pixels. `orphans`: pixels without a neighbour, of eight, of their colour.
    `hidden`: colours under full transparency. `box`: width and height of what is visible.

    `exact`: equal for identical pictures; `mirror`: for mirrored ones, too; `drawing`: for recoloured ones, too. `thumb`:
    the visible box as 16 x 16 cells of premultiplied RGBA.
    """

    width: int
    height: int
    colors: int
    palette: bytes
    weights: bytes
    density: float
    translucent: float
    levels: int
    blends: float
    orphans: float
    hidden: int
    background: Background
    box: tuple[int, int]
    exact: bytes
    mirror: bytes
    drawing: bytes
    thumb: bytes


def measure_features(pixels: Pixels) -> Features:
    """(height, width, 4) uint8 RGBA at native size. A colour is RGB; opacity counts for fingerprints and edges only."""
    height, width = pixels.shape[:2]
    visible = pixels[..., 3] > 0
    number = max(int(visible.sum()), 1)
    packed = np.where(visible, _pack(pixels), -1)
    colors, place, counts = np.unique(packed, return_inverse=True, return_counts=True)
    frequency = np.where(visible, counts[place.reshape(packed.shape)], 0)
    if colors[0] == -1:
        colors, counts = colors[1:], counts[1:]
    common = np.argsort(-counts, kind="stable")[:PALETTE]
    between = (pixels[..., 3] > 0) & (pixels[..., 3] < 255)
    shown = np.where(visible[..., None], pixels, 0).astype(np.uint8)
    boxed = _crop(shown, visible)
    exact, mirror, drawing = _fingerprint(shown)
    return Features(
        width=width,
        height=height,
        colors=len(colors),
        palette=_unpack(colors[common]).tobytes(),
        weights=np.round(counts[common] / number * 255).astype(np.uint8).tobytes(),
        density=float(visible.mean()),
        translucent=int(between.sum()) / number,
        levels=len(np.unique(pixels[..., 3][between])),
        blends=int((find_blends(pixels) & (frequency == 1)).sum()) / number,
        orphans=int(_find_orphans(packed).sum()) / number,
        hidden=len(np.unique(_pack(pixels)[~visible])),
        background=_judge_background(packed),
        box=(boxed.shape[1], boxed.shape[0]),
        exact=exact,
        mirror=mirror,
        drawing=drawing,
        thumb=_shrink(boxed),
    )


def find_blends(pixels: Pixels) -> Mask:
    """(h, w, 4) -> (h, w): pixels whose colour lies between those of their left and right, or upper and lower, neighbours."""
    colors = pixels[..., :3].astype(np.int32)
    visible = pixels[..., 3] > 0
    found = np.zeros(visible.shape, dtype=bool)
    for axis in (0, 1):
        before, middle, after = (np.moveaxis(colors, axis, 0)[part] for part in _TRIPLE)
        seen = np.logical_and.reduce([np.moveaxis(visible, axis, 0)[part] for part in _TRIPLE])
        way = after - before
        along = ((middle - before) * way).sum(axis=-1) / np.maximum((way**2).sum(axis=-1), 1)
        off = np.abs(before + along[..., None] * way - middle).max(axis=-1, initial=0)
        blends = (np.abs(way).max(axis=-1, initial=0) >= _CONTRAST) & (off <= _OFF_THE_WAY)
        inner = np.moveaxis(found, axis, 0)[1:-1]
        inner |= seen & blends & (along > _BETWEEN[0]) & (along < _BETWEEN[1])
    return found


_TRIPLE = (slice(None, -2), slice(1, -1), slice(2, None))


def _find_orphans(packed: NDArray[np.int64]) -> Mask:
    height, width = packed.shape
    framed = np.pad(packed, 1, constant_values=-1)
    alone = packed >= 0
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            if (down, right) != (1, 1):
                alone &= framed[down : down + height, right : right + width] != packed
    return alone


def _judge_background(packed: NDArray[np.int64]) -> Background:
    ring = np.concatenate([packed[0], packed[-1], packed[1:-1, 0], packed[1:-1, -1]])
    if (ring < 0).mean() >= _CLEAR:
        return "transparent"
    counts = np.unique(ring[ring >= 0], return_counts=True)[1]
    return "plain" if counts.max() >= _PLAIN * len(ring) else "filled"


def _crop(pixels: Pixels, visible: Mask) -> Pixels:
    """To the visible box; a picture without a visible pixel stays as it is."""
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else pixels


def _shrink(pixels: Pixels) -> bytes:
    premultiplied = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGBa")
    return premultiplied.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes()


def _fingerprint(shown: Pixels) -> tuple[bytes, bytes, bytes]:
    """Digests: as it is, whichever way it faces, and whatever its colours are as well."""
    packed = np.ascontiguousarray(shown).view(np.uint32)[..., 0]
    turned = packed[:, ::-1]
    exact = _digest(packed)
    return exact, min(exact, _digest(turned)), min(_digest(_number_colors(packed)), _digest(_number_colors(turned)))


def _number_colors(packed: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Each colour by the order of its first appearance, from 1; 0 is transparent."""
    values, first, place = np.unique(packed, return_index=True, return_inverse=True)
    first = np.where(values == 0, -1, first)
    rank = np.argsort(np.argsort(first)) + int(values[0] != 0)
    return rank[place.reshape(packed.shape)].astype(np.uint32)


def _digest(values: NDArray[np.uint32]) -> bytes:
    size = np.array(values.shape, dtype=np.uint32).tobytes()
    return hashlib.blake2b(size + np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _pack(pixels: Pixels) -> NDArray[np.int64]:
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return (red << 16) | (green << 8) | blue


def _unpack(colors: NDArray[np.int64]) -> Pixels:
    return np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=-1).astype(np.uint8)
