"""How many sprites a training wants. The founding documents give six numbers that disagree, in answer to different questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Method = Literal["lora", "dreambooth", "distillation"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """So many sprites, `low` to `high` (None: the more the better), are wanted for `use`; `source` says so."""

    use: str
    method: Method
    low: int
    high: int | None
    source: str

    @property
    def range(self) -> str:
        """`50-100`, `500 and more`, `193`."""
        if self.high is None:
            return f"{self.low:,} and more"
        return f"{self.low}-{self.high}" if self.high > self.low else f"{self.low}"

    def judge(self, drawings: int) -> str:
        """What so many different sprites are for this use."""
        if drawings < self.low:
            return f"{self.low - drawings:,} more are wanted"
        return "enough" if self.high is None or drawings <= self.high else "more than asked for"


WANTED: tuple[Wanted, ...] = (
    Wanted(use="a quick test", method="lora", low=10, high=20, source="LoRA guide, troubleshooting"),
    Wanted(use="characters", method="lora", low=30, high=50, source="training roadmap, phase 3"),
    Wanted(use="items", method="lora", low=30, high=50, source="training roadmap, phase 3"),
    Wanted(use="effects", method="lora", low=30, high=40, source="training roadmap, phase 3"),
    Wanted(use="environments", method="lora", low=40, high=60, source="training roadmap, phase 3"),
    Wanted(use="a style, not at its best", method="lora", low=30, high=40, source="LoRA guide, troubleshooting"),
    Wanted(
        use="a style",
        method="lora",
        low=50,
        high=100,
        source="training roadmap, phase 2 and sourcing; LoRA guide",
    ),
    Wanted(use="portraits to the pixel", method="lora", low=193, high=193, source="Bespoke Punk settings"),
    Wanted(use="a game's whole art", method="lora", low=500, high=2000, source="CatSith guide"),
    Wanted(use="one character", method="dreambooth", low=20, high=30, source="training roadmap, phase 4"),
    Wanted(use="a smaller model", method="distillation", low=10_000, high=None, source="CatSith guide"),
)


def list_wanted(method: str | None = None) -> Iterable[Wanted]:
    """What is wanted for a preset's method, or for all."""
    return [one for one in WANTED if method in {None, one.method}]
