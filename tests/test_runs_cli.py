"""`pixelkit runs`: plots, numbers, orders, from runs whose metrics are known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pixelkit.cli import main
from pixelkit.evaluate.curve import choose_log_ticks, collect_progress
from pixelkit.evaluate.plot import COLOURS, Curve, draw_runs
from pixelkit.rundir import RunDir

if TYPE_CHECKING:
    from pathlib import Path


def events(steps: int, *, loss: float = 0.2, seconds: float = 0.5) -> list[dict[str, object]]:
    made: list[dict[str, object]] = [{"event": "begin", "total": steps, "step": 0}]
    step = {"event": "step", "epoch": 1, "loss": loss, "lr": 1e-4, "seconds": seconds, "memory": 2 << 30}
    return made + [{**step, "step": number} for number in range(1, steps + 1)]


def make_run(root: Path, name: str, told: list[dict[str, object]], state: str = "done") -> RunDir:
    (root / name).mkdir(parents=True)
    run = RunDir(path=root / name)
    run.manifest.write_text(json.dumps({"state": state}))
    run.metrics.write_text("".join(json.dumps(event) + "\n" for event in told))
    return run


def call(*arguments: object, root: Path) -> Result:
    result = CliRunner().invoke(main, ["runs", *map(str, arguments), "--runs", str(root)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def where(picture: Image.Image, number: int) -> np.ndarray:
    """The pixels of the field's part of a picture that are about in the colour of the run of that number."""
    away = np.abs(np.asarray(picture.convert("RGB")).astype(int) - COLOURS[number]).max(-1)
    found: np.ndarray = away < 70
    found[:100, :] = False  # the legend
    return found


def test_one_run_is_drawn_into_its_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path, "hero-1", [*events(50), {"event": "save", "step": 50, "path": "x"}])
    said = call("plot", "hero-1", root=tmp_path)
    assert said.exit_code == 0 and said.output.splitlines()[-1] == str(run.path / "plot.png")
    picture = Image.open(run.path / "plot.png")
    rows = np.flatnonzero(where(picture, 0).sum(1) > 500)
    assert (np.diff(rows) > 50).sum() == 3, "a line in each of four fields"


def test_each_run_has_its_colour_and_its_height(tmp_path: Path) -> None:
    make_run(tmp_path, "low", events(50, loss=0.1))
    make_run(tmp_path, "high", events(80, loss=0.4))
    out = tmp_path / "both.png"
    assert call("plot", "low", "high", "--out", out, root=tmp_path).exit_code == 0
    picture = Image.open(out)
    low, high = (where(picture, number) for number in (0, 1))
    assert high.any(1).argmax() < low.any(1).argmax() - 100, "the larger loss stands higher"
    assert low.any(0).nonzero()[0][-1] < high.any(0).nonzero()[0][-1] - 100, "the shorter run ends earlier"


def test_what_was_not_reported_is_not_drawn(tmp_path: Path) -> None:
    bare = [{"event": "step", "step": step, "loss": 0.1} for step in range(1, 9)]
    whole = draw_runs([Curve(name="a", progress=collect_progress(events(8)))])
    loss_only = draw_runs([Curve(name="a", progress=collect_progress(bare))])
    assert whole and loss_only and loss_only.height < whole.height - 300


@pytest.mark.parametrize("losses", [[0.0] * 5, [1e-9, 1.0, 1e9], [None, None, 0.3], [5.0], [-1.0, 2.0]])
@pytest.mark.parametrize("log", [(), ("x",), ("x", "y")])
def test_odd_losses(losses: list[float | None], log: tuple[str, ...]) -> None:
    told = [{"event": "step", "step": step, "loss": loss, "lr": 0.0} for step, loss in enumerate(losses, start=1)]
    picture = draw_runs([Curve(name="odd", progress=collect_progress(told))], log=frozenset(log))  # type: ignore[arg-type]
    assert picture and where(picture, 0).any()


def test_a_span_of_one_draws_the_losses_as_they_are() -> None:
    told = [{"event": "step", "step": step, "loss": 1.0 if step == 50 else 0.1} for step in range(1, 101)]
    curve = Curve(name="spike", progress=collect_progress(told))  # type: ignore[arg-type]
    sharp, smoothed = (draw_runs([curve], span=span) for span in (1, 40))
    assert sharp and smoothed
    heights = [np.ptp(np.flatnonzero(where(picture, 0).any(1))) for picture in (sharp, smoothed)]
    assert heights[0] > 200 > 3 * heights[1]


def test_logarithmic_ticks() -> None:
    assert choose_log_ticks(0.05, 1.2, 5) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert choose_log_ticks(1, 1e9, 4) == pytest.approx([1e0, 1e3, 1e6, 1e9])


def test_a_run_without_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path, "new", [])
    said = call("plot", "new", root=tmp_path)
    assert said.exit_code == 9 and "no steps in" in said.output
    assert not (run.path / "plot.png").exists()
    make_run(tmp_path, "old", events(5))
    said = call("plot", "new", "old", "--out", tmp_path / "p.png", root=tmp_path)
    assert said.exit_code == 0 and "new has no steps yet" in said.output


def test_numbers_of_a_resumed_run_are_one_curve(tmp_path: Path) -> None:
    resumed = [*events(4, loss=9.0), {"event": "begin", "total": 5, "step": 2}, *events(5)[3:]]
    make_run(tmp_path, "hero", resumed)
    lines = call("metrics", "hero", root=tmp_path).output.splitlines()
    assert lines[0] == "step,epoch,loss,lr,seconds,memory"
    assert [line.split(",")[:3] for line in lines[1:]] == [
        [str(step), "1", "9.0" if step < 3 else "0.2"] for step in range(1, 6)
    ]
    told = [json.loads(line) for line in call("metrics", "hero", "--json", root=tmp_path).output.splitlines()]
    assert [event["step"] for event in told if event["event"] == "step"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("word", ["stop", "save", "sample"])
def test_orders(tmp_path: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "hero", [], state="interrupted")
    said = call(word, "hero", root=tmp_path)
    assert (
        said.exit_code == 9 and "hero is not at work: interrupted" in said.output and "pixelkit resume" in said.output
    )
    assert run.take_order() is None
    monkeypatch.setattr(RunDir, "is_active", lambda _self: True)
    assert call(word, "hero", root=tmp_path).exit_code == 0
    assert run.take_order() == word
