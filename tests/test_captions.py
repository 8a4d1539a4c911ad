"""Captions from names and pixels, where they go, and that nothing of an artist's is lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelkit.dataset.captions.entries import find_entries, open_sprite
from pixelkit.dataset.captions.facts import Facts, facts_of, write_facts
from pixelkit.dataset.captions.words import describe_path, singular
from pixelkit.dataset.captions.writing import KEPT_IN, Style, Written, choose_entries, propose, write_changes
from pixelkit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def draw(path: Path, color: tuple[int, ...] = (200, 30, 30, 255), size: int = 16) -> Path:
    """A square in the middle of a transparent picture."""
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[size // 4 : -size // 4, size // 4 : -size // 4] = color
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("mon/orc_wizard", "orc wizard, monster"),
        ("item/weapon/long_sword1", "long sword, weapon, item"),
        ("characters/heroes/knight", "knight, hero, character"),
        ("items/potions/potion_red", "potion red, item"),
        ("misc/numbers/num6", "number"),
        ("item/ring/i-r-fire", "fire, ring, item"),
        ("player/base/deep_dwarf_f", "deep dwarf female, base, player"),
        ("dngn/wall/abyss/abyss_brown5", "abyss brown, wall, dungeon"),
        ("sprites/10_hero/walk#03", "walk, hero"),
        ("DarkKnight", "dark knight"),
        ("007", "007"),
    ],
)
def test_a_path_in_words(name: str, caption: str) -> None:
    assert describe_path(name) == caption


@pytest.mark.parametrize(
    ("plural", "one"),
    [("heroes", "hero"), ("enemies", "enemy"), ("boxes", "box"), ("axes", "axe"), ("wolves", "wolf"), ("witches", "witch"),
     ("classes", "class"), ("grass", "grass"), ("abyss", "abyss"), ("boots", "boots"), ("eyes", "eye"), ("npcs", "npc")],
)  # fmt: skip
def test_singulars(plural: str, one: str) -> None:
    assert singular(plural) == one


def test_what_the_template_says(tmp_path: Path) -> None:
    draw(tmp_path / "enemies" / "goblin_up_left.png", (250, 220, 40, 255))
    (entry,) = find_entries(tmp_path)
    facts = facts_of(open_sprite(entry))
    assert facts == Facts(kind="goblin", category="enemy", direction=7, colors=("yellow",), background="transparent")
    assert write_facts(facts) == "goblin, enemy, facing up-left, yellow, transparent background"


def test_a_name_that_is_only_a_direction_takes_its_folder(tmp_path: Path) -> None:
    draw(tmp_path / "enemies" / "goblin" / "left.png", (250, 220, 40, 255))
    (entry,) = find_entries(tmp_path)
    facts = facts_of(open_sprite(entry))
    assert (facts.kind, facts.category, facts.direction) == ("goblin", "enemy", 6)


def test_the_template_names_a_background_of_one_colour_and_none_of_many(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), (0, 0, 220, 255), dtype=np.uint8)
    pixels[4:12, 4:12] = (240, 140, 20, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    noise = np.random.default_rng(1).integers(0, 255, (16, 16, 4), dtype=np.uint8)
    noise[..., 3] = 255
    Image.fromarray(noise).save(tmp_path / "b.png")
    flat, mixed = (facts_of(open_sprite(entry)) for entry in find_entries(tmp_path))
    assert (flat.background, flat.colors) == ("blue", ("orange",))
    assert mixed.background == ""


def test_the_template_takes_what_metadata_says(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "x.png", (120, 120, 120, 255))
    entity = {"id": "x", "category": "warrior", "kind": "cat", "directions": 1, "base_color": None, "files": ["x.png"]}
    (tmp_path / "metadata.json").write_text(json.dumps({"version": "1.0", "entities": [entity]}))
    (entry,) = find_entries(tmp_path)
    assert write_facts(facts_of(open_sprite(entry), entry.drawing)).startswith("cat, warrior, grey")


def test_style_frames_a_caption_once() -> None:
    style = Style(trigger="TOK", prefix="pixel art, ", suffix=", game sprite, 16-bit style")
    dressed = "TOK, pixel art, orc wizard, game sprite, 16-bit style"
    assert style.dress("orc wizard") == dressed
    assert style.dress(dressed) == dressed
    assert style.dress("pixel art, orc wizard") == dressed
    assert Style(trigger="orc").dress("orc wizard") == "orc, orc wizard"


@given(st.text(max_size=60), st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_style_never_changes_what_it_wrote(text: str, trigger: str, prefix: str, suffix: str) -> None:
    style = Style(trigger=trigger.replace(",", ""), prefix=prefix, suffix=suffix)
    once = style.dress(text)
    assert style.dress(once) == once or "," in prefix + suffix


def write(source: Path, caption: object, *, overwrite: bool = False) -> Written:
    written = Written(source=source)
    chosen = choose_entries(find_entries(source), overwrite=overwrite)
    for _ in write_changes(propose(chosen, caption, Style(), written), written):
        pass
    return written


def test_a_caption_that_is_there_is_kept(tmp_path: Path) -> None:
    draw(tmp_path / "a.png"), draw(tmp_path / "b.png"), draw(tmp_path / "c.png")
    (tmp_path / "a.txt").write_text("my own words\n")
    (tmp_path / "b.txt").write_text("  \n")
    written = write(tmp_path, lambda entry: f"new {entry.name}")
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "a.txt": "my own words\n", "b.txt": "new b\n", "c.txt": "new c\n",
    }  # fmt: skip
    assert written.files == 2


def test_overwriting_keeps_the_previous_bytes(tmp_path: Path) -> None:
    before = "Grün\r\nzweite Zeile".encode("latin-1")
    image = draw(tmp_path / "mon" / "a.png")
    pixels = image.read_bytes()
    (tmp_path / "mon" / "a.txt").write_bytes(before)
    with pytest.raises(DataError, match="cannot be read") as refused:
        write(tmp_path, lambda _: "new")
    assert "not UTF-8" in refused.value.problems[0].what
    first = write(tmp_path, lambda _: "new words", overwrite=True)
    second = write(tmp_path, lambda _: "newer words", overwrite=True)
    assert first.backup != second.backup
    assert (first.backup / "mon" / "a.txt").read_bytes() == before
    assert (second.backup / "mon" / "a.txt").read_text() == "new words\n"
    assert (tmp_path / "mon" / "a.txt").read_text() == "newer words\n"
    assert image.read_bytes() == pixels
    assert first.backup.parent == tmp_path / KEPT_IN
    assert len(find_entries(tmp_path)) == 1  # the backup is no part of the set


def test_what_cannot_be_captioned_is_named_and_the_rest_written(tmp_path: Path) -> None:
    draw(tmp_path / "a.png"), draw(tmp_path / "b.png")

    def caption(entry: object) -> str:
        if entry.name == "a":
            raise DataError("not found in the pixels: hair", hint="by hand")
        return "fine"

    written = write(tmp_path, caption)
    assert [(problem.where, problem.what) for problem in written.problems] == [
        ("a.png", "not found in the pixels: hair")
    ]
    assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "b.txt").read_text() == "fine\n"


def test_an_animation_has_one_caption(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "walk.gif", save_all=True, append_images=frames[1:], duration=100)
    assert [(entry.name, entry.file.name) for entry in find_entries(tmp_path)] == [("walk", "walk.txt")]


def test_captions_stay_where_they_are(tmp_path: Path) -> None:
    """CatSith's captions/ and kohya's .caption are written back to, not doubled."""
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "a.txt").write_text("old")
    draw(tmp_path / "b.png")
    (tmp_path / "b.caption").write_text("old")
    write(tmp_path, lambda _: "new", overwrite=True)
    assert (tmp_path / "captions" / "a.txt").read_text() == (tmp_path / "b.caption").read_text() == "new\n"
    assert not (tmp_path / "images" / "a.txt").exists() and not (tmp_path / "b.txt").exists()


def test_captions_outside_the_source_are_backed_up_inside(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "a.txt").write_text("old")
    written = write(tmp_path / "images", lambda _: "new", overwrite=True)
    kept = [path for path in written.backup.rglob("*") if path.is_file()]
    assert [path.read_text() for path in kept] == ["old"]


def test_two_images_of_one_caption_file_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.png"), draw(tmp_path / "a.webp")
    with pytest.raises(DataError) as refused:
        find_entries(tmp_path)
    assert "a.png, a.webp" in refused.value.problems[0].what


def test_a_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(DataError, match="zip") as refused:
        find_entries(tmp_path / "set.zip")
    assert "unpack" in refused.value.hint
