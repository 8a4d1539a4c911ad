"""Background, subject and outline of drawings whose answer is written beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkit.dataset.masks import BACKGROUND, MASK_COLORS, OUTLINE, SUBJECT, mask_image, segment

COLORS = {
    ".": (0, 0, 0, 0),
    "#": (16, 12, 20, 255),
    "r": (208, 44, 48, 255),
    "w": (240, 240, 240, 255),
    "v": (236, 240, 238, 255),
    "~": (255, 255, 255, 20),
}


def draw(*rows: str) -> np.ndarray:
    return np.array([[COLORS[sign] for sign in row] for row in rows], dtype=np.uint8)


def read(segments: np.ndarray) -> tuple[str, ...]:
    return tuple("".join("-so"[value] for value in row) for row in segments)


def test_a_dark_line_is_the_outline() -> None:
    sprite = draw(".####.", "#rrrr#", "#rrrr#", "#rrrr#", ".####.")
    assert read(segment(sprite)) == ("-oooo-", "osssso", "osssso", "osssso", "-oooo-")


def test_a_line_two_pixels_thick_and_the_corners_inside_belong_to_it() -> None:
    clear, thick, body = "." * 10, ".########.", ".##rrrr##."
    sprite = draw(clear, thick, thick, *[body] * 5, thick, thick, clear)
    assert read(segment(sprite))[2:8] == ("-oooooooo-", *["-oossssoo-"] * 5)
    corner = segment(draw("..######", ".##rrrrr", "##rrrrrr", "#rrrrrrr", "#rrrrrrr"))
    assert read(corner) == ("--oooooo", "-oosssss", "oossssss", "osssssss", "osssssss")


def test_dark_details_inside_are_subject() -> None:
    rows = (".#######.", "#rrrrrrr#", "#rrrrrrr#", "#rr#r#rr#", "#rrrrrrr#", "#rrrrrrr#", ".#######.")
    assert read(segment(draw(*rows)))[3] == "ossssssso"


def test_without_a_dark_line_the_contour_is_the_outline() -> None:
    assert read(segment(draw("......", ".rrrr.", ".rrrr.", ".rrrr.", "......"))) == (
        "------",
        "-oooo-",
        "-osso-",
        "-oooo-",
        "------",
    )


def test_a_string_without_a_line_is_subject() -> None:
    assert read(segment(draw(".....", ".rrr.", "....."))) == ("-----", "-sss-", "-----")


def test_a_black_subject_keeps_its_body() -> None:
    assert read(segment(draw("......", ".####.", ".####.", ".####.", ".####.", "......")))[2:4] == ("-osso-",) * 2


def test_the_edge_of_the_picture_is_no_background() -> None:
    assert read(segment(draw("rrr.", "rrr.", "rrr."))) == ("sso-", "sso-", "sso-")


def test_holes_are_background_and_so_is_what_is_nearly_clear() -> None:
    sprite = draw("rrrrr", "rrrrr", "rr~rr", "rrrrr", "rrrrr")
    assert read(segment(sprite)) == ("sssss", "ssoss", "so-os", "ssoss", "sssss")


def test_a_flat_backdrop_is_background_where_it_reaches_the_border() -> None:
    sprite = draw("wwwwwwwww", "wwvrrrrww", "wwrrrrrww", "wwrrwrrww", "wwrrrrrww", "wvrrrrrww", "wwwwwwwww")
    found = read(segment(sprite))
    assert found[0] == found[6] == "---------"
    assert found[3] == "--ossso--", "the white of the eye is not connected to the backdrop"
    assert found[1] == "---oooo--", "nearly the backdrop is backdrop"


def test_a_bust_on_a_backdrop_may_touch_the_border() -> None:
    sprite = draw("wwwwwwww", "wwwrrwww", "wwwrrwww", "wwrrrrww", "wwrrrrww")
    assert read(segment(sprite))[0] == "--------"
    assert read(segment(sprite))[4] == "--osso--"


def test_a_tile_without_a_backdrop_is_all_subject() -> None:
    tile = np.full((8, 8, 4), 255, dtype=np.uint8)
    tile[..., :3] = np.random.default_rng(1).integers(0, 256, (8, 8, 3))
    assert (segment(tile) == SUBJECT).all()
    assert (segment(draw("rrr", "rrr", "rrr")) == SUBJECT).all(), "one colour everywhere leaves no subject otherwise"


def test_nothing_visible_is_all_background() -> None:
    assert (segment(draw("...", "...")) == BACKGROUND).all()


def test_the_backdrop_is_followed_through_a_maze() -> None:
    rows = (
        "w" * 9,
        "wrrrrrrrw",
        "wrwwwwwrw",
        "wrwrrrwrw",
        "wrwrwrwrw",
        "wrwrwwwrw",
        "wrwrrrrrw",
        "wrwwwwwww",
        "wrrrrrrrw",
        "w" * 9,
    )
    walls = np.array([[sign == "r" for sign in row] for row in rows])
    np.testing.assert_array_equal(segment(draw(*rows)) == BACKGROUND, ~walls)


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from(".#rw"), min_size=6, max_size=6), min_size=1, max_size=8))
def test_transparency_decides_and_the_mirror_image_has_the_mirrored_mask(rows: list[list[str]]) -> None:
    sprite = draw(*["".join(row) for row in [*rows, ["."] * 6]])
    found = segment(sprite)
    np.testing.assert_array_equal(found == BACKGROUND, sprite[..., 3] == 0)
    np.testing.assert_array_equal(segment(sprite[:, ::-1]), found[:, ::-1])


def test_the_mask_file_has_the_segments_as_its_indices() -> None:
    found = np.array([[BACKGROUND, SUBJECT], [OUTLINE, SUBJECT]], dtype=np.uint8)
    image = mask_image(found)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), found)
    assert image.convert("RGB").getpixel((0, 1)) == MASK_COLORS[OUTLINE]


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="height, width, 4"):
        segment(np.zeros((4, 4, 3), dtype=np.uint8))
