"""What an engine is to the rest of pixelkit: a module with these functions."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pixelkit.paths import PACKAGE
from pixelkit.process import Command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pixelkit.errors import Problem
    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir

CONFIG = "config.toml"
ACCELERATE = "accelerate.yaml"


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A folder of prepared images, each seen `repeats` times in an epoch."""

    folder: Path
    repeats: int


@dataclass(frozen=True, kw_only=True)
class EngineData:
    """What the engine reads besides its configuration: the prepared set, and the sd-scripts checkout.

    `images`: folders of the set with how often an epoch shows each of their images. `latents`: where encoded images may
    be kept for other runs; its name changes with whatever changes them. `base`: a base made for this run, in place of the
    plan's; `weights`: an earlier LoRA to go on from, at the plan's rank.
    """

    root: Path
    images: tuple[Subset, ...]
    class_images: Path | None
    latents: Path
    sd_scripts: Path | None
    base: Path | None = None
    weights: Path | None = None


class Engine(Protocol):
    """An adapter module. It imports no torch; what does runs in the trainer's process, in the engine's entry module."""

    def check(self, plan: Plan, sd_scripts: Path | None) -> list[Problem]:
        """What stands in the way of this plan, said in the preset's terms; empty if nothing does."""
        ...

    def context(self, plan: Plan, run: RunDir, data: EngineData) -> Mapping[str, Mapping[str, object]]:
        """The templates' variables, by template name without `.j2`."""
        ...

    def verify(self, plan: Plan, files: Mapping[str, Path]) -> list[Problem]:
        """What is wrong with the rendered files, read back as the engine reads them."""
        ...

    def command(self, plan: Plan, run: RunDir, data: EngineData, *, resume: Path | None = None) -> Command:
        """How to start the trainer; `resume` is a state folder that it saved."""
        ...


def launch_command(plan: Plan, run: RunDir, *, module: str, arguments: Sequence[str], cwd: Path) -> Command:
    """`accelerate launch` of an entry module, with an environment scrubbed of what changes or breaks a trainer."""
    threads = plan.machine.cores if plan.device in {"cpu", "mps"} else min(4, plan.machine.cores)
    argv = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(run.config / ACCELERATE),
        "--num_cpu_threads_per_process",
        str(threads),
        *(("--main_process_port", str(_free_port())) if plan.train.gpus > 1 else ()),
        "-m",
        module,
        *arguments,
    )
    return Command(argv=argv, env=trainer_environment(plan), cwd=cwd)


def _free_port() -> int:
    """Where the processes of one training meet. Two trainings on a machine must not share it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trainer_environment(plan: Plan) -> dict[str, str]:
    """The profile's environment, this process's over it without accelerate's and tqdm's variables, and where pixelkit lies."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "TQDM_", "PYTHONSTARTUP"))
    }
    python_path = [str(PACKAGE.parent), *filter(None, [kept.get("PYTHONPATH", "")])]
    return {
        **plan.environment,
        **kept,
        "PYTHONPATH": os.pathsep.join(python_path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",  # sd-scripts and what it loads open text files without saying how
        "PYTHONIOENCODING": "utf-8",
    }
