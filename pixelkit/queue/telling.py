"""Tells the user of jobs that ended and of a queue that is drained: a line here, and what their settings ask for."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from pixelkit.notify import Ended, notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pixelkit.queue.book import Job


class Teller:
    """Notifies in a thread of its own: a slow webhook keeps no job waiting."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._events: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._notify, name="pixelkit-teller", daemon=True)
        self._thread.start()

    def tell(self, jobs: Iterable[Job]) -> None:
        """Of jobs that ended; of those that were cancelled, notify only where nobody asked for it."""
        for job in jobs:
            self._say(f"{job} {describe_end(job)}")
            if job.state == "cancelled" and job.blocked_by is None:
                continue  # they know
            self._events.put(
                Ended(
                    event="job",
                    name=job.name,
                    state="interrupted" if job.state == "cancelled" else job.state,
                    run=job.run,
                    model=job.model,
                    message=job.reason,
                )
            )

    def tell_drained(self, counts: Mapping[str, int], runs: str) -> None:
        """That nothing is left to do."""
        story = ", ".join(
            f"{counts[state]} {state}"
            for state in ("done", "failed", "cancelled", "paused", "waiting")
            if state in counts
        )
        self._say(f"the queue is drained: {story or 'it was empty'}")
        self._events.put(
            Ended(event="queue", name=runs, state="failed" if counts.get("failed") else "done", message=story)
        )

    def close(self) -> None:
        """Wait until all is told."""
        self._events.put(None)
        self._thread.join()

    def _notify(self) -> None:
        while event := self._events.get():
            for warning in notify(event):
                self._say(f"warning: {warning}")


def describe_end(job: Job) -> str:
    """How an ended job ended, in a few words."""
    if job.state == "done":
        return f"done: {job.model}" if job.model else "done"
    return f"{job.state}: {job.reason}" if job.reason and job.reason != job.state else job.state
