"""Trackers: what TensorBoard reads back from a run, resumed or not, and that no tracker ever fails a run."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pixelkit import track
from pixelkit.preset_file import load_preset
from pixelkit.progress import Bar, Event, LogLine, Notice, read_event
from pixelkit.rundir import RunDir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def said(kind: str, **fields: object) -> Event:
    """An event as the trainer sends it."""
    event = read_event(json.dumps({"event": kind, **fields}).encode())
    assert event
    return event


def step(number: int, loss: float | None = None) -> Event:
    return said(
        "step",
        step=number,
        epoch=1,
        loss=loss if loss is not None else 1 / number,
        lr=1e-4,
        seconds=0.5,
        memory=3 << 30,
    )


class Run:
    """A run's directory, whose trainers' events also stand in metrics.jsonl, as `launch` writes them."""

    def __init__(
        self, folder: Path, *, wandb: str | None = None, mode: str = "offline", tensorboard: bool = True
    ) -> None:
        self.dir = RunDir(path=folder)
        kept = SimpleNamespace(tensorboard=tensorboard, wandb=wandb, wandb_mode=mode)
        train = SimpleNamespace(steps_per_epoch=4)
        self.plan: Any = SimpleNamespace(
            preset=SimpleNamespace(track=kept), train=train, method="lora", engine="kohya", makes="lora", hardware="cpu",
            base=SimpleNamespace(name="toy"), dataset=SimpleNamespace(sprites=(1, 2)),
            as_dict=lambda: {"train": {"learning_rate": 1e-4}, "network": {"rank": 4, "start_from": "/home/me/a"}},
        )  # fmt: skip
        self.told: list[Event] = []

    def go(self, *events: Event, state: str = "done") -> None:
        """One process that trains."""
        trackers = track.open_trackers(self.plan, self.dir, self.told.append)
        for event in events:
            if raw := getattr(event, "raw", None):
                with self.dir.metrics.open("a") as file:
                    file.write(json.dumps(raw) + "\n")
            for tracker in trackers:
                tracker.take(event)
        for tracker in trackers:
            tracker.close(state)

    def read(self) -> Any:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(self.dir.path / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()

    def scalars(self, tag: str) -> dict[int, float]:
        events = self.read().Scalars(tag)
        assert [event.step for event in events] == sorted({event.step for event in events}), "a step stands twice"
        return {event.step: round(event.value, 5) for event in events}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 16), (9, 8, 7)).save(tmp_path / "sample.png")
    return tmp_path / "sample.png"


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("tensorboard")

    def test_a_run_is_read_back(self, tmp_path: Path, picture: Path) -> None:
        run = Run(tmp_path)
        drawn = said("sample", step=6, index=1, seed=3, prompt="a knight", path=str(picture))
        run.go(said("begin", total=6, step=0), *[step(number) for number in range(1, 7)], drawn)
        assert run.scalars("loss/current") == {number: round(1 / number, 5) for number in range(1, 7)}
        assert run.scalars("loss/average")[2] == 0.75
        assert run.scalars("loss/average")[6] == round((1 / 3 + 1 / 4 + 1 / 5 + 1 / 6) / 4, 5), "over the last epoch"
        assert set(run.scalars("lr/unet").values()) == {1e-4}
        assert run.scalars("time/seconds_per_step")[1] == 0.5
        assert run.scalars("memory/peak_gib")[1] == 3
        (image,) = run.read().Images("sample/1")
        assert (image.step, image.width, image.height) == (6, 24, 16)
        assert image.encoded_image_string == picture.read_bytes()
        assert not run.told

    def test_a_resumed_run_goes_on_in_the_same_curve(self, tmp_path: Path) -> None:
        run, straight = Run(tmp_path / "resumed"), Run(tmp_path / "straight")
        for folder in (run.dir.path, straight.dir.path):
            folder.mkdir()
        begin = said("begin", total=9, step=0)
        straight.go(begin, *[step(number) for number in range(1, 10)])
        state = said("state", step=4, path=str(tmp_path))
        run.go(
            begin,
            *[step(number) for number in range(1, 5)],
            state,
            *[step(n, loss=99) for n in (5, 6, 7)],
            state="failed",
        )
        run.go(said("begin", total=9, step=4), *[step(number) for number in range(5, 10)])
        for tag in ("loss/current", "loss/average"):
            assert run.scalars(tag) == straight.scalars(tag)

    def test_begun_again_from_nothing(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        run.go(
            said("begin", total=3, step=0), step(1, loss=99), step(2, loss=99), said("begin", total=3, step=0), step(1)
        )
        assert run.scalars("loss/current") == {1: 1}
        assert run.scalars("loss/average") == {1: 1}

    def test_a_plain_script_is_read_from_its_bar(self, tmp_path: Path) -> None:
        def bar(number: int, loss: float | None) -> Bar:
            return Bar(name="steps", step=number, total=3, seconds_per_step=2.0, loss=loss)

        run = Run(tmp_path)
        run.go(bar(0, None), bar(1, None), bar(1, 0.5), LogLine(text="x"), bar(2, 0.5), bar(2, 0.25), bar(3, 0.125))
        assert run.scalars("loss/average") == {1: 0.5, 2: 0.25, 3: 0.125}

    def test_the_bar_of_a_watched_trainer_is_for_people(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        bar = Bar(name="steps", step=1, total=3, seconds_per_step=2.0, loss=7.0)
        run.go(said("begin", total=3, step=0), bar, step(1), bar)
        assert run.scalars("loss/average") == {1: 1}

    def test_what_is_saved_can_be_read_before_the_end(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        (tracker,) = track.open_trackers(run.plan, run.dir)
        for event in (said("begin", total=3, step=0), step(1), said("state", step=1, path="/x")):
            tracker.take(event)
        assert run.scalars("loss/current") == {1: 1}
        tracker.close("done")

    def test_a_picture_that_is_gone_is_left_out(self, tmp_path: Path) -> None:
        run = Run(tmp_path)
        gone = said("sample", step=1, index=0, prompt="", path=str(tmp_path / "none.png"))
        run.go(said("begin", total=1, step=0), gone, step(1))
        assert run.scalars("loss/current") == {1: 1} and not run.told

    def test_trouble_is_told_once(self, tmp_path: Path) -> None:
        (tmp_path / "tensorboard").write_text("a file where the folder should be")
        run = Run(tmp_path)
        run.go(said("begin", total=2, step=0), step(1), step(2))
        (notice,) = run.told
        assert isinstance(notice, Notice)
        assert notice.text.startswith("TensorBoard: ") and notice.text.endswith("training goes on without it")

    def test_nothing_happens_before_the_first_event(self, tmp_path: Path) -> None:
        Run(tmp_path).go()
        assert not list(tmp_path.iterdir())


def test_without_the_package_there_is_no_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert track.open_trackers(Run(tmp_path).plan, RunDir(path=tmp_path)) == ()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for wandb: what it is called with."""
    calls: list[tuple[str, Any]] = []

    def login(*, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify
        return known.logged_in

    def init(**options: Any) -> Any:
        calls.append(("init", options))
        if known.broken:
            raise ConnectionError("no answer")
        return SimpleNamespace(
            step=known.step,
            url="https://w/hero",
            log=lambda values, step: calls.append(("log", (step, values))),
            finish=lambda exit_code: calls.append(("finish", exit_code)),
        )

    known = SimpleNamespace(
        errors=SimpleNamespace(UsageError=RuntimeError),
        calls=calls, login=login, init=init, Settings=SimpleNamespace, Image=lambda path, caption: (path, caption),
        logged_in=True, broken=False, step=0,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", known)
    find = track._is_installed
    monkeypatch.setattr(track, "_is_installed", lambda name: name == "wandb" or find(name))
    return known


class TestWandb:
    def test_what_it_is_told(self, tmp_path: Path, picture: Path, package: Any) -> None:
        run = Run(tmp_path, wandb="team/sprites", mode="online", tensorboard=False)
        drawn = said("sample", step=2, index=0, prompt="a knight", path=str(picture))
        run.go(said("begin", total=2, step=0), step(1), step(2), drawn)
        (_, options), *logged, end = package.calls
        assert (options["entity"], options["project"], options["mode"]) == ("team", "sprites", "online")
        assert options["id"] == options["name"] == tmp_path.name
        assert options["settings"].resume == "allow"
        assert options["config"]["network.rank"] == 4 and "/home" not in str(options["config"])
        assert [number for _, (number, _) in logged] == [1, 2, 2]
        assert logged[-1][1][1] == {"sample/0": (str(picture), "a knight")}
        assert end == ("finish", 0)

    def test_a_resumed_run_repeats_no_step(self, tmp_path: Path, package: Any) -> None:
        package.step = 3
        Run(tmp_path, wandb="p", mode="online", tensorboard=False).go(
            said("begin", total=4, step=1), step(2), step(3), step(4)
        )
        assert [number for kind, (number, _) in package.calls[1:-1]] == [3, 4]

    @pytest.mark.parametrize(
        ("field", "value", "told"), [("logged_in", False, "wandb login"), ("broken", True, "no answer")]
    )
    def test_trouble_is_told_once(self, tmp_path: Path, package: Any, field: str, value: bool, told: str) -> None:
        setattr(package, field, value)
        run = Run(tmp_path, wandb="p", mode="online", tensorboard=False)
        run.go(said("begin", total=2, step=0), step(1), step(2), state="failed")
        (notice,) = run.told
        assert isinstance(notice, Notice) and told in notice.text


class TestCheck:
    @pytest.fixture
    def check(self, tmp_path: Path) -> Callable[[str], list[str]]:
        def check(lines: str) -> list[str]:
            (tmp_path / "p.toml").write_text(f'name = "h"\nbase = "sd15"\n[dataset]\npath = "s"\n[track]\n{lines}\n')
            return [str(problem) for problem in track.check_tracking(load_preset(str(tmp_path / "p.toml")))]

        return check

    def test_nothing_asked_for(self, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(track, "_is_installed", lambda _name: False)
        assert not check("")

    def test_packages_that_are_missing(self, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(track, "_is_installed", lambda _name: False)
        first, second = check('tensorboard = true\nwandb = "p"')
        assert first.startswith("p.toml:6 [track] tensorboard = true: the package tensorboard is not installed")
        assert second.startswith('p.toml:7 [track] wandb = "p": the package wandb is not installed')
        assert "pixelkit[wandb]" in second

    def test_nobody_is_logged_in(self, check: Any, package: Any) -> None:
        assert not check('wandb = "p"')
        package.logged_in = False
        (problem,) = check('wandb = "p"')
        assert "wandb login" in problem and 'wandb_mode = "offline"' in problem
        assert not check('wandb = "p"\nwandb_mode = "offline"')
