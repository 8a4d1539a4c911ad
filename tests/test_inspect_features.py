"""One sprite's features, each against a picture drawn to have it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelkit.dataset.inspect.features import find_blends, measure_features


def canvas(height: int, width: int, color: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.ndarray:
    return np.full((height, width, 4), color, dtype=np.uint8)


def test_counts_and_shares() -> None:
    pixels = canvas(4, 8)
    pixels[1:3, 2:6] = (200, 0, 0, 255)
    pixels[1, 2] = (0, 0, 200, 255)
    pixels[2, 5] = (200, 0, 0, 100)
    found = measure_features(pixels)
    assert (found.width, found.height, found.box) == (8, 4, (4, 2))
    assert (found.colors, found.density) == (2, 8 / 32)
    assert found.palette == bytes([200, 0, 0, 0, 0, 200])
    assert list(found.weights) == [round(7 / 8 * 255), round(1 / 8 * 255)]
    assert (found.translucent, found.levels, found.orphans) == (1 / 8, 1, 1 / 8)


def test_a_blend_is_between_its_neighbours_and_occurs_once() -> None:
    pixels = canvas(8, 9, (0, 0, 0, 255))
    pixels[:, 5:] = (200, 100, 0, 255)
    assert not find_blends(pixels).any()
    pixels[3, 4] = (100, 50, 0, 255)
    assert np.argwhere(find_blends(pixels)).tolist() == [[3, 4]]
    assert measure_features(pixels).blends == 1 / 72
    pixels[6, 4] = (100, 50, 0, 255)  # twice the same: a shade of the artist's
    assert measure_features(pixels).blends == 0
    pixels[3, 4] = (0, 90, 0, 255)  # off the way
    assert not find_blends(pixels)[3, 4]


def test_turning_with_a_filter_makes_blends() -> None:
    chance = np.random.default_rng(0)
    colors = np.column_stack([chance.integers(0, 256, (6, 3)), np.full(6, 255)]).astype(np.uint8)
    pixels = colors[np.kron(chance.integers(0, 6, (8, 8)), np.ones((4, 4), int))]
    turned = np.asarray(Image.fromarray(pixels).rotate(17, Image.Resampling.BICUBIC))
    assert measure_features(pixels).blends == 0
    assert measure_features(turned).blends > 0.08


@pytest.mark.parametrize("background", ["transparent", "plain", "filled"])
def test_background(background: str) -> None:
    pixels = canvas(16, 16, (0, 0, 0, 0) if background == "transparent" else (40, 40, 80, 255))
    if background == "filled":
        pixels[..., 0] = np.arange(16) * 16
    pixels[4:16, 5:10] = (200, 180, 20, 255)
    assert measure_features(pixels).background == background


def test_hidden_colours_are_counted() -> None:
    pixels = canvas(8, 8, (255, 255, 255, 0))
    assert measure_features(pixels).hidden == 1
    pixels[0, :4, :3] = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3]]
    assert measure_features(pixels).hidden == 4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([2, 256]))
def test_any_picture_has_features_of_under_2_kb(height: int, width: int, seed: int, values: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, values, (height, width, 4), dtype=np.uint8)
    found = measure_features(pixels)
    assert len(found.thumb) == 1024 and len(found.palette) == 3 * len(found.weights)
    assert len(pickle.dumps(found)) < 2048
    assert all(0 <= share <= 1 for share in (found.density, found.translucent, found.blends, found.orphans))
    mirrored = measure_features(pixels[:, ::-1])
    assert (mirrored.mirror, mirrored.drawing) == (found.mirror, found.drawing)
