"""Options that say how a source is read; shared by the commands of `pixelkit data`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pixelkit.errors import PresetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pixelkit.sources import Reading


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """--sheet, --grid, --repair, --keep-going."""
    for option in reversed(
        (
            click.option("--sheet", metavar="WxH", help="The images are sheets with cells of this size, e.g. 32x32."),
            click.option(
                "--grid", type=click.IntRange(1, 256), help="Pixels of a file per sprite pixel; 1 = as it is."
            ),
            click.option("--repair", is_flag=True, help="Snap blurred or compressed art to its grid."),
            click.option("--keep-going", is_flag=True, help="Leave out what cannot be used, and name it."),
        )
    ):
        command = option(command)
    return command


def read_reading(options: Mapping[str, Any]) -> Reading:
    """What these options ask for. Raises PresetError."""
    from pixelkit.sources import Reading
    from pixelkit.sources.sheets import parse_cells

    try:
        sheet = parse_cells(options["sheet"]) if options["sheet"] is not None else None
    except ValueError:
        raise PresetError(
            f"--sheet {options['sheet']}: no size of a cell", hint="write width x height, as 32x32"
        ) from None
    return Reading(
        sheet=sheet,
        grid=options["grid"],
        repair=options["repair"],
        keep_going=options["keep_going"],
    )
