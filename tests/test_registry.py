"""The registry: models come in, move on, come back; every change is one row of a log that cannot be altered."""

from __future__ import annotations

import errno
import json
import sqlite3
import zipfile
from pathlib import Path

import pytest
from made_registries import METRICS, list_models, make_finished_run, make_registry, snapshot

from pixelkit import paths
from pixelkit.errors import PixelkitError, PresetError, ShipError, StorageError
from pixelkit.registry import steps
from pixelkit.registry.adding import Wish, add_model
from pixelkit.registry.bundle import export
from pixelkit.registry.compare import compare
from pixelkit.registry.facts import find_shipped
from pixelkit.registry.rollout import Rollout, read_deployment
from pixelkit.registry.rules import Rules
from pixelkit.registry.stages import Permit, archive, promote, roll_out, rollback, score, stage_again
from pixelkit.registry.store import Registry, open_registry

FREE = Permit()


def current(registry: Registry, style: str = "hero") -> str:
    link = registry.find_link(style)
    assert link.read_bytes()
    return link.resolve().stem


def events(registry: Registry) -> list[str]:
    with registry.reading() as index:
        return [row["event"] for row in index.log()]


def test_a_candidate_becomes_a_release_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    registry = Registry(folder=tmp_path / "models")
    add_model(registry, find_shipped(make_finished_run(tmp_path / "a")), Wish(candidate=True))
    change = promote(registry, "hero", FREE, reason="approved")
    assert (change.source, change.target) == ("staging/hero_v1.0_rc1", "production/hero_v1.0")
    assert not list((registry.folder / "staging").iterdir())
    production = registry.folder / "production"
    assert sorted(path.name for path in production.iterdir()) == [
        "hero_v1.0",
        "hero_v1.0.pixelkit.json",
        "hero_v1.0.safetensors",
    ]
    assert (production / "hero_v1.0" / "hero-sheet.png").is_file()
    about = json.loads((production / "hero_v1.0.pixelkit.json").read_text())
    assert (about["model_name"], about["version"], about["status"]) == ("hero_v1.0", "1.0", "production")
    assert about["file"]["name"] == "hero_v1.0.safetensors"
    link = registry.find_link("hero")
    assert link.readlink().as_posix() == "../production/hero_v1.0.safetensors", "relative: the folder may move"
    registry.folder.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "current" / "hero.safetensors").read_bytes()


def test_the_one_before_stays_for_a_rollback(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1", "1.2", promoted=3)
    assert current(registry) == "hero_v1.2"
    assert {entry.stage for entry in list_models(registry).values()} == {"production"}
    change = rollback(registry, "hero", reason="green faces")
    assert (change.source, change.target, current(registry)) == ("hero_v1.2", "hero_v1.1", "hero_v1.1")
    rollback(registry, "hero")
    assert current(registry) == "hero_v1.0"
    with pytest.raises(PresetError, match=r"there is no model of hero before hero_v1.0"):
        rollback(registry, "hero")
    rollback(registry, "hero", to="1.2")
    assert current(registry) == "hero_v1.2"
    assert rollback(registry, "hero").target == "hero_v1.0", "where it came from"
    assert events(registry)[-4:] == ["rollback", "rollback", "rollback", "rollback"]


def test_rollback_to_the_archive_and_to_what_never_served(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1", "1.2_rc1", promoted=2)
    archive(registry, "hero_v1.0")
    with pytest.raises(PresetError, match="no model of hero before"):
        rollback(registry, "hero")
    archive(registry, "hero_v1.2_rc1")
    with pytest.raises(PresetError, match="was never in production"):
        rollback(registry, "hero", to="1.2_rc1")
    with pytest.raises(PresetError, match=r"has no version 7.0"):
        rollback(registry, "hero", to="7.0")
    rollback(registry, "hero", to="1.0")
    assert current(registry) == "hero_v1.0"
    assert list_models(registry)["hero_v1.0"].stage == "production"
    with pytest.raises(PresetError, match="what everybody gets already"):
        rollback(registry, "hero", to="v1.0")


def test_what_is_in_use_is_not_archived(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1", promoted=1)
    roll_out(registry, "hero", "1.1", Rollout(model="", percent=10), FREE)
    for name in ("hero_v1.0", "hero_v1.1"):
        with pytest.raises(PresetError, match="is in use: users get it"):
            archive(registry, name)
    roll_out(registry, "hero", "1.1", Rollout(model="", percent=0), FREE)
    archive(registry, "hero_v1.1", reason="too dark")
    with pytest.raises(PresetError, match="is archived already"):
        archive(registry, "hero_v1.1")
    assert stage_again(registry, "hero_v1.1").target == "staging/hero_v1.1"


def test_rollouts(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1_rc1", "1.2", promoted=1)
    ten = Rollout(model="", percent=10)
    change = roll_out(registry, "hero", "1.1_rc1", ten, FREE)
    assert (change.model, change.target) == ("hero_v1.1", "hero_v1.1 10%")
    assert current(registry) == "hero_v1.0", "the link stays"
    salt = read_deployment(registry.folder, "hero").salt
    assert roll_out(registry, "hero", "1.1", Rollout(model="", percent=20), FREE).source == "hero_v1.1 10%"
    assert rollback(registry, "hero").target == "hero_v1.0", "a rollback ends the rollout first"
    assert read_deployment(registry.folder, "hero").rollouts == ()
    roll_out(registry, "hero", "1.1", Rollout(model="", percent=100), FREE)
    assert current(registry) == "hero_v1.1"
    rollback(registry, "hero")
    assert current(registry) == "hero_v1.0"
    assert read_deployment(registry.folder, "hero").salt == salt, "one salt for ever"
    with pytest.raises(PresetError, match="is what everybody gets"):
        roll_out(registry, "hero", "1.0", ten, FREE)
    with pytest.raises(PresetError, match="is rolled out to nobody"):
        roll_out(registry, "hero", "1.2", Rollout(model="", percent=0), FREE)


def test_a_rollout_needs_a_model_for_the_others(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    with pytest.raises(PresetError, match="no model of hero is in use"):
        roll_out(registry, "hero", "1.0", Rollout(model="", percent=10), FREE)
    with pytest.raises(PresetError, match="did you mean hero"):
        roll_out(registry, "heroo", "1.0", Rollout(model="", percent=10), FREE)


def test_rules_refuse_and_force_is_written_down(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1", promoted=1)
    strict = Rules(minimum={"clip_score": 0.3}, require=("license",))
    before = snapshot(registry)
    for attempt in (
        lambda: promote(registry, "hero_v1.1", Permit(rules=strict)),
        lambda: roll_out(registry, "hero", "1.1", Rollout(model="", percent=5), Permit(rules=strict)),
    ):
        with pytest.raises(ShipError) as caught:
            attempt()
        assert "has no license" in str(caught.value) and "has no score clip_score" in str(caught.value)
    assert snapshot(registry) == before
    promote(registry, "hero_v1.1", Permit(rules=strict, force=True))
    with registry.reading() as index:
        row = index.log()[-1]
    assert row["forced"] == "has no license; has no score clip_score; it has none at all"


def test_scores_of_people(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    score(registry, "hero_v1.0", {"human_rating": 4.3, "used_as_is": 0.82})
    assert score(registry, "hero_v1.0", {"human_rating": 4.4}).source == "human_rating 4.3"
    entry = list_models(registry)["hero_v1.0"]
    assert json.loads(registry.find_metadata(entry).read_text())["metrics"] == {"human_rating": 4.4, "used_as_is": 0.82}
    assert promote(registry, "hero", Permit(rules=Rules(minimum={"human_rating": 4}))).forced == ""


def test_the_log_cannot_be_altered(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1", promoted=2)
    rollback(registry, "hero", reason="why")
    database = sqlite3.connect(registry.index_file)
    for statement in (
        "DELETE FROM log",
        "UPDATE log SET reason = ''",
        "INSERT OR REPLACE INTO log SELECT * FROM log WHERE id = 1",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
    database.close()
    with registry.reading() as index:
        rows = index.log("hero")
    assert [row["event"] for row in rows] == ["add", "promote", "add", "promote", "rollback"]
    last = rows[-1]
    assert (last["from"], last["to"], last["reason"]) == ("hero_v1.1", "hero_v1.0", "why")
    assert last["timestamp"].endswith("+00:00") and "@" in last["who"]


@pytest.mark.parametrize("failing", ["move", "write", "link"])
def test_a_change_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    registry = make_registry(tmp_path, "1.0", "1.1", promoted=1)
    before, log = snapshot(registry), events(registry)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if failing == "move":
            patch.setattr(steps.Move, "do", lambda self, root: (_ for _ in ()).throw(full))
        elif failing == "link":
            patch.setattr(steps, "point", lambda root, link, target: fail_once(patch, full))
        else:
            real = steps.write_atomically
            patch.setattr(
                steps,
                "write_atomically",
                lambda path, text: fail_once(patch, full) if "1.1" in path.name else real(path, text),
            )
        with pytest.raises((StorageError, OSError), match="No space left"):
            promote(registry, "hero_v1.1", FREE)
    assert snapshot(registry) == before
    assert events(registry) == log
    promote(registry, "hero_v1.1", FREE)
    assert current(registry) == "hero_v1.1"


def fail_once(patch: pytest.MonkeyPatch, error: OSError) -> None:
    patch.undo()
    raise error


def test_where_there_are_no_links_a_copy_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    registry = make_registry(tmp_path, "1.0", "1.1", promoted=2)
    link = registry.find_link("hero")
    assert not link.is_symlink()
    assert link.read_bytes() == (registry.folder / "production" / "hero_v1.1.safetensors").read_bytes()
    rollback(registry, "hero")
    assert link.read_bytes() == (registry.folder / "production" / "hero_v1.0.safetensors").read_bytes()


def test_something_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.0")
    stranger = registry.folder / "production" / "hero_v1.0.safetensors"
    stranger.write_bytes(b"mine")
    with pytest.raises(StorageError, match="is in the way"):
        promote(registry, "hero", FREE)
    assert stranger.read_bytes() == b"mine"


def test_an_export_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    registry = Registry(folder=tmp_path / "models")
    entry = add_model(registry, find_shipped(make_finished_run(tmp_path / "a")), Wish())
    for name in ("one.zip", "two.zip"):
        export(registry, entry, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive_file:
        names = archive_file.namelist()
        assert archive_file.testzip() is None
        licence = archive_file.read("hero_v1.0/LICENSE.txt").decode()
        archive_file.extractall(tmp_path / "out")
    assert "hero_v1.0/peft/unet/adapter_config.json" in names
    assert "hero_v1.0: CC-BY-4.0" in licence and "CreativeML Open RAIL++-M" in licence
    other = Registry(folder=tmp_path / "other studio")
    again = add_model(other, tmp_path / "out" / "hero_v1.0" / "hero_v1.0.safetensors", Wish())
    assert again.metadata["metrics"] == METRICS and again.metadata["dataset"]["size"] == 75


def test_what_differs(tmp_path: Path) -> None:
    registry = Registry(folder=tmp_path / "models")
    one = add_model(registry, find_shipped(make_finished_run(tmp_path / "a")), Wish())
    other = add_model(
        registry, find_shipped(make_finished_run(tmp_path / "b", seed=1, metrics={"clip_score": 0.4})), Wish()
    )
    found = {key: values for key, *values in compare(one, other)}
    assert found["metrics.clip_score"] == [0.31, 0.4]
    assert found["metrics.loss"] == [0.08, None]
    assert "file.sha256" in found
    assert not {key for key in found if key.startswith(("hyperparameters", "dataset", "model_name", "license"))}


def test_the_folder_of_base_models_is_no_registry(tmp_path: Path) -> None:
    paths.write_setting("models", str(tmp_path / "bases"))
    with pytest.raises(PresetError, match="is the folder of base models"):
        open_registry(tmp_path / "bases")
    paths.write_setting("registry", str(tmp_path / "shelf"))
    assert open_registry().folder == tmp_path / "shelf"
    assert open_registry(tmp_path / "x").folder == tmp_path / "x"


def test_there_is_no_registry_yet(tmp_path: Path) -> None:
    registry = Registry(folder=tmp_path / "models")
    with pytest.raises(PixelkitError, match="there is no registry"), registry.reading():
        pass
    assert not registry.folder.exists()
