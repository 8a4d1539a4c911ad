"""`pixelkit runs`: what was trained, and how it ended."""

from __future__ import annotations

from pathlib import Path

import click

from pixelkit.cli import report
from pixelkit.errors import StorageError
from pixelkit.ready import Choices, runs_folder
from pixelkit.rundir import find_run, list_runs

RUNS = click.option(
    "--runs", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Where run directories lie."
)


@click.group()
def runs() -> None:
    """The runs of this machine."""


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
@click.argument("run_name", metavar="RUN")
@RUNS
def show(run_name: str, folder: Path | None) -> None:
    """One run's manifest: states, hashes, versions, times. RUN is its directory, its name, or `latest`."""
    run = find_run(runs_folder(Choices(runs=folder)), run_name)
    report.print_manifest(run.path, run.read_manifest())
