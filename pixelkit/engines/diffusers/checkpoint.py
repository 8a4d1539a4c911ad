"""What a training leaves on disk: the LoRA with its metadata, and the state folder that a run continues from."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from converters.metadata import build_minimum, build_modelspec
from pixelkit.engines.diffusers.network import Layer, export_tensors, import_tensors, read_tensors, write_tensors
from pixelkit.errors import EngineError, StorageError
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixelkit.engines.diffusers.examples import Example
    from pixelkit.engines.diffusers.settings import Settings

OPTIMIZERS = {"adamw": "torch.optim.adamw.AdamW", "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit"}
WEIGHTS, OPTIMIZER, TRAINER = "lora.safetensors", "optimizer.pt", "trainer.json"


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a saved training stood: `step` optimizer steps done, the optimizer's state, when it all began (unix)."""

    step: int
    started_at: float
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]


def write_state(folder: Path, settings: Settings, state: State, layers: list[Layer]) -> None:
    """Write a state folder whole or not at all, then remove the older ones of this run."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_tensors(temporary / WEIGHTS, export_tensors(layers), {})
        with (temporary / OPTIMIZER).open("wb") as stream:
            torch.save({"optimizer": state.optimizer, "scaler": state.scaler}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        about = {"step": state.step, "started_at": state.started_at, "settings": asdict(settings)}
        write_atomically(temporary / TRAINER, json.dumps(about, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}", hint="is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in folder.parent.glob(f"{_escape(settings.output_name)}-step*-state"):
        if older != folder:
            shutil.rmtree(older, ignore_errors=True)


def read_step(folder: Path) -> int:
    """The optimizer steps behind a state. Raises EngineError if it is none."""
    try:
        return int(json.loads((folder / TRAINER).read_text("utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{folder} is no state to resume from: {error}") from error


def read_state(folder: Path, settings: Settings, layers: list[Layer]) -> State:
    """Put the saved weights into `layers` and return the rest. Raises EngineError if they are of another run."""
    try:
        about = json.loads((folder / TRAINER).read_text("utf-8"))
        saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        step, started_at, old = int(about["step"]), float(about["started_at"]), about["settings"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise EngineError(f"{folder} is no state to resume from: {error}") from error
    now = json.loads(json.dumps(asdict(settings)))
    for key in ("seed", "precision", "network"):
        if old[key] != now[key]:
            raise EngineError(f"{folder} was saved with {key} = {old[key]}, the config says {now[key]}")
    pairs = [(table, key) for table in ("dataset", "train") for key in now[table]]
    changed = [f"{table}.{key}" for table, key in pairs if old[table].get(key) != now[table][key]]
    if changed:
        print(f"resuming with other settings than the run began with: {', '.join(changed)}", flush=True)
    import_tensors(layers, read_tensors(folder / WEIGHTS), str(folder))
    return State(step=step, started_at=started_at, optimizer=saved["optimizer"], scaler=saved["scaler"])


def _escape(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in name)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the metadata tells beyond the settings: all of it counted, none of it assumed."""

    examples: Sequence[Example]
    batches_per_epoch: int
    v2: bool
    v_prediction: bool
    started_at: float


def describe_training(settings: Settings, facts: Facts, *, step: int, epoch: int) -> dict[str, str]:
    """The file's metadata after `step` steps, under sd-scripts' keys; `[metadata]` of the settings wins over them."""
    train, network, dataset = settings.train, settings.network, settings.dataset
    trained = [example for example in facts.examples if not example.is_class]
    sizes: Counter[tuple[int, int]] = Counter()
    for example in trained:
        sizes[example.size] += example.repeats
    width, height = sizes.most_common(1)[0][0]
    extra = {"conv_dim": str(network.conv_rank), "conv_alpha": str(network.conv_alpha)} if network.conv_rank else {}
    version = ("sd_v2" if facts.v2 else "sd_v1") + ("_v" if facts.v_prediction else "")
    found = build_minimum(
        base_model_version=version, rank=network.rank, alpha=network.alpha, v2=facts.v2, network_args=extra
    )
    repeated = sum(sizes.values())
    counts = Counter(example.path.parent.name for example in trained)
    folders = {Path(place).name: times for place, times in zip(dataset.images, dataset.repeats, strict=True)}
    values: dict[str, object] = {
        "output_name": settings.output_name,
        "sd_model_name": Path(settings.base).name,
        "learning_rate": train.learning_rate,
        "unet_lr": train.learning_rate,
        "text_encoder_lr": train.text_encoder_learning_rate if network.train_text_encoder else None,
        "num_train_images": repeated,
        "num_reg_images": repeated if dataset.class_images else 0,
        "num_batches_per_epoch": facts.batches_per_epoch,
        "num_epochs": -(-train.steps * train.gradient_accumulation // facts.batches_per_epoch),
        "batch_size_per_device": dataset.batch_size,
        "total_batch_size": dataset.batch_size * train.gradient_accumulation,
        "gradient_checkpointing": train.gradient_checkpointing,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "max_train_steps": train.steps,
        "lr_warmup_steps": train.warmup_steps,
        "lr_scheduler": train.scheduler,
        "network_dropout": network.dropout or None,
        "mixed_precision": settings.precision,
        "cache_latents": True,
        "seed": settings.seed,
        "noise_offset": train.noise_offset or None,
        "optimizer": f"{OPTIMIZERS[train.optimizer]}(weight_decay={train.weight_decay})",
        "max_grad_norm": train.max_grad_norm,
        "caption_dropout_rate": dataset.caption_dropout,
        "prior_loss_weight": train.prior_loss_weight,
        "min_snr_gamma": train.min_snr_gamma or None,
        "loss_type": "l2",
        "resolution": f"({width}, {height})",
        "enable_bucket": True,
        "bucket_no_upscale": True,
        "bucket_info": json.dumps({"buckets": {
            str(place): {"resolution": list(size), "count": count}
            for place, (size, count) in enumerate(sorted(sizes.items()))
        }}),
        "dataset_dirs": json.dumps(
            {folder: {"n_repeats": times, "img_count": counts[folder]} for folder, times in folders.items()}
        ),
        "tag_frequency": json.dumps(
            {folder: _count_tags([e for e in trained if e.path.parent.name == folder]) for folder in folders}
        ),
        "training_started_at": facts.started_at,
        "training_finished_at": time.time(),
        "steps": step,
        "epoch": epoch,
    }  # fmt: skip
    found.update({f"ss_{key}": str(value) for key, value in values.items()})
    found.update(
        build_modelspec(
            family="sd21" if facts.v2 else "sd15",
            title=settings.output_name,
            resolution=(width, height),
            date=datetime.now(UTC),
            v_prediction=facts.v_prediction,
        )
    )
    return {**found, **settings.metadata}


def _count_tags(examples: Sequence[Example]) -> dict[str, int]:
    tags = (tag.strip() for example in examples if not example.is_class for tag in example.caption.split(","))
    return dict(Counter(tag for tag in tags if tag))
