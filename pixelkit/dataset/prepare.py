"""Write what the engine will read: every sprite pixel an exact k x k block, no hidden colour, no resampling."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor

from pixelkit.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pixelkit.canvas import Canvas
    from pixelkit.plan import DatasetPlan, PlannedSprite

Color = tuple[int, int, int]
# Asked in this order for a background that occurs in no sprite: calm mid tones first, loud ones last.
BACKGROUNDS: tuple[Color, ...] = tuple(
    ImageColor.getrgb(name)[:3]
    for name in (
        "#808080",
        "#a0a0a0",
        "#606060",
        "#7f8fa6",
        "#8f7fa6",
        "#c0c0c0",
        "#404040",
        "#6fa68f",
        "#ffffff",
        "#00ff00",
        "#ff00ff",
    )
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The folders that the engine reads. `fingerprint` changes whenever a pixel or a caption of them does."""

    images: Path
    class_images: Path | None
    background: Color
    palette: tuple[Color, ...]
    fingerprint: str


def prepare(plan: DatasetPlan, folder: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Flatten, enlarge, centre and caption all sprites of the plan into `folder` (`folder`/class for class images).

    The sources are only read. Every image that cannot be read whole is named in one DataError.
    """
    background = _choose_background(plan.background, plan.sprites)
    total = len(plan.sprites) + len(plan.class_sprites)
    digest = hashlib.sha256()
    colors: Counter[Color] = Counter()
    problems: list[Problem] = []
    done = 0
    for sprites, target, root in (
        (plan.sprites, folder / "sprites", plan.source),
        (plan.class_sprites, folder / "class", None),
    ):
        for sprite, name in zip(sprites, _flat_names(sprites, root), strict=True):
            try:
                pixels = flatten(read_pixels(sprite.path), background)
            except DataError as error:
                problems.append(Problem(where=str(sprite.path), what=error.message))
                continue
            if root is not None:
                colors.update(_count_colors(pixels))
            _write(place(pixels, sprite.canvas, background), sprite.caption, target / name, digest)
            done += 1
            if on_progress:
                on_progress(done, total)
    if problems:
        raise DataError(
            f"{len(problems)} of {total} images cannot be used", hint="mend or remove them", problems=problems
        )
    return Prepared(
        images=folder / "sprites",
        class_images=folder / "class" if plan.class_sprites else None,
        background=background,
        palette=tuple(color for color, _ in colors.most_common(256)),
        fingerprint=digest.hexdigest(),
    )


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """An image's pixels as (height, width, 4) RGBA, exactly as stored; 16-bit channels are rounded to 8.

    Raises DataError for files that cannot be read to their end.
    """
    try:
        with Image.open(path) as image:
            image.load()
            narrow: Image.Image = image
            if image.mode in {"I;16", "I", "I;16B"}:
                narrow = Image.fromarray(np.round(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
            return np.asarray(narrow.convert("RGBA"), dtype=np.uint8)
    except Exception as error:
        raise DataError(f"the image cannot be read: {error}") from None


def flatten(pixels: NDArray[np.uint8], background: Color) -> NDArray[np.uint8]:
    """RGBA (h, w, 4) over a background colour: (h, w, 3). Hidden colour under full transparency never shows."""
    alpha = pixels[..., 3:].astype(np.uint16)
    color = pixels[..., :3].astype(np.uint16)
    mixed = (color * alpha + np.array(background, dtype=np.uint16) * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def place(pixels: NDArray[np.uint8], canvas: Canvas, background: Color) -> NDArray[np.uint8]:
    """Enlarge (h, w, 3) by the canvas' scale, each pixel a block, and centre it: (canvas.height, canvas.width, 3)."""
    enlarged = pixels.repeat(canvas.scale, axis=0).repeat(canvas.scale, axis=1)
    out = np.empty((canvas.height, canvas.width, 3), dtype=np.uint8)
    out[:] = background
    left, top = canvas.offset
    out[top : top + enlarged.shape[0], left : left + enlarged.shape[1]] = enlarged
    return out


def _choose_background(wanted: str, sprites: Sequence[PlannedSprite]) -> Color:
    if wanted != "auto":
        return ImageColor.getrgb(wanted)[:3]
    used: set[Color] = set()
    for sprite in sprites:
        try:
            pixels = read_pixels(sprite.path)
        except DataError:
            continue  # named by prepare
        used.update(_count_colors(pixels[pixels[..., 3] > 0][None, :, :3]))
    free = [color for color in BACKGROUNDS if color not in used]
    return free[0] if free else next((color for color in _grey_levels() if color not in used), (255, 255, 255))


def _grey_levels() -> Iterable[Color]:
    return ((level, level, level) for level in (*range(128, 256), *range(127, -1, -1)))


def _count_colors(pixels: NDArray[np.uint8]) -> dict[Color, int]:
    packed = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    values, counts = np.unique(packed, return_counts=True)
    return {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255): int(n) for v, n in zip(values, counts, strict=True)}


def _flat_names(sprites: Sequence[PlannedSprite], root: Path | None) -> list[str]:
    """One file name per sprite without its suffix: its path below the source with `__` for folders, made unique."""
    names: list[str] = []
    taken: set[str] = set()
    for sprite in sprites:
        relative = (
            sprite.path.relative_to(root) if root and sprite.path.is_relative_to(root) else Path(sprite.path.name)
        )
        stem = "__".join(relative.with_suffix("").parts)[-80:]  # 80 characters and an ending fit every file system
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _write(pixels: NDArray[np.uint8], caption: str, stem: Path, digest: hashlib._Hash) -> None:
    image, text = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.txt")
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    text.write_text(caption + "\n", "utf-8")
    for part in (stem.name.encode(), np.array(pixels.shape).tobytes(), pixels.tobytes(), caption.encode()):
        digest.update(part)
