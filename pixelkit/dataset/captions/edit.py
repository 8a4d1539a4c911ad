"""All captions of a set as one table to edit, TOML or CSV, and back."""

from __future__ import annotations

import csv
import io
import tomllib
from typing import TYPE_CHECKING, Literal

from pixelkit.dataset.captions.writing import Change
from pixelkit.errors import DataError, Problem, did_you_mean
from pixelkit.toml_lines import locate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pixelkit.dataset.captions.entries import Entry

Form = Literal["toml", "csv"]
HEADER = ("image", "caption")
_TOML_HEAD = "# Change what stands right of the =, save, close. A line taken out leaves its caption as it is.\n"
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def write_table(entries: Sequence[Entry], form: Form) -> str:
    """Every image's name and caption; a caption that is not there is empty."""
    rows = [(entry.name, entry.text or "") for entry in entries]
    if form == "toml":
        return _TOML_HEAD + "".join(f"{_quote(name)} = {_quote(text)}\n" for name, text in rows)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([HEADER, *rows])
    return out.getvalue()


def read_changes(file: Path, entries: Sequence[Entry]) -> tuple[Change, ...]:
    """What differs from the captions on disk. The form is that of the file's name.

    Raises DataError that names every bad row with its line: no such image, one named twice, a caption that is empty or no text.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start + 1})", hint="save it as UTF-8") from None
    problems: list[Problem] = []
    known = {entry.name: entry for entry in entries}
    rows = _csv_rows(text, file, problems) if file.suffix.lower() == ".csv" else _toml_rows(text, file)
    changes: dict[str, Change] = {}
    seen: set[str] = set()
    for line, name, caption in rows:
        where = f"{file.name}:{line}"
        if problem := _check_row(name, caption, known, seen):
            problems.append(Problem(where=where, what=problem[0], hint=problem[1]))
        elif isinstance(caption, str) and caption.strip() != (known[name].text or ""):
            changes[name] = Change(entry=known[name], text=caption.strip())
        seen.add(name)
    if problems:
        raise DataError(f"{file}: rows that cannot be used, {len(problems)}; nothing was changed", problems=problems)
    return tuple(changes.values())


def _check_row(name: str, caption: object, known: Mapping[str, Entry], seen: set[str]) -> tuple[str, str] | None:
    """What is wrong with a row, and what to do."""
    if name not in known:
        return f"no image is called {name}", did_you_mean(name, known) or "its first column is not to be edited"
    if name in seen:
        return f"{name} stands there twice", "take one out"
    if not isinstance(caption, str):
        return f"{name}: a caption is text in quotes", ""
    if not caption.strip() and known[name].text:
        return f"{name}: the caption is empty", "write one, or take the line out to leave it as it is"
    return None


def _toml_rows(text: str, file: Path) -> Iterator[tuple[int, str, object]]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(
            f"{file} is no TOML: {error}; nothing was changed", hint='a row is "name" = "caption"'
        ) from None
    lines = locate(text)
    for name, caption in table.items():
        yield lines.get((name,), 1), name, caption


def _csv_rows(text: str, file: Path, problems: list[Problem]) -> Iterator[tuple[int, str, object]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            start, line = line, reader.line_num + 1
            if not row or (start == 1 and tuple(row) == HEADER):
                continue
            if len(row) != len(HEADER):
                what = f"{len(row)} columns, not two"
                problems.append(
                    Problem(where=f"{file.name}:{start}", what=what, hint="a caption with commas stands in quotes")
                )
                continue
            yield start, row[0], row[1]
    except csv.Error as error:
        problems.append(Problem(where=f"{file.name}:{line}", what=f"no CSV: {error}"))


def _quote(text: str) -> str:
    signs = (
        _ESCAPES.get(sign) or (f"\\u{ord(sign):04X}" if ord(sign) < 32 or ord(sign) == 127 else sign) for sign in text
    )
    return f'"{"".join(signs)}"'
