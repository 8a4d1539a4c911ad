"""Sprites that show the same: identical, mirrored, recoloured, nearly the same.

Each kind is looked for among what the kinds before it have left, one sprite for each group: a recolour of ten identical
sprites is one more drawing, not ten pairs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pixelkit.dataset.inspect.features import THUMB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pixelkit.dataset.inspect.features import Features

Sameness = Literal["identical", "mirrored", "recoloured", "near"]
Thumbs = NDArray[np.uint8]

# Measured on pairs of crawl tiles: up to an eighth they are one drawing with a small change; from a sixth on there are
# more and more that an artist would call two.
NEAR = 1 / 8
LARGER_BOX = 1.2  # visible boxes that differ by more are no copies

# When a cell differs: by so much opacity, or by half the spread of the picture's brightness (dark floors differ in little).
_OPACITY = 40
_SPREAD = 0.5
_COLOR = (6.0, 40.0)

# The lookup: hashes of 120 bits, sampled 12 times. Two sprites are compared if 20 sampled bits agree and no more than
# WINDOW sprites of those bits lie between them in brightness. Of 272 near pairs that comparing all with all finds among
# 3,120 crawl tiles, 271 agree in some sample.
_SAMPLES = 12
_BITS = 20
_WINDOW = 24
_STEP = 4  # of brightness from one cell to the next
_CHUNK = 2048
# Compared first: every sixth cell, of which up to three times as many may differ. No near pair of crawl tiles is lost by it.
_SPARSE = (slice(None, None, 2), slice(1, None, 3))
_ROUGHLY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Places of sprites that show the same, two at least; the first stands for the others. `difference`: of nearly equal
    ones, the largest share of cells in which one differs from the first.
    """

    kind: Sameness
    members: tuple[int, ...]
    difference: float = 0.0


def find_groups(features: Sequence[Features]) -> tuple[Group, ...]:
    """All groups, identical ones first, then by size. What shows nothing at all only counts as identical."""
    kinds: tuple[tuple[Sameness, Callable[[Features], bytes]], ...] = (
        ("identical", lambda one: one.exact),
        ("mirrored", lambda one: one.mirror),
        ("recoloured", lambda one: one.drawing),
    )
    left = list(range(len(features)))
    groups: list[Group] = []
    for kind, fingerprint in kinds:
        same: dict[bytes, list[int]] = defaultdict(list)
        for place in left:
            same[fingerprint(features[place])].append(place)
        groups += _by_size(Group(kind=kind, members=tuple(each)) for each in same.values() if len(each) > 1)
        left = [each[0] for each in same.values()]
    shown = [place for place in left if features[place].colors]
    groups += _by_size(_find_near(features, shown))
    return tuple(groups)


def count_drawings(number: int, groups: Iterable[Group]) -> int:
    """How many of so many sprites show something of their own."""
    return number - sum(len(group.members) - 1 for group in groups)


def compare(first: Thumbs, second: Thumbs) -> NDArray[np.float64]:
    """The share of visible cells that differ: (n, 16, 16, 4) against (n, 16, 16, 4) thumbs, 0 to 1."""
    return _compare(first, second, np.maximum(_measure_spread(first), _measure_spread(second)))


def hash_thumbs(thumbs: Thumbs) -> NDArray[np.bool_]:
    """(n, 16, 16, 4) -> (n, 120): where it grows brighter from left to right, and the silhouette, in 8 x 8 cells."""
    number, half = len(thumbs), THUMB // 2
    cells = thumbs.reshape(number, half, 2, half, 2, 4).mean(axis=(2, 4), dtype=np.float32)
    brighter = np.diff(_brightness(cells), axis=2) > _STEP
    return np.concatenate([brighter.reshape(number, -1), (cells[..., 3] > 128).reshape(number, -1)], axis=1)


def _find_near(features: Sequence[Features], places: Sequence[int]) -> list[Group]:
    """Groups around a leader that each member is near to: chains do not glue what is not alike."""
    if len(places) < 2:
        return []
    thumbs = np.frombuffer(b"".join(features[place].thumb for place in places), dtype=np.uint8)
    thumbs = thumbs.reshape(len(places), THUMB, THUMB, 4)
    boxes = np.array([features[place].box for place in places], dtype=np.float64)
    chunks = range(0, len(thumbs), _CHUNK)
    spread = np.concatenate([_measure_spread(thumbs[start : start + _CHUNK]) for start in chunks])
    sparse = np.ascontiguousarray(thumbs[:, _SPARSE[0], _SPARSE[1]])
    near: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for one, other in _propose_pairs(thumbs):
        alike = (np.maximum(boxes[one], boxes[other]) <= LARGER_BOX * np.minimum(boxes[one], boxes[other])).all(axis=1)
        first, second = one[alike], other[alike]
        alike = _compare_in_chunks(sparse, first, second, spread) <= _ROUGHLY * NEAR
        first, second = first[alike], second[alike]
        difference = _compare_in_chunks(thumbs, first, second, spread)
        for a, b, apart in zip(first.tolist(), second.tolist(), difference.tolist(), strict=True):
            if apart <= NEAR:
                near[a][b] = near[b][a] = apart
    taken: set[int] = set()
    groups = []
    for leader in sorted(near, key=lambda each: (-len(near[each]), each)):
        if leader not in taken:
            members = [leader, *sorted(each for each in near[leader] if each not in taken)]
            if len(members) > 1:
                taken.update(members)
                farthest = max(near[leader][each] for each in members[1:])
                groups.append(Group(kind="near", members=tuple(places[each] for each in members), difference=farthest))
    return groups


def _propose_pairs(thumbs: Thumbs) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs that may be near, some more than once; at most 12 times 24 for each sprite, however many there are."""
    bits = hash_thumbs(thumbs)
    light = np.concatenate(
        [_brightness(thumbs[at : at + _CHUNK]).mean(axis=(1, 2)) for at in range(0, len(thumbs), _CHUNK)]
    )
    chance = np.random.default_rng(0)
    for _ in range(_SAMPLES):
        sampled = bits[:, chance.choice(bits.shape[1], _BITS, replace=False)]
        keys = sampled @ (1 << np.arange(_BITS, dtype=np.int64))
        order = np.lexsort((light, keys))
        for apart in range(1, min(_WINDOW, len(order) - 1) + 1):
            first, second = order[:-apart], order[apart:]
            agree = keys[first] == keys[second]
            if not agree.any():
                break
            yield first[agree], second[agree]


def _compare_in_chunks(
    cells: Thumbs, first: NDArray[np.int64], second: NDArray[np.int64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    parts = [(first[start : start + _CHUNK], second[start : start + _CHUNK]) for start in range(0, len(first), _CHUNK)]
    return np.concatenate(
        [np.zeros(0), *(_compare(cells[a], cells[b], np.maximum(spread[a], spread[b])) for a, b in parts)]
    )


def _compare(first: Thumbs, second: Thumbs, spread: NDArray[np.float64]) -> NDArray[np.float64]:
    seen = (first[..., 3] > 0) | (second[..., 3] > 0)
    tolerance = np.clip(_SPREAD * spread, *_COLOR).astype(np.int16)[:, None, None]
    distance = np.abs(first.astype(np.int16) - second)
    differs = (distance[..., :3].max(axis=-1) > tolerance) | (distance[..., 3] > _OPACITY)
    return np.asarray((differs & seen).sum(axis=(1, 2)) / np.maximum(seen.sum(axis=(1, 2)), 1))


def _measure_spread(thumbs: Thumbs) -> NDArray[np.float64]:
    """The standard deviation of brightness over the visible cells: (n,)."""
    light, seen = _brightness(thumbs), thumbs[..., 3] > 0
    number = np.maximum(seen.sum(axis=(1, 2)), 1)
    mean = (light * seen).sum(axis=(1, 2)) / number
    return np.asarray(np.sqrt((((light - mean[:, None, None]) ** 2) * seen).sum(axis=(1, 2)) / number))


def _brightness(cells: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cells[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32))


def _by_size(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (-len(group.members), group.members))
