"""Registries, models and finished runs made for tests."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from made_loras import TO_K, part, save

from pixelkit.registry.adding import Wish, add_model
from pixelkit.registry.names import parse_version
from pixelkit.registry.stages import Permit, promote
from pixelkit.registry.store import Registry
from pixelkit.rundir import RunDir, create_run

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.registry.index import Entry

METRICS = {"clip_score": 0.31, "palette_share_lora": 0.9, "fid": None, "loss": 0.08}


def make_file(path: Path, seed: int = 0, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, part(TO_K, seed=seed, inputs=2048), metadata=metadata)


def make_finished_run(
    folder: Path, name: str = "hero", *, seed: int = 0, metrics: dict[str, object] | None = None
) -> RunDir:
    plan = {
        "name": name,
        "method": "lora",
        "base": {"name": "sdxl", "spec": {"title": "Stable Diffusion XL 1.0", "licence": "CreativeML Open RAIL++-M"}},
        "base_loras": [],
        "dataset": {
            "source": "/art/knights",
            "sprites": [{}] * 75,
            "trigger": "hero, pixel",
            "resolution": 1024,
            "repeats": 10,
        },
        "network": {"kind": "lora", "rank": 32, "alpha": 32.0},
        "embedding": None,
        "train": {"steps": 2000, "learning_rate": 1e-4, "seed": 42},
        "preset": {"name": name, "export": {"formats": ["kohya", "peft"], "license": "CC-BY-4.0", "strength": 0.7}},
        "kohya": {"min_timestep": 5},
    }
    run = create_run(folder, name, preset_text=f'name = "{name}"\n', plan=plan)
    model = make_file(run.export / f"{name}.safetensors", seed)
    make_file(run.output / f"{name}-000800.safetensors", seed + 100)
    for file, content in {
        f"{name}.pixelkit.json": json.dumps({"model_name": name}),
        f"{name}-sheet.png": "sheet",
        f"{name}.preview.png": "preview",
        "peft/unet/adapter_config.json": "{}",
    }.items():
        path = run.export / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    run.enter("shipping")
    run.enter(
        "done",
        model=str(model),
        metrics=METRICS if metrics is None else metrics,
        engine="kohya",
        engine_commit="48d368f",
        base={"name": "sdxl", "location": "/models/sdxl.safetensors", "sha256": "ab" * 32},
        dataset={"sprites": 75, "fingerprint": "f1" * 32},
        training={"seconds": 61.5, "last_step": 2000},
    )
    return run


def make_registry(folder: Path, *versions: str, style: str = "hero", promoted: int = 0) -> Registry:
    """Models of one style in staging, the first `promoted` of them promoted in turn."""
    registry = Registry(folder=folder / "models")
    for number, text in enumerate(versions):
        file = make_file(folder / "made" / f"{style}-{text}.safetensors", seed=number)
        entry = add_model(registry, file, Wish(style=style, version=parse_version(text)))
        if number < promoted:
            promote(registry, str(entry.name), Permit())
    return registry


def list_models(registry: Registry) -> dict[str, Entry]:
    with registry.reading() as index:
        return {str(entry.name): entry for entry in index.models()}


def snapshot(registry: Registry) -> dict[str, str]:
    """All files and links with their content, but for the index and locks."""
    found = {}
    for path in sorted(registry.folder.rglob("*")):
        name = path.relative_to(registry.folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and "sqlite" not in name and name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
