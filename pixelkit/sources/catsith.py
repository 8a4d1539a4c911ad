"""CatSith's metadata.json: which entity a drawing shows and from where, and the caption that follows from it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from pixelkit.errors import DataError
from pixelkit.sources.files import read_bytes
from pixelkit.words.directions import DIRECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Color = tuple[int, int, int]


def _read_color(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        return tuple(bytes.fromhex(value.removeprefix("#")))
    return value


def _check_color(value: Color) -> Color:
    if not all(0 <= channel <= 255 for channel in value):
        raise ValueError("is no colour: three numbers from 0 to 255, or #rrggbb")
    return value


class Entity(BaseModel):
    """One thing that is drawn, once or from eight directions. `files`: its drawings below images/."""

    id: str = Field(min_length=1)
    category: str
    kind: str
    directions: Literal[8, 1]
    base_color: Annotated[Color, BeforeValidator(_read_color), AfterValidator(_check_color)] | None
    files: list[str]
    style: str = ""


class CaptionStyle(BaseModel):
    """What every caption begins and ends with."""

    style_prefix: str = ""
    style_suffix: str = ""


class Metadata(BaseModel):
    """The whole file, version 1.0."""

    version: Literal["1.0"]
    style: str = ""
    entities: list[Entity]
    captions: CaptionStyle = CaptionStyle()


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One image file of an entity; `direction`: 0 to 7, see DIRECTIONS, None where it is drawn from one side only."""

    entity: Entity
    direction: int | None


class CatSith:
    """A set's metadata, and the folder of its images."""

    def __init__(self, file: Path, metadata: Metadata) -> None:
        self.file, self.metadata = file, metadata
        self.images = file.parent / "images"
        self._drawings: dict[Path, Drawing] = {}
        for number, entity in enumerate(metadata.entities):
            for path, drawing in self._place(number, entity):
                other = self._drawings.setdefault(path, drawing)
                if other is not drawing:
                    raise DataError(f"entities[{number}].files: {path.name} belongs to {other.entity.id!r} already")

    def find_drawing(self, image: Path) -> Drawing | None:
        """What an image shows, None if the metadata does not list it."""
        return self._drawings.get(image)

    def find_missing(self, files: Iterable[Path]) -> list[Path]:
        """Drawings that the metadata lists and that are not among `files`."""
        return sorted(self._drawings.keys() - set(files))

    def write_caption(self, image: Path, text: str | None) -> str | None:
        """The caption of an image: what was written of it, or what its entity says; with the set's prefix and suffix."""
        drawing = self.find_drawing(image)
        style = self.metadata.captions
        if text is None and drawing is None:
            return None
        if text is None and drawing is not None:
            return compose_caption(drawing, style=drawing.entity.style or self.metadata.style, affixes=style)
        return join_phrases(style.style_prefix, text or "", style.style_suffix)

    def _place(self, number: int, entity: Entity) -> Iterable[tuple[Path, Drawing]]:
        directions: list[int] | list[None] = [None] * len(entity.files)
        if entity.directions == 8:
            directions = find_directions(entity.files)
            if not directions:
                raise DataError(
                    f"entities[{number}].files: {entity.id!r} has 8 directions, and {len(entity.files)} files that do not say"
                    " which is which: list 8 of them, clockwise from up, or end their names in _0 to _7"
                )
        for name, direction in zip(entity.files, directions, strict=True):
            parts = [part for part in name.replace("\\", "/").split("/") if part not in {"", "."}]
            if not parts or ".." in parts:
                raise DataError(f"entities[{number}].files: {name!r} lies not below images/")
            path = self.file.parent.joinpath(*parts) if parts[0] == "images" else self.images.joinpath(*parts)
            yield path, Drawing(entity=entity, direction=direction)


def read_catsith(file: Path) -> CatSith | None:
    """None for a metadata.json of something else. Raises DataError that names the key: `entities[3].directions: ...`."""
    data = read_bytes(file)
    if b'"entities"' not in data:
        return None
    try:
        content = json.loads(data)
        if not isinstance(content, dict) or "entities" not in content:
            return None
        return CatSith(file, Metadata.model_validate(content))
    except ValidationError as error:
        raise DataError(explain(error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no valid JSON: {error}") from None


def explain(error: ValidationError) -> str:
    """The first thing that a model found wrong: key and reason."""
    first = error.errors(include_url=False)[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    reason = first["msg"].removeprefix("Value error, ")
    reason = f"{reason[:1].lower()}{reason[1:]}"
    return f"{key}: {reason}" if key else reason


def find_directions(files: list[str]) -> list[int]:
    """The direction of each file: by its name's end (`_3`, `_up-right`), else by its place among eight; [] if unknown."""
    stems = [re.sub(r"\.\w+$", "", name).lower() for name in files]
    named = [_direction_of(stem) for stem in stems]
    found = [direction for direction in named if direction is not None]
    if len(found) == len(files) and (len(files) < 9 or len(files) % 8 == 0) and len(set(found)) == min(len(files), 8):
        return found
    return list(range(8)) if len(files) == 8 else []


def compose_caption(
    drawing: Drawing, *, style: str = "", background: str = "", affixes: CaptionStyle | None = None
) -> str:
    """`PREFIX, orange cat warrior, facing up-right, grey background, STYLE, SUFFIX`: kind, category, direction, colour.

    The colour is the name of base_color. Nothing is said twice. `background`: a colour in words; nothing is said without.
    """
    from pixelkit.words.color_names import name_color  # noqa: PLC0415 - numpy, which a folder without metadata needs not

    entity, affixes = drawing.entity, affixes or CaptionStyle()
    color = name_color(entity.base_color) if entity.base_color else ""
    words = [color, *(text.replace("_", " ").strip() for text in (entity.kind, entity.category))]
    subject = " ".join(dict.fromkeys(word for word in words if word))
    return join_phrases(
        affixes.style_prefix,
        subject,
        "" if drawing.direction is None else f"facing {DIRECTIONS[drawing.direction]}",
        f"{background} background" if background else "",
        style,
        affixes.style_suffix,
    )


def join_phrases(*texts: str) -> str:
    """Phrases between commas; one that was said before is left out."""
    phrases = (" ".join(phrase.split()) for text in texts for phrase in text.split(","))
    said: dict[str, str] = {}
    for phrase in phrases:
        if phrase:
            said.setdefault(phrase.casefold(), phrase)
    return ", ".join(said.values())


def _direction_of(stem: str) -> int | None:
    if found := re.search(r"(?:^|[^0-9])([0-7])$", stem):
        return int(found[1])
    plain = re.sub(r"[^a-z]+", "-", stem).strip("-")
    by_length = sorted(DIRECTIONS, key=len, reverse=True)
    return next((DIRECTIONS.index(word) for word in by_length if plain == word or plain.endswith(f"-{word}")), None)
