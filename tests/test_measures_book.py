"""The book of measures: what is put in comes out, for the setup it is of, and its file's trouble stops nothing."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
from made_measures import make_measure, make_plan, make_setup

from pixelkit.errors import StorageError
from pixelkit.measures import MeasureBook, Setup, setup_of
from pixelkit.measures.book import book_file
from pixelkit.measures.setup import read_measure

if TYPE_CHECKING:
    from pathlib import Path


def test_the_setup_of_a_plan() -> None:
    setup = setup_of(make_plan("quickstart", "train.gradient_accumulation=2", sprites=41))
    assert setup.machine == "Made CPU, 16 GiB"
    assert (setup.family, setup.base, setup.engine, setup.device) == ("sd15", "pixelkit-tiny", "diffusers", "cpu")
    assert (setup.batch_size, setup.gradient_accumulation, setup.canvas_area) == (4, 2, 32 * 32)
    assert setup.images_per_step == pytest.approx(2 * 41 / 11, abs=0.01), "the last batch of an epoch holds one image"
    stock = setup_of(make_plan("sdxl-balanced", device="Made GPU", profile="cuda-24gb"))
    assert (stock.base, stock.network, stock.attention) == ("", "lora", "sdpa")
    assert setup_of(make_plan("sdxl-balanced", "kohya.xformers=true", "kohya.sdpa=false")).attention == "xformers"
    assert setup_of(make_plan("bespoke-flux", profile="cuda-24gb", device="G")).memory_savers.count("fp8_base") == 1


@pytest.mark.parametrize("name", [field.name for field in fields(Setup)])
def test_every_part_of_a_setup_tells_two_apart(name: str) -> None:
    """A figure of another setup is never taken for an exact one."""
    book, known = MeasureBook(), make_setup()
    book.add(make_measure(0.5, setup=known))
    value = getattr(known, name)
    other = (
        (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}-other"
    )
    assert book.find(known)
    assert book.find(replace(known, **{name: other})) is None


def test_the_median_of_the_last_runs() -> None:
    book = MeasureBook()
    for day, seconds in enumerate((9.0, 0.4, 0.5, 0.6, 0.7, 0.8), start=1):
        book.add(make_measure(seconds, when=f"2026-11-{day:02}T00:00:00+00:00", seconds_before=seconds * 10))
    found = book.find(make_setup())
    assert found
    assert found.seconds_per_step == 0.6, "of the last five; the slow one is the sixth last"
    assert found.seconds_before == pytest.approx(6.0)
    assert (found.low, found.high) == (0.4, 0.8)
    assert found.measures[0].when.startswith("2026-11-06")


def test_runs_count_before_probes_and_failures_never() -> None:
    book, setup = MeasureBook(), make_setup()
    book.add(make_measure(None, kind="probe", failed="oom"))
    assert book.find(setup) is None
    book.add(make_measure(0.9, kind="probe", when="2026-11-21T00:00:00+00:00"))
    found = book.find(setup)
    assert found and found.seconds_per_step == 0.9
    book.add(make_measure(0.5))
    found = book.find(setup)
    assert found and found.seconds_per_step == 0.5
    assert [measure.failed for measure in book.recall(setup, kind="probe")] == [None, "oom"]


def test_what_was_added_twice_is_kept_once() -> None:
    book = MeasureBook()
    assert book.add(make_measure(), None, make_measure()) == 1
    assert book.add(make_measure()) == 0
    assert book.list_measures() == (make_measure(),)


def test_proportional_to_the_pixels_where_one_size_was_measured() -> None:
    book, setup = MeasureBook(), make_setup()
    book.add(make_measure(1.0, setup=setup, peak_memory_gib=3.0))
    twice = replace(setup, batch_size=8, images_per_step=8.0)
    found = book.like(twice, gib_per_pixel=1 / 4096)
    assert found and found.scaled
    assert found.seconds_per_step == pytest.approx(2.0)
    assert found.low <= 1.0 and found.high >= 2.0, "a pass of twice the size may take the same time, or twice as long"
    assert found.peak_memory_gib == pytest.approx(4.0), "4 x 1024 more pixels"
    accumulated = replace(setup, gradient_accumulation=3, images_per_step=12.0)
    found = book.like(accumulated)
    assert found and found.seconds_per_step == pytest.approx(3.0), "three passes of the same size"
    assert found.peak_memory_gib == pytest.approx(3.0)


def test_a_line_where_two_sizes_were_measured() -> None:
    """A pass took 0.2 s and 0.1 s for each image: that is found again, inside and outside of what was measured."""
    book, setup = MeasureBook(), make_setup()
    for batch in (2, 8):
        at = replace(setup, batch_size=batch, images_per_step=float(batch))
        book.add(make_measure(0.2 + 0.1 * batch, setup=at, peak_memory_gib=1 + 0.5 * batch))
    for batch in (4, 16):
        found = book.like(replace(setup, batch_size=batch, images_per_step=float(batch)))
        assert found
        assert found.seconds_per_step == pytest.approx(0.2 + 0.1 * batch)
        assert found.peak_memory_gib == pytest.approx(1 + 0.5 * batch)
        assert found.low < found.seconds_per_step < found.high


@pytest.mark.parametrize(
    "change",
    [{"family": "sdxl"}, {"machine": "Other, 16 GiB"}, {"gradient_checkpointing": True}, {"precision": "bf16"}],
)
def test_nothing_is_scaled_from_what_is_not_alike(change: dict[str, object]) -> None:
    book = MeasureBook()
    book.add(make_measure())
    assert book.like(make_setup(**change)) is None


def test_a_faster_larger_batch_is_noise_and_not_extrapolated() -> None:
    book, setup = MeasureBook(), make_setup()
    for batch, seconds in ((2, 1.0), (4, 0.5)):
        book.add(make_measure(seconds, setup=replace(setup, batch_size=batch, images_per_step=float(batch))))
    found = book.like(replace(setup, batch_size=64, images_per_step=64.0))
    assert found and found.low > 0 and found.seconds_per_step == pytest.approx(0.75)


def test_exported_and_imported() -> None:
    book = MeasureBook()
    book.add(make_measure(0.5, peak_memory_gib=1.5), make_measure(None, kind="probe", failed="oom"))
    text = book.export_json()
    assert "a-run" not in text, "a run's name is nobody else's business"
    other = MeasureBook(file=book.file.with_name("other.sqlite"))
    assert other.import_json(text, name="studio") == 2
    assert other.import_json(text, name="studio") == 0
    assert other.find(make_setup()) is None, "it was not measured here"
    found = other.find(make_setup(), elsewhere=True)
    assert found and found.seconds_per_step == 0.5 and found.measures[0].elsewhere == "studio"
    assert json.loads(other.export_json())["measures"] == [], "others' figures are not passed on as one's own"
    assert other.forget(elsewhere="nobody") == 0
    assert other.forget(elsewhere="studio") == 2
    assert other.list_measures() == ()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"pixelkit measures": 1}', '{"pixelkit measures": 1, "measures": [{}]}']
)
def test_what_is_no_export_is_refused(text: str) -> None:
    book = MeasureBook()
    with pytest.raises(StorageError, match="studio"):
        book.import_json(text, name="studio")
    assert book.list_measures() == ()


@pytest.mark.parametrize(
    "change", [{"seconds_per_step": "fast"}, {"steps": 1.5}, {"steps": None}, {"setup": {"machine": 3}}]
)
def test_a_measure_with_a_wrong_value_is_none(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no measure"):
        read_measure({**make_measure().as_dict(), **change})


def test_fields_of_a_later_version_are_passed_over() -> None:
    values = make_measure().as_dict()
    assert read_measure({**values, "mood": "fine", "setup": {**values["setup"], "colour": "red"}}) == make_measure()


def test_a_broken_file_is_told_of_once_and_stops_nothing() -> None:
    book_file().write_bytes(b"no database " * 100)
    told: list[str] = []
    book = MeasureBook(on_trouble=told.append)
    assert book.find(make_setup()) is None
    assert book.add(make_measure()) == 0
    assert book.list_measures() == ()
    assert len(told) == 1 and "measures.sqlite" in told[0]
    with pytest.raises(StorageError, match="cannot be used"):
        MeasureBook(strict=True).list_measures()


def test_a_locked_file_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelkit.measures.book.PATIENCE", 0.1)
    MeasureBook().add(make_measure())
    told: list[str] = []
    with closing(sqlite3.connect(book_file())) as other:
        other.execute("BEGIN IMMEDIATE")
        assert MeasureBook(on_trouble=told.append).add(make_measure(0.7)) == 0
        assert len(told) == 1 and "locked" in told[0]
        assert MeasureBook().find(make_setup()), "who only reads does not wait for who writes"
    assert MeasureBook().add(make_measure(0.7)) == 1


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told: list[str] = []
    assert MeasureBook(file=tmp_path / "file" / "measures.sqlite", on_trouble=told.append).add(make_measure()) == 0
    assert len(told) == 1


def test_reading_makes_no_file() -> None:
    assert MeasureBook().find(make_setup()) is None
    assert not book_file().exists()


def test_many_at_once_begin_a_book() -> None:
    """Threads with connections of their own, all at the empty file: nothing is lost, nobody is told of trouble."""
    told: list[str] = []

    def write(number: int) -> None:
        book = MeasureBook(on_trouble=told.append)
        for turn in range(5):
            book.add(make_measure(1 + number + turn / 10, run=f"{number}-{turn}"))

    setup = make_setup()
    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == []
    assert len(MeasureBook().recall(setup)) == 30
