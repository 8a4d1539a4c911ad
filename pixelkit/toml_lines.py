"""Line numbers of the keys of a TOML text, for errors that say where."""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str | int, ...]

_KEY_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")
_TOKEN = re.compile(
    r'"""(?:\\.|"{0,2}[^"\\])*"{3,5}'  # multi-line basic string
    r"|'''(?:'{0,2}[^'])*'{3,5}"  # multi-line literal string
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*|[\[\]{},=\n]|[^\s\[\]{},=#\"'\n]+|[ \t\r]+",
    re.DOTALL,
)


def locate(text: str) -> dict[KeyPath, int]:
    """The 1-based line of every key and table header of a valid TOML text.

    Keys are paths; an array of tables adds its index: `("datasets", 0, "subsets", 1, "image_dir")`. Keys inside
    inline tables are found too.
    """
    lines: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        if header := re.match(r"\s*(\[\[?)(.*?)\]\]?\s*(?:#[^\n]*)?$", statement, re.DOTALL):
            parts, _ = _read_key(header[2], 0)
            table = _under_arrays(parts, arrays)
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                lines.setdefault(table, line)
                table = (*table, arrays[table])
            lines.setdefault(table, line)
            continue
        parts, end = _read_key(statement, 0)
        if parts:
            path = (*table, *parts)
            for depth in range(len(table) + 1, len(path) + 1):
                lines.setdefault(path[:depth], line)
            _locate_inline(statement[end + 1 :], path, line, lines)
    return lines


def _statements(text: str) -> list[tuple[int, str]]:
    """Split at line ends that are outside brackets and strings: (line of the first character, text)."""
    found: list[tuple[int, str]] = []
    depth, start, line, pieces = 0, 1, 1, list[str]()
    for piece in _TOKEN.findall(text.removeprefix("\ufeff") + "\n"):
        if piece == "\n" and depth == 0:
            statement = "".join(pieces)
            if statement.strip():
                found.append((start, statement))
            pieces, line = [], line + 1
            start = line
            continue
        depth += (piece in "[{") - (piece in "]}") if len(piece) == 1 else 0
        if not piece.startswith("#"):
            pieces.append(piece)
        line += piece.count("\n")
    return found


def _read_key(text: str, position: int) -> tuple[tuple[str, ...], int]:
    """A dotted key at `position`: its parts and where it ends."""
    parts: list[str] = []
    while match := _KEY_PART.match(text, position):
        basic, literal, bare = match.groups()
        parts.append(
            tomllib.loads(f'k = "{basic}"')["k"] if basic is not None else literal if literal is not None else bare
        )
        position = match.end()
        if text[position : position + 1] != ".":
            break
        position += 1
    return tuple(parts), position


def _under_arrays(parts: tuple[str, ...], arrays: dict[KeyPath, int]) -> KeyPath:
    """A header's path, with the current index after each prefix that is an array of tables."""
    path: KeyPath = ()
    for index, part in enumerate(parts):
        path = (*path, part)
        if path in arrays and index < len(parts) - 1:
            path = (*path, arrays[path])
    return path


def _locate_inline(text: str, path: KeyPath, line: int, lines: dict[KeyPath, int]) -> None:
    """Enter the keys of an inline table `{a = 1, b = 2}`; deeper nesting keeps the line of its parent."""
    if not text.lstrip().startswith("{"):
        return
    depth, expect_key, offset = 0, False, 0
    for piece in _TOKEN.findall(text):
        if piece in {"{", "["}:
            depth += 1
            expect_key = depth == 1
        elif piece in {"}", "]"}:
            depth -= 1
        elif piece == "," and depth == 1:
            expect_key = True
        elif expect_key and depth == 1 and piece.strip():
            parts, _ = _read_key(piece, 0)
            if parts:
                lines.setdefault((*path, *parts), line + offset)
            expect_key = False
        offset += piece.count("\n")
