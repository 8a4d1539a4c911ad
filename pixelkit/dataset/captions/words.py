"""What folders and file names say of a sprite: `mon/orc_wizard.png` is an orc wizard, and a monster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pixelkit.sources.sidecars import read_repeats, words_of

_SHORT: Final = {
    "anim": "animation",
    "bg": "background",
    "char": "character",
    "chr": "character",
    "dngn": "dungeon",
    "env": "environment",
    "fx": "effect",
    "mob": "monster",
    "mon": "monster",
    "num": "number",
    "obj": "object",
    "wpn": "weapon",
}
# Folders that say where a sprite lies, and not what it is.
_SILENT: Final = frozenset(
    "art asset captions data dataset doll final general image img input material misc new old only other out output"  # noqa: SIM905
    " picture pixelart png rgba source sprite src style temp test texture tile train training various".split()
)
_IRREGULAR: Final = {
    **{f"{stem}ves": f"{stem}f" for stem in ("dwar", "el", "hal", "lea", "loa", "shel", "thie", "wol")},
    "knives": "knife",
    "axes": "axe",
    "shoes": "shoes",
    "mice": "mouse",
    "men": "man",
    "women": "woman",
    **{
        word: word
        for word in ("boots", "ears", "glasses", "gloves", "hands", "horns", "legs", "pants", "trousers", "wings")
    },
    **{word: word for word in ("series", "species")},
}
_LAST: Final = {"f": "female", "m": "male"}


def describe_name(name: str) -> str:
    """A sprite's own name in words, numbers and initials left out: `item/ring/i-r-fire2` -> `fire`."""
    words = [re.sub(r"(?<=[a-z])\d+$", "", word) for word in words_of(name).split()]
    if len(words) > 1:
        words[-1] = _LAST.get(words[-1], words[-1])
    telling = [_SHORT.get(word, word) for word in words if (len(word) > 1 or word.isdigit()) and word != "misc"]
    return " ".join(telling or words)


def describe_folders(name: str) -> list[str]:
    """What the folders of a name say, the nearest first: `item/weapon/long_sword1` -> `weapon`, `item`.

    A folder is left out that says nothing (`misc`, `sprites`), or nothing that the name or a nearer one does not say.
    """
    said = set(_singular_words(describe_name(name)))
    found = []
    for folder in reversed(name.split("/")[:-1]):
        repeats, title = read_repeats(Path(folder))
        words = _singular_words(words_of(title if repeats else folder))
        words = [_SHORT.get(word, word) for word in words if word not in _SILENT and not word.isdigit()]
        if words and not said.issuperset(words):
            said.update(words)
            found.append(" ".join(words))
    return found


def describe_path(name: str) -> str:
    """`mon/orc_wizard` -> `orc wizard, monster`."""
    return ", ".join((describe_name(name), *describe_folders(name)))


def singular(word: str) -> str:
    """A noun's singular, as far as rules go: heroes, enemies, boxes, swords; grass and abyss stay."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "as")) or word == "abyss":
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "ches", "shes", "xes")) or (word.endswith("oes") and len(word) > 5):
        return word[:-2]
    return word[:-1]


def _singular_words(text: str) -> list[str]:
    return [singular(word) for word in text.split()]
