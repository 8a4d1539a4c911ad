"""Each shipped preset on each hardware profile: planned, checked, rendered and verified; and resumed, the same again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pixelkit.catalog import Base, list_bases, list_hardware
from pixelkit.engines.adapter import EngineData, Subset, trainer_environment
from pixelkit.engines.choice import ENGINES
from pixelkit.engines.kohya import adapter as kohya
from pixelkit.hardware import Machine
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import LoadedPreset, load_preset, shipped_presets
from pixelkit.ready import Ready
from pixelkit.render import render
from pixelkit.rundir import RunDir
from pixelkit.sources import Sprite, Survey
from pixelkit.training import resolved_preset

if TYPE_CHECKING:
    from collections.abc import Sequence

BASES, HARDWARE = list_bases(), list_hardware()
SPRITES = tuple(
    Sprite(path=Path(f"/s/orc{n}.png"), name=f"orc{n}", width=24, height=24 if n % 4 else 32, caption="a sword")
    for n in range(30)
)


def load(name: str, overrides: Sequence[str] = ()) -> LoadedPreset:
    return absorb_kohya(load_preset(name, overrides))


def plan_on(loaded: LoadedPreset, profile: str, files: Path) -> Plan:
    spec = BASES[loaded.preset.base]
    hardware = HARDWARE[profile]
    base = Base(name=loaded.preset.base, spec=spec, location="/m/base", local=True,
                files={key: str(files) for key in spec.needs})  # fmt: skip
    memory = hardware.memory_gib or 32
    machine = Machine(kind=hardware.kind, device="x", memory_gib=memory, available_gib=memory, capability=(9, 0))
    return resolve(
        loaded,
        base,
        profile,
        hardware,
        machine,
        engine="kohya",
        survey=Survey(sprites=tuple(SPRITES)),
        class_survey=Survey(sprites=tuple(SPRITES[:5])),
    )


def problems_of(plan: Plan, folder: Path) -> list[str]:
    found = [problem for problem in kohya.check(plan, None) if "sd-scripts is not found" not in problem.what]
    data = EngineData(
        root=Path("/r"),
        images=(Subset(folder=Path("/r/i"), repeats=1),),
        class_images=Path("/r/c"),
        latents=Path("/l"),
        sd_scripts=Path("/sd"),
    )
    found += kohya.verify(plan, render("kohya", kohya.context(plan, RunDir(path=folder), data), folder).files)
    return [str(problem) for problem in found if "not installed" not in problem.what]


@pytest.mark.parametrize("profile", HARDWARE)
def test_presets_on(profile: str, tmp_path: Path) -> None:
    for name in shipped_presets():
        loaded = load(name)
        if BASES[loaded.preset.base].family in HARDWARE[profile].families:
            assert not problems_of(plan_on(loaded, profile, Path(__file__)), tmp_path), name


@pytest.mark.parametrize("profile", HARDWARE)
def test_a_whole_model_on(profile: str, tmp_path: Path) -> None:
    for base in ("sd15", "sd21", "sdxl", "noobai-vpred"):
        loaded = load("hero-dreambooth", [f'base="{base}"'])
        assert not problems_of(plan_on(loaded, profile, Path(__file__)), tmp_path), base


@pytest.mark.parametrize("name", shipped_presets())
def test_what_is_resumed_is_the_same_plan(name: str, tmp_path: Path) -> None:
    profile = "gb10"
    loaded = load(name, ["train.max_grad_norm=0.5", 'export.author="Ann \\"Ö\\"\\n#"', "kohya.seed=7", 'kohya.vae="v"'])
    plan = plan_on(loaded, profile, Path(__file__))
    file = tmp_path / "resolved.toml"
    file.write_text(resolved_preset(Ready(loaded=loaded, plan=plan, engine=ENGINES["kohya"], location=None)), "utf-8")
    again = load(str(file))
    second = plan_on(again, profile, Path(__file__))
    named = {"extends": None, "engine": "kohya", "hardware": profile}
    train = {"batch_size": True, "gradient_accumulation": True, "effective_batch": True, "gradient_checkpointing": True}
    chosen = {"dataset": True, "train": train | {"optimizer": True}}  # by the machine, and then kept
    assert again.preset.model_dump(exclude=chosen) == (loaded.preset.model_dump(exclude=chosen) | named)
    for field in dataclasses.fields(Plan):
        if field.name not in {"preset", "sources", "warnings"}:
            assert getattr(second, field.name) == getattr(plan, field.name), field.name


def test_what_the_environment_says_wins_over_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_on(load("style"), "gb10", Path(__file__))
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert trainer_environment(plan)["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    monkeypatch.setenv("TQDM_ASCII", "1")
    environment = trainer_environment(plan)
    assert environment["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"
    assert "TQDM_ASCII" not in environment
    assert environment["PYTHONUTF8"] == "1"
