"""`pixelkit runs`: what was trained, how it went, how it ended; and orders for what is at work."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkit.cli import report
from pixelkit.errors import StorageError
from pixelkit.ready import Choices, runs_folder
from pixelkit.rundir import find_run, list_runs

if TYPE_CHECKING:
    from pixelkit.rundir import Order, RunDir

RUNS = click.option(
    "--runs", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Where run directories lie."
)
ONE_RUN = click.argument("run_name", metavar="RUN")


@click.group()
def runs() -> None:
    """The runs of this machine. RUN is a run's directory, its name, or `latest`."""


@runs.command("list")
@RUNS
def list_command(folder: Path | None) -> None:
    """All runs, oldest first: state, base, engine, steps, time."""
    rows = []
    for run in list_runs(runs_folder(Choices(runs=folder))):
        try:
            manifest = run.read_manifest()
        except StorageError:
            manifest = {"state": "broken manifest"}
        training = manifest.get("training", {})
        base = manifest.get("base", {}).get("name", "")
        done = training.get("last_step"), training.get("seconds")
        rows.append((run.path.name, manifest.get("state"), base, manifest.get("engine"), *done))
    report.print_table(rows, header=("run", "state", "base", "engine", "steps", "seconds"))


@runs.command()
@ONE_RUN
@RUNS
def show(run_name: str, folder: Path | None) -> None:
    """One run's manifest: states, hashes, versions, times."""
    run = _find(run_name, folder)
    report.print_manifest(run.path, run.read_manifest())


@runs.command()
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png", help="Where the picture goes."
)
@click.option(
    "--smooth",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Average the lines over N steps; 1 = as they are. Default: as fits the length.",
)
@click.option(
    "--log", type=click.Choice(["x", "y"]), multiple=True, help="Logarithmic steps (x), losses (y). May be given twice."
)
@RUNS
def plot(
    names: tuple[str, ...], out: Path | None, smooth: int | None, log: tuple[str, ...], folder: Path | None
) -> None:
    """Draw loss, learning rate, seconds a step and memory of one run, or of several on one picture.

    The picture goes into the run's directory, or, for several, into plot.png here. Its path is the last line printed.
    """
    from io import BytesIO

    from pixelkit.evaluate.curve import collect_progress
    from pixelkit.evaluate.plot import Curve, draw_runs
    from pixelkit.paths import write_atomically

    found = [_find(name, folder) for name in dict.fromkeys(names)]
    curves = [Curve(name=run.path.name, progress=collect_progress(run.read_metrics())) for run in found]
    for run, curve in zip(found, curves, strict=True):
        if not curve.progress.steps.size and len(found) > 1:
            click.echo(f"{run.path.name} has no steps yet: {run.metrics}", err=True)
    picture = draw_runs(curves, span=smooth, log=frozenset(log))
    if picture is None:
        raise StorageError(
            f"no steps in {found[0].metrics}", hint="the training has not begun, or ended before its first step"
        )
    path = out or (found[0].path / "plot.png" if len(found) == 1 else Path("plot.png"))
    content = BytesIO()
    picture.save(content, "PNG")
    write_atomically(path, content.getvalue())
    click.echo(path)


@runs.command()
@ONE_RUN
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line, as the trainer told it, samples and saves too."
)
@RUNS
def metrics(run_name: str, folder: Path | None, *, as_json: bool) -> None:
    """The numbers of each step as CSV, for a spreadsheet. A resumed run is one curve."""
    run = _find(run_name, folder)
    if as_json:
        for event in run.read_metrics():
            click.echo(json.dumps(event))
        return
    columns = ("step", "epoch", "loss", "lr", "seconds", "memory")
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(columns)
    for event in run.read_metrics():
        if event.get("event") == "step":
            table.writerow(event.get(column) for column in columns)


def _find(name: str, folder: Path | None) -> RunDir:
    return find_run(runs_folder(Choices(runs=folder)), name)


def _leave_order(name: str, folder: Path | None, word: Order, what: str) -> None:
    run = _find(name, folder)
    if not run.is_active():
        state = run.read_manifest().get("state")
        hint = f"`pixelkit resume {run.path}` goes on with it" if state in {"failed", "interrupted"} else ""
        raise StorageError(f"{run.path.name} is not at work: {state}", hint=hint)
    run.leave_order(word)
    click.echo(f"{run.path.name} {what}", err=True)


@runs.command()
@ONE_RUN
@RUNS
def stop(run_name: str, folder: Path | None) -> None:
    """Have a run at work save and end, as Ctrl-C does where it was started; `pixelkit resume` goes on."""
    _leave_order(run_name, folder, "stop", "will save and stop")


@runs.command()
@ONE_RUN
@RUNS
def save(run_name: str, folder: Path | None) -> None:
    """Have a run at work save its weights and state after the step that it is at."""
    _leave_order(run_name, folder, "save", "will save after this step")


@runs.command()
@ONE_RUN
@RUNS
def sample(run_name: str, folder: Path | None) -> None:
    """Have a run at work make its sample pictures after the step that it is at."""
    _leave_order(run_name, folder, "sample", "will make its pictures after this step")
