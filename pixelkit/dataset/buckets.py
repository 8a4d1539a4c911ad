"""The buckets of a set: how many sprites of which size go onto which canvas, as rows and as a picture."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from pixelkit.canvas import batches_per_epoch, count_buckets
from pixelkit.dataset.blocks import cover, index_colors, place
from pixelkit.evaluate.drawing import ACCENT, BRIGHT, FAINT, PAGE, RULE, TEXT, Typeface
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.canvas import Canvas
    from pixelkit.dataset.blocks import Color
    from pixelkit.plan import PlannedSprite

SIDE = 300  # pixels of the picture that the largest canvas' longer side takes
ACROSS = 4


@dataclass(frozen=True, kw_only=True)
class BucketRow:
    """One way to a canvas: sprites of one size. `images`: an epoch's, repeats counted; `batches`: of the whole bucket."""

    canvas: Canvas
    sprites: tuple[PlannedSprite, ...]
    images: int
    batches: int


def list_buckets(planned: Sequence[PlannedSprite], *, batch_size: int) -> tuple[BucketRow, ...]:
    """The most frequent first."""
    groups: dict[Canvas, list[PlannedSprite]] = defaultdict(list)
    for sprite in planned:
        groups[sprite.canvas].append(sprite)
    counts = {canvas: sum(sprite.repeats for sprite in group) for canvas, group in groups.items()}
    batches = {
        (bucket.width, bucket.height): batches_per_epoch([bucket], batch_size=batch_size)
        for bucket in count_buckets(counts)
    }
    rows = (
        BucketRow(
            canvas=canvas,
            sprites=tuple(group),
            images=counts[canvas],
            batches=batches[canvas.width, canvas.height],
        )
        for canvas, group in groups.items()
    )
    return tuple(sorted(rows, key=lambda row: (-row.images, row.canvas.width, row.canvas.height, -row.canvas.scale)))


def draw_buckets(rows: Sequence[BucketRow], background: Color, *, title: str) -> Image.Image:
    """Each bucket's canvas to scale with one of its sprites on it, its pixel grid, and the numbers below."""
    shown = rows[:24]
    unit = SIDE / max(max(row.canvas.width, row.canvas.height) for row in shown)
    head, line, gap = Typeface(size=22), Typeface(size=14), 24
    across = min(ACROSS, len(shown))
    tall = SIDE + 4 * line.leading + gap
    page = Image.new("RGB", (gap + across * (SIDE + gap), 80 + -(-len(shown) // across) * tall), PAGE)
    draw = ImageDraw.Draw(page)
    head.write(draw, (gap, gap), head.cut(title, page.width - 2 * gap), BRIGHT)
    for number, row in enumerate(shown):
        left, top = gap + number % across * (SIDE + gap), 80 + number // across * tall
        picture = _draw_canvas(row, background, unit)
        page.paste(picture, (left, top + SIDE - picture.height))
        canvas, below = row.canvas, top + SIDE + 8
        each = f"each pixel {canvas.scale}x{canvas.scale}"
        texts = (
            (f"{canvas.width}x{canvas.height}", BRIGHT),
            (f"{len(row.sprites)} sprites of {canvas.sprite_width}x{canvas.sprite_height}, {each}", TEXT),
            (f"{canvas.padding:.0%} background, {row.batches} batches", ACCENT if canvas.padding > 0.5 else FAINT),
        )
        for place_, (text, paint) in enumerate(texts):
            line.write(draw, (left, below + place_ * line.leading), line.cut(text, SIDE), paint)
    return page


def _draw_canvas(row: BucketRow, background: Color, unit: float) -> Image.Image:
    canvas = row.canvas
    sprite = row.sprites[len(row.sprites) // 2]
    pixels = cover(read_pixels(sprite.sprite), background, keep_alpha=False)
    full = place(index_colors(pixels, (*background, 255)), canvas).convert("RGB")
    size = max(1, round(canvas.width * unit)), max(1, round(canvas.height * unit))
    small = full.resize(size, Image.Resampling.BOX)
    draw = ImageDraw.Draw(small)
    left, top = (round(edge * unit) for edge in canvas.offset)
    right = left + round(canvas.sprite_width * canvas.scale * unit) - 1
    bottom = top + round(canvas.sprite_height * canvas.scale * unit) - 1
    draw.rectangle((left, top, right, bottom), outline=RULE)
    draw.rectangle((0, 0, small.width - 1, small.height - 1), outline=FAINT)
    return small
