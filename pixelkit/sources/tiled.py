"""Tiled's tilesets (.tsx): a sheet's tiles, and what is said of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.parsers import expat

from pixelkit.errors import DataError
from pixelkit.sources.sheets import Part

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Tileset:
    """The image that a tileset names, and its tiles: all of the same size."""

    image: str
    parts: list[Part]


def is_tileset(data: bytes) -> bool:
    """Whether a .tsx is Tiled's; TypeScript has files of that name, too."""
    return b"<tileset" in data[:4096]


def read_tileset(data: bytes) -> Tileset | None:
    """None for a tileset whose tiles are single images. Raises DataError that names the attribute.

    A tile's class, and the values of its text properties (of those that are true or false: names of the true ones), become
    its words.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.EntityDeclHandler = _refuse_entities
    try:
        parser.Parse(data, True)  # noqa: FBT003 - it takes no keyword
    except expat.ExpatError as error:
        raise DataError(f"it is no valid XML: {error}") from None
    if reader.image is None:
        return None
    if not reader.image.get("source"):
        raise DataError("its <image> names no source")
    return Tileset(image=reader.image["source"], parts=_cut_tiles(reader))


class _Reader:
    """What counts of the elements, in the order in which they come."""

    def __init__(self) -> None:
        self.tileset: Mapping[str, str] = {}
        self.image: Mapping[str, str] | None = None
        self.words: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._tile: str | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name == "tileset":
            self.tileset = attributes
        elif name == "image" and self._open == ["tileset"]:
            self.image = attributes
        elif name == "tile" and self._open == ["tileset"]:
            self._tile = attributes.get("id", "")
            self._say(attributes.get("class") or attributes.get("type") or "")
        elif name == "property" and self._open == ["tileset", "tile", "properties"]:
            kind, value = attributes.get("type", "string"), attributes.get("value", "")
            if kind == "string":
                self._say(value)
            elif kind == "bool" and value == "true":
                self._say(attributes.get("name", ""))
        self._open.append(name)

    def end(self, _name: str) -> None:
        self._open.pop()

    def _say(self, text: str) -> None:
        if self._tile is not None and (words := " ".join(text.replace("_", " ").split())):
            self.words.setdefault(self._tile, []).append(words)


def _cut_tiles(reader: _Reader) -> list[Part]:
    image = reader.image
    assert image is not None
    width, height = (_read_number(reader.tileset, key, least=1) for key in ("tilewidth", "tileheight"))
    spacing, margin = (_read_number(reader.tileset, key, default=0) for key in ("spacing", "margin"))
    across, down = (_read_number(image, key, least=1) for key in ("width", "height"))
    fitting = max(0, across - 2 * margin + spacing) // (width + spacing)
    if not fitting or down < height:
        raise DataError(f"not one tile of {width}x{height} fits into its image of {across}x{down}")
    columns = _read_number(reader.tileset, "columns", default=fitting, least=1)
    rows = max(0, down - 2 * margin + spacing) // (height + spacing)
    count = _read_number(reader.tileset, "tilecount", default=columns * rows, least=1)
    parts = []
    for number in range(count):
        left = margin + number % columns * (width + spacing)
        top = margin + number // columns * (height + spacing)
        words = ", ".join(reader.words.get(str(number), ()))
        parts.append(Part(box=(left, top, left + width, top + height), suffix=f"#{number}", words=words))
    return parts


def _read_number(attributes: Mapping[str, str], key: str, *, default: int | None = None, least: int = 0) -> int:
    text = attributes.get(key)
    if text is None and default is not None:
        return default
    if text is None or not text.isascii() or not text.isdigit() or int(text) < least:
        said = "is missing" if text is None else f"= {text!r} is no number from {least} on"
        raise DataError(f"{key} {said}")
    return int(text)


def _refuse_entities(*_args: object) -> None:
    raise DataError("it declares entities, which no tileset needs")
