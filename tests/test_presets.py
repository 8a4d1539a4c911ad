"""The shipped presets: they load, say what they are, and hold the documents' numbers."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pixelkit.canvas import fit_canvas
from pixelkit.catalog import find_base, list_bases, list_hardware
from pixelkit.engines.adapter import CONFIG, EngineData, Subset
from pixelkit.engines.diffusers import adapter as diffusers
from pixelkit.engines.kohya import adapter as kohya
from pixelkit.engines.kohya.adapter import DATASET, OWNED, SCRIPTS
from pixelkit.engines.kohya.effective import Environment
from pixelkit.engines.kohya.options import check_kohya_table, verify_config, verify_dataset_config
from pixelkit.engines.kohya.rules import check_rules
from pixelkit.hardware import Machine
from pixelkit.paths import data_dir
from pixelkit.plan import Plan, resolve
from pixelkit.preset_file import load_preset, shipped_presets
from pixelkit.render import render
from pixelkit.rundir import RunDir
from pixelkit.sources import Sprite, Survey

if TYPE_CHECKING:
    from pixelkit.preset import Preset

PRESETS = (
    "quickstart", "sdxl-fast", "sdxl-balanced", "sdxl-quality", "style", "character", "environment", "items", "effects",
    "hero-dreambooth", "hero-word", "catsith", "bespoke-flux", "bespoke-sdxl",
)  # fmt: skip
FILES = sorted(data_dir("presets").rglob("*.toml"))


def preset(name: str) -> Preset:
    return load_preset(name).preset


def plan(name: str, profile: str, *, side: int = 24, count: int = 193) -> Plan:
    """The plan of a shipped preset for `count` square sprites, on a machine that has exactly the profile's memory."""
    loaded = load_preset(name)
    hardware = list_hardware()[profile]
    memory = hardware.memory_gib or 16
    machine = Machine(
        kind=hardware.kind,
        device=profile,
        memory_gib=memory,
        available_gib=memory,
        capability=(9, 0) if hardware.kind == "cuda" else (0, 0),
        unified=hardware.unified,
    )
    base = find_base(loaded.preset.base, loaded.preset.family, folder=loaded.file.parent, models=None)
    sprites = [
        Sprite(path=Path(f"s{index}.png"), name=f"s{index}.png", width=side, height=side, caption="a sprite")
        for index in range(count)
    ]
    return resolve(loaded, base, profile, hardware, machine, engine="kohya", survey=Survey(sprites=tuple(sprites)))


def comment(file: Path) -> str:
    """The opening comment, in one line."""
    lines = file.read_text("utf-8").splitlines()
    opening = lines[1:] if lines[0].startswith("#:schema") else lines
    end = next(index for index, line in enumerate(opening) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in opening[:end])


def test_what_is_shipped() -> None:
    assert set(shipped_presets()) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_what_it_is(name: str) -> None:
    """What it trains (one whole sentence, which `presets list` shows), on which GPU, how long, how to launch it."""
    schema, what, *_ = shipped_presets()[name].read_text("utf-8").splitlines()
    assert schema == "#:schema ./preset.schema.json"
    assert re.fullmatch(r"# [A-Z].{20,118}\.", what)
    opening = comment(shipped_presets()[name])
    places = [opening.find(part) for part in ("GPU: ", "How long: ", "Launch: ")]
    assert places == sorted(places)
    assert min(places) > 0
    launch = opening[places[-1] :]
    assert f"pixelkit presets copy {name} my.toml" in launch or f"pixelkit run {name}" in launch
    how_long = opening[places[1] : places[2]]
    assert re.search(r"comput|a trial|measured", how_long, re.IGNORECASE), "where does the time come from?"


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_has_what_an_artist_edits(name: str) -> None:
    loaded = load_preset(name)
    assert loaded.preset.base in list_bases()
    assert loaded.preset.dataset.trigger
    assert loaded.preset.sample.prompts
    own = tomllib.loads(loaded.text)
    assert {"name", "dataset"} <= own.keys(), "a child states its own data set: paths count from the file they stand in"
    assert {"path", "trigger"} <= own["dataset"].keys()
    trigger = loaded.preset.dataset.trigger
    assert any("{trigger}" in prompt or trigger in prompt for prompt in loaded.preset.sample.prompts)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"quickstart"}))
def test_copied_preset_loads(name: str, tmp_path: Path) -> None:
    shutil.copy(shipped_presets()[name], tmp_path / "my.toml")
    loaded = load_preset(str(tmp_path / "my.toml"))
    assert loaded.preset == preset(name)
    assert loaded.resolve_path(loaded.preset.dataset.path, "dataset", "path") == tmp_path.resolve() / "sprites"


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_files_are_readable(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    assert lines[0].startswith("#")
    assert all(len(line) <= 130 for line in lines)
    assert len(lines) <= 70


@pytest.mark.parametrize("name", PRESETS)
def test_kohya_keys_of_presets(name: str) -> None:
    loaded = preset(name)
    script = SCRIPTS[loaded.method][list_bases()[loaded.base].family]
    assert not check_kohya_table(loaded.kohya, script, lambda key: key)
    assert not loaded.kohya.keys() & OWNED


def test_roadmap_style() -> None:
    """R3, R12, R13."""
    style = preset("style")
    assert style.base == "sdxl"
    assert (style.network.rank, style.network.alpha, style.network.dropout) == (64, 64, 0.1)
    train = style.train
    assert (train.learning_rate, train.steps, train.warmup_steps, train.scheduler) == (1e-4, 3000, 100, "cosine")
    assert (train.max_grad_norm, train.min_snr_gamma, train.noise_offset) == (1.0, 5, 0.05)
    assert (train.effective_batch, train.save_every_steps, style.sample.every_steps) == (8, 500, 500)
    assert len(style.sample.prompts) == 4
    assert (train.optimizer, train.precision) == ("auto", "auto")
    for profile in list_hardware():
        if profile != "cpu":
            planned = plan("style", profile)
            assert planned.train.batch_size * planned.train.gradient_accumulation == 8


@pytest.mark.parametrize("name", ["character", "environment", "items", "effects"])
def test_roadmap_specialised(name: str) -> None:
    """R4: the style's settings, an own trigger, own captions, own prompts."""
    own, style = preset(name), preset("style")
    assert own.extends == "style"
    assert own.network == style.network
    assert own.train == style.train.model_copy(update={"steps": own.train.steps})
    assert own.dataset.trigger != style.dataset.trigger
    assert len(own.sample.prompts) == 4


def test_roadmap_hero() -> None:
    """R5."""
    hero = preset("hero-dreambooth")
    assert hero.method == "dreambooth"
    assert hero.dataset.trigger == "herochar"
    assert "herochar" in str(hero.dataset.instance_prompt)


@pytest.mark.parametrize(
    ("name", "rank", "steps", "rate"),
    [("sdxl-fast", 16, 1500, 2e-4), ("sdxl-balanced", 32, 3000, 1e-4), ("sdxl-quality", 64, 5000, 5e-5)],
)
def test_guide(name: str, rank: int, steps: int, rate: float) -> None:
    """G5, G6."""
    guide = preset(name)
    assert (guide.network.rank, guide.network.alpha, guide.train.steps, guide.train.learning_rate) == (
        rank,
        rank,
        steps,
        rate,
    )
    assert (guide.train.effective_batch, guide.train.save_every_steps) == (2, 500)
    ranges = list_bases()["sdxl"].ranges
    assert ranges["network.rank"] == [8, 128]
    assert ranges["network.dropout"] == [0, 0.2]
    assert ranges["train.learning_rate"] == [1e-5, 5e-4]
    assert ranges["train.batch_size"] == [1, 4]
    assert ranges["train.steps"] == [1000, 10000]
    assert ranges["train.gradient_accumulation"] == [1, 8]


def test_catsith() -> None:
    """C6."""
    catsith = preset("catsith")
    assert catsith.base == "tiny-sd"
    assert list_bases()["tiny-sd"].layout == "diffusers"
    assert (catsith.network.rank, catsith.network.alpha) == (32, 16)
    train = catsith.train
    assert (train.epochs, train.batch_size, train.gradient_accumulation, train.learning_rate) == (10, 4, 2, 1e-4)
    assert (train.scheduler, train.warmup_steps, train.noise_offset, train.caption_dropout) == ("cosine", 100, 0.1, 0.1)
    assert (train.gradient_checkpointing, train.save_every_epochs) == (True, 2)
    planned = plan("catsith", "cuda-8gb", side=64, count=1000)
    assert planned.train.steps == 1250
    assert {(bucket.width, bucket.height) for bucket in planned.dataset.buckets} == {(512, 512)}


def test_bespoke() -> None:
    """B2, B3, B5."""
    flux, sdxl = preset("bespoke-flux"), preset("bespoke-sdxl")
    assert (flux.base, flux.network.rank, flux.network.alpha) == ("flux-dev", 16, 16)
    train = flux.train
    assert (train.steps, train.learning_rate, train.batch_size, train.caption_dropout) == (2000, 4e-4, 1, 0.05)
    assert (train.save_every_steps, flux.sample.every_steps) == (100, 100)
    assert (sdxl.base, sdxl.network.rank, sdxl.network.dropout) == ("sdxl", 16, 0.1)
    train = sdxl.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.scheduler) == (120, 2, 8e-5, "cosine")
    assert (train.save_every_epochs, sdxl.sample.every_epochs) == (10, 10)
    assert {len(flux.sample.prompts), len(sdxl.sample.prompts)} == {3}
    assert flux.dataset.trigger == sdxl.dataset.trigger == "TOK"
    assert plan("bespoke-sdxl", "cuda-24gb").train.steps == 11_640


@pytest.mark.parametrize(("name", "side", "scale"), [("bespoke-flux", 768, 32), ("bespoke-sdxl", 960, 40)])
def test_bespoke_canvas(name: str, side: int, scale: int) -> None:
    """24 px sprites become whole blocks without any padding."""
    canvas = plan(name, "gb10").dataset.sprites[0].canvas
    assert (canvas.width, canvas.height, canvas.scale, canvas.padding) == (side, side, scale, 0)


def test_bespoke_at_512_and_1024() -> None:
    """What the documents name does not divide by 24; only a smaller multiple would fit."""
    for resolution in (512, 1024):
        canvas = fit_canvas(24, 24, resolution=resolution, step=64, latent_scale=8)
        assert canvas.width < resolution or canvas.padding > 0


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_leaves_the_usual_ranges(name: str) -> None:
    profile = "gb10"
    planned = plan(name, profile, side=32 if name == "quickstart" else 24)
    assert not [warning for warning in planned.warnings if "outside the usual" in warning]
    assert not [warning for warning in planned.warnings if "of memory are expected" in warning]


def _with_files(planned: Plan, folder: Path) -> Plan:
    """The plan with the base's further files named, as the preset asks its artist to do."""
    files = {option: str(folder / file) for option, file in planned.base.spec.needs.items()}
    for file in files.values():
        Path(file).touch()
    return dataclasses.replace(planned, kohya={**planned.kohya, **files})


@pytest.mark.parametrize("profile", ["gb10", "cuda-80gb", "cuda-24gb", "cuda-8gb", "rocm-16gb", "mps", "cpu"])
@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"quickstart"}))
def test_preset_becomes_a_configuration_that_kohya_takes(name: str, profile: str, tmp_path: Path) -> None:
    """Every key, type, choice and rule of the preset's own script, on every kind of machine."""
    if list_bases()[preset(name).base].family not in list_hardware()[profile].families:
        pytest.skip(f"{profile} is too small")
    planned = _with_files(plan(name, profile), tmp_path)
    script = kohya.script_of(planned)
    assert script is not None
    data = EngineData(
        root=tmp_path,
        images=(Subset(folder=tmp_path / "images", repeats=1),),
        class_images=None,
        latents=tmp_path / "l",
        sd_scripts=None,
    )
    files = render("kohya", kohya.context(planned, RunDir(path=tmp_path), data), tmp_path / "config").files
    problems = verify_config(files[CONFIG], script) + verify_dataset_config(files[DATASET], script)
    options = {
        key: value
        for table in tomllib.loads(files[CONFIG].read_text("utf-8")).values()
        for key, value in (table.items() if isinstance(table, dict) else ())
    }
    options["dataset_config"] = str(files[DATASET])
    everything = Environment(has_module=lambda _name: True)
    problems += check_rules(script, options, tomllib.loads(files[DATASET].read_text("utf-8")), environment=everything)
    assert not [str(problem) for problem in problems]


def test_quickstart_becomes_a_configuration_of_our_own_trainer(tmp_path: Path) -> None:
    planned = plan("quickstart", "cpu", side=32, count=40)
    data = EngineData(
        root=tmp_path,
        images=(Subset(folder=tmp_path / "images", repeats=1),),
        class_images=None,
        latents=tmp_path / "l",
        sd_scripts=None,
    )
    assert not diffusers.check(planned, None)
    files = render("diffusers", diffusers.context(planned, RunDir(path=tmp_path), data), tmp_path / "config").files
    assert not diffusers.verify(planned, files)
    assert {(bucket.width, bucket.height) for bucket in planned.dataset.buckets} == {(32, 32)}
    assert not planned.train.gradient_checkpointing
