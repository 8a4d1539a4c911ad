"""`pixelkit models`: the commands that look and change nothing, and `verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.cli import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.registry.index import Entry
    from pixelkit.registry.rollout import Deployment

REGISTRY = click.option(
    "--registry",
    "registry_folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The registry; default: the setting `registry`, else ./models.",
)
_MEGABYTE = 1 << 20
_SCORES_SHOWN = 3


@click.command("list")
@click.option("--style", metavar="NAME", help="Only this style's.")
@click.option("--stage", type=click.Choice(["staging", "production", "archive"]), help="Only those here.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: stage, in_use, path and the metadata of each.")
@REGISTRY
def list_command(*, style: str | None, stage: str | None, as_json: bool, registry_folder: Path | None) -> None:
    """All models by style and version: stage, who gets it, base, when it was trained, scores."""
    from pixelkit.registry.store import find_style, open_registry

    registry = open_registry(registry_folder)
    with registry.reading() as index:
        entries = find_style(index, style) if style else index.models()
        deployments = index.deployments()
    entries = [entry for entry in entries if stage in (None, entry.stage)]
    used = {str(entry.name): _tell_use(entry, deployments.get(entry.name.style)) for entry in entries}
    if as_json:
        rows = [
            {
                "name": str(entry.name),
                "stage": entry.stage,
                "in_use": used[str(entry.name)],
                "path": str(registry.find_file(entry)),
                "metadata": entry.metadata,
            }
            for entry in entries
        ]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    header = ("model", "stage", "users", "base", "type", "trained", "sprites", "scores")
    report.print_table([_tell_row(entry, used[str(entry.name)]) for entry in entries], header=header)


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="The metadata as it lies beside the model.")
@REGISTRY
def show(model: str, *, as_json: bool, registry_folder: Path | None) -> None:
    """All that is known of MODEL: where it came from, its scores, licences, files, and what became of it."""
    from pixelkit.registry.compare import flatten
    from pixelkit.registry.compare import show as show_value
    from pixelkit.registry.store import find_model, open_registry

    registry = open_registry(registry_folder)
    with registry.reading() as index:
        entry = find_model(index.models(), model)
        deployment = index.deployments().get(entry.name.style)
        rows = _choose_rows(index.log(entry.name.style), str(entry.name))
    if as_json:
        click.echo(json.dumps(entry.metadata, indent=2, ensure_ascii=False))
        return
    click.echo(registry.find_file(entry))
    table = [("users", _tell_use(entry, deployment) or "none"), *flatten(entry.metadata)]
    report.print_table([(key, show_value(value)) for key, value in table])
    click.echo()
    _print_log(rows)


@click.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="As JSON: key -> [A, B].")
@REGISTRY
def diff(one: str, other: str, *, as_json: bool, registry_folder: Path | None) -> None:
    """What differs between two models: settings, data, scores, files."""
    from pixelkit.registry.compare import compare
    from pixelkit.registry.compare import show as show_value
    from pixelkit.registry.store import find_model, open_registry

    with open_registry(registry_folder).reading() as index:
        entries = index.models()
    left, right = find_model(entries, one), find_model(entries, other)
    rows = compare(left, right)
    if as_json:
        click.echo(json.dumps({key: values for key, *values in rows}, indent=2, ensure_ascii=False))
        return
    header = ("differs", str(left.name), str(right.name))
    report.print_table([(key, show_value(a), show_value(b)) for key, a, b in rows], header=header)


@click.command()
@click.argument("style", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON, one row a line.")
@REGISTRY
def log(style: str | None, *, as_json: bool, registry_folder: Path | None) -> None:
    """Every change that ever was, oldest first: when (UTC), who, what, from, to, why. It cannot be changed."""
    from pixelkit.registry.store import find_style, open_registry

    with open_registry(registry_folder).reading() as index:
        rows = index.log(style)
        if style and not rows:
            find_style(index, style)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
    else:
        _print_log(rows)


@click.command()
@click.option("--rebuild", is_flag=True, help="First make the index anew from the files, and mend current/.")
@click.option("--quick", is_flag=True, help="Sizes only; hashes are not computed.")
@click.option("--reason", default="", metavar="TEXT", help="Why; it goes into the log.")
@REGISTRY
def verify(*, rebuild: bool, quick: bool, reason: str, registry_folder: Path | None) -> None:
    """Compare files, links and index, and say of each trouble what to do. Exit code 9 if there is any."""
    from pixelkit.errors import StorageError
    from pixelkit.registry import checking
    from pixelkit.registry.store import open_registry

    registry = open_registry(registry_folder)
    if rebuild:
        for line in checking.rebuild(registry, reason=reason):
            click.echo(line, err=True)
    with registry.reading():
        pass  # raises where there is none, before anything is made
    with report.progressing("hashing, MiB") as show_progress:
        found = checking.verify(
            registry,
            hashes=not quick,
            on_progress=lambda done, total: show_progress(done // _MEGABYTE, total // _MEGABYTE),
        )
    for remark in found.remarks:
        click.echo(remark, err=True)
    if found.problems:
        trouble = "1 trouble" if len(found.problems) == 1 else f"{len(found.problems)} troubles"
        raise StorageError(f"{registry.folder}: {trouble}", problems=found.problems)
    models = "1 model" if found.models == 1 else f"{found.models} models"
    click.echo(f"{models}, {found.files} files: all as they should be")


@click.command()
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE.zip",
    help="Where the zip goes.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@REGISTRY
def export(model: str, *, out: Path, overwrite: bool, registry_folder: Path | None) -> None:
    """MODEL with its metadata, all that was shipped with it, and its licences, as a zip: the same bytes every time."""
    from pixelkit.errors import StorageError
    from pixelkit.registry import bundle
    from pixelkit.registry.store import find_model, open_registry

    if out.exists() and not overwrite:
        raise StorageError(f"{out} is already there", hint="--overwrite replaces it")
    registry = open_registry(registry_folder)
    with registry.reading() as index:
        entry = find_model(index.models(), model)
    with report.progressing("writing, MiB") as show_progress:
        bundle.export(registry, entry, out, lambda done, total: show_progress(done // _MEGABYTE, total // _MEGABYTE))
    click.echo(bundle.tell_licences(entry).rstrip(), err=True)
    click.echo(out)


COMMANDS = (list_command, show, diff, log, verify, export)


def _tell_use(entry: Entry, deployment: Deployment | None) -> str:
    if deployment is None:
        return ""
    name = str(entry.name)
    parts = ["current"] if deployment.current == name else []
    parts += [
        f"{row.percent:g}%" + (f" of {row.segment}" if row.segment else "")
        for row in deployment.rollouts
        if row.model == name
    ]
    if not parts and deployment.earlier[-1:] == (name,):
        parts.append("before")
    return ", ".join(parts)


def _tell_row(entry: Entry, use: str) -> tuple[object, ...]:
    about: Any = entry.metadata
    scores = [(name, value) for name, value in about.get("metrics", {}).items() if value is not None]
    shown = ", ".join(f"{name} {value:g}" for name, value in scores[:_SCORES_SHOWN])
    more = f", {len(scores) - _SCORES_SHOWN} more" if len(scores) > _SCORES_SHOWN else ""
    trained = str(about.get("training_date") or "")[:16].replace("T", " ")
    size = (about.get("dataset") or {}).get("size")
    return (str(entry.name), entry.stage, use, about.get("base_model"), about.get("type"), trained, size, shown + more)


def _choose_rows(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Rows of a model, those of the candidate that it was, and those that led users away from it."""
    own = [row for row in rows if row["model"] == name]
    names = {name} | {row["from"].rpartition("/")[2] for row in own if "/" in (row["from"] or "")}
    return [row for row in rows if row["model"] in names or row["from"] in names]


def _print_log(rows: list[dict[str, Any]]) -> None:
    table = [
        (
            row["timestamp"],
            row["who"],
            row["event"],
            row["from"],
            row["to"],
            "; ".join(part for part in (row["reason"], row["forced"] and f"forced, though {row['forced']}") if part),
        )
        for row in rows
    ]
    report.print_table(table, header=("when", "who", "event", "from", "to", "why"))
