"""The probes as a picture: a bar for each, its length images per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pixelkit.evaluate.drawing import ACCENT, BRIGHT, FAINT, PAGE, PANEL, SECOND, TEXT, Typeface

if TYPE_CHECKING:
    from collections.abc import Sequence

MARGIN, ROW, BAR, LENGTH = 28, 34, 18, 420


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One setting that was tried: `note` stands behind its bar, or alone where it failed."""

    text: str
    images_per_second: float
    note: str
    best: bool = False


def draw_probes(*, title: str, subtitle: str, entries: Sequence[Entry]) -> Image.Image:
    """The picture, RGB: the best in another colour. Fitted to its texts."""
    heading, small = Typeface(size=20), Typeface(size=14)
    names = max([small.measure(entry.text) for entry in entries], default=0)
    notes = max([small.measure(entry.note) for entry in entries], default=0)
    left = MARGIN + names + 16
    width = max(left + LENGTH + 12 + notes, MARGIN + heading.measure(title), MARGIN + small.measure(subtitle)) + MARGIN
    top = MARGIN + heading.leading + small.leading + 14
    picture = Image.new("RGB", (width, top + ROW * len(entries) + MARGIN - 10), PAGE)
    draw = ImageDraw.Draw(picture)
    heading.write(draw, (MARGIN, MARGIN), title, BRIGHT)
    small.write(draw, (MARGIN, MARGIN + heading.leading), subtitle, FAINT)
    most = max([entry.images_per_second for entry in entries], default=0) or 1
    for number, entry in enumerate(entries):
        middle = top + number * ROW + ROW // 2
        end = left + round(LENGTH * entry.images_per_second / most)
        small.write(draw, (left - 16, middle), entry.text, BRIGHT if entry.best else TEXT, "rm")
        draw.rectangle((left, middle - BAR // 2, left + LENGTH, middle + BAR // 2), fill=PANEL)
        if entry.images_per_second:
            draw.rectangle((left, middle - BAR // 2, end, middle + BAR // 2), fill=ACCENT if entry.best else SECOND)
        small.write(draw, (left + LENGTH + 12, middle), entry.note, BRIGHT if entry.best else FAINT, "lm")
    return picture
