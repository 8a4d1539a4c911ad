"""`pixelkit models` as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from made_registries import make_file, make_finished_run

from pixelkit import notify as notify_room
from pixelkit import paths
from pixelkit.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def models(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["models", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def last(result: Result) -> str:
    return result.stdout.strip().splitlines()[-1]


def test_from_a_run_to_production_and_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[notify_room.Ended] = []
    monkeypatch.setattr(notify_room, "notify", lambda event: told.append(event) or ["nobody was at home"])
    make_finished_run(here / "runs")
    added = models("add", "latest", "--rc", "--reason", "first try")
    assert last(added) == str(here / "models" / "staging" / "hero_v1.0_rc1.safetensors")
    assert last(models("promote", "hero")) == str(here / "models" / "production" / "hero_v1.0.safetensors")
    make_file(here / "second.safetensors", seed=2)
    models("add", "second.safetensors", "--style", "hero", "--major", "--stage", "production", "--reason", "bolder")
    listed = models("list").output
    assert "hero_v1.0" in listed and "before" in listed and "current" in listed and "clip_score 0.31" in listed
    back = models("rollback", "hero", "--reason", "green faces")
    assert last(back) == str(here / "models" / "current" / "hero.safetensors")
    assert "ALERT hero rolled back: hero_v2.0 -> hero_v1.0" in back.stderr and "nobody was at home" in back.stderr
    (event,) = told
    assert (event.name, event.state) == ("hero", "rolled back") and "green faces" in event.message
    rows = [json.loads(line) for line in models("log", "hero", "--json").stdout.splitlines()]
    assert [row["event"] for row in rows] == ["add", "promote", "add", "promote", "rollback"]
    assert {"event", "from", "to", "timestamp", "reason", "who", "forced"} <= rows[0].keys()
    shown = models("show", "hero_v1.0").output
    assert "first try" in shown and "green faces" in shown and "dataset.version" in shown
    assert models("show", "hero_v2.0", "--json").stdout.startswith("{")
    assert "all as they should be" in models("verify").stdout


def test_rollout_and_pick(here: Path) -> None:
    for seed in (1, 2):
        make_file(here / f"{seed}.safetensors", seed=seed)
        models("add", f"{seed}.safetensors", "--style", "hero")
    models("promote", "hero_v1.0")
    assert "10% of beta hero_v1.1" in models("rollout", "hero", "1.1", "10%", "--segment", "beta").stderr
    models("rollout", "hero", "hero_v1.1", "50%")
    picked = {models("pick", "hero", "--user", f"u{number}").stdout.strip() for number in range(20)}
    assert picked == {str(here / "models" / "production" / f"hero_v1.{minor}.safetensors") for minor in (0, 1)}
    answer = json.loads(models("pick", "hero", "--user", "u1", "--json").stdout)
    assert answer.keys() == {"style", "model", "file"}
    assert "50%, 10% of beta" in models("list", "--style", "hero", "--stage", "production").stdout
    (one,) = [row for row in json.loads(models("list", "--json").stdout) if row["in_use"].startswith("50%")]
    assert one["name"] == "hero_v1.1"


def test_what_is_wrong_is_said_and_has_its_exit_code(here: Path) -> None:
    assert "there is no registry" in models("list", code=9).stderr
    assert "there is no registry" in models("verify", code=9).stderr
    assert not (here / "models").exists()
    assert "no such file" in models("add", "hero.safetensors", code=9).stderr
    assert "no run of that name" in models("add", "hero", code=9).stderr
    make_file(here / "hero.safetensors")
    assert "is no version" in models("add", "hero.safetensors", "--version", "one", code=3).stderr
    models("add", "hero.safetensors", "--version", "1.0", "--minor", code=2)
    (here / "picture.safetensors").write_bytes(b"\x89PNG")
    assert "a picture" in models("add", "picture.safetensors", code=10).stderr
    models("add", "hero.safetensors")
    assert "did you mean hero_v1.0?" in models("promote", "hero_v1.1", code=3).stderr
    assert "no model of hero is in use" in models("pick", "hero", "--user", "u", code=3).stderr
    assert "no style of that name" in models("log", "nobody", code=3).stderr
    assert "write 10%" in models("rollout", "hero", "1.0", "10", code=3).stderr
    assert "no score" in models("score", "hero_v1.0", "rating=good", code=3).stderr
    assert "no score" in models("score", "hero_v1.0", "rating=nan", code=3).stderr
    (here / "models" / "staging" / "hero_v1.0.safetensors").unlink()
    told = models("verify", code=9).stderr
    assert "staging/hero_v1.0.safetensors is gone; put the right file back" in told


def test_rules_on_the_command_line(here: Path) -> None:
    make_file(here / "hero.safetensors")
    models("add", "hero.safetensors")
    (here / "models" / "rules.toml").write_text("minimum = { human_rating = 4 }\n")
    refused = models("promote", "hero", code=8)
    assert "has no score human_rating" in refused.stderr and "--force" in refused.stderr
    models("score", "hero", "human_rating=3.5")
    assert "human_rating is 3.5, it must be at least 4" in models("promote", "hero", code=8).stderr
    (here / "easy.toml").write_text("minimum = { human_rating = 3 }\n")
    (here / "wrong.toml").write_text("minimum = { human_rating = 'good' }\n")
    assert "wrong.toml:1 [minimum]" in models("promote", "hero", "--rules", "wrong.toml", code=3).stderr
    assert "forced" in models("promote", "hero", "--force").stderr
    assert (
        json.loads(models("log", "--json").stdout.splitlines()[-1])["forced"]
        == "human_rating is 3.5, it must be at least 4"
    )


def test_export_diff_archive(here: Path) -> None:
    for seed in (1, 2):
        make_file(here / f"{seed}.safetensors", seed=seed, **{"modelspec.license": f"L{seed}"})
        models("add", f"{seed}.safetensors", "--style", "hero")
    assert "L1" in models("diff", "hero_v1.0", "hero_v1.1").stdout
    assert json.loads(models("diff", "hero_v1.0", "hero_v1.1", "--json").stdout)["license"] == ["L1", "L2"]
    assert last(models("export", "hero_v1.0", "--out", "hero.zip")) == "hero.zip"
    assert "already there" in models("export", "hero_v1.0", "--out", "hero.zip", code=9).stderr
    models("export", "hero_v1.1", "--out", "hero.zip", "--overwrite")
    assert last(models("archive", "hero_v1.0")).endswith("archive/hero_v1.0.safetensors")
    assert last(models("promote", "hero_v1.0", "--to", "staging")).endswith("staging/hero_v1.0.safetensors")


def test_the_setting(here: Path) -> None:
    paths.write_setting("registry", str(here / "shelf"))
    make_file(here / "hero.safetensors")
    assert last(models("add", "hero.safetensors")).startswith(str(here / "shelf"))
    assert last(models("add", "hero.safetensors", "--registry", "other")).startswith(str(here / "other"))


def test_verify_rebuild(here: Path) -> None:
    make_file(here / "hero.safetensors")
    models("add", "hero.safetensors")
    models("promote", "hero")
    (here / "models" / "registry.sqlite").unlink()
    assert "--rebuild" in models("list", code=9).stderr
    assert last(models("verify", "--rebuild")) == "1 model, 2 files: all as they should be"
    assert json.loads(models("list", "--json").stdout)[0]["in_use"] == "current"
