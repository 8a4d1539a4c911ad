"""The contact sheet: the same prompts and seeds with the base and with the LoRA, side by side.

Pictures are shown pixel for pixel or enlarged by a whole number, nearest neighbour: nothing is smoothed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from pixelkit.evaluate.drawing import ACCENT, BRIGHT, FAINT, PAGE, PANEL, RULE, TEXT, Typeface
from pixelkit.evaluate.palette import Color, arrange_colors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CELL = 256  # pictures are enlarged to about this width
SWATCHES = 64


@dataclass(frozen=True, kw_only=True)
class Column:
    """One state of the model; `share` is the share of its pixels in the training palette, None = not measured."""

    title: str
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt and its seed with a picture for each column; None where there is none."""

    prompt: str
    seed: int | None
    pictures: tuple[Path | None, ...]


def draw_sheet(
    *, title: str, subtitle: str, columns: Sequence[Column], rows: Sequence[Row], palette: Sequence[Color] = ()
) -> Image.Image:
    """The sheet as an RGB picture; rows are prompts, columns the states of the model.

    A picture that cannot be read leaves its place empty. Raises ValueError where a row has not one picture a column.
    """
    if not columns or any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError("each row needs a picture, or None, for each column")
    grid = [[_read_picture(path) for path in row.pictures] for row in rows]
    return _Sheet(columns=columns, rows=rows, grid=grid, palette=palette).draw(title, subtitle)


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    columns: Sequence[Column]
    rows: Sequence[Row]
    grid: Sequence[Sequence[Image.Image | None]]
    palette: Sequence[Color]

    @property
    def width(self) -> int:
        return max((picture.width for row in self.grid for picture in row if picture), default=CELL)

    @property
    def unit(self) -> float:
        """Everything but the pictures grows with them, so that text stays readable beside large ones."""
        return max(1.0, self.width / CELL)

    def px(self, size: float) -> int:
        return round(size * self.unit)

    def face(self, size: float) -> Typeface:
        return Typeface(size=self.px(size))

    def draw(self, title: str, subtitle: str) -> Image.Image:
        margin, gap, caption = self.px(28), self.px(14), self.px(230)
        body = caption + len(self.columns) * (self.width + gap)
        heights = [max([self.px(96), *(picture.height for picture in row if picture)]) for row in self.grid]
        swatches = self._swatch_rows(body)
        head = self.px(88) + (self.px(34) + len(swatches) * self.px(26) if swatches else 0)
        columns_top = margin + head
        first_row = columns_top + self.px(58 if any(column.share is not None for column in self.columns) else 34)
        bottom = first_row + sum(heights) + gap * max(len(heights) - 1, 0) + margin
        sheet = Image.new("RGB", (2 * margin + body, bottom), PAGE)
        draw = ImageDraw.Draw(sheet)
        self._draw_head(draw, margin=margin, body=body, title=title, subtitle=subtitle, swatches=swatches)
        left = margin + caption + gap
        for index, column in enumerate(self.columns):
            self._draw_column(draw, left + index * (self.width + gap), columns_top, column)
        top = first_row
        for row, pictures, height in zip(self.rows, self.grid, heights, strict=True):
            self._draw_caption(draw, row, x=margin, y=top, width=caption, height=height)
            for index, picture in enumerate(pictures):
                self._place(sheet, picture, x=left + index * (self.width + gap), y=top, height=height)
            top += height + gap
        return sheet

    def _swatch_rows(self, body: int) -> list[list[Color]]:
        shown = arrange_colors(tuple(self.palette[:SWATCHES]))
        fits = max(1, body // self.px(26))
        count = -(-len(shown) // fits)
        size = -(-len(shown) // count) if count else 1
        return [list(shown[start : start + size]) for start in range(0, len(shown), size)]

    def _draw_head(
        self,
        draw: ImageDraw.ImageDraw,
        *,
        margin: int,
        body: int,
        title: str,
        subtitle: str,
        swatches: list[list[Color]],
    ) -> None:
        large, small, tiny = self.face(30), self.face(15), self.face(13)
        large.write(draw, (margin, margin), large.cut(title, body), BRIGHT)
        small.write(draw, (margin, margin + self.px(44)), small.cut(subtitle, body), FAINT)
        if not swatches:
            return
        top = margin + self.px(80)
        text = f"the training set's palette: {len(self.palette)} colours"
        text += f", the {SWATCHES} most frequent of them shown" if len(self.palette) > SWATCHES else ""
        tiny.write(draw, (margin, top), tiny.cut(text, body), FAINT)
        size = self.px(26)
        for line, colors in enumerate(swatches):
            y = top + self.px(24) + line * size
            for place, color in enumerate(colors):
                x = margin + place * size
                draw.rectangle((x, y, x + size - 1 - self.px(2), y + size - 1 - self.px(2)), fill=color, outline=RULE)

    def _draw_column(self, draw: ImageDraw.ImageDraw, x: int, y: int, column: Column) -> None:
        name, number = self.face(17), self.face(13)
        name.write(draw, (x, y), name.cut(column.title, self.width), BRIGHT)
        if column.share is None:
            return
        text = f"{column.share:.{1 if 0 < column.share < 0.1 else 0}%} in the palette"
        middle, half = y + self.px(37), self.px(3)
        end = x + self.width - number.measure(text) - self.px(12)
        draw.rectangle((x, middle - half, end, middle + half), fill=PANEL)
        if column.share > 0:
            draw.rectangle((x, middle - half, x + round((end - x) * column.share), middle + half), fill=ACCENT)
        number.write(draw, (x + self.width, middle), text, ACCENT, anchor="rm")

    def _draw_caption(self, draw: ImageDraw.ImageDraw, row: Row, *, x: int, y: int, width: int, height: int) -> None:
        face, small = self.face(16), self.face(13)
        draw.line((x, y, x + self.px(24), y), fill=ACCENT, width=max(1, self.px(2)))
        top = y + self.px(10)
        lines = max(1, (height - self.px(40)) // face.leading)
        for line in face.wrap(row.prompt or "(no prompt)", width - self.px(8), lines):
            face.write(draw, (x, top), line, TEXT)
            top += face.leading
        if row.seed is not None:
            small.write(draw, (x, top + self.px(4)), f"seed {row.seed}", FAINT)

    def _place(self, sheet: Image.Image, picture: Image.Image | None, *, x: int, y: int, height: int) -> None:
        if picture is None:
            draw = ImageDraw.Draw(sheet)
            draw.rectangle((x, y, x + self.width - 1, y + height - 1), fill=PANEL)
            small = self.face(13)
            small.write(draw, (x + self.width / 2, y + height / 2), "no picture", FAINT, anchor="mm")
        else:
            sheet.paste(picture, (x + (self.width - picture.width) // 2, y))


def enlarge(picture: Image.Image, width: int = CELL) -> Image.Image:
    """The picture enlarged by the largest whole number that keeps it within `width`; never made smaller."""
    factor = max(1, width // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _read_picture(path: Path | None) -> Image.Image | None:
    if path is None:
        return None
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError):
        return None
    return enlarge(_over_checks(picture))


def _over_checks(picture: Image.Image) -> Image.Image:
    """Transparent parts over a quiet chequerboard of 4 px."""
    if np.asarray(picture)[..., 3].min() == 255:
        return picture.convert("RGB")
    rows, columns = np.indices((picture.height, picture.width)) // 4
    checks = np.where(((rows + columns) % 2)[..., None] == 0, np.array(PANEL), np.array(PAGE)).astype(np.uint8)
    ground = Image.fromarray(checks).convert("RGBA")
    return Image.alpha_composite(ground, picture).convert("RGB")
