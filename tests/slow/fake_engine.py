"""A trainer in place of the diffusers engine's: it reads the same configuration and leaves the same files, without torch.

What it does besides is said by FAKE in its environment, as JSON: `fits`: images a batch may hold (0: none does) unless
the step is below `until`; `fails`: a step at which it ends as `how` says; `pause`: seconds a step takes.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fake_trainer import CONTROL

from pixelkit import pipeline
from pixelkit.engines.diffusers import adapter
from pixelkit.process import Command
from pixelkit.progress import Event, Notice
from pixelkit.ship import Loading, Shipment

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from pixelkit.engines.adapter import EngineData
    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir

TRAINER = f"""
import json, os, pathlib, shutil, struct, sys, time, tomllib
sys.path.insert(0, {str(CONTROL)!r})
from control import Control
control = Control(deadline=3)
control.start()
how = json.loads(os.environ["FAKE"])
config = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())
state = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
out, name, train = pathlib.Path(config["output_dir"]), config["output_name"], config["train"]
out.mkdir(parents=True, exist_ok=True)
first = json.loads((state / "trainer.json").read_text())["step"] if state else 0
batch, accumulation = config["dataset"]["batch_size"], train["gradient_accumulation"]
control.emit("begin", total=train["steps"], epochs=1, step=first, pid=os.getpid(), engine="fake", versions={{}})

def save(step, last=False):
    file = out / (f"{{name}}.safetensors" if last else f"{{name}}-step{{step:08d}}.safetensors")
    header = {{"lora_unet_x.lora_up.weight": {{"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}}}
    header = json.dumps(header).encode()
    (out / ".new.tmp").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<16f", *[step] * 16))
    (out / ".new.tmp").replace(file)
    control.emit("save", step=step, path=str(file))
    if not last:
        folder = out / f"{{name}}-step{{step:08d}}-state"
        part = out / f".{{folder.name}}.{{os.getpid()}}.tmp"
        part.mkdir()
        (part / "trainer.json").write_text(json.dumps({{"step": step}}))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        control.emit("state", step=step, path=str(folder))

for step in range(first + 1, train["steps"] + 1):
    time.sleep(how.get("pause", 0.002))
    if batch > how.get("fits", 99) and step >= how.get("until", 0):
        raise MemoryError("CUDA out of memory" if how.get("cuda") else "")
    if step == how.get("fails"):
        exec(how["how"])
    if control.take_sample():
        control.emit("sample", step=step, index=0, seed=1, prompt="", path="asked")
    loss = 1 / (step + batch * accumulation)
    control.emit("step", step=step, epoch=1, loss=loss, lr=1e-4, seconds=0.1, memory=None)
    every = train["save_every_steps"]
    if control.take_save() or (every and step % every == 0 and step < train["steps"]):
        save(step)
    if control.stop_requested:
        save(step)
        control.emit("stopped", step=step, reason=control.stop_requested)
        sys.exit(0)
if not how.get("leaves_nothing"):
    save(train["steps"], last=True)
control.emit("end", step=train["steps"], path=str(out / f"{{name}}.safetensors"))
"""


class FakeEngine:
    """What the trainer shall do, which commands it got, what the user was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.how: dict[str, Any] = {}
        self.resumed_from: list[Path | None] = []
        self.told: list[str] = []

    def command(self, plan: Plan, run: RunDir, data: EngineData, *, resume: Path | None = None) -> Command:
        self.resumed_from.append(resume)
        script = self.folder / "trainer.py"
        script.write_text(TRAINER)
        argv = (
            sys.executable,
            "-I",
            "-S",
            str(script),
            str(run.config / "config.toml"),
            *([str(resume)] if resume else []),
        )
        return Command(argv=argv, env={**os.environ, "FAKE": json.dumps(self.how)}, cwd=self.folder)

    def watcher(self, **more: Any) -> pipeline.Watcher:
        return replace(pipeline.Watcher(on_event=self._see), **more)

    def _see(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.told.append(event.text)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Every training of this process is the fake's; what is shipped is the trainer's file."""
    engine = FakeEngine(folder)
    monkeypatch.setattr(adapter, "command", engine.command)
    monkeypatch.setattr(pipeline, "ship", _ship)
    monkeypatch.delenv("PIXELKIT_SD_SCRIPTS", raising=False)
    return engine


def _ship(plan: Plan, run: RunDir, **_: object) -> Shipment:
    run.export.mkdir(exist_ok=True)
    model = run.export / f"{plan.name}.safetensors"
    model.write_bytes(run.model(plan.name).read_bytes())
    return Shipment(model=model, exports=(model,), metrics={}, summary=(), loading=Loading(checked=None))
