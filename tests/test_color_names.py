"""Names of colours as a person says them, for single colours and for sprites; OKLab, on which they rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkit.dataset.main_colors import name_colors
from pixelkit.words.color_names import COLORS, name_color, name_each
from pixelkit.words.oklab import from_oklch, to_oklch

colors = st.tuples(*[st.integers(0, 255)] * 3)


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        # What the guide's "strict maximum of the channels" gets wrong: no colour, red, none at all.
        ((255, 255, 0), "yellow"),
        ((255, 128, 0), "orange"),
        ((255, 165, 0), "orange"),
        ((128, 128, 128), "grey"),
        ((60, 60, 60), "grey"),
        ((200, 200, 200), "grey"),
        ((255, 0, 0), "red"),
        ((120, 0, 0), "red"),
        ((0, 255, 0), "green"),
        ((0, 80, 0), "green"),
        ((128, 128, 0), "green"),
        ((0, 128, 128), "teal"),
        ((0, 255, 255), "cyan"),
        ((0, 0, 255), "blue"),
        ((0, 0, 90), "blue"),
        ((135, 206, 235), "blue"),
        ((128, 0, 128), "purple"),
        ((199, 159, 239), "purple"),
        ((255, 105, 180), "pink"),
        ((255, 192, 203), "pink"),
        ((139, 69, 19), "brown"),
        ((101, 67, 33), "brown"),
        ((255, 215, 0), "yellow"),
        ((212, 175, 55), "yellow"),
        ((236, 200, 170), "beige"),
        ((230, 218, 166), "beige"),
        ((0, 0, 0), "black"),
        ((20, 12, 28), "black"),
        ((255, 255, 255), "white"),
    ],
)
def test_a_color_has_the_name_a_person_gives_it(rgb: tuple[int, int, int], word: str) -> None:
    assert name_color(rgb) == word


def test_every_color_has_a_name() -> None:
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(-1, 3)
    assert set(name_each(cube)) == set(COLORS)


@given(st.integers(0, 255))
def test_a_grey_is_never_a_color(level: int) -> None:
    assert name_color((level, level, level)) in {"black", "grey", "white"}


# Ottosson's post gives these pairs of XYZ and OKLab; as sRGB: white is 1, 0, 0, and red's values are the known ones.
def test_oklab_is_the_published_one() -> None:
    np.testing.assert_allclose(to_oklch((255, 255, 255))[:2], (1, 0), atol=1e-4)
    np.testing.assert_allclose(to_oklch((255, 0, 0)), (0.62796, 0.25768, 29.234), atol=2e-3)
    np.testing.assert_allclose(to_oklch((0, 0, 255)), (0.45201, 0.31321, 264.052), atol=2e-3)


@given(colors)
def test_oklab_comes_back_exactly(rgb: tuple[int, int, int]) -> None:
    assert tuple(from_oklch(to_oklch(rgb))) == rgb


@given(st.floats(0.2, 0.95), st.floats(0, 0.4), st.floats(0, 359.9))
def test_what_srgb_lacks_loses_chroma_only(light: float, chroma: float, hue: float) -> None:
    found = to_oklch(from_oklch((light, chroma, hue)))
    assert found[0] == pytest.approx(light, abs=0.012)
    assert found[1] <= chroma + 0.012


def draw(*rows: str) -> np.ndarray:
    legend = {
        ".": (0, 0, 0, 0),
        "#": (16, 12, 20, 255),
        "r": (208, 44, 48, 255),
        "d": (110, 24, 30, 255),
        "y": (244, 208, 56, 255),
        "b": (150, 100, 30, 255),
        "g": (52, 152, 68, 255),
        "s": (140, 140, 150, 255),
    }
    return np.array([[legend[sign] for sign in row] for row in rows], dtype=np.uint8)


def test_the_outline_does_not_win_over_a_small_body() -> None:
    assert name_colors(draw(".####.", "##rr##", "#rrrr#", "##rr##", ".####.")) == ("red",)


def test_shades_of_a_ramp_are_one_color() -> None:
    assert name_colors(draw("......", ".yybb.", ".ybbb.", ".ybbb.", "......")) == ("yellow",)
    assert name_colors(draw("......", ".rddd.", ".rrdd.", ".rrdd.", "......")) == ("red",)


def test_two_colors_by_area_and_no_third() -> None:
    sprite = draw("........", ".ggggrr.", ".ggggrr.", ".ggggrr.", ".ggggys.", "........")
    assert name_colors(sprite) == ("green", "red")


def test_a_trace_of_a_color_is_not_named() -> None:
    assert name_colors(draw("......", ".gggg.", ".gggr.", ".gggg.", "......")) == ("green",)


def test_colors_under_transparency_do_not_count() -> None:
    sprite = draw("......", ".gggg.", ".gggg.", "......")
    sprite[sprite[..., 3] == 0] = (255, 0, 0, 0)
    assert name_colors(sprite) == ("green",)
    assert name_colors(np.zeros((4, 4, 4), dtype=np.uint8)) == ()


def test_a_backdrop_is_no_color_of_the_sprite() -> None:
    sprite = draw(*["gggggggg"] * 3, "gggrrggg", "gggrrggg", *["gggggggg"] * 3)
    assert name_colors(sprite) == ("red",)


def test_a_black_cat_is_black() -> None:
    assert name_colors(draw("........", "..####..", ".######.", ".######.", ".##y###.", "..####..", "........")) == (
        "black",
    )
