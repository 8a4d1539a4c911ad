"""`pixelkit run`, `resume`, `check`, `render`: a preset carried out, gone on with, checked, written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pixelkit.cli import report
from pixelkit.cli.options import read_choices, run_options
from pixelkit.ready import Choices, make_ready

RETRY = click.option(
    "--retry/--no-retry",
    default=True,
    help="When memory runs out, go on with settings that need less of it (the default), or end there.",
)


@click.command()
@run_options
@RETRY
@click.option("--dry-run", is_flag=True, help="Check and render everything, print the command line, start nothing.")
def run(preset: str, *, dry_run: bool, retry: bool, **options: Any) -> None:
    """Train what PRESET says (a file, or a shipped preset's name) and ship it.

    The last line on standard output is the path of the model.
    """
    from pixelkit import pipeline

    choices = replace(read_choices(**options), retry=retry)
    if dry_run:
        click.echo(pipeline.dry_run(make_ready(preset, choices)))
        return
    with report.watching() as watcher, report.notifying(watcher) as watched:
        shipment = pipeline.run_preset(preset, choices, watched)
    report.print_shipment(shipment)


@click.command()
@click.argument("run_name", metavar="RUN")
@click.option(
    "--runs", "runs_folder", type=click.Path(path_type=Path), metavar="DIR", help="Where run directories lie."
)
@RETRY
def resume(run_name: str, runs_folder: Path | None, *, retry: bool) -> None:
    """Go on with a run that was stopped or failed: RUN is its directory, its name, or `latest`."""
    from pixelkit import pipeline

    with report.watching() as watcher, report.notifying(watcher) as watched:
        shipment = pipeline.resume_run(run_name, Choices(runs=runs_folder, retry=retry), watched)
    report.print_shipment(shipment)


@click.command()
@run_options
def check(preset: str, **options: Any) -> None:
    """Check PRESET and print the plan: each value with the place it comes from, memory, warnings."""
    report.print_plan(make_ready(preset, read_choices(**options)).plan)


@click.command()
@run_options
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the files go.")
def render(preset: str, *, out: Path, **options: Any) -> None:
    """Write the trainer's configuration of PRESET to a folder, verified, and start nothing."""
    from pixelkit import pipeline

    for path in pipeline.write_configs(make_ready(preset, read_choices(**options)), out):
        click.echo(path)
