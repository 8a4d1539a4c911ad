"""bench.train in its reduced form: one row, measured in a process of its own, and the report that it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def measure(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "bench.train", "--reduced", "--out", str(out), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PIXELKIT_SD_SCRIPTS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=400)
    report: dict[str, Any] = json.loads((out / "train.json").read_text("utf-8"))
    return report, done.stdout


def test_a_row_is_measured_reported_and_not_measured_again(tmp_path: Path) -> None:
    one = ("--cases", "toy", "--rows", "profile", "--engine", "diffusers")
    report, told = measure(tmp_path, *one)
    (row,) = report["rows"]
    assert not row["failed"], row
    assert row["steps"] == 4
    assert row["images_per_second"] == pytest.approx(8 / row["seconds_per_step"], rel=0.01)
    assert len(row["losses"]) == 4 and 0 < row["mean_loss"] < 10
    assert row["mean_loss"] == pytest.approx(sum(row["losses"]) / 4, abs=0.001)
    assert row["settings"].startswith("batch 1 x 8, no")
    text = (tmp_path / "train.md").read_text("utf-8")
    assert f"| pixelkit's profile | {row['seconds_per_step']} | {row['images_per_second']} |" in text
    again, told = measure(tmp_path, *one)
    assert again["rows"] == [row] and "..." not in told


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    report, _ = measure(tmp_path, "--cases", "toy", "--rows", "diffusers")
    assert "holds no training script" in report["rows"][0]["failed"]
    assert "- diffusers' own script: not measured: " in (tmp_path / "train.md").read_text("utf-8")


@pytest.mark.skipif(not os.environ.get("PIXELKIT_TEST_BENCH"), reason="9 GB and minutes; set PIXELKIT_TEST_BENCH=1")
def test_sd_scripts_alone_and_under_pixelkit(tmp_path: Path, sd_scripts: Path) -> None:
    rows = ("--cases", "sd15-64", "--rows", "documents", "profile", "--sd-scripts", str(sd_scripts))
    report, _ = measure(tmp_path, *rows)
    documents, profile = report["rows"]
    assert not documents["failed"] and not profile["failed"], report["rows"]
    assert documents["mean_loss"] == pytest.approx(profile["mean_loss"], rel=0.3)
