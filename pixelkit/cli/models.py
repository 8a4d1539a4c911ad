"""`pixelkit models`: the shelf of trained models, and which of them users get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pixelkit.cli import models_show
from pixelkit.cli.models_show import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixelkit.registry.index import Change
    from pixelkit.registry.stages import Permit
    from pixelkit.registry.store import Registry

REASON = click.option("--reason", default="", metavar="TEXT", help="Why; it goes into the log.")
RULES = click.option(
    "--rules",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What a model must meet; default: rules.toml in the registry.",
)
FORCE = click.option("--force", is_flag=True, help="Go on where a rule refuses; the log says so.")
_MEGABYTE = 1 << 20


@click.group()
def models() -> None:
    """Trained models in versions: staging, production, archive; who gets which, and back again.

    The registry is a folder: ./models, the setting `registry`, or --registry. (The setting `models` is something else:
    the folder of base models.)
    """


@models.command()
@click.argument("source", metavar="RUN|FILE")
@click.option("--style", metavar="NAME", help="Default: the preset's or the file's name.")
@click.option("--version", "version_text", metavar="X.Y", help="Default: the next minor version.")
@click.option("--minor", "bump", flag_value="minor", help="The next minor version: 1.4 after 1.3.")
@click.option("--major", "bump", flag_value="major", help="The next major version: 2.0 after 1.3.")
@click.option("--rc", "candidate", is_flag=True, help="As a release candidate: 1.4_rc1, _rc2 ...")
@click.option(
    "--stage",
    type=click.Choice(["staging", "production", "archive"]),
    default="staging",
    show_default=True,
    help="Where it comes to stand.",
)
@click.option(
    "--runs", "runs_folder", type=click.Path(path_type=Path), metavar="DIR", help="Where run directories lie."
)
@RULES
@FORCE
@REASON
@REGISTRY
def add(source: str, *, registry_folder: Path | None, stage: str, **options: Any) -> None:
    """Copy a model in: a run (its directory, its name, or `latest`), a checkpoint of one, or any LoRA file.

    With --stage production it is promoted at once, if the rules allow it. The last line is the model's path.
    """
    from pixelkit.registry.adding import Wish, add_model
    from pixelkit.registry.names import parse_version
    from pixelkit.registry.store import open_registry

    version = options["version_text"]
    if version and options["bump"]:
        raise click.UsageError(f"--version and --{options['bump']} are both given; keep the one you mean")
    registry = open_registry(registry_folder)
    permit = _permit(registry, options["rules"], force=options["force"]) if stage == "production" else None
    wish = Wish(
        style=options["style"],
        version=parse_version(version) if version else None,
        bump=options["bump"],
        candidate=options["candidate"],
        stage="archive" if stage == "archive" else "staging",
        reason=options["reason"],
    )
    file = _find_source(source, options["runs_folder"])
    with _counting("copying, MiB") as count:
        entry = add_model(registry, file, wish, count)
    click.echo(f"{entry.name} is in {entry.stage}", err=True)
    if permit is None:
        click.echo(registry.find_file(entry))
        return
    from pixelkit.registry.stages import promote as promote_model

    _tell(registry, promote_model(registry, str(entry.name), permit, reason=options["reason"]))


@models.command()
@click.argument("model")
@click.option(
    "--to",
    type=click.Choice(["production", "staging"]),
    default="production",
    show_default=True,
    help="staging: out of the archive.",
)
@RULES
@FORCE
@REASON
@REGISTRY
def promote(model: str, *, to: str, rules: Path | None, force: bool, reason: str, registry_folder: Path | None) -> None:
    """MODEL into production, without its _rcN, and to everyone; the one before stays, for `rollback`.

    MODEL is hero_v1.2, or the style alone where one model of it is in staging. --to staging takes one out of the archive.
    """
    from pixelkit.registry.stages import promote as promote_model
    from pixelkit.registry.stages import stage_again
    from pixelkit.registry.store import open_registry

    registry = open_registry(registry_folder)
    if to == "staging":
        change = stage_again(registry, model, reason=reason)
    else:
        change = promote_model(registry, model, _permit(registry, rules, force=force), reason=reason)
    _tell(registry, change)


@models.command()
@click.argument("model")
@REASON
@REGISTRY
def archive(model: str, *, reason: str, registry_folder: Path | None) -> None:
    """MODEL into the archive. One that users get is refused."""
    from pixelkit.registry.stages import archive as archive_model
    from pixelkit.registry.store import open_registry

    registry = open_registry(registry_folder)
    _tell(registry, archive_model(registry, model, reason=reason))


@models.command()
@click.argument("style")
@click.option("--to", metavar="VERSION", help="A version that was in production; default: the one before.")
@REASON
@REGISTRY
def rollback(style: str, *, to: str | None, reason: str, registry_folder: Path | None) -> None:
    """Give everyone the model of STYLE from before, at once; tell those whom the settings name.

    A rollout under way is ended. If none is, current/STYLE.safetensors goes back to the model before.
    """
    from pixelkit.notify import Ended, notify
    from pixelkit.registry.stages import rollback as roll_back
    from pixelkit.registry.store import open_registry

    registry = open_registry(registry_folder)
    change = roll_back(registry, style, to=to, reason=reason)
    said = f"{change.source} -> {change.target}, by {change.who} at {change.time}" + (f": {reason}" if reason else "")
    click.echo(f"{click.style('ALERT', fg='red', bold=True)} {style} rolled back: {said}", err=True)
    link = registry.find_link(style)
    click.echo(link)
    alert = Ended(event="model", name=style, state="rolled back", model=str(link), message=said)
    for warning in notify(alert):
        click.echo(f"{click.style('warning', fg='yellow')}   {warning}", err=True)


@models.command()
@click.argument("style")
@click.argument("version")
@click.argument("share", metavar="PERCENT")
@click.option("--segment", default="", metavar="NAME", help="Only for users whom `pick` names as of this segment.")
@RULES
@FORCE
@REASON
@REGISTRY
def rollout(
    style: str, version: str, share: str, *, segment: str, registry_folder: Path | None, **options: Any
) -> None:
    """Give VERSION of STYLE to a share of the users: `rollout hero 1.3 10%`.

    A model in staging enters production by this. 10% -> 20% moves only those it must; 0% ends it; 100% gives it to all, as
    `promote` does.
    """
    from pixelkit.registry.rollout import Rollout, parse_percent, parse_segment
    from pixelkit.registry.stages import roll_out
    from pixelkit.registry.store import open_registry

    wanted = Rollout(model="", percent=parse_percent(share), segment=parse_segment(segment) if segment else "")
    registry = open_registry(registry_folder)
    permit = _permit(registry, options["rules"], force=options["force"])
    change = roll_out(registry, style, version, wanted, permit, reason=options["reason"])
    _tell(registry, change)


@models.command()
@click.argument("style")
@click.option("--user", required=True, metavar="ID", help="Whatever tells your users apart, and never changes.")
@click.option("--segment", default="", metavar="NAME", help="The user's segment.")
@click.option("--json", "as_json", is_flag=True, help="As JSON: model, file.")
@REGISTRY
def pick(style: str, *, user: str, segment: str, as_json: bool, registry_folder: Path | None) -> None:
    """The file that a user gets: the same user, the same file, in every process and on every machine."""
    import json

    from pixelkit.registry.rollout import pick_model
    from pixelkit.registry.store import open_registry

    registry = open_registry(registry_folder)
    model, file = pick_model(registry.folder, style, user, segment)
    click.echo(json.dumps({"style": style, "model": model, "file": str(file)}) if as_json else file)


@models.command()
@click.argument("model")
@click.argument("scores", nargs=-1, required=True, metavar="NAME=VALUE...")
@REASON
@REGISTRY
def score(model: str, *, scores: tuple[str, ...], reason: str, registry_folder: Path | None) -> None:
    """Write scores down that were measured elsewhere: `score hero_v1.3 human_rating=4.3 used_as_is=0.82`."""
    from pixelkit.errors import PresetError
    from pixelkit.registry.stages import score as score_model
    from pixelkit.registry.store import open_registry

    found = {}
    for text in scores:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise PresetError(f"{text}: no score", hint="write NAME=NUMBER, as human_rating=4.3") from None
        if not name.strip() or abs(found[name.strip()]) == float("inf") or value.strip().lower() == "nan":
            raise PresetError(f"{text}: no score", hint="write NAME=NUMBER, as human_rating=4.3")
    registry = open_registry(registry_folder)
    _tell(registry, score_model(registry, model, found, reason=reason))


def _find_source(text: str, runs: Path | None) -> Path:
    """The file of a run that is shipped, or the file that is meant. Raises StorageError."""
    from pixelkit.errors import StorageError
    from pixelkit.paths import user_path
    from pixelkit.ready import Choices, runs_folder
    from pixelkit.registry.facts import find_shipped
    from pixelkit.rundir import find_run

    path = user_path(text)
    if path.is_file():
        return path.resolve()
    if path.suffix == ".safetensors":
        raise StorageError(f"{text}: no such file")
    return find_shipped(find_run(runs_folder(Choices(runs=runs)), text))


def _permit(registry: Registry, rules: Path | None, *, force: bool) -> Permit:
    from pixelkit.registry.rules import read_rules
    from pixelkit.registry.stages import Permit

    return Permit(rules=read_rules(rules or registry.rules_file, must_exist=rules is not None), force=force)


def _tell(registry: Registry, change: Change) -> None:
    """What was done on standard error, the model's path on standard output."""
    way = f"{change.source} -> {change.target}" if change.source else change.target
    click.echo(f"{change.event}  {way}", err=True)
    if change.forced:
        click.echo(f"{click.style('warning', fg='yellow')}   forced, though {change.forced}", err=True)
    for deployment in change.deployments:
        gets = ", ".join(
            f"{row.percent:g}%{f' of {row.segment}' if row.segment else ''} {row.model}" for row in deployment.rollouts
        )
        click.echo(f"users get  {deployment.current}{f'; {gets}' if gets else ''}", err=True)
    entry = change.models.get(change.model)
    if entry is not None:
        click.echo(registry.find_file(entry))


def _counting(what: str) -> Any:
    from contextlib import contextmanager

    from pixelkit.cli import report

    @contextmanager
    def counting() -> Iterator[Callable[[int, int], None]]:
        with report.progressing(what) as show:
            yield lambda done, total: show(done // _MEGABYTE, total // _MEGABYTE)

    return counting()


for _command in models_show.COMMANDS:
    models.add_command(_command)
