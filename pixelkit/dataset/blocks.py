"""A sprite's pixels on their way to the canvas: flattened, indexed, each one enlarged to an exact block."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.canvas import Canvas

Color = tuple[int, int, int]
_PACK = np.array([1 << 24, 1 << 16, 1 << 8, 1], dtype=np.uint32)


def flatten(pixels: NDArray[np.uint8], background: Color) -> NDArray[np.uint8]:
    """RGBA (h, w, 4) over a background colour: (h, w, 3). Hidden colour under full transparency never shows."""
    alpha = pixels[..., 3:].astype(np.uint16)
    color = pixels[..., :3].astype(np.uint16)
    mixed = (color * alpha + np.array(background, dtype=np.uint16) * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def cover(pixels: NDArray[np.uint8], background: Color, *, keep_alpha: bool) -> NDArray[np.uint8]:
    """What is trained on, (h, w, 4) RGBA: the flattened colours, opaque, or with the sprite's own alpha as a mask."""
    alpha = pixels[..., 3:] if keep_alpha else np.full_like(pixels[..., 3:], 255)
    return np.concatenate([flatten(pixels, background), alpha], axis=2)


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """Pixels as (h, w) indices of a table of RGBA colours, (n, 4), the most frequent first after entry 0, the backdrop."""

    indices: NDArray[np.intp]
    table: NDArray[np.uint8]


def index_colors(pixels: NDArray[np.uint8], backdrop: tuple[int, int, int, int]) -> Indexed:
    """RGBA (h, w, 4) as indices. The backdrop is what lies around the sprite on its canvas."""
    packed = np.append((pixels.reshape(-1, 4) @ _PACK), np.array(backdrop, dtype=np.uint32) @ _PACK).astype(np.uint32)
    values, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    counts[inverse[-1]] = packed.size + 1
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    table = (values[order, None] >> np.array([24, 16, 8, 0], dtype=np.uint32) & 255).astype(np.uint8)
    return Indexed(indices=rank[inverse[:-1]].reshape(pixels.shape[:2]), table=table)


def place(sprite: Indexed, canvas: Canvas) -> Image.Image:
    """Each pixel a block of `canvas.scale`, centred on the canvas. A palette picture where 256 colours are enough."""
    small = len(sprite.table) <= 256
    indices = sprite.indices.astype(np.uint8 if small else np.uint32)
    left, top = canvas.offset
    out = np.zeros((canvas.height, canvas.width), dtype=indices.dtype)
    enlarged = indices.repeat(canvas.scale, axis=0).repeat(canvas.scale, axis=1)
    out[top : top + enlarged.shape[0], left : left + enlarged.shape[1]] = enlarged
    opaque = bool((sprite.table[:, 3] == 255).all())
    if not small:
        return Image.fromarray(sprite.table[out][..., : 3 if opaque else 4])
    image = Image.fromarray(out, "P")
    image.putpalette(sprite.table[:, :3].tobytes())
    if not opaque:
        image.info["transparency"] = sprite.table[:, 3].tobytes()
    return image


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all: a temporary name beside it, then a rename."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            image.save(stream, "PNG", compress_level=1)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
