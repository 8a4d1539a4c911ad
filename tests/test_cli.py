"""The commands as a person types them, without starting a trainer: answers, errors, exit codes, nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pixelkit.cli import main

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "presets" / "quickstart.toml")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def says(result: Result) -> str:
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """A preset that trains pixelkit-tiny on two sprites."""
    for name in ("sword", "bow"):
        folder = tmp_path / "sprites"
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((16, 16, 4), dtype=np.uint8)).save(folder / f"{name}.png")
    file = tmp_path / "hero.toml"
    file.write_text('name = "hero"\nbase = "pixelkit-tiny"\n\n[dataset]\npath = "sprites"\n', "utf-8")
    return file


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXELKIT_SD_SCRIPTS", raising=False)
    monkeypatch.setattr("pixelkit.ready.locate_sd_scripts", lambda _explicit=None: None)
    monkeypatch.setattr("pixelkit.pipeline.require_trainer", lambda: None)


def test_check_prints_the_plan_with_sources(preset: Path) -> None:
    output = says(call("check", str(preset), "--set", "train.steps=77", "--set", "train.batch_size=2"))
    assert "77 = 77 epochs of 1" in output and "--set" in output
    assert "diffusers engine" in output
    assert "memory" in output


def test_dry_run_prints_the_command_and_leaves_nothing(preset: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    output = says(call("run", str(preset), "--dry-run", "--runs", str(tmp_path / "runs")))
    assert "accelerate.commands.launch" in output and "pixelkit.engines.diffusers.entry" in output
    assert sorted(tmp_path.rglob("*")) == before


def test_render_writes_the_configuration(preset: Path, tmp_path: Path) -> None:
    result = call("render", str(preset), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    names = {Path(line).name for line in says(result).splitlines()}
    assert names == {"config.toml", "accelerate.yaml", "command.txt"}


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", 3, "is empty"),
        (b"\x00\xff\xfe", 3, "not a text file"),
        (b"name = hero", 3, "not valid TOML"),
        (b'name = "h"\nbase = "pixelkit-tiny"\n[dataset]\npath = "sprits"\n', 4, "did you mean"),
        (
            b'name = "h"\nbase = "pixelkit-tiny"\n[dataset]\npath = "hero.toml"\n',
            4,
            "is a file, neither a folder nor a zip",
        ),
        (b'name = "h"\nbase = "pixelkit-tiny"\n[dataset]\npath = "empty"\n', 4, "no image found"),
        (b'name = "h"\nbase = "pixelkit-tiny"\n[dataset]\npath = "broken"\n', 4, "this is no image that can be read"),
        (
            b'name = "h"\nbase = "text.safetensors"\nfamily = "sd15"\n[dataset]\npath = "sprites"\n',
            3,
            "no safetensors file",
        ),
        (b'name = "h"\nbase = "pixelkit-tinny"\n[dataset]\npath = "sprites"\n', 3, "did you mean pixelkit-tiny?"),
        (b'name = "h"\nbase = "sdxl"\n[dataset]\npath = "sprites"\n', 5, "kohya sd-scripts, which is not here"),
        (
            b'name = "h"\nbase = "pixelkit-tiny"\nengine = "kohya"\n[dataset]\npath = "sprites"\n',
            5,
            "pixelkit config set sd_scripts",
        ),
        (
            b'name = "h"\nbase = "pixelkit-tiny"\n[dataset]\npath = "sprites"\n[kohya]\nlearning_ratee = 1.0\n',
            5,
            "learning_ratee",
        ),
        (
            b'name = "h"\nbase = "pixelkit-tiny"\n[dataset]\npath = "sprites"\n[train]\noptimizer = "lion"\n',
            5,
            "train.optimizer = lion",
        ),
        (
            b'name = "h"\nbase = "pixelkit-tiny"\nhardware = "gb11"\n[dataset]\npath = "sprites"\n',
            3,
            "did you mean gb10?",
        ),
    ],
)
def test_bad_input_is_one_clear_error(preset: Path, tmp_path: Path, content: bytes, code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    (tmp_path / "text.safetensors").write_text("this is a text file, long enough for a header")
    preset.write_bytes(content)
    for arguments in (
        ("check",),
        ("run", "--runs", str(tmp_path / "runs")),
        ("render", "--out", str(tmp_path / "out")),
    ):
        result = call(*arguments, str(preset))
        assert said in says(result)
        assert result.exit_code == code
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists(), "nothing half-written"


def test_a_missing_preset(tmp_path: Path) -> None:
    result = call("run", str(tmp_path / "no.toml"))
    assert "no such file" in says(result) and result.exit_code == 3


def test_truncated_sprites_fail_before_training(preset: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "sprites" / "cut.png")
    cut = tmp_path / "sprites" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:500])
    result = call("run", str(preset), "--runs", str(tmp_path / "runs"))
    assert "cut.png" in says(result) and result.exit_code == 4
    (run,) = (tmp_path / "runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "failed" and manifest["exit_code"] == 4


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_runs_folder(preset: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    result = call("run", str(preset), "--runs", str(tmp_path / "runs"))
    assert "cannot create a run" in says(result) and result.exit_code == 9


def test_a_runs_folder_that_is_a_file(preset: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    result = call("run", str(preset), "--runs", str(tmp_path / "runs"))
    assert "cannot create a run" in says(result) and result.exit_code == 9


def test_a_mistyped_option_in_an_own_template_fails_before_launch(preset: Path, tmp_path: Path) -> None:
    own = tmp_path / "templates"
    own.mkdir()
    shipped = (ROOT / "templates" / "diffusers" / "config.toml.j2").read_text()
    (own / "config.toml.j2").write_text(shipped.replace("\nlearning_rate =", "\nlearning_ratee ="))
    result = call("run", str(preset), "--dry-run", "--templates", str(own))
    assert result.exit_code == 6
    assert "learning_ratee: no such key; did you mean learning_rate?" in says(result)


def test_presets_list_show_copy(tmp_path: Path) -> None:
    assert "sdxl-balanced" in says(call("presets", "list"))
    assert 'base = "pixelkit-tiny"' in says(call("presets", "show", "quickstart"))
    assert "did you mean quickstart?" in says(call("presets", "show", "quickstrat"))
    target = tmp_path / "mine.toml"
    assert says(call("presets", "copy", "quickstart", str(target))).strip() == str(target)
    assert target.read_text().startswith("#:schema file://")
    again = call("presets", "copy", "quickstart", str(target))
    assert "exists already" in says(again) and again.exit_code == 3


def test_the_schema_is_the_shipped_one() -> None:
    assert says(call("presets", "schema")) == (ROOT / "presets" / "preset.schema.json").read_text("utf-8")


def test_config() -> None:
    assert call("config", "set", "models", "/m").exit_code == 0
    assert says(call("config", "show", "models")).strip() == "/m"
    assert "/m" in says(call("config", "show"))
    assert "did you mean models?" in says(call("config", "set", "model", "/m"))


def test_doctor_and_hardware() -> None:
    assert "sd-scripts" in says(call("doctor"))
    assert "profile" in says(call("hardware"))
    assert "bf16" in says(call("hardware", "--hardware", "gb10"))


def test_runs_of_an_empty_folder(tmp_path: Path) -> None:
    assert call("runs", "list", "--runs", str(tmp_path / "none")).exit_code == 0
    result = call("runs", "show", "latest", "--runs", str(tmp_path))
    assert "no run of that name" in says(result) and result.exit_code == 9
    assert call("resume", "latest", "--runs", str(tmp_path)).exit_code == 9


def _all_commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child
            found += _all_commands(child, (*path, name))
    return found


@pytest.mark.parametrize(
    ("path", "command"), _all_commands(main), ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_every_command_and_option_says_what_it_is(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help, path
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (path, parameter.name)
    assert call(*path, "--help").exit_code == 0


@pytest.mark.parametrize("file", ["presets/preset.schema.json", "docs/presets.md", "docs/commands.md"])
def test_what_is_made_from_the_code_is_up_to_date(file: str) -> None:
    import runpy

    files = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["FILES"]
    assert (ROOT / file).read_text("utf-8") == files[ROOT / file](), "run `uv run python docs/make_reference.py`"


def test_without_a_trainer_run_says_what_to_install(
    preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call("run", str(preset), "--engine", "diffusers", "--runs", str(tmp_path / "runs"))
    assert "pip install 'pixelkit[train]'" in says(result)
    assert result.exit_code == 5
    assert not (tmp_path / "runs").exists()
