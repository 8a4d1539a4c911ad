from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelkit.errors import DataError
from pixelkit.survey import survey_folder, words_of


def sprite(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 4), dtype=np.uint8)).save(path)
    return path


def test_sizes_and_captions(tmp_path: Path) -> None:
    sprite(tmp_path / "a.png", (8, 6))
    sprite(tmp_path / "deep" / "b.PNG")
    (tmp_path / "a.txt").write_text("a red\n  sword\n")
    first, second = survey_folder(tmp_path, what="path")
    assert (first.width, first.height, first.caption) == (8, 6, "a red sword")
    assert second.caption is None


def test_a_missing_folder_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "sprites").mkdir()
    with pytest.raises(DataError) as caught:
        survey_folder(tmp_path / "sprits", what="hero.toml:5 [dataset] path")
    assert "hero.toml:5 [dataset] path" in str(caught.value)
    assert "did you mean" in caught.value.hint and caught.value.hint.rstrip("?").endswith("sprites")


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is empty"):
        survey_folder(tmp_path, what="path")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="1 other files"):
        survey_folder(tmp_path, what="path")
    with pytest.raises(DataError, match="is a file"):
        survey_folder(tmp_path / "notes.txt", what="path")


def test_all_broken_files_are_listed(tmp_path: Path) -> None:
    sprite(tmp_path / "good.png")
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("no image")
    sprite(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    sprite(tmp_path / "blank.png")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError) as caught:
        survey_folder(tmp_path, what="path")
    named = {problem.where: problem.what for problem in caught.value.problems}
    assert set(named) == {"zero.png", "text.png", "latin.png", "blank.png"}
    assert "0 bytes" in named["zero.png"] and "UTF-8" in named["latin.png"]


@pytest.mark.parametrize(
    ("name", "words"), [("orc_wizard3", "orc wizard"), ("LongSword", "long sword"), ("7", "7"), ("a-b  c", "a b c")]
)
def test_names_become_words(name: str, words: str) -> None:
    assert words_of(Path(f"{name}.png")) == words


def test_every_crawl_tile_is_read(crawl_tiles: Path) -> None:
    assert len(survey_folder(crawl_tiles, what="path")) == 3120
