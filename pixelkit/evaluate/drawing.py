"""What the pictures share: colours of the page, text that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import ImageFont

if TYPE_CHECKING:
    from PIL import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

Paint = tuple[int, int, int]

PAGE: Paint = (22, 23, 29)
PANEL: Paint = (31, 33, 41)
RULE: Paint = (58, 61, 74)
BRIGHT: Paint = (238, 240, 246)
TEXT: Paint = (196, 200, 212)
FAINT: Paint = (132, 137, 152)
ACCENT: Paint = (255, 176, 84)
SECOND: Paint = (110, 190, 255)


@dataclass(frozen=True, kw_only=True)
class Typeface:
    """Pillow's own font at one size."""

    size: int

    @property
    def font(self) -> FreeTypeFont | BitmapFont:
        """The font that ImageDraw takes."""
        return ImageFont.load_default(self.size)

    @property
    def leading(self) -> int:
        """Pixels from one line of text to the next."""
        return round(self.size * 1.35)

    def measure(self, text: str) -> int:
        """The width of a line in pixels."""
        return round(self.font.getlength(text))

    def cut(self, text: str, width: int) -> str:
        """The text, shortened with an ellipsis where it is wider than `width`."""
        if self.measure(text) <= width:
            return text
        while text and self.measure(text + "…") > width:
            text = text[:-1]
        return text.rstrip() + "…"

    def wrap(self, text: str, width: int, lines: int) -> list[str]:
        """The text in at most `lines` lines no wider than `width`; what is left over ends in an ellipsis."""
        found: list[str] = []
        line = ""
        words = text.split()
        while words:
            joined = f"{line} {words[0]}".strip()
            if self.measure(joined) <= width:
                line = joined
                words.pop(0)
            elif len(found) == lines - 1:
                break
            elif line:
                found.append(line)
                line = ""
            else:  # one word wider than the column
                word = words[0]
                over = (end for end in range(2, len(word)) if self.measure(word[:end]) > width)
                size = max(1, next(over, len(word)) - 1)
                found.append(word[:size])
                words = [word[size:], *words[1:]] if size < len(word) else words[1:]
        if words:
            found.append(self.cut(f"{line} {' '.join(words)}".strip(), width))
        elif line:
            found.append(line)
        return found

    def write(
        self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, paint: Paint, anchor: str = "la"
    ) -> None:
        """Draw one line; `anchor` as in Pillow: l, m, r and a (ascender), m, s (baseline)."""
        draw.text(place, text, fill=paint, font=self.font, anchor=anchor)
