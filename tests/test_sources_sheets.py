"""Sheets in cells, and animations in frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_files import Pixels, random_pixels, same_where_seen, save
from PIL import Image

from pixelkit.errors import DataError
from pixelkit.sources import Reading, survey
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.sources.sprite import Sprite


def cut(source: Path, sheet: tuple[int, int] | None = None) -> dict[str, Sprite]:
    found = survey(source, what="path", reading=Reading(sheet=sheet, grid=1))
    return {one.name: one for one in found.sprites}


@given(cells=st.tuples(st.integers(1, 4), st.integers(1, 4)), cell=st.tuples(st.integers(2, 9), st.integers(2, 9)),
       empty=st.sets(st.integers(0, 15)), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cells(tmp_path: Path, cells: tuple[int, int], cell: tuple[int, int], empty: set[int], seed: int) -> None:
    (columns, rows), (width, height) = cells, cell
    pixels = random_pixels(columns * width, rows * height, seed)
    pixels[..., 3] |= 1
    expected = {}
    for row in range(rows):
        for column in range(columns):
            place = np.s_[row * height : (row + 1) * height, column * width : (column + 1) * width]
            if row * 4 + column in empty and (row, column) != (0, 0):
                pixels[place][..., 3] = 0
            else:
                expected[f"hero#r{row + 1}c{column + 1}"] = pixels[place].copy()
    save(tmp_path / "hero.png", pixels)
    found = cut(tmp_path, cell)
    if cells == (1, 1):
        assert list(found) == ["hero"] and found["hero"].box is None
        return
    assert list(found) == list(expected)
    for name, one in found.items():
        assert (one.width, one.height) == cell
        assert np.array_equal(read_pixels(one), expected[name])


def test_cells_of_an_opaque_sheet_that_show_only_its_background(tmp_path: Path) -> None:
    pixels = np.full((8, 12, 4), (255, 0, 255, 255), dtype=np.uint8)
    pixels[1:3, 1:3] = (0, 0, 0, 255)  # a sprite in the first cell
    pixels[4:, 8:] = (0, 128, 0, 255)  # a flat tile of another colour stays
    save(tmp_path / "tiles.png", pixels)
    assert list(cut(tmp_path, (4, 4))) == ["tiles#r1c1", "tiles#r2c3"]


def test_a_sheet_that_its_cells_do_not_divide(tmp_path: Path) -> None:
    save(tmp_path / "hero.png", random_pixels(100, 64))
    save(tmp_path / "good.png", random_pixels(64, 32))
    with pytest.raises(DataError) as caught:
        cut(tmp_path, (32, 32))
    (problem,) = caught.value.problems
    assert problem.where == "hero.png" and "100x64" in problem.what
    assert problem.hint == "25 or 50 would divide its width"
    with pytest.raises(DataError, match="2 of 2 images"):
        cut(tmp_path, (0, 32))


def test_an_empty_sheet_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "hero.png", np.zeros((8, 8, 4), dtype=np.uint8))
    with pytest.raises(DataError, match="all of its 4 cells are empty"):
        cut(tmp_path, (4, 4))


def animation(path: Path, frames: list[Pixels], **options: object) -> Path:
    images = [Image.fromarray(frame) for frame in frames]
    return save(path, images[0], save_all=True, append_images=images[1:], **options)


def test_frames_that_repeat_or_show_nothing_are_left_out(tmp_path: Path) -> None:
    one, other, empty = random_pixels(8, 8, 1), random_pixels(8, 8, 2), np.zeros((8, 8, 4), dtype=np.uint8)
    hidden = one.copy()
    one[0, 0], hidden[0, 0] = (1, 2, 3, 0), (4, 5, 6, 0)  # the same to see
    # Pillow merges equal frames of other formats while it writes them.
    animation(
        tmp_path / "hero.webp",
        [one, hidden, other, empty, one],
        lossless=True,
        exact=True,
        duration=[50, 60, 70, 80, 90],
    )
    found = cut(tmp_path)
    assert list(found) == ["hero#00", "hero#02", "hero#04"]
    for name, pixels in zip(found, (one, other, one), strict=True):
        assert same_where_seen(read_pixels(found[name]), pixels)


def test_a_picture_for_viewers_without_animation_is_no_frame(tmp_path: Path) -> None:
    frames = [random_pixels(8, 8, seed) for seed in range(3)]
    animation(tmp_path / "hero.png", frames, default_image=True)
    assert list(cut(tmp_path)) == ["hero#01", "hero#02"]


def test_a_gif_of_one_frame_is_one_sprite(tmp_path: Path) -> None:
    save(tmp_path / "hero.gif", random_pixels(8, 8))
    assert list(cut(tmp_path)) == ["hero"]
