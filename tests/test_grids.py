from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pixelkit.errors import DataError
from pixelkit.sources import Reading, survey
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from pathlib import Path


def sprite(path: Path, *, side: int = 16, times: int = 1, seed: int = 0, flat: bool = False) -> Image.Image:
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 256, (6, 3), dtype=np.uint8)
    pixels = np.full((side, side, 3), 7, dtype=np.uint8) if flat else table[generator.integers(0, 6, (side, side))]
    image = Image.fromarray(pixels).resize((side * times, side * times), Image.Resampling.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return image


def sizes(folder: Path, **how: object) -> dict[str, tuple[int, int, int]]:
    found = survey(folder, what="path", reading=Reading(**how))  # type: ignore[arg-type]
    return {one.name: (one.width, one.height, one.block) for one in found.sprites}


def test_enlarged_art_is_reduced_and_native_art_is_not(tmp_path: Path) -> None:
    for number in range(3):
        sprite(tmp_path / "native" / f"{number}.png", seed=number)
        sprite(tmp_path / "big" / f"{number}.png", times=8, seed=number)
    found = sizes(tmp_path)
    assert found["native/0"] == (16, 16, 1) and found["big/0"] == (16, 16, 8)
    by_name = {one.name: read_pixels(one) for one in survey(tmp_path, what="path").sprites}
    assert (by_name["big/1"] == by_name["native/1"]).all()


def test_a_flat_tile_is_no_coarser_than_its_neighbours(tmp_path: Path) -> None:
    for number in range(3):
        sprite(tmp_path / f"{number}.png", times=4, seed=number)
    sprite(tmp_path / "flat.png", times=4, flat=True)
    assert sizes(tmp_path)["flat"] == (16, 16, 4)


def test_one_that_breaks_the_grid_keeps_its_pixels_and_is_named(tmp_path: Path) -> None:
    for number in range(12):
        sprite(tmp_path / f"{number:02}.png", side=12, times=4, seed=number)
    sprite(tmp_path / "12.png", side=48, seed=5)
    found = survey(tmp_path, what="path")
    assert {one.name: one.width for one in found.sprites}["12"] == 48
    assert any("not made of blocks of 4x4" in remark and "12 first" in remark for remark in found.remarks)


def test_the_artists_word_on_the_grid(tmp_path: Path) -> None:
    sprite(tmp_path / "a.png", times=8)
    assert sizes(tmp_path, grid=1)["a"] == (128, 128, 1)
    assert sizes(tmp_path, grid=4)["a"] == (32, 32, 4)
    with pytest.raises(DataError) as caught:
        sizes(tmp_path, grid=3)
    assert "not made of exact blocks of 3x3" in str(caught.value)


@pytest.fixture
def blurred(tmp_path: Path) -> Path:
    for number in range(3):
        image = sprite(tmp_path / f"{number}.png", side=16, times=8, seed=number)
        image.filter(ImageFilter.GaussianBlur(1.2)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_damaged_art_is_refused_with_the_ways_out(blurred: Path) -> None:
    with pytest.raises(DataError) as caught:
        sizes(blurred)
    assert "enlarged by 8 and blurred" in str(caught.value.problems[0])
    assert "repair" in caught.value.problems[0].hint and "grid = 1" in caught.value.problems[0].hint
    assert sizes(blurred, grid=1)["0"] == (128, 128, 1)


def test_repair_snaps_it_to_its_grid(blurred: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    clean = tmp_path_factory.mktemp("clean")
    found = survey(blurred, what="path", reading=Reading(repair=True)).sprites
    for number, one in enumerate(found):
        sprite(clean / f"{number}.png", seed=number)
        expected = np.asarray(Image.open(clean / f"{number}.png").convert("RGBA")).astype(int)
        assert (one.width, one.height) == (16, 16)
        near = np.abs(read_pixels(one).astype(int) - expected).max(axis=-1) < 40
        assert near.mean() > 0.9


def test_without_a_grid_repair_asks_for_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert sizes(tmp_path)["noise"] == (128, 128, 1)
    with pytest.raises(DataError) as caught:
        sizes(tmp_path, repair=True)
    assert "no pixel grid is found" in str(caught.value) and "grid = 8" in str(caught.value)
    assert sizes(tmp_path, repair=True, grid=8)["noise"][:2] == (16, 16)
