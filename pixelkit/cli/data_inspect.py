"""`pixelkit data inspect`: what is in a set of sprites, as a checklist, a page and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.cli import report
from pixelkit.cli.reading import read_reading, reading_options

if TYPE_CHECKING:
    from pixelkit.dataset.inspect import Purpose, Report

FILE = click.Path(path_type=Path)
_NAMED = 5
_COLORS = {"pass": "green", "look": "yellow", "fail": "red"}


@click.command()
@click.argument("source", metavar="SRC", type=FILE)
@click.option("--out", type=FILE, metavar="DIR", help="Where page and sheet go; default: SRC's name, -inspect.")
@click.option("--preset", metavar="FILE", help="Hold the set against this preset: its method, base and sheets.")
@click.option("--base", metavar="NAME", help="Hold the sizes against this base: sdxl, sd15, flux ...")
@reading_options
def inspect(source: Path, *, out: Path | None, preset: str | None, base: str | None, **options: Any) -> None:
    """Look for duplicates, outliers, soft and damaged art in SRC, and count what is there against what is wanted.

    SRC is a folder, a zip or a prepared set; it is only read. Whatever is found, the exit code is 0: the verdicts are
    pass, look and fail. The last lines on standard output are the page and the sheets.
    """
    if preset and base:
        raise click.UsageError("--preset names a base already; give one of --preset and --base")
    from pixelkit.dataset.build import check_target
    from pixelkit.dataset.inspect import inspect as inspect_set
    from pixelkit.dataset.inspect.contact import write_pages
    from pixelkit.dataset.inspect.page import write_page

    folder = out or Path(f"{source.resolve().name.removesuffix('.zip')}-inspect")
    check_target(source, folder)
    purpose = _purpose(preset, base, options)
    with report.progressing("looking at sprites") as show:
        found = inspect_set(source, purpose, show)
        written = [write_page(found, folder), *write_pages(found, folder)]
    report.print_notes(found.remarks, found.left_out)
    _print_findings(found)
    for file in written:
        click.echo(file)


def _purpose(preset: str | None, base: str | None, options: dict[str, Any]) -> Purpose:
    """Raises PresetError and CatalogError."""
    from pixelkit.catalog import find_spec
    from pixelkit.dataset.inspect import Purpose
    from pixelkit.preset_file import load_preset
    from pixelkit.ready import read_how
    from pixelkit.sources import Reading

    reading = read_reading(options)
    if preset is None:
        return Purpose(reading=reading, spec=find_spec(base) if base else None)
    wanted = load_preset(preset).preset
    return Purpose(
        reading=read_how(wanted.dataset) if reading == Reading() else reading,
        spec=find_spec(wanted.family or wanted.base),
        resolution=wanted.dataset.resolution,
        scale=wanted.dataset.scale,
        method=wanted.method,
    )


def _print_findings(found: Report) -> None:
    import textwrap

    for check in found.checks:
        verdict = click.style(f"{check.verdict:4}", fg=_COLORS[check.verdict], bold=True)
        first, *more = textwrap.wrap(check.text, 92) or [""]
        click.echo(f"{verdict}  {check.question:14}  {first}")
        for line in more:
            click.echo(f"{'':22}{line}")
        if check.verdict != "pass" and check.worst:
            names = ", ".join(found.sprites[place].name for place in check.worst[:_NAMED])
            click.echo(f"{'':22}first: {names}")
    click.echo()
    rows = [(one.use, one.method, one.range, one.judge(found.drawings), one.source) for one in found.wanted]
    report.print_table(rows, header=("wanted for", "with", "sprites", f"{found.drawings:,} here", "says"))
