"""How well the native pixel grid of enlarged art is found: uv run python bench/grid.py FOLDER [--sprites 12] [--peers DIR]

FOLDER holds native sprites, of any licence you like. Printed, each row a kind of damage:
1. share of sprites whose grid is found within 2% in x and y, by pixelkit's parts and by other tools, with ms a picture;
2. share of native pictures, noise and photo-like pictures in which something is found (it should be nought);
3. how close snap() comes: share of pixels within CIEDE2000 5, colours for each colour of the original;
4. exact enlargements by 2 to 12 of the whole folder, decided over the set: share whose native size is found.

The other tools, where they are to be compared (they are left out otherwise):
    uv pip install --target DIR proper-pixel-art unfake
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from pixelkit.evaluate.palette import measure_distance, to_lab
from pixelkit.pixelgrid import Grid, decide_blocks, measure_block
from pixelkit.pixelgrid.comb import detect_grid
from pixelkit.pixelgrid.repair import snap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Step = tuple[float, float] | None
    Finder = Callable[[Image.Image], Step]

SCALES = (2, 3, 4, 6, 8, 11, 16, 5.3, 7.6)
ENLARGEMENTS = range(2, 13)


def main(arguments: argparse.Namespace) -> None:
    """Print the four tables."""
    paths = sorted(arguments.folder.rglob("*.png"))
    chosen = random.Random(arguments.seed).sample(paths, len(paths))
    sprites = [sprite for path in chosen if (sprite := _flatten(path)).getcolors(3) is None][: arguments.sprites]
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    finders = {"exact": _find_exact, "comb": _find_comb, "pixelkit": _find_combined, **dict(_find_peers())}
    _compare(sprites, finders)
    _count_false(sprites, finders)
    _measure_repair(sprites)
    _reduce_folder(paths[:: arguments.every])


def _compare(sprites: list[Image.Image], finders: dict[str, Finder]) -> None:
    print(f"{len(sprites)} sprites, enlarged by {', '.join(map(str, SCALES))}: share found within 2%\n")
    print(f"{'':9}" + "".join(f"{name:>18}" for name in finders))
    spent: dict[str, float] = defaultdict(float)
    for kind, damage in DAMAGES.items():
        right: dict[str, int] = defaultdict(int)
        for scale in SCALES:
            for number, sprite in enumerate(sprites):
                picture = damage(sprite, scale, np.random.default_rng(number))
                for name, find in finders.items():
                    started = time.perf_counter()
                    step = _quietly(find, picture)
                    spent[name] += time.perf_counter() - started
                    right[name] += step is not None and all(abs(side / scale - 1) < 0.02 for side in step)
        cells = len(SCALES) * len(sprites)
        print(f"{kind:9}" + "".join(f"{right[name] / cells:18.3f}" for name in finders), flush=True)
    pictures = len(DAMAGES) * len(SCALES) * len(sprites)
    print(f"{'ms':9}" + "".join(f"{1000 * spent[name] / pictures:18.1f}" for name in finders), "\n")


def _count_false(sprites: list[Image.Image], finders: dict[str, Finder]) -> None:
    print("no grid to find: share in which one above 1.5 is found\n")
    pictures = defaultdict(list)
    for number, sprite in enumerate(sprites):
        rng = np.random.default_rng(number)
        pictures["native"].append(sprite)
        pictures["padded"].append(Image.new("RGB", (64, 64), "white"))
        pictures["padded"][-1].paste(sprite, (16, 16))
        pictures["sheet"].append(_tile(sprites, rng))
        pictures["noise"].append(Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)))
        pictures["photo"].append(_make_photo(rng))
        pictures["photo.jpg"].append(_compress(pictures["photo"][-1]))
    for kind, group in pictures.items():
        found = {
            name: sum((step := _quietly(find, picture)) is not None and max(step) > 1.5 for picture in group)
            for name, find in finders.items()
        }
        print(f"{kind:9}" + "".join(f"{found[name] / len(group):18.3f}" for name in finders), flush=True)
    print()


def _measure_repair(sprites: list[Image.Image]) -> None:
    print("snap() on the true grid / on the grid that is found: share of pixels within 5, mean distance, colours\n")
    for kind, damage in DAMAGES.items():
        close, distance, colors, found = [], [], [], []
        for scale in SCALES:
            for number, sprite in enumerate(sprites):
                picture = np.asarray(damage(sprite, scale, np.random.default_rng(number)))
                true = Grid(step=(picture.shape[1] / sprite.width, picture.shape[0] / sprite.height))
                native = np.asarray(sprite)
                snapped = snap(picture, true)[..., :3]
                away = measure_distance(to_lab(snapped), to_lab(native))
                close.append((away <= 5).mean())
                distance.append(away.mean())
                colors.append(_count_colors(snapped) / _count_colors(native))
                grid = detect_grid(picture)
                again = snap(picture, grid)[..., :3] if grid else None
                if again is not None and again.shape == native.shape:
                    found.append((measure_distance(to_lab(again), to_lab(native)) <= 5).mean())
        print(
            f"{kind:9} {np.mean(close):.3f} / {np.mean(found):.3f} of {len(found) / len(close):.2f}, "
            f"distance {np.mean(distance):.2f}, {np.mean(colors):.1f} colours a colour",
            flush=True,
        )
    print()


def _reduce_folder(paths: list[Path]) -> None:
    print(f"{len(paths)} sprites enlarged exactly and saved as PNG, decided over the set: native size found\n")
    for scale in (1, *ENLARGEMENTS):
        groups, sizes, spent = defaultdict(list), defaultdict(list), 0.0
        for path in paths:
            with Image.open(path) as image:
                large, size = io.BytesIO(), image.size
                image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(large, "PNG")
            started = time.perf_counter()
            with Image.open(large) as image:
                groups[image.size].append(measure_block(image))
                sizes[image.size].append(size)
            spent += time.perf_counter() - started
        decided = decide_blocks(groups)
        right = sum(
            (width // block, height // block) == native
            for (width, height), natives in sizes.items()
            for place, native in enumerate(natives)
            for block in [decided[width, height].outliers.get(place, decided[width, height].block)]
        )
        alone = sum(block.size == scale for group in groups.values() for block in group)
        print(
            f"x{scale:<3} {right} of {len(paths)} ({right / len(paths):.4f}); each for itself {alone}; "
            f"{1000 * spent / len(paths):.1f} ms a picture, PNG read included",
            flush=True,
        )


def _find_exact(picture: Image.Image) -> Step:
    size = measure_block(picture).size
    return (size, size) if size > 1 else None


def _find_comb(picture: Image.Image) -> Step:
    grid = detect_grid(np.asarray(picture))
    return grid.step if grid else None


def _find_combined(picture: Image.Image) -> Step:
    """One picture, as a set of one: the exact block where there is one, else the comb."""
    block = decide_blocks({picture.size: [measure_block(picture)]})[picture.size].block
    return (block, block) if block > 1 else _find_comb(picture)


def _find_peers() -> Iterator[tuple[str, Finder]]:
    """Each as its own command line does it, but for the colours that follow."""
    with contextlib.suppress(ImportError):
        mesh = importlib.import_module("proper_pixel_art.mesh")
        logging.getLogger("proper_pixel_art").setLevel(logging.ERROR)

        def proper_pixel_art(picture: Image.Image) -> Step:
            _, factor, width = mesh.compute_mesh_with_scaling(picture.convert("RGBA"))
            return width / factor, width / factor

        yield "proper-pixel-art", proper_pixel_art
    with contextlib.suppress(ImportError):
        unfake = importlib.import_module("unfake")
        logging.getLogger("unfake").setLevel(logging.ERROR)

        def find_scale(picture: Image.Image) -> Step:
            pixels = np.asarray(picture.convert("RGBA"))
            scale = unfake.runs_based_detect_accelerated(pixels)
            scale = scale if scale > 1 else unfake.edge_aware_detect(pixels)
            return scale, scale

        yield "unfake", find_scale


def _quietly(find: Finder, picture: Image.Image) -> Step:
    """What a tool says, without what it prints. Where it fails, it has found nothing; why is told on standard error."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return find(picture)
        except Exception as error:
            print(f"{find.__name__}, {picture.width}x{picture.height}: {error!r}", file=sys.stderr)
            return None


def _flatten(path: Path) -> Image.Image:
    with Image.open(path) as image:
        sprite = image.convert("RGBA")
    ground = Image.new("RGBA", sprite.size, "white")
    ground.alpha_composite(sprite)
    return ground.convert("RGB")


def _enlarge(sprite: Image.Image, scale: float, how: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    return sprite.resize((round(sprite.width * scale), round(sprite.height * scale)), how)


def _compress(picture: Image.Image) -> Image.Image:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=75)
    return Image.open(stored).convert("RGB")


def _add_noise(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = np.asarray(picture) + rng.normal(0, 12, np.asarray(picture).shape)
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def _jitter(sprite: Image.Image, scale: float, rng: np.random.Generator) -> Image.Image:
    """Every boundary up to a pixel (a quarter cell at small scales) away from its place."""
    pixels = np.asarray(sprite)
    for axis in (0, 1):
        number = sprite.size[1 - axis]
        moved = rng.uniform(-1, 1, number + 1) * min(1, scale / 4)
        moved[[0, -1]] = 0
        pixels = pixels.repeat(np.diff(np.round(np.arange(number + 1) * scale + moved).astype(int)), axis=axis)
    return Image.fromarray(pixels)


def _tile(sprites: list[Image.Image], rng: np.random.Generator) -> Image.Image:
    sheet = Image.new("RGB", (256, 256), "white")
    for place in range(64):
        sheet.paste(sprites[rng.integers(len(sprites))], (place % 8 * 32, place // 8 * 32))
    return sheet


def _make_photo(rng: np.random.Generator, side: int = 256) -> Image.Image:
    """Noise whose power falls with frequency as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    planes = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency, s=(side, side)) for _ in range(3)]
    values = np.stack(planes, axis=-1)
    return Image.fromarray(np.uint8(255 * (values - values.min()) / np.ptp(values)))


def _count_colors(pixels: NDArray[np.uint8]) -> int:
    return len(np.unique(pixels.reshape(-1, 3), axis=0))


DAMAGES: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "clean": lambda sprite, scale, _: _enlarge(sprite, scale),
    "blur": lambda sprite, scale, _: _enlarge(sprite, scale).filter(ImageFilter.GaussianBlur(min(1, scale / 4))),
    "jpeg": lambda sprite, scale, _: _compress(_enlarge(sprite, scale)),
    "noise": lambda sprite, scale, rng: _add_noise(_enlarge(sprite, scale), rng),
    "jitter": _jitter,
    "lanczos": lambda sprite, scale, _: _enlarge(sprite, scale, Image.Resampling.LANCZOS),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sprites", type=int, default=12, help="of each damage and scale (12)")
    parser.add_argument("--every", type=int, default=1, help="of the folder, for the last table (1: all)")
    parser.add_argument("--peers", type=Path, help="where the other tools are installed")
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
