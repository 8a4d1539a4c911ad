"""The colour that transparency is flattened onto: in no sprite, calm, and apart from the sprites' outlines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageColor

from pixelkit.evaluate.palette import measure_distance, to_lab

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pixelkit.dataset.blocks import Color

# Asked in this order: calm mid tones first, loud ones last.
CANDIDATES: tuple[Color, ...] = tuple(
    ImageColor.getrgb(name)[:3]
    for name in (
        *("#808080", "#a0a0a0", "#606060", "#7f8fa6", "#8f7fa6", "#c0c0c0", "#404040", "#6fa68f"),
        *("#ffffff", "#00ff00", "#ff00ff"),
    )
)
# CIEDE2000 from the outlines: from here on two neighbouring areas are told apart at a glance.
CONTRAST = 20.0


class Outlines:
    """What a background has to keep away from, gathered sprite by sprite; as large as there are colours."""

    def __init__(self) -> None:
        self.used: set[int] = set()
        self.edges: Counter[int] = Counter()

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """A sprite's visible colours, and those of its pixels that touch transparency or the border; RGBA (h, w, 4)."""
        packed = pixels[..., :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
        visible = pixels[..., 3] > 0
        padded = np.pad(visible, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        self.used.update(np.unique(packed[visible]).tolist())
        values, counts = np.unique(packed[visible & ~inside], return_counts=True)
        self.edges.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def merge(self, other: Outlines) -> None:
        """Add what has been gathered from other sprites."""
        self.used |= other.used
        self.edges.update(other.edges)

    def choose(self) -> Color:
        """The calmest colour that occurs in no sprite and lies at least CONTRAST from nine tenths of the outlines;
        where there is none, the one that is farthest from them.
        """
        free = [color for color in CANDIDATES if _pack(color) not in self.used]
        free = free or [next((c for c in _grey_levels() if _pack(c) not in self.used), (255, 255, 255))]
        contrasts = [self._contrast(color) for color in free]
        calm = (color for color, contrast in zip(free, contrasts, strict=True) if contrast >= CONTRAST)
        return next(calm, free[int(np.argmax(contrasts))])

    def _contrast(self, color: Color) -> float:
        """The distance that nine tenths of the outline pixels keep at least."""
        if not self.edges:
            return float("inf")
        common = self.edges.most_common(512)
        edges = np.array([[value >> 16, value >> 8 & 255, value & 255] for value, _ in common])
        far = measure_distance(to_lab(edges), to_lab(np.array(color)))
        order = np.argsort(far)
        share = np.cumsum(np.array([count for _, count in common])[order]) / sum(count for _, count in common)
        return float(far[order][np.searchsorted(share, 0.1)])


def _pack(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _grey_levels() -> Iterable[Color]:
    return ((level, level, level) for level in (*range(128, 256), *range(127, -1, -1)))
