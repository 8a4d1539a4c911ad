"""Portraits drawn from known features, and those features measured again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelkit.dataset.captions.coordinates import caption_portrait, find_missing, is_blended, is_coordinates
from pixelkit.dataset.captions.entries import find_entries, open_sprite
from pixelkit.dataset.captions.portrait import Area, Portrait
from pixelkit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BACK, SKIN, HAIR, IRIS, LIPS, CLOTH = (
    (96, 114, 255),
    (236, 188, 160),
    (110, 66, 30),
    (60, 130, 90),
    (190, 80, 90),
    (200, 40, 40),
)
BLACK = (0, 0, 0)
LINE = "solid blue #6072ff background, brown hair y=3-17, black pupils at (8,12) and (13,12), "
LINE += "green irises at (9,12) and (14,12), black nose at (11,13), red lips at x=10-13 y=15-16, jaw at y=19, "
LINE += "red collar at y=20-22, right-facing, no anti-aliasing, "
LINE += "inside 22x22"


def paint(
    *,
    back: tuple[int, ...] = BACK,
    skin: tuple[int, ...] = SKIN,
    hair: tuple[int, ...] = HAIR,
    eye: int = 8,
    eye_row: int = 12,
    nose: tuple[int, int] = (11, 13),
    lips: tuple[int, int] = (10, 15),
    jaw: int = 19,
    glasses: bool = False,
) -> NDArray[np.uint8]:
    """A head of the measure of Bespoke Punks: hair from row 3 to 17, contour, face, two eyes, collar in rows 20 to 22."""
    pixels = np.zeros((24, 24, 4), dtype=np.uint8)
    pixels[:] = (*back, 255) if len(back) == 3 else back

    def fill(columns: tuple[int, int], rows: tuple[int, int], color: tuple[int, ...]) -> None:
        pixels[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = (*color, 255)

    fill((5, 18), (3, 7), hair)
    fill((4, 5), (8, 17), hair)
    fill((18, 19), (8, 17), hair)
    fill((6, 17), (8, jaw), skin)
    fill((8, 15), (jaw, jaw), BLACK)
    fill((6, 16), (20, 22), CLOTH)
    for x in (eye, eye + 5):
        fill((x, x), (eye_row, eye_row), BLACK)
        fill((x + 1, x + 1), (eye_row, eye_row), IRIS)
    fill((nose[0], nose[0]), (nose[1], nose[1]), BLACK)
    fill((lips[0], lips[0] + 3), (lips[1], lips[1] + 1), LIPS)
    if glasses:
        fill((7, 16), (11, 13), (40, 40, 60))
    return pixels


def save(pixels: NDArray[np.uint8], folder: Path, scale: int = 1) -> object:
    Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1)).save(folder / "p.png")
    return open_sprite(find_entries(folder)[0])


def test_the_grammar(tmp_path: Path) -> None:
    caption = caption_portrait(save(paint(), tmp_path))
    assert caption == LINE
    assert is_coordinates(caption)


def test_an_enlarged_portrait_is_measured_in_its_own_pixels(tmp_path: Path) -> None:
    assert caption_portrait(save(paint(), tmp_path, scale=32)) == LINE


@given(
    eye=st.integers(8, 9),
    eye_row=st.integers(11, 12),
    nose=st.tuples(st.integers(11, 12), st.integers(0, 1)),
    lips=st.tuples(st.integers(10, 11), st.integers(2, 3)),
    jaw=st.integers(18, 19),
    skin=st.sampled_from([SKIN, (141, 85, 36), (255, 219, 172), (160, 160, 165)]),
)
def test_features_are_found_where_they_are_painted(
    eye: int, eye_row: int, nose: tuple[int, int], lips: tuple[int, int], jaw: int, skin: tuple[int, ...]
) -> None:
    at = (nose[0], eye_row + 1 + nose[1])
    mouth = (lips[0], min(at[1] + lips[1], jaw - 3))
    portrait = Portrait(paint(eye=eye, eye_row=eye_row, nose=at, lips=mouth, jaw=jaw, skin=skin))
    assert portrait.eyes is not None
    assert portrait.eyes.pupils == ((eye, eye_row), (eye + 5, eye_row))
    assert portrait.eyes.irises == ((eye + 1, eye_row), (eye + 6, eye_row))
    assert portrait.nose == at
    assert portrait.lips == Area(x=(mouth[0], mouth[0] + 3), y=(mouth[1], mouth[1] + 1))
    assert portrait.jaw == jaw
    assert portrait.collar is not None and portrait.collar.y == (20, 22)


def test_a_mirrored_portrait_faces_the_other_way() -> None:
    portrait = Portrait(np.ascontiguousarray(paint()[:, ::-1]))
    assert portrait.eyes is not None and portrait.eyes.pupils == ((10, 12), (15, 12))
    assert portrait.facing == "left"


def test_glasses_cover_eyes_and_nose(tmp_path: Path) -> None:
    caption = caption_portrait(save(paint(glasses=True), tmp_path))
    assert "pupils" not in caption and "nose" not in caption
    assert caption.endswith("glasses at x=7-16 y=11-13")


def test_a_transparent_background_is_said(tmp_path: Path) -> None:
    assert caption_portrait(save(paint(back=(0, 0, 0, 0)), tmp_path)).startswith("transparent background")


def without(*features: str) -> Portrait:
    pixels = paint()
    skin = (*SKIN, 255)
    if "hair" in features:
        pixels[3:8], pixels[8:18, 4:6], pixels[8:18, 18:20] = (*BACK, 255), (*BACK, 255), (*BACK, 255)
    if "eyes" in features:
        pixels[12, 6:18] = skin
    if "nose" in features:
        pixels[13, 11] = skin
    if "lips" in features:
        pixels[15:17, 6:18] = skin
    if "collar" in features:
        pixels[20:] = (*BACK, 255)
    return Portrait(pixels)


@pytest.mark.parametrize(
    ("feature", "missing"),
    [
        ("hair", ["hair"]),
        ("eyes", ["hair", "pupils", "irises", "nose", "lips", "jaw", "collar"]),
        ("nose", ["nose"]),
        ("lips", ["lips", "jaw", "collar"]),
        ("collar", ["collar"]),
    ],
)
def test_a_feature_that_is_not_there_is_named(feature: str, missing: list[str]) -> None:
    """What is looked for below another feature is not found without it."""
    assert find_missing(without(feature)) == missing


def test_a_refusal_names_the_features(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found in the pixels: nose"):
        caption_portrait(save(without("nose").pixels, tmp_path))


@pytest.mark.parametrize(("width", "height"), [(32, 32), (24, 32), (48, 48), (8, 8)])
def test_other_sizes_are_refused(tmp_path: Path, width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 4), dtype=np.uint8)
    with pytest.raises(DataError, match=f"it is {width}x{height}"):
        caption_portrait(save(noise, tmp_path))


def test_noise_and_a_flat_picture_are_no_portraits() -> None:
    noise = np.random.default_rng(3).integers(0, 255, (24, 24, 4), dtype=np.uint8)
    assert find_missing(Portrait(noise))
    assert find_missing(Portrait(np.full((24, 24, 4), 255, dtype=np.uint8)))
    assert find_missing(Portrait(np.zeros((24, 24, 4), dtype=np.uint8)))


def test_a_softened_contour_is_anti_aliased() -> None:
    crisp = paint()
    assert not is_blended(Portrait(crisp))
    large = (
        Image.fromarray(crisp)
        .resize((96, 96), Image.Resampling.NEAREST)
        .rotate(8, Image.Resampling.NEAREST, fillcolor=(*BACK, 255))
    )
    assert is_blended(Portrait(np.asarray(large.resize((24, 24), Image.Resampling.BOX))))
    half = crisp.copy()
    half[3, 5, 3] = 128
    assert is_blended(Portrait(half))
