"""What earlier probes measured, so that a search that was interrupted goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from pixelkit.measures import Measure, MeasureBook, setup_of
from pixelkit.memory import GIB
from pixelkit.rundir import now
from pixelkit.tune.search import OUT_OF_MEMORY, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.plan import Plan

STALE = timedelta(days=30)  # drivers and libraries change


class Memory(Protocol):
    """Where readings are kept."""

    def recall(self, plan: Plan) -> Sequence[Reading]:
        """The readings of a plan's settings on this machine, newest first."""
        ...

    def record(self, plan: Plan, reading: Reading) -> None:
        """Keep one at once."""
        ...


@dataclass(kw_only=True)
class Book:
    """The book of measures as the memory of a search; with `again` nothing is recalled.

    Only readings of at least as many steps, not older than a month, and of failures only "out of memory": another may
    have been mended since.
    """

    again: bool = False
    book: MeasureBook = field(default_factory=MeasureBook)

    def recall(self, plan: Plan) -> Sequence[Reading]:
        """The readings of a plan's settings on this machine, newest first."""
        if self.again:
            return ()
        earliest = (datetime.now(UTC) - STALE).isoformat()
        return tuple(
            Reading(
                seconds_per_image=(measure.seconds_per_step or 0.0) / measure.setup.images_per_step,
                peak_memory=round((measure.peak_memory_gib or 0.0) * GIB),
                failed=measure.failed or "",
            )
            for measure in self.book.recall(setup_of(plan), kind="probe")
            if measure.failed in {None, OUT_OF_MEMORY}
            and measure.when >= earliest
            and measure.steps >= count_steps(plan)
        )

    def record(self, plan: Plan, reading: Reading) -> None:
        """Keep one at once."""
        setup = setup_of(plan)
        self.book.add(
            Measure(
                setup=setup,
                kind="probe",
                seconds_per_step=None if reading.failed else reading.seconds_per_image * setup.images_per_step,
                peak_memory_gib=reading.peak_memory / GIB if reading.peak_memory else None,
                steps=count_steps(plan),
                when=now(),
                failed=reading.failed or None,
            )
        )


def count_steps(plan: Plan) -> int:
    """The steps that a probe's plan is measured for: it is ended in the one after them."""
    return plan.train.steps - 1
