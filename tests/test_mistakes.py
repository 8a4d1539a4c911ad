"""Mistakes that people make in presets, folders and commands: one clear error with its place, or a warning, never silence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import toml
from click.testing import CliRunner, Result
from PIL import Image

from pixelkit.cli import main
from pixelkit.hardware import Machine
from pixelkit.plan.terms import KOHYA_TERMS

TOP = 'name = "h"\nbase = "pixelkit-tiny"\n'
DATA = '[dataset]\npath = "sprites"\n'


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve captioned sprites; no sd-scripts, no GPU."""
    monkeypatch.setattr("pixelkit.ready.locate_sd_scripts", lambda _explicit=None: None)
    machine = Machine(kind="cpu", device="x86_64", memory_gib=24, available_gib=20, cores=2)
    monkeypatch.setattr("pixelkit.ready.detect_machine", lambda: machine)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sprites").mkdir()
    for number in range(12):
        Image.fromarray(np.full((16, 16, 4), number, dtype=np.uint8)).save(tmp_path / "sprites" / f"s{number}.png")
        (tmp_path / "sprites" / f"s{number}.txt").write_text("a thing")
    return tmp_path


def check(text: str, *arguments: str) -> Result:
    Path("p.toml").write_text(text, "utf-8")
    return call("check", "p.toml", *arguments)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (TOP + DATA + 'background = "greenish"\n', 3, 'p.toml:5 [dataset] background = "greenish": no colour'),
        (TOP + DATA + 'caption = "{trigger}, {name}"\n', 3, "p.toml:5 [dataset] caption"),
        (TOP + DATA + '[sample]\nprompts = ["{triger}, x"]\n', 3, "{triger} is not replaced"),
        (TOP + DATA + '[sample]\nprompts = ["x"]\nwidth = 100\n', 3, "must be a multiple of 8"),
        (TOP + DATA + "[train]\nsave_every_steps = 5\nsave_every_epochs = 2\n", 3, "p.toml:5 save_every_steps and"),
        (TOP + DATA + '[train]\nprecision = "fp16"\n[sample]\n', 3, "p.toml:6 precision = fp16"),
        (TOP + DATA + '[train]\noptimizer = "adamw8bit"\n', 3, "p.toml:6 optimizer = adamw8bit"),
        (TOP + '[dataset]\npath = "a\\u0000b"\n', 3, "p.toml:4 [dataset] path = 'a\\x00b' cannot be a path"),
        (TOP + f'[dataset]\npath = "{"x" * 5000}"\n', 3, "p.toml:4 [dataset] path"),
        (TOP + '[dataset]\npath = "~nobody_here/s"\n', 3, "p.toml:4 [dataset] path"),
        (f'name = "h"\nbase = "{"x" * 5000}"\n' + DATA, 3, "p.toml:2 xxx"),
        ('name = "h"\nbase = "pixelkit-tinny"\n' + DATA, 3, "p.toml:2 base = pixelkit-tinny"),
        (f'extends = "{"x" * 5000}"\n' + TOP + DATA, 3, "p.toml:1 extends xxx"),
        (f"a = {'[' * 5000}{']' * 5000}", 3, "not valid TOML"),
        (f"a = {'9' * 5000}", 3, "not valid TOML"),
        (TOP + '[dataset]\npath = "C:\\Users\\me"\n', 3, "a Windows path goes into 'single quotes'"),
        (TOP + DATA + "[kohya]\nmax_train_steps = 5\nmax_train_epochs = 5\n", 3, "p.toml:6 steps and epochs are both"),
    ],
)
def test_one_error_with_its_place(text: str, code: int, said: str) -> None:
    result = check(text)
    assert result.exit_code == code, result.output
    assert said in result.output


@pytest.mark.parametrize("value", ['"x"', "[1]", "-5"])
@pytest.mark.parametrize("option", KOHYA_TERMS)
def test_kohyas_names_with_impossible_values(option: str, value: str) -> None:
    if (option, value) == ("init_word", '"x"'):
        pytest.skip("a word is what it wants")
    result = check(TOP + DATA + f"[kohya]\n{option} = {value}\n")
    assert result.exit_code == 3
    assert f"p.toml:6 [kohya] {option}" in result.output


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"data_offsets": [0]}}', b"{" * 5000])
def test_headers_of_no_model(header: bytes) -> None:
    Path("m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    result = check('name = "h"\nfamily = "sd15"\nbase = "m.safetensors"\n' + DATA)
    assert result.exit_code == 3
    assert "p.toml:3 m.safetensors is no safetensors file" in result.output


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('trigger = "zzz"\ninstance_prompt = "a cat"\n', "trigger has no effect"),
        ('class_prompt = "a cat"\n', "class_prompt has no effect: there is no class_path"),
        ("[sample]\nevery_steps = 5\n", "every_steps has no effect: without sample.prompts"),
        ('[train]\nscheduler = "constant"\nwarmup_steps = 10\n', "warmup_steps has no effect"),
        ("[train]\nsteps = 100\nsave_every_steps = 100\n", "save_every_steps has no effect: the training is over"),
    ],
)
def test_keys_without_effect_are_told(lines: str, said: str) -> None:
    result = check(TOP + DATA + lines)
    assert result.exit_code == 0, result.output
    assert f"{said}" in result.output


def test_a_table_given_at_once_on_the_command_line_counts() -> None:
    result = check(TOP + DATA, "--set", "train={steps=123}", "--set", 'sample.prompts=["a, b", "c"]')
    assert "123 = " in result.output


def test_extending_on_the_command_line_is_refused() -> None:
    assert check(TOP + DATA, "--set", "extends=style").exit_code == 3


def test_a_child_may_say_epochs_where_its_parent_says_steps() -> None:
    Path("parent.toml").write_text(
        TOP + DATA + "[train]\nsteps = 50\nsave_every_steps = 5\n[sample]\nevery_steps = 5\n"
    )
    child = 'extends = "parent.toml"\n[train]\nepochs = 2\nbatch_size = 1\nsave_every_epochs = 1\n[sample]\nevery_epochs = 1\n'
    result = check(child)
    assert "24 = 2 epochs" in result.output and result.exit_code == 0


def test_a_shipped_preset_has_no_sprites() -> None:
    result = check('extends = "style"\nname = "x"\nbase = "pixelkit-tiny"\n')
    assert result.exit_code == 4
    assert "pixelkit presets copy style" in result.output


@pytest.mark.parametrize("class_path", [".", "sprites", "sprites/class"])
def test_class_images_among_the_sprites(class_path: str) -> None:
    result = check(TOP + DATA + f'class_path = "{class_path}"\n')
    assert result.exit_code == 4
    assert "p.toml:5 [dataset] class_path" in result.output


class TestFolders:
    def sprites(self, output: str) -> int:
        line = next(line for line in output.splitlines() if line.startswith("sprites"))
        return int(line.split()[1])

    def test_links_are_followed_once(self, folder: Path) -> None:
        (folder / "all").mkdir()
        (folder / "all" / "link").symlink_to(folder / "sprites")
        (folder / "all" / "loop").symlink_to(folder / "all")
        assert self.sprites(check(TOP + '[dataset]\npath = "all"\n').output) == 12

    def test_runs_beside_the_sprites_are_no_sprites(self, folder: Path) -> None:
        run = folder / "sprites" / "runs" / "h-1"
        (run / "dataset").mkdir(parents=True)
        shutil.copy(folder / "sprites" / "s0.png", run / "dataset" / "s0.png")
        for name in ("manifest.json", "resolved.toml"):
            (run / name).write_text("{}")
        assert self.sprites(check(TOP + DATA).output) == 12

    def test_captions_of_windows(self, folder: Path) -> None:
        shutil.copy(folder / "sprites" / "s0.png", folder / "sprites" / "UP.PNG")
        (folder / "sprites" / "UP.TXT").write_bytes(b"\xef\xbb\xbfa caption\r\n")
        assert "no .txt caption" not in check(TOP + DATA).output

    def test_what_looks_like_sprites_and_is_not_read(self, folder: Path) -> None:
        (folder / "sprites" / "hero.aseprite").touch()
        (folder / "sprites" / "hero.txt").write_text("a hero")
        output = check(TOP + DATA).output
        assert "1 picture (hero.aseprite) of a kind that is not read" in output
        assert "1 text (hero.txt) beside no sprite" in output

    def test_a_name_that_is_no_text(self, folder: Path) -> None:
        try:
            shutil.copy(os.fsencode(folder / "sprites" / "s0.png"), os.fsencode(folder / "sprites") + b"/\xe4.png")
        except OSError:
            pytest.skip("this file system takes only Unicode names")
        result = check(TOP + DATA)
        assert result.exit_code == 4 and "is not Unicode" in result.output


@pytest.mark.parametrize(
    "name", ["with space", "quo'te", 'dou"ble', "ümläut 日本", "a#b", "[br]ack", "100%", "{b}", "$HOME"]
)
def test_odd_paths_arrive_unharmed(folder: Path, name: str) -> None:
    place = folder / name
    place.mkdir()
    shutil.copytree(folder / "sprites", place / "sprites")
    (place / "p.toml").write_text(TOP + DATA, "utf-8")
    assert call("render", str(place / "p.toml"), "--out", str(place / "out")).exit_code == 0
    config = toml.load(place / "out" / "config" / "config.toml")
    assert config["dataset"]["images"] == [str(place / "out" / "dataset" / "images")]
    assert call("run", str(place / "p.toml"), "--dry-run", "--runs", str(place / "runs")).exit_code == 0
    assert not (place / "runs").exists()


def test_the_copied_quickstart_runs(folder: Path) -> None:
    assert call("presets", "copy", "quickstart", "mine/q.toml").exit_code == 0
    assert call("check", "mine/q.toml").exit_code == 0


def test_settings_are_absolute_and_checked(folder: Path) -> None:
    assert call("config", "set", "models", "m").exit_code == 0
    assert call("config", "show", "models").output.strip() == str(folder / "m")
    from pixelkit import paths

    paths.settings_file().write_bytes(b'\xef\xbb\xbfmodls = "x"\n')
    result = call("config", "show")
    assert result.exit_code == 3 and "did you mean models?" in result.output


def test_a_broken_run_hides_no_other(folder: Path) -> None:
    for name, content in (("a", "[]"), ("b", '{"state": "done"}')):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "manifest.json").write_text(content)
    output = call("runs", "list", "--runs", "runs").output
    assert "broken manifest" in output and "done" in output
    assert call("runs", "show", "a", "--runs", "runs").exit_code == 9


def test_what_the_rules_find_is_found_before_anything_begins(folder: Path) -> None:
    own = folder / "own"
    own.mkdir()
    text = (Path(__file__).parent.parent / "templates" / "diffusers" / "config.toml.j2").read_text("utf-8")
    (own / "config.toml.j2").write_text(text.replace("rank =", "rnak ="), "utf-8")
    result = check(TOP + DATA, "--templates", "own")
    assert result.exit_code == 6
    assert "config.toml:" in result.output and "did you mean rank?" in result.output
    assert call("run", "p.toml", "--templates", "own", "--runs", "runs").exit_code == 6
    assert not (folder / "runs").exists()
