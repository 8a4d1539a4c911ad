"""What lies in a folder of sprites: sizes and captions, read from file headers only."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from pixelkit.errors import DataError, Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IMAGE_SUFFIXES = frozenset({".png", ".webp", ".gif", ".bmp"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})
CAPTION_SUFFIXES = (".txt", ".caption")


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One image file: its size in pixels, and its caption (None if no caption file lies beside it)."""

    path: Path
    width: int
    height: int
    caption: str | None


def survey_folder(folder: Path, *, what: str) -> tuple[Sprite, ...]:
    """Every sprite below `folder`, in a stable order. `what` names the folder in errors: `hero.toml:5 [dataset] path`.

    Raises DataError: no such folder, no image in it, files that are no images (all of them listed), unreadable captions.
    """
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        near = _nearest_folder(folder)
        raise DataError(
            f"{what} = {folder} {kind}",
            hint=f"did you mean {near}?" if near else "give the folder that holds your sprites",
        )
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
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
            width, height = _read_size(path)
            sprites.append(Sprite(path=path, width=width, height=height, caption=_read_caption(path)))
        except DataError as error:
            problems.append(Problem(where=str(path.relative_to(folder)), what=error.message))
    if problems:
        raise DataError(
            f"{what}: {len(problems)} of {len(images)} images cannot be used",
            hint="mend or remove them",
            problems=problems,
        )
    return tuple(sprites)


def words_of(path: Path) -> str:
    """A file name in words: `orc_wizard3.png` -> `orc wizard`."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.stem)
    return re.sub(r"\s*\d*$", "", re.sub(r"[_\-.\s]+", " ", text)).strip().lower() or path.stem


def lossy_images(sprites: Sequence[Sprite]) -> tuple[Path, ...]:
    """JPEG files: their compression has already changed the pixels."""
    return tuple(sprite.path for sprite in sprites if sprite.path.suffix.lower() in LOSSY_SUFFIXES)


def _read_size(path: Path) -> tuple[int, int]:
    if path.stat().st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.size
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
