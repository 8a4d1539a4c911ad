"""One sprite on its way into a set: its files are written, and what they are is returned as records."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pixelkit.dataset.augment import Augmentation, variants
from pixelkit.dataset.blocks import Color, cover, index_colors, place, save_png
from pixelkit.dataset.masks import mask_image, segment
from pixelkit.errors import DataError
from pixelkit.paths import write_atomically
from pixelkit.sources.files import read_bytes
from pixelkit.sources.pixels import read_pixels
from pixelkit.sources.prepared import HOLDOUT, MASKS, describe_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pixelkit.plan import PlannedSprite

Record = dict[str, Any]
FORMAT = 1
PALETTE = 256


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a set is made. `background`: "auto", or a colour as ImageColor reads it. `alpha` = mask keeps transparency, for a
    masked loss. `masks`: also write what is subject, outline and background. `augment`: further pictures of each sprite.
    `holdout`: share of the sprites, 0 to 1, that is kept from training. `keep_going`: leave out what cannot be read.
    """

    background: str = "auto"
    alpha: Literal["flatten", "mask"] = "flatten"
    masks: bool = False
    augment: Augmentation = field(default_factory=Augmentation)
    holdout: float = 0.0
    keep_going: bool = False


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes the files of sprites in `folder`, all with the same background."""

    folder: Path
    making: Making
    background: Color

    def key(self, planned: PlannedSprite, place_of: str) -> str:
        """Changes whenever the files made of a sprite would: by its source, its way to the canvas, and the making."""
        sprite = planned.sprite
        facts = (
            *(FORMAT, place_of, sprite, read_status(sprite.path), planned.canvas, planned.caption, self.background),
            *(self.making.alpha, self.making.masks, self.making.augment, self.making.holdout),
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def make(self, planned: PlannedSprite, name: str, images: str) -> list[Record]:
        """Write picture, caption and mask of a sprite, and of its variants; `images`: the folder for training images.

        Raises DataError for what cannot be read, StorageError for what cannot be written.
        """
        sprite = planned.sprite
        source = read_pixels(sprite)
        key = self.key(planned, images)
        held = _is_held_out(source, self.making.holdout)
        made = [(source, planned.caption, "")]
        if not held:
            made += [(v.pixels, v.caption, v.tag) for v in variants(source, planned.caption, self.making.augment)]
        common = {
            "source": describe_source(sprite),
            "source_sha256": hash_file(sprite.path, read_status(sprite.path)),
            "size": [sprite.width, sprite.height],
            "scale": planned.canvas.scale,
            "canvas": [planned.canvas.width, planned.canvas.height],
            "offset": list(planned.canvas.offset),
            "repeats": planned.repeats,
            "split": HOLDOUT if held else "train",
        }
        folder = HOLDOUT if held else images
        return [
            {
                "name": f"{sprite.name}{'+' * bool(tag)}{tag}",
                "sprite": sprite.name,
                "variant": tag,
                "file": f"{folder}/{name}{'+' * bool(tag)}{tag}.png",
                **common,
                "caption": caption,
                **self._write(pixels, planned, f"{name}{'+' * bool(tag)}{tag}", folder),
                "variants": len(made),
                "key": key,
            }
            for pixels, caption, tag in made
        ]

    def _write(self, pixels: NDArray[np.uint8], planned: PlannedSprite, name: str, folder: str) -> Record:
        """Picture and mask; what they hold."""
        covered = cover(pixels, self.background, keep_alpha=self.making.alpha == "mask")
        backdrop = (*self.background, 0 if self.making.alpha == "mask" else 255)
        indexed = index_colors(covered, backdrop)
        save_png(place(indexed, planned.canvas), self.folder / folder / f"{name}.png")
        if self.making.masks:
            save_png(mask_image(segment(pixels)), self.folder / MASKS / f"{name}.png")
        digest = hashlib.sha256(covered.tobytes())
        counts = np.bincount(indexed.indices.reshape(-1), minlength=len(indexed.table))
        shown = [at for at in np.argsort(-counts, kind="stable")[:PALETTE] if counts[at]]
        return {
            "pixels_sha256": digest.hexdigest(),
            "colors": int((counts > 0).sum()),
            "palette": {"#{:02x}{:02x}{:02x}".format(*indexed.table[at][:3]): int(counts[at]) for at in shown},
        }


def write_caption(image: Path, caption: str, before: str | None, *, unfinished: bool = False) -> None:
    """The caption beside an image, unless someone has edited the one that stood there (`before`) meanwhile.

    `unfinished`: what stands there was left by a preparation that was interrupted.
    """
    file = image.with_suffix(".txt")
    try:
        found = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        found = None
    if found is None or (found != caption and (unfinished or found == before)):
        write_atomically(file, caption + "\n")


def read_status(path: Path) -> tuple[int, int]:
    """Size and time of change of a file, or of the zip that holds it: equal while nothing was written. Raises DataError."""
    for existing in (path, *path.parents):
        try:
            status = existing.stat()
        except NotADirectoryError:
            continue
        except OSError as error:
            raise DataError(error.strerror or str(error)) from None
        return status.st_size, status.st_mtime_ns
    raise DataError("it is gone")


@functools.lru_cache(maxsize=64)
def hash_file(path: Path, _status: tuple[int, int]) -> str:
    """sha256 of a file; of a sheet's many sprites only the first has to wait for it."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def _is_held_out(pixels: NDArray[np.uint8], share: float) -> bool:
    """By the pixels themselves, so that equal pictures go the same way, in every run."""
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:4], "big") < share * 2**32
