"""What is trained on, and in which order: PNG + .txt pairs, buckets of equal size, seeded batches. Loads no torch.

The order of an epoch depends only on the seed, the epoch's number and the files, so that a resumed run goes on exactly.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pixelkit.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.engines.diffusers.settings import DatasetSettings


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image and its caption, seen `repeats` times in an epoch; `is_class`: it belongs to the prior preservation set."""

    path: Path
    caption: str
    size: tuple[int, int]
    is_class: bool
    repeats: int = 1


def find_examples(settings: DatasetSettings, *, multiple: int) -> list[Example]:
    """All examples, training images first, by name. `multiple`: what the VAE needs width and height to be multiples of.

    Raises DataError that lists every image that cannot be used, and why.
    """
    problems: list[Problem] = []
    found: list[Example] = []
    for folder, repeats in zip(settings.images, settings.repeats, strict=True):
        found += _read_folder(folder, problems, is_class=False, multiple=multiple, repeats=repeats)
    if settings.class_images:
        found += _read_folder(settings.class_images, problems, is_class=True, multiple=multiple)
    if problems:
        raise DataError(f"{len(problems)} of the training images cannot be used", problems=problems)
    return found


def _read_folder(
    folder: str, problems: list[Problem], *, is_class: bool, multiple: int, repeats: int = 1
) -> list[Example]:
    found: list[Example] = []
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise DataError(f"no PNG files in {folder}")
    for path in paths:
        try:
            with Image.open(path) as image:
                size = image.size
            caption = path.with_suffix(".txt").read_text("utf-8").strip()
        except (OSError, UnidentifiedImageError, UnicodeDecodeError) as error:
            problems.append(Problem(where=str(path), what=f"cannot be read: {error}"))
            continue
        if size[0] % multiple or size[1] % multiple:
            what = f"is {size[0]}x{size[1]}; this base needs multiples of {multiple}"
            problems.append(Problem(where=str(path), what=what))
        found.append(Example(path=path, caption=caption, size=size, is_class=is_class, repeats=repeats))
    return found


def read_pixels(examples: Sequence[Example], workers: int) -> list[npt.NDArray[np.float32]]:
    """The images as (3, height, width) in -1..1, values unchanged. Raises DataError for see-through ones."""

    def read(example: Example) -> npt.NDArray[np.float32]:
        try:
            with Image.open(example.path) as image:
                if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                    raise DataError(f"{example.path} is see-through; flatten it onto its background first")
                rgb = np.asarray(image.convert("RGB"), dtype=np.float32)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{example.path} cannot be read: {error}") from error
        return np.ascontiguousarray(rgb.transpose(2, 0, 1)) / np.float32(127.5) - np.float32(1)

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        return list(pool.map(read, examples))


def order_epoch(examples: Sequence[Example], settings: DatasetSettings, *, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch (from 0) as indices of `examples`: one size a batch, the last of a size may be short.

    Each training image stands `repeats` times in it. As many class images as these are mixed in, going on where the last
    epoch ended (sd-scripts always takes the first of them).
    """
    shuffle = random.Random(f"{seed} epoch {epoch}").shuffle
    chosen = [index for index, example in enumerate(examples) if not example.is_class for _ in range(example.repeats)]
    classes = [index for index, example in enumerate(examples) if example.is_class]
    if classes:
        count = len(chosen)
        chosen += [classes[(epoch * count + offset) % len(classes)] for offset in range(count)]
    buckets: dict[tuple[int, int], list[int]] = {}
    for index in chosen:
        buckets.setdefault(examples[index].size, []).append(index)
    batches: list[list[int]] = []
    for size in sorted(buckets):
        shuffle(buckets[size])
        at = range(0, len(buckets[size]), settings.batch_size)
        batches += [buckets[size][start : start + settings.batch_size] for start in at]
    shuffle(batches)
    return batches
