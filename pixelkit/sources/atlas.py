"""Maps of sheets: the JSON of Aseprite and TexturePacker, Tiled's .tsx. A map belongs to the image that it names."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from pixelkit.errors import DataError
from pixelkit.sources.catsith import explain
from pixelkit.sources.files import IMAGE_SUFFIXES, LOSSY_SUFFIXES, read_bytes
from pixelkit.sources.sheets import Part, leave_out_empty
from pixelkit.sources.tiled import is_tileset, read_tileset

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pixelkit.sources.files import Header


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """The sprites that a map finds in an image. `sparse`: its cells may be empty."""

    map: Path
    image: Path
    parts: list[Part]
    sparse: bool = False

    def cut(self, header: Header) -> list[Part]:
        """The parts, empty cells left out. Raises DataError for a region outside of the image."""
        for part in self.parts:
            assert part.box is not None
            left, top, right, bottom = part.box
            if right > header.width or bottom > header.height:
                raise DataError(
                    f"{self.map.name}: {part.suffix[1:]} is {right - left}x{bottom - top} at {left},{top}, outside of the image,"
                    f" which is {header.width}x{header.height}"
                )
        return leave_out_empty(self.image, self.parts) if self.sparse else self.parts


@dataclass(frozen=True, kw_only=True)
class Maps:
    """`images`: all of the source. `atlases`: by image. `broken`: what is wrong with a map, by the image that it belongs to,
    or by the map itself where that is not known.
    """

    images: set[Path]
    atlases: dict[Path, Atlas] = field(default_factory=dict)
    broken: dict[Path, DataError] = field(default_factory=dict)

    def find_atlas(self, image: Path) -> Atlas | None:
        """The atlas of an image. Raises DataError where its map is broken."""
        if image in self.broken:
            raise self.broken[image]
        return self.atlases.get(image)

    def list_lost(self) -> dict[Path, DataError]:
        """Broken maps whose image is not known."""
        return {path: error for path, error in self.broken.items() if path not in self.images}


class Corner(BaseModel):
    """Where a region begins."""

    x: int = Field(ge=0)
    y: int = Field(ge=0)


class Size(BaseModel):
    """Of a picture or a region."""

    w: int = Field(ge=1)
    h: int = Field(ge=1)


class Region(Corner, Size):
    """Of a sheet, or where a trimmed frame lies in its untrimmed size."""


class Frame(BaseModel):
    """One entry of an atlas, in Aseprite's words and TexturePacker's."""

    frame: Region
    rotated: bool = False
    trimmed: bool = False
    spriteSourceSize: Corner | None = None  # noqa: N815 - the format's
    sourceSize: Size | None = None  # noqa: N815


class Tag(BaseModel):
    """An animation within an Aseprite sheet: frames `first` to `last`, both included."""

    name: str
    first: int = Field(alias="from", ge=0)
    last: int = Field(alias="to", ge=0)


def read_maps(files: Iterable[Path]) -> Maps:
    """All maps among a source's files. What is no map at all is passed over, and so is a tileset of single images."""
    files = list(files)
    images = {path for path in files if path.suffix.lower() in IMAGE_SUFFIXES | LOSSY_SUFFIXES}
    maps = Maps(images=images)
    for path in files:
        if path.suffix.lower() not in {".json", ".tsx"}:
            continue
        try:
            for atlas in _read_map(path, images):
                other = maps.atlases.setdefault(atlas.image, atlas)
                if other is not atlas:
                    what = f"it is described by {other.map.name} and by {path.name}; keep one of them"
                    maps.broken[atlas.image] = DataError(what)
        except _BrokenMapError as error:
            maps.broken[error.where or _find_image_of(path, images) or path] = error
    return maps


class _BrokenMapError(DataError):
    """A map that cannot be used, and the image that it belongs to, where that is known."""

    def __init__(self, where: Path | None, message: str) -> None:
        super().__init__(message)
        self.where = where


def _read_map(path: Path, images: set[Path]) -> Iterator[Atlas]:
    try:
        data = read_bytes(path)
        if path.suffix.lower() == ".json":
            yield from _read_json(path, data, images)
        elif is_tileset(data):
            tileset = read_tileset(data)
            if tileset is not None:
                yield Atlas(map=path, image=_find_image(path, tileset.image, images), parts=tileset.parts, sparse=True)
    except _BrokenMapError:
        raise
    except DataError as error:
        raise _BrokenMapError(None, f"{path.name}: {error.message}") from None


def _read_json(path: Path, data: bytes, images: set[Path]) -> Iterator[Atlas]:
    if b'"frames"' not in data:
        return
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        if b'"spriteSourceSize"' in data or b'"sourceSize"' in data:
            raise DataError(f"it is no valid JSON: {error}") from None
        return
    if not isinstance(content, dict):
        return
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    textures = content.get("textures")
    for sheet in textures if isinstance(textures, list) else [{**content, "image": meta.get("image")}]:
        if isinstance(sheet, dict) and _looks_like_atlas(sheet):
            name = sheet.get("image")
            image = _find_image(path, name, images) if isinstance(name, str) and name else _find_image_of(path, images)
            if image is None:
                raise DataError("it names no image, and none of its own name lies beside it")
            yield Atlas(map=path, image=image, parts=_read_frames(path, image, sheet["frames"], meta.get("frameTags")))


def _looks_like_atlas(sheet: Mapping[str, Any]) -> bool:
    frames = sheet.get("frames")
    if not isinstance(frames, dict | list) or not frames:
        return False
    entries = frames.values() if isinstance(frames, dict) else frames
    return isinstance(sheet.get("image"), str) or any(isinstance(entry, dict) and "frame" in entry for entry in entries)


def _read_frames(path: Path, image: Path, frames: dict[str, Any] | list[Any], tags: Any) -> list[Part]:
    entries = (
        list(frames.items())
        if isinstance(frames, dict)
        else [(_name_of(entry, n), entry) for n, entry in enumerate(frames)]
    )
    labels = [_label(name) for name, _ in entries]
    for tag in sorted(_read_tags(path, image, tags), key=lambda tag: tag.first - tag.last):
        for number in range(tag.first, min(tag.last + 1, len(labels))):
            labels[number] = _join_tag(_label(entries[number][0]), _label(tag.name), number - tag.first)
    parts: list[Part] = []
    seen: set[object] = set()
    taken: set[str] = set()
    for label, (name, entry) in zip(labels, entries, strict=True):
        try:
            part = _read_frame(Frame.model_validate(entry))
        except (ValidationError, DataError) as error:
            what = explain(error) if isinstance(error, ValidationError) else error.message
            raise _BrokenMapError(image, f"{path.name}: frame {name!r}: {what}") from None
        place = (part.box, part.turned, part.canvas)
        if place in seen:  # Aseprite merges frames that are equal
            continue
        seen.add(place)
        unique = next(
            text for text in (label, *(f"{label}#{n}" for n in range(2, len(entries) + 2))) if text not in taken
        )
        taken.add(unique)
        parts.append(Part(box=part.box, turned=part.turned, canvas=part.canvas, suffix=f"/{unique}"))
    return parts


def _read_frame(entry: Frame) -> Part:
    """A turned region lies in the sheet with its sides exchanged; `frame` has them as the sprite has."""
    region = entry.frame
    width, height = (region.h, region.w) if entry.rotated else (region.w, region.h)
    canvas = None
    if entry.trimmed:
        corner, size = entry.spriteSourceSize, entry.sourceSize
        if corner is None or size is None:
            raise DataError("it is trimmed, but spriteSourceSize or sourceSize is missing")
        if corner.x + region.w > size.w or corner.y + region.h > size.h:
            raise DataError(
                f"{region.w}x{region.h} at {corner.x},{corner.y} do not fit into its sourceSize of {size.w}x{size.h}"
            )
        canvas = (corner.x, corner.y, size.w, size.h)
    return Part(box=(region.x, region.y, region.x + width, region.y + height), turned=entry.rotated, canvas=canvas)


def _read_tags(path: Path, image: Path, tags: Any) -> list[Tag]:
    try:
        return [Tag.model_validate(tag) for tag in tags or ()]
    except (ValidationError, TypeError) as error:
        what = explain(error) if isinstance(error, ValidationError) else "is no list"
        raise _BrokenMapError(image, f"{path.name}: meta.frameTags: {what}") from None


def _name_of(entry: Any, number: int) -> str:
    name = entry.get("filename") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name else str(number)


def _label(name: str) -> str:
    """A frame's name as part of a sprite's: no suffix, no signs that mean something there (`#`, `..`); `walk/01` -> `walk_01`."""
    plain = re.sub(r"\.(png|ase|aseprite|gif|bmp|webp|psd|jpe?g)$", "", name.replace("\\", "/"), flags=re.IGNORECASE)
    folders = [re.sub(r"[\s_#()\[\]]+", "_", folder).strip("_") for folder in plain.split("/")]
    folders = [folder for folder in folders if folder.strip(".")]
    if len(folders) > 1 and folders[-1].isdigit():
        folders[-2:] = ["_".join(folders[-2:])]
    return "/".join(folders) or "frame"


def _join_tag(label: str, tag: str, number: int) -> str:
    """`hero_7` within the tag `walk` -> `hero_walk_2`; `hero_walk_7` -> `hero_walk_2`."""
    title = re.sub(r"_?\d+$", "", label)
    known = f"_{tag.lower()}_" in f"_{title.lower()}_"
    return "_".join(part for part in (title, "" if known else tag, str(number)) if part)


def _find_image(path: Path, named: str, images: set[Path]) -> Path:
    """The image that a map names: by its path seen from the map, or by its name beside the map."""
    beside = path.parent / PureWindowsPath(named).name
    parts: list[str] = list(path.parent.parts)
    for part in PureWindowsPath(named).parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    for found in (Path(*parts), beside):
        if found in images:
            return found
    raise _BrokenMapError(path, f"it names the image {named}, which is not there")


def _find_image_of(path: Path, images: set[Path]) -> Path | None:
    found = (path.with_suffix(suffix) for suffix in (".png", *sorted(IMAGE_SUFFIXES)))
    return next((image for image in found if image in images), None)
