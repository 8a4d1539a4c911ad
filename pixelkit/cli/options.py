"""The options that commands share which make a preset ready: `run`, `check`, `render`, `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pixelkit.ready import Choices

if TYPE_CHECKING:
    from collections.abc import Callable


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add PRESET and the shared options to a command."""
    return click.argument("preset")(shared_options(command))


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options alone."""
    for option in reversed(
        (
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="KEY=VALUE",
                help="Override a key, e.g. --set train.steps=100.",
            ),
            click.option(
                "--hardware", metavar="NAME", help="A hardware profile instead of the one that fits this machine."
            ),
            click.option("--engine", type=click.Choice(["auto", "kohya", "diffusers"]), help="Who trains."),
            click.option(
                "--sd-scripts", type=click.Path(path_type=Path), metavar="PATH", help="The sd-scripts checkout."
            ),
            click.option(
                "--runs",
                "runs_folder",
                type=click.Path(path_type=Path),
                metavar="DIR",
                help="Where run directories go.",
            ),
            click.option(
                "--templates",
                type=click.Path(path_type=Path, resolve_path=True),
                metavar="DIR",
                help="Your own templates, one by one.",
            ),
        )
    ):
        command = option(command)
    return command


def read_choices(overrides: tuple[str, ...], hardware: str | None, engine: str | None, **paths: Path | None) -> Choices:
    """What the shared options said."""
    return Choices(
        overrides=overrides,
        hardware=hardware,
        engine=engine,
        sd_scripts=paths["sd_scripts"],
        runs=paths["runs_folder"],
        templates=paths["templates"],
    )
