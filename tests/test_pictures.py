"""The contact sheet and the loss curve: what they show is there, whatever they are given."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelkit.evaluate.curve import choose_ticks, collect_progress, draw_curve, measure_loss, smooth
from pixelkit.evaluate.drawing import ACCENT, PAGE, Typeface
from pixelkit.evaluate.samples import collect_samples, draw_samples, find_samples, measure_samples
from pixelkit.evaluate.sheet import Column, Row, draw_sheet, enlarge
from pixelkit.rundir import RunDir

if TYPE_CHECKING:
    from pathlib import Path

RED, BLUE = (200, 10, 20), (10, 20, 200)


def paint(path: Path, color: tuple[int, ...], size: tuple[int, int] = (32, 32)) -> Path:
    Image.new("RGBA" if len(color) == 4 else "RGB", size, color).save(path)
    return path


def count(picture: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == color).all(axis=2).sum())


def test_pictures_are_enlarged_by_whole_numbers(tmp_path: Path) -> None:
    rows = [Row(prompt="a", seed=1, pictures=(paint(tmp_path / "a.png", RED), paint(tmp_path / "b.png", BLUE)))]
    sheet = draw_sheet(title="t", subtitle="s", columns=[Column(title="base"), Column(title="LoRA")], rows=rows)
    assert count(sheet, RED) == count(sheet, BLUE) == 256 * 256
    for size, factor in ((32, 8), (48, 5), (100, 2), (256, 1), (300, 1)):
        assert enlarge(Image.new("RGB", (size, size))).width == size * factor
    detail = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    large = np.asarray(enlarge(Image.fromarray(detail)))
    np.testing.assert_array_equal(large[::8, ::8], detail)
    np.testing.assert_array_equal(large, detail.repeat(8, axis=0).repeat(8, axis=1))


def test_large_pictures_are_shown_as_they_are(tmp_path: Path) -> None:
    rows = [Row(prompt="a " * 300, seed=1, pictures=(paint(tmp_path / "a.png", RED, (640, 512)),))]
    sheet = draw_sheet(title="t", subtitle="s", columns=[Column(title="base")], rows=rows)
    assert count(sheet, RED) == 640 * 512


def test_the_sheet_lives_with_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    clear = paint(tmp_path / "clear.png", (*RED, 0))
    rows = [
        Row(prompt="", seed=None, pictures=(None, tmp_path / "broken.png")),
        Row(prompt="x" * 400, seed=2, pictures=(tmp_path / "none.png", clear)),
    ]
    sheet = draw_sheet(
        title="a name that is much too long for the width of the sheet " * 3,
        subtitle="s",
        columns=[Column(title="base", share=0.0), Column(title="LoRA", share=1.0)],
        rows=rows,
        palette=[(number, 255 - number, 9) for number in range(200)],
    )
    assert count(sheet, RED) == 0
    assert count(sheet, ACCENT) > 500
    with pytest.raises(ValueError, match="each column"):
        draw_sheet(title="t", subtitle="", columns=[Column(title="base")], rows=rows)


def test_swatches_are_the_palette(tmp_path: Path) -> None:
    rows = [Row(prompt="a", seed=1, pictures=(paint(tmp_path / "a.png", BLUE),))]
    sheet = draw_sheet(title="t", subtitle="s", columns=[Column(title="base")], rows=rows, palette=[RED])
    assert 300 < count(sheet, RED) < 700


@given(st.text(max_size=80), st.integers(20, 300), st.integers(1, 5))
def test_wrapped_text_fits(text: str, width: int, lines: int) -> None:
    face = Typeface(size=16)
    found = face.wrap(text, width, lines)
    assert len(found) <= lines
    assert all(face.measure(line) <= max(width, face.measure("W…")) for line in found)


def step(number: int, loss: float | None, lr: float | None = 1e-4) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": loss, "lr": lr}


def test_a_curve_of_a_whole_run() -> None:
    rng = np.random.default_rng(0)
    events = [step(n, 0.05 + 0.3 * math.exp(-n / 100) + abs(rng.normal(0, 0.02)), 1e-4) for n in range(1, 801)]
    progress = collect_progress(
        [*events, {"event": "save", "step": 400, "path": "x"}, {"event": "begin", "total": 800}]
    )
    assert progress.saves == (400,)
    picture = draw_curve(progress, title="hero")
    assert picture is not None
    line = (np.asarray(picture.crop((84, 84, 1072, 504))).astype(int) - ACCENT).__abs__().sum(axis=2) < 30
    columns = line.any(axis=0)
    assert columns[5:-5].mean() > 0.98
    height = line.argmax(axis=0)
    assert height[10] < height[500] - 100
    loss = measure_loss(progress)
    assert loss == pytest.approx(0.066, abs=0.01)


@pytest.mark.parametrize(
    "events",
    [
        [step(1, 0.5)],
        [step(1, 0.5, None), step(2, None, None), step(3, 0.4, None)],
        [step(1, 0.0, 0.0), step(2, 0.0, 0.0)],
        [step(500_000, 1e-9), step(500_001, 2e-9)],
        [step(n, 0.1) for n in range(1, 10)],
        [step(1, 1e12), step(2, 1e-12), step(3, float("inf"))],
        [step(1, -0.3), step(2, 0.2)],
    ],
)
def test_odd_runs_have_a_curve_too(events: list[dict[str, object]]) -> None:
    picture = draw_curve(collect_progress(events), title="x" * 300)
    assert picture is not None
    assert count(picture, PAGE) > 1000


def test_without_a_loss_there_is_no_curve() -> None:
    assert draw_curve(collect_progress([]), title="x") is None
    assert draw_curve(collect_progress([step(1, float("nan")), step(2, None)]), title="x") is None
    assert measure_loss(collect_progress([])) is None


def test_metrics_are_read_line_by_line(tmp_path: Path) -> None:
    lines = [json.dumps(step(2, 0.5)), "cut off {", "[]", json.dumps(step(1, 0.9)), json.dumps(step(2, 0.4)), ""]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    progress = collect_progress(RunDir(path=tmp_path).read_metrics())
    assert progress.steps.tolist() == [1, 2]
    assert progress.loss.tolist() == [0.9, 0.4]


def test_smoothing_keeps_constants_and_passes_nan_by() -> None:
    np.testing.assert_allclose(smooth(np.full(50, 0.3), 10), 0.3)
    found = smooth(np.array([1.0, np.nan, 1.0, np.nan, np.nan]), 3)
    np.testing.assert_allclose(found[:4], 1.0)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_few_round_and_inside(low: float, span: float, wanted: int) -> None:
    ticks = choose_ticks(low, low + span, wanted)
    assert len(ticks) <= wanted * 2 + 2
    assert all(low - span * 1e-6 <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def sample(number: int, index: int, path: Path) -> dict[str, object]:
    return {"event": "sample", "step": number, "index": index, "seed": 42 + index, "prompt": "p", "path": str(path)}


def test_samples_are_compared_where_both_are_there(tmp_path: Path) -> None:
    red, blue = paint(tmp_path / "red.png", RED), paint(tmp_path / "blue.png", BLUE)
    events = [sample(0, 0, blue), sample(0, 1, blue), sample(5, 0, blue), sample(9, 0, red), sample(9, 1, blue)]
    samples = collect_samples([*events, sample(9, 2, tmp_path / "gone.png"), {"event": "sample", "step": "9"}])
    assert {number: sorted(found) for number, found in samples.items()} == {0: [0, 1], 5: [0], 9: [0, 1]}
    assert measure_samples(samples, [RED]) == (0.0, 0.5)
    sheet = draw_samples(samples, title="t", subtitle="s", palette=[RED], shares=(0.0, 0.5))
    assert sheet is not None
    assert count(sheet, BLUE) == 4 * 256 * 256
    assert measure_samples(samples, []) is None
    assert measure_samples({0: samples[0]}, [RED]) is None
    assert draw_samples({0: samples[0]}, title="t", subtitle="s", palette=[], shares=None) is None
    red.write_bytes(b"broken")
    assert measure_samples(samples, [RED]) is None


def test_samples_of_a_script_without_events_are_found_by_name(tmp_path: Path) -> None:
    for name in (
        "hero_e000000_00_20260101000000_42",
        "hero_000120_00_20260101000000_42",
        "hero_e000003_00_20260101000000_42",
    ):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    found = find_samples(tmp_path, ["a knight"], 42)
    assert sorted(found) == [0, 120]
    assert (found[120][0].prompt, found[120][0].seed) == ("a knight", 42)
