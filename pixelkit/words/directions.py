"""The eight directions of a sprite, clockwise from up, in the words of captions and file names; and their mirror images."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DIRECTIONS = ("up", "up-right", "right", "down-right", "down", "down-left", "left", "up-left")

_MIRRORED = {"left": "right", "west": "east", "right": "left", "east": "west"}
_COMPASS = {
    "north": "up",
    "south": "down",
    "west": "left",
    "east": "right",
    "n": "up",
    "s": "down",
    "w": "left",
    "e": "right",
}

# A word ends where its letters do: "walk_left02" holds left, "bright" holds no right, "Wild West" is a place.
_NOT_BEFORE = r"(?<![^\W\d_])(?<!\bwild )(?<!\bfar )(?<!\bmiddle )"
_NOT_AFTER = r"(?![^\W\d_])"
_SIDE = re.compile(
    rf"{_NOT_BEFORE}(?P<lead>up|down|north|south)?(?P<side>left|right|west|east)(?P<tail>wards?|most|hand(?:ed)?)?{_NOT_AFTER}",
    re.IGNORECASE,
)
_CORNER = re.compile(rf"{_NOT_BEFORE}(?P<lead>[ns])(?P<side>[we]){_NOT_AFTER}", re.IGNORECASE)
_INDEX = re.compile(
    rf"{_NOT_BEFORE}(?P<mark>dir(?:ection)?)(?P<gap>[ _:=#.-]*)(?P<index>[0-7])(?!\.?\d)", re.IGNORECASE
)

_TWO_WORDS = r"(?:up|down|north|south)[ -]?(?:left|west|east)|(?:up|down|north|south)[ -]right|downright|[ns][we]"
_WORDS = rf"{_TWO_WORDS}|up|down|left|right|north|south|east|west"
_TO = r"[ -]+(?:to |towards? )?(?:the )?"
_DOING = "attack|fly|go|head|idle|look|move|run|stand|swim|turn|walk"


def _compile(before: str, words: str, after: str = "") -> re.Pattern[str]:
    return re.compile(rf"{before}{_NOT_BEFORE}(?P<word>{words})(?:wards?)?{_NOT_AFTER}{after}", re.IGNORECASE)


# What says a direction, the plainest first; the first of which a text has any decides.
_SIGNS = (
    (_compile(rf"\bfac(?:e|es|ed|ing){_TO}", _WORDS), _compile("", _WORDS, "[ -]facing\\b")),
    (_compile("", _TWO_WORDS),),
    (_compile(rf"\b(?:{_DOING})(?:s|es|n?ing|m?ing|ed)?{_TO}", _WORDS, "(?! (?:hand|arm|foot|leg|side))"),),
)
_VIEWER = re.compile(r"\bfacing (?:the |towards? the )?(?:viewer|camera|front)\b|\bfront[ -]view\b", re.IGNORECASE)
_AWAY = re.compile(r"\bfacing away\b|\bback[ -]view\b|\bfrom behind\b", re.IGNORECASE)
_ALONE = _compile("", _WORDS)


def find_direction(text: str) -> int | None:
    """The direction that a caption or a file name gives, 0 up, then clockwise to 7 up-left; None for none or several.

    What says it most plainly decides: "facing left", "left-facing", "dir 3"; then two words in one ("up-left", "nw"); then
    what is done ("walking left"); then a lone word between commas, or any in a file name ("walk_left_02"). "upright" is how
    one stands, and the left of "in the left hand" is none.
    """
    words = text.replace("_", " ")
    plain = {int(match["index"]) for match in _INDEX.finditer(text)}
    plain |= {DIRECTIONS.index("down") for _ in _VIEWER.finditer(words)} | {0 for _ in _AWAY.finditer(words)}
    signs = [{_index(match) for pattern in patterns for match in pattern.finditer(words)} for patterns in _SIGNS]
    for found in (plain | signs[0], *signs[1:], set(_lone_words(text))):
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def mirror_direction(index: int) -> int:
    """The direction in the mirror, 1 <-> 7, 2 <-> 6, 3 <-> 5; up and down stay."""
    if not 0 <= index < len(DIRECTIONS):
        raise ValueError(f"a direction is 0 to 7, not {index}")
    return -index % len(DIRECTIONS)


def mirror_words(caption: str) -> str:
    """The caption of the mirrored picture: left <-> right, west <-> east, nw <-> ne, and the index of "direction 3" or "dir 3".

    Whole words, their case kept. Hands are swapped with the rest. Twice gives the caption again, but for "upleft", whose
    mirror image is written "up-right", because "upright" is another word.
    """
    caption = _SIDE.sub(_swap_side, caption)
    caption = _CORNER.sub(
        lambda match: match["lead"] + _like(match["side"], "e" if match["side"] in "wW" else "w"), caption
    )
    return _INDEX.sub(lambda match: f"{match['mark']}{match['gap']}{mirror_direction(int(match['index']))}", caption)


def _swap_side(match: re.Match[str]) -> str:
    lead, side, tail = match["lead"] or "", match["side"], match["tail"] or ""
    if lead.lower() == "up" and side.lower() == "right":
        return match[0]
    joint = "-" if lead.lower() == "up" and side.lower() == "left" else ""
    return lead + joint + _like(side, _MIRRORED[side.lower()]) + tail


def _like(word: str, other: str) -> str:
    """The other word in the case of the first."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


def _index(match: re.Match[str]) -> int:
    parts = re.findall("up|down|left|right|north|south|west|east|[nswe]", match["word"].lower())
    return DIRECTIONS.index("-".join(_COMPASS.get(part, part) for part in parts))


def _lone_words(text: str) -> Iterable[int]:
    """Of a caption what stands between commas, of a file name each part."""
    separators = r"[,;|/]" if " " in text else r"[,;|/\\._-]|(?<=[^\W\d_])(?=\d)"
    found = (_ALONE.fullmatch(piece.strip()) for piece in re.split(separators, text))
    return (_index(match) for match in found if match)
