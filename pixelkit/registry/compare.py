"""What differs between two models: settings, data, scores, files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pixelkit.registry.index import Entry

# Names, places and times differ always and say nothing.
_LEFT_OUT = frozenset({"model_name", "version", "style", "status", "added", "loading", "exports"})


def compare(one: Entry, other: Entry) -> list[tuple[str, Any, Any]]:
    """Key with dots, value of each; only what differs, None where one lacks it. Lists and texts as they are."""
    left, right = (
        {
            key: value
            for key, value in flatten(entry.metadata)
            if key.partition(".")[0] not in _LEFT_OUT and key != "file.name"
        }
        for entry in (one, other)
    )
    keys = dict.fromkeys([*left, *right])
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def show(value: object) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Tables in tables as keys with dots."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
