"""Tags by a WD14 tagger: model.onnx and selected_tags.csv of SmilingWolf's models, from a folder."""

from __future__ import annotations

import csv
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pixelkit.dataset.captions.pictures import WHITE, draw_sprite
from pixelkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pixelkit.sources.sprite import Sprite

MODEL, TAGS = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER = "0", "4"
THRESHOLD = 0.35


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A row of selected_tags.csv. `category`: 0 general, 4 character, 9 rating."""

    name: str
    category: str


def load_tagger(folder: Path | None, *, threshold: float = THRESHOLD) -> Callable[[Sprite], str]:
    """A function that gives one sprite's tags, the surest first, ratings left out. Raises DataError."""
    if folder is None:
        raise DataError(
            "--mode wd14 needs --model DIR",
            hint=f"a folder with {MODEL} and {TAGS}, as SmilingWolf/wd-vit-tagger-v3 on the Hugging Face hub has them",
        )
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")  # not part of any installation of pixelkit
    except ImportError:
        raise DataError(
            "--mode wd14 needs onnxruntime, which is not installed",
            hint="`pip install onnxruntime` (or onnxruntime-gpu)",
        ) from None
    absent = [name for name in (MODEL, TAGS) if not (folder / name).is_file()]
    if absent:
        raise DataError(f"{folder} holds no {' and no '.join(absent)}", hint="download both files of one tagger")
    tags = read_tags(folder / TAGS)
    try:
        session: Any = onnxruntime.InferenceSession(
            str(folder / MODEL), providers=onnxruntime.get_available_providers()
        )
    except Exception as error:
        raise DataError(f"{folder / MODEL} cannot be loaded: {str(error).splitlines()[0]}") from None
    source = session.get_inputs()[0]
    side = source.shape[1]
    if not isinstance(side, int):
        raise DataError(
            f"{folder / MODEL} takes pictures of {source.shape}", hint="a WD14 tagger takes (n, side, side, 3)"
        )

    def caption(sprite: Sprite) -> str:
        picture = np.asarray(draw_sprite(sprite, side, WHITE), dtype=np.float32)[None, :, :, ::-1]
        chances = session.run(None, {source.name: np.ascontiguousarray(picture)})[0][0]
        if len(chances) != len(tags):
            raise DataError(
                f"the model knows {len(chances)} tags, {TAGS} lists {len(tags)}", hint="are both of one tagger?"
            )
        return choose_tags(tags, chances, threshold)

    return caption


def read_tags(file: Path) -> tuple[Tag, ...]:
    """The tags of a model in its order. Raises DataError."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return tuple(Tag(name=row["name"], category=row["category"]) for row in csv.DictReader(lines))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file} is no list of tags: {error!r}", hint="its columns are tag_id,name,category,count"
        ) from None


def choose_tags(tags: tuple[Tag, ...], chances: Any, threshold: float) -> str:
    """The general and character tags of at least `threshold`, the surest first, in words. Raises DataError for none."""
    sure = sorted(
        (
            (-float(chance), index)
            for index, chance in enumerate(chances)
            if chance >= threshold and tags[index].category in {GENERAL, CHARACTER}
        ),
    )
    if not sure:
        raise DataError(f"no tag reaches {threshold:g}", hint="lower --threshold")
    return ", ".join(_words(tags[index].name) for _, index in sure)


def _words(name: str) -> str:
    """`long_hair` in words; faces like `^_^` stay."""
    return name.replace("_", " ") if sum(sign.isalpha() for sign in name) > 3 else name
