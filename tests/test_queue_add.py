"""What `queue add` makes of presets and matrices, and what it refuses; and the commands, without any job run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pixelkit.cli import main
from pixelkit.errors import PresetError
from pixelkit.preset_file import load_preset
from pixelkit.queue.adding import Wish, plan_jobs, read_axis
from pixelkit.queue.attempts import Outcome, begin, claim, report, settle
from pixelkit.queue.book import Book

PRESET = """\
name = "hero"   # ours
base = "pixelkit-tiny"

[dataset]
path = "sprites"

[train]
steps = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "art" / "sprites").mkdir(parents=True)
    Image.new("RGBA", (16, 16), (200, 30, 30, 255)).save(tmp_path / "art" / "sprites" / "a.png")
    (tmp_path / "art" / "hero.toml").write_text(PRESET)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixelkit(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["queue", *arguments])


def plan(folder: Path, *presets: str, **more: object) -> list[tuple[str, tuple[str, ...], str]]:
    wish = Wish(presets=presets or ("art/hero.toml",), **more)  # type: ignore[arg-type]
    return [(job.name, job.overrides, job.stored) for job in plan_jobs(wish, folder / "store")]


def test_a_matrix_is_every_combination_and_each_run_has_its_name(folder: Path) -> None:
    jobs = plan(folder, matrix=("network.rank=16,32", "train.optimizer=adamw,adafactor"))
    assert [name for name, _, _ in jobs] == [
        "hero-rank16-optimizer-adamw",
        "hero-rank16-optimizer-adafactor",
        "hero-rank32-optimizer-adamw",
        "hero-rank32-optimizer-adafactor",
    ]
    for name, overrides, stored in jobs:
        loaded = load_preset(stored, overrides).preset
        assert loaded.name == name
        assert f"rank{loaded.network.rank}-optimizer-{loaded.train.optimizer}" in name
        assert loaded.dataset.path == str(folder / "art" / "sprites")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("network.rank=16, 32", ["16", "32"]),
        ("train.learning_rate=1e-4,2e-4", ["0.0001", "0.0002"]),
        ("train.optimizer=adamw, adafactor", ['"adamw"', '"adafactor"']),
        ('sample.prompts=["a, b"],["c"]', ['["a, b"]', '["c"]']),
        ("train.shuffle_caption=true,false", ["true", "false"]),
    ],
)
def test_values_of_an_axis(text: str, values: list[str]) -> None:
    assert [value.text for value in read_axis(text)] == values


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"matrix": ("network.rank",)}, "write it as"),
        ({"matrix": ("network.rank=1,,2",)}, "missing"),
        ({"matrix": ("network.rank=8,8",)}, "given twice"),
        ({"matrix": ("network.rank=8", "network.rank=16")}, "given twice"),
        ({"matrix": ("network.rank=8",), "overrides": ("network.rank=4",)}, "by --set and by --matrix"),
    ],
)
def test_a_slip_in_a_matrix_is_told(folder: Path, more: dict[str, object], word: str) -> None:
    with pytest.raises(PresetError, match=word):
        plan(folder, **more)


def test_points_that_read_alike_are_numbered(folder: Path) -> None:
    names = [name for name, _, _ in plan(folder, matrix=('dataset.trigger="a/b","a b"',))]
    assert names == ["hero-trigger-a-b-1", "hero-trigger-a-b-2"]
    long = "x" * 90
    names = [name for name, _, _ in plan(folder, matrix=("network.rank=4,8",), overrides=(f"name={long}",))]
    assert len({*names}) == 2 and all(len(name) <= 100 for name in names)


def test_everything_wrong_is_told_at_once_and_nothing_is_added(folder: Path) -> None:
    (folder / "bad.toml").write_text(PRESET.replace("steps", "stepz"))
    (folder / "gone.toml").write_text(PRESET.replace("sprites", "spritez"))
    (folder / "base.toml").write_text(PRESET.replace("pixelkit-tiny", "pixelkit-tinny"))
    result = pixelkit("add", "art/hero.toml", "bad.toml", "gone.toml", "base.toml", "--matrix", "network.rank=4,0")
    assert result.exit_code == 3
    assert "stepz: no such key" in result.stderr and "spritez" in result.stderr and "rank = 0" in result.stderr
    assert "did you mean pixelkit-tiny?" in result.stderr
    assert "nothing was added" in result.stderr
    assert not list((folder / "runs").rglob("*.sqlite")) and not list(folder.rglob("presets/*/*.toml"))


def test_a_queued_job_keeps_the_preset_as_it_was(folder: Path) -> None:
    (folder / "art" / "parent.toml").write_text(PRESET)
    (folder / "art" / "child.toml").write_text(
        'extends = "parent.toml"  # the rest\nname = "child"\n\n[network]\nrank = 4\n'
    )
    ((_, overrides, stored),) = plan(folder, "art/child.toml")
    (folder / "art" / "parent.toml").write_text("nonsense")
    (folder / "art" / "child.toml").unlink()
    loaded = load_preset(stored, overrides)
    assert (loaded.preset.name, loaded.preset.network.rank, loaded.preset.train.steps) == ("child", 4, 4)
    assert loaded.where("network", "rank") == "child.toml:5 [network]"
    assert "# the rest" in loaded.text
    assert Path(loaded.preset.dataset.path).is_dir()


def test_what_an_earlier_job_makes_need_not_be_there_yet(folder: Path) -> None:
    (folder / "gone.toml").write_text(PRESET.replace("sprites", "later"))
    with pytest.raises(PresetError):
        plan(folder, "gone.toml")
    assert plan(folder, "gone.toml", after=(1,))


def test_the_commands_tell_the_story(folder: Path) -> None:
    result = pixelkit("add", "art/hero.toml", "--matrix", "train.seed=1,2,3", "--retries", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == "job 1 (hero-seed1) is waiting"
    assert pixelkit("add", "art/hero.toml", "--after", "hero-seed*").exit_code == 0
    with Book.at(folder / "runs") as book:
        job = claim(book, "h|b|n|1|1", lambda *_: ("0",))
        assert job and begin(book, 1, 1, "h|b|n|1|1")
        report(book, 1, 1, step=30, total=120, loss=0.125, phase="training", expected=4e9, run=str(folder))
    listed = pixelkit("list").stdout
    assert " 25%" in listed and "30/120" in listed and "0.1250" in listed
    assert "after 1, 2, 3" in listed and "1 running, 3 waiting" in listed
    data = json.loads(pixelkit("list", "--json").stdout)
    assert [(one["id"], one["state"]) for one in data] == [
        (1, "running"),
        (2, "waiting"),
        (3, "waiting"),
        (4, "waiting"),
    ]
    assert data[3]["after"] == [1, 2, 3] and data[0]["process"] == 1 and "dataset.path" in str(data[0]["overrides"])
    assert pixelkit("save-now", "1").exit_code == 0 and (folder / "save.order").is_file()
    assert "is waiting" in pixelkit("sample-now", "2").stderr
    assert "saves and stops" in pixelkit("cancel", "hero-seed1").stdout
    assert "saving, then stopping" in pixelkit("list").stdout
    with Book.at(folder / "runs") as book:
        settle(book, 1, 1, "h|b|n|1|1", Outcome(kind="stopped"))
    listed = pixelkit("list").stdout
    assert "2 cancelled, 2 waiting" in listed and "job 1 (hero-seed1) was cancelled" in listed
    shown = pixelkit("show", "hero-seed1").stdout
    assert "attempt 1 on 0" in shown and "asked to save and stop for good" in shown and "2 left" in shown
    assert "is waiting" in pixelkit("retry", "1").stdout
    assert "is paused" in pixelkit("pause", "2", "3").stdout
    assert "the queue is paused" in pixelkit("pause").stdout and "the queue is paused" in pixelkit("list").stdout
    assert "goes on" in pixelkit("resume").stdout
    assert pixelkit("clear", "--all").stdout == "0 jobs cleared\n"
    assert "no such job" in pixelkit("show", "heero").stderr
    assert pixelkit("logs", "2").exit_code == 0


def test_clear_removes_logs_and_copies_that_nothing_needs(folder: Path) -> None:
    pixelkit("add", "art/hero.toml")
    (folder / "art" / "hero.toml").write_text(PRESET.replace("ours", "theirs"))
    pixelkit("add", "art/hero.toml")
    with Book.at(folder / "runs") as book:
        first, second = book.jobs()
        assert claim(book, "h|b|n|1|1", lambda *_: ("0",))
        settle(book, 1, 1, "", Outcome(kind="done"))
        book.log_of(1).parent.mkdir(parents=True)
        book.log_of(1).write_text("done")
    os.utime(first.stored, (0, 0))
    os.utime(second.stored, (0, 0))
    assert pixelkit("clear").stdout == "1 jobs cleared\n"
    assert not Path(first.stored).parent.exists() and Path(second.stored).is_file()
    assert not book.log_of(1).exists()


def test_without_a_queue_every_command_says_so(tmp_path: Path) -> None:
    for command in (["list"], ["show", "1"], ["cancel", "1"], ["pause"], ["clear"], ["logs", "1"]):
        result = pixelkit(*command, "--runs", str(tmp_path / "none"))
        assert result.exit_code == 9 and "there is no queue" in result.stderr, command


def test_logs_are_those_of_the_job_and_of_its_trainer(folder: Path) -> None:
    pixelkit("add", "art/hero.toml")
    with Book.at(folder / "runs") as book:
        assert claim(book, "h|b|n|1|1", lambda *_: ("0",)) and begin(book, 1, 1, "h|b|n|1|1")
        report(book, 1, 1, run=str(folder))
        book.log_of(1).parent.mkdir(parents=True)
        book.log_of(1).write_text("one\ntwo\n")
    (folder / "log.txt").write_text("three\nfour\n")
    assert pixelkit("logs", "1").stdout == "one\ntwo\nthree\nfour\n"
    assert pixelkit("logs", "hero", "-n", "1").stdout == "two\nfour\n"


def test_the_unit_names_this_installation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELKIT_SD_SCRIPTS", "/opt/100% mine")
    unit = pixelkit("install", "--print", "--runs", str(folder / "my runs"), "--workers", "2").stdout
    assert f'queue run --runs "{folder}/my runs" --workers 2' in unit
    assert 'Environment="PIXELKIT_SD_SCRIPTS=/opt/100%% mine"' in unit
    assert "KillMode=process" in unit and "SuccessExitStatus=130" in unit
