"""The procedural painter: 32x32 pixel-art sprites of some forty kinds, in named colours and several styles.

    >>> image = paint("sword", "red", "blue", np.random.default_rng(0))

Everything is drawn from the generator that is handed in: the same seed gives the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pixelkit.tiny.beings import BEINGS
from pixelkit.tiny.canvas import SIZE, Canvas, Kind, Placement, border
from pixelkit.tiny.palettes import BACKGROUNDS, COLOURS, MATERIALS, Colour, jitter_colour, make_ramp
from pixelkit.tiny.things import THINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

BAYER = (np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=np.float64) + 0.5) / 16 - 0.5


@dataclass(frozen=True, kw_only=True)
class Style:
    """How light becomes colour.

    `shades` a material has; `dither` 0 (none) to 1; `outline` its width in pixels and `outline_colour` "black", "dark"
    (the sprite's own darkest shade, darker) or "coloured" (each pixel's neighbour, darkened). With `palette`, every
    pixel's light and its material's brightness pick one of those colours (dark to light); the outline is the first.
    """

    shades: int = 4
    dither: float = 0.0
    outline: int = 0
    outline_colour: str = "dark"
    palette: tuple[Colour, ...] = ()


STYLES: dict[str, Style] = {
    "plain": Style(shades=5),
    "outlined": Style(shades=4, outline=1, outline_colour="dark"),
    "inked": Style(shades=3, outline=1, outline_colour="black"),
    "soft": Style(shades=5, outline=1, outline_colour="coloured"),
    "flat": Style(shades=2),
    "dithered": Style(shades=3, dither=0.9, outline=1, outline_colour="dark"),
}

# The look of the quickstart data set; the base model is trained without it.
HANDHELD = Style(
    shades=4,
    dither=1.0,
    outline=2,
    palette=((8, 24, 32), (52, 104, 86), (136, 192, 112), (224, 248, 208)),
)


KINDS: dict[str, Kind] = dict(sorted({**THINGS, **BEINGS}.items()))


def paint(
    kind: str,
    colour: str,
    background: str | None,
    rng: np.random.Generator,
    *,
    style: Style = STYLES["outlined"],
    steady: bool = False,
) -> Image.Image:
    """Draws one sprite: RGB on a flat background, or RGBA (alpha 0 or 255 only) where `background` is None.

    kind, colour, background: keys of KINDS, COLOURS and BACKGROUNDS. `steady` keeps size, place and direction to what
    is usual for the kind; its details still vary.
    """
    shape = KINDS[kind]
    size = 0.92 if style.outline > 1 else 1.0
    if steady:
        placement = Placement(angle=shape.angles[0], scale=(0.96 * size, 0.96 * size))
    else:
        size *= rng.uniform(0.86, 1.04)
        angle = shape.angles[int(rng.integers(len(shape.angles)))]
        placement = Placement(
            angle=angle,
            scale=(size * rng.uniform(0.94, 1.04), size * rng.uniform(0.96, 1.02)),
            shift=(float(rng.integers(-1, 2)), float(rng.integers(-1, 2))),
            mirror=bool(rng.random() < 0.5),
        )
    canvas = Canvas(rng, placement)
    shape.draw(canvas)
    pixels = _render(canvas, colour, style, rng)
    if background is None:
        return Image.fromarray(pixels)
    ground = jitter_colour(BACKGROUNDS[background], rng, 0.5)
    flat = np.where(pixels[..., 3:] > 0, pixels[..., :3], np.array(ground, np.uint8))
    return Image.fromarray(flat.astype(np.uint8))


def caption(kind: str, colour: str | None, background: str | None) -> str:
    """The words for a sprite, without a trigger or a medium: "a red sword, blue background"."""
    noun = f"{colour} {kind}" if colour else kind
    words = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return f"{words}, {background} background" if background else words


def _render(canvas: Canvas, colour: str, style: Style, rng: np.random.Generator) -> NDArray[np.uint8]:
    """RGBA pixels of a finished canvas."""
    filled = canvas.filled
    light = np.clip(canvas.light, 0.0, 0.999)
    names = [name for name in COLOURS if name != colour]
    second = names[int(rng.integers(len(names)))]
    shift = float(rng.uniform(0.4, 1.4))
    out = np.zeros((SIZE, SIZE, 4), np.uint8)
    grid = np.tile(BAYER, (SIZE // 4, SIZE // 4))
    shade = np.clip(np.floor((light + grid * style.dither / style.shades) * style.shades), 0, style.shades - 1)
    index = (
        np.round(shade * (4 / max(style.shades - 1, 1))).astype(int) if style.shades > 2 else (shade + 2).astype(int)
    )
    for number, material in enumerate(canvas.materials):
        base = MATERIALS.get(material) or COLOURS[colour if material == "main" else second]
        base = jitter_colour(base, rng)
        ramp = make_ramp(base, shift=shift)
        mine = canvas.material == number
        if style.palette:
            bright = float(ramp[2].astype(np.float64) @ (0.299, 0.587, 0.114)) / 255
            level = 0.5 * np.clip((light - 0.3) / 0.6, 0, 1) + 0.5 * bright
            steps = len(style.palette) - 1
            tone = 1 + np.clip(np.floor((level + grid * style.dither / steps) * steps), 0, steps - 1).astype(int)
            tone[(material == "ink") & mine] = 0
            out[mine, :3] = np.array(style.palette, np.uint8)[tone[mine]]
        else:
            out[mine, :3] = ramp[index[mine]]
    out[filled, 3] = 255
    _outline(out, filled, colour, style)
    return out


def _outline(out: NDArray[np.uint8], filled: NDArray[np.bool_], colour: str, style: Style) -> None:
    """Draws the outline around what is filled, outwards."""
    covered = filled
    for _ in range(style.outline):
        edge = border(covered)
        if style.palette:
            out[edge, :3] = style.palette[0]
        elif style.outline_colour == "coloured":
            near = np.zeros((SIZE, SIZE, 3))
            count = np.zeros((SIZE, SIZE, 1))
            for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
                moved = np.roll(covered, step, axis)
                near += np.roll(out[..., :3], step, axis) * moved[..., None]
                count += moved[..., None]
            out[edge, :3] = (near / np.maximum(count, 1) * 0.45)[edge].astype(np.uint8)
        else:
            ink = (18, 16, 22) if style.outline_colour == "black" else make_ramp(COLOURS[colour])[0] // 2
            out[edge, :3] = ink
        covered = covered | edge
    out[covered, 3] = 255
