"""More pictures from the same sprites without a wrong pixel or word: mirrored, in another colour, moved.

No noise, no jitter of single pixels, no rotation: they make colours that the palette has not and edges that the art has
not. A variant whose caption could not be kept true is not made.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pixelkit.dataset.main_colors import name_colors
from pixelkit.words.color_names import COLORS, name_each
from pixelkit.words.directions import mirror_words
from pixelkit.words.oklab import from_oklch, to_oklch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

# Colours that a turn of the hue leaves alone: greys, the near-black of outlines, near-white. OKLCh.
_GREY, _NEAR_BLACK, _NEAR_WHITE = 0.03, 0.2, 0.98
# Of the coloured pixels' chroma, what must be left: yellow turned to blue at its own lightness is only a pale grey.
_CHROMA_LEFT = 0.5
_CHANGED_SHARE = 0.1
_AGREEMENT = 0.75

# What a picture with these in its caption shows would be wrong in the mirror.
READABLE = (
    "alphabet", "clock", "compass", "digit", "font", "glyph", "inscription", "letter", "logo", "map", "number", "numeral",
    "rune", "sign", "signpost", "text", "word", "writing",
)  # fmt: skip
# Words for colours other than COLORS. Those that mean one of them; and those that mean no single one, or a material.
_SAME = {"gray": "grey", "violet": "purple", "turquoise": "teal", "tan": "beige"}
_OTHER = (
    "amber", "aqua", "auburn", "azure", "blond", "blonde", "bronze", "burgundy", "cobalt", "colorful", "colourful", "copper",
    "coral", "cream", "crimson", "emerald", "gold", "golden", "indigo", "ivory", "jade", "khaki", "lavender",
    "lilac", "lime", "magenta", "maroon", "mauve", "mint", "multicolored", "multicoloured", "mustard", "navy", "ochre", "olive",
    "peach", "rainbow", "ruby", "rust", "salmon", "sapphire", "scarlet", "silver", "tawny", "ultramarine", "vermilion",
)  # fmt: skip
_WORD = r"(?<![^\W\d_]){}(?![^\W\d_])"
_COLOR = re.compile(
    rf"(?:(?P<article>\ban?)(?P<gap>\s+))?{_WORD.format('(?P<word>' + '|'.join((*COLORS, *_SAME)) + ')')}"
    r"(?P<end>(?=\s*(?:[,.;]|$)))?",
    re.IGNORECASE,
)
_VAGUE = re.compile(
    rf"{_WORD.format('(?:' + '|'.join(_OTHER) + ')')}"
    rf"|{_WORD.format('(?:' + '|'.join(COLORS) + '|blu|gray|purpl|violet)(?:d?ish|e?y|s|en|ed)')}"
    r"|#[0-9a-f]{6}\b",
    re.IGNORECASE,
)
_COORDINATES = re.compile(r"\(\s*\d+\s*,\s*\d+\s*\)|\bx\s*=?\s*\d", re.IGNORECASE)
_QUOTED = re.compile(r"[\"\u201c\u201d].+?[\"\u201c\u201d]|(?<!\w)['\u2018].+?['\u2019](?!\w)")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What to make of every sprite: its mirror image, turns of its hues in degrees, so many moves by up to `reach` pixels.

    `asymmetric`: words; what a caption with one of them shows is never mirrored ("shield", "eyepatch").
    """

    mirror: bool = False
    hues: tuple[float, ...] = ()
    moves: int = 0
    reach: int = 2
    asymmetric: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One more picture: RGBA (h, w, 4), its caption, and what was done: "mirror", "hue+60", "move+1-2"."""

    pixels: NDArray[np.uint8]
    caption: str
    tag: str


def variants(
    pixels: NDArray[np.uint8], caption: str, wanted: Augmentation, *, asymmetric: bool = False
) -> Iterator[Variant]:
    """The variants of a sprite, RGBA (h, w, 4), one change each; the sprite itself is not among them, nor any twice.

    The same pixels, caption and wishes give the same variants in any order and process. `asymmetric` says of this one
    sprite that it has no mirror image.
    """
    if wanted.mirror and not asymmetric and may_mirror(pixels, caption, wanted.asymmetric):
        yield Variant(pixels=mirror(pixels), caption=mirror_words(caption), tag="mirror")
    for degrees in wanted.hues:
        turned = shift_hue(pixels, degrees)
        words = _caption_shift(pixels, turned, caption)
        if words is not None:
            yield Variant(pixels=turned, caption=words, tag=f"hue{degrees:+g}")
    for dx, dy in _choose_moves(pixels, caption, wanted):
        yield Variant(pixels=shift(pixels, dx, dy), caption=caption, tag=f"move{dx:+d}{dy:+d}")


def mirror(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Left and right swapped."""
    return np.ascontiguousarray(pixels[:, ::-1])


def may_mirror(pixels: NDArray[np.uint8], caption: str, asymmetric: Iterable[str] = ()) -> bool:
    """Whether the mirror image is new and true: not of what can be read or is named in `asymmetric`, nor symmetric.

    A caption with coordinates ("pupils (8,12)") cannot be kept true, nor can one that quotes what is written.
    """
    words = "|".join(re.escape(word.strip()) for word in (*READABLE, *asymmetric) if word.strip())
    if re.search(_WORD.format(f"(?:{words})(?:e?s)?"), caption, re.IGNORECASE):
        return False
    if _COORDINATES.search(caption) or _QUOTED.search(caption):
        return False
    left, top, right, bottom = _find_visible(pixels)
    seen = np.where(pixels[..., 3:] > 0, pixels, 0)[top:bottom, left:right]
    return not np.array_equal(seen, seen[:, ::-1])


def shift_hue(pixels: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Every colour of a sprite, RGBA (h, w, 4), with its hue turned in OKLCh at its own lightness.

    Equal colours stay equal, so the palette never grows, and a ramp keeps its order from dark to light. Greys, near-black
    and near-white stay as they are; where sRGB has no such colour, chroma gives way. Alpha and hidden colour are untouched.
    """
    out = pixels.copy()
    seen = pixels[..., 3] > 0
    if degrees % 360 == 0 or not seen.any():
        return out
    colors, places = np.unique(pixels[seen][:, :3], axis=0, return_inverse=True)
    lch = to_oklch(colors)
    turned = from_oklch(lch + np.array([0.0, 0.0, degrees]))
    table = np.where(_has_hue(lch)[:, None], turned, colors)
    out[seen, :3] = table[places.reshape(-1)]
    return out


def shift(pixels: NDArray[np.uint8], dx: int, dy: int) -> NDArray[np.uint8]:
    """The sprite moved right by dx and down by dy pixels. ValueError where a visible pixel would leave the picture."""
    left, top, right, bottom = _find_visible(pixels)
    height, width = pixels.shape[:2]
    if left + dx < 0 or right + dx > width or top + dy < 0 or bottom + dy > height:
        raise ValueError(f"moving by {dx}, {dy} would cut the sprite, which fills {left}..{right}, {top}..{bottom}")
    out = np.zeros_like(pixels)
    out[top + dy : bottom + dy, left + dx : right + dx] = pixels[top:bottom, left:right]
    return out


def rewrite_colors(caption: str, before: tuple[str, ...], after: tuple[str, ...]) -> str | None:
    """The caption of a picture in which each colour of `before` has become the one of `after` in its place, or None.

    Whole words are rewritten, their case kept, "a" and "an" put right: "an orange cat", ("orange",), ("blue",) -> "a blue
    cat". None where that cannot be relied on: a colour word that is not in `before`, or a shade, material or form of one
    ("crimson", "gold", "reddish"), or "an orange" with nothing after it, which is a fruit.
    """
    if _VAGUE.search(caption):
        return None
    becomes = dict(zip(before, after, strict=True))
    found = list(_COLOR.finditer(caption))
    if any(_plain(match["word"]) not in becomes or (match["article"] and match["end"] is not None) for match in found):
        return None
    return _COLOR.sub(lambda match: _replace(match, becomes), caption)


def _replace(match: re.Match[str], becomes: dict[str, str]) -> str:
    plain = _plain(match["word"])
    word = becomes[plain]
    if word == plain:
        return match[0]
    if match["word"].isupper():
        word = word.upper()
    elif match["word"][0].isupper():
        word = word.capitalize()
    if not match["article"]:
        return word
    article = match["article"][0] + ("n" if word[0].lower() in "aeiou" else "")
    return article + match["gap"] + word


def _plain(word: str) -> str:
    return _SAME.get(word.lower(), word.lower())


def _caption_shift(before: NDArray[np.uint8], after: NDArray[np.uint8], caption: str) -> str | None:
    """What to say of a picture whose hues were turned; None where nothing true can be, or little is to be seen of it.

    A caption that says nothing of the colours that changed gets them at its end: "an apple" -> "an apple, purple".
    """
    seen = before[..., 3] > 0
    first, second = before[seen][:, :3], after[seen][:, :3]
    changed = (first != second).any(axis=1)
    if not changed.size or changed.mean() < _CHANGED_SHARE:
        return None
    if to_oklch(second[changed])[:, 1].sum() < _CHROMA_LEFT * to_oklch(first[changed])[:, 1].sum():
        return None
    old, new = name_colors(before), name_colors(after)
    said = sorted({_plain(match["word"]) for match in _COLOR.finditer(caption)})
    old_names, new_names = name_each(first), name_each(second)
    turned = [
        new[0] if (word,) == old and len(new) == 1 else _find_common(new_names[old_names == word]) for word in said
    ]
    rewritten = rewrite_colors(caption, tuple(said), tuple(turned)) if all(turned) else None
    if rewritten != caption or old == new:
        return rewritten
    unsaid = [name for name in new if name not in said]
    return f"{caption}, {' and '.join(unsaid)}" if unsaid else None


def _find_common(names: NDArray[np.str_]) -> str:
    """The name that nearly all have, or an empty string."""
    found, counts = np.unique(names, return_counts=True)
    return str(found[counts.argmax()]) if counts.size and counts.max() >= _AGREEMENT * counts.sum() else ""


def _choose_moves(pixels: NDArray[np.uint8], caption: str, wanted: Augmentation) -> list[tuple[int, int]]:
    if not wanted.moves:
        return []
    left, top, right, bottom = _find_visible(pixels)
    height, width = pixels.shape[:2]
    across = range(-min(left, wanted.reach), min(width - right, wanted.reach) + 1)
    down = range(-min(top, wanted.reach), min(height - bottom, wanted.reach) + 1)
    places = [(dx, dy) for dy in down for dx in across if (dx, dy) != (0, 0)]
    digest = hashlib.sha256(f"{wanted.seed}\n{pixels.shape}\n{caption}\n".encode() + pixels.tobytes()).digest()
    return random.Random(digest).sample(places, min(wanted.moves, len(places)))


def _find_visible(pixels: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what can be seen, the last two exclusive; the whole picture where nothing can."""
    rows, columns = np.nonzero((pixels[..., 3] > 0).any(axis=1))[0], np.nonzero((pixels[..., 3] > 0).any(axis=0))[0]
    if not rows.size:
        return 0, 0, pixels.shape[1], pixels.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _has_hue(lch: NDArray[np.float64]) -> NDArray[np.bool_]:
    light, chroma = lch[..., 0], lch[..., 1]
    return np.asarray((chroma >= _GREY) & (light >= _NEAR_BLACK) & (light <= _NEAR_WHITE))
