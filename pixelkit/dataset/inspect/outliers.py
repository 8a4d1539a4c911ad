"""What stands apart from the rest of its set: few sprites, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pixelkit.dataset.inspect.features import Features

    Floats = NDArray[np.float64]

# Iglewicz and Hoaglin, How to detect and handle outliers (1993): .6745 of a normal deviation is the median one.
CUT = 3.5
_MEDIAN_DEVIATION = 0.6745
FEWEST = 8  # below, there is no rest to stand apart from
# Of each trait only the farthest are named: so many, or this share of a large set, whose values have long tails.
MOST, MOST_SHARE = 5, 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """`place` of the sprite; `trait`: palette size, colours, size or density; `score`: how far apart, CUT at least."""

    place: int
    trait: str
    score: float
    text: str


def score_values(values: Floats, *, floor: float) -> Floats:
    """Distances from the median in robust deviations, with sign. `floor`: the least deviation that counts as one, so that in
    a set where nearly all are equal a small difference is still small.
    """
    apart = values - np.median(values)
    return np.asarray(_MEDIAN_DEVIATION * apart / max(float(np.median(np.abs(apart))), floor))


def find_outliers(features: Sequence[Features], distances: Floats) -> tuple[Outlier, ...]:
    """The farthest first. `distances`: of each sprite's colours from the set's, as colors.SetColors has them."""
    if len(features) < FEWEST:
        return ()
    colors = np.array([max(one.colors, 1) for one in features], dtype=np.float64)
    sides = np.sqrt([float(one.width * one.height) for one in features])
    density = np.array([one.density for one in features]) * 100
    sizes = Counter((one.width, one.height) for one in features)
    usual = "{}x{}".format(*sizes.most_common(1)[0][0])
    return tuple(
        sorted(
            [
                *_find("palette size", np.log2(colors), 0.4, lambda at: f"{colors[at]:.0f} colours, {_others(colors)}"),
                *_find("size", np.log2(sides), 0.15, lambda at: f"{_size(features[at])}, the usual size is {usual}"),
                *_find(
                    "density", density, 5.0, lambda at: f"{density[at]:.0f}% of it visible, {_others(density, '%')}"
                ),
                *_find_far_colors(distances),
            ],
            key=lambda one: (-one.score, one.place),
        )
    )


def _find_far_colors(distances: Floats) -> list[Outlier]:
    def say(at: int) -> str:
        usual = np.quantile(distances, 0.9)
        return (
            f"its colours are {distances[at]:.0f} from the set's, of nine of ten up to {usual:.0f} (an eye just sees 1)"
        )

    return [one for one in _find("colours", distances, 1.0, say) if distances[one.place] > np.median(distances)]


def _find(trait: str, values: Floats, floor: float, say: Callable[[int], str]) -> list[Outlier]:
    scores = np.abs(score_values(values, floor=floor))
    farthest = np.argsort(-scores, kind="stable")[: max(MOST, round(MOST_SHARE * len(values)))]
    return [
        Outlier(place=int(at), trait=trait, score=float(scores[at]), text=say(int(at)))
        for at in farthest
        if scores[at] >= CUT
    ]


def _others(values: Floats, unit: str = "") -> str:
    low, high = np.quantile(values, [0.05, 0.95])
    return (
        f"nine of ten have {low:.0f}{unit} to {high:.0f}{unit}"
        if round(low) != round(high)
        else f"most have {low:.0f}{unit}"
    )


def _size(features: Features) -> str:
    return f"{features.width}x{features.height}"
