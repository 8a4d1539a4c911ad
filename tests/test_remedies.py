"""The ladder on every family and machine: which rungs there are, in which order, and that each gives a plan that trains."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_shipped_plans import BASES, HARDWARE, load, plan_on, problems_of

from pixelkit import remedies
from pixelkit.preset_file import shipped_presets
from pixelkit.remedies import LADDER, propose_mend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixelkit.plan import Plan


@pytest.fixture(autouse=True)
def _bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "has_bitsandbytes", lambda: True)


def plan(base: str, profile: str, *overrides: str) -> Plan:
    found = plan_on(load("style", [f'base="{base}"', *overrides]), profile, Path(__file__))
    return dataclasses.replace(found, machine=dataclasses.replace(found.machine, unified=HARDWARE[profile].unified))


def climb_down(base: str, profile: str, *overrides: str) -> Iterator[tuple[str, Plan]]:
    """Each rung that is taken, and the plan on it."""
    taken = list(overrides)
    while True:
        now = plan(base, profile, *taken)
        found = [(rung, changes) for rung in LADDER if (changes := rung.step_down(now)) is not None]
        if not found:
            return
        rung, changes = found[0]
        taken += [f"{key}={json.dumps(value)}" for key, value in changes.items()]
        assert rung.tell(changes)
        yield rung.name, plan(base, profile, *taken)


@pytest.mark.parametrize(
    ("base", "profile", "overrides", "rungs"),
    [
        ("sd15", "cpu", ("train.batch_size=4",), ["smaller batch"] * 2),
        ("sd15", "cpu", ("train.batch_size=3", "train.effective_batch=3"), ["smaller batch"]),
        ("sd15", "cpu", (), []),
        ("sdxl", "gb10", (), ["gradient checkpointing", *["smaller batch"] * 2, "8-bit optimizer", "fp8 base"]),
        ("sdxl", "gb10", ('train.precision="no"', "train.batch_size=1"), ["gradient checkpointing", "8-bit optimizer"]),
        ("sdxl", "cuda-24gb", ("train.batch_size=2",), ["smaller batch", "fp8 base"]),
        ("flux-dev", "cuda-24gb", ("train.batch_size=1",), [*["swapped blocks"] * 3]),
        ("flux-dev", "gb10", ("train.batch_size=1",), ["gradient checkpointing", "8-bit optimizer", "fp8 base"]),
        (
            "sdxl",
            "cuda-24gb",
            ("train.batch_size=1", 'kohya.optimizer_type="AdamW"'),
            ["gradient checkpointing", "fp8 base"],
        ),
        ("sdxl", "gb10", ('network.kind="dora"', "train.batch_size=1"), ["gradient checkpointing", "fp8 base"]),
        ("sdxl", "gb10", ('method="finetune"', "train.batch_size=1"), ["gradient checkpointing"]),
        ("sdxl", "mps", (), []),
        ("sdxl", "rocm-24gb", ("train.batch_size=2",), ["smaller batch"]),
    ],
)
def test_the_order_of_the_rungs(base: str, profile: str, overrides: tuple[str, ...], rungs: list[str]) -> None:
    assert [name for name, _ in climb_down(base, profile, *overrides)] == rungs


@pytest.mark.parametrize("profile", HARDWARE)
def test_every_rung_of_every_base_can_be_trained(profile: str, tmp_path: Path) -> None:
    for base in ("sd15", "sdxl", "sd35", "flux-dev"):
        if BASES[base].family not in HARDWARE[profile].families:
            continue
        first = plan(base, profile)
        for name, lower in climb_down(base, profile):
            assert lower.train.effective_batch == first.train.effective_batch, name
            assert lower.train.steps == first.train.steps
            assert not problems_of(lower, tmp_path), (base, name)


def test_an_effective_batch_and_epochs_stay_what_they_are() -> None:
    wanted = ("train.effective_batch=6", "train.epochs=3", "train.save_every_epochs=1")
    start = plan("sdxl", "gb10", *wanted)
    lower = [found for _, found in climb_down("sdxl", "gb10", *wanted)]
    assert {found.train.effective_batch for found in lower} == {6}
    assert {found.train.steps for found in lower} == {start.train.steps}
    assert {found.train.save_every_steps for found in lower} == {start.train.save_every_steps}
    assert lower[-1].train.batch_size == 1


def test_a_package_that_is_missing_is_no_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "has_bitsandbytes", lambda: False)
    assert "8-bit optimizer" not in [name for name, _ in climb_down("sdxl", "gb10")]


def on_card(found: Plan, capability: tuple[int, int]) -> Plan:
    return dataclasses.replace(found, machine=dataclasses.replace(found.machine, capability=capability))


def test_what_mends_numbers() -> None:
    fp16 = plan("sd15", "cuda-24gb", 'train.precision="fp16"')
    assert propose_mend(fp16, "loss", 40).changes == {"train.precision": "bf16"}
    assert propose_mend(on_card(fp16, (7, 5)), "loss", 40).changes == {"train.precision": "no"}
    assert propose_mend(fp16, "latents", 0).changes == {"kohya.no_half_vae": True}
    assert not propose_mend(plan("sd15", "cuda-24gb", "kohya.no_half_vae=true"), "latents", 0).changes
    assert not propose_mend(plan("sdxl", "cuda-24gb"), "latents", 0).changes, "its VAE is never in half precision"
    assert not propose_mend(plan("sdxl", "cuda-24gb"), "loss", 1).changes
    found = propose_mend(plan("sdxl", "cuda-24gb", "train.learning_rate=3e-3"), "gradient", 9)
    assert found.changes == {"train.learning_rate": 1.5e-3}
    assert found.why == "learning_rate = 0.003 is above the usual range of sdxl, which ends at 0.0005"


def test_shipped_presets_have_a_way_down() -> None:
    for name in shipped_presets():
        loaded = load(name)
        if BASES[loaded.preset.base].family in HARDWARE["cuda-24gb"].families:
            found = plan_on(loaded, "cuda-24gb", Path(__file__))
            assert any(rung.step_down(found) for rung in LADDER), name
