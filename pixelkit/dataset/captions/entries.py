"""The images of a folder, each with its caption file: one caption a file, also for animations and sheets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixelkit.errors import DataError, Problem
from pixelkit.sources.beside import read_beside
from pixelkit.sources.files import IMAGE_SUFFIXES, LOSSY_SUFFIXES, list_files, read_header, shown
from pixelkit.sources.prepared import MANIFEST, read_manifest, read_prepared, read_records
from pixelkit.sources.sprite import Sprite

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pixelkit.sources.beside import Beside
    from pixelkit.sources.catsith import Drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An image and its caption. `name`: path below the source without suffix. `file`: the caption file, there or to be.
    `drawing`: what CatSith's metadata.json says of it. `sprite`: its region and scale in a prepared set.

    `text` is None where there is no caption file, and where it cannot be read: `trouble` then says why.
    """

    image: Path
    name: str
    file: Path
    text: str | None = None
    trouble: str = ""
    drawing: Drawing | None = None
    sprite: Sprite | None = None


def find_entries(source: Path) -> tuple[Entry, ...]:
    """All images of a folder, or of a set that `pixelkit data prepare` wrote, in a stable order.

    Raises DataError: no folder, a zip, no image in it, two images that share one caption file.
    """
    if source.is_file() and source.suffix.lower() == ".zip":
        raise DataError(f"{source} is a zip; captions lie beside images", hint="unpack it and caption the folder")
    if not source.is_dir():
        raise DataError(f"{source} is no folder", hint="give the folder that holds your sprites")
    files = list_files(source).files
    beside = read_beside(source, files)
    if beside.problems:
        raise DataError(f"{source}: what lies beside the images cannot be read", problems=beside.problems)
    sprites = {sprite.path: sprite for sprite in read_prepared(source)} if (source / MANIFEST).is_file() else {}
    entries = [
        replace(_read_entry(image, name, beside), sprite=sprites.get(image))
        for image, name in _find_images(source, files)
    ]
    if not entries:
        raise DataError(
            f"{source}: no image found", hint=f"sprites are {', '.join(sorted(IMAGE_SUFFIXES | LOSSY_SUFFIXES))} files"
        )
    _refuse_shared(entries, source)
    return tuple(entries)


def open_sprite(entry: Entry) -> Sprite:
    """The sprite of a prepared set; else the whole picture (of an animation the first frame) at the size of its file.

    Raises DataError.
    """
    if entry.sprite:
        return entry.sprite
    header = read_header(entry.image)
    return Sprite(path=entry.image, name=entry.name, width=header.width, height=header.height, caption=entry.text)


def show_path(path: Path, source: Path) -> str:
    """A path below the source, for people."""
    return shown(path.relative_to(source) if path.is_relative_to(source) else path)


def _find_images(source: Path, files: Sequence[Path]) -> list[tuple[Path, str]]:
    if (source / MANIFEST).is_file():
        read_manifest(source)
        return [(source / record["file"], record["name"]) for record in read_records(source)]
    suffixes = IMAGE_SUFFIXES | LOSSY_SUFFIXES
    images = [path for path in files if path.suffix.lower() in suffixes]
    return [(image, image.relative_to(source).with_suffix("").as_posix()) for image in images]


def _read_entry(image: Path, name: str, beside: Beside) -> Entry:
    drawing = next((found for each in beside.sets.values() if (found := each.find_drawing(image))), None)
    file = beside.captions.get(image.with_suffix(""))
    entry = Entry(image=image, name=name, file=file or image.with_suffix(".txt"), drawing=drawing)
    if file is None:
        return entry
    try:
        return replace(entry, text=file.read_bytes().decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return replace(entry, trouble=f"is not UTF-8 text (byte {error.start + 1})")
    except OSError as error:
        return replace(entry, trouble=f"cannot be read: {error.strerror}")


def _refuse_shared(entries: list[Entry], source: Path) -> None:
    images: dict[Path, list[Path]] = {}
    for entry in entries:
        images.setdefault(entry.file, []).append(entry.image)
    problems = [
        Problem(
            where=show_path(file, source),
            what=f"is the caption of {len(shared)} images: {', '.join(image.name for image in shared)}",
            hint="rename all but one of them",
        )
        for file, shared in images.items()
        if len(shared) > 1
    ]
    if problems:
        raise DataError(f"{source}: images share a caption file", problems=problems)
