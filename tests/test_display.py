"""What a person sees: a bar on a terminal, plain lines elsewhere, nothing on standard output."""

from __future__ import annotations

import io
import re

import pytest

from pixelkit.display import Display, clean, format_memory, format_pace, format_seconds, shorten
from pixelkit.progress import (
    Bar,
    Begin,
    End,
    Event,
    LogLine,
    NonFinite,
    Notice,
    Sample,
    Save,
    State,
    Step,
    Stopped,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


def begin(total: int = 100) -> Begin:
    return Begin(total=total, epochs=1, pid=1, engine="fake", versions={})


def step(number: int, loss: float | None = 0.5, memory: int | None = 3 * 2**30) -> Step:
    return Step(step=number, epoch=1, loss=loss, lr=1e-4, seconds=2.0, memory=memory)


def bar(number: int, name: str = "steps", loss: float | None = 0.25) -> Bar:
    return Bar(name=name, step=number, total=10, seconds_per_step=2.0, loss=loss)


def plain(*events: Event, seconds: float = 2.0) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with Display(title="hero", stream=stream, clock=clock) as display:
        for event in events:
            clock.now += seconds
            display.show(event)
    return stream.getvalue().splitlines()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")
    return Terminal()


def live(stream: Terminal, *events: Event) -> str:
    with Display(title="hero", stream=stream) as display:
        for event in events:
            display.show(event)
        display._progress.refresh()
    return stream.getvalue()


def test_plain_lines_come_seldom() -> None:
    lines = plain(begin(), *(step(number) for number in range(1, 101)))
    assert lines[0] == "hero: 1/100  loss 0.5000  lr 0.0001  3.0 GiB"
    assert lines[1] == "hero: 11/100  loss 0.5000  2:58 min left  2.00 s/step  lr 0.0001  3.0 GiB"
    assert lines[-1].startswith("hero: 100/100  loss 0.5000  0 s left")
    assert len(lines) == 11


def test_plain_lines_of_a_slow_run_come_by_the_clock() -> None:
    lines = plain(begin(1000), *(step(number) for number in range(1, 10)), seconds=20)
    assert [line.split()[1] for line in lines] == ["1/1000", "3/1000", "5/1000", "7/1000", "9/1000"]


def test_plain_lines_of_a_fast_run_do_not_flood() -> None:
    assert len(plain(begin(1000), *(step(number) for number in range(1, 1001)), seconds=0.01)) < 12


def test_events_that_matter_are_told() -> None:
    lines = plain(
        begin(),
        Save(step=5, path="/runs/x/hero-step5.safetensors"),
        State(step=5, path="/runs/x/hero-state"),
        Sample(step=5, index=0, seed=1, prompt="p", path="x.png"),
        Notice(text="saving, then stopping"),
        NonFinite(step=6, what="loss"),
        Stopped(step=7, reason="control"),
        End(step=8, path="/runs/x/hero.safetensors"),
    )
    assert lines == [
        "hero: step 5: saved hero-step5.safetensors",
        "hero: step 5: saved the state to resume from, hero-state",
        "hero: saving, then stopping",
        "hero: step 6: the loss is no longer a number; stopping",
        "hero: stopped at step 7; everything is saved",
        "hero: trained 8 steps: hero.safetensors",
    ]


def test_loading_is_told_seldom_and_log_lines_end_with_the_first_step() -> None:
    loading = [LogLine(text=f"loading part {number}") for number in range(30)]
    lines = plain(*loading, begin(), step(1), *loading)
    assert lines[:2] == ["hero: loading part 14", "hero: loading part 29"]
    assert len(lines) == 3


def test_plain_lines_hold_no_control_characters() -> None:
    lines = plain(*(LogLine(text="a\x07b\x1b[31mc\td") for _ in range(20)), Notice(text="x\x00y"))
    assert lines
    assert all(line.isprintable() for line in lines)


def test_forced_colours_do_not_make_a_file_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert all(line.isprintable() for line in plain(begin(), step(1), Notice(text="x")))


def test_a_plain_script_is_shown_from_its_bar() -> None:
    lines = plain(bar(3, name="caching latents"), bar(0), bar(1), bar(1), bar(2, loss=float("nan")), bar(10))
    assert lines[0] == "hero: 1/10  loss 0.2500  2.00 s/step"
    assert lines[-1].startswith("hero: 10/10  loss 0.2500")


def test_bars_are_ignored_where_there_are_events() -> None:
    assert plain(begin(), bar(5)) == []


def test_missing_facts_are_left_out() -> None:
    assert plain(begin(), step(1, loss=None, memory=None)) == ["hero: 1/100  lr 0.0001"]


def test_the_bar_on_a_terminal(terminal: Terminal) -> None:
    text = live(terminal, begin(), step(1), step(2), Save(step=2, path="/x/hero.safetensors"))
    assert "hero 2/100" in text
    assert "loss 0.5000" in text
    assert "3.0 GiB" in text
    assert "step 2: saved hero.safetensors" in text
    assert "━" in text


def test_loading_on_a_terminal_shows_the_last_line(terminal: Terminal) -> None:
    text = live(terminal, LogLine(text="loading [bold]" + "x" * 300))
    text += live(Terminal(), LogLine(text="[red]VAE[/red] \x1b[5m now"))
    assert "loading [bold]xxx" in text  # no markup
    assert "[red]VAE[/red] [5m now" in text  # no escapes


def test_no_color(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    colours = r"\x1b\[[0-9;]*(?:3[0-7]|38;)[0-9;]*m"
    assert re.search(colours, live(terminal, begin(), step(1)))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(colours, live(Terminal(), begin(), step(1)))


def test_a_dumb_terminal_gets_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert live(terminal, begin(), step(1)).isprintable() is False  # the newline alone
    assert "\x1b" not in terminal.getvalue()


def test_standard_output_stays_empty(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(title="hero") as display:
        for event in (begin(), step(1), Notice(text="x"), End(step=1, path="x")):
            display.show(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "trained 1 steps" in captured.err


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_closed_stream_does_not_reach_the_training(kind: type[io.StringIO], terminal: Terminal) -> None:
    stream = kind()
    with Display(title="hero", stream=stream) as display:
        display.show(begin())
        stream.close()
        for event in (step(1), Notice(text="x"), End(step=1, path="x")):
            display.show(event)


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_stream_without_our_letters() -> None:
    raw = io.BytesIO()
    with Display(title="hero", stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True)) as display:
        display.show(Notice(text="höhle saved"))
    assert raw.getvalue() == b"hero: h?hle saved\n"


def test_a_broken_pipe_does_not_reach_the_training() -> None:
    with Display(title="hero", stream=Broken()) as display:
        for event in (begin(), step(1), Notice(text="x")):
            display.show(event)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (3599, "59:59 min"),
        (3600, "1:00 h"),
        (7530, "2:06 h"),
        (2e5, "2 d 7 h"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_formats() -> None:
    assert format_pace(2.345) == "2.35 s/step"
    assert format_pace(0.05) == "20 steps/s"
    assert format_pace(0)
    assert format_memory(3 << 29) == "1.5 GiB"
    assert format_memory(1 << 20) == "1 MiB"
    assert clean("a\nb\x1b") == "a b "
    assert shorten("one  two\tthree", 8) == "one two…"
    assert shorten("ドラゴン", 8) == "ドラゴン"
