"""Captions go to disk: whole or not at all, and never over a previous one that is not kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.dataset.captions.entries import show_path
from pixelkit.errors import DataError, Problem, StorageError
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pixelkit.dataset.captions.entries import Entry

KEPT_IN = ".captions-backup"
"""Below the source; hidden, so that nothing takes it for sprites."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What every caption of a set shares: the trigger word first, then the prefix; the suffix last."""

    trigger: str = ""
    prefix: str = ""
    suffix: str = ""

    def dress(self, text: str) -> str:
        """The caption with trigger, prefix and suffix, joined by commas; a part that stands there already is not repeated."""
        out = " ".join(text.split()).strip(" ,")
        for part, before in ((self.prefix, True), (self.suffix, False), (self.trigger, True)):
            phrase = " ".join(part.split()).strip(" ,")
            if phrase and f", {phrase.lower()}," not in f", {out.lower()},":
                out = ", ".join(piece for piece in ((phrase, out) if before else (out, phrase)) if piece)
        return out


@dataclass(frozen=True, kw_only=True)
class Change:
    """A caption that is to stand beside an image."""

    entry: Entry
    text: str


@dataclass(kw_only=True)
class Written:
    """What was written. `backup`: the folder that holds the previous captions, None where there were none."""

    source: Path
    files: int = 0
    replaced: int = 0
    backup: Path | None = None
    problems: list[Problem] = field(default_factory=list)


def propose(
    entries: Iterable[Entry], caption: Callable[[Entry], str], style: Style, written: Written
) -> Iterator[Change]:
    """A caption for each image, one at a time. What cannot be captioned is noted in `written.problems` and left out."""
    for entry in entries:
        try:
            text = style.dress(caption(entry))
        except DataError as error:
            where = show_path(entry.image, written.source)
            problems = error.problems or (Problem(what=error.message, hint=error.hint),)
            written.problems += [Problem(where=where, what=each.what, hint=each.hint) for each in problems]
            continue
        if text:
            yield Change(entry=entry, text=text)


def choose_entries(entries: Sequence[Entry], *, overwrite: bool) -> list[Entry]:
    """Those to be captioned: all of them, or those without a caption (an empty file is none).

    Raises DataError for files that cannot be read: what they hold could be a caption.
    """
    if overwrite:
        return list(entries)
    problems = [
        Problem(where=entry.file.name, what=entry.trouble, hint="mend it, or --overwrite keeps it in the backup only")
        for entry in entries
        if entry.trouble
    ]
    if problems:
        raise DataError(f"{len(problems)} captions cannot be read", problems=problems)
    return [entry for entry in entries if not entry.text]


def write_changes(changes: Iterable[Change], written: Written) -> Iterator[Change]:
    """Write each caption as it comes, the previous file copied to the backup before, and give it on. Raises StorageError."""
    for change in changes:
        file = change.entry.file
        if file.exists():
            if written.backup is None:
                written.backup = new_backup(written.source)
            _keep(file, written.source, written.backup)
            written.replaced += 1
        write_atomically(file, f"{change.text}\n")
        written.files += 1
        yield change


def new_backup(source: Path, *, before: str = "", after: str = "") -> Path:
    """A path in the backup that is not there yet, named by the time in UTC; `before` and `after` frame the name."""
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    path, number = source / KEPT_IN / f"{before}{time}{after}", 2
    while path.exists():
        path, number = path.with_name(f"{before}{time}-{number}{after}"), number + 1
    return path


def _keep(file: Path, source: Path, backup: Path) -> None:
    relative = file.relative_to(source) if file.is_relative_to(source) else Path("..", file.parent.name, file.name)
    target = backup / Path(*(part if part != ".." else "outside" for part in relative.parts))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot keep {file}: {error.strerror}") from error
    write_atomically(target, content)
