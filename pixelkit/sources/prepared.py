"""A prepared set as a source: its images are enlarged art whose grid is written down, so that nothing has to be found."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.errors import DataError
from pixelkit.pixelgrid import Grid
from pixelkit.sources.sidecars import find_sidecar, read_caption
from pixelkit.sources.sprite import Sprite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MANIFEST = "pixelkit-dataset.json"
RECORDS = "images.jsonl"
IMAGES, HOLDOUT, MASKS, CLASS = "images", "holdout", "masks", "class"


def subset_folder(repeats: int, all_repeats: Iterable[int]) -> str:
    """The folder of the images that an epoch shows so often: images, or images-x10 where a set has several kinds."""
    return IMAGES if len(set(all_repeats)) <= 1 else f"{IMAGES}-x{repeats}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `pixelkit data prepare` wrote of the whole set. Raises DataError."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read: {error}", hint="prepare the set again") from None
    if not isinstance(content, dict) or content.get("format") != 1:
        raise DataError(f"{folder / MANIFEST} is of another version of pixelkit", hint="prepare the set again")
    return content


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """One record an image, in the set's order. Raises DataError that names the line."""
    try:
        with (folder / RECORDS).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise DataError(f"{folder / RECORDS}:{number} is no JSON", hint="prepare the set again") from None
    except OSError as error:
        raise DataError(f"{folder / RECORDS} cannot be read: {error.strerror}", hint="prepare the set again") from None


def read_prepared(folder: Path) -> tuple[Sprite, ...]:
    """The set's training images, with the captions that lie beside them; a held-out split is not among them.

    Raises DataError.
    """
    sprites = []
    for record in read_records(folder):
        if record["split"] != "train":
            continue
        image = folder / record["file"]
        sidecar = find_sidecar(image)
        (left, top), (width, height), scale = record["offset"], record["size"], record["scale"]
        sprites.append(
            Sprite(
                path=image,
                name=record["name"],
                width=width,
                height=height,
                caption=read_caption(sidecar) if sidecar else record["caption"],
                box=(left, top, left + width * scale, top + height * scale),
                block=scale,
                repeats=record["repeats"],
            )
        )
    return tuple(sprites)


def describe_source(sprite: Sprite) -> dict[str, Any]:
    """Where a sprite's pixels lie and how they are read, as plain values."""
    return {**asdict(sprite), "path": os.path.abspath(sprite.path)}  # noqa: PTH100 - links are kept


def source_of(record: Mapping[str, Any]) -> Sprite:
    """The sprite that an image was made of; `describe_source` reversed."""
    facts = _as_tuples(record["source"])
    if facts["repair"]:
        facts["repair"] = Grid(**_as_tuples(facts["repair"]))
    return Sprite(**{**facts, "path": Path(facts["path"])})


def _as_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
