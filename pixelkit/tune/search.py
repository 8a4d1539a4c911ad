"""The search: one setting is changed at a time, and kept where images per second rise by more than they wander by themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pixelkit.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pixelkit.tune.settings import Settings, Space

BASELINE_PROBES = 3
LEAST_NOISE = 0.02  # two probes that agree by chance say nothing of a third
LEAST_BATCH_GAIN = 0.03  # a larger batch takes memory, and must be worth it
SURE = 4  # so many times the noise needs no second look
OUT_OF_MEMORY = "oom"
STOPPED = "stopped"


class Enough(Exception):  # noqa: N818 - it ends the search in order
    """No further probe: the time is up, or the user stopped. The message says which."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One probe: seconds per image and bytes of memory at the peak; or `failed`, a word, and `why`.

    `took`: the seconds of the whole probe; 0 for one that is remembered or was not tried.
    """

    seconds_per_image: float = 0.0
    peak_memory: int = 0
    failed: str = ""
    why: str = ""
    took: float = 0.0

    @property
    def images_per_second(self) -> float:
        """0 for a probe that failed."""
        return 1 / self.seconds_per_image if self.seconds_per_image and not self.failed else 0.0


class Bench(Protocol):
    """Where settings are measured."""

    def measure(self, settings: Settings, turn: int) -> Reading:
        """Their `turn`-th probe, from 0. Raises Enough where there shall be no further one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to. `readings` in the order of their first probes; `noise` is a share of images per second.

    `start` is the preset's plan; `tried` names the settings that were searched to the end; `ended` says why the search
    stopped early, empty where it did not.
    """

    start: Settings
    best: Settings
    readings: Mapping[Settings, Sequence[Reading]]
    noise: float
    tried: frozenset[str]
    ended: str

    def rate(self, settings: Settings) -> float:
        """Images per second, the mean of all probes; 0 where they failed."""
        return mean_rate(self.readings.get(settings, ()))

    @property
    def gain(self) -> float | None:
        """The best as a multiple of the preset's plan; None where that did not run."""
        return self.rate(self.best) / self.rate(self.start) if self.rate(self.start) else None


def mean_rate(readings: Sequence[Reading]) -> float:
    """Images per second; 0 without a probe that ran."""
    rates = [reading.images_per_second for reading in readings if not reading.failed]
    return sum(rates) / len(rates) if rates else 0.0


def count_most(space: Space) -> int:
    """How many probes a search takes at most: each change tried, and compared once more with the best until then."""
    others = (space.gradient_checkpointing, space.attention, space.compile, space.workers, space.optimizers)
    tried = len(space.batch_sizes) - 1 + sum(len(values) - 1 for values in others)
    both = len(space.batch_sizes) if len(space.gradient_checkpointing) > 1 and len(space.batch_sizes) > 1 else 0
    return BASELINE_PROBES + 3 * (tried + both) if tried else 1


def search(
    space: Space,
    start: Settings,
    bench: Bench,
    on_reading: Callable[[Settings, Reading], None] = lambda _settings, _reading: None,
) -> Found:
    """From `start` to the fastest settings that one change at a time leads to; `on_reading` hears of each probe.

    Raises TrainingError where `start` does not train for another reason than memory, or nothing lighter fits either.
    """
    return Search(space=space, start=start, bench=bench, on_reading=on_reading).run()


@dataclass(kw_only=True)
class Search:
    """The state of one search: `best` is where it stands."""

    space: Space
    start: Settings
    bench: Bench
    on_reading: Callable[[Settings, Reading], None]
    readings: dict[Settings, list[Reading]] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)

    def run(self) -> Found:
        """All of it, once."""
        self.best, ended = self.start, ""
        try:
            self._find_footing()
            for name, attempt in self._attempts():
                attempt()
                self.tried.add(name)
        except Enough as enough:
            ended = str(enough)
        except KeyboardInterrupt:  # between two probes; within one, the bench says Enough
            ended = STOPPED
        return Found(
            start=self.start,
            best=self.best,
            readings=self.readings,
            noise=self.noise,
            tried=frozenset(self.tried),
            ended=ended,
        )

    def _attempts(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """The settings that are open, those that matter most first."""
        space, optimizers = self.space, [dict(zip(OPTIMIZER, each, strict=True)) for each in self.space.optimizers]
        attempts: list[tuple[str, int, Callable[[], None]]] = [
            ("batch_size", len(space.batch_sizes), self._try_batch_sizes),
            ("gradient_checkpointing", len(space.gradient_checkpointing), self._try_checkpointing),
            ("attention", len(space.attention), lambda: self._try_each([{"attention": v} for v in space.attention])),
            ("compile", len(space.compile), lambda: self._try_each([{"compile": value} for value in space.compile])),
            ("workers", len(space.workers), lambda: self._try_each([{"workers": value} for value in space.workers])),
            ("optimizer", len(optimizers), lambda: self._try_each(optimizers)),
        ]
        return [(name, attempt) for name, values, attempt in attempts if values > 1]

    @property
    def noise(self) -> float:
        """How far apart probes of the same settings lie, as a share of their mean: the widest seen."""
        spreads = [LEAST_NOISE]
        for readings in self.readings.values():
            rates = [reading.images_per_second for reading in readings if not reading.failed]
            if len(rates) > 1:
                spreads.append((max(rates) - min(rates)) * len(rates) / sum(rates))
        return max(spreads)

    def _find_footing(self) -> None:
        """The first settings that train, measured often enough to know the noise."""
        for settings in (self.start, *self._list_lighter()):
            reading = self._probe(settings)
            if reading.failed not in {"", OUT_OF_MEMORY}:
                raise TrainingError(
                    f"the preset does not train as it is: {reading.why or reading.failed}", kind=reading.failed
                )
            if not reading.failed:
                if settings != self.start:
                    self.best = settings
                for _ in range(BASELINE_PROBES - 1 if self._attempts() else 0):
                    self._probe(settings, again=True)
                return
        raise TrainingError(
            "out of memory with the preset's settings and with all lighter ones that may be tried",
            kind=OUT_OF_MEMORY,
            hint="a smaller base or dataset.resolution, or a machine with more memory",
        )

    def _list_lighter(self) -> Sequence[Settings]:
        """With checkpointing, then with smaller and smaller batches."""
        lightest = replace(self.start, gradient_checkpointing=any(self.space.gradient_checkpointing))
        smaller = [size for size in reversed(self.space.batch_sizes) if size < self.start.batch_size]
        made = [lightest, *(self.space.with_batch(lightest, size) for size in smaller)]
        return [legal for legal in map(self.space.make_legal, made) if legal != self.start]

    def _try_checkpointing(self) -> None:
        other = not self.best.gradient_checkpointing
        candidate = replace(self.best, gradient_checkpointing=other)
        if self._try(candidate) or other or self._failure(candidate) != OUT_OF_MEMORY:
            return
        # Without checkpointing this batch does not fit; a smaller one may, and be faster for it.
        while (size := self._next_size(candidate.batch_size, up=False)) is not None:
            candidate = self.space.with_batch(candidate, size)
            if self._try(candidate) or self._failure(candidate) != OUT_OF_MEMORY:
                return

    def _try_batch_sizes(self) -> None:
        """Doubled until memory ends or it no longer pays; halved where doubling did not pay at once."""
        before = self.best.batch_size
        while (size := self._next_size(self.best.batch_size, up=True)) is not None:
            candidate = self.space.with_batch(self.best, size)
            lighter = replace(candidate, gradient_checkpointing=any(self.space.gradient_checkpointing))
            if not self._try(candidate, least=LEAST_BATCH_GAIN) and not (
                lighter != candidate
                and self._failure(candidate) == OUT_OF_MEMORY
                and self._try(lighter, least=LEAST_BATCH_GAIN)
            ):
                break
        if self.best.batch_size == before:
            while (size := self._next_size(self.best.batch_size, up=False)) is not None:
                if not self._try(self.space.with_batch(self.best, size)):
                    break

    def _next_size(self, size: int, *, up: bool) -> int | None:
        """The nearest batch size that is at least twice, or at most half, as large; else the outermost; else None."""
        others = [other for other in self.space.batch_sizes if (other > size if up else other < size)]
        if up:
            return next((other for other in others if other >= 2 * size), others[-1] if others else None)
        return next((other for other in reversed(others) if 2 * other <= size), others[0] if others else None)

    def _try_each(self, changes: Sequence[Mapping[str, Any]]) -> None:
        for change in changes:
            self._try(replace(self.best, **change))

    def _try(self, candidate: Settings, *, least: float = 0.0) -> bool:
        """Measure, and keep it where it is faster by more than noise and `least`; at a narrow gain both are measured again."""
        candidate = self.space.make_legal(candidate)
        if candidate == self.best or self._probe(candidate).failed:
            return False
        if not self._is_faster(candidate, max(least, self.noise)):
            return False
        if not self._is_faster(candidate, SURE * self.noise):
            self._probe(candidate, again=True)
            self._probe(self.best, again=True)
            if not self._is_faster(candidate, max(least, self.noise)):
                return False
        self.best = candidate
        return True

    def _is_faster(self, candidate: Settings, by: float) -> bool:
        return mean_rate(self.readings[candidate]) > (1 + by) * mean_rate(self.readings[self.best])

    def _failure(self, settings: Settings) -> str:
        readings = self.readings.get(self.space.make_legal(settings), [])
        return readings[0].failed if readings else ""

    def _probe(self, settings: Settings, *, again: bool = False) -> Reading:
        """The settings' reading; a new one where there is none yet, or where `again`."""
        readings = self.readings.get(settings, [])
        if again or not readings:
            reading = self.bench.measure(settings, len(readings))  # where this raises, there is no empty row
            self.readings.setdefault(settings, readings).append(reading)
            self.on_reading(settings, reading)
            return reading
        return readings[0]


OPTIMIZER = ("optimizer", "fused_optimizer")
