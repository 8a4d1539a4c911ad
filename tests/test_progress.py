"""What a trainer writes becomes the same events, however the bytes arrive."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pixelkit import progress
from pixelkit.progress import (
    Average,
    Bar,
    Begin,
    End,
    Event,
    LogLine,
    NonFinite,
    Parser,
    Rate,
    Sample,
    Save,
    State,
    Step,
    Stopped,
)

STEP = b'\x1e{"event":"step","step":3,"epoch":1,"loss":0.5,"lr":1e-4,"seconds":1.5,"memory":7}\n'
STEPS_BAR = "steps:  50%|█████     | 3/6 [02:57<02:57, 59.30s/it, avr_loss=1.02]"


def parse(*chunks: bytes) -> tuple[list[Event], bytes]:
    parser = Parser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    events += parser.close()
    return events, parser.take_log()


def one(data: bytes) -> Event:
    events, _ = parse(data)
    assert len(events) == 1, events
    return events[0]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {"event": "begin", "total": 9, "epochs": 3, "pid": 4, "engine": "kohya", "versions": {"torch": "2.14"}},
            Begin(total=9, epochs=3, pid=4, engine="kohya", versions={"torch": "2.14"}),
        ),
        (
            {"event": "step", "step": 1, "epoch": 1, "loss": None, "lr": 1, "seconds": 2, "memory": None},
            Step(step=1, epoch=1, loss=None, lr=1.0, seconds=2.0, memory=None),
        ),
        (
            {"event": "sample", "step": 0, "index": 2, "seed": 7, "prompt": "drachenhöhle\n🐉", "path": "/a b.png"},
            Sample(step=0, index=2, seed=7, prompt="drachenhöhle\n🐉", path="/a b.png"),
        ),
        ({"event": "save", "step": 2, "path": "x"}, Save(step=2, path="x")),
        ({"event": "state", "step": 2, "path": "x"}, State(step=2, path="x")),
        ({"event": "stopped", "step": 2, "reason": "signal"}, Stopped(step=2, reason="signal")),
        ({"event": "nonfinite", "step": 2, "what": "loss"}, NonFinite(step=2, what="loss")),
        ({"event": "end", "step": 2, "path": "x"}, End(step=2, path="x")),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_each_kind(raw: dict[str, object], expected: Event, ascii_only: bool) -> None:
    event = one(b"\x1e" + json.dumps(raw, ensure_ascii=ascii_only).encode() + b"\n")
    assert event == expected
    assert event.raw == raw  # type: ignore[attr-defined]


def test_unknown_fields_are_kept() -> None:
    event = one(b'\x1e{"event":"save","step":1,"path":"x","kind":"ema"}\n')
    assert isinstance(event, Save)
    assert event.raw["kind"] == "ema"


def test_glued_output() -> None:
    data = b"\r" + STEPS_BAR.encode() + STEP + b"\rsteps:  67%|##| 4/6 [03:00<00:59, 1.20it/s]\nsaving\r\n\n"
    events, log = parse(data)
    assert [type(event) for event in events] == [Bar, Step, Bar, LogLine]
    assert log == data.replace(STEP, b"")


def test_two_events_in_a_line() -> None:
    events, log = parse(b"a" + STEP.rstrip(b"\n") + STEP + b"b\n")
    assert [type(event) for event in events] == [LogLine, Step, Step, LogLine]
    assert log == b"ab\n"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"3",
        b'"event"',
        b'{"event":"nope"}',
        b'{"event":"step"}',
        b'{"event":"step","step":"3"}',
        b'{"event":"step","step":true}',
        b'{"event":"step","step":1.5}',
        b'{"event":"step","step":1,"loss":"low"}',
        b'{"event":["step"],"step":1}',
        b'{"event":"save","step":1,"path":7}',
        b'{"event":"step","step":1' + b"[" * 100_000,
        b'{"event":"step","step":' + b"1" * 10_000 + b"}",
        b'\xff\xfe{"event":"step","step":1}',
    ],
)
def test_a_broken_event_is_text(broken: bytes) -> None:
    events, log = parse(b"\x1e" + broken + b"\nnext\n")
    assert events[-1] == LogLine(text="next")
    assert {type(event) for event in events} == {LogLine}
    assert log == b"\x1e" + broken + b"\nnext\n"


def test_not_a_number_is_null() -> None:
    event = one(b'\x1e{"event":"step","step":1,"loss":NaN,"lr":Infinity}\n')
    assert isinstance(event, Step)
    assert event.loss is None
    assert event.raw["loss"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STEPS_BAR, Bar(name="steps", step=3, total=6, seconds_per_step=59.3, loss=1.02)),
        (
            "steps:   0%|          | 0/1600 [00:00<?, ?it/s]",
            Bar(name="steps", step=0, total=1600, seconds_per_step=None, loss=None),
        ),
        (
            "steps:  67%|██████▋   | 4/6 [1:03:00<00:59,  4.00it/s, Keys Scaled=0, avr_loss=7e-5]",
            Bar(name="steps", step=4, total=6, seconds_per_step=0.25, loss=7e-5),
        ),
        (
            "100%|##########| 20/20 [00:01<00:00, 10.00it/s]",
            Bar(name="", step=20, total=20, seconds_per_step=0.1, loss=None),
        ),
        (
            "read caption: 100%|██████████| 20/20 [00:00<00:00, 20.0it/s]",
            Bar(name="read caption", step=20, total=20, seconds_per_step=0.05, loss=None),
        ),
        (
            "\x1b[Asteps:  50%|#| 1/2 [00:01<00:01, 1.00s/it, loss=-0.25]\x1b[0m   ",
            Bar(name="steps", step=1, total=2, seconds_per_step=1.0, loss=-0.25),
        ),
    ],
)
def test_bars(text: str, expected: Bar) -> None:
    assert one(text.encode() + b"\r") == expected


def test_nan_in_a_bar() -> None:
    bar = one(b"steps:  50%|#| 1/2 [00:01<00:01, 1.00s/it, avr_loss=nan]\r")
    assert isinstance(bar, Bar)
    assert bar.loss is not None
    assert math.isnan(bar.loss)


@pytest.mark.parametrize(
    "text", ["50%|", "cache 1.2M/3.4M: 30%|##| 1.2M/3.4M [00:01<00:02, 1.1MB/s]", "use 5%|x| of it"]
)
def test_what_looks_like_a_bar(text: str) -> None:
    assert one(text.encode() + b"\n") == LogLine(text=text)


def test_a_bar_with_log_text_on_both_sides() -> None:
    events, _ = parse(b"steps:  50%|#| 1/2 [00:01<00:01, 1.00s/it]INFO saving checkpoint\n")
    assert events == [
        Bar(name="steps", step=1, total=2, seconds_per_step=1.0, loss=None),
        LogLine(text="INFO saving checkpoint"),
    ]


def test_invalid_utf8_is_kept_in_the_log() -> None:
    data = b"caf\xe9 \xf0\x9f\n\xff\n"
    events, log = parse(data)
    assert [type(event) for event in events] == [LogLine, LogLine]
    assert log == data


def test_a_partial_line_is_logged_at_once() -> None:
    parser = Parser()
    assert parser.feed(b"loading ...") == []
    assert parser.take_log() == b"loading ..."
    assert parser.feed(b" done\n") == [LogLine(text="loading ... done")]
    assert parser.take_log() == b" done\n"


def test_an_endless_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LONGEST_LINE", 8)
    parser = Parser()
    assert parser.feed(b"0123456789") == [LogLine(text="01234567")]
    assert parser.feed(b"\n") == [LogLine(text="89")]
    assert parser.take_log() == b"0123456789\n"


LINES = st.one_of(
    st.sampled_from(
        [
            STEP,
            STEP[:-1],
            STEP[1:],
            b"\r",
            b"\n",
            b"\r\n",
            b"\x1e",
            STEPS_BAR.encode(),
            b"\xc3",
            "é\n".encode(),
            b"\x1b[A",
        ]
    ),
    st.binary(max_size=6),
    st.text(max_size=6).map(str.encode),
)


@pytest.mark.parametrize("longest", [1 << 20, 40])
@given(pieces=st.lists(LINES, max_size=12), cuts=st.lists(st.integers(0, 200), max_size=12))
@example(pieces=[b"\r", STEPS_BAR.encode(), STEP, b"tail"], cuts=list(range(200)))
def test_any_chunking_gives_the_same(pieces: list[bytes], cuts: list[int], longest: int) -> None:
    data = b"".join(pieces)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[start:end] for start, end in itertools.pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "LONGEST_LINE", longest)
        whole, log = parse(data)
        cut, cut_log = parse(*chunks)
    assert repr(cut) == repr(whole)
    assert cut_log == log


@given(st.binary(max_size=200))
def test_without_events_the_log_is_the_output(data: bytes) -> None:
    assert parse(data.replace(b"\x1e", b""))[1] == data.replace(b"\x1e", b"")


def test_average() -> None:
    average = Average(weight=0.5)
    assert average.value is None
    average.add(None)
    assert average.value is None
    average.add(4.0)
    assert average.value == 4.0
    average.add(1.0)
    assert average.value == pytest.approx((4 * 0.25 + 1 * 0.5) / 0.75)


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=50))
def test_average_lies_between(values: list[float]) -> None:
    average = Average()
    for value in values:
        average.add(value)
    assert average.value is not None
    assert min(values) * 0.999999 <= average.value <= max(values) * 1.000001


def test_rate() -> None:
    rate = Rate(window=2)
    assert rate.seconds_per_step is None
    rate.see(1, 100.0)  # after a slow first step
    assert rate.seconds_left(10) is None
    rate.see(1, 101.0)
    rate.see(2, 102.0)
    assert rate.seconds_per_step == 2.0
    assert rate.seconds_left(10) == 16.0
    rate.see(3, 110.0)  # a save took its time
    rate.see(4, 111.0)
    assert rate.seconds_per_step == pytest.approx(4.5)
    assert rate.seconds_left(10) == pytest.approx(6 * 11 / 3)
    assert rate.seconds_left(3) == 0
