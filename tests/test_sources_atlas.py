"""Maps beside sheets: Aseprite, TexturePacker, Tiled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_files import Pixels, random_pixels, save

from pixelkit.errors import DataError
from pixelkit.sources import Reading, Sprite, survey
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from pathlib import Path


def frame(x: int, y: int, w: int, h: int, **more: Any) -> dict[str, Any]:
    whole = {
        "rotated": False,
        "trimmed": False,
        "spriteSourceSize": {"x": 0, "y": 0, "w": w, "h": h},
        "sourceSize": {"w": w, "h": h},
    }
    return {"frame": {"x": x, "y": y, "w": w, "h": h}, **whole, "duration": 100, **more}


def meta(image: str = "hero.png", *tags: tuple[str, int, int]) -> dict[str, Any]:
    named = [{"name": name, "from": first, "to": last, "direction": "forward"} for name, first, last in tags]
    return {
        "app": "https://www.aseprite.org/",
        "image": image,
        "size": {"w": 32, "h": 16},
        "scale": "1",
        "frameTags": named,
    }


@pytest.fixture
def sheet(tmp_path: Path) -> Pixels:
    pixels = random_pixels(32, 16)
    pixels[..., 3] |= 1
    save(tmp_path / "hero.png", pixels)
    return pixels


def write(folder: Path, content: object, name: str = "hero.json") -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def cut(source: Path, **reading: Any) -> dict[str, Sprite]:
    return {one.name: one for one in survey(source, what="path", reading=Reading(grid=1, **reading)).sprites}


@pytest.mark.parametrize("as_list", [False, True])
def test_aseprite(tmp_path: Path, sheet: Pixels, as_list: bool) -> None:
    entries = {f"hero {number}.aseprite": frame(8 * number, 0, 8, 16) for number in range(4)}
    listed = [{"filename": name, **entry} for name, entry in entries.items()]
    write(tmp_path, {"frames": listed if as_list else entries, "meta": meta("hero.png", ("walk", 1, 2), ("Die", 3, 3))})
    found = cut(tmp_path)
    assert list(found) == ["hero/hero_0", "hero/hero_walk_0", "hero/hero_walk_1", "hero/hero_Die_0"]
    for number, one in enumerate(found.values()):
        assert (one.width, one.height) == (8, 16)
        assert np.array_equal(read_pixels(one), sheet[:, 8 * number : 8 * number + 8])


def test_merged_frames_come_once_and_equal_names_are_told_apart(tmp_path: Path, sheet: Pixels) -> None:
    write(tmp_path, {"frames": [{"filename": "hero", **frame(x, 0, 8, 8)} for x in (0, 0, 8)], "meta": meta()})
    assert list(cut(tmp_path)) == ["hero/hero", "hero/hero#2"]


def test_trimmed_frames_get_their_size_back(tmp_path: Path, sheet: Pixels) -> None:
    trimmed = frame(
        4, 2, 6, 5, trimmed=True, spriteSourceSize={"x": 3, "y": 7, "w": 6, "h": 5}, sourceSize={"w": 16, "h": 16}
    )
    write(tmp_path, {"frames": {"walk/01.png": trimmed}, "meta": meta()})
    (one,) = cut(tmp_path).values()
    assert (one.name, one.width, one.height) == ("hero/walk_01", 16, 16)
    pixels = read_pixels(one)
    assert np.array_equal(pixels[7:12, 3:9], sheet[2:7, 4:10])
    assert not pixels[:7].any() and not pixels[12:].any() and not pixels[:, :3].any() and not pixels[:, 9:].any()


def test_turned_frames_are_turned_back(tmp_path: Path, sheet: Pixels) -> None:
    upright = random_pixels(5, 9, 1)
    sheet[3 : 3 + 5, 7 : 7 + 9] = np.rot90(upright, -1)  # TexturePacker turns clockwise; w and h stay the sprite's
    save(tmp_path / "hero.png", sheet)
    write(tmp_path, {"frames": {"a.png": frame(7, 3, 5, 9, rotated=True)}, "meta": meta()})
    (one,) = cut(tmp_path).values()
    assert (one.width, one.height) == (5, 9)
    assert np.array_equal(read_pixels(one), upright)


def test_several_textures_in_one_map(tmp_path: Path, sheet: Pixels) -> None:
    save(tmp_path / "other.png", sheet)
    textures = [
        {"image": f"{name}.png", "frames": [{"filename": f"{name}_1", **frame(0, 0, 8, 8)}]}
        for name in ("hero", "other")
    ]
    write(tmp_path, {"textures": textures, "meta": {"app": "TexturePacker"}}, "pack.json")
    assert list(cut(tmp_path)) == ["hero/hero_1", "other/other_1"]


def test_the_image_is_found_by_the_name_in_the_map(tmp_path: Path, sheet: Pixels) -> None:
    for named in ("hero.png", "C:\\art\\hero.png", "/elsewhere/hero.png", "../maps/../hero.png"):
        write(tmp_path, {"frames": {"a": frame(0, 0, 8, 8)}, "meta": meta(named)}, "other.json")
        assert list(cut(tmp_path)) == ["hero/a"], named
    (tmp_path / "other.json").unlink()
    write(tmp_path, {"frames": {"a": frame(0, 0, 8, 8)}, "meta": {}})
    assert list(cut(tmp_path)) == ["hero/a"]


def test_a_map_counts_more_than_a_sheet_size(tmp_path: Path, sheet: Pixels) -> None:
    write(tmp_path, {"frames": {"a": frame(0, 0, 8, 8)}, "meta": meta()})
    save(tmp_path / "other.png", sheet)
    assert list(cut(tmp_path, sheet=(16, 16))) == ["hero/a", "other#r1c1", "other#r1c2"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1, 2]",
        '"frames"',
        {"frames": 24},
        {"frames": []},
        {"frames": [{"file_path": "a.png"}], "fps": 24},
        {"a": 1},
    ],
)
def test_what_is_no_map_is_passed_over(tmp_path: Path, sheet: Pixels, content: object) -> None:
    write(tmp_path, content)
    assert list(cut(tmp_path)) == ["hero"]


def only(entry: object, **more: Any) -> dict[str, Any]:
    return {"frames": {"a": entry}, "meta": {**meta(), **more}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (only(frame(28, 0, 8, 8)), "hero.json: a is 8x8 at 28,0, outside of the image, which is 32x16"),
        (only({"frame": {"x": 0, "y": 0, "w": 8}}), "hero.json: frame 'a': frame.h: field required"),
        ({"frames": {"a": 5}, "meta": {"image": "hero.png"}}, "hero.json: frame 'a': input should be a valid dictionary"),
        (only(frame(-1, 0, 8, 8)), "frame.x: input should be greater than or equal to 0"),
        (only(frame(0, 0, 8, 8, trimmed=True, sourceSize=None)), "sourceSize is missing"),
        (only(frame(0, 0, 8, 8, trimmed=True, sourceSize={"w": 4, "h": 4})), "do not fit into its sourceSize of 4x4"),
        (only(frame(0, 0, 8, 8), frameTags=[{"name": "x"}]), "hero.json: meta.frameTags: from: field required"),
        (only(frame(0, 0, 8, 8), frameTags=5), "hero.json: meta.frameTags: is no list"),
        ('{"frames": {"a": {"sourceSize": ', "hero.json: it is no valid JSON"),
    ],
)  # fmt: skip
def test_broken_maps_are_errors_that_name_the_entry(tmp_path: Path, sheet: Pixels, content: object, what: str) -> None:
    write(tmp_path, content)
    save(tmp_path / "good.png", random_pixels(8, 8))
    with pytest.raises(DataError) as caught:
        cut(tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == "hero.png" and what in problem.what, str(problem)
    assert "good" in cut(tmp_path, keep_going=True)


def test_a_map_whose_image_is_not_there(tmp_path: Path, sheet: Pixels) -> None:
    write(tmp_path, {"frames": {"a": frame(0, 0, 8, 8)}, "meta": meta("gone.png")}, "other.json")
    with pytest.raises(DataError) as caught:
        cut(tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == "other.json" and problem.what == "it names the image gone.png, which is not there"
    assert list(cut(tmp_path, keep_going=True)) == ["hero"]


def test_two_maps_of_one_image(tmp_path: Path, sheet: Pixels) -> None:
    for name in ("hero.json", "second.json"):
        write(tmp_path, {"frames": {"a": frame(0, 0, 8, 8)}, "meta": meta()}, name)
    with pytest.raises(DataError, match=r"described by hero\.json and by second\.json"):
        cut(tmp_path)


def tsx(
    attributes: str, image: str = '<image source="hero.png" width="32" height="16"/>', tiles: str = "", head: str = ""
) -> str:
    return f'<?xml version="1.0" encoding="UTF-8"?>{head}<tileset name="hero" {attributes}>{image}{tiles}</tileset>'


def test_tiled(tmp_path: Path, sheet: Pixels) -> None:
    sheet[1:6, 14:19, 3] = 0
    save(tmp_path / "hero.png", sheet)
    properties = '<property name="material" value="mossy_stone"/><property name="walkable" type="bool" value="true"/>'
    properties += '<property name="level" type="int" value="3"/><property name="deep" type="bool" value="false"/>'
    tiles = f'<tile id="0" class="wall"><properties>{properties}</properties></tile><tile id="5" type="door"/>'
    write(
        tmp_path,
        tsx('tilewidth="5" tileheight="5" spacing="1" margin="1" columns="5" tilecount="10"', tiles=tiles),
        "a.tsx",
    )
    (tmp_path / "hero.txt").write_text("a dungeon")
    found = cut(tmp_path)
    # margin 1, spacing 1: tiles begin at 1, 7, 13, 19, 25
    assert "hero#2" in found  # only a part of it is empty
    assert [one.caption for name, one in found.items() if name in {"hero#0", "hero#1", "hero#5"}] == [
        "wall, mossy stone, walkable, a dungeon", "a dungeon", "door, a dungeon"
    ]  # fmt: skip
    for number in (0, 4, 7):
        left, top = 1 + number % 5 * 6, 1 + number // 5 * 6
        assert np.array_equal(read_pixels(found[f"hero#{number}"]), sheet[top : top + 5, left : left + 5])


def test_empty_tiles_and_columns_that_are_not_told(tmp_path: Path, sheet: Pixels) -> None:
    sheet[:8, 8:16, 3] = 0
    save(tmp_path / "hero.png", sheet)
    write(tmp_path, tsx('tilewidth="8" tileheight="8"'), "a.tsx")
    assert list(cut(tmp_path)) == [f"hero#{number}" for number in (0, 2, 3, 4, 5, 6, 7)]


def test_what_is_no_tileset_of_a_sheet_is_passed_over(tmp_path: Path, sheet: Pixels) -> None:
    write(tmp_path, "export const Hero = () => <div/>;", "Hero.tsx")
    single = '<tile id="0"><image source="hero.png" width="32" height="16"/></tile>'
    write(tmp_path, tsx('tilewidth="32" tileheight="16"', image="", tiles=single), "single.tsx")
    assert list(cut(tmp_path)) == ["hero"]


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (tsx('tilewidth="5"'), "hero.png", "hero.tsx: tileheight is missing"),
        (tsx('tilewidth="zero" tileheight="4"'), "hero.png", "tilewidth = 'zero' is no number from 1 on"),
        (tsx('tilewidth="64" tileheight="4"'), "hero.png", "not one tile of 64x4 fits"),
        (
            tsx('tilewidth="8" tileheight="8" columns="5" tilecount="5"'),
            "hero.png",
            "4 is 8x8 at 32,0, outside of the image",
        ),
        (tsx('tilewidth="8" tileheight="8"')[:-4], "hero.png", "no valid XML"),
        (
            tsx('tilewidth="8" tileheight="8"', image='<image source="gone.png" width="9" height="9"/>'),
            "hero.tsx",
            "gone.png",
        ),
        (
            tsx('tilewidth="8" tileheight="8"', head='<!DOCTYPE a [<!ENTITY b "bbb"><!ENTITY c "&b;&b;">]>'),
            "hero.png",
            "entities",
        ),
    ],
)
def test_broken_tilesets_are_errors(tmp_path: Path, sheet: Pixels, content: str, where: str, what: str) -> None:
    write(tmp_path, content, "hero.tsx")
    with pytest.raises(DataError) as caught:
        cut(tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == where and what in problem.what, str(problem)
