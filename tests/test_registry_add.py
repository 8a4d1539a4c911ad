"""How models come into the registry: with all that is known of them, and nothing that is not."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from made_loras import FC1, part, save
from made_registries import METRICS, make_file, make_finished_run, make_registry, snapshot

from pixelkit.errors import PresetError, StorageError, WeightsError
from pixelkit.registry.adding import Wish, add_model
from pixelkit.registry.facts import find_shipped
from pixelkit.registry.names import parse_version
from pixelkit.registry.store import Registry

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_comes_in_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path / "runs")
    registry = Registry(folder=tmp_path / "models")
    seen: list[tuple[int, int]] = []
    source = find_shipped(run)
    entry = add_model(registry, source, Wish(reason="first"), lambda done, total: seen.append((done, total)))
    assert str(entry.name) == "hero_v1.0"
    assert registry.find_file(entry).read_bytes() == source.read_bytes()
    assert seen[-1][0] == seen[-1][1] > source.stat().st_size
    about = json.loads(registry.find_metadata(entry).read_text())
    assert about == entry.metadata
    expected = {
        "model_name": "hero_v1.0",
        "base_model": "sdxl",
        "type": "lora",
        "status": "staging",
        "dataset": {"name": "knights", "size": 75, "version": "f1" * 32},
        "metrics": METRICS,
        "trigger_words": ["hero", "pixel"],
        "recommended_strength": 0.7,
        "license": "CC-BY-4.0",
        "base": {"title": "Stable Diffusion XL 1.0", "licence": "CreativeML Open RAIL++-M", "sha256": "ab" * 32},
    }
    assert {key: about[key] for key in expected} == expected
    assert about["training_date"] == run.read_manifest()["history"][-2]["time"]
    assert {"rank": 32, "steps": 2000, "resolution": 1024, "kohya": {"min_timestep": 5}}.items() <= about[
        "hyperparameters"
    ].items()
    assert about["file"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    beside = registry.find_beside(entry)
    names = {"hero-sheet.png", "hero.preview.png", "peft/unet/adapter_config.json", "preset.toml"}
    assert (
        {path.relative_to(beside).as_posix() for path in beside.rglob("*") if path.is_file()}
        == set(about["files"])
        == names
    )
    assert "/art" not in json.dumps(about), "no path of this machine is carried along"
    assert source.is_file() and not list((registry.folder / ".incoming").iterdir())


def test_a_checkpoint_of_a_run_has_no_scores(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path / "runs")
    entry = add_model(Registry(folder=tmp_path / "m"), run.output / "hero-000800.safetensors", Wish())
    assert entry.name.style == "hero"
    assert entry.metadata["metrics"] == {} and entry.metadata["run"]["checkpoint"] == "hero-000800.safetensors"
    assert entry.metadata["dataset"]["size"] == 75


def test_a_run_that_has_moved_and_one_that_has_failed(tmp_path: Path) -> None:
    run = make_finished_run(tmp_path / "runs")
    moved = run.path.rename(tmp_path / "elsewhere")
    run = type(run)(path=moved)
    assert find_shipped(run) == moved / "export" / "hero.safetensors"
    run.enter("failed")
    with pytest.raises(StorageError, match="is failed: it has shipped nothing yet"):
        find_shipped(run)


def test_a_file_from_elsewhere_tells_what_it_is(tmp_path: Path) -> None:
    told = {
        "ss_sd_model_name": "sd_xl_base_1.0.safetensors",
        "ss_network_dim": "2",
        "ss_learning_rate": "0.0001",
        "ss_seed": "None",
        "ss_gradient_checkpointing": "True",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)",
        "ss_dataset_dirs": json.dumps(
            {"10_hero": {"n_repeats": 10, "img_count": 20}, "1_reg": {"n_repeats": 1, "img_count": 5}}
        ),
        "ss_training_finished_at": "1767225600.5",
        "modelspec.license": "CC0",
        "modelspec.trigger_phrase": "hero, pixel",
    }
    file = make_file(tmp_path / "My Hero (old).safetensors", **told)
    file.with_name("My Hero (old).preview.png").write_bytes(b"picture")
    file.with_name("My Hero (old).ckpt").write_bytes(b"other weights")
    about = add_model(Registry(folder=tmp_path / "m"), file, Wish()).metadata
    assert about["model_name"] == "My-Hero--old_v1.0"
    assert about["base_model"] == "sdxl" and about["base"]["licence"] == "CreativeML Open RAIL++-M"
    assert about["dataset"] == {"name": "10_hero, 1_reg", "size": 25, "version": None}
    assert about["training_date"] == "2026-01-01T00:00:00+00:00"
    assert about["hyperparameters"] == {
        "rank": 2,
        "learning_rate": 0.0001,
        "gradient_checkpointing": True,
        "optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1)",
    }
    assert about["metrics"] == {} and about["recommended_strength"] is None
    assert about["license"] == "CC0" and about["trigger_words"] == ["hero", "pixel"]
    assert list(about["files"]) == ["My Hero (old).preview.png"]


def test_a_file_that_says_nothing(tmp_path: Path) -> None:
    file = save(tmp_path / "x.safetensors", part(FC1))
    about = add_model(Registry(folder=tmp_path / "m"), file, Wish()).metadata
    assert about["base_model"] is None and about["training_date"] is None and about["license"] is None
    assert about["dataset"] == {"name": None, "size": None, "version": None}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle", b"\x89PNG", b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_no_model_stays_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(content)
    registry = Registry(folder=tmp_path / "m")
    with pytest.raises(WeightsError):
        add_model(registry, tmp_path / "bad.safetensors", Wish())
    assert not registry.folder.exists(), "nothing was made"


def test_numbers_that_are_not_finite_stay_out(tmp_path: Path) -> None:
    file = save(
        tmp_path / "nan.safetensors", part(FC1, scale=float("nan")), metadata={"ss_network_module": "networks.lora"}
    )
    with pytest.raises(WeightsError, match=r"NaN|finite"):
        add_model(Registry(folder=tmp_path / "m"), file, Wish())


def test_versions_are_chosen_and_kept_apart(tmp_path: Path) -> None:
    registry = make_registry(tmp_path, "1.9", "1.10")

    def add(seed: int, **wish: object) -> str:
        return str(
            add_model(registry, make_file(tmp_path / f"{seed}.safetensors", seed), Wish(style="hero", **wish)).name
        )  # type: ignore[arg-type]

    assert add(50) == "hero_v1.11"
    assert add(51, candidate=True) == "hero_v1.12_rc1"
    assert add(52, candidate=True) == "hero_v1.12_rc2"
    assert add(53, bump="major") == "hero_v2.0"
    assert add(56) == "hero_v2.1"
    assert add(54, version=parse_version("2.5"), candidate=True) == "hero_v2.5_rc1"
    before = snapshot(registry)
    for wish, said in (
        ({"version": parse_version("1.9")}, "hero 1.9 is there already"),
        ({"version": parse_version("2.0_rc1")}, "hero 2.0 is there already"),
    ):
        with pytest.raises(PresetError, match=said):
            add(55, **wish)
    with pytest.raises(PresetError, match=r"this very file is here already: staging/hero_v1.11"):
        add(50)
    with pytest.raises(PresetError, match="upper and lower case only"):
        add_model(registry, tmp_path / "50.safetensors", Wish(style="Hero"))
    assert snapshot(registry) == before
