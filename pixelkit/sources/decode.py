"""Image files to 8-bit RGBA, exactly, whatever their mode. Pillow only.

Left alone: gamma and colour profiles (the values are what the artist chose), colours under full transparency. Applied:
transparent colours, EXIF's orientation. Rounded, not cut: 16-bit channels, which Pillow itself would cut for colours and
saturate for greys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageChops

from pixelkit.errors import DataError
from pixelkit.sources.files import open_image, read_bytes, read_orientation
from pixelkit.sources.intact import check_intact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from PIL.ImageFile import ImageFile

# A PNG's greys of 2 and 4 bits, and what Pillow multiplies them by: but not the grey that stands for transparency.
_STRETCHED = {"L;2": 85, "L;4": 17}
# 16-bit PNG: how Pillow names the way it reads them, and how both bytes of each channel are read instead.
_DEEP = {"I;16B": (), "LA;16B": ("RGBA",), "RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L")}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_frame(path: Path, frame: int = 0) -> Image.Image:
    """One frame, upright, RGBA. Raises DataError for what is cut off or damaged anywhere; the message names no file."""
    data = read_bytes(path)
    with open_image(path, data) as image:
        check_intact(data)
        orientation = read_orientation(image)
        packing = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
        if packing in _DEEP:
            if frame:
                raise DataError("it is an animation of 16 bits a channel; save it with 8")
            picture = _decode_deep(path, data, packing)
        else:
            if frame:
                image.seek(frame)
            picture = _decode(image, _STRETCHED.get(packing, 1))
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


def load_frames(path: Path) -> Iterator[tuple[int, Image.Image]]:
    """The frames of an animation with their numbers, RGBA. Left out: a picture for viewers that know no animations."""
    data = read_bytes(path)
    with open_image(path, data) as image:
        check_intact(data)
        if image.format == "PNG" and str(image.tile[0][3]) in _DEEP:
            raise DataError("it is an animation of 16 bits a channel; save it with 8")
        for number in range(1 if getattr(image, "default_image", False) else 0, getattr(image, "n_frames", 1)):
            image.seek(number)
            yield number, _decode(image, 1)


def _decode(image: ImageFile, stretch: int) -> Image.Image:
    image.load()
    key = image.info.get("transparency")
    if image.format == "PNG" and isinstance(key, int) and image.mode == "L":
        image.info["transparency"] = (key & 255 // stretch) * stretch
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(value & 0xFF for value in key)
    return image.copy() if image.mode == "RGBA" else image.convert("RGBA")


def _decode_deep(path: Path, data: bytes, packing: str) -> Image.Image:
    """Round every channel, from its high byte and its low byte; a transparent colour counts only where both agree."""
    with open_image(path, data) as image:
        image.load()
        key = image.info.get("transparency")
        readings = [_load_packed(path, data, packing=other).split() for other in _DEEP[packing]]
        if packing == "I;16B":
            low, high = Image.frombytes("LA", image.size, image.convert("I;16").tobytes()).split()
            channels = [(high, low)]
        elif packing == "LA;16B":
            channels = [(readings[0][0], readings[0][1]), (readings[0][2], readings[0][3])]
        else:
            channels = list(zip(*readings, strict=True))
    rounded = [_round(high, low) for high, low in channels]
    if len(rounded) in {2, 4}:
        alpha = rounded.pop()
    else:
        keys = key if isinstance(key, tuple) else (key,)
        alpha = Image.new("L", rounded[0].size, 255) if key is None else _find_key(channels, keys)
    colours = rounded if len(rounded) == 3 else rounded * 3
    return Image.merge("RGBA", (*colours, alpha))


def _load_packed(path: Path, data: bytes, *, packing: str) -> Image.Image:
    with open_image(path, data) as image:
        image.tile = [image.tile[0]._replace(args=packing)]
        image.load()
        return image.copy()


def _round(high: Image.Image, low: Image.Image) -> Image.Image:
    """(256 high + low) / 257, to the nearest: high, and one more or less where low lies far from it."""
    more = ImageChops.subtract(low, high).point(_is_far)
    less = ImageChops.subtract(high, low).point(_is_far)
    return ImageChops.subtract(ImageChops.add(high, more), less)


def _is_far(distance: int) -> int:
    return int(distance > 128)


def _find_key(channels: list[tuple[Image.Image, Image.Image]], keys: tuple[int, ...]) -> Image.Image:
    """Alpha: 0 where every channel has its key, else 255."""
    same = Image.new("L", channels[0][0].size, 255)
    for (high, low), key in zip(channels, keys, strict=True):
        for half, wanted in ((high, key >> 8), (low, key & 0xFF)):
            same = ImageChops.darker(same, half.point([255 * (value == wanted) for value in range(256)]))
    return ImageChops.invert(same)
