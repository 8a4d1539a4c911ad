"""The contact sheet: every sprite at a whole-number enlargement, framed in the colour of what was found."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pixelkit.dataset.inspect.pictures import draw_sprite
from pixelkit.dataset.inspect.report import KINDS
from pixelkit.evaluate.drawing import ACCENT, BRIGHT, FAINT, PAGE, PANEL, TEXT, Typeface
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pixelkit.dataset.inspect.report import Report

PER_PAGE = 1000
MOST_PAGES = 10

_FEW = 120  # so many sprites are shown larger, with their names
_MARGIN, _GAP, _FRAME, _LABEL = 28, 12, 3, 16


def write_pages(report: Report, folder: Path) -> list[Path]:
    """Write folder/sheet.png, sheet-2.png and so on. Raises StorageError."""
    files = []
    for number, page in enumerate(draw_pages(report), start=1):
        stream = io.BytesIO()
        page.save(stream, "PNG")
        files.append(folder / ("sheet.png" if number == 1 else f"sheet-{number}.png"))
        write_atomically(files[-1], stream.getvalue())
    return files


def draw_pages(report: Report) -> Iterator[Image.Image]:
    """RGB pages of up to PER_PAGE sprites in the source's order, MOST_PAGES at most; drawn one at a time."""
    number = len(report.sprites)
    pages = [range(start, min(start + PER_PAGE, number)) for start in range(0, number, PER_PAGE)][:MOST_PAGES]
    for index, places in enumerate(pages, start=1):
        shown = f"page {index} of {len(pages)}" if len(pages) > 1 else ""
        if number > pages[-1].stop:
            shown += f", the first {pages[-1].stop:,} are shown"
        yield _draw_page(report, places, shown)


def _draw_page(report: Report, places: Sequence[int], shown: str) -> Image.Image:
    few = len(report.sprites) <= _FEW
    cell = 96 if few else 64
    label = _LABEL if few else 0
    sides = sorted(max(one.features.width, one.features.height) for one in report.sprites)
    scale = max(1, cell // sides[len(sides) // 2])
    pitch, rise = cell + _GAP, cell + _GAP + label
    columns = max(8, min(len(places), 10 if few else 40))
    legend, head, leading = Typeface(size=14), Typeface(size=26), 24
    width = 2 * _MARGIN + columns * pitch - _GAP
    entries = _write_entries(report)
    lines = _break_lines(legend, entries, width - 2 * _MARGIN)
    top = _MARGIN + 72 + leading * len(lines) + 16
    page = Image.new("RGB", (width, top + -(-len(places) // columns) * rise - _GAP + _MARGIN), PAGE)
    draw = ImageDraw.Draw(page)
    head.write(draw, (_MARGIN, _MARGIN), head.cut(report.name, width - 2 * _MARGIN), BRIGHT)
    text = f"{len(report.sprites):,} sprites, {report.drawings:,} different drawings{f'; {shown}' if shown else ''}"
    legend.write(draw, (_MARGIN, _MARGIN + 38), legend.cut(text, width - 2 * _MARGIN), FAINT)
    for line, row in enumerate(lines):
        x, y = _MARGIN, _MARGIN + 72 + line * leading
        for entry, color in row:
            draw.rectangle((x, y + 2, x + 12, y + 14), outline=color, width=_FRAME)
            legend.write(draw, (x + 20, y), entry, TEXT)
            x += legend.measure(entry) + 44
    for index, place in enumerate(places):
        x, y = _MARGIN + index % columns * pitch, top + index // columns * rise
        _draw_cell(page, draw, report, place, x=x, y=y, cell=cell, scale=scale)
        if label:
            name = report.sprites[place].name.rpartition("/")[2]
            small = Typeface(size=11)
            small.write(draw, (x + cell / 2, y + cell + 5), small.cut(name, cell), FAINT, anchor="ma")
    return page


def _draw_cell(
    page: Image.Image, draw: ImageDraw.ImageDraw, report: Report, place: int, *, x: int, y: int, cell: int, scale: int
) -> None:
    draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=PANEL)
    if picture := draw_sprite(report.sprites[place], scale=scale, side=cell):
        corner = (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2)
        page.paste(picture, corner, picture)
    found = {finding.kind for finding in report.findings.get(place, ())}
    if kind := next((kind for kind in KINDS if kind in found), None):
        edge = _FRAME + 1
        draw.rectangle(
            (x - edge, y - edge, x + cell - 1 + edge, y + cell - 1 + edge), outline=KINDS[kind][1], width=_FRAME
        )


def _write_entries(report: Report) -> list[tuple[str, tuple[int, int, int]]]:
    entries = [
        (f"{label} {report.count(kind):,}", color) for kind, (label, color) in KINDS.items() if report.count(kind)
    ]
    return entries or [("nothing to mark", ACCENT)]


def _break_lines(
    face: Typeface, entries: Sequence[tuple[str, tuple[int, int, int]]], width: int
) -> list[list[tuple[str, tuple[int, int, int]]]]:
    lines: list[list[tuple[str, tuple[int, int, int]]]] = [[]]
    used = 0
    for entry in entries:
        size = face.measure(entry[0]) + 44
        if lines[-1] and used + size > width:
            lines.append([])
            used = 0
        lines[-1].append(entry)
        used += size
    return lines
