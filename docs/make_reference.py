"""Writes what is made from the code: presets/preset.schema.json, docs/presets.md, docs/commands.md.

Run it from the top folder after changing a preset's keys or a command: `uv run python docs/make_reference.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pixelkit.cli import main
from pixelkit.cli.presets import schema_text

ROOT = Path(__file__).resolve().parent.parent


def presets_text() -> str:
    """docs/presets.md: every key of a preset with type, default and meaning."""
    schema = json.loads(schema_text())
    definitions = schema["$defs"]
    parts = [
        "# Every key of a preset",
        "",
        "Made from the schema by `docs/make_reference.py`. A preset is a TOML file; only `name`, `base` and `[dataset] path`",
        "must be there. `extends` takes everything else from another preset. `pixelkit check my.toml` shows what each key",
        "ends up as, and where it comes from.",
        "",
        *_table("At the top of the file", schema, definitions),
    ]
    for name, field in schema["properties"].items():
        if "$ref" in field:
            table = definitions[field["$ref"].rsplit("/", 1)[1]]
            parts += _table(f"[{name}]", table, definitions)
    parts += [
        "## [kohya]",
        "",
        "Any option of the trainer's script by its own name, for example `min_timestep = 100`. Each is checked before launch:",
        "a name that does not exist in that script, a wrong type or an illegal choice is an error with file and line. What a",
        "preset can say in its own terms (`max_train_steps` is `train.steps`) is taken as if it were written there.",
        "",
    ]
    return "\n".join(parts)


def _table(title: str, schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    rows = [f"## {title}", ""]
    if text := schema.get("description", ""):
        rows += [" ".join(text.split()), ""] if title.startswith("[") else []
    rows += ["| key | value | default | meaning |", "|---|---|---|---|"]
    required = schema.get("required", [])
    for key, field in schema["properties"].items():
        if "$ref" in field or field.get("type") == "object":
            continue
        default = "must be given" if key in required else _show(field.get("default"))
        rows.append(f"| `{key}` | {_type(field, definitions)} | {default} | {field.get('description', '')} |")
    return [*rows, ""]


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option, definitions) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'], definitions)}"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    limits = [
        f"{word} {field[key]:g}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in field
    ]
    return " ".join([names[field["type"]], *limits])


def _show(value: object) -> str:
    return "" if value in (None, "") else "none" if value == [] else f"`{json.dumps(value)}`"


def commands_text() -> str:
    """docs/commands.md: every command with its help, as `--help` prints it."""
    parts = ["# Every command", "", "Made from `--help` by `docs/make_reference.py`.", ""]
    parts += _commands(main, click.Context(main, info_name="pixelkit", terminal_width=100, **main.context_settings))
    return "\n".join(parts)


def _commands(command: click.Command, context: click.Context) -> list[str]:
    parts = [f"## {context.command_path}", "", "```", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            child = command.get_command(context, name)
            assert child
            parts += _commands(child, click.Context(child, info_name=name, parent=context))
    return parts


FILES = {
    ROOT / "presets" / "preset.schema.json": schema_text,
    ROOT / "docs" / "presets.md": presets_text,
    ROOT / "docs" / "commands.md": commands_text,
}

if __name__ == "__main__":
    for path, make in FILES.items():
        path.write_text(make(), "utf-8")
        print(path.relative_to(ROOT))
