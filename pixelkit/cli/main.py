"""`pixelkit`: the group that holds all commands; each is loaded when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from pixelkit import __version__
from pixelkit.errors import PixelkitError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

# command -> the module of pixelkit.cli that has it under the same name
COMMANDS: Final[Mapping[str, str]] = {
    "check": "training",
    "config": "machine",
    "convert": "convert",
    "data": "data",
    "doctor": "machine",
    "estimate": "estimate",
    "hardware": "machine",
    "lora": "convert",
    "measures": "estimate",
    "models": "models",
    "presets": "presets",
    "queue": "queue",
    "render": "training",
    "resume": "training",
    "run": "training",
    "runs": "runs",
    "tune": "tune",
}


class Group(click.Group):
    """Turns pixelkit's errors into one message and their exit code; nobody sees a traceback for bad input."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002, D102 - click's
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002, D102 - click's
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pixelkit.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102 - click's
        from pixelkit.cli import report

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
