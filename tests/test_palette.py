"""Colour distance against the published test data; palettes and adherence on pictures whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelkit.evaluate.palette import arrange_colors, measure_adherence, measure_distance, palette_of, to_lab

# Sharma, Wu, Dalal 2005, table 1: L1 a1 b1, L2 a2 b2, CIEDE2000.
PAIRS = np.array(
    [
        (50.0, 2.6772, -79.7751, 50.0, 0.0, -82.7485, 2.0425),
        (50.0, 3.1571, -77.2803, 50.0, 0.0, -82.7485, 2.8615),
        (50.0, 2.8361, -74.0200, 50.0, 0.0, -82.7485, 3.4412),
        (50.0, -1.3802, -84.2814, 50.0, 0.0, -82.7485, 1.0000),
        (50.0, -1.1848, -84.8006, 50.0, 0.0, -82.7485, 1.0000),
        (50.0, -0.9009, -85.5211, 50.0, 0.0, -82.7485, 1.0000),
        (50.0, 0.0, 0.0, 50.0, -1.0, 2.0, 2.3669),
        (50.0, -1.0, 2.0, 50.0, 0.0, 0.0, 2.3669),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0009, 7.1792),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0010, 7.1792),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0011, 7.2195),
        (50.0, 2.4900, -0.0010, 50.0, -2.4900, 0.0012, 7.2195),
        (50.0, -0.0010, 2.4900, 50.0, 0.0009, -2.4900, 4.8045),
        (50.0, -0.0010, 2.4900, 50.0, 0.0010, -2.4900, 4.8045),
        (50.0, -0.0010, 2.4900, 50.0, 0.0011, -2.4900, 4.7461),
        (50.0, 2.5, 0.0, 50.0, 0.0, -2.5, 4.3065),
        (50.0, 2.5, 0.0, 73.0, 25.0, -18.0, 27.1492),
        (50.0, 2.5, 0.0, 61.0, -5.0, 29.0, 22.8977),
        (50.0, 2.5, 0.0, 56.0, -27.0, -3.0, 31.9030),
        (50.0, 2.5, 0.0, 58.0, 24.0, 15.0, 19.4535),
        (50.0, 2.5, 0.0, 50.0, 3.1736, 0.5854, 1.0000),
        (50.0, 2.5, 0.0, 50.0, 3.2972, 0.0, 1.0000),
        (50.0, 2.5, 0.0, 50.0, 1.8634, 0.5757, 1.0000),
        (50.0, 2.5, 0.0, 50.0, 3.2592, 0.3350, 1.0000),
        (60.2574, -34.0099, 36.2677, 60.4626, -34.1751, 39.4387, 1.2644),
        (63.0109, -31.0961, -5.8663, 62.8187, -29.7946, -4.0864, 1.2630),
        (61.2901, 3.7196, -5.3901, 61.4292, 2.2480, -4.9620, 1.8731),
        (35.0831, -44.1164, 3.7933, 35.0232, -40.0716, 1.5901, 1.8645),
        (22.7233, 20.0904, -46.6940, 23.0331, 14.9730, -42.5619, 2.0373),
        (36.4612, 47.8580, 18.3852, 36.2715, 50.5065, 21.2231, 1.4146),
        (90.8027, -2.0831, 1.4410, 91.1528, -1.6435, 0.0447, 1.4441),
        (90.9257, -0.5406, -0.9208, 88.6381, -0.8985, -0.7239, 1.5381),
        (6.7747, -0.2908, -2.4247, 5.8714, -0.0985, -2.2286, 0.6377),
        (2.0776, 0.0795, -1.1350, 0.9033, -0.0636, -0.5514, 0.9082),
    ]
)
colors = st.tuples(*[st.integers(0, 255)] * 3)


def test_distances_are_the_published_ones() -> None:
    found = measure_distance(PAIRS[:, :3], PAIRS[:, 3:6])
    np.testing.assert_allclose(found, PAIRS[:, 6], atol=5e-5)
    np.testing.assert_allclose(measure_distance(PAIRS[:, 3:6], PAIRS[:, :3]), PAIRS[:, 6], atol=5e-5)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (100, 0, 0)),
        ((255, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 0, 255), (32.2970, 79.1875, -107.8602)),
        ((119, 119, 119), (50.0344, 0, 0)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    np.testing.assert_allclose(to_lab(rgb), lab, atol=5e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(colors, min_size=1, max_size=40), st.lists(colors, min_size=1, max_size=40), st.floats(0.1, 20))
def test_adherence_is_the_brute_force_share(
    pixels: list[tuple[int, int, int]], palette: list[tuple[int, int, int]], tolerance: float
) -> None:
    image = np.array([pixels], dtype=np.uint8)
    distances = measure_distance(to_lab(image[0])[:, None], to_lab(np.array(palette))[None])
    expected = (distances.min(axis=1) <= tolerance).mean()
    assert measure_adherence(image, palette, tolerance) == pytest.approx(expected)


@given(colors, colors)
def test_distance_is_symmetric_and_nought_for_the_same(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    there, back = measure_distance(to_lab(first), to_lab(second)), measure_distance(to_lab(second), to_lab(first))
    assert there == pytest.approx(back, abs=1e-9)
    assert measure_distance(to_lab(first), to_lab(first)) == 0


def test_palettes_count_visible_pixels() -> None:
    sprite = np.zeros((2, 3, 4), dtype=np.uint8)
    sprite[0] = (10, 20, 30, 255)
    sprite[1, 0] = (200, 0, 0, 1)
    sprite[1, 1:] = (99, 99, 99, 0)
    picture = Image.fromarray(sprite)
    assert palette_of([picture]) == ((10, 20, 30), (200, 0, 0))
    assert palette_of([picture, np.full((1, 4, 3), 7, np.uint8)], limit=2) == ((7, 7, 7), (10, 20, 30))
    assert palette_of([]) == ()
    assert measure_adherence(picture, [(10, 20, 30)]) == 0.75
    assert measure_adherence(picture, [(11, 20, 30)]) == 0.75
    assert measure_adherence(picture, []) == 0.0
    assert math.isnan(measure_adherence(np.zeros((2, 2, 4), np.uint8), [(0, 0, 0)]))
    with pytest.raises(ValueError, match="height, width"):
        measure_adherence(np.zeros((4, 4), np.uint8), [(0, 0, 0)])


def test_colours_are_laid_out_by_hue_and_lightness() -> None:
    mixed = [(0, 0, 255), (255, 255, 255), (90, 0, 0), (0, 0, 0), (255, 0, 0), (0, 0, 90)]
    assert arrange_colors(mixed) == ((0, 0, 0), (255, 255, 255), (90, 0, 0), (255, 0, 0), (0, 0, 90), (0, 0, 255))
    assert arrange_colors([]) == ()
