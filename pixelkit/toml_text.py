"""Values as TOML text that two parsers read alike: `toml` 0.10.2, which sd-scripts uses, and the standard library's.

`toml` 0.10.2 misreads legal TOML: commas and brackets in strings of arrays, strings that begin with two quotes,
`\\u` escapes before an escaped backslash and a `u`, `\\u` in keys, mixed arrays. So a text is given out only when both
parsers have read it back to the very value; what no text can carry is an error, and nothing can be injected.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

import toml

from pixelkit.errors import RenderError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
_INERT = frozenset(" _-/.:;()+*%&!?<>@~^|$")
_PARSER_ERRORS = (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError)


def format_value(value: object) -> str:
    """The TOML literal, on one line, that both parsers read back to exactly `value`.

    For str, bool, int, float, Path (as its string), and lists, tuples and string-keyed dicts of these. Raises
    RenderError for what TOML or `toml` 0.10.2 cannot carry: None, nan, inf, lone surrogates, integers beyond 64 bit,
    lists of mixed types, some deep nestings.
    """
    plain = _plain(value)
    for quote in (_quote, _quote_guarded):
        text = _write(plain, quote)
        if _reads_back(f"a = {text}\nb = 1\n", {"a": plain, "b": 1}):
            return text
    raise RenderError(
        f"no TOML text carries {value!r} through the engine's parser", hint="use a flatter or plainer value"
    )


def format_key(key: str) -> str:
    """The key, quoted where it must be; both parsers read it back. Raises RenderError where none can be written."""
    other = "a" if key == "b" else "b"
    for text in (key, _quote(key)):
        if (text != key or _BARE_KEY.match(key)) and _reads_back(f"{text} = 1\n{other} = 2\n", {key: 1, other: 2}):
            return text
    raise RenderError(f"{key!r} cannot be a key in the engine's configuration", hint="use letters, digits, - and _")


def _plain(value: object) -> object:
    """The value as the parsers will give it back, or RenderError."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise RenderError("an integer beyond 64 bit cannot be written in TOML")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RenderError(f"{value} is no number that training can use")
        return float(value)
    if isinstance(value, str | PurePath):
        return _plain_text(str(value))
    if isinstance(value, Mapping):
        return {_plain_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        items = [_plain(item) for item in value]
        if len({type(item) for item in items}) > 1:
            raise RenderError(
                f"{items} mixes types, which the engine's parser refuses",
                hint="write every number with a point, as in [1.0, 0.5], or every item in quotes",
            )
        return items
    raise RenderError(f"{value!r} ({type(value).__name__}) has no TOML form")


def _plain_text(value: object) -> str:
    if not isinstance(value, str):
        raise RenderError(f"the key {value!r} is no string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RenderError(f"{value!r} holds half a character (a lone surrogate)") from error
    return str(value)


def _write(value: object, quote: Callable[[str], str]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return "[" + ", ".join(_write(item, quote) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{format_key(key)} = {_write(item, quote)}" for key, item in value.items()) + "}"
    return repr(value)


def _quote(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (_unicode(c) if ord(c) < 32 or c == "\x7f" else c) for c in text) + '"'


def _quote_guarded(text: str) -> str:
    """Every character that could mislead `toml` as \\uXXXX, except the backslash, which it would unescape twice."""
    out, after_backslash = [], False
    for char in text:
        risky = ord(char) < 128 and not char.isalnum() and char not in _INERT
        if char == "\\":
            out.append("\\\\")
        else:
            out.append(_unicode(char) if risky or (after_backslash and char in "uU") else char)
        after_backslash = char == "\\"
    # it takes a string that begins with a quote, once unescaped, for a triple-quoted one
    mark = '"""' if text.startswith('"') else '"'
    return mark + "".join(out) + mark


def _unicode(char: str) -> str:
    return f"\\u{ord(char):04X}"


def _reads_back(document: str, expected: dict[str, object]) -> bool:
    try:
        return is_same(toml.loads(document), expected) and is_same(tomllib.loads(document), expected)
    except _PARSER_ERRORS:
        return False


def is_same(found: object, expected: object) -> bool:
    """Equal, and of equal types throughout (True is not 1, 1 is not 1.0)."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(is_same(found[key], item) for key, item in expected.items())
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(is_same, found, expected))
    return type(found) is type(expected) and found == expected
