"""Whether an image file is there to its last byte, and unharmed: what Pillow reads over without a word."""

from __future__ import annotations

import math
import struct
import zlib

from pixelkit.errors import DataError

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that a picture's pixels depend on, beside those that every reader must know.
_TELLING = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The passes of an interlaced PNG: first column and row, and how far apart the next ones are.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 1 << 20
_CUT_OFF = "the file is cut off: its end is missing"


def check_intact(data: bytes) -> None:
    """Raises DataError for a PNG, GIF or WebP that is cut off, damaged, or has more pixels or fewer than it says."""
    try:
        if data.startswith(PNG):
            _check_png(data)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            _check_gif(data)
        elif data[:4] == b"RIFF" and struct.unpack_from("<I", data, 4)[0] + 8 > len(data):
            raise DataError(_CUT_OFF)
    except (IndexError, struct.error):
        raise DataError(_CUT_OFF) from None


def skim_png(start: bytes) -> tuple[int, int] | None:
    """Width and height of a plain PNG, by the file's first bytes. None where more than the header has to be looked at: an
    animation, a turned photo, anything unusual, anything wrong, no PNG.
    """
    try:
        width, height, depth, kind, *_, checksum = struct.unpack_from(">IIBBBBBI", start, 16)
        usual = start[:16] == PNG + b"\0\0\0\rIHDR" and checksum == zlib.crc32(start[12:29])
        if not (usual and depth in _DEPTHS.get(kind, ()) and width and height):
            return None
        position = 33
        while (found := struct.unpack_from(">I4s", start, position))[1] != b"IDAT":
            if found[1] in {b"acTL", b"eXIf", b"IEND"}:
                return None
            position += 12 + found[0]
    except struct.error:
        return None
    return width, height


def is_lossy_webp(data: bytes) -> bool:
    """Whether a WebP's pixels, or its first frame's, were compressed with loss."""
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind in {b"VP8 ", b"ALPH", b"VP8L"}:
            return bool(kind != b"VP8L")
        position += 24 if kind == b"ANMF" else 8 + size + size % 2
    return False


def _check_png(data: bytes) -> None:
    position, kind, header, packed = len(PNG), b"", b"", []
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if (kind[0] & 0x20 == 0 or kind in _TELLING) and checksum != zlib.crc32(body, zlib.crc32(kind)):
            raise DataError(f"the file is damaged: the checksum of its part {kind.decode('latin-1')!r} is wrong")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed.append(body)
        position += 12 + length
    said, held = _count_png_bytes(header), _count_unpacked(b"".join(packed))
    if said != held:
        raise DataError(
            f"the file is damaged: it holds {'more' if held > said else 'fewer'} pixels than its header says"
        )


def _count_png_bytes(header: bytes) -> int:
    """What a PNG's pixels come to: a byte for each row's filter, and the row."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(kind, 0)
    sizes = [(width, height)]
    if interlaced:
        sizes = [(math.ceil((width - x) / dx), math.ceil((height - y) / dy)) for x, y, dx, dy in _ADAM7]
    return sum(rows * (1 + math.ceil(columns * bits / 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _count_unpacked(packed: bytes) -> int:
    unpacker = zlib.decompressobj()
    count, rest = 0, packed
    try:
        while rest and not unpacker.eof:
            count += len(unpacker.decompress(rest, _PIECE))
            rest = unpacker.unconsumed_tail
    except zlib.error:
        raise DataError("the file is damaged: its pixels cannot be unpacked") from None
    return count


def _check_gif(data: bytes) -> None:
    """Walk its blocks to the trailer."""
    position = 13 + _table_size(data[10])
    while (kind := data[position]) != 0x3B:
        if kind == 0x21:
            position += 2
        elif kind == 0x2C:
            position += 11 + _table_size(data[position + 9])
        elif kind == 0:
            position += 1
            continue
        else:
            raise DataError("the file is damaged: its blocks do not follow each other")
        while data[position]:
            position += data[position] + 1
        position += 1


def _table_size(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0
