"""The forecast: the best source first, every part of a run in it, and nothing claimed where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from made_measures import make_measure, make_plan

from pixelkit.measures import Forecast, Measure, MeasureBook, describe, forecast, say_duration, setup_of
from pixelkit.measures.known import compute, find_published, is_called, list_published, read_devices
from pixelkit.measures.outlook import count_pictures, count_saves

GPU = {"device": "NVIDIA GeForce RTX 4090", "profile": "cuda-24gb"}


def measured(plan: Any, seconds: float, **fields: Any) -> Measure:
    return make_measure(seconds, setup=setup_of(plan), **fields)


def test_measured_here_every_part_counts() -> None:
    plan = make_plan("quickstart", "train.save_every_steps=100")
    book = MeasureBook()
    drawn = {"picture_steps": plan.sample.steps, "picture_area": plan.sample.width * plan.sample.height}
    book.add(
        measured(
            plan, 0.5, seconds_before=10.0, seconds_per_picture=2.0, seconds_per_save=0.5, peak_memory_gib=1.5, **drawn
        )
    )
    known = forecast(plan, book)
    assert count_pictures(plan) == 8
    assert count_saves(plan) == 4
    assert known.seconds == pytest.approx(300 * 0.5 + 10 + 8 * 2.0 + 4 * 0.5)
    assert known.seconds_basis == "here"
    assert known.seconds_source == "measured here on 2026-11-20, 1 run"
    assert known.left_out == ()
    assert (known.memory_gib, known.memory_source) == (1.5, known.seconds_source)
    assert known.images_per_second == pytest.approx(8.0)
    other = make_plan("quickstart", "train.steps=600", "sample.steps=40", "sample.every_steps=200")
    assert count_pictures(other) == 4 * (2 + 2)
    longer = forecast(other, book)
    assert longer.seconds == pytest.approx(600 * 0.5 + 10 + 16 * 2.0 * 40 / plan.sample.steps + 0.5)
    assert longer.seconds_basis == "here", "steps and pictures are no part of a setup"


def test_the_order_of_the_sources() -> None:
    plan = make_plan("sdxl-balanced", **GPU)
    book = MeasureBook()
    assert forecast(plan, book).seconds_basis == "computed"
    elsewhere = replace(measured(plan, 3.0), elsewhere="studio")
    book.add(elsewhere)
    assert (forecast(plan, book).seconds_basis, forecast(plan, book).seconds_per_step) == ("elsewhere", 3.0)
    assert "elsewhere (studio)" in forecast(plan, book).seconds_source
    smaller = setup_of(make_plan("sdxl-balanced", "train.batch_size=1", "train.gradient_checkpointing=true", **GPU))
    book.add(make_measure(1.0, setup=smaller))
    scaled = forecast(plan, book)
    assert scaled.seconds_basis == "scaled"
    assert scaled.seconds_source == "measured here on 2026-11-20, 1 run, scaled from batch 1 x 2"
    assert scaled.seconds_per_step == pytest.approx(setup_of(plan).images_per_step / smaller.images_per_step)
    book.add(measured(plan, 1.7))
    assert (forecast(plan, book).seconds_basis, forecast(plan, book).seconds_per_step) == ("here", 1.7)


def test_a_colleague_with_other_cores_has_the_same_gpu() -> None:
    plan = make_plan("sdxl-balanced", **GPU)
    book = MeasureBook()
    book.add(make_measure(3.0, setup=replace(setup_of(plan), cores=64), elsewhere="studio"))
    known = forecast(plan, book)
    assert (known.seconds_basis, known.seconds_per_step) == ("elsewhere", 3.0)
    assert "scaled" not in known.seconds_source


def test_nothing_is_claimed_of_an_unknown_device() -> None:
    known = forecast(make_plan("sdxl-balanced", device="Made GPU 9000", profile="cuda-24gb"), MeasureBook())
    assert known.seconds is None and known.images_per_second is None
    assert known.memory_source == "computed"
    time, memory = describe(known)
    assert time.startswith("time      unknown: ")
    assert not any(letter.isdigit() for letter in time)
    assert memory.startswith("memory    about ")


def test_nothing_is_computed_for_a_model_of_another_layout() -> None:
    assert forecast(make_plan("quickstart", **GPU), MeasureBook()).seconds_basis == "unknown"


def test_published_figures_hold_for_their_own_case() -> None:
    """An H100 takes 0.606 s for SDXL at 1024 px, batch 1, without checkpointing (and 1.080 s with)."""
    h100 = {"device": "NVIDIA H100 80GB HBM3", "profile": "cuda-80gb"}
    sizes = ("train.batch_size=1", "dataset.resolution=1024", "train.gradient_accumulation=1")
    for checkpointing, seconds in (("false", 0.606), ("true", 1.080)):
        plan = make_plan("sdxl-balanced", *sizes, f"train.gradient_checkpointing={checkpointing}", **h100)
        known = find_published(setup_of(plan))
        assert known
        assert (known.seconds, known.low, known.high) == (seconds, seconds, seconds)
        assert known.source == "measured elsewhere: SimpleTuner"
    larger = find_published(setup_of(make_plan("sdxl-balanced", "train.batch_size=2", *sizes[1:], **h100)))
    assert larger and larger.source.endswith("scaled")
    assert larger.low == pytest.approx(0.606) and larger.high == pytest.approx(1.212)
    assert larger.low <= larger.seconds <= larger.high
    assert find_published(setup_of(make_plan("sdxl-balanced", "train.batch_size=8", *sizes[1:], **h100))) is None


def test_published_figures_are_within_what_would_be_computed() -> None:
    """The table of devices and shares against the figures: no figure of a device in the table is far outside its bounds."""
    checked = 0
    for entry in list_published():
        if entry.family not in {"sd15", "sdxl"} or read_devices().find_power(entry.device) is None:
            continue
        checkpointing = str(entry.checkpointing is not False).lower()
        name = "sdxl-balanced" if entry.family == "sdxl" else "style"
        base = () if name == "sdxl-balanced" else ('base="sd15"',)
        plan = make_plan(
            name, *base, f"train.batch_size={entry.batch}", f"train.gradient_checkpointing={checkpointing}",
            f"dataset.resolution={entry.side}", "train.gradient_accumulation=1", device=entry.device, profile="cuda-24gb",
        )  # fmt: skip
        pace = compute(setup_of(plan))
        assert pace
        assert pace.low < entry.seconds[1] * 1.05 and pace.high > entry.seconds[0] * 0.95, entry
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize(
    ("device", "name", "same"),
    [
        ("NVIDIA GeForce RTX 3090, 24 GiB", "RTX 3090", True),
        ("NVIDIA GeForce RTX 3090 Ti, 24 GiB", "RTX 3090", False),
        ("NVIDIA GeForce RTX 3090 Ti, 24 GiB", "RTX 3090 Ti", True),
        ("NVIDIA GeForce RTX 4090 D, 24 GiB", "RTX 4090", False),
        ("NVIDIA GeForce RTX 4070 Laptop GPU, 8 GiB", "RTX 4070", False),
        ("NVIDIA A100-SXM4-80GB, 80 GiB", "A100", True),
        ("NVIDIA H100 PCIe, 80 GiB", "H100", False),
        ("NVIDIA H100 PCIe, 80 GiB", "H100 PCIe", True),
        ("NVIDIA L40S, 45 GiB", "L4", False),
    ],
)
def test_a_device_is_called(device: str, name: str, *, same: bool) -> None:
    assert is_called(device, name) is same


def test_the_quickstart_on_a_processor_goes_by_the_shipped_figures() -> None:
    known = forecast(make_plan(), MeasureBook())
    assert known.seconds_low == pytest.approx(107, rel=0.01) and known.seconds_high == pytest.approx(162, rel=0.01)
    assert known.seconds and known.seconds_low < known.seconds < known.seconds_high
    assert "elsewhere" in known.seconds_source
    four = forecast(replace(plan := make_plan(), machine=replace(plan.machine, cores=8)), MeasureBook())
    assert four.seconds_low == pytest.approx(107 / 4, rel=0.01), (
        "with more cores it may be faster, by how much nobody knows"
    )


def test_pictures_that_only_a_run_drew_count_for_a_probe() -> None:
    plan = make_plan()
    book = MeasureBook()
    drawn = {"picture_steps": plan.sample.steps, "picture_area": plan.sample.width * plan.sample.height}
    smaller = setup_of(make_plan("quickstart", "train.batch_size=2"))
    book.add(make_measure(0.3, setup=smaller, seconds_per_picture=2.0, seconds_before=5.0, **drawn))
    book.add(measured(plan, 0.5, kind="probe", seconds_before=4.0))
    assert forecast(plan, book).seconds == pytest.approx(300 * 0.5 + 4 + 16)


def test_what_is_left_out_is_said() -> None:
    known = forecast(make_plan("sdxl-balanced", **GPU), MeasureBook())
    assert known.left_out == ("loading",)
    assert "without loading" in describe(known)[0]
    assert "of which" in known.seconds_source
    assert known.seconds_low and known.seconds_high and known.seconds_high / known.seconds_low > 1.5


def test_the_lines_for_check() -> None:
    known = Forecast(
        seconds=7800, seconds_low=7500, seconds_high=8100, seconds_per_step=2.6, images_per_second=1.5,
        seconds_basis="here", seconds_source="measured here on 2026-11-20, 3 runs", memory_gib=5.23,
        memory_source="measured here on 2026-11-20, 3 runs", available_gib=20, machine_gib=24,
    )  # fmt: skip
    assert describe(known) == [
        "time      about 2 h 10 min (measured here on 2026-11-20, 3 runs)",
        "memory    about 5.2 GiB (measured here on 2026-11-20, 3 runs), 20.0 of 24.0 GiB free",
    ]
    wide = describe(replace(known, seconds_low=4000, seconds_high=12_000))[0]
    assert wide == "time      about 2 h 10 min, 67 min to 3 h 20 min (measured here on 2026-11-20, 3 runs)"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 s"), (98, "98 s"), (99, "1 min 40 s"), (131, "2 min 10 s"), (599, "10 min"), (720, "12 min"), (5940, "99 min"),
        (6000, "1 h 40 min"), (7200, "2 h"), (7810, "2 h 10 min"), (36_000, "10 h"), (86_400, "1 d"), (273_600, "3 d 4 h"),
        (86_100, "1 d"),
    ],
)  # fmt: skip
def test_durations_in_words(seconds: float, said: str) -> None:
    assert say_duration(seconds) == said
