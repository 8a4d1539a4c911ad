"""`pixelkit tune`: the fastest settings for a preset on this machine, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.cli import report
from pixelkit.cli.options import read_choices, shared_options
from pixelkit.errors import Interrupted
from pixelkit.memory import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixelkit.ready import Choices, Ready
    from pixelkit.tune.search import Found, Reading
    from pixelkit.tune.settings import Settings, Space
    from pixelkit.tune.tuning import Tuning

FAILURES = {"oom": "out of memory", "refused": "not possible"}


@click.command()
@click.argument("preset", required=False)
@shared_options
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="No longer than this.",
)
@click.option(
    "--steps", type=click.IntRange(2, 1000), default=12, show_default=True, help="Optimizer steps of each probe."
)
@click.option("--again", is_flag=True, help="Measure anew what was measured before.")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE", help="Also draw the table, as a PNG.")
@click.option("--forget", is_flag=True, help="Remove what was found: for PRESET, or without one all of it.")
def tune(
    preset: str | None, *, minutes: float, steps: int, again: bool, picture: Path | None, forget: bool, **options: Any
) -> None:
    """Find PRESET's fastest settings on this machine by short trainings, and keep them for the next runs.

    Tried are gradient checkpointing, batch size, attention, compiling, data workers and the optimizer's variant, where the
    preset leaves them open; the images per optimizer step stay. Nothing is left in the runs folder. Ctrl-C keeps what was
    found, and the next `tune` goes on from there.
    """
    choices = read_choices(**options)
    if forget:
        _forget(preset, choices)
        return
    if preset is None:
        raise click.UsageError("Missing argument 'PRESET'.")
    from pixelkit.tune.remembering import Book
    from pixelkit.tune.tuning import Limits, Onlooker
    from pixelkit.tune.tuning import tune as search

    with report.progressing("probing") as progress:
        teller = _Teller(minutes=minutes)
        onlooker = Onlooker(on_begin=teller.begin, on_prepared=progress, on_progress=progress, on_reading=teller.read)
        tuning = search(preset, choices, Limits(minutes=minutes, steps=steps), Book(again=again), onlooker)
    _show(tuning, picture)
    if tuning.found.ended == "stopped":
        raise Interrupted("stopped; what was found until then is kept", hint="the same command goes on from there")


def _forget(preset: str | None, choices: Choices) -> None:
    from pixelkit.tune.tuning import tuned_for
    from pixelkit.tuned import forget_tuned, tuned_file

    if preset is None:
        there = forget_tuned()
        click.echo(f"removed {tuned_file()}" if there else "nothing was tuned here")
        return
    place, _ = tuned_for(preset, choices)
    there = forget_tuned(place)
    what = f"{place.family} {place.method} at {place.resolution} px with {place.engine}"
    click.echo(f"forgotten: {what}" if there else f"nothing was tuned for {what}")


class _Teller:
    """Says what is about to be tried, how long it can take, and each probe as it comes in; on standard error."""

    def __init__(self, *, minutes: float) -> None:
        self._minutes = minutes
        self._most = self._count = 0
        self._told = False
        self._start: Settings | None = None
        self._rate = 0.0

    def begin(self, ready: Ready, space: Space, most: int) -> None:
        """The plan is known."""
        from pixelkit.tune.settings import settings_of

        self._most, self._start = most, settings_of(ready.plan)
        click.echo(f"{ready.plan.name} on {ready.plan.machine}", err=True)
        for name, where in space.fixed.items():
            click.echo(f"held      {name}, as the preset says ({where})", err=True)
        click.echo(
            f"probes    at most {most}{', mostly far fewer' if most > 1 else ''}; {self._minutes:g} minutes at most (--minutes)",
            err=True,
        )

    def read(self, settings: Settings, reading: Reading) -> None:
        """A probe has ended."""
        from pixelkit.tune.settings import describe

        assert self._start is not None
        self._count += 1
        if reading.took and not self._told:
            self._told = True
            longest = min(self._minutes, reading.took * (self._most - self._count + 1) / 60)
            click.echo(f"a probe takes {reading.took:.0f} s: {longest:.0f} minutes at most", err=True)
        self._rate = self._rate or reading.images_per_second
        if reading.failed:
            result = f"{FAILURES.get(reading.failed, reading.failed)}: {reading.why}"
        else:
            result = f"{_rate(reading.images_per_second)} images/s ({reading.images_per_second / self._rate - 1:+.0%})"
        known = "" if reading.took or reading.failed else ", measured before"
        click.echo(f"{self._count:3}  {describe(settings, self._start)}: {result}{known}", err=True)


def _show(tuning: Tuning, picture: Path | None) -> None:
    found = tuning.found
    rows = [row.cells for row in _tabulate(found)]
    if rows:
        report.print_table(rows, header=("setting", "s/image", "images/s", "peak memory", "of the plan", ""))
    click.echo(f"noise     {found.noise:.1%} between probes of the same settings")
    if found.ended:
        click.echo(f"ended     {found.ended}; not searched to the end")
    if tuning.kept is None:
        open_ends = "the preset leaves nothing open" if found.rate(found.best) else "a longer --minutes may help"
        click.echo(f"kept      nothing: {open_ends}")
        return
    gain = (
        f", {found.gain:.2f} times the plan's pace"
        if found.gain
        else "; the plan as it is does not fit into the memory"
    )
    click.echo(f"kept      {tuning.file}{gain}")
    remarks = []
    if not tuning.used:
        remarks.append("a profile that is named is taken as it is, so runs go by this only where hardware is auto")
    if tuning.space.share is None and found.best.batch_size != found.start.batch_size:
        remarks.append(
            f"the preset leaves the batch open: a step now shows {found.best.batch_size} images in place of"
            f" {found.start.batch_size}; train.effective_batch or train.epochs keeps what is learned the same"
        )
    report.print_notes(remarks, ())
    if picture is not None:
        _draw(tuning, picture)
        click.echo(picture)


class _Row:
    """A setting that was tried, in numbers."""

    def __init__(self, found: Found, settings: Settings) -> None:
        from pixelkit.tune.settings import describe

        readings = found.readings[settings]
        self.rate, self.best = found.rate(settings), settings == found.best
        self.text = "the preset's plan" if settings == found.start else describe(settings, found.start)
        self.failure = "" if self.rate else FAILURES.get(readings[0].failed, readings[0].failed)
        self.memory = max(reading.peak_memory for reading in readings)
        plan = found.rate(found.start)
        self.ratio = f"{self.rate / plan:.2f}x" if plan and self.rate else ""

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        memory = f"{self.memory / GIB:.1f} GiB" if self.memory else ""
        if self.failure:
            return self.text, "", "", memory, "", self.failure
        return self.text, _rate(1 / self.rate), _rate(self.rate), memory, self.ratio, "best" if self.best else ""


def _tabulate(found: Found) -> Iterator[_Row]:
    yield from (_Row(found, settings) for settings in found.readings)


def _draw(tuning: Tuning, file: Path) -> None:
    import io

    from pixelkit.paths import write_atomically
    from pixelkit.tune.picture import Entry, draw_probes

    plan = tuning.ready.plan
    entries = [
        Entry(
            text=row.text,
            images_per_second=row.rate,
            note=row.failure or f"{_rate(row.rate)} images/s, {row.memory / GIB:.1f} GiB",
            best=row.best,
        )
        for row in _tabulate(tuning.found)
    ]
    subtitle = (
        f"{plan.method} on {plan.base.name} at {plan.dataset.resolution} px, {plan.engine}; {plan.machine.device}"
    )
    stream = io.BytesIO()
    draw_probes(title=f"{plan.name}: images per second", subtitle=subtitle, entries=entries).save(stream, "PNG")
    write_atomically(file, stream.getvalue())


def _rate(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
