"""Runs of the fake engine on a copy of the quickstart's sprites, for tests of how runs end."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from fake_trainer import ROOT

from pixelkit import pipeline
from pixelkit.progress import Event, Step
from pixelkit.ready import Choices
from pixelkit.rundir import RunDir, list_runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_engine import FakeEngine

    from pixelkit.ship import Shipment

COUNT = 8
SHORT = ("train.steps=12", "train.save_every_steps=3", "sample.prompts=[]", 'engine="diffusers"')


class Runs:
    """Runs of the fake engine on a copy of the quickstart's sprites."""

    def __init__(self, folder: Path, engine: FakeEngine) -> None:
        self.engine = engine
        self.root = folder / "runs"
        self.sprites = folder / "sprites"
        self.sprites.mkdir()
        for picture in sorted((ROOT / "presets" / "quickstart").glob("*.png"))[:COUNT]:
            for file in (picture, picture.with_suffix(".txt")):
                shutil.copy(file, self.sprites)
        self.overrides = [*SHORT, f'dataset.path="{self.sprites}"']

    def choices(self, *overrides: str, **more: Any) -> Choices:
        return Choices(overrides=(*self.overrides, *overrides), runs=self.root, **more)

    def start(self, *overrides: str, retry: bool = True, **watching: Any) -> Shipment:
        preset = str(ROOT / "presets" / "quickstart.toml")
        return pipeline.run_preset(preset, self.choices(*overrides, retry=retry), self.engine.watcher(**watching))

    def resume(self, **watching: Any) -> Shipment:
        return pipeline.resume_run("latest", Choices(runs=self.root), self.engine.watcher(**watching))

    @property
    def run(self) -> RunDir:
        (run,) = list_runs(self.root)
        return run

    def steps(self) -> list[int]:
        return [event["step"] for event in self.run.read_metrics() if event["event"] == "step"]

    def losses(self) -> list[float]:
        return [event["loss"] for event in self.run.read_metrics() if event["event"] == "step"]

    def state(self) -> str:
        return str(self.run.read_manifest()["state"])

    def temporary_files(self) -> list[Path]:
        return [path for path in self.root.rglob(".*") if path.name != ".latents"] + list(self.root.rglob("*.part"))


def at_step(step: int, do: Callable[[], object]) -> Callable[[Event], None]:
    def see(event: Event) -> None:
        if isinstance(event, Step) and event.step == step:
            do()

    return see
