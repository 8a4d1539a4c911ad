"""The files of a source: a folder, links to folders followed, or a zip that is read without unpacking it."""

from __future__ import annotations

import functools
import io
import os
import stat
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, UnidentifiedImageError

from pixelkit.errors import DataError, Problem
from pixelkit.rundir import is_run
from pixelkit.sources.intact import is_lossy_webp, skim_png

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.ImageFile import ImageFile

IMAGE_SUFFIXES = frozenset({".png", ".webp", ".gif", ".bmp"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg"})
# Pictures all the same, but not ones that are read here.
FOREIGN_SUFFIXES = frozenset(
    {".ase", ".aseprite", ".avif", ".dds", ".heic", ".kra", ".pcx", ".psd", ".svg", ".tga", ".tif", ".tiff", ".xcf"}
)
# Whatever a file is called, nothing else is tried: Pillow starts Ghostscript for some formats.
FORMATS = ("PNG", "WEBP", "GIF", "BMP", "JPEG")
ANIMATED = frozenset({"PNG", "WEBP", "GIF"})
LARGEST_FILE = 256 << 20
LARGEST_IMAGE = 8192 * 8192
# Enough of a PNG to see that it is a plain one.
FIRST_BYTES = 4096
ORIENTATION = 0x0112
TRANSPOSED = frozenset({5, 6, 7, 8})

# Pillow warns of what is refused here, and of metadata that is not used. A filter that every thread shares.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A source's files, sorted. `root`: where names begin, below the single folder that a zip may consist of."""

    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    root: Path


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image file says of itself: size in pixels as it is shown, frames of an animation."""

    width: int
    height: int
    frames: int
    lossy: bool = False


@dataclass(frozen=True, kw_only=True)
class _Archive:
    content: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    refused: list[str]


def list_files(source: Path) -> Listing:
    """All files of a folder or zip; hidden ones and what runs have written left out. Raises DataError: no zip, or broken.

    `problems`: folders that cannot be read, and members of a zip whose names lead out of it.
    """
    return _list_archive(source) if source.is_file() else _list_folder(source)


def shown(path: Path) -> str:
    """A path that can be printed, whatever its bytes."""
    return str(path).encode(errors="replace").decode()


def read_bytes(path: Path) -> bytes:
    """A file's content, in a folder or in a zip. Raises DataError."""
    with _reading(path), _open(path) as stream:
        return stream.read()


def read_time(path: Path) -> int:
    """When a file, or the zip that it lies in, was last changed: nanoseconds. Raises DataError."""
    with _reading(path):
        return _find_status(_archive_above(path) or path).st_mtime_ns


def exists(path: Path) -> bool:
    """Whether there is such a file, in a folder or in a zip."""
    archive = _archive_above(path)
    if archive is None:
        return path.is_file()
    return path.relative_to(archive).as_posix() in _read_archive(archive).members


@contextmanager
def open_image(path: Path, data: bytes | None = None) -> Iterator[ImageFile]:
    """An image file opened, its pixels not yet read; `data`: its content, where that is here already.

    Raises DataError for what is no image, empty, broken or far too large, also while the image is being used.
    """
    with _reading(path), io.BytesIO(data) if data is not None else _open(path) as stream:
        if stream.read(1) == b"":
            raise DataError("the file is empty (0 bytes)")
        stream.seek(0)
        with Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise DataError(f"{image.width}x{image.height} pixels are far too many for a sprite")
            yield image


def read_header(path: Path) -> Header:
    """Size and frames. Raises DataError."""
    with _reading(path), _open(path) as stream:
        size = skim_png(stream.read(FIRST_BYTES))
    if size and size[0] * size[1] <= LARGEST_IMAGE:
        return Header(width=size[0], height=size[1], frames=1)
    with open_image(path) as image:
        width, height = image.size
        if read_orientation(image) in TRANSPOSED:
            width, height = height, width
        frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        lossy = is_lossy_webp(read_bytes(path)) if image.format == "WEBP" else image.format in {"JPEG", "MPO"}
        return Header(width=width, height=height, frames=frames, lossy=lossy)


def read_orientation(image: Image.Image) -> int:
    """How a camera was held, 1 to 8 as EXIF counts; 1 is upright. Told before the pixels are read."""
    if not image.info.get("exif"):
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1  # broken notes are no reason to refuse a picture


def _list_folder(source: Path) -> Listing:
    found = Listing(root=source)

    def refuse(error: OSError) -> None:
        where = shown(Path(error.filename).relative_to(source))
        found.problems.append(Problem(where=where, what=f"the folder cannot be read: {error.strerror}"))

    seen: set[str] = set()
    for place, folders, names in os.walk(source, onerror=refuse, followlinks=True):
        here = Path(place)
        real = os.path.realpath(place)
        if real in seen or is_run(here):
            folders.clear()
            continue
        seen.add(real)
        if not (folders or names) and here.suffix.lower() in IMAGE_SUFFIXES | LOSSY_SUFFIXES:
            found.problems.append(
                Problem(where=shown(here.relative_to(source)), what="it is an empty folder, no image")
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.files.extend(here / name for name in names if not name.startswith("."))
    found.files.sort()
    return found


def _list_archive(source: Path) -> Listing:
    with _reading(source):
        archive = _read_archive(source)
    paths = sorted(
        source / name
        for name in archive.members
        if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    )
    tops = {path.relative_to(source).parts[0] for path in paths}
    lone = tops.pop() if len(tops) == 1 else ""
    return Listing(
        files=paths,
        problems=[Problem(where=name, what="its name leads out of the zip") for name in archive.refused],
        root=source / lone if (source / lone) not in paths else source,
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("this is no image that can be read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError("the image is far too large for a sprite") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path.name}: the zip is broken: {error}") from None
    except OSError as error:
        raise DataError(error.strerror or f"broken image: {error}") from None
    except Exception as error:
        raise DataError(f"broken image: {error}") from None


def _open(path: Path) -> BinaryIO:
    archive = _archive_above(path)
    if archive is None:
        status = _find_status(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("it is no file, whatever its name says")
        if status.st_size > LARGEST_FILE:
            raise DataError(f"the file is far too large: {status.st_size >> 20} MB")
        return path.open("rb")
    opened = _read_archive(archive)
    info = opened.members.get(path.relative_to(archive).as_posix())
    if info is None:
        raise DataError(f"{archive.name} holds no such file")
    if info.file_size > LARGEST_FILE:
        raise DataError(f"the file is far too large: {info.file_size >> 20} MB")
    if info.flag_bits & 1:
        raise DataError("it is encrypted; unpack the zip first")
    return io.BytesIO(opened.content.read(info))


def _find_status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if path.is_symlink():
            raise DataError(f"it is a link that leads nowhere: {error.strerror}") from None
        raise


def _read_archive(path: Path) -> _Archive:
    return _index_archive(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _index_archive(path: Path, _changed: int) -> _Archive:
    """Members by name, as any system would write it; several threads may read from one archive."""
    archive = _Archive(content=zipfile.ZipFile(path), members={}, refused=[])
    for info in archive.content.infolist():
        name = info.filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if ".." in parts or name.startswith("/"):
            archive.refused.append(info.filename)
        elif parts and not name.endswith("/"):
            archive.members["/".join(parts)] = info
    return archive


@functools.lru_cache(maxsize=4096)
def _archive_of_folder(folder: Path) -> Path | None:
    return next(
        (place for place in (folder, *folder.parents) if place.suffix.lower() == ".zip" and place.is_file()), None
    )


def _archive_above(path: Path) -> Path | None:
    return _archive_of_folder(path.parent) if ".zip" in str(path).lower() else None
