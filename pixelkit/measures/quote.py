"""What a plan costs: here, and on a rented GPU."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pixelkit.errors import PresetError
from pixelkit.hardware import Machine
from pixelkit.measures.cost import OVERHEAD, training_hours
from pixelkit.measures.known import is_called
from pixelkit.measures.outlook import forecast
from pixelkit.measures.setup import images_per_step

if TYPE_CHECKING:
    from pixelkit.measures.book import MeasureBook
    from pixelkit.plan import Plan

_GPU = re.compile(r"(?P<name>.*[^\s,])[\s,]+(?P<memory>\d+(?:\.\d+)?)\s*G(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the user says: images per second, and what comes beyond the steps. None = go by what is known."""

    images_per_second: float | None = None
    overhead: float | None = None


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Hours, likely and between which bounds, and where they are from; None = unknown."""

    likely: float | None
    low: float | None
    high: float | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Quote:
    """One offer: hours and money, each likely, at least and at most; None = unknown."""

    where: str
    gpu: str
    per_hour: tuple[float, float] | None
    hours: Hours
    cost: tuple[float, float, float] | None
    listed: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def count_images(plan: Plan) -> float:
    """Images that the whole training sees, repeats counted."""
    return plan.train.steps * images_per_step(plan)


def estimate_hours(plan: Plan, book: MeasureBook, speed: Speed) -> Hours:
    """Hours of a plan, on the machine that it names. An overhead is put on what says nothing of loading, unless one is given."""
    if speed.images_per_second:
        overhead = OVERHEAD if speed.overhead is None else speed.overhead
        hours = training_hours(
            images=count_images(plan), epochs=1, images_per_second=speed.images_per_second, overhead=overhead
        )
        source = f"{speed.images_per_second:g} images a second, as you say, x {overhead:g}"
        return Hours(likely=hours, low=hours, high=hours, source=source)
    known = forecast(plan, book)
    if known.seconds is None or known.seconds_low is None or known.seconds_high is None:
        return unknown_hours(known.seconds_source)
    factor = speed.overhead or (OVERHEAD if known.left_out else 1.0)
    source = f"{known.seconds_source}{f', x {factor:g}' if factor != 1 else ''}"
    return Hours(
        likely=known.seconds * factor / 3600,
        low=known.seconds_low * factor / 3600,
        high=known.seconds_high * factor / 3600,
        source=source,
    )


def unknown_hours(why: str) -> Hours:
    """No number, and the reason."""
    return Hours(likely=None, low=None, high=None, source=why)


def price_hours(hours: Hours, per_hour: tuple[float, float]) -> tuple[float, float, float] | None:
    """Money, likely, least and most: the least hours at the least price, the most at the most. None for unknown hours."""
    if hours.likely is None or hours.low is None or hours.high is None:
        return None
    low, high = per_hour
    return hours.likely * (low + high) / 2, hours.low * low, hours.high * high


def read_gpu(text: str) -> tuple[str, float]:
    """(name, GiB) of "RTX 4090 24GB". Raises PresetError where the memory is not said."""
    found = _GPU.fullmatch(text.strip())
    if not found:
        raise PresetError(f"{text}: which memory has it?", hint='write it after the name: --gpu "RTX 4090 24GB"')
    return found["name"], float(found["memory"])


def imagine_machine(name: str, memory_gib: float, book: MeasureBook) -> Machine:
    """A machine with that GPU; called as its driver calls it where the book holds measures of one."""
    for measure in book.list_measures():
        device, _, memory = measure.setup.machine.rpartition(", ")
        if is_called(device, name) and abs(float(memory.removesuffix(" GiB")) / memory_gib - 1) < 0.1:
            name, memory_gib = device, float(memory.removesuffix(" GiB"))
            break
    return Machine(
        kind="cuda", device=name, memory_gib=memory_gib, available_gib=memory_gib, capability=(8, 0), cores=8
    )
