"""What lies beside images and belongs to them: captions, maps of sheets, CatSith's metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixelkit.errors import DataError, Problem
from pixelkit.sources.files import list_files, shown
from pixelkit.sources.sheets import Part, find_parts
from pixelkit.sources.sidecars import index_captions, read_caption, read_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pixelkit.sources.atlas import Maps
    from pixelkit.sources.catsith import CatSith
    from pixelkit.sources.files import Header

METADATA = "metadata.json"
MAP_SUFFIXES = frozenset({".json", ".tsx"})


@dataclass(frozen=True, kw_only=True)
class Beside:
    """`captions`: image without suffix -> its caption file. `sets`: folders of images that a metadata.json describes."""

    captions: dict[Path, Path]
    maps: Maps | None = None
    sets: dict[Path, CatSith] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def find_parts(self, image: Path, header: Header, sheet: tuple[int, int] | None) -> list[Part]:
        """The sprites of an image: by its map; without one as sheets.find_parts says. Raises DataError."""
        atlas = self.maps.find_atlas(image) if self.maps else None
        return atlas.cut(header) if atlas else find_parts(image, header, sheet)

    def find_caption(self, image: Path) -> str | None:
        """What was written of an image; else what metadata.json says; else the title of kohya's folder. Raises DataError."""
        sidecar = self.captions.get(image.with_suffix("")) if self.captions else None
        text = read_caption(sidecar) if sidecar else None
        for folder in image.parents if self.sets else ():
            if folder in self.sets:
                return self.sets[folder].write_caption(image, text)
        return text or read_repeats(image.parent)[1] or None


def read_beside(source: Path, files: Sequence[Path]) -> Beside:
    """Of a folder called images, the captions/ and the metadata.json that lie next to it are read, too."""
    around = list(files)
    if source.name == "images" and source.is_dir():
        captions, metadata = source.parent / "captions", source.parent / METADATA
        around += list_files(captions).files if captions.is_dir() else []
        around += [metadata] if metadata.is_file() else []
    if not any(path.suffix.lower() in MAP_SUFFIXES for path in around):
        return Beside(captions=index_captions(around))
    from pixelkit.sources.atlas import read_maps  # noqa: PLC0415 - pydantic, which most folders need not
    from pixelkit.sources.catsith import read_catsith  # noqa: PLC0415

    beside = Beside(captions=index_captions(around), maps=read_maps(path for path in files if path.name != METADATA))
    broken = beside.maps.list_lost() if beside.maps else {}
    for path in around:
        if path.name != METADATA:
            continue
        try:
            found = read_catsith(path)
        except DataError as error:
            broken[path] = error
            continue
        if found:
            beside.sets[found.images] = found
            beside.remarks.extend(_remark_missing(found, around))
    beside.problems.extend(Problem(where=_where(path, source), what=error.message) for path, error in broken.items())
    return beside


def _remark_missing(found: CatSith, files: Sequence[Path]) -> Iterator[str]:
    if missing := found.find_missing(files):
        first = missing[0].relative_to(found.file.parent).as_posix()
        lacking = "1 file that is" if len(missing) == 1 else f"{len(missing)} files that are"
        yield f"{found.file.name} lists {lacking} not there ({first} first)"


def _where(path: Path, source: Path) -> str:
    return shown(path.relative_to(source)) if path.is_relative_to(source) else shown(path)
