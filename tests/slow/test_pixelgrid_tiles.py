"""The native grid on real sprites: PIXELKIT_TILES names a folder of native ones."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelkit.pixelgrid import Block, Grid, decide_blocks, measure_block, reduce_block
from pixelkit.pixelgrid.comb import detect_grid
from pixelkit.pixelgrid.repair import snap

Size = tuple[int, int]


@pytest.fixture(scope="module")
def tiles() -> list[Image.Image]:
    folder = os.environ.get("PIXELKIT_TILES")
    if not folder:
        pytest.skip("PIXELKIT_TILES is not set")
    found = []
    for path in sorted(Path(folder).rglob("*.png")):
        with Image.open(path) as image:
            image.load()
            found.append(image)
    assert found
    return found


def enlarge(image: Image.Image, block: int) -> Image.Image:
    return image.resize((image.width * block, image.height * block), Image.Resampling.NEAREST)


@pytest.mark.parametrize("block", [1, 2, 3, 8, 12])
def test_the_whole_set_is_found_at_native_size(tiles: list[Image.Image], block: int) -> None:
    groups: dict[Size, list[Block]] = defaultdict(list)
    for tile in tiles:
        large = enlarge(tile, block)
        groups[large.size].append(measure_block(large))
    decided = decide_blocks(groups)
    right = sum(len(group) for size, group in groups.items() if decided[size].block == block)
    assert right >= 0.99 * len(tiles)
    assert not any(decision.outliers for decision in decided.values())


def test_one_native_picture_among_enlarged_ones_is_told(tiles: list[Image.Image]) -> None:
    enlarged = [enlarge(tile, 8) for tile in tiles if tile.size == (32, 32)][:199]
    stray = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    blocks = [measure_block(image) for image in [*enlarged[:100], stray, *enlarged[100:]]]
    decision = decide_blocks({(256, 256): blocks})[256, 256]
    assert (decision.block, dict(decision.outliers)) == (8, {100: 1})


def test_reduction_gives_back_every_tile(tiles: list[Image.Image]) -> None:
    for tile in tiles[::10]:
        small = reduce_block(enlarge(tile, 5), 5)
        assert (small.mode, small.size, small.tobytes()) == (tile.mode, tile.size, tile.tobytes())


def test_native_tiles_have_no_comb_and_enlarged_ones_have(tiles: list[Image.Image]) -> None:
    chosen = random.Random(0).sample([tile for tile in tiles if tile.size == (32, 32)], 100)
    found = 0
    for tile in chosen:
        pixels = np.asarray(tile.convert("RGBA"))
        assert detect_grid(pixels) is None
        grid = detect_grid(np.asarray(enlarge(tile, 7).convert("RGBA")))
        found += grid is not None and grid.step == (7, 7) and grid.offset == (0, 0)
    assert found >= 90


def test_an_undamaged_tile_snaps_to_itself(tiles: list[Image.Image]) -> None:
    for tile in tiles[::30]:
        native = np.asarray(tile.convert("RGBA"))
        snapped = snap(native.repeat(6, axis=0).repeat(6, axis=1), Grid(step=(6, 6)))
        faint = (native[..., 3] < 16) | ((native[..., 3] > 239) & (native[..., 3] < 255))  # snap makes these whole
        assert (snapped == native)[~faint].all()
