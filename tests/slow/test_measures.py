"""A real training is measured, and the forecast that rests on it comes out at what it took; a book that many write at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelkit.measures import MeasureBook, forecast, measure_run
from pixelkit.ready import Choices, make_ready
from pixelkit.rundir import list_runs

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from made_measures import make_measure
from pixelkit.measures import MeasureBook
book = MeasureBook(file=Path(sys.argv[1]))
for turn in range(20):
    assert book.add(make_measure(1.0 + turn, run=f"{sys.argv[2]}-{turn}")) == 1
"""


def test_a_real_training_takes_what_its_parts_take(tmp_path: Path) -> None:
    """Loading, steps, pictures and saves, each measured by itself, add up to the trainer's whole time."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "settings")}
    words = ["run", "quickstart", "--engine", "diffusers", "--runs", str(tmp_path / "runs")]
    changes = ["train.steps=15", 'sample.prompts=["{trigger}, a potion"]', 'export.formats=["kohya"]']
    command = [sys.executable, "-m", "pixelkit", *words, *(word for change in changes for word in ("--set", change))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    plan = make_ready(str(run.resolved), Choices()).plan
    measure = measure_run(run, plan)
    assert measure
    assert measure.steps == 13
    assert measure.seconds_per_picture and measure.seconds_per_save and measure.seconds_before > 1
    assert measure.peak_memory_gib and 0.3 < measure.peak_memory_gib < 6
    book = MeasureBook()
    book.add(measure)
    known = forecast(plan, book)
    took = run.read_manifest()["training"]["seconds"]
    assert known.seconds == pytest.approx(took, rel=0.25)
    assert known.memory_gib == measure.peak_memory_gib


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    book = tmp_path / "new" / "measures.sqlite"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(book), str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    troubles = [writer.communicate(timeout=120)[1] for writer in writers]
    assert troubles == [""] * 4
    assert len(MeasureBook(file=book).list_measures()) == 80
