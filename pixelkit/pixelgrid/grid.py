"""How the pixels of damaged art lie in a larger picture."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells of `step` pixels (x, y), which need not be whole numbers; a cell's left top corner lies at `offset` (x, y).

    0 <= offset < step: what lies before the offset is a cell cut by the picture's border. `confidence`: how far the step
    stands out among all others, in their median deviations; infinite for a grid that nobody had to guess.
    """

    step: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    confidence: float = math.inf

    def find_centers(self, length: int, *, axis: int) -> list[float]:
        """Centres of the cells, x for axis 0 and y for axis 1, that lie within a picture of so many pixels: in pixels from
        its border. As many as the native picture has columns or rows, round(length / step) where the offset is 0.
        """
        step, offset = self.step[axis], self.offset[axis]
        first = math.ceil(-offset / step - 0.5)
        last = math.ceil((length - offset) / step - 0.5)
        return [offset + (cell + 0.5) * step for cell in range(first, last)]
