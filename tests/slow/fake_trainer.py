"""Fake trainers, for tests that start real processes: small, without torch, quick."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pixelkit.launch import Exit, launch
from pixelkit.process import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixelkit import launch as launch_module
    from pixelkit.progress import Event

ROOT = Path(__file__).parents[2]
CONTROL = ROOT / "pixelkit" / "engines"

ENTRY = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(CONTROL)!r})
from control import Control
control = Control(deadline=1.5)
control.start()
def train(steps=400, pause=0.02, save=True):
    control.emit("begin", total=steps, epochs=1, pid=os.getpid(), engine="fake", versions={{}})
    for step in range(1, steps + 1):
        time.sleep(pause)
        print(f"steps: {{step}}", file=sys.stderr, flush=True)
        control.emit("step", step=step, epoch=1, loss=0.5, lr=1e-4, seconds=pause, memory=None)
        if control.take_save():
            control.emit("save", step=step, path="asked")
        if control.stop_requested:
            if save:
                open("saved", "w").write(control.stop_requested)
                control.emit("stopped", step=step, reason=control.stop_requested)
                sys.exit(0)
    control.emit("end", step=steps, path="x.safetensors")
"""

LAUNCHER = """
import subprocess, sys
command = sys.argv[1:]
process = subprocess.Popen(command)
process.wait()
if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
"""


class Bench:
    """Starts fake trainers in a folder and keeps what launch tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.log = folder / "log.txt"
        self.metrics = folder / "metrics.jsonl"

    def script(self, code: str, name: str = "trainer.py") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(code))
        return path

    def command(self, code: str, *, launcher: bool = False, obeys_control: bool = True) -> Command:
        python = (sys.executable, "-I", "-S")
        argv = (*python, str(self.script(code)))
        if launcher:
            argv = (*python, str(self.script(LAUNCHER, "launcher.py")), *argv)
        return Command(argv=argv, env=dict(os.environ), cwd=self.folder, obeys_control=obeys_control)

    def run(
        self,
        command: Command,
        *,
        act: Callable[[Event], None] = lambda _event: None,
        orders: Callable[[], launch_module.Order | None] | None = None,
    ) -> Exit:
        def see(event: Event) -> None:
            self.events.append(event)
            act(event)

        return launch(command, log=self.log, metrics=self.metrics, on_event=see, orders=orders)

    def left(self) -> list[psutil.Process]:
        """Processes that were started by a script of this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = str(self.folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if ours and process.pid != os.getpid():
                found.append(process)
        return found

    def wait_until_gone(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.left():
            assert time.monotonic() < end, self.left()
            time.sleep(0.05)

    def wait_for(self, name: str, seconds: float = 10) -> str:
        end = time.monotonic() + seconds
        while not (self.folder / name).exists() or not (self.folder / name).read_text():
            assert time.monotonic() < end, name
            time.sleep(0.02)
        return (self.folder / name).read_text()


def open_bench(folder: Path) -> Iterator[Bench]:
    """For a fixture: a bench, and the proof that nothing was left of what ran on it."""
    bench = Bench(folder)
    yield bench
    left = bench.left()
    for process in left:
        process.kill()
    assert not left, left


def on(kind: type[Event], do: Callable[[], object]) -> Callable[[Event], None]:
    """Do it at the first event of a kind."""
    done = []

    def act(event: Event) -> None:
        if isinstance(event, kind) and not done:
            done.append(event)
            do()

    return act
