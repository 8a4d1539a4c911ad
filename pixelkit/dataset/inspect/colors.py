"""The colours that a set has in common, and how far each sprite is from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixelkit.words.oklab import to_oklch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pixelkit.dataset.inspect.features import Features
    from pixelkit.evaluate.palette import Color

    Floats = NDArray[np.float64]

SHARED = 64  # colours of a set's palette
# OKLab distances times 100 are about CIEDE2000's: 1 is what an eye just sees.
APART = 4.0  # the set's colours keep at least so far from each other
KEEPS_TO = 6.0  # a colour so near to one of the set's is one of them
_CANDIDATES = 4096
_CHUNK = 8192


@dataclass(frozen=True, kw_only=True)
class SetColors:
    """`palette`: the set's main colours, the commonest first. `number`: different colours in all, of the 32 commonest of each
    sprite. For each sprite, in order: `kept`, the share of it that keeps to the palette; `distances`, its mean distance.
    """

    palette: tuple[Color, ...]
    number: int
    kept: Floats
    distances: Floats


def find_set_colors(features: Sequence[Features]) -> SetColors:
    """Each sprite counts alike, whatever its size. Only colours of two sprites and more are the set's, if it has any."""
    counts = [len(one.weights) for one in features]
    owner = np.repeat(np.arange(len(features)), counts)
    packed = np.frombuffer(b"".join(one.palette for one in features), dtype=np.uint8).reshape(-1, 3)
    weight = np.frombuffer(b"".join(one.weights for one in features), dtype=np.uint8) / 255
    colors, place, sprites = np.unique(packed, axis=0, return_inverse=True, return_counts=True)
    lab = _to_lab(colors)
    total = np.bincount(place.ravel(), weight, minlength=len(colors))
    shared = sprites >= 2
    chosen = _choose(lab, np.where(shared | (not shared.any()), total, 0.0))
    nearest = _find_distance(lab, lab[chosen])[place.ravel()]
    whole = np.maximum(np.bincount(owner, weight, minlength=len(features)), 1e-9)
    return SetColors(
        palette=tuple((int(red), int(green), int(blue)) for red, green, blue in colors[chosen]),
        number=len(colors),
        kept=np.bincount(owner, weight * (nearest <= KEEPS_TO), minlength=len(features)) / whole,
        distances=np.bincount(owner, weight * nearest, minlength=len(features)) / whole,
    )


def _choose(lab: Floats, weight: Floats) -> list[int]:
    """The commonest colours that are apart from those chosen before."""
    chosen: list[int] = []
    for place in np.argsort(-weight, kind="stable")[:_CANDIDATES]:
        if weight[place] > 0 and (not chosen or np.linalg.norm(lab[chosen] - lab[place], axis=1).min() >= APART):
            chosen.append(int(place))
            if len(chosen) == SHARED:
                break
    return chosen


def _find_distance(lab: Floats, palette: Floats) -> Floats:
    """To the nearest colour of the palette, (n,)."""
    if not len(palette):
        return np.zeros(len(lab))
    parts = [lab[start : start + _CHUNK] for start in range(0, len(lab), _CHUNK)]
    return np.concatenate([np.linalg.norm(part[:, None] - palette, axis=-1).min(axis=1) for part in parts])


def _to_lab(colors: NDArray[np.uint8]) -> Floats:
    """OKLab times 100, (n, 3)."""
    light, chroma, hue = np.moveaxis(to_oklch(colors), -1, 0)
    angle = np.radians(hue)
    return 100 * np.stack([light, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
