"""Captions that come with a set: CatSith's captions/ and metadata.json, kohya's folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from made_files import random_pixels, save

from pixelkit.errors import DataError
from pixelkit.sources import Reading, Sprite, survey
from pixelkit.sources.catsith import (
    CaptionStyle,
    Drawing,
    Entity,
    compose_caption,
    find_directions,
)
from pixelkit.words.color_names import name_color
from pixelkit.words.directions import DIRECTIONS

if TYPE_CHECKING:
    from pathlib import Path

CAT = {
    "id": "cat_001", "category": "warrior", "kind": "cat", "directions": 8, "base_color": [255, 140, 0],
    "files": [f"cat_{number}.png" for number in range(8)],
}  # fmt: skip
CHEST = {
    "id": "chest",
    "category": "item",
    "kind": "chest",
    "directions": 1,
    "base_color": [120, 70, 20],
    "files": ["chest.png"],
}


def metadata(*entities: Any, **more: Any) -> dict[str, Any]:
    style = {"style_prefix": "pixel art", "style_suffix": "game sprite"}
    return {"version": "1.0", "style": "16-bit retro style", "entities": list(entities), "captions": style, **more}


def make_set(folder: Path, content: dict[str, Any]) -> Path:
    for number, entity in enumerate(content["entities"]):
        for place, name in enumerate(entity["files"]):
            save(folder / "images" / name, random_pixels(8, 8, 10 * number + place))
    (folder / "metadata.json").write_text(json.dumps(content))
    return folder


def captions(source: Path, **reading: Any) -> dict[str, str | None]:
    return {
        one.name.rsplit("/", 1)[-1]: one.caption
        for one in survey(source, what="path", reading=Reading(**reading)).sprites
    }


@pytest.mark.parametrize("given", ["", "images"])
def test_a_set(tmp_path: Path, given: str) -> None:
    make_set(tmp_path, metadata(CAT, CHEST))
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "cat_3.txt").write_text("Pixel art, a ginger cat that looks away")
    found = captions(tmp_path / given)
    assert found["cat_1"] == "pixel art, orange cat warrior, facing up-right, 16-bit retro style, game sprite"
    assert found["cat_3"] == "pixel art, a ginger cat that looks away, game sprite"
    assert found["chest"] == "pixel art, brown chest item, 16-bit retro style, game sprite"


def test_captions_in_folders_of_their_own(tmp_path: Path) -> None:
    save(tmp_path / "images" / "deep" / "a.png", random_pixels(8, 8))
    save(tmp_path / "images" / "b.png", random_pixels(8, 8, 1))
    for name, text in (("captions/deep/a.txt", "a sword"), ("captions/b.txt", "unused"), ("images/b.txt", "beside it")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert captions(tmp_path) == {"a": "a sword", "b": "beside it"}


def test_every_direction_clockwise_from_up() -> None:
    entity = Entity.model_validate(CAT)
    texts = [compose_caption(Drawing(entity=entity, direction=number)) for number in range(8)]
    assert texts == [f"orange cat warrior, facing {word}" for word in DIRECTIONS]
    assert DIRECTIONS == ("up", "up-right", "right", "down-right", "down", "down-left", "left", "up-left")


@pytest.mark.parametrize(
    ("files", "directions"),
    [
        ([f"a_{number}.png" for number in (7, 6, 5, 4, 3, 2, 1, 0)], [7, 6, 5, 4, 3, 2, 1, 0]),
        ([f"cat_{word}.png" for word in ("left", "up-left", "down_right", "up")], [6, 7, 3, 0]),
        ([f"{word}.png" for word in "abcdefgh"], list(range(8))),
        ([f"walk{frame}_{number}.png" for frame in "ab" for number in range(8)], [*range(8), *range(8)]),
        (["a.png", "b.png"], []),
        (["cat_1.png", "cat_1.gif"], []),
    ],
)
def test_directions_of_files(files: list[str], directions: list[int]) -> None:
    assert find_directions(files) == directions


def test_a_caption_says_nothing_twice_and_a_background_where_there_is_one() -> None:
    drawing = Drawing(entity=Entity.model_validate({**CHEST, "category": "chest", "base_color": None}), direction=None)
    affixes = CaptionStyle(style_prefix="pixel art, 16-bit style", style_suffix="16-bit style,")
    assert compose_caption(drawing, style="16-bit style", background="grey", affixes=affixes) == (
        "pixel art, 16-bit style, chest, grey background"
    )


@pytest.mark.parametrize(
    ("color", "word"),
    [
        ("ffff00", "yellow"), ("ff8c00", "orange"), ("ff0000", "red"), ("808080", "grey"), ("000000", "black"),
        ("ffffff", "white"), ("8b4513", "brown"), ("00ff00", "green"), ("228b22", "green"), ("00ffff", "cyan"),
        ("0000ff", "blue"), ("4169e1", "blue"), ("800080", "purple"), ("ffc0cb", "pink"), ("ff69b4", "pink"), ("dc143c", "red"),
        ("ffd700", "yellow"), ("101010", "black"), ("c0c0c0", "grey"), ("8b0000", "red"), ("008080", "teal"), ("f5f5f5", "white"),
        ("1a1a40", "blue"), ("d2b48c", "beige"), ("ff00ff", "pink"),
    ],
)  # fmt: skip
def test_colours_have_names(color: str, word: str) -> None:
    """The guide's rule (the strictly largest channel) knew no yellow and no grey, and called orange red."""
    red, green, blue = bytes.fromhex(color)
    assert name_color((red, green, blue)) == word


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"directions": 4}, "entities[0].directions: input should be 8 or 1"),
        ({"base_color": [0, 300, 0]}, "entities[0].base_color: is no colour"),
        ({"base_color": "reddish"}, "entities[0].base_color: input should be a valid tuple"),
        ({"files": "cat.png"}, "entities[0].files: input should be a valid list"),
        ({"files": ["../../cat.png"] * 8}, "entities[0].files: '../../cat.png' lies not below images/"),
        ({"files": ["a.png", "b.png"]}, "entities[0].files: 'cat_001' has 8 directions, and 2 files"),
        ({"kind": None}, "entities[0].kind: input should be a valid string"),
    ],
)
def test_what_is_wrong_in_the_metadata_is_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    make_set(tmp_path, metadata(CAT))
    (tmp_path / "metadata.json").write_text(json.dumps(metadata({**CAT, **change})))
    with pytest.raises(DataError) as caught:
        captions(tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == "metadata.json" and what in problem.what, str(problem)
    assert len(captions(tmp_path, keep_going=True)) == 8


def test_more_that_can_be_wrong(tmp_path: Path) -> None:
    make_set(tmp_path, metadata(CAT))
    file = tmp_path / "metadata.json"
    for content, what in (
        (metadata(CAT, version="2.0"), "version: input should be '1.0'"),
        (metadata(CAT, {**CHEST, "files": ["cat_2.png"]}), "entities[1].files: cat_2.png belongs to 'cat_001' already"),
        ({"entities": [CAT]}, "version: field required"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(DataError) as caught:
            captions(tmp_path)
        assert what in str(caught.value)
    file.write_text('{"entities": [')
    with pytest.raises(DataError, match="1 of 8 images"):
        captions(tmp_path)
    file.write_text('{"title": "some other metadata"}')
    assert captions(tmp_path)["cat_0"] is None


def test_drawings_that_are_not_there_are_remarked_on(tmp_path: Path) -> None:
    make_set(tmp_path, metadata(CAT))
    (tmp_path / "images" / "cat_5.png").unlink()
    (remark,) = survey(tmp_path, what="path").remarks
    assert remark == "metadata.json lists 1 file that is not there (images/cat_5.png first)"


def kohya(source: Path) -> list[tuple[str, int | None, str | None]]:
    def told(one: Sprite) -> tuple[str, int | None, str | None]:
        return one.name, one.repeats, one.caption

    return [told(one) for one in survey(source, what="path").sprites]


def test_kohyas_folders(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("10_hero cat/a.png", "10_hero cat/b.png", "2_orc/a.png", "0_none/a.png", "2023_art/a.png", "c.png")
    ):
        save(tmp_path / name, random_pixels(8, 8, number))
    (tmp_path / "10_hero cat" / "b.txt").write_text("a cat that sits")
    assert kohya(tmp_path) == [
        ("0_none/a", None, None), ("10_hero cat/a", 10, "hero cat"), ("10_hero cat/b", 10, "a cat that sits"),
        ("2023_art/a", None, None), ("2_orc/a", 2, "orc"), ("c", None, None),
    ]  # fmt: skip
    assert kohya(tmp_path / "10_hero cat")[0] == ("a", 10, "hero cat")
