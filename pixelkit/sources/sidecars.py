"""Captions as they lie beside images: `hero.txt`, kohya's `10_hero` folders, captions/ beside images/."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pixelkit.errors import DataError
from pixelkit.sources.files import exists, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CAPTION_SUFFIXES = (".txt", ".caption", ".TXT")
# Four digits are a year, not a number of repeats.
_REPEATS = re.compile(r"^([1-9]\d{0,2})_(.+)$")


def find_sidecar(image: Path) -> Path | None:
    """The caption file beside one image, or None."""
    return next((file for suffix in CAPTION_SUFFIXES if exists(file := image.with_suffix(suffix))), None)


def index_captions(files: Iterable[Path]) -> dict[Path, Path]:
    """Which caption file belongs to which image: image without suffix -> file. Also CatSith's: captions/x.txt belongs to
    images/x.png, unless a caption lies beside the image.
    """
    captions = sorted((path for path in files if path.suffix in CAPTION_SUFFIXES), key=_rank)
    found: dict[Path, Path] = {}
    for path in captions:
        found.setdefault(path.with_suffix(""), path)
    for path in captions:
        for folder in path.parents:
            if folder.name == "captions":
                found.setdefault((folder.with_name("images") / path.relative_to(folder)).with_suffix(""), path)
                break
    return found


def _rank(caption: Path) -> int:
    return CAPTION_SUFFIXES.index(caption.suffix)


def read_caption(file: Path) -> str:
    """A caption's text, white space joined. Raises DataError for what is not UTF-8, or empty."""
    try:
        text = " ".join(read_bytes(file).decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise DataError(f"its caption {file.name} is not UTF-8 text") from None
    except DataError as error:
        raise DataError(f"its caption {file.name} cannot be read: {error.message}") from None
    if not text:
        raise DataError(f"its caption {file.name} is empty; write one, or delete the file to caption it by its name")
    return text


def read_repeats(folder: Path) -> tuple[int | None, str]:
    """What kohya reads from a folder's name: `10_hero` -> (10, "hero"); (None, "") for any other name."""
    found = _REPEATS.match(folder.name)
    return (int(found[1]), found[2]) if found else (None, "")


def words_of(name: str) -> str:
    """A sprite's name in words: `mon/orc_wizard3` -> `orc wizard`."""
    stem = re.split(r"[/#]", name.rsplit("/", 1)[-1])[0]
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    return re.sub(r"\s*\d*$", "", re.sub(r"[_\-.\s]+", " ", text)).strip().lower() or stem
