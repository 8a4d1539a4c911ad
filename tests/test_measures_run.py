"""What a run took is read from its metrics: every second goes where it belongs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from made_measures import make_measure, make_plan, make_setup

from pixelkit.measures import MeasureBook, measure_run, remember, settle
from pixelkit.measures.book import book_file
from pixelkit.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pixelkit.measures import Measure

GIB = 2**30
STARTED = 1_795_000_000.0  # 2026-11-18T...


class Trainer:
    """Writes the events of a trainer, by a clock that it turns itself."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(path=folder)
        self.run.path.mkdir(exist_ok=True)
        self.now = STARTED
        self.step = 0

    def tell(self, event: str, took: float, **fields: Any) -> None:
        self.now += took
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({"event": event, "time": self.now, **fields}) + "\n")

    def begin(self, loading: float) -> None:
        self.tell("begin", loading)

    def train(self, seconds: Iterable[float], memory: int = 0) -> None:
        for took in seconds:
            self.step += 1
            self.tell("step", took, step=self.step, seconds=took, memory=memory)

    def draw(self, took: float, pictures: int = 4) -> None:
        for index in range(pictures):
            self.tell("sample", took if index == 0 else 0.0, step=self.step, index=index)

    def save(self, took: float) -> None:
        self.tell("save", took, step=self.step)

    def end(self, ending: float, peak: int = 0) -> None:
        """The process ends; pixelkit writes what it saw of it."""
        self.run.update(training={"seconds": round(self.now - STARTED + ending, 1), "peak_memory_bytes": peak})


def test_every_second_is_somewhere(tmp_path: Path) -> None:
    """10 s of loading, 40 steps of 0.5 s of which the first three take 2 s longer, pictures and saves of known length."""
    trainer = Trainer(tmp_path / "a-run")
    trainer.begin(10.0)
    trainer.draw(8.0)
    trainer.train([2.5, 2.5, 2.5], memory=3 * GIB)
    trainer.train([0.5] * 17, memory=4 * GIB)
    trainer.draw(4.0)
    trainer.save(0.3)
    trainer.train([0.5] * 20)
    trainer.save(0.5)
    trainer.draw(8.0)
    trainer.end(2.0, peak=2 * GIB)
    plan = make_plan()
    measure = measure_run(trainer.run, plan)
    assert measure
    assert measure.seconds_per_step == 0.5
    assert measure.steps == 36
    assert measure.seconds_before == pytest.approx(10 + 3 * 2.0 + 2, abs=0.06), "loading, warming up, ending"
    assert measure.seconds_per_picture == 2.0, "8, 4 and 8 s for four"
    assert measure.seconds_per_save == pytest.approx(0.4)
    assert measure.peak_memory_gib == 4.0
    assert measure.run == "a-run"
    total = 10 + 8 + 7.5 + 37 * 0.5 + 4 + 0.3 + 0.5 + 8 + 2
    parts = measure.seconds_before + 40 * 0.5 + 10 * 2 + 2 * 0.4
    assert parts == pytest.approx(total, abs=0.1)


def test_a_hold_up_does_not_count_and_another_canvas_does() -> None:
    assert settle([0.5] * 30 + [60.0] + [0.5] * 30) == pytest.approx(0.5)
    mixed = [0.2, 1.0] * 45
    assert settle(mixed) == pytest.approx(0.6), "the median alone would be one of the two"


@pytest.mark.parametrize(("steps", "known"), [(0, False), (5, False), (6, False), (7, True), (12, True)])
def test_too_few_steps_say_nothing(tmp_path: Path, steps: int, *, known: bool) -> None:
    trainer = Trainer(tmp_path / "run")
    trainer.begin(1.0)
    trainer.train([0.5] * steps)
    trainer.end(1.0)
    assert (measure_run(trainer.run, make_plan()) is not None) is known


def test_of_a_resumed_run_the_last_stretch_counts(tmp_path: Path) -> None:
    """Before it the batch may have been larger, and not have fitted."""
    trainer = Trainer(tmp_path / "run")
    trainer.begin(5.0)
    trainer.train([9.0] * 80, memory=20 * GIB)
    trainer.now += 100_000.0
    trainer.begin(3.0)
    trainer.train([0.5] * 30, memory=2 * GIB)
    trainer.run.update(training={"seconds": 3.0 + 15.0 + 1.0})
    measure = measure_run(trainer.run, make_plan())
    assert measure
    assert measure.seconds_per_step == 0.5
    assert measure.seconds_before == pytest.approx(4.0)
    assert measure.peak_memory_gib == 2.0
    trainer.begin(3.0)
    trainer.train([0.5] * 3)
    assert measure_run(trainer.run, make_plan()) is None


def test_memory_of_a_gpu_of_its_own_of_shared_memory_and_of_a_processor(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "run")
    trainer.begin(1.0)
    trainer.train([0.5] * 20, memory=6 * GIB)
    trainer.end(1.0, peak=10 * GIB)

    def peak(profile: str) -> float | None:
        measure: Measure | None = measure_run(trainer.run, make_plan("sdxl-balanced", profile=profile))
        assert measure
        return measure.peak_memory_gib

    assert peak("cuda-24gb") == 6.0
    assert peak("gb10") == 16.0, "what the GPU takes of the shared memory is not in the processes' own"
    assert peak("cpu") == 10.0


def test_a_plain_script_without_begin_and_memory(tmp_path: Path) -> None:
    run = RunDir(path=tmp_path)
    lines = [{"event": "step", "step": step, "seconds": 0.5, "time": STARTED + step / 2} for step in range(1, 21)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.update(training={"seconds": 12.0})
    measure = measure_run(run, make_plan())
    assert measure
    assert measure.seconds_per_step == pytest.approx(0.5)
    assert measure.peak_memory_gib is None


def test_remember_keeps_it_and_never_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(tmp_path / "a-run")
    trainer.begin(1.0)
    trainer.train([0.25] * 20)
    trainer.end(1.0)
    remember(trainer.run, make_plan())
    found = MeasureBook().find(make_setup())
    assert found and found.seconds_per_step == 0.25
    assert capsys.readouterr().err == ""
    remember(RunDir(path=tmp_path / "nowhere"), make_plan())
    assert "nowhere could not be measured" in capsys.readouterr().err
    book_file().write_bytes(b"broken" * 100)
    remember(trainer.run, make_plan())
    assert "cannot be used" in capsys.readouterr().err


def test_the_made_measure_is_of_the_made_plan() -> None:
    """What the other tests rest on."""
    MeasureBook().add(make_measure(0.5))
    assert MeasureBook().find(make_setup())
