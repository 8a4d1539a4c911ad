"""Find and replace in all captions of a set, shown before it is done."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pixelkit.dataset.captions.entries import show_path
from pixelkit.dataset.captions.writing import Change
from pixelkit.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pixelkit.dataset.captions.entries import Entry


def find_changes(
    source: Path, entries: Sequence[Entry], find: str, replacement: str, *, regex: bool = False
) -> tuple[Change, ...]:
    """What replacing would change. Without `regex` both are plain text; with it, `\\1` or `\\g<name>` stand for groups.

    Raises DataError: nothing to find, an expression that is none, captions that nothing would be left of.
    """
    if not find:
        raise DataError("--mode replace needs --find TEXT")
    try:
        pattern = re.compile(find if regex else re.escape(find))
        changed = [
            Change(entry=entry, text=pattern.sub(replacement if regex else lambda _: replacement, entry.text).strip())
            for entry in entries
            if entry.text
        ]
    except (re.error, IndexError) as error:
        raise DataError(f"--find {find} --replace {replacement}: no regular expression that works: {error}") from None
    changes = tuple(change for change in changed if change.text != change.entry.text)
    empty = [
        Problem(where=show_path(change.entry.file, source), what="nothing would be left")
        for change in changes
        if not change.text
    ]
    if empty:
        raise DataError(f"{len(empty)} captions would be empty", hint="nothing was changed", problems=empty)
    return changes
