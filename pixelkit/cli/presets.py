"""`pixelkit presets`: the shipped presets, and the schema that editors complete and check with."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pixelkit.cli import report
from pixelkit.errors import PresetError, did_you_mean
from pixelkit.paths import data_dir, write_atomically
from pixelkit.preset import Preset
from pixelkit.preset_file import load_preset, shipped_presets
from pixelkit.toml_text import format_value

SCHEMA = "preset.schema.json"


@click.group()
def presets() -> None:
    """The presets that come with pixelkit."""


@presets.command("list")
def list_presets() -> None:
    """All shipped presets: name, base, what each trains."""
    rows = [
        (name, load_preset(str(path)).preset.base, _first_comment(path)) for name, path in shipped_presets().items()
    ]
    report.print_table(rows, header=("preset", "base", "trains"))


@presets.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a shipped preset."""
    click.echo(_shipped(name).read_text("utf-8"), nl=False)


@presets.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def copy(name: str, file: Path) -> None:
    """Copy a shipped preset to FILE, to edit it there. Never overwrites."""
    source = _shipped(name)
    written = load_preset(str(source)).preset.dataset.path
    if file.is_dir():
        file = file / source.name
    if file.exists():
        raise PresetError(f"{file} exists already", hint="choose another name")
    text = source.read_text("utf-8").replace("#:schema ./", f"#:schema {data_dir('presets').as_uri()}/", 1)
    if (sprites := source.parent / written).is_dir():  # the quickstart's own
        text = text.replace(f'path = "{written}"', f"path = {format_value(sprites)}", 1)
    write_atomically(file, text)
    click.echo(file)


@presets.command()
def schema() -> None:
    """Print the JSON Schema of a preset."""
    click.echo(schema_text(), nl=False)


def schema_text() -> str:
    """The JSON Schema of a preset as text, as presets/preset.schema.json holds it."""
    return (
        json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **Preset.model_json_schema()}, indent=1)
        + "\n"
    )


def _shipped(name: str) -> Path:
    shipped = shipped_presets()
    if name not in shipped:
        raise PresetError(
            f"no shipped preset is called {name}", hint=did_you_mean(name, shipped) or f"there are {', '.join(shipped)}"
        )
    return shipped[name]


def _first_comment(path: Path) -> str:
    lines = path.read_text("utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")
