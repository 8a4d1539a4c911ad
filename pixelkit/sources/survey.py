"""What lies in a source of sprites: sizes, captions and grids. Of native art only headers are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixelkit.errors import DataError, Problem, nearest
from pixelkit.sources.beside import read_beside
from pixelkit.sources.files import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, LOSSY_SUFFIXES, list_files, read_header, shown
from pixelkit.sources.grids import find_grids
from pixelkit.sources.prepared import MANIFEST, read_manifest, read_prepared
from pixelkit.sources.sidecars import CAPTION_SUFFIXES, read_repeats
from pixelkit.sources.sprite import Sprite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pixelkit.sources.beside import Beside


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a source. `sheet`: width and height of a sheet's cells. `grid`: pixels of the file per sprite pixel,
    None = found. `repair`: snap damaged art to its grid. `keep_going`: leave out what cannot be used.
    """

    sheet: tuple[int, int] | None = None
    grid: int | None = None
    repair: bool = False
    keep_going: bool = False


@dataclass(frozen=True, kw_only=True)
class Survey:
    """`sprites` in a stable order; `skipped`: what was left out, and why; `remarks`: what an artist should know;
    `background`: of a prepared set, #rrggbb.
    """

    sprites: tuple[Sprite, ...]
    skipped: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()
    background: str | None = None


def survey(source: Path, *, what: str, reading: Reading | None = None) -> Survey:
    """Every sprite of a folder, a zip, or a set that `pixelkit data prepare` wrote.

    `what` names the source in errors: `hero.toml:5 [dataset] path`. Links to folders are followed; hidden folders and
    the directories of runs are not read. Raises DataError: no such source, no image in it, and all files that cannot be
    used at once (without `keep_going`).
    """
    reading = reading or Reading()
    _check_source(source, what)
    if (source / MANIFEST).is_file():
        return Survey(sprites=read_prepared(source), background=read_manifest(source)["background"])
    listing = list_files(source)
    files, problems = listing.files, listing.problems
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES | LOSSY_SUFFIXES]
    if not images:
        held = f"it holds {len(files)} other files" if files else "it is empty"
        raise DataError(
            f"{what} = {source}: no image found, {held}", hint=f"sprites are {', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    beside = read_beside(source, files)
    sprites: list[Sprite] = []
    for path in images:
        try:
            sprites += _read_sprites(path, listing.root, beside, reading)
        except DataError as error:
            problems.append(Problem(where=shown(path.relative_to(source)), what=error.message, hint=error.hint))
    sprites = _tell_apart(sprites)
    problems += beside.problems
    remarks = [*_find_strays(files, beside.captions, images), *beside.remarks]
    found = find_grids(sprites, grid=reading.grid, repair=reading.repair)
    problems += found.problems
    remarks += found.remarks
    if problems and not (reading.keep_going and found.sprites):
        raise DataError(
            f"{what}: {len(problems)} of {len(images)} images cannot be used",
            hint="mend or remove them",
            problems=problems,
        )
    return Survey(sprites=tuple(found.sprites), skipped=tuple(problems), remarks=tuple(remarks))


def lossy_images(sprites: Sequence[Sprite]) -> tuple[Path, ...]:
    """JPEG files, whatever they are called, and WebP saved with loss: their compression has already changed the pixels."""
    return tuple(dict.fromkeys(sprite.path for sprite in sprites if sprite.lossy))


def _check_source(source: Path, what: str) -> None:
    if source.is_dir() or (source.is_file() and source.suffix.lower() == ".zip"):
        return
    kind = "is a file, neither a folder nor a zip" if source.exists() else "does not exist"
    near = _nearest_folder(source)
    raise DataError(
        f"{what} = {source} {kind}",
        hint=f"did you mean {near}?" if near else "give the folder that holds your sprites",
    )


def _read_sprites(path: Path, root: Path, beside: Beside, reading: Reading) -> Iterator[Sprite]:
    _check_name(path)
    header = read_header(path)
    caption = beside.find_caption(path)
    repeats, _ = read_repeats(path.parent)
    name = "/".join((*path.parts[len(root.parts) : -1], path.stem))
    for part in beside.find_parts(path, header, reading.sheet):
        width, height = part.size or (header.width, header.height)
        yield Sprite(
            path=path,
            name=f"{name}{part.suffix}",
            width=width,
            height=height,
            caption=", ".join(text for text in (part.words, caption) if text) or None,
            frame=part.frame,
            box=part.box,
            repeats=repeats,
            turned=part.turned,
            canvas=part.canvas,
            lossy=header.lossy,
        )


def _tell_apart(sprites: list[Sprite]) -> list[Sprite]:
    """hero.png and hero.gif of one folder: the second is called hero#gif."""
    seen: set[str] = set()
    for place, sprite in enumerate(sprites):
        if sprite.name in seen:
            sprites[place] = replace(sprite, name=f"{sprite.name}#{sprite.path.suffix[1:]}")
        seen.add(sprite.name)
    return sprites


def _find_strays(files: Sequence[Path], captions: Mapping[Path, Path], images: Sequence[Path]) -> list[str]:
    """Remarks on files that an artist may take for sprites or captions, and that are neither."""
    foreign = [path for path in files if path.suffix.lower() in FOREIGN_SUFFIXES]
    used = {captions.get(path.with_suffix("")) for path in images} if captions else set()
    lonely = [path for path in files if path.suffix in CAPTION_SUFFIXES and path not in used]
    remarks = []
    if foreign:
        remarks.append(f"{_count(foreign, 'picture')} of a kind that is not read; save as .png")
    stems = {path.stem for path in images} if lonely else set()
    if apart := [path for path in lonely if path.stem in stems]:
        remarks.append(
            f"{_count(apart, 'text')} in another folder than the sprite of the same name; put them side by side, or call"
            " the folders images/ and captions/"
        )
        lonely = [path for path in lonely if path.stem not in stems]
    if lonely:
        remarks.append(f"{_count(lonely, 'text')} beside no sprite of the same name; if it is a caption, rename it")
    return remarks


def _count(files: Sequence[Path], noun: str) -> str:
    return f"{len(files)} {noun}{'s'[: len(files) > 1]} ({files[0].name}{', ...' if len(files) > 1 else ''})"


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError("its name, or its folder's, is not Unicode text; rename it") from None


def _nearest_folder(folder: Path) -> Path | None:
    """A sibling folder of a similar name."""
    if not folder.parent.is_dir():
        return None
    found = nearest(folder.name, [sibling.name for sibling in folder.parent.iterdir() if sibling.is_dir()])
    return folder.parent / found if found else None
