"""Duplicates: what counts as the same, what does not, and that looking them up does not glue or grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pixelkit.dataset.inspect.duplicates import NEAR, compare, count_drawings, find_groups
from pixelkit.dataset.inspect.features import measure_features

Pixels = NDArray[np.uint8]


def paint(seed: int, side: int = 32) -> Pixels:
    """A subject of its own on transparency: blobs of a few colours, 4 pixels of margin."""
    chance = np.random.default_rng(seed)
    colors = chance.integers(0, 256, (5, 3), dtype=np.uint8)
    cells = chance.integers(0, 6, (side // 4 - 2, side // 4 - 2))
    cells[0, :] = cells[-1, :] = cells[:, 0] = cells[:, -1] = 1  # one box for all
    indices = np.pad(cells.repeat(4, axis=0).repeat(4, axis=1), 4)
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[indices > 0, :3] = colors[indices[indices > 0] - 1]
    pixels[indices > 0, 3] = 255
    return pixels


def kinds_of(*pictures: Pixels) -> list[tuple[str, tuple[int, ...]]]:
    return [(group.kind, group.members) for group in find_groups([measure_features(one) for one in pictures])]


def touch(pixels: Pixels, cells: int) -> Pixels:
    """So many of the 36 visible blocks of 4 x 4 made to stand out."""
    touched = pixels.copy()
    for cell in range(cells):
        top, left = 4 + cell // 6 * 4, 4 + cell % 6 * 4
        touched[top : top + 4, left : left + 4, :3] = 255 - touched[top : top + 4, left : left + 4, :3] // 2 * 2
        touched[top : top + 4, left : left + 4, 3] = 255
    return touched


def test_each_kind_is_called_by_its_name() -> None:
    a = paint(1)
    assert kinds_of(a, paint(2), a.copy()) == [("identical", (0, 2))]
    assert kinds_of(a, a[:, ::-1]) == [("mirrored", (0, 1))]
    assert kinds_of(a, a[..., [2, 0, 1, 3]]) == [("recoloured", (0, 1))]
    assert kinds_of(a, a[:, ::-1][..., [1, 2, 0, 3]]) == [("recoloured", (0, 1))]
    assert kinds_of(a, touch(a, 2)) == [("near", (0, 1))]
    assert kinds_of(a, touch(a, 12)) == []
    assert kinds_of(a, np.roll(a, 3, axis=0)) == [("near", (0, 1))]


def test_upside_down_and_turned_are_no_copies() -> None:
    a = paint(1)
    assert not [kind for kind, _ in kinds_of(a, a[::-1], a.transpose(1, 0, 2)) if kind != "near"]


def test_hidden_colour_changes_nothing() -> None:
    a = paint(3)
    hidden = a.copy()
    hidden[a[..., 3] == 0, :3] = [255, 0, 255]
    assert kinds_of(a, hidden) == [("identical", (0, 1))]


def test_the_same_pixels_in_another_frame_are_not_identical() -> None:
    a = paint(3)
    assert kinds_of(a, a[:, 4:-4]) == [("near", (0, 1))]
    assert kinds_of(np.full((4, 9, 4), 255, np.uint8), np.full((9, 4, 4), 255, np.uint8)) == []


def test_one_sprite_of_each_group_stands_for_it_in_the_next_kind() -> None:
    a = paint(4)
    red = a[..., [2, 0, 1, 3]]
    pictures = (a, a.copy(), a[:, ::-1], red, red.copy())
    groups = find_groups([measure_features(one) for one in pictures])
    assert [(g.kind, g.members) for g in groups] == [
        ("identical", (0, 1)), ("identical", (3, 4)), ("mirrored", (0, 2)), ("recoloured", (0, 3)),
    ]  # fmt: skip
    assert count_drawings(5, groups) == 1


def test_chains_do_not_glue() -> None:
    a = paint(5)
    chain = [touch(a, cells) for cells in range(0, 30, 3)]
    groups = find_groups([measure_features(one) for one in chain])
    assert groups
    for group in groups:
        leader, *others = (measure_features(chain[place]) for place in group.members)
        thumbs = [np.frombuffer(one.thumb, np.uint8).reshape(1, 16, 16, 4) for one in (leader, *others)]
        assert max(float(compare(thumbs[0], one)[0]) for one in thumbs[1:]) == pytest.approx(group.difference)
        assert group.difference <= NEAR
    assert len(groups) > 1


def test_dark_floors_of_one_colour_are_told_apart_by_their_pattern() -> None:
    chance = np.random.default_rng(6)
    floors = []
    for _ in range(2):
        light = chance.integers(10, 30, (8, 8)).repeat(4, axis=0).repeat(4, axis=1)
        floors.append(np.dstack([light, light, light, np.full_like(light, 255)]).astype(np.uint8))
    assert kinds_of(*floors) == []


def test_nothing_visible_only_counts_as_identical() -> None:
    nothing = np.zeros((16, 16, 4), np.uint8)
    assert kinds_of(nothing, nothing.copy(), np.zeros((32, 32, 4), np.uint8)) == [("identical", (0, 1))]


def test_all_pairs_that_are_near_are_found_among_many() -> None:
    pictures = [paint(seed) for seed in range(300)]
    pictures += [touch(one, 1) for one in pictures[:100]]
    groups = find_groups([measure_features(one) for one in pictures])
    pairs = {group.members for group in groups if group.kind == "near"}
    assert pairs == {(place, 300 + place) for place in range(100)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_groups_never_share_a_member_within_a_kind_and_count_right(seeds: list[int]) -> None:
    groups = find_groups([measure_features(paint(seed, side=16)) for seed in seeds])
    for kind in ("identical", "mirrored", "recoloured", "near"):
        members = [place for group in groups if group.kind == kind for place in group.members]
        assert len(members) == len(set(members))
    exact = {group.members for group in groups if group.kind == "identical"}
    assert exact == {
        tuple(place for place, seed in enumerate(seeds) if seed == each) for each in set(seeds) if seeds.count(each) > 1
    }
