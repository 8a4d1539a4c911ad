from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from pixelkit import paths
from pixelkit.errors import PresetError, StorageError
from pixelkit.rundir import RunDir, create_run, find_run, list_runs


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
    assert [path.name for path in tmp_path.iterdir()] == [run.path.name]


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


def write_metrics(folder: Path, text: str) -> RunDir:
    """`b3` begins behind step 3, `s4` is step 4, `p4` a sample, `w4` a save, `S4` a state, `e4` the end, `?` a torn line."""
    kinds = {"b": "begin", "s": "step", "p": "sample", "w": "save", "S": "state", "e": "end"}
    lines = []
    for word in text.split():
        number = {"step": int(word[1:])} if word[1:] else {}
        lines.append('{"event":"st' if word == "?" else json.dumps({"event": kinds[word[0]], **number}))
    run = RunDir(path=folder)
    run.metrics.write_text("".join(f"{line}\n" for line in lines))
    return run


def read_metrics(run: RunDir) -> str:
    return " ".join(
        f"{'S' if event['event'] == 'state' else 'w' if event['event'] == 'save' else event['event'][0]}{event.get('step', '')}"
        for event in run.read_metrics()
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("b0 s1 s2 e2", "b0 s1 s2 e2"),
        ("b0 s1 s2 w2 S2 s3 s4 ? b2 s3 s4 e4", "b0 s1 s2 w2 S2 b2 s3 s4 e4"),
        ("b0 s1 s2 S2 s3 s4 w4 b2 s3 b1 s2 s3", "b0 s1 b1 s2 s3"),
        ("b0 s1 s2 S2 s3 b2 b2 s3", "b0 s1 s2 S2 b2 b2 s3"),
        ("b0 s1 s2 b0 s1", "b0 s1"),
        ("b0 s1 s2 e2 b1 s2", "b0 s1 b1 s2"),
        ("b s1 s2 s3 b s3 s4", "b s1 s2 b s3 s4"),
        ("b s1 s2 s3 b", "b s1 s2 s3 b"),
        ("s1 s2", "s1 s2"),
        ("? ?", ""),
    ],
)
def test_a_resumed_run_reads_as_one(tmp_path: Path, written: str, read: str) -> None:
    assert read_metrics(write_metrics(tmp_path, written)) == read.replace("p", "s")


def test_samples_of_a_first_try_do_not_count(tmp_path: Path) -> None:
    run = write_metrics(tmp_path, "b0 p0 s1 s2 p2 b0 p0 s1 p1")
    assert [(event["event"], event["step"]) for event in run.read_metrics()] == [
        ("begin", 0),
        ("sample", 0),
        ("step", 1),
        ("sample", 1),
    ]


def test_reading_metrics_is_cheap(tmp_path: Path) -> None:
    run = RunDir(path=tmp_path)
    run.metrics.write_text('{"event":"begin","step":0}\n' + '{"event":"step","step":1,"loss":0.5}\n' * 100_000)
    events = run.read_metrics()
    assert next(events)["event"] == "begin"
    assert next(events)["step"] == 1


def test_the_last_state_is_found_wherever_the_run_lies_and_whoever_told(tmp_path: Path) -> None:
    run = RunDir(path=tmp_path)
    assert run.last_state() is None
    for name in ("hero-step00000002-state", "hero-step00000010-state", "hero-state.part"):
        (run.output / name).mkdir(parents=True)
    assert run.last_state() == (run.output / "hero-step00000010-state", 10), "no event says so: pixelkit was killed"
    (run.output / "hero-000007-state").mkdir()
    (run.output / "hero-000007-state" / "train_state.json").write_text('{"current_step": 21}')
    assert run.last_state() == (run.output / "hero-000007-state", 21)
    for name in ("hero-step00000004", "hero-step00000012", "hero", "hero-step2-step00000099"):
        (run.output / f"{name}.safetensors").touch()
    assert run.last_weights("hero") == (run.output / "hero-step00000012.safetensors", 12)


def test_orders_are_taken_once_and_stop_comes_first(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    run.leave_order("stop")
    with run.hold():
        assert run.take_order() is None, "it was left before the run was at work"
        for word in ("sample", "save", "stop", "save"):
            run.leave_order(word)
        assert [run.take_order() for _ in range(4)] == ["stop", "save", "sample", None]
    with pytest.raises(ValueError, match="halt"):
        run.leave_order("halt")  # type: ignore[arg-type]


def test_a_run_has_one_owner(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    assert not run.is_active(), "this process is not at work on it yet"
    with run.hold():
        assert run.is_active()
        with pytest.raises(StorageError, match=rf"is at work \(process {os.getpid()}\)"), run.hold():
            pass
        run.enter("done")
        assert not run.is_active()
    with run.hold():
        pass


def test_a_run_that_a_killed_process_left_is_not_active(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    run.update(state="training", owner={"pid": 2**22 + 1, "started": 1.0})
    assert not run.is_active()
    run.lock.touch()
    assert not run.is_active()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    run = create_run(tmp_path, "hero", preset_text="", plan={})
    left = (
        ".manifest.json.ab12_xyz", "output/.hero-step00000002-state.77.tmp/optimizer.pt", "output/hero-state.part/x.bin",
        "output/hero-step00000002.part.safetensors", "start/.hero-start.part.safetensors", "dataset/.images.jsonl.new",
        "export/.hero.safetensors.12.tmp",
    )  # fmt: skip
    kept = (
        "dataset/images.jsonl.part",
        "dataset/images/part.png",
        "output/hero.safetensors",
        ".notes",
        "output/.x/y.txt",
    )
    for name in (*left, *kept):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("x")
    run.remove_leftovers()
    assert [name for name in kept if (run.path / name).is_file()] == list(kept)
    assert not [name for name in left if (run.path / name).exists()]
    assert not (run.output / "hero-state.part").exists()


def test_a_run_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = tmp_path / f".hero-20260101-000000.{platform.node()}-{2**22 + 1}.part"
    own = tmp_path / f".hero-20260101-000000.elsewhere-{2**22 + 1}.part"
    for folder in (dead, own):
        folder.mkdir()
        (folder / "preset.toml").touch()

    def fail(*_: object, **__: object) -> None:
        raise StorageError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(RunDir, "enter", fail)
        with pytest.raises(StorageError, match="disk full"):
            create_run(tmp_path, "hero", preset_text="", plan={})
    assert list(tmp_path.iterdir()) == [own], "of another machine: perhaps at work"
    assert not list(list_runs(tmp_path))
