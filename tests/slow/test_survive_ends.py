"""One clear end each, and nothing lost: full disks, folders that vanish or move, clocks that are set back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from fake_runs import COUNT, Runs, at_step
from fake_trainer import ROOT

from pixelkit import pipeline
from pixelkit.errors import DataError, PixelkitError, StorageError, TrainingError
from pixelkit.progress import Event, Save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pixelkit.ship import Shipment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")


# --- disks, folders, clocks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a size, to be given again to make it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: str) -> Path:
        option = f"remount,size={size}" if place.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        return place

    yield resize
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


def fill(place: Path, *, but: int) -> Path:
    """Leave so many bytes, whoever else writes meanwhile."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - but))
    return ballast


def test_a_disk_that_is_full_before_anything_is_there(runs: Runs, small_disk: Callable[[str], Path]) -> None:
    runs.root = small_disk("1m") / "runs"
    fill(runs.root.parent, but=8192)
    with pytest.raises(StorageError, match="No space left"):
        runs.start()
    assert not list(runs.root.iterdir()), "no half of a run"


def test_a_disk_that_fills_up_while_sprites_are_prepared(runs: Runs, small_disk: Callable[[str], Path]) -> None:
    runs.root = small_disk("2m") / "runs"
    ballast: list[Path] = []
    with pytest.raises(StorageError, match="No space left"):
        runs.start(on_prepared=lambda done, _: done == 5 and ballast.append(fill(runs.root.parent, but=0)))
    ballast[0].unlink()
    runs.resume()
    assert runs.state() == "done"
    assert not runs.temporary_files()


def test_a_disk_that_fills_up_while_it_trains(runs: Runs, small_disk: Callable[[str], Path]) -> None:
    runs.root = small_disk("4m") / "runs"
    runs.engine.how = {"pause": 0.05}
    ballast: list[Path] = []

    def see(event: Event) -> None:
        runs.engine._see(event)
        if isinstance(event, Save) and event.step == 3:
            time.sleep(0.1)
            ballast.append(fill(runs.root.parent, but=0))

    with pytest.raises(TrainingError) as caught:
        runs.start(on_event=see)
    assert caught.value.kind == "disk", caught.value
    assert "the disk is full" in caught.value.hint
    assert any("training goes on without it" in text for text in runs.engine.told), "the log, told once"
    ballast[0].unlink()
    runs.resume()
    assert runs.state() == "done"
    assert runs.engine.resumed_from[1] == runs.run.output / "quickstart-step00000003-state"
    assert not runs.temporary_files()


def test_a_disk_that_fills_up_while_it_ships(
    runs: Runs, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.root = small_disk("4m") / "runs"
    shipping = pipeline.ship

    def ship_later(*rest: Any, **named: Any) -> Shipment:
        fill(runs.root.parent, but=0)
        return shipping(*rest, **named)

    with monkeypatch.context() as full:
        full.setattr(pipeline, "ship", ship_later)
        with pytest.raises(StorageError, match="No space left") as caught:
            runs.start()
    assert "pixelkit resume" in caught.value.hint
    (runs.root.parent / "ballast").unlink()
    runs.resume()
    assert runs.state() == "done"
    assert len(runs.engine.resumed_from) == 1, "nothing was trained again"


def test_an_output_folder_that_cannot_be_made(runs: Runs) -> None:
    with pytest.raises(TrainingError) as caught:
        runs.start(on_run=lambda run: run.output.write_text("in the way"))
    assert "File exists" in caught.value.message
    assert runs.state() == "failed"


def test_sprites_that_vanish_between_check_and_preparation(runs: Runs) -> None:
    away = runs.sprites.with_name("away")
    with pytest.raises(DataError) as caught:
        runs.start(on_run=lambda _: runs.sprites.rename(away))
    assert "8 of 8 images cannot be used" in caught.value.message
    assert runs.state() == "failed"
    with pytest.raises(DataError, match="sprites") as caught:
        runs.resume()
    assert f"{runs.run.resolved} names the new place" in caught.value.hint
    text = runs.run.resolved.read_text().replace(str(runs.sprites), str(away))
    runs.run.resolved.write_text(text)
    runs.resume()
    assert runs.state() == "done"


def test_sprites_that_moved_while_a_run_was_stopped(runs: Runs) -> None:
    """The same sprites elsewhere are the same run; others are not."""
    runs.engine.how = {"fails": 5, "how": "sys.exit(1)"}
    with pytest.raises(TrainingError):
        runs.start()
    runs.engine.how = {}
    away = runs.sprites.rename(runs.sprites.with_name("away"))
    runs.run.resolved.write_text(runs.run.resolved.read_text().replace(str(runs.sprites), str(away)))
    victim = min(away.glob("*.png"))
    picture = victim.read_bytes()
    victim.unlink()
    with pytest.raises(DataError, match="are not those this run began with"):
        runs.resume()
    victim.write_bytes(picture)
    runs.resume()
    assert runs.state() == "done"
    assert runs.steps() == list(range(1, 13))


def test_captions_that_went_missing_are_written_again(runs: Runs) -> None:
    runs.engine.how = {"fails": 5, "how": "sys.exit(1)"}
    with pytest.raises(TrainingError):
        runs.start()
    captions = {path: path.read_text() for path in runs.run.dataset.rglob("*.txt")}
    assert len(captions) == COUNT
    for path in captions:
        path.unlink()
    runs.engine.how = {}
    runs.resume()
    assert {path: path.read_text() for path in captions} == captions


def test_a_run_that_moved_goes_on(runs: Runs) -> None:
    runs.engine.how = {"fails": 5, "how": "sys.exit(1)"}
    with pytest.raises(TrainingError):
        runs.start()
    runs.engine.how = {}
    runs.root = runs.root.rename(runs.root.with_name("elsewhere"))
    runs.resume()
    assert runs.engine.resumed_from[1] == runs.run.output / "quickstart-step00000003-state"
    assert runs.steps() == list(range(1, 13))


def test_a_base_that_moved_while_a_run_was_stopped(runs: Runs) -> None:
    base = runs.root.with_name("base")
    shutil.copytree(ROOT / "pixelkit" / "tiny" / "weights", base)
    runs.engine.how = {"fails": 5, "how": "sys.exit(1)"}
    own = (f'base="{base}"', 'family="sd15"', "dataset.resolution=64")
    with pytest.raises(TrainingError):
        runs.start(*own)
    base.rename(base.with_name("gone"))
    with pytest.raises(PixelkitError, match="no such file") as caught:
        runs.resume()
    assert "names the new place" in caught.value.hint
    assert runs.state() == "failed", "as it was"


def test_a_clock_that_is_set_back(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's file then seems older than the training, and the run to end before it began."""
    real = time.time
    jump = "import atexit; atexit.register(lambda: os.utime(out / f'{name}.safetensors', (1e9, 1e9)))"
    runs.engine.how = {"fails": 12, "how": jump}
    runs.start(on_event=at_step(6, lambda: monkeypatch.setattr(time, "time", lambda: real() - 86_400)))
    assert runs.state() == "done"
    assert 0 < runs.run.read_manifest()["training"]["seconds"] < 60


def test_a_model_of_before_is_not_this_trainings(runs: Runs) -> None:
    runs.engine.how = {"fails": 5, "how": "sys.exit(1)"}
    with pytest.raises(TrainingError):
        runs.start()
    stale = runs.run.model("quickstart")
    shutil.copy(runs.run.output / "quickstart-step00000003.safetensors", stale)
    runs.engine.how = {"leaves_nothing": True}
    with pytest.raises(TrainingError) as caught:
        runs.resume()
    assert caught.value.kind == "stale"


def test_a_trainer_of_before_is_waited_for(runs: Runs) -> None:
    """pixelkit was killed; its trainer still saves, which takes a while."""
    runs.engine.how = {"fails": 5, "how": "sys.exit(1)"}
    with pytest.raises(TrainingError):
        runs.start()
    runs.engine.how = {}
    saving = "import pathlib, sys, time; time.sleep(1.5); p = pathlib.Path(sys.argv[1]); p.mkdir()\n"
    saving += "(p / 'trainer.json').write_text('{\"step\": 9}')"
    state = runs.run.output / "quickstart-step00000009-state"
    old = subprocess.Popen(
        [sys.executable, "-c", saving, str(state)], env={**os.environ, "PIXELKIT_TRAINER": f"{runs.run.log}#1"}
    )
    threading.Thread(target=old.wait).start()
    runs.resume()
    assert runs.engine.told == ["waiting for the trainer of before, which still saves"]
    assert runs.engine.resumed_from[1] == state
