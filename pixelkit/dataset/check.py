"""The proof: each image as the VAE will see it, and its k-fold reduction against the source, pixel by pixel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import ImageColor

from pixelkit.dataset.blocks import cover
from pixelkit.dataset.make import hash_file, read_status
from pixelkit.errors import DataError, Problem
from pixelkit.sources import Reading, Sprite, survey
from pixelkit.sources.pixels import read_pixels
from pixelkit.sources.prepared import MANIFEST, read_manifest, read_records, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from pixelkit.canvas import View

AGAIN = "prepare the set again"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image that a trainer would read, and what a prepared set says of it; `masked`: with its alpha as a mask."""

    path: Path
    width: int
    height: int
    record: dict[str, Any] | None = None
    masked: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`proved`: that the pixels are the artist's, against the source itself or, where it is gone or the image was made of
    it by augmentation, against the hash written down at its making; "" = there is nothing to hold it against.
    """

    proved: Literal["source", "hash", ""] = ""
    problem: Problem | None = None


def list_candidates(folder: Path) -> Iterator[Candidate]:
    """The images of a prepared set, or those of any folder as a trainer would take them. Raises DataError."""
    if (folder / MANIFEST).is_file():
        masked = read_manifest(folder)["alpha"] == "mask"
        for record in read_records(folder):
            width, height = record["canvas"]
            path = folder / record["file"]
            yield Candidate(path=path, width=width, height=height, record=record, masked=masked)
        return
    for sprite in survey(folder, what="the set", reading=Reading(grid=1)).sprites:
        if not sprite.frame and not sprite.box:
            yield Candidate(path=sprite.path, width=sprite.width, height=sprite.height)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Judges the images of a folder; `manifest` is that of a prepared set."""

    folder: Path
    manifest: dict[str, Any] | None

    @classmethod
    def of(cls, folder: Path) -> Proof:
        """Raises DataError for a manifest that cannot be read."""
        return cls(folder=folder, manifest=read_manifest(folder) if (folder / MANIFEST).is_file() else None)

    def judge(self, image: Candidate, view: View) -> Verdict:
        """Untouched on its way to the VAE, and where it is of a prepared set, equal to its source pixel by pixel."""
        try:
            if not view.keeps(image.width, image.height):
                raise DataError(_describe(image, view))  # noqa: TRY301 - one way out for every finding
            return Verdict(proved=self._prove(image.path, image.record) if image.record else "")
        except DataError as error:
            inside = image.path.is_relative_to(self.folder)
            where = str(image.path.relative_to(self.folder) if inside else image.path)
            return Verdict(problem=Problem(where=where, what=error.message, hint=error.hint))

    def _prove(self, path: Path, record: dict[str, Any]) -> Literal["source", "hash"]:
        small = reduce_canvas(read_pixels(_whole(path, record)), record)
        if hashlib.sha256(small.tobytes()).hexdigest() != record["pixels_sha256"]:
            raise DataError("its pixels are not those that were prepared", hint=AGAIN)
        source = source_of(record)
        try:
            status = read_status(source.path)
        except DataError:
            return "hash"
        if record["variant"]:
            return "hash"
        if hash_file(source.path, status) != record["source_sha256"]:
            raise DataError("its source was changed after it was prepared", hint=AGAIN)
        assert self.manifest is not None
        background = ImageColor.getrgb(self.manifest["background"])[:3]
        expected = cover(read_pixels(source), background, keep_alpha=self.manifest["alpha"] == "mask")
        if not np.array_equal(small, expected):
            raise DataError("its pixels are not its source's", hint=AGAIN)
        return "source"


def reduce_canvas(shown: NDArray[np.uint8], record: dict[str, Any]) -> NDArray[np.uint8]:
    """The sprite on a canvas, RGBA (H, W, 4) -> (h, w, 4). Raises DataError where it is not made of exact blocks, or what
    surrounds it is not of one colour.
    """
    (left, top), (width, height), scale = record["offset"], record["size"], record["scale"]
    if shown.shape[:2] != (record["canvas"][1], record["canvas"][0]):
        raise DataError("it has not the size that the set says", hint=AGAIN)
    packed = np.ascontiguousarray(shown).view(np.uint32)[..., 0]
    inner = packed[top : top + height * scale, left : left + width * scale]
    small = np.ascontiguousarray(inner[::scale, ::scale])
    if not np.array_equal(inner, small.repeat(scale, axis=0).repeat(scale, axis=1)):
        raise DataError(f"its pixels are not blocks of {scale}x{scale}", hint=AGAIN)
    bands = (packed[:top], packed[top + inner.shape[0] :], packed[:, :left], packed[:, left + inner.shape[1] :])
    if len({int(color) for band in bands if band.size for color in (band.min(), band.max())}) > 1:
        raise DataError("what surrounds it is not of one colour", hint=AGAIN)
    return small.view(np.uint8).reshape(height, width, 4)


def _whole(path: Path, record: dict[str, Any]) -> Sprite:
    width, height = record["canvas"]
    return Sprite(path=path, name=record["name"], width=width, height=height)


def _describe(image: Candidate, view: View) -> str:
    size = f"{image.width}x{image.height}"
    if 0 in view.bucket:
        return f"{size} is smaller than one step of the buckets: sd-scripts crashes on it"
    if view.resized != (image.width, image.height):
        return f"{size} is resampled to {view.resized[0]}x{view.resized[1]}: its pixels are no longer the artist's"
    return f"{size} is cut to {view.bucket[0]}x{view.bucket[1]} in the middle: off its grid, and without its border"
