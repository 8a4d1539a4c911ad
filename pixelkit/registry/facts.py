"""What a model is, as its metadata says it (R19 of the requirements): from its run, or from the file's own words.

What is not known is null or left out; nothing is filled in.
"""

from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.describe import describe
from converters.errors import ConversionError
from converters.strangers import describe_tensors
from converters.tensors import read_file
from pixelkit.catalog import list_bases
from pixelkit.errors import StorageError, WeightsError
from pixelkit.plan.model import makes
from pixelkit.preset import Export
from pixelkit.rundir import RunDir, is_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.describe import Description

Facts = dict[str, Any]
# What sd-scripts writes into a file's metadata, and pixelkit's word for it.
_HYPERPARAMETERS: Mapping[str, str] = {
    "ss_network_module": "network_module",
    "ss_network_args": "network_args",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_network_dropout": "dropout",
    "ss_max_train_steps": "steps",
    "ss_num_epochs": "epochs",
    "ss_total_batch_size": "batch_size",
    "ss_gradient_accumulation_steps": "gradient_accumulation",
    "ss_learning_rate": "learning_rate",
    "ss_unet_lr": "unet_learning_rate",
    "ss_text_encoder_lr": "text_encoder_learning_rate",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "scheduler",
    "ss_lr_warmup_steps": "warmup_steps",
    "ss_max_grad_norm": "max_grad_norm",
    "ss_min_snr_gamma": "min_snr_gamma",
    "ss_noise_offset": "noise_offset",
    "ss_caption_dropout_rate": "caption_dropout",
    "ss_gradient_checkpointing": "gradient_checkpointing",
    "ss_mixed_precision": "precision",
    "ss_clip_skip": "clip_skip",
    "ss_resolution": "resolution",
    "ss_seed": "seed",
}
_NO_MODELS = ("a VAE", "a ControlNet", "a text encoder")


def find_run_of(file: Path) -> RunDir | None:
    """The run that a file was shipped or saved by: it lies in the run's export or output folder."""
    folder = file.resolve().parent
    return RunDir(path=folder.parent) if folder.name in {"export", "output"} and is_run(folder.parent) else None


def find_shipped(run: RunDir) -> Path:
    """The model that a run shipped. Raises StorageError where it has not."""
    manifest = run.read_manifest()
    state, model = manifest.get("state"), manifest.get("model")
    if state != "done" or not model:
        doing = "is still at work" if run.is_active() else f"is {state}"
        raise StorageError(
            f"{run.path.name} {doing}: it has shipped nothing yet", hint=f"`pixelkit resume {run.path}` goes on with it"
        )
    path = run.export / Path(str(model).replace("\\", "/")).name  # the run may have moved since
    if not path.is_file():
        raise StorageError(f"{path} is gone", hint=f"`pixelkit resume {run.path}` ships it again")
    return path


def describe_run(run: RunDir, file: Path) -> Facts:
    """A run's model, or one of its checkpoints: then without scores, for they are the shipped model's.

    Raises StorageError for a broken manifest or plan, WeightsError for a broken file.
    """
    manifest, plan = run.read_manifest(), _read_plan(run)
    shipped = Path(str(manifest.get("model", "")).replace("\\", "/")).name == file.name and file.parent.name == "export"
    dataset, train, preset = plan.get("dataset", {}), plan.get("train", {}), plan.get("preset", {})
    kind = makes(plan.get("method", "lora"))
    base, spec = manifest.get("base", {}), plan.get("base", {}).get("spec", {})
    export = Export.model_validate(preset.get("export", {}), strict=False)
    read_head(file)
    return {
        "base_model": base.get("name") or plan.get("base", {}).get("name"),
        "type": {"lora": "lora", "model": "checkpoint", "embedding": "embedding"}[kind],
        "training_date": _date_training(run, manifest, file),
        "dataset": {
            "name": Path(str(dataset.get("source", "")).replace("\\", "/")).name or None,
            "size": manifest.get("dataset", {}).get("sprites", len(dataset.get("sprites", ()))),
            "version": manifest.get("dataset", {}).get("fingerprint"),
        },
        "hyperparameters": {
            **(plan.get("network", {}) if kind == "lora" else {}),
            **((plan.get("embedding") or {}) if kind == "embedding" else {}),
            **({"base_loras": plan["base_loras"]} if plan.get("base_loras") else {}),
            **train,
            "resolution": dataset.get("resolution"),
            "repeats": dataset.get("repeats"),
            "kohya": plan.get("kohya", {}),
        },
        "metrics": clean_metrics(manifest.get("metrics", {})) if shipped else {},
        "trigger_words": _split_words(str(dataset.get("trigger", ""))),
        "recommended_strength": export.strength,
        "license": export.license or None,
        "base": {
            "title": spec.get("title"),
            "licence": spec.get("licence"),
            "sha256": base.get("sha256"),
        },
        "engine": {"name": manifest.get("engine"), "commit": manifest.get("engine_commit")},
        "run": {
            "name": run.path.name,
            "preset": manifest.get("name") or preset.get("name"),
            "pixelkit": manifest.get("pixelkit"),
            "seconds": manifest.get("training", {}).get("seconds"),
            "last_step": manifest.get("training", {}).get("last_step"),
            "checkpoint": None if shipped else file.name,
        },
        **({"loading": manifest.get("loading")} if shipped else {}),
    }


def describe_file(file: Path) -> Facts:
    """A file from elsewhere, by its tensors and what its metadata says. Raises WeightsError for what is no model."""
    metadata = read_head(file)
    found, kind = _recognise(file, metadata)
    base_file = metadata.get("ss_sd_model_name", "")
    name, spec = next(((name, spec) for name, spec in list_bases().items() if base_file in spec.files), (None, None))
    stated = found.base or found.stated if found else ""
    hyperparameters = {word: _value(metadata[key]) for key, word in _HYPERPARAMETERS.items() if _is_told(metadata, key)}
    if found and len(found.ranks) == 1:
        hyperparameters.setdefault("rank", next(iter(found.ranks)))
    return {
        "base_model": name or Path(base_file.replace("\\", "/")).name or stated or None,
        "type": kind,
        "training_date": _read_date(metadata),
        "dataset": _read_dataset(metadata),
        "hyperparameters": hyperparameters,
        "metrics": {},
        "trigger_words": _split_words(metadata.get("modelspec.trigger_phrase", "")),
        "recommended_strength": None,
        "license": metadata.get("modelspec.license") or None,
        "base": {
            "title": spec.title if spec else stated or None,
            "licence": spec.licence if spec else None,
            "sha256": metadata.get("ss_new_sd_model_hash") or None,
        },
    }


def read_head(file: Path) -> Mapping[str, str]:
    """A safetensors file's metadata. Raises WeightsError where it is none."""
    try:
        return read_file(file).metadata
    except ConversionError as error:
        raise WeightsError(
            error.message, hint="the registry takes .safetensors; `pixelkit convert` makes them"
        ) from None


def find_base(name: object) -> Facts:
    """What the catalogue says of a base; nulls for one that is not in it."""
    spec = list_bases().get(str(name))
    return {"title": spec and spec.title, "licence": spec and spec.licence, "sha256": None}


def clean_metrics(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float | None]:
    """Scores by name, those of tables with a dot; what is no finite number is null."""
    found: dict[str, float | None] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= clean_metrics(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[f"{prefix}{name}"] = value if value is not None and math.isfinite(value) else None
    return found


def _recognise(file: Path, metadata: Mapping[str, str]) -> tuple[Description | None, str]:
    try:
        return describe(file), "lora"
    except ConversionError as error:
        tensors = read_file(file).tensors
        what = describe_tensors(tensors)
        if what.startswith(_NO_MODELS) or not tensors:
            raise WeightsError(f"{file}: {what.partition(',')[0] or 'it holds no tensors'}, not a model") from None
        if any(not tensor.is_finite() for tensor in tensors.values()):
            raise WeightsError(f"{file} holds NaN or infinity") from None
        if what:
            return None, "embedding" if "embedding" in what else "checkpoint"
        if "ss_network_module" in metadata:  # a kind of network that converters do not read
            return None, "lora"
        raise WeightsError(error.message) from None


def _read_plan(run: RunDir) -> Facts:
    try:
        plan = json.loads(run.plan.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {run.plan}: {error}") from error
    if not isinstance(plan, dict):
        raise StorageError(f"{run.plan} is broken: it holds no table")
    return plan


def _date_training(run: RunDir, manifest: Mapping[str, Any], file: Path) -> str:
    """When training ended: as the shipped metadata has it, or the manifest, or the file's own time."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        name = Path(str(manifest["model"]).replace("\\", "/")).stem
        return str(json.loads((run.export / f"{name}.pixelkit.json").read_text("utf-8"))["training_date"])
    ended = [entry["time"] for entry in manifest.get("history", []) if entry.get("state") == "shipping"]
    return str(ended[-1]) if ended else datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _read_date(metadata: Mapping[str, str]) -> str | None:
    for key in ("ss_training_finished_at", "ss_training_started_at"):
        try:
            return datetime.fromtimestamp(float(metadata[key]), UTC).isoformat(timespec="seconds")
        except (KeyError, ValueError, OverflowError, OSError):
            continue
    return metadata.get("modelspec.date") or None


def _read_dataset(metadata: Mapping[str, str]) -> Facts:
    """Names and counts of image folders, without repeats."""
    folders: dict[str, int] = {}
    try:
        for name, about in json.loads(metadata.get("ss_dataset_dirs", "{}")).items():
            folders[name] = int(about["img_count"])
        for dataset in json.loads(metadata.get("ss_datasets", "[]")) if not folders else ():
            for subset in dataset["subsets"]:
                folders[Path(str(subset["image_dir"]).replace("\\", "/")).name] = int(subset["img_count"])
    except (ValueError, KeyError, TypeError, AttributeError):
        folders = {}
    return {"name": ", ".join(folders) or None, "size": sum(folders.values()) or None, "version": None}


def _is_told(metadata: Mapping[str, str], key: str) -> bool:
    return metadata.get(key, "None") not in {"None", "", "{}"}


def _value(text: str) -> Any:
    try:
        value = json.loads(text.lower() if text in {"True", "False"} else text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _split_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
