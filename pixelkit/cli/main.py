"""`pixelkit`: the commands that train, check and render, and the group that holds all others."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pixelkit import __version__
from pixelkit.cli import report
from pixelkit.cli.convert import convert, lora
from pixelkit.cli.data import data
from pixelkit.cli.estimate import estimate, measures
from pixelkit.cli.machine import config, doctor, hardware
from pixelkit.cli.models import models
from pixelkit.cli.options import read_choices, run_options
from pixelkit.cli.presets import presets
from pixelkit.cli.queue import queue
from pixelkit.cli.runs import runs
from pixelkit.cli.tune import tune
from pixelkit.errors import PixelkitError, StorageError
from pixelkit.ready import Choices, make_ready


class Group(click.Group):
    """Turns pixelkit's errors into one message and their exit code; nobody sees a traceback for bad input."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102 - click's
        try:
            return super().invoke(ctx)
        except PixelkitError as error:
            report.print_error(error)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(0)
        except OSError as error:
            shown = StorageError(f"{error.filename or 'a file'}: {error.strerror or error}")
            report.print_error(shown)
            ctx.exit(shown.exit_code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pixelkit")
def main() -> None:
    """Train models of a game's pixel art: one TOML preset in, a LoRA that every tool can load out.

    Start with `pixelkit run presets/quickstart.toml`, or `pixelkit presets list`.
    """


RETRY = click.option(
    "--retry/--no-retry",
    default=True,
    help="When memory runs out, go on with settings that need less of it (the default), or end there.",
)


@main.command()
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


@main.command()
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


@main.command()
@run_options
def check(preset: str, **options: Any) -> None:
    """Check PRESET and print the plan: each value with the place it comes from, memory, warnings."""
    report.print_plan(make_ready(preset, read_choices(**options)).plan)


@main.command()
@run_options
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the files go.")
def render(preset: str, *, out: Path, **options: Any) -> None:
    """Write the trainer's configuration of PRESET to a folder, verified, and start nothing."""
    from pixelkit import pipeline

    for path in pipeline.write_configs(make_ready(preset, read_choices(**options)), out):
        click.echo(path)


main.add_command(convert)
main.add_command(data)
main.add_command(estimate)
main.add_command(lora)
main.add_command(measures)
main.add_command(models)
main.add_command(presets)
main.add_command(queue)
main.add_command(runs)
main.add_command(config)
main.add_command(doctor)
main.add_command(hardware)
main.add_command(tune)
