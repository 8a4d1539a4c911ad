"""Write what the engine will read: every sprite pixel an exact k x k block, no hidden colour, no resampling.

A set is a folder: images/ (PNG and caption side by side), images.jsonl (one record an image), pixelkit-dataset.json (the
whole). Records are appended while the work goes on: an interrupted preparation continues, one that has nothing to do ends
at once. Pixels of a few sprites per core are all that is held in memory, whatever the number of images.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter, deque
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageColor

from pixelkit import __version__
from pixelkit.dataset.ahead import map_ahead
from pixelkit.dataset.background import Outlines
from pixelkit.dataset.journal import Journal
from pixelkit.dataset.make import FORMAT, PALETTE, Maker, Making, Record, write_caption
from pixelkit.dataset.spread import end_work
from pixelkit.errors import DataError, Problem, StorageError
from pixelkit.paths import write_atomically
from pixelkit.sources.pixels import read_pixels
from pixelkit.sources.prepared import CLASS, HOLDOUT, IMAGES, MANIFEST, MASKS, RECORDS, subset_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pixelkit.dataset.ahead import Mapper
    from pixelkit.dataset.blocks import Color
    from pixelkit.plan import PlannedSprite
    from pixelkit.sources import Sprite

# Colours counted over a whole set; photographs among the sprites would otherwise fill the memory.
COUNTED = 1 << 16
# What a killed process leaves of a file that it was writing.
_TORN = re.compile(r"\..+\.(png|txt|json|gpl)\.[a-z0-9_]{8}")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A set on disk. `fingerprint` changes with whatever changes latents: pixels, canvas, background, alpha policy;
    `captions` with any caption. `palette`: the most frequent colours, at most 256. `reused`: sprites that were there already.
    """

    folder: Path
    images: int
    reused: int
    background: Color
    palette: tuple[Color, ...]
    fingerprint: str
    captions: str
    skipped: tuple[Problem, ...] = ()


def prepare(
    planned: Sequence[PlannedSprite],
    folder: Path,
    making: Making | None = None,
    *,
    about: Mapping[str, object] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    mapper: Mapper = map_ahead,
) -> Prepared:
    """Flatten, enlarge, centre and caption the planned sprites into `folder`. Sources are only read.

    `about` is written into the manifest; `mapper` is where the work is done. Raises DataError that names every image that
    cannot be read whole (with `keep_going`: only if none can), and StorageError; what was made until then stays, and is not
    made again.
    """
    making = making or Making()
    problems: dict[str, Problem] = {}
    tally = Tally()
    with closing(_open_journal(folder)) as journal:
        background = _choose_background(making.background, planned, mapper)
        maker = Maker(folder=folder, making=making, background=background)
        for done, records in enumerate(_make_all(maker, planned, journal, problems, mapper), start=1):
            tally.add(records)
            if on_progress:
                on_progress(done, len(planned))
        if problems and not (making.keep_going and tally.images):
            raise DataError(
                f"{len(problems)} of {len(planned)} images cannot be used",
                hint="mend or remove them",
                problems=list(problems.values()),
            )
        prepared = Prepared(
            folder=folder,
            images=tally.images,
            reused=tally.sprites - tally.made,
            background=background,
            palette=tally.palette(),
            fingerprint=tally.fingerprint.hexdigest(),
            captions=tally.captions.hexdigest(),
            skipped=tuple(problems.values()),
        )
        used = [one.sprite.name for one in planned if one.sprite.name not in problems]
        files = journal.finish(used, _describe(prepared, making, about or {}))
    write_atomically(folder / "palette.gpl", _write_palette(prepared.palette))
    _remove_leftovers(folder, files)
    return prepared


@dataclass
class Tally:
    """What is known of a set, record by record."""

    images: int = 0
    sprites: int = 0
    made: int = 0
    fingerprint: Any = field(default_factory=hashlib.sha256)
    captions: Any = field(default_factory=hashlib.sha256)
    colors: Counter[str] = field(default_factory=Counter)

    def add(self, made: tuple[list[Record], bool]) -> None:
        """A sprite's records, and whether they are new."""
        records, new = made
        self.sprites += bool(records)
        self.made += bool(records) and new
        for record in records:
            self.images += 1
            seen = [record[key] for key in ("file", "pixels_sha256", "size", "scale", "canvas", "offset")]
            self.fingerprint.update(repr(seen).encode())
            self.captions.update(repr([record["file"], record["caption"]]).encode())
            self.colors.update(record["palette"])
        if len(self.colors) > 2 * COUNTED:
            self.colors = Counter(dict(self.colors.most_common(COUNTED)))

    def palette(self) -> tuple[Color, ...]:
        """The most frequent colours."""
        return tuple(ImageColor.getrgb(color)[:3] for color, _ in self.colors.most_common(PALETTE))


def flat_names(names: Sequence[str]) -> list[str]:
    """One file name per sprite: `__` for folders, nothing that a file system or a trainer trips over, made unique."""
    flat: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r'[<>:"|?*\\\x00-\x1f]', "-", name.replace("/", "__"))[
            -80:
        ]  # fits every file system, with an ending
        unique, number = stem, 2
        while unique.casefold() in taken:
            unique, number = f"{stem}-{number}", number + 1
        taken.add(unique.casefold())
        flat.append(unique)
    return flat


def _open_journal(folder: Path) -> Journal:
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if held and not any(name.startswith((MANIFEST, RECORDS)) for name in held) and held != {CLASS}:
            raise StorageError(f"{folder} holds other files", hint="name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{RECORDS}.part").touch()  # from the first moment on it shows whose folder this is
        end_work(folder)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
    return Journal(folder)


def _make_all(
    maker: Maker,
    planned: Sequence[PlannedSprite],
    journal: Journal,
    problems: dict[str, Problem],
    mapper: Mapper,
) -> Iterator[tuple[list[Record], bool]]:
    """The records of each sprite in order, and whether they are new."""
    repeats = {one.repeats for one in planned}
    places = {subset_folder(number, repeats) for number in repeats}
    places |= {HOLDOUT} if maker.making.holdout else set()
    places |= {MASKS} if maker.making.masks else set()
    for place in places:
        (maker.folder / place).mkdir(parents=True, exist_ok=True)

    finished = (maker.folder / MANIFEST).is_file()
    under_way: deque[tuple[Sprite, list[Record] | None]] = deque()

    def look_up() -> Iterator[_Task | None]:
        for one, name in zip(planned, flat_names([one.sprite.name for one in planned]), strict=True):
            images = subset_folder(one.repeats, repeats)
            before = journal.known(one.sprite.name)
            fresh = _is_fresh(before, maker, one, images)
            if not fresh:  # from here on the set is incomplete
                (maker.folder / MANIFEST).unlink(missing_ok=True)
            under_way.append((one.sprite, before if fresh else None))
            captions = {record["file"]: record["caption"] for record in before}
            unfinished = not (finished or before)
            yield (
                None
                if fresh
                else _Task(planned=one, name=name, images=images, captions=captions, unfinished=unfinished)
            )

    for made in mapper(functools.partial(_make, maker), look_up()):
        sprite, known = under_way.popleft()
        if isinstance(made, DataError):
            problems[sprite.name] = Problem(where=str(sprite.path), what=made.message, hint=made.hint)
            yield [], False
        elif known is not None:
            yield known, False
        else:
            journal.add(made)
            yield made, True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A sprite to make. `captions`: by file, as they were last written; `unfinished` as in `write_caption`."""

    planned: PlannedSprite
    name: str
    images: str
    captions: dict[str, str]
    unfinished: bool


def _make(maker: Maker, task: _Task | None) -> list[Record] | DataError:
    """All files of a sprite; its records. Nothing where there is nothing to do."""
    if task is None:
        return []
    try:
        records = maker.make(task.planned, task.name, task.images)
    except DataError as error:
        return error
    for record in records:
        file = record["file"]
        write_caption(maker.folder / file, record["caption"], task.captions.get(file), unfinished=task.unfinished)
    return records


def _is_fresh(before: list[Record], maker: Maker, one: PlannedSprite, images: str) -> bool:
    try:
        return (
            bool(before)
            and before[0]["key"] == maker.key(one, images)
            and all(
                (maker.folder / record["file"]).with_suffix(suffix).is_file()
                for record in before
                for suffix in (".png", ".txt")
            )
        )
    except DataError:
        return False  # named where its pixels are read


def _choose_background(wanted: str, planned: Sequence[PlannedSprite], mapper: Mapper) -> Color:
    if wanted != "auto":
        return ImageColor.getrgb(wanted)[:3]
    outlines = Outlines()
    for found in mapper(_find_outlines, planned):
        outlines.merge(found)
    return outlines.choose()


def _find_outlines(one: PlannedSprite) -> Outlines:
    outlines = Outlines()
    with suppress(DataError):  # named where it is made
        outlines.add(read_pixels(one.sprite))
    return outlines


def _describe(prepared: Prepared, making: Making, about: Mapping[str, object]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "pixelkit": __version__,
        **about,
        "images": prepared.images,
        "background": describe_color(prepared.background),
        "alpha": making.alpha,
        "fingerprint": prepared.fingerprint,
        "captions": prepared.captions,
        "palette": [describe_color(color) for color in prepared.palette],
        "skipped": [asdict(problem) for problem in prepared.skipped],
    }


def _write_palette(colors: Sequence[Color]) -> str:
    """As GIMP, Aseprite and most sprite editors load it."""
    lines = [f"{red:3} {green:3} {blue:3}\t{describe_color((red, green, blue))}" for red, green, blue in colors]
    return "\n".join(["GIMP Palette", "Name: pixelkit", "Columns: 16", "#", *lines]) + "\n"


def describe_color(color: Color) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _remove_leftovers(folder: Path, files: set[str]) -> None:
    """What an earlier preparation made of sprites that are no longer there, which a trainer would still read; torn files."""
    stems = {str(Path(file).with_suffix("")) for file in files}
    for place in (folder, *filter(Path.is_dir, folder.iterdir())):
        read = place.name.split("-x")[0] == IMAGES or place.name == HOLDOUT
        for path in place.iterdir():
            gone = path.suffix in {".png", ".txt"} and f"{place.name}/{path.stem}" not in stems
            if _TORN.fullmatch(path.name) or (read and place != folder and gone):
                path.unlink()
