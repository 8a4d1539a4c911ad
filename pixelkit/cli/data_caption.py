"""`pixelkit data caption`: captions written from names, pixels or a model; checked; edited; words replaced."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pixelkit.errors import DataError, PixelkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pixelkit.dataset.captions import Change, Entry
    from pixelkit.dataset.captions.writing import Written

WRITING = ("template", "path", "coordinates", "blip", "florence", "wd14")
MODELS = ("blip", "florence", "wd14")
MODES = (*WRITING, "validate", "edit", "replace")
# Which modes an option is for; what is given to another is refused, and not ignored.
USES: dict[str, tuple[str, ...]] = {
    "prefix": WRITING,
    "suffix": WRITING,
    "trigger": (*WRITING, "validate"),
    "overwrite": WRITING,
    "dry_run": (*WRITING, "edit"),
    "model": MODELS,
    "device": ("blip", "florence"),
    "threshold": ("wd14",),
    "tokenizer": ("validate",),
    "form": ("edit",),
    "edited": ("edit",),
    "find": ("replace",),
    "replacement": ("replace",),
    "regex": ("replace",),
    "yes": ("replace",),
}
SHOWN_CHANGES = 20


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--mode", type=click.Choice(MODES), required=True, help="What to do; see below.")
@click.option("--prefix", default="", metavar="TEXT", help='Begins every caption: --prefix "pixel art".')
@click.option("--suffix", default="", metavar="TEXT", help='Ends every caption: --suffix "game sprite, 16-bit style".')
@click.option("--trigger", default="", metavar="WORD", help="The trigger word, before everything else.")
@click.option("--overwrite", is_flag=True, help="Also where there is a caption; the old one goes to the backup.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, write nothing.")
@click.option("--model", metavar="DIR|NAME", help="blip, florence: a folder or a name on the hub. wd14: a folder.")
@click.option(
    "--device", default="auto", metavar="NAME", help="blip, florence: cuda, cpu, mps. Default: the GPU if there is one."
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.35, show_default=True, help="wd14: how sure a tag must be."
)
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="DIR", help="validate: whose tokens to count.")
@click.option(
    "--format", "form", type=click.Choice(["toml", "csv"]), default="toml", show_default=True, help="edit: as what."
)
@click.option(
    "--from", "edited", type=click.Path(path_type=Path), metavar="FILE", help="edit: apply a file edited before."
)
@click.option("--find", default="", metavar="TEXT", help="replace: what to look for.")
@click.option("--replace", "replacement", default="", metavar="TEXT", help="replace: what to put there.")
@click.option(
    "--regex", is_flag=True, help=r"replace: --find is a regular expression; \1 in --replace is its first group."
)
@click.option("--yes", is_flag=True, help="replace: do it; without, it is only shown.")
def caption(source: Path, *, mode: str, **options: Any) -> None:
    """Write, check or edit the captions of the sprites in SRC: a text file beside each image.

    \b
    template     kind, category, direction, colours, background
    path         from file and folder names: mon/orc_wizard.png is an "orc wizard, monster"
    coordinates  24x24 portraits: each feature's colour, rows and columns, measured
    blip         a BLIP or BLIP-2 model; florence: Florence-2; wd14: tags by a WD14 tagger
    validate     length, tokens, trigger, encoding, repeated and generic captions, terms
    edit         all captions in one file in your editor
    replace      find and replace, shown before it is done

    A caption that is there is kept unless --overwrite says otherwise. Whatever is replaced lies in SRC/.captions-backup.
    """
    _refuse_unused(click.get_current_context(), mode)
    tasks: dict[str, Callable[..., None]] = {"validate": _validate, "edit": _edit, "replace": _replace}
    task: Callable[..., None] = tasks.get(mode, _write)
    task(source, mode=mode, **options)


def _refuse_unused(ctx: click.Context, mode: str) -> None:
    for param in ctx.command.params:
        name = param.name or ""
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and mode not in USES.get(name, MODES):
            raise click.UsageError(f"{param.opts[0]} is for --mode {', '.join(USES[name])}; not for {mode}")


def _write(source: Path, *, mode: str, overwrite: bool, dry_run: bool, **options: Any) -> None:
    from pixelkit.dataset.captions import Style, find_entries, write_changes
    from pixelkit.dataset.captions.writing import Written, choose_entries, propose

    entries = find_entries(source)
    chosen = choose_entries(entries, overwrite=overwrite)
    if not chosen:
        click.echo(f"all {len(entries)} images have a caption; --overwrite writes them anew")
        return
    style = Style(trigger=options["trigger"], prefix=options["prefix"], suffix=options["suffix"])
    written = Written(source=source)
    proposed = propose(_watched(chosen, mode), _captioner(mode, **options), style, written)
    if dry_run:
        for change in proposed:
            click.echo(f"{change.entry.name}: {change.text}")
    else:
        for _ in write_changes(proposed, written):
            pass
        kept = len(entries) - len(chosen)
        click.echo(f"{written.files} captions written{f', {kept} kept as they were' if kept else ''}")
        _tell_backup(written)
    if written.problems:
        raise DataError(
            f"{len(written.problems)} of {len(chosen)} images have no caption from --mode {mode}"
            f"{'; the others are written' if written.files else ''}",
            problems=written.problems,
        )


def _captioner(mode: str, *, model: str | None, device: str, threshold: float, **_: Any) -> Callable[[Entry], str]:
    from pixelkit.dataset.captions.entries import open_sprite

    if mode == "path":
        from pixelkit.dataset.captions.words import describe_path

        return lambda entry: describe_path(entry.name.partition("+")[0])
    if mode == "template":
        from pixelkit.dataset.captions.facts import facts_of, write_facts

        return lambda entry: write_facts(facts_of(open_sprite(entry), entry.drawing))
    if mode == "coordinates":
        from pixelkit.dataset.captions.coordinates import caption_portrait

        return lambda entry: caption_portrait(open_sprite(entry))
    if mode == "wd14":
        from pixelkit.dataset.captions.tags import load_tagger

        describe = load_tagger(Path(model) if model else None, threshold=threshold)
    else:
        from pixelkit.dataset.captions.vision import load_captioner

        describe = load_captioner(mode, model, device=device)
    return lambda entry: describe(open_sprite(entry))


def _validate(source: Path, *, trigger: str, tokenizer: Path | None, **_: Any) -> None:
    from pixelkit.dataset.captions import find_entries
    from pixelkit.dataset.captions.tokens import find_tokenizer
    from pixelkit.dataset.captions.validate import validate

    counter = find_tokenizer(tokenizer)
    entries = find_entries(source)
    findings = validate(source, entries, counter, trigger=trigger)
    for warning in findings.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}  {warning}")
    click.echo(f"tokens    {counter.name}")
    click.echo(f"captions  {findings.captions} of {len(entries)} images, {len(findings.warnings)} warnings")
    if findings.errors:
        raise DataError(f"{len(findings.errors)} errors in the captions of {source}", problems=findings.errors)


def _edit(source: Path, *, form: str, edited: Path | None, dry_run: bool, **_: Any) -> None:
    from pixelkit.dataset.captions import find_entries
    from pixelkit.dataset.captions.edit import read_changes, write_table
    from pixelkit.dataset.captions.writing import new_backup
    from pixelkit.paths import write_atomically

    entries = find_entries(source)
    file = edited
    if file is None:
        file = new_backup(source, before="edit-", after=f".{form}")
        write_atomically(file, write_table(entries, "csv" if form == "csv" else "toml"))
    again = f"your edits are kept: pixelkit data caption {source} --mode edit --from {file}"
    try:
        if edited is None:
            click.edit(filename=str(file))
        changes = read_changes(file, entries)
    except PixelkitError as error:
        raise type(error)(error.message, hint=f"mend the rows; {again}", problems=error.problems) from None
    except click.ClickException as error:
        raise DataError(f"the editor failed: {error.message}", hint=f"set EDITOR; {again}") from None
    _apply(source, changes, dry_run=dry_run)
    if dry_run:
        click.echo(again)
    elif edited is None:
        file.unlink()


def _replace(source: Path, *, find: str, replacement: str, regex: bool, yes: bool, **_: Any) -> None:
    from pixelkit.dataset.captions import find_entries
    from pixelkit.dataset.captions.replace import find_changes

    changes = find_changes(source, find_entries(source), find, replacement, regex=regex)
    _apply(source, changes, dry_run=not yes)
    if changes and not yes:
        click.echo("nothing is changed yet; --yes does it")


def _apply(source: Path, changes: Sequence[Change], *, dry_run: bool) -> None:
    """Show what changes, and write it unless `dry_run`."""
    from pixelkit.dataset.captions import write_changes
    from pixelkit.dataset.captions.writing import Written

    for change in changes[:SHOWN_CHANGES]:
        click.echo(change.entry.name)
        click.echo(click.style(f"  - {change.entry.text or ''}", fg="red"))
        click.echo(click.style(f"  + {change.text}", fg="green"))
    if more := len(changes[SHOWN_CHANGES:]):
        click.echo(f"... and {more} more")
    if not changes:
        click.echo("no caption changes")
    elif dry_run:
        click.echo(f"{len(changes)} captions would change")
    else:
        written = Written(source=source)
        for _ in write_changes(changes, written):
            pass
        click.echo(f"{written.files} captions changed")
        _tell_backup(written)


def _tell_backup(written: Written) -> None:
    if written.backup:
        click.echo(f"{written.replaced} previous captions are in {written.backup}")


def _watched(entries: Sequence[Entry], title: str) -> Iterable[Entry]:
    """The entries, a bar with the time left on standard error meanwhile; elsewhere than on a terminal a line in a while."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or not console.file.isatty():
        yield from _told(entries, title)
        return
    columns = (TextColumn(title), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stderr=False, redirect_stdout=True) as bar:
        yield from bar.track(entries)


def _told(entries: Sequence[Entry], title: str) -> Iterator[Entry]:
    from pixelkit.display import PLAIN_EVERY, format_seconds

    begun = told = time.monotonic()
    for number, entry in enumerate(entries):
        now = time.monotonic()
        if now >= told + PLAIN_EVERY:
            told = now
            left = (now - begun) / number * (len(entries) - number) if number else 0
            click.echo(f"{title}: {number}/{len(entries)}  {format_seconds(left)} left", err=True)
        yield entry
