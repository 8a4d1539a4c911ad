"""What `survey` makes of a folder: sizes, names, captions, one error for all that is wrong."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import numpy as np
import pytest
from made_files import random_pixels, save
from PIL import Image

from pixelkit import sources
from pixelkit.errors import DataError
from pixelkit.sources import Reading, Sprite, lossy_images, survey, words_of


def sprite(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    return save(path, random_pixels(*size, seed=seed))


def read(source: Path, **reading: object) -> tuple[Sprite, ...]:
    return survey(source, what="path", reading=Reading(**reading)).sprites  # type: ignore[arg-type]


def test_sizes_and_captions(tmp_path: Path) -> None:
    sprite(tmp_path / "a.png", (8, 6))
    sprite(tmp_path / "deep" / "b.PNG")
    (tmp_path / "a.txt").write_text("a red\n  sword\n")
    first, second = read(tmp_path)
    assert (first.width, first.height, first.caption) == (8, 6, "a red sword")
    assert second.caption is None


def test_a_missing_folder_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "sprites").mkdir()
    with pytest.raises(DataError) as caught:
        read(tmp_path / "sprits")
    assert "did you mean" in caught.value.hint and caught.value.hint.rstrip("?").endswith("sprites")


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is empty"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="1 other files"):
        read(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        read(tmp_path / "notes.txt")


def test_all_broken_files_are_listed(tmp_path: Path) -> None:
    sprite(tmp_path / "good.png")
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("no image")
    sprite(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    sprite(tmp_path / "blank.png")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError) as caught:
        survey(tmp_path, what="hero.toml:5 [dataset] path")
    named = {problem.where: problem.what for problem in caught.value.problems}
    assert set(named) == {"zero.png", "text.png", "latin.png", "blank.png"}
    assert "0 bytes" in named["zero.png"] and "UTF-8" in named["latin.png"]
    assert "hero.toml:5 [dataset] path: 4 of 5 images" in str(caught.value)


def test_keep_going_leaves_out_what_is_broken(tmp_path: Path) -> None:
    sprite(tmp_path / "good.png")
    (tmp_path / "zero.png").touch()
    found = survey(tmp_path, what="path", reading=Reading(keep_going=True))
    assert [one.name for one in found.sprites] == ["good"] and [one.where for one in found.skipped] == ["zero.png"]


@pytest.mark.parametrize(
    ("name", "words"), [("orc_wizard3", "orc wizard"), ("LongSword", "long sword"), ("7", "7"), ("a-b  c", "a b c"),
                        ("mon/hero#r1c2", "hero"), ("sheet/hero_walk_2", "hero walk"), ("hero#gif", "hero")]
)  # fmt: skip
def test_names_become_words(name: str, words: str) -> None:
    assert words_of(name) == words


def test_folders_nested_as_the_guides_nest_them(tmp_path: Path) -> None:
    for number, place in enumerate(("style_general", "characters/heroes", "items/weapons", "environments/dungeons")):
        sprite(tmp_path / place / "one.png", seed=number)
    assert [one.name for one in read(tmp_path)] == [
        "characters/heroes/one", "environments/dungeons/one", "items/weapons/one", "style_general/one"
    ]  # fmt: skip


def test_names_are_unique(tmp_path: Path) -> None:
    for number, name in enumerate(("hero.png", "hero.bmp", "hero.v2.png")):
        sprite(tmp_path / name, seed=number)
    assert sorted(one.name for one in read(tmp_path)) == ["hero", "hero#png", "hero.v2"]


def test_links_are_followed_once_and_hidden_files_left_out(tmp_path: Path) -> None:
    sprite(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    sprite(tmp_path / "set" / ".hidden" / "b.png")
    sprite(tmp_path / "set" / "._c.png")
    assert [one.name for one in read(tmp_path / "set")] == ["linked/a"]


def test_a_folder_may_be_given_as_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sprite(tmp_path / "deep" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert [one.name for one in read(Path())] == ["deep/a"]


def test_what_may_be_taken_for_sprites_is_remarked_on(tmp_path: Path) -> None:
    sprite(tmp_path / "pictures" / "a.png")
    (tmp_path / "oldtext").mkdir()
    (tmp_path / "oldtext" / "a.txt").write_text("a sword")
    (tmp_path / "b.txt").write_text("no image of this name")
    (tmp_path / "hero.psd").touch()
    psd, apart, lonely = survey(tmp_path, what="path").remarks
    assert "1 picture (hero.psd)" in psd and "b.txt" in lonely
    assert "1 text (a.txt) in another folder" in apart


def test_lossy_images_whatever_they_are_called(tmp_path: Path) -> None:
    image = Image.fromarray(random_pixels(24, 24)).convert("RGB")
    save(tmp_path / "a.jpg", image)
    save(tmp_path / "b.jpg", image).rename(tmp_path / "b.png")
    save(tmp_path / "c.png", image)
    assert [path.name for path in lossy_images(read(tmp_path))] == ["a.jpg", "b.png"]


def test_sources_are_never_written_to(tmp_path: Path) -> None:
    sprite(tmp_path / "10_hero" / "a.png")
    frames = [Image.fromarray(random_pixels(8, 8, seed)) for seed in range(3)]
    save(tmp_path / "b.gif", frames[0], save_all=True, append_images=frames[1:])
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in tmp_path.rglob("*")
    }
    read(tmp_path, sheet=(4, 4))
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in tmp_path.rglob("*")
    }


def test_surveying_needs_no_numpy() -> None:
    for module in Path(sources.__file__).parent.glob("*.py"):
        top = ast.parse(module.read_text("utf-8")).body
        names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        assert "numpy" not in names or module.name == "pixels.py", module.name


def test_every_crawl_tile_is_read(crawl_tiles: Path) -> None:
    begun = time.perf_counter()
    found = survey(crawl_tiles, what="path")
    assert time.perf_counter() - begun < 4  # a tenth of that on an idle machine
    assert len(found.sprites) == 3120 and not found.remarks
    assert np.unique([one.block for one in found.sprites]).tolist() == [1]
