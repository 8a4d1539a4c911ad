"""What lies in a folder of sprites: sizes and captions, read from file headers only."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from pixelkit.errors import DataError, Problem, nearest
from pixelkit.rundir import is_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMAGE_SUFFIXES = frozenset({".png", ".webp", ".gif", ".bmp"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})
CAPTION_SUFFIXES = (".txt", ".caption", ".TXT")
# Pictures all the same, but not ones that are read here.
FOREIGN_SUFFIXES = frozenset(
    {".ase", ".aseprite", ".avif", ".dds", ".heic", ".kra", ".pcx", ".psd", ".svg", ".tga", ".tif", ".tiff", ".xcf"}
)


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One image file: its size in pixels, its caption (None if no caption file lies beside it), frames of an animation."""

    path: Path
    width: int
    height: int
    caption: str | None
    frames: int = 1


def survey_folder(folder: Path, *, what: str) -> tuple[Sprite, ...]:
    """Every sprite below `folder`, in a stable order. `what` names the folder in errors: `hero.toml:5 [dataset] path`.

    Links to folders are followed; hidden folders and the directories of runs are not read.
    Raises DataError: no such folder, no image in it, files that are no images (all of them listed), unreadable captions.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        near = _nearest_folder(folder)
        raise DataError(
            f"{what} = {folder} {kind}",
            hint=f"did you mean {near}?" if near else "give the folder that holds your sprites",
        )
    files = sorted(_list_files(folder))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES | LOSSY_SUFFIXES]
    if not images:
        held = f"it holds {len(files)} other files" if files else "it is empty"
        raise DataError(
            f"{what} = {folder}: no image found, {held}", hint=f"sprites are {', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    sprites: list[Sprite] = []
    problems: list[Problem] = []
    for path in images:
        try:
            _check_name(path)
            width, height, frames = _read_header(path)
            sprites.append(Sprite(path=path, width=width, height=height, caption=_read_caption(path), frames=frames))
        except DataError as error:
            where = str(path.relative_to(folder)).encode(errors="replace").decode()
            problems.append(Problem(where=where, what=error.message))
    if problems:
        raise DataError(
            f"{what}: {len(problems)} of {len(images)} images cannot be used",
            hint="mend or remove them",
            problems=problems,
        )
    return tuple(sprites)


def find_strays(folder: Path) -> tuple[str, ...]:
    """Remarks on files below `folder` that an artist may take for sprites or captions, and that are neither."""
    files = sorted(_list_files(folder))
    foreign = [path for path in files if path.suffix.lower() in FOREIGN_SUFFIXES]
    stems = {path.with_suffix("") for path in files if path.suffix.lower() in IMAGE_SUFFIXES | LOSSY_SUFFIXES}
    lonely = [path for path in files if path.suffix in CAPTION_SUFFIXES and path.with_suffix("") not in stems]
    remarks = []
    if foreign:
        remarks.append(f"{_count(foreign, 'picture')} of a kind that is not read; save as .png")
    if lonely:
        remarks.append(f"{_count(lonely, 'text')} beside no sprite of the same name; if it is a caption, rename it")
    return tuple(remarks)


def _count(files: Sequence[Path], noun: str) -> str:
    return f"{len(files)} {noun}{'s'[: len(files) > 1]} ({files[0].name}{', ...' if len(files) > 1 else ''})"


def _list_files(folder: Path) -> Iterator[Path]:
    """All files below, links to folders followed once; hidden ones and what runs have written left out."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or is_run(Path(place)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in names if not name.startswith(".") and (path := Path(place, name)).is_file())


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError("its name, or its folder's, is not Unicode text; rename it") from None


def words_of(path: Path) -> str:
    """A file name in words: `orc_wizard3.png` -> `orc wizard`."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.stem)
    return re.sub(r"\s*\d*$", "", re.sub(r"[_\-.\s]+", " ", text)).strip().lower() or path.stem


def lossy_images(sprites: Sequence[Sprite]) -> tuple[Path, ...]:
    """JPEG files: their compression has already changed the pixels."""
    return tuple(sprite.path for sprite in sprites if sprite.path.suffix.lower() in LOSSY_SUFFIXES)


def _read_header(path: Path) -> tuple[int, int, int]:
    """Width, height, frames."""
    if path.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return *image.size, getattr(image, "n_frames", 1)
    except UnidentifiedImageError:
        raise DataError("this is no image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError("the image is far too large for a sprite") from None
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    except Exception as error:
        raise DataError(f"broken image: {error}") from None


def _read_caption(image: Path) -> str | None:
    for suffix in CAPTION_SUFFIXES:
        file = image.with_suffix(suffix)
        if file.is_file():
            try:
                text = " ".join(file.read_text("utf-8-sig").split())
            except UnicodeDecodeError:
                raise DataError(f"its caption {file.name} is not UTF-8 text") from None
            except OSError as error:
                raise DataError(f"its caption {file.name} cannot be read: {error.strerror}") from None
            if not text:
                raise DataError(
                    f"its caption {file.name} is empty; write one, or delete the file to caption it by its name"
                )
            return text
    return None


def _nearest_folder(folder: Path) -> Path | None:
    """A sibling folder of a similar name."""
    if not folder.parent.is_dir():
        return None
    found = nearest(folder.name, [sibling.name for sibling in folder.parent.iterdir() if sibling.is_dir()])
    return folder.parent / found if found else None
