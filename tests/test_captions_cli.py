"""`pixelkit data caption` as an artist types it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pixelkit.cli.data_caption import MODES, USES, caption
from pixelkit.cli.main import main
from pixelkit.dataset.captions.tags import Tag, choose_tags


def run(source: Path, mode: str, *options: str) -> Result:
    return CliRunner().invoke(main, ["data", "caption", str(source), "--mode", mode, *options])


@pytest.fixture
def sprites(tmp_path: Path) -> Path:
    for name in ("mon/orc_wizard", "mon/elf", "item/weapon/long_sword"):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((16, 16, 4), dtype=np.uint8)
        pixels[4:12, 4:12] = (250, 220, 40, 255)
        Image.fromarray(pixels).save(file)
    return tmp_path


def captions(source: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in source.glob("[!.]*/**/*.txt")}


def test_writing_keeping_and_overwriting(sprites: Path) -> None:
    assert "3 captions written" in run(sprites, "path", "--trigger", "TOK").output
    assert captions(sprites)["orc_wizard"] == "TOK, orc wizard, monster\n"
    assert "all 3 images have a caption" in run(sprites, "template").output
    again = run(sprites, "template", "--overwrite", "--prefix", "pixel art, ", "--suffix", ", game sprite")
    assert "3 previous captions are in" in again.output and ".captions-backup" in again.output
    assert captions(sprites)["elf"] == "pixel art, elf, monster, yellow, transparent background, game sprite\n"


def test_a_dry_run_prints_and_writes_nothing(sprites: Path) -> None:
    result = run(sprites, "template", "--dry-run")
    assert "mon/orc_wizard: orc wizard, monster, yellow, transparent background\n" in result.output
    assert captions(sprites) == {}


@pytest.mark.parametrize("name", [name for name, modes in USES.items() if set(modes) != set(MODES)])
def test_an_option_of_another_mode_is_refused(sprites: Path, name: str) -> None:
    param = next(param for param in caption.params if param.name == name)
    other = next(mode for mode in MODES if mode not in USES[name])
    value = () if param.is_flag else ("csv" if name == "form" else "0.5",)
    result = run(sprites, other, param.opts[0], *value)
    assert result.exit_code == 2 and f"{param.opts[0]} is for --mode" in result.output


def test_what_cannot_be_captioned_fails_and_the_rest_is_written(sprites: Path) -> None:
    result = run(sprites, "coordinates")
    assert result.exit_code == 4
    assert "3 of 3 images have no caption from --mode coordinates" in result.output
    (sprites / "mon" / "elf.png").write_bytes(b"")
    result = run(sprites, "template")
    assert result.exit_code == 4 and "mon/elf.png" in result.output
    assert set(captions(sprites)) == {"orc_wizard", "long_sword"}


def test_validate_fails_with_all_errors_and_tells_warnings_apart(sprites: Path) -> None:
    (sprites / "mon" / "orc_wizard.txt").write_text("short")
    (sprites / "mon" / "elf.txt").write_text("an elf in 16-bit style\nmore")
    result = run(sprites, "validate")
    assert result.exit_code == 4
    assert "mon/orc_wizard.txt 5 characters" in result.output
    assert "item/weapon/long_sword.png has no caption" in result.output
    assert "warning  mon/elf.txt has several lines" in result.output
    assert "2 errors" in result.output
    (sprites / "mon" / "orc_wizard.txt").write_text("an orc wizard with a staff")
    (sprites / "item" / "weapon" / "long_sword.txt").write_text("a long sword, its hilt of gold")
    assert run(sprites, "validate").exit_code == 0


def test_replace_shows_and_then_does(sprites: Path) -> None:
    run(sprites, "path")
    shown = run(sprites, "replace", "--find", "monster", "--replace", "creature")
    assert "  - elf, monster\n  + elf, creature\n" in shown.output and "--yes does it" in shown.output
    assert captions(sprites)["elf"] == "elf, monster\n"
    done = run(sprites, "replace", "--find", r"(\w+), monster", "--replace", r"a \1", "--regex", "--yes")
    assert "2 captions changed" in done.output
    assert captions(sprites)["elf"] == "a elf\n" and captions(sprites)["orc_wizard"] == "orc a wizard\n"


def edit_with(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> list[Path]:
    """An editor that replaces a text; the files that it was given."""
    files: list[Path] = []

    def edit(*, filename: str) -> None:
        files.append(Path(filename))
        text = files[-1].read_text("utf-8")
        assert old in text
        files[-1].write_text(text.replace(old, new), "utf-8")

    monkeypatch.setattr(click, "edit", edit)
    return files


@pytest.mark.parametrize("form", ["toml", "csv"])
def test_editing(sprites: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    run(sprites, "path")
    quoted = {"toml": r"\"the\"", "csv": '""the""'}[form]
    files = edit_with(monkeypatch, "elf, monster", f"elf, {quoted} fair")
    result = run(sprites, "edit", "--format", form)
    assert "1 captions changed" in result.output, result.output
    assert captions(sprites)["elf"] == 'elf, "the" fair\n'
    assert files[0].suffix == f".{form}" and not files[0].exists()


def test_bad_edits_are_kept_and_picked_up(sprites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(sprites, "path")
    files = edit_with(monkeypatch, '"mon/elf" = "elf, monster"', '"mon/elv" = "a fair elf"')
    result = run(sprites, "edit")
    assert result.exit_code == 4 and "no image is called mon/elv" in result.output
    assert files[0].exists() and f"--from {files[0]}" in result.output.replace("\n", " ")
    assert captions(sprites)["elf"] == "elf, monster\n"
    files[0].write_text(files[0].read_text().replace("mon/elv", "mon/elf"))
    assert "1 captions changed" in run(sprites, "edit", "--from", str(files[0])).output
    assert captions(sprites)["elf"] == "a fair elf\n"
    edit_with(monkeypatch, '"mon/elf" = ', '"mon/elv" = ')
    for _ in range(2):
        assert run(sprites, "edit").exit_code == 4
    assert len(list((sprites / ".captions-backup").glob("edit-*.toml"))) == 3  # none over another
    assert files[0].exists()  # what was given with --from is the artist's


def test_an_editor_that_fails_loses_nothing(sprites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, filename: str) -> None:
        raise click.ClickException(f"{filename}: no editor")

    monkeypatch.setattr(click, "edit", fail)
    result = run(sprites, "edit")
    assert result.exit_code == 4 and "the editor failed" in result.output and "set EDITOR" in result.output
    assert captions(sprites) == {}


def test_wd14_says_what_it_needs(sprites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--mode wd14 needs --model DIR" in run(sprites, "wd14").output
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = run(sprites, "wd14", "--model", str(sprites))
    assert result.exit_code == 4 and "pip install onnxruntime" in result.output


def test_vision_modes_say_what_they_need(sprites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run(sprites, "blip", "--model", str(sprites))
    assert result.exit_code == 4 and "--mode blip needs torch" in result.output and "pixelkit[train]" in result.output


class Session:
    """onnxruntime's, for a model whose tags are the mean blue, green and red of the picture."""

    def __init__(self, path: str, providers: list[str]) -> None:
        assert Path(path).name == "model.onnx"

    def get_inputs(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(name="input", shape=["batch", 32, 32, 3])]

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        picture = feed["input"]
        assert picture.shape == (1, 32, 32, 3) and picture.dtype == np.float32
        return [picture.mean(axis=(1, 2)) / 255]


def test_wd14_tags_a_sprite_on_white_in_bgr(sprites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(InferenceSession=Session, get_available_providers=lambda: ["CPU"])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    model = sprites / ".model"
    model.mkdir()
    (model / "model.onnx").write_bytes(b"")
    assert "holds no selected_tags.csv" in run(sprites, "wd14", "--model", str(model)).output
    (model / "selected_tags.csv").write_text(
        "tag_id,name,category,count\n1,blue_sky,0,1\n2,green,0,1\n3,red_hair,4,1\n"
    )
    assert "3 captions written" in run(sprites, "wd14", "--model", str(model), "--threshold", "0.9").output
    # a quarter of the picture is (250, 220, 40), the rest white: blue 0.79, green 0.97, red 0.995
    assert captions(sprites)["elf"] == "red hair, green\n"
    (model / "selected_tags.csv").write_text("tag_id,name,category,count\n1,blue_sky,0,1\n")
    result = run(sprites, "wd14", "--model", str(model), "--overwrite")
    assert result.exit_code == 4 and "knows 3 tags" in result.output


def test_tags_by_chance_without_ratings() -> None:
    tags = tuple(
        Tag(name=name, category=category)
        for name, category in (("general", "9"), ("solo", "0"), ("^_^", "0"), ("low", "0"))
    )
    assert choose_tags(tags, [0.99, 0.5, 0.6, 0.1], 0.35) == "^_^, solo"


def test_sources_that_are_none(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere", "path").exit_code == 4
    (tmp_path / "a.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    assert "unpack it" in run(tmp_path / "a.zip", "path").output
    (tmp_path / "empty").mkdir()
    assert "no image found" in run(tmp_path / "empty", "validate").output
