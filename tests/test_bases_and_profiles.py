"""The shipped bases and hardware profiles: they load, say where they come from, and hold the facts' numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from pixelkit.catalog import BaseSpec, HardwareProfile, expected_memory, list_bases, list_hardware
from pixelkit.engines.kohya.adapter import OWNED, SCRIPTS
from pixelkit.engines.kohya.options import check_kohya_table, load_table
from pixelkit.hardware import Machine, choose_profile
from pixelkit.paths import data_dir
from pixelkit.preset import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BASES = ("sd15", "sd21", "sdxl", "illustrious", "pony", "noobai-vpred", "sd35", "flux-dev", "tiny-sd", "pixelkit-tiny")
HARDWARE = ("gb10", "cuda-80gb", "cuda-48gb", "cuda-24gb", "cuda-16gb", "cuda-12gb", "cuda-8gb", "rocm", "mps", "cpu")


def comment(file: Path) -> str:
    """The opening comment, in one line."""
    lines = file.read_text("utf-8").splitlines()
    end = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def test_what_is_shipped() -> None:
    assert set(list_bases()) >= set(BASES)
    assert set(list_hardware()) >= set(HARDWARE)


@pytest.mark.parametrize("name", list_bases())
def test_base_says_where_it_comes_from(name: str) -> None:
    opening = comment(data_dir("presets") / "bases" / f"{name}.toml")
    assert "Get it: " in opening
    assert "Needs: " in opening
    spec = list_bases()[name]
    assert spec.licence
    assert spec.resolution % spec.bucket_step == 0
    step = {"sd15": 64, "sd2": 64, "sdxl": 32, "sd3": 32, "flux": 64}[spec.family]
    assert spec.bucket_step == (8 if name == "pixelkit-tiny" else step)
    text = (data_dir("presets") / "bases" / f"{name}.toml").read_text("utf-8")
    assert name == "pixelkit-tiny" or "# Computed, not measured" in text


@pytest.mark.parametrize("name", list_bases())
def test_ranges_name_keys_of_a_preset(name: str) -> None:
    for key, (low, high) in list_bases()[name].ranges.items():
        table, _, field = key.partition(".")
        assert field in Preset.model_fields[table].annotation.model_fields  # type: ignore[union-attr]
        assert low <= high


@pytest.mark.parametrize("name", list_hardware())
def test_profile_says_where_its_numbers_come_from(name: str) -> None:
    opening = comment(data_dir("presets") / "hardware" / f"{name}.toml")
    assert re.search(r"Computed|Published|Inferred|Measured", opening)


def _check_options(options: Mapping[str, object], scripts: list[str], where: str) -> None:
    for script in scripts:
        problems = check_kohya_table(options, script, lambda key: f"{where} {key}")
        assert not problems, f"{script}: {[str(problem) for problem in problems]}"
        assert not options.keys() & OWNED


def _scripts_of(family: str, *, lora_only: bool = False) -> list[str]:
    return [
        scripts[family]
        for method, scripts in SCRIPTS.items()
        if family in scripts and not (lora_only and method != "lora")
    ]


@pytest.mark.parametrize("name", list_bases())
def test_kohya_keys_of_bases(name: str) -> None:
    spec = list_bases()[name]
    _check_options(spec.kohya, _scripts_of(spec.family), name)
    for script in _scripts_of(spec.family, lora_only=True):
        assert spec.needs.keys() <= load_table().options_of(script).keys()


@pytest.mark.parametrize("name", list_hardware())
def test_kohya_keys_of_profiles(name: str) -> None:
    profile = list_hardware()[name]
    for family, settings in profile.families.items():
        _check_options(profile.kohya, _scripts_of(family), name)
        _check_options(settings.kohya, _scripts_of(family, lora_only=True), f"{name} {family}")


def test_profiles_follow_the_facts() -> None:
    profiles = list_hardware()
    batches = {
        name: tuple(profiles[name].families[f].batch_size for f in ("sd15", "sdxl", "flux")) for name in HARDWARE[:7]
    }
    assert batches == {
        "gb10": (8, 4, 1),
        "cuda-80gb": (16, 8, 2),
        "cuda-48gb": (16, 4, 4),
        "cuda-24gb": (8, 4, 1),
        "cuda-16gb": (4, 4, 1),
        "cuda-12gb": (4, 1, 1),
        "cuda-8gb": (2, 1, 1),
    }
    assert [profiles[name].optimizer for name in HARDWARE] == [
        *["adamw"] * 3, *["adamw8bit"] * 3, "adafactor", *["adamw"] * 3,
    ]  # fmt: skip
    assert {name: profiles[name].precision for name in ("gb10", "cuda-8gb", "mps", "cpu")} == {
        "gb10": "bf16",
        "cuda-8gb": "bf16",
        "mps": "no",
        "cpu": "no",
    }
    gb10 = profiles["gb10"]
    assert gb10.environment == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert gb10.kohya == {"lowram": True}
    assert gb10.families["flux"].unchecked_needs_gib == 85
    assert gb10.families["flux"].compile
    assert not gb10.families["sdxl"].compile
    for profile in (gb10, profiles["cuda-80gb"]):
        assert profile.fused_optimizer
    for settings in gb10.families.values():
        assert not {"blocks_to_swap", "fp8_base", "cpu_offload_checkpointing"} & settings.kohya.keys()
    assert profiles["mps"].save_precision == "float"
    assert {name: profiles[name].families["flux"].kohya.get("blocks_to_swap") for name in HARDWARE[3:7]} == {
        "cuda-24gb": None,
        "cuda-16gb": 8,
        "cuda-12gb": 16,
        "cuda-8gb": 28,
    }


@pytest.mark.parametrize(
    ("device", "kind", "shown_gib", "expected"),
    [
        ("NVIDIA GB10", "cuda", 121.7, "gb10"),
        ("NVIDIA H200", "cuda", 139.8, "cuda-80gb"),
        ("NVIDIA H100 80GB HBM3", "cuda", 79.6, "cuda-80gb"),
        ("NVIDIA L40S", "cuda", 45.0, "cuda-48gb"),
        ("NVIDIA GeForce RTX 4090", "cuda", 24.0, "cuda-24gb"),
        ("NVIDIA L4", "cuda", 22.5, "cuda-24gb"),
        ("Tesla T4", "cuda", 15.0, "cuda-16gb"),
        ("NVIDIA GeForce RTX 3060", "cuda", 12.0, "cuda-12gb"),
        ("NVIDIA GeForce RTX 2080 Ti", "cuda", 11.0, "cuda-8gb"),
        ("NVIDIA GeForce GTX 1060", "cuda", 6.0, "cuda-8gb"),
        ("AMD Radeon RX 7900 XTX", "rocm", 24.0, "rocm-24gb"),
        ("AMD Radeon RX 7800 XT", "rocm", 16.0, "rocm-16gb"),
        ("AMD Radeon RX 7600", "rocm", 8.0, "rocm"),
        ("Apple GPU", "mps", 16.0, "mps"),
        ("x86_64", "cpu", 23.0, "cpu"),
    ],
)
def test_cards_find_their_profile(device: str, kind: str, shown_gib: float, expected: str) -> None:
    machine = Machine(kind=kind, device=device, memory_gib=shown_gib, available_gib=shown_gib)  # type: ignore[arg-type]
    assert choose_profile("auto", machine, list_hardware())[0] == expected


def _fits(spec: BaseSpec, profile: HardwareProfile) -> bool:
    settings = profile.families[spec.family]
    checkpointing = settings.checkpointing_above is not None and settings.batch_size > settings.checkpointing_above
    need = expected_memory(
        spec, batch_size=settings.batch_size, checkpointing=checkpointing, canvas_area=spec.resolution**2
    )
    return need <= profile.memory_gib


@pytest.mark.parametrize(
    "name", [name for name, profile in list_hardware().items() if profile.kind in {"cuda", "rocm"}]
)
def test_defaults_fit_the_machine(name: str) -> None:
    profile = list_hardware()[name]
    for base, spec in list_bases().items():
        saved = profile.families[spec.family].kohya.keys() & {"fp8_base", "fp8_base_unet", "blocks_to_swap"}
        if not saved and base != "sd35-large":
            assert _fits(spec, profile), base


def test_memory_points() -> None:
    bases = list_bases()

    def need(base: str, batch: int, *, checkpointing: bool) -> float:
        spec = bases[base]
        return expected_memory(spec, batch_size=batch, checkpointing=checkpointing, canvas_area=spec.resolution**2) - 2

    for base, batch, checkpointing, gib in (
        ("sd15", 1, False, 3), ("sd15", 4, False, 6.7), ("sd15", 8, False, 12), ("sd15", 16, False, 22),
        ("sdxl", 1, False, 14), ("sdxl", 2, False, 23), ("sdxl", 4, False, 39), ("sdxl", 8, False, 72),
        ("sdxl", 1, True, 6.5), ("sdxl", 4, True, 8.7), ("sdxl", 8, True, 12),
        ("flux-dev", 1, False, 64), ("flux-dev", 1, True, 26), ("flux-dev", 2, True, 28), ("flux-dev", 4, True, 33),
    ):  # fmt: skip
        assert need(base, batch, checkpointing=checkpointing) == pytest.approx(gib, rel=0.03)


def test_v_prediction_bases() -> None:
    bases = list_bases()
    assert {name for name, spec in bases.items() if spec.v_parameterization} == {
        "sd21",
        "noobai-vpred",
        "pixelkit-tiny",
    }
    assert bases["sd21"].kohya == {"v2": True}
    assert bases["noobai-vpred"].kohya["zero_terminal_snr"] is True
    flux = bases["flux-dev"]
    assert flux.needs.keys() == {"ae", "clip_l", "t5xxl"}
    assert flux.kohya == {"guidance_scale": 1.0, "timestep_sampling": "flux_shift", "model_prediction_type": "raw"}
    for name in ("sd35", "sd35-large"):
        assert bases[name].needs.keys() == {"clip_l", "clip_g", "t5xxl"}
    tiny = bases["pixelkit-tiny"]
    assert (tiny.resolution, tiny.bucket_step, tiny.latent_scale, tiny.source) == (32, 8, 1, "package:tiny/weights")
    assert {name for name, spec in bases.items() if spec.stands_alone} == {"pixelkit-tiny"}
    for name in ("tiny-sd", "pixelkit-tiny"):
        assert (bases[name].layout, bases[name].engines) == ("diffusers", ("kohya", "diffusers"))
