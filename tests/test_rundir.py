from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelkit import paths
from pixelkit.errors import PresetError, StorageError
from pixelkit.rundir import create_run, find_run, list_runs


def test_two_runs_of_one_second_are_two(tmp_path: Path) -> None:
    first = create_run(tmp_path / "runs", "hero", preset_text="a", plan={"x": 1})
    second = create_run(tmp_path / "runs", "hero", preset_text="b", plan={})
    assert first.path != second.path
    assert first.preset.read_text() == "a"
    assert json.loads(first.plan.read_text()) == {"x": 1}
    assert len(list(list_runs(tmp_path / "runs"))) == 2


def test_states_are_kept_with_their_times(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    run.enter("training", seconds=3)
    run.update(more=1)
    manifest = run.read_manifest()
    assert (manifest["state"], manifest["seconds"], manifest["more"]) == ("training", 3, 1)
    assert [entry["state"] for entry in manifest["history"]] == ["planned", "training"]
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")], "no temporary file is left"


def test_finding_runs(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    assert (
        find_run(tmp_path, "latest") == find_run(tmp_path, run.path.name) == find_run(Path("/"), str(run.path)) == run
    )
    with pytest.raises(StorageError) as caught:
        find_run(tmp_path, run.path.name[:-1])
    assert f"did you mean {run.path.name}?" in str(caught.value)


def test_a_broken_manifest_is_one_error(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    run.manifest.write_text("{")
    with pytest.raises(StorageError, match="broken"):
        run.read_manifest()


def test_a_place_that_cannot_hold_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create a run"):
        create_run(tmp_path / "file" / "runs", "hero", preset_text="", plan={})


def test_settings() -> None:
    assert paths.read_settings() == {}
    paths.write_setting("sd_scripts", "/somewhere else/ü")
    assert paths.read_settings() == {"sd_scripts": "/somewhere else/ü"}
    paths.write_setting("sd_scripts", "")
    assert paths.read_settings() == {}
    with pytest.raises(PresetError) as caught:
        paths.write_setting("sdscripts", "x")
    assert "did you mean sd_scripts?" in str(caught.value)
    paths.settings_file().write_text("= broken")
    with pytest.raises(PresetError, match="not valid TOML"):
        paths.read_settings()


def test_the_engine_is_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(paths.ENGINE_VARIABLE, raising=False)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "pixelkit")
    assert paths.locate_sd_scripts() is None
    submodule = tmp_path / "third_party" / "sd-scripts"
    submodule.mkdir(parents=True)
    assert paths.locate_sd_scripts() is None, "a submodule that was not fetched is an empty folder"
    (submodule / "train_network.py").touch()
    named: list[str] = []

    def locate(explicit: Path | None = None) -> None:
        found = paths.locate_sd_scripts(explicit)
        assert found
        named.append(found.named_by)

    locate()
    paths.write_setting("sd_scripts", str(tmp_path / "a"))
    locate()
    monkeypatch.setenv(paths.ENGINE_VARIABLE, str(tmp_path / "b"))
    locate()
    locate(tmp_path / "c")
    assert named == ["third_party/sd-scripts", str(paths.settings_file()), paths.ENGINE_VARIABLE, "--sd-scripts"]
