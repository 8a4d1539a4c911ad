"""What augmentation promises: no new colour, no cut pixel, no caption that the picture contradicts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pixelkit.dataset.augment import Augmentation, may_mirror, mirror, rewrite_colors, shift, shift_hue, variants
from pixelkit.dataset.main_colors import name_colors
from pixelkit.words.directions import DIRECTIONS, find_direction, mirror_direction, mirror_words
from pixelkit.words.oklab import to_oklch

RED = ((72, 16, 24), (128, 28, 36), (184, 40, 48), (224, 80, 72))
sprites = arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(4)))
DIRECTIONAL = (
    "left",
    "right",
    "Up-Left",
    "UP-RIGHT",
    "north-west",
    "southeast",
    "NE",
    "sw",
    "dir 3",
    "direction_6",
    "east",
)
PLAIN = ("a", "bright", "upright", "knight", "12", "copyright", "(", ",", "facing", "Wild West", "with", "dir 9", "new")
captions = st.lists(st.sampled_from(DIRECTIONAL + PLAIN), max_size=8).map(" ".join)


def draw(*rows: str) -> np.ndarray:
    """A sprite of a red ramp (0 to 3), a line (#), grey (g) and nothing (.)."""
    legend = {".": (0, 0, 0, 0), "#": (16, 12, 20, 255), "g": (128, 128, 128, 255)}
    legend |= {str(shade): (*color, 255) for shade, color in enumerate(RED)}
    return np.array([[legend[sign] for sign in row] for row in rows], dtype=np.uint8)


APPLE = draw("........", "..####..", ".#2233#.", ".#1223#.", ".#1122#.", ".#0112#.", "..####..", "........")


# Pixels


@given(sprites)
def test_mirrored_twice_is_the_sprite(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(mirror(mirror(pixels)), pixels)


@given(sprites, st.integers(-2, 2))
def test_whole_turns_change_nothing(pixels: np.ndarray, turns: int) -> None:
    np.testing.assert_array_equal(shift_hue(pixels, 360 * turns), pixels)


@given(sprites, st.floats(-400, 400))
def test_a_turn_adds_no_color_and_touches_neither_alpha_nor_what_is_hidden(pixels: np.ndarray, degrees: float) -> None:
    turned = shift_hue(pixels, degrees)
    seen = pixels[..., 3] > 0
    np.testing.assert_array_equal(turned[..., 3], pixels[..., 3])
    np.testing.assert_array_equal(turned[~seen], pixels[~seen])
    pairs = np.unique(np.concatenate([pixels[seen][:, :3], turned[seen][:, :3]], axis=1), axis=0)
    assert len(pairs) == len(np.unique(pixels[seen][:, :3], axis=0))


@given(st.integers(0, 255), st.floats(0, 360))
def test_greys_stay(level: int, degrees: float) -> None:
    grey = np.array([[[level, level, level, 255]]], dtype=np.uint8)
    np.testing.assert_array_equal(shift_hue(grey, degrees), grey)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2, max_size=12), st.floats(0, 360))
def test_what_is_clearly_darker_stays_darker(ramp: list[tuple[int, int, int]], degrees: float) -> None:
    pixels = np.array([[(*color, 255) for color in ramp]], dtype=np.uint8)
    before = to_oklch(pixels[0, :, :3])[:, 0]
    after = to_oklch(shift_hue(pixels, degrees)[0, :, :3])[:, 0]
    for first, second in itertools.permutations(range(len(ramp)), 2):
        if before[first] < before[second] - 0.025:
            assert after[first] < after[second]


def test_a_turn_is_one_that_is_seen() -> None:
    turned = shift_hue(APPLE, 120)
    assert name_colors(APPLE) == ("red",)
    assert name_colors(turned) == ("green",)
    line = (APPLE[..., :3] == (16, 12, 20)).all(axis=-1)
    assert line.any()
    np.testing.assert_array_equal(turned[line], APPLE[line])
    assert len(np.unique(turned.reshape(-1, 4), axis=0)) == len(np.unique(APPLE.reshape(-1, 4), axis=0))


def test_a_move_keeps_every_pixel_and_is_refused_where_it_would_cut() -> None:
    moved = shift(APPLE, 1, -1)
    np.testing.assert_array_equal(moved[:-1, 1:], APPLE[1:, :-1])
    np.testing.assert_array_equal(shift(moved, -1, 1), APPLE)
    with pytest.raises(ValueError, match="would cut"):
        shift(APPLE, 2, 0)


# Words


@given(captions)
def test_words_mirrored_twice_are_the_caption(caption: str) -> None:
    assert mirror_words(mirror_words(caption)) == caption


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a knight facing Left, sword in right hand", "a knight facing Right, sword in left hand"),
        ("RIGHT-handed, bright, upright", "LEFT-handed, bright, upright"),
        ("walk_left_02", "walk_right_02"),
        ("facing north-west, NW, southeast", "facing north-east, NE, southwest"),
        ("upleft and up left", "up-right and up right"),
        ("direction 3, dir7, dir_2.", "direction 5, dir1, dir_6."),
        ("direction 0 of 8, dir 12, 3 coins", "direction 0 of 8, dir 12, 3 coins"),
        ("a sheriff of the Wild West", "a sheriff of the Wild West"),
        ("leftover bread", "leftover bread"),
    ],
)
def test_words_in_the_mirror(caption: str, mirrored: str) -> None:
    assert mirror_words(caption) == mirrored


@pytest.mark.parametrize(
    ("text", "index"),
    [
        *((f"a cat, facing {word}, orange", index) for index, word in enumerate(DIRECTIONS)),
        *((f"hero_{word.replace('-', '_')}_01", index) for index, word in enumerate(DIRECTIONS)),
        *((f"orc_dir{index}", index) for index in range(8)),
        *(zip(("north", "north-east", "east", "SE", "south", "south west", "westward", "nw"), range(8), strict=True)),
        ("upleft", 7),
        ("right-facing, green mohawk", 2),
        ("walking to the left", 6),
        ("an orc, left, green", 6),
        ("mon/left/orc.png", 6),
        ("facing the viewer", 4),
        ("a thief from behind", 0),
        ("facing left, a sword in the right hand", 6),
        ("up-left, looking down", 7),
        ("dir 3.", 3),
        ("a sword in the left hand", None),
        ("standing upright", None),
        ("thumbs up", None),
        ("a bright knight", None),
        ("facing left, facing right", None),
        ("dir 8", None),
        ("dir 12", None),
        ("", None),
    ],
)
def test_directions_are_found(text: str, index: int | None) -> None:
    assert find_direction(text) == index


@pytest.mark.parametrize("index", range(8))
def test_a_mirrored_direction_is_the_one_that_the_words_then_say(index: int) -> None:
    assert mirror_direction(mirror_direction(index)) == index
    for caption in (f"facing {DIRECTIONS[index]}", f"walk_dir{index}", f"hero_{DIRECTIONS[index]}_1"):
        assert find_direction(mirror_words(caption)) == mirror_direction(index)


def test_a_ninth_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="0 to 7"):
        mirror_direction(8)


@pytest.mark.parametrize(
    ("caption", "before", "after", "rewritten"),
    [
        ("a red dragon", ("red",), ("green",), "a green dragon"),
        ("an orange cat, Orange", ("orange",), ("blue",), "a blue cat, Blue"),
        ("A red-haired elf in a RED coat", ("red",), ("orange",), "An orange-haired elf in an ORANGE coat"),
        ("red and green, redwood, bored", ("green", "red"), ("blue", "green"), "green and blue, redwood, bored"),
        ("a gray cat", ("grey",), ("grey",), "a gray cat"),
        ("a dark red potion", ("red",), ("purple",), "a dark purple potion"),
        ("a knight", (), (), "a knight"),
        ("a red dragon", ("blue",), ("green",), None),
        ("a reddish dragon", ("red",), ("green",), None),
        ("a bluish dragon", ("blue",), ("green",), None),
        ("a gold coin", ("yellow",), ("green",), None),
        ("a crimson and red robe", ("red",), ("green",), None),
        ("an orange", ("orange",), ("blue",), None),
        ("background #ff0000, red", ("red",), ("green",), None),
    ],
)
def test_color_words(caption: str, before: tuple[str, ...], after: tuple[str, ...], rewritten: str | None) -> None:
    assert rewrite_colors(caption, before, after) == rewritten


# Variants


def tags(caption: str, wanted: Augmentation, pixels: np.ndarray = APPLE, **flags: bool) -> dict[str, str]:
    return {variant.tag: variant.caption for variant in variants(pixels, caption, wanted, **flags)}


def test_each_variant_says_what_it_shows() -> None:
    made = tags("a red apple, facing left", Augmentation(mirror=True, hues=(120, 0, -120)))
    assert made == {
        "mirror": "a red apple, facing right",
        "hue+120": "a green apple, facing left",
        "hue-120": "a blue apple, facing left",
    }


def test_a_caption_without_a_color_gets_the_new_one() -> None:
    assert tags("an apple", Augmentation(hues=(120,))) == {"hue+120": "an apple, green"}


@pytest.mark.parametrize("caption", ["a golden apple", "a blue apple", "a reddish apple"])
def test_a_color_that_cannot_be_told_makes_no_variant(caption: str) -> None:
    assert tags(caption, Augmentation(hues=(120,))) == {}


def test_a_grey_sprite_has_no_other_hue() -> None:
    assert tags("a rock", Augmentation(hues=(120,)), draw("......", ".####.", ".#gg#.", ".#gg#.", ".####.")) == {}


@pytest.mark.parametrize(
    "caption",
    [
        "the letter R",
        "glowing runes",
        "a wooden sign",
        'a note that says "go"',
        "pupils (8,12), (13,12)",
        "a Round Shield",
    ],
)
def test_what_the_mirror_would_make_false_is_not_mirrored(caption: str) -> None:
    assert not may_mirror(APPLE, caption, ("round shield",))
    assert tags(caption, Augmentation(mirror=True, asymmetric=("round shield",))) == {}


def test_words_that_only_hold_such_a_word_are_mirrored() -> None:
    assert may_mirror(APPLE, "a sword with a texture, the wizard's staff", ("sh",))


def test_a_sprite_may_be_marked_and_symmetric_ones_are_nothing_new() -> None:
    wanted = Augmentation(mirror=True)
    assert tags("an apple", wanted, asymmetric=True) == {}
    assert tags("a ball", wanted, draw(".....", "..22.", ".2332", "..22.")) == {}, "symmetric about its own middle"


def test_moves_are_new_places_and_the_same_each_time() -> None:
    wanted = Augmentation(moves=20, seed=3)
    made = list(variants(APPLE, "an apple", wanted))
    assert len({variant.tag for variant in made}) == 8, "one pixel of room on each side"
    assert [variant.tag for variant in made] == [variant.tag for variant in variants(APPLE, "an apple", wanted)]
    for variant in made:
        assert variant.caption == "an apple"
        assert (variant.pixels[..., 3] > 0).sum() == (APPLE[..., 3] > 0).sum()
    few = [tags("an apple", Augmentation(moves=2, seed=seed)) for seed in range(6)]
    assert all(len(found) == 2 for found in few) and len({tuple(found) for found in few}) > 1


def test_an_opaque_picture_does_not_move() -> None:
    assert tags("a wall", Augmentation(moves=3), draw("01", "23")) == {}


def test_an_empty_picture_has_no_variants() -> None:
    assert tags("nothing", Augmentation(mirror=True, hues=(90,), moves=0), draw("..", "..")) == {}
