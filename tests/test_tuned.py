"""What may be tried for a plan, and the local profile that comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from simulated_machines import ALL_INSTALLED, CPU, GB10, H100, START, make_plan

from pixelkit.catalog import find_base, list_hardware
from pixelkit.errors import PresetError
from pixelkit.hardware import Machine, choose_profile
from pixelkit.plan import Plan, absorb_kohya, resolve
from pixelkit.preset_file import load_preset
from pixelkit.sources import Sprite, Survey
from pixelkit.tune.probe import plan_probe
from pixelkit.tune.search import Found, Reading
from pixelkit.tune.settings import Settings, Space, describe, find_space, settings_of
from pixelkit.tune.tuning import describe_found
from pixelkit.tuned import Tuned, apply_tuned, find_tuned, forget_tuned, keep_tuned, place_of, read_tuned, tuned_file

if TYPE_CHECKING:
    from collections.abc import Callable

# --- what may be tried


def space_of(tmp_path: Path, text: str = "", *, installed: tuple[str, ...] = ALL_INSTALLED, **options: object) -> Space:
    plan, loaded = make_plan(tmp_path, text, **options)  # type: ignore[arg-type]
    return find_space(plan, loaded, installed=installed)


def test_a_gpu_leaves_everything_open(tmp_path: Path) -> None:
    space = space_of(tmp_path, "[train]\neffective_batch = 8\n")
    assert space.batch_sizes == (1, 2, 4, 8) and space.share == 8
    assert space.gradient_checkpointing == (False, True)
    assert space.attention == ("sdpa", "xformers")
    assert space.compile == (False, True) and space.compile_excludes_checkpointing
    assert space.workers == (0, 2, 4, 8)
    assert space.optimizers == (("adamw", True), ("adamw8bit", True))
    assert not space.fixed


def test_an_open_batch_goes_by_powers_of_two_up_to_a_full_bucket(tmp_path: Path) -> None:
    assert space_of(tmp_path, images=50).batch_sizes == (1, 2, 4, 8, 16, 32)
    assert space_of(tmp_path, images=5).batch_sizes == (1, 2, 4, 8)  # the plan's own 8 stays in
    assert space_of(tmp_path, "[train]\neffective_batch = 12\n").batch_sizes == (1, 2, 3, 4, 6, 12)


@pytest.mark.parametrize(
    ("text", "name", "where"),
    [
        ("[train]\nbatch_size = 2\n", "batch_size", "p.toml:7"),
        ("[train]\neffective_batch = 8\nbatch_size = 2\n", "batch_size", "p.toml:8"),
        ("[train]\ngradient_checkpointing = true\n", "gradient_checkpointing", "p.toml:7"),
        ('[train]\noptimizer = "adamw"\n', "optimizer", "p.toml:7"),
        ("[kohya]\nxformers = true\n", "attention", "p.toml:7 xformers"),
        ("[kohya]\nmax_data_loader_n_workers = 1\n", "workers", "p.toml:7 max_data_loader_n_workers"),
        ('[kohya]\ndynamo_backend = "eager"\n', "compile", "p.toml:7 dynamo_backend"),
    ],
)
def test_what_the_artist_wrote_is_not_touched(tmp_path: Path, text: str, name: str, where: str) -> None:
    space = space_of(tmp_path, text)
    assert space.fixed[name] == where
    values = {"batch_size": space.batch_sizes, "optimizer": space.optimizers}.get(name) or getattr(space, name)
    assert len(values) == 1


def test_only_what_works_here_is_tried(tmp_path: Path) -> None:
    bare = space_of(tmp_path, installed=())
    assert (bare.attention, bare.compile, bare.optimizers) == (("sdpa",), (True,), (("adamw", True),))
    cpu = space_of(tmp_path, base="sd15", machine=CPU)
    assert (cpu.attention, cpu.compile, cpu.optimizers) == (("sdpa",), (False,), (("adamw", False),))
    assert cpu.workers == (0, 2)
    tiny = space_of(tmp_path, base="tiny-sd", machine=H100)
    assert tiny.compile == (False,)
    model = space_of(tmp_path, method="dreambooth")
    assert len(model.compile) == 1


def test_a_probe_is_the_plan_with_only_the_settings_changed(tmp_path: Path) -> None:
    plan, _ = make_plan(
        tmp_path, '[train]\neffective_batch = 8\n[kohya]\nlog_with = "tensorboard"\nlogging_dir = "l"\n'
    )
    settings = dataclasses.replace(settings_of(plan), batch_size=2, gradient_accumulation=4, attention="xformers")
    probe = plan_probe(plan, settings, steps=12)
    assert settings_of(probe) == settings
    assert probe.train.effective_batch == plan.train.effective_batch == 8
    assert probe.kohya == {"highvram": True, "xformers": True, "sdpa": False}
    assert (probe.train.steps, probe.sample.prompts) == (13, ())
    same = {field.name for field in dataclasses.fields(plan)} - {"train", "sample", "kohya", "sources"}
    assert all(getattr(probe, name) == getattr(plan, name) for name in same)


# --- the profile


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., Tuned]:
    base = find_base("sdxl", None, folder=tmp_path, models=None)
    place = place_of(H100, base, method="lora", engine="kohya", resolution=1024)

    def make(**values: object) -> Tuned:
        facts = {"at_batch": 8, "images_per_second": 3.2, "gain": 1.4, "when": "2026-11-21", "pixelkit": "0.1.0"}
        return Tuned.model_validate({**place.model_dump(), **facts, **values})

    return make


def tuned_plan(
    tmp_path: Path, text: str = "", *, machine: Machine = H100, base: str = "sdxl", engine: str = "kohya"
) -> tuple[Plan, str]:
    file = tmp_path / "q.toml"
    file.write_text(f'name = "p"\nbase = "{base}"\n[dataset]\npath = "s"\n{text}', "utf-8")
    loaded = absorb_kohya(load_preset(str(file)))
    profiles = list_hardware()
    name, _ = choose_profile("auto", machine, profiles)
    found = find_base(base, None, folder=tmp_path, models=None)
    resolution = loaded.preset.dataset.resolution or found.spec.resolution
    profile, shown = apply_tuned(
        name, profiles[name], machine, found, method="lora", engine=engine, resolution=resolution
    )
    sprites = tuple(Sprite(path=Path(f"/s/{n}.png"), name=str(n), width=32, height=32, caption="x") for n in range(50))
    return resolve(loaded, found, shown, profile, machine, engine="kohya", survey=Survey(sprites=sprites)), shown


def test_the_next_plan_goes_by_what_was_found(tmp_path: Path, entry: Callable[..., Tuned]) -> None:
    keep_tuned(
        entry(
            batch_size=32, at_batch=32, gradient_checkpointing=True, attention="xformers", compile=False, workers=8,
            optimizer="adamw8bit", fused_optimizer=False,
        )
    )  # fmt: skip
    plan, shown = tuned_plan(tmp_path)
    assert shown == "cuda-80gb, tuned here 2026-11-21"
    assert settings_of(plan) == Settings(
        batch_size=32, gradient_accumulation=1, gradient_checkpointing=True, attention="xformers", compile=False,
        workers=8, optimizer="adamw8bit", fused_optimizer=False,
    )  # fmt: skip
    assert plan.sources["train.batch_size"] == "hardware cuda-80gb, tuned here 2026-11-21"
    assert plan.kohya["sdpa"] is False


def test_a_preset_wins_over_what_was_found(tmp_path: Path, entry: Callable[..., Tuned]) -> None:
    keep_tuned(entry(batch_size=32, gradient_checkpointing=True, optimizer="adamw8bit", fused_optimizer=False))
    plan, _ = tuned_plan(tmp_path, '[train]\nbatch_size = 2\ngradient_checkpointing = false\noptimizer = "lion"\n')
    settings = settings_of(plan)
    assert (settings.batch_size, settings.gradient_checkpointing, settings.optimizer) == (2, False, "lion")


def test_what_was_not_tried_stays_as_shipped(tmp_path: Path, entry: Callable[..., Tuned]) -> None:
    shipped, _ = tuned_plan(tmp_path)
    keep_tuned(entry(workers=2))
    plan, _ = tuned_plan(tmp_path)
    assert settings_of(plan) == dataclasses.replace(settings_of(shipped), workers=2)


def test_checkpointing_holds_for_the_batches_it_was_found_with(tmp_path: Path, entry: Callable[..., Tuned]) -> None:
    """Measured on at batch 4: a batch of 2 may do without it. Measured off at 4: a batch of 8 goes by the profile."""

    def is_on(batch: int, machine: Machine = GB10) -> bool:
        plan, _ = tuned_plan(tmp_path, f"[train]\nbatch_size = {batch}\n", machine=machine)
        return plan.train.gradient_checkpointing

    machine = place_of(
        GB10, find_base("sdxl", None, folder=tmp_path, models=None), method="lora", engine="kohya", resolution=1024
    ).machine
    assert (is_on(4), is_on(8)) == (False, True)  # as shipped: on above 4
    keep_tuned(entry(machine=machine, gradient_checkpointing=True, at_batch=4))
    assert (is_on(2), is_on(4), is_on(8)) == (False, True, True)
    keep_tuned(entry(machine=machine, gradient_checkpointing=False, at_batch=8))
    assert (is_on(4), is_on(8), is_on(16)) == (False, False, True)


@pytest.mark.parametrize(
    "other",
    [{"machine": GB10}, {"engine": "diffusers"}, {"text": "resolution = 768\n"}, {"base": "sd15"}],
    ids=["machine", "engine", "resolution", "family"],
)
def test_an_entry_holds_only_for_its_place(tmp_path: Path, entry: Callable[..., Tuned], other: dict[str, str]) -> None:
    keep_tuned(entry(batch_size=1))
    assert "tuned" not in tuned_plan(tmp_path, **other)[1]  # type: ignore[arg-type]


def test_the_file_is_read_by_people_too_and_forgotten_entry_by_entry(entry: Callable[..., Tuned]) -> None:
    first, second = entry(batch_size=16), entry(resolution=512)
    keep_tuned(entry(batch_size=2))
    keep_tuned(first)
    file = keep_tuned(second)
    assert read_tuned() == (first, second)
    text = file.read_text("utf-8")
    assert text.startswith("# Measured on this machine by `pixelkit tune`")
    assert "batch_size = 16" in text and "None" not in text
    assert forget_tuned(second.place) and find_tuned(first.place) == first
    assert not forget_tuned(second.place)
    assert forget_tuned() and not forget_tuned()
    assert not tuned_file().exists()


def test_a_broken_file_says_so_and_can_be_forgotten(entry: Callable[..., Tuned]) -> None:
    keep_tuned(entry(batch_size=16))
    text = tuned_file().read_text("utf-8")
    for broken, what in (
        (text.replace("= 16", "= 0"), "batch_size"),
        ("tuned = 1", "something other"),
        ("=", "not valid"),
    ):
        tuned_file().write_text(broken, "utf-8")
        with pytest.raises(PresetError, match=what) as caught:
            read_tuned()
        assert "tune --forget" in caught.value.hint
    assert forget_tuned()


def test_the_entry_holds_only_what_was_tried(entry: Callable[..., Tuned]) -> None:
    best = dataclasses.replace(START, gradient_checkpointing=False, compile=True)
    readings = {START: [Reading(seconds_per_image=0.2)], best: [Reading(seconds_per_image=0.1)]}
    found = Found(
        start=START, best=best, readings=readings, noise=0.02, tried=frozenset({"workers"}), ended="the time is up"
    )
    tuned = describe_found(found, entry().place)
    assert (tuned.gradient_checkpointing, tuned.compile, tuned.workers) == (False, True, 0)
    assert (tuned.batch_size, tuned.attention, tuned.optimizer, tuned.fused_optimizer) == (None, None, None, None)
    assert (tuned.gain, tuned.images_per_second, tuned.at_batch) == (2.0, 10.0, 4)


def test_what_is_tried_says_itself_in_words() -> None:
    other = dataclasses.replace(START, batch_size=8, gradient_accumulation=1, gradient_checkpointing=False, workers=2)
    assert describe(other, START) == "batch 8 x 1, checkpointing off, 2 workers"
    assert describe(START, START) == "as it is"
    fused = dataclasses.replace(START, optimizer="adamw", fused_optimizer=True, compile=True, attention="xformers")
    assert describe(fused, START) == "compile on, xformers, adamw fused"
