"""Exact enlargements: the largest block that loses nothing, decided over a whole set. Pillow only.

Where each pixel was enlarged to a block of k x k, colours change at multiples of k only; so k divides the gcd of all
places where they change. One picture may be coarser by chance (a flat tile could have any block), a set is not.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

from pixelkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Size = tuple[int, int]
# Boundaries that make a picture's own block believable. By chance all of n are even in 1 of 2^n pictures; of windows of
# 4 to 16 pixels cut from 3,120 native crawl tiles, 0 of 13,770 with four boundaries and more had a block above 1.
ENOUGH_BOUNDARIES = 8
# Native pictures by which they must lead before a group counts as native, unread. Were three in ten native, a group of
# enlarged ones would be taken for native once in 30 times ((.3 / .7) ** 4); a single stray never does it.
NATIVE_LEAD = 4
# A picture without evidence of its own follows its neighbours, but not below the smallest tile that games use.
SMALLEST_SIDE = 8
# Modes of more than 8 bits a channel, and an 8-bit mode of as many bytes in which to compare them.
_BYTES = {"I;16": "LA", "I;16L": "LA", "I;16B": "LA", "I;16N": "LA", "I": "RGBA", "F": "RGBA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`size`: side of the largest square block that reduces one picture without loss. `boundaries`: the evidence, how
    many different places there are, in x plus y, where colours change; 0 for a picture of one colour.
    """

    size: int
    boundaries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What pictures of one size are reduced by: `block`, but for `outliers`, whose pixels do not allow it.

    `outliers`: place in the group -> that picture's own block.
    """

    block: int
    outliers: Mapping[int, int] = field(default_factory=dict)


def measure_block(image: Image.Image) -> Block:
    """The block of one picture. Pixels that are fully transparent are equal, whatever colour hides under them.

    16-bit greys are compared as they are; 16-bit colours as Pillow reads them, with 8 bits.
    """
    width, height = image.size
    pixels = _make_comparable(image)
    across = _find_boundaries(pixels, (1, 0, width, height), (0, 0, width - 1, height), axis=0)
    down = _find_boundaries(pixels, (0, 1, width, height), (0, 0, width, height - 1), axis=1)
    return Block(size=math.gcd(width, height, *across, *down), boundaries=len(across) + len(down))


def decide_blocks(groups: Mapping[Size, Iterable[Block]]) -> dict[Size, Decision]:
    """What to reduce each group by: (width, height) -> the blocks of all pictures of that size.

    A group's block is the one that most of its pictures have, the smaller one at a tie; pictures that do not allow it are
    outliers. Pictures with few boundaries have no say. A group of such pictures only takes the largest block that they and
    all other groups allow, so that a flat tile never ends coarser than its neighbours; without other groups it is 1.

    The iterables are read one by one and only as far as needed: a native group costs the measuring of NATIVE_LEAD pictures.
    Give them in an order that mixes folders.
    """
    tallies = {size: _Tally.count(blocks) for size, blocks in groups.items()}
    decided = {size: tally.decide() for size, tally in tallies.items() if tally.votes}
    shared = math.gcd(*(decision.block for decision in decided.values())) or 1
    return {
        size: decided[size] if size in decided else Decision(block=_limit(math.gcd(shared, tally.common), size))
        for size, tally in tallies.items()
    }


def is_exact(image: Image.Image, block: int) -> bool:
    """Whether every block of `block` x `block` pixels, from the left top corner on, is of one colour."""
    return block == 1 or measure_block(image).size % block == 0


def reduce_block(image: Image.Image, block: int) -> Image.Image:
    """One pixel per block, in the same mode with the same palette. Raises DataError where that would lose anything."""
    if block == 1:
        return image
    if block < 1 or not is_exact(image, block):
        raise DataError(f"the picture is not made of exact blocks of {block}x{block} pixels")
    return image.resize((image.width // block, image.height // block), Image.Resampling.NEAREST)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tally:
    """A group's pictures, as far as they were read. `votes`: block -> how many believable pictures have it."""

    blocks: tuple[Block, ...]
    votes: Mapping[int, int]

    @classmethod
    def count(cls, blocks: Iterable[Block]) -> _Tally:
        read: list[Block] = []
        votes: Counter[int] = Counter()
        for block in blocks:
            read.append(block)
            if _is_believable(block):
                votes[block.size] += 1
                if 2 * votes[1] - votes.total() >= NATIVE_LEAD:
                    break
        return cls(blocks=tuple(read), votes=votes)

    @property
    def common(self) -> int:
        return math.gcd(*(block.size for block in self.blocks))

    def decide(self) -> Decision:
        chosen = min(self.votes, key=lambda size: (-self.votes[size], size))
        outliers = {
            place: block.size if _is_believable(block) else math.gcd(block.size, chosen)
            for place, block in enumerate(self.blocks)
            if block.size % chosen
        }
        return Decision(block=chosen, outliers=outliers)


def _is_believable(block: Block) -> bool:
    """A single boundary proves that a picture is native; that it is enlarged takes many."""
    return block.boundaries >= ENOUGH_BOUNDARIES or (block.size == 1 and block.boundaries > 0)


def _limit(block: int, size: Size) -> int:
    """The largest divisor of `block` that leaves the shorter side at least SMALLEST_SIDE pixels."""
    return max(k for k in range(1, block + 1) if block % k == 0 and (k == 1 or min(size) >= k * SMALLEST_SIDE))


def _make_comparable(image: Image.Image) -> Image.Image:
    """8-bit bands that are equal where two pixels look the same, and nowhere else."""
    if image.mode in _BYTES:
        return Image.frombytes(_BYTES[image.mode], image.size, image.tobytes())
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    pixels = image.convert("RGBA")
    alpha = pixels.getchannel("A")
    if alpha.getextrema()[0]:
        return pixels
    visible = Image.new("RGBA", image.size)
    visible.paste(pixels, mask=alpha.point([0] + [255] * 255))
    return visible


def _find_boundaries(
    pixels: Image.Image, ahead: tuple[int, int, int, int], behind: tuple[int, int, int, int], *, axis: int
) -> list[int]:
    """Where neighbouring columns (axis 0) or rows (axis 1) differ: at 1 for the first against the second."""
    if pixels.size[axis] == 1:
        return []
    differs = ImageChops.difference(pixels.crop(ahead), pixels.crop(behind)).getprojection()[axis]
    return [place for place, value in enumerate(differs, start=1) if value]
