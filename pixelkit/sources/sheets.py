"""Files that hold several sprites: animations, sheets in rows and columns, atlases with a map beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

from pixelkit.errors import DataError
from pixelkit.sources.decode import load_frame, load_frames

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pixelkit.sources.files import Header
    from pixelkit.sources.sprite import Box

CLEAR = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One sprite of a file: frame, region (None = all of it), and what tells it from the others (`#03`, `/walk_2`).

    `turned`, `canvas`: see Sprite. `words`: a caption that a map gives it.
    """

    frame: int = 0
    box: Box | None = None
    suffix: str = ""
    turned: bool = False
    canvas: Box | None = None
    words: str = ""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels of the file, upright and untrimmed; None: the whole picture's."""
        if self.canvas:
            return self.canvas[2:]
        if self.box is None:
            return None
        left, top, right, bottom = self.box
        return (bottom - top, right - left) if self.turned else (right - left, bottom - top)


def parse_cells(text: str) -> tuple[int, int]:
    """`32x24` -> (32, 24). Raises ValueError for what is no size of a cell."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError("write width x height of one cell, as 32x32")
    return int(width), int(height)


def find_parts(path: Path, header: Header, sheet: tuple[int, int] | None) -> list[Part]:
    """The sprites of one file that no map describes: the frames of an animation; else, where `sheet` is given, its cells
    of so many pixels, width and height; else all of it.

    Pixels are read of animations and sheets only: frames that are empty or equal to the one before are left out, and so
    are empty cells. Raises DataError where a sheet's size is no multiple of its cells.
    """
    if header.frames > 1:
        return _find_frames(path)
    if sheet is None or sheet == (header.width, header.height):
        return [Part()]
    _check_cells(header, sheet)
    (width, height), parts = sheet, []
    for row in range(header.height // height):
        for column in range(header.width // width):
            left, top = column * width, row * height
            parts.append(Part(box=(left, top, left + width, top + height), suffix=f"#r{row + 1}c{column + 1}"))
    return leave_out_empty(path, parts)


def leave_out_empty(path: Path, parts: Sequence[Part]) -> list[Part]:
    """The regions of a sheet that show something. Raises DataError if none does.

    Empty is what is transparent throughout; in a sheet without transparency, what has its background's colour throughout,
    which is the most frequent colour of the sheet's border.
    """
    image = load_frame(path)
    background = CLEAR if image.getchannel("A").getextrema()[0] == 0 else _find_border_colour(image)
    kept = [part for part in parts if not _is_empty(image.crop(part.box), background)]
    if not kept:
        raise DataError(f"all of its {len(parts)} cells are empty")
    return kept


def _find_frames(path: Path) -> list[Part]:
    parts: list[Part] = []
    before: Image.Image | None = None
    for number, image in load_frames(path):
        if not (_is_empty(image, CLEAR) or (before is not None and is_same(image, before))):
            parts.append(Part(frame=number, suffix=f"#{number:02d}"))
        before = image
    if not parts:
        raise DataError("all of its frames are empty")
    return parts


def is_same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two RGBA pictures of one size look alike; colours under full transparency do not count."""
    difference = ImageChops.difference(one, other)
    if difference.getchannel("A").getbbox() is not None:
        return False
    return (
        Image.composite(
            difference.convert("RGB"), Image.new("RGB", one.size), one.getchannel("A").point(_is_seen)
        ).getbbox()
        is None
    )


def _is_seen(alpha: int) -> int:
    return 255 * (alpha > 0)


def _is_empty(image: Image.Image, background: tuple[int, ...]) -> bool:
    if image.getchannel("A").getbbox() is None:
        return True
    colours = image.getcolors(1)
    return background != CLEAR and colours is not None and colours[0][1] == background


def _find_border_colour(image: Image.Image) -> tuple[int, ...]:
    width, height = image.size
    strips = ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height))
    counts: Counter[tuple[int, ...]] = Counter()
    for strip in strips:
        for count, colour in image.crop(strip).getcolors(2 * (width + height)) or ():
            assert isinstance(colour, tuple)
            counts[colour] += count
    return counts.most_common(1)[0][0]


def _check_cells(header: Header, sheet: tuple[int, int]) -> None:
    sides = (("width", header.width, sheet[0]), ("height", header.height, sheet[1]))
    uneven = [(name, whole, cell) for name, whole, cell in sides if cell < 1 or whole % cell]
    if uneven:
        hints = (f"{_near_divisors(whole, cell)} would divide its {name}" for name, whole, cell in uneven)
        raise DataError(
            f"it is {header.width}x{header.height}, no multiple of the sheet's cells of {sheet[0]}x{sheet[1]}",
            hint=", ".join(hints),
        )


def _near_divisors(whole: int, cell: int) -> str:
    divisors = [number for number in range(1, whole + 1) if whole % number == 0]
    below = [number for number in divisors if number < cell][-1:]
    above = [number for number in divisors if number > cell][:1]
    return " or ".join(str(number) for number in below + above)
