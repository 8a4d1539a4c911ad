"""Image files that tests make themselves, byte by byte where Pillow cannot write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelkit.sources.pixels import read_pixels
from pixelkit.sources.sprite import Sprite

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Pixels = NDArray[np.uint8]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def random_pixels(width: int, height: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: NDArray[np.integer],
    *,
    depth: int = 8,
    kind: int = 6,
    extra: Sequence[tuple[bytes, bytes]] = (),
    interlaced: bool = False,
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of (height, width, channels) samples, each of `depth` bits. `size`: what the header says instead."""
    samples = samples.reshape(*samples.shape[:2], CHANNELS[kind])
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    packed = b"".join(_pack(part, depth) for part in passes if part.size)
    width, height = size or (width, height)
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    parts = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _pack(samples: NDArray[np.integer], depth: int) -> bytes:
    rows = []
    for row in samples:
        if depth == 16:
            rows.append(b"\0" + row.astype(">u2").tobytes())
        else:
            bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
            rows.append(b"\0" + np.packbits(bits.reshape(-1)).tobytes())
    return b"".join(rows)


def save(path: Path, pixels: Pixels | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(path: Path, **known: object) -> Pixels:
    """All pixels of one file."""
    return read_pixels(Sprite(**{"path": path, "name": path.stem, "width": 1, "height": 1} | known))


def same_where_seen(one: Pixels, other: Pixels) -> bool:
    """Equal in alpha, and in colour where alpha is not 0."""
    return np.array_equal(one * (one[..., 3:] > 0), other * (other[..., 3:] > 0))
