"""Machines on paper, and plans for them, for the tests of `pixelkit tune`."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from pixelkit.catalog import find_base, list_hardware
from pixelkit.hardware import Machine, choose_profile
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import LoadedPreset, load_preset
from pixelkit.sources import Sprite, Survey
from pixelkit.tune.search import Enough, Reading
from pixelkit.tune.settings import Settings, Space

H100 = Machine(
    kind="cuda", device="NVIDIA H100 80GB HBM3", memory_gib=79.6, available_gib=79, capability=(9, 0), cores=16
)
GB10 = Machine(
    kind="cuda", device="NVIDIA GB10", memory_gib=121.7, available_gib=110, capability=(12, 1), unified=True, cores=20
)
CPU = Machine(kind="cpu", device="x86_64", memory_gib=24, available_gib=20, unified=True, cores=2)
ALL_INSTALLED = ("xformers", "triton", "bitsandbytes")

START = Settings(
    batch_size=4, gradient_accumulation=2, gradient_checkpointing=True, attention="sdpa", compile=False, workers=0,
    optimizer="adamw8bit", fused_optimizer=False,
)  # fmt: skip
WIDE = Space(
    batch_sizes=(1, 2, 4, 8), share=8, gradient_checkpointing=(False, True), attention=("sdpa", "xformers"),
    compile=(False, True), workers=(0, 2, 4), optimizers=(("adamw", True), ("adamw8bit", False)),
)  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Simulated:
    """A machine on paper: seconds per image and memory from the settings, noise from a seed, an end after `most` probes."""

    gib: float = 80.0
    noise: float = 0.0
    seed: int = 0
    most: int = 1000
    neutral: bool = False
    probes: list[Settings] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def seconds(self, it: Settings) -> float:
        """Of one image, without noise."""
        if self.neutral:
            return 0.1
        work = 1.35 if it.gradient_checkpointing else 1.0
        work *= 0.8 if it.compile else 1.0
        work *= 1.08 if it.attention == "xformers" else 1.0
        launch = 1.2 / it.batch_size
        loading = {0: 0.3, 2: 0.1}.get(it.workers, 0.09)
        step = 0.02 if it.optimizer == "adamw8bit" else 0.01
        return 0.05 * (work + launch + loading) + step / (it.batch_size * it.gradient_accumulation)

    def memory(self, it: Settings) -> float:
        return 5 + it.batch_size * (1.0 if it.gradient_checkpointing else 6.0)

    def measure(self, settings: Settings, turn: int) -> Reading:
        if len(self.probes) == self.most:
            raise Enough("the time is up")
        self.probes.append(settings)
        if self.memory(settings) > self.gib:
            return Reading(failed="oom", why="CUDA out of memory")
        seconds = self.seconds(settings) * (1 + self.dice.gauss(0, self.noise))
        return Reading(seconds_per_image=seconds, peak_memory=int(self.memory(settings) * 2**30))


def best_of(machine: Simulated, space: Space, start: Settings) -> Settings:
    """By trying everything."""
    every = [
        space.with_batch(
            dataclasses.replace(
                start, gradient_checkpointing=checkpointing, attention=attention, compile=compiled, workers=workers,
                optimizer=optimizer, fused_optimizer=fused,
            ), size,
        )
        for size in space.batch_sizes for checkpointing in space.gradient_checkpointing for attention in space.attention
        for compiled in space.compile for workers in space.workers for optimizer, fused in space.optimizers
    ]  # fmt: skip
    fitting = [settings for settings in every if machine.memory(settings) <= machine.gib]
    return min(fitting, key=machine.seconds)


def make_plan(
    tmp_path: Path,
    text: str = "",
    *,
    base: str = "sdxl",
    machine: Machine = H100,
    images: int = 50,
    method: str = "lora",
) -> tuple[Plan, LoadedPreset]:
    file = tmp_path / "p.toml"
    file.write_text(f'name = "p"\nbase = "{base}"\nmethod = "{method}"\n[dataset]\npath = "s"\n{text}', "utf-8")
    loaded = absorb_kohya(load_preset(str(file)))
    profiles = list_hardware()
    name, _ = choose_profile(loaded.preset.hardware, machine, profiles)
    sprites = tuple(
        Sprite(path=Path(f"/s/{n}.png"), name=str(n), width=32, height=32, caption="a sword") for n in range(images)
    )
    found = find_base(base, None, folder=tmp_path, models=None)
    survey = Survey(sprites=sprites)
    plan = resolve(loaded, found, name, profiles[name], machine, engine="kohya", survey=survey)
    return plan, loaded
