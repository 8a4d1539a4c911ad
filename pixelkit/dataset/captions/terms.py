"""Terms that a set writes in several ways: "16-bit", "16bit" and "16 bit" are one thing, and three things to a text encoder."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelkit.dataset.captions.words import singular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LONGEST = 3
"""Words of a term."""
_PHRASE = re.compile(r"[,;:.!?()\[\]\"]+")
_JOINT = re.compile(r"(?<!\d)[-_/]|[-_/](?!\d)")  # 10-13 is a range, and not 1013
_EDGES = "'`*-_/ "


@dataclass(frozen=True, kw_only=True)
class Spellings:
    """One term's ways, the commonest first: the text and in how many captions it stands; `rare`: captions (numbers) that
    write it in another way than most.
    """

    ways: tuple[tuple[str, int], ...]
    rare: tuple[int, ...]


def find_spellings(captions: Iterable[str]) -> list[Spellings]:
    """Terms of up to three words that are the same less hyphens, spaces, case and plural, yet written in two ways or more.

    A capital at a caption's beginning is no other way.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, caption in enumerate(captions):
        for key, way in set(_terms(caption)):
            found[key][way] += 1
            places[key][way].append(number)
    several = sorted((key for key, ways in found.items() if len(ways) > 1), key=lambda key: (len(key), key))
    told: list[str] = []
    out = []
    for key in several:
        if any(shorter in key for shorter in told):
            continue
        told.append(key)
        ways = tuple(sorted(found[key].items(), key=lambda way: (-way[1], way[0])))
        rare = sorted({number for way, _ in ways[1:] for number in places[key][way]})
        out.append(Spellings(ways=ways, rare=tuple(rare)))
    return out


def _terms(caption: str) -> Iterator[tuple[str, str]]:
    """(what the term is, how it is written) for each stretch of one to three words within a phrase."""
    first = True
    for phrase in _PHRASE.split(caption):
        words = [word for raw in phrase.split() if (word := raw.strip(_EDGES))]
        if words and first:
            words[0] = words[0][0].lower() + words[0][1:] if words[0][1:].islower() else words[0]
        first = first and not words
        for size in range(1, LONGEST + 1):
            for start in range(len(words) - size + 1):
                stretch = words[start : start + size]
                key = _key(stretch)
                if len(key) > 2:
                    yield key, " ".join(stretch)


def _key(words: list[str]) -> str:
    parts = [part for word in words for part in _JOINT.split(word.lower()) if part]
    if not parts:
        return ""
    return "".join([*parts[:-1], singular(parts[-1])])
