"""Step 12: look at what training left, and make of it what others load: files, sidecar, pictures.

Nothing here changes a trained number: exports are conversions of one file; the sidecar holds measured values, or null.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from converters import ConversionError, convert
from converters.kohya_file import copy_signed
from converters.metadata import build_modelspec, hash_file
from converters.tensors import FLOATS, Tensor, read_file
from pixelkit import __version__
from pixelkit.errors import ShipError, TrainingError
from pixelkit.evaluate.curve import collect_progress, draw_curve, measure_loss
from pixelkit.evaluate.samples import collect_samples, draw_samples, find_samples, measure_samples
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from pixelkit.evaluate.palette import Color
    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir

CONVERTIBLE = frozenset({"sd15", "sd2", "sdxl"})  # families whose LoRAs PEFT and diffusers get a file of
_PIECE = 1 << 24
_CLOCK = 2.0  # seconds that a file system may round a time stamp by
# The exponent bits of each float: all of them set means infinite or not a number (E4M3 has no infinity).
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger], int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What a weights file holds: numbers of tensors and parameters, bytes on disk, the dtypes of its floats."""

    tensors: int
    parameters: int
    size: int
    dtypes: tuple[str, ...]


def inspect_weights(path: Path, newer_than: float) -> WeightsReport:
    """Check that training made this file and that something was learned; it is read in pieces, without torch.

    `newer_than` is a unix time. Raises TrainingError with kind `no-file`, `stale` (older than that), `broken`,
    `nonfinite`, or `untrained` (every `lora_up` is 0; in a file without them, everything is).
    """
    try:
        about = path.stat()
    except OSError as error:
        raise TrainingError(
            f"the trainer ended without an error, but {path} is not there", kind="no-file", hint="see the log's end"
        ) from error
    if about.st_mtime < newer_than - _CLOCK:
        raise TrainingError(f"{path} is older than this training", kind="stale", hint="the trainer wrote elsewhere")
    try:
        weights = read_file(path)
    except ConversionError as error:
        raise TrainingError(str(error), kind="broken", hint="is the disk full?") from error
    floats = {name: tensor for name, tensor in weights.tensors.items() if tensor.dtype in FLOATS}
    bad = sorted(name for name, tensor in floats.items() if not _is_finite(tensor))
    if bad:
        raise TrainingError(
            f"{len(bad)} of {len(floats)} tensors in {path.name} hold NaN or infinity, {bad[0]} for one",
            kind="nonfinite",
            hint="halve train.learning_rate, or set train.precision to bf16; an earlier checkpoint may be sound",
        )
    learned = [tensor for name, tensor in floats.items() if "lora_up" in name] or list(floats.values())
    if not any(np.any(tensor.data) for tensor in learned):
        raise TrainingError(
            f"nothing was learned: every weight that training moves is still 0 in {path.name}",
            kind="untrained",
            hint="is train.learning_rate above 0, and did at least one optimizer step run?",
        )
    return WeightsReport(
        tensors=len(weights.tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in weights.tensors.values()),
        size=about.st_size,
        dtypes=tuple(sorted({tensor.dtype for tensor in floats.values()})),
    )


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a JSON beside a model says. A metric that was not measured is None; nothing is filled in."""

    model_name: str
    base_model: str
    type: str
    training_date: datetime
    dataset_name: str
    dataset_size: int
    dataset_version: str
    hyperparameters: Mapping[str, object]
    metrics: Mapping[str, float | None]
    trigger_words: tuple[str, ...]
    recommended_strength: float
    status: str
    license: str
    engine: str
    exports: tuple[str, ...]


def write_sidecar(path: Path, sidecar: Sidecar, model: Path, *, engine_commit: str | None) -> None:
    """Write the JSON, with the hashes by which the tools know `model`. Raises StorageError, ShipError."""
    try:
        hashes = hash_file(model)
    except ConversionError as error:
        raise ShipError(str(error)) from error
    content = {
        "model_name": sidecar.model_name,
        "base_model": sidecar.base_model,
        "type": sidecar.type,
        "training_date": sidecar.training_date.astimezone(UTC).isoformat(timespec="seconds"),
        "dataset": {
            "name": sidecar.dataset_name,
            "size": sidecar.dataset_size,
            "version": sidecar.dataset_version,
        },
        "hyperparameters": dict(sidecar.hyperparameters),
        "metrics": {name: _finite(value) for name, value in sidecar.metrics.items()},
        "trigger_words": list(sidecar.trigger_words),
        "recommended_strength": sidecar.recommended_strength,
        "status": sidecar.status,
        "license": sidecar.license or None,
        "file": {
            "name": model.name,
            "bytes": model.stat().st_size,
            "sha256": hashes.sha256,
            "AutoV2": hashes.auto_v2,
            "AutoV3": hashes.auto_v3,
        },
        "exports": list(sidecar.exports),
        "pixelkit": __version__,
        "engine": {"name": sidecar.engine, "commit": engine_commit},
    }
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What was shipped: the model, every file and folder beside it, what was measured, lines that tell a person."""

    model: Path
    exports: tuple[Path, ...]
    metrics: Mapping[str, float | None]
    summary: tuple[str, ...]


def ship(plan: Plan, run: RunDir, *, palette: Sequence[Color], fingerprint: str) -> Shipment:
    """Export the trained model of a run: kohya's file always, the other formats as the preset asks.

    Shipping again replaces what an earlier try left. Raises ShipError or StorageError; the training's own file is only
    read.
    """
    source = run.model(plan.name)
    run.export.mkdir(parents=True, exist_ok=True)
    trained = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    exports, remarks = _export(plan, source, run.export, trained)
    events = list(run.read_metrics())
    samples, progress = collect_samples(events), collect_progress(events)
    samples = samples or find_samples(run.output / "sample", plan.sample.prompts, plan.sample.seed)
    shares = measure_samples(samples, palette)
    metrics: dict[str, float | None] = {
        "fid": None,
        "clip_score": None,
        "human_rating": None,
        "palette_share_base": round(shares[0], 4) if shares else None,
        "palette_share_lora": round(shares[1], 4) if shares else None,
        "loss": measure_loss(progress),
    }
    manifest = run.read_manifest()
    commit = manifest.get("engine_commit")
    sidecar = run.export / f"{plan.name}.pixelkit.json"
    about = _describe_run(plan, trained, metrics, exports=exports, fingerprint=fingerprint)
    write_sidecar(sidecar, about, exports[0], engine_commit=commit)
    sheet = draw_samples(samples, title=plan.name, subtitle=_describe_line(plan), palette=palette, shares=shares)
    pictures = {"sheet": sheet, "loss": draw_curve(progress, title=f"{plan.name}: loss")}
    written = [_save(picture, run.export / f"{plan.name}-{name}.png") for name, picture in pictures.items() if picture]
    shipped = (*exports, sidecar, *written)
    seconds = manifest.get("training", {}).get("seconds")
    engine = f"kohya sd-scripts at {commit[:8]}" if commit else f"the {plan.engine} engine"
    summary = [f"trained {plan.train.steps} steps with {engine}{f' in {seconds:.0f} s' if seconds else ''}"]
    summary += [f"shipped to {run.export}: {', '.join(path.name for path in shipped)}", *remarks]
    if shares:
        summary.append(f"pixels in the sprites' palette: {shares[0]:.1%} before, {shares[1]:.1%} after")
    return Shipment(model=exports[0], exports=shipped, metrics=metrics, summary=tuple(summary))


def describe_model(plan: Plan, trained: datetime) -> dict[str, str]:
    """The modelspec keys that only we know; the trainer's own (architecture, resolution ...) stay as they are."""
    export, trigger, strength = plan.preset.export, plan.dataset.trigger, plan.preset.export.strength
    hint = f'Write "{trigger}" in the prompt. ' if trigger else ""
    known = {
        "title": export.title or plan.name,
        "author": export.author,
        "description": export.description,
        "license": export.license,
        "date": trained.isoformat(timespec="seconds"),
        "trigger_phrase": trigger,
        "usage_hint": f"{hint}Strength {strength:g}; less is subtler, above 1 artefacts show.",
        "tags": "pixel art",
    }
    return {f"modelspec.{key}": value for key, value in known.items() if value}


def _export(plan: Plan, source: Path, folder: Path, trained: datetime) -> tuple[list[Path], list[str]]:
    """What was written, the model first, and what a person should know."""
    target = folder / source.name
    formats = plan.preset.export.formats
    remarks: list[str] = []
    try:
        if plan.method != "lora":
            _link(source, target)
            return [target], []
        metadata = describe_model(plan, trained)
        weights = read_file(source)
        if "modelspec.sai_model_spec" not in weights.metadata:
            metadata = _start_modelspec(plan, trained) | metadata
        copy_signed(source, target, metadata)
        exports = [target]
        for name in formats:
            if name == "kohya":
                continue
            if plan.base.spec.family not in CONVERTIBLE:
                remarks.append(f"not exported as {name}: pixelkit converts LoRAs of {', '.join(sorted(CONVERTIBLE))}")
                continue
            out = folder / ("peft" if name == "peft" else "pytorch_lora_weights.safetensors")
            done = convert(target, name, out, overwrite=True)
            exports += [out]
            if done.widened:
                tensors = f"{len(done.widened)} tensor{'s'[: len(done.widened) > 1]}"
                remarks.append(f"{out.name}: {tensors} as float32, to hold alpha / rank exactly")
    except ConversionError as error:
        raise ShipError(f"the model is trained ({source}), but not exported: {error}") from error
    return exports, remarks


def _start_modelspec(plan: Plan, trained: datetime) -> dict[str, str]:
    family = {"sd15": "sd15", "sd2": "sd21", "sdxl": "sdxl"}.get(plan.base.spec.family)
    if family is None:
        return {}
    return build_modelspec(
        family=family,
        title=plan.name,
        resolution=plan.dataset.resolution,
        date=trained,
        v_prediction=bool(plan.kohya.get("v_parameterization", plan.base.spec.v_parameterization)),
    )


def _describe_run(
    plan: Plan, trained: datetime, metrics: Mapping[str, float | None], *, exports: Sequence[Path], fingerprint: str
) -> Sidecar:
    return Sidecar(
        model_name=plan.name,
        base_model=plan.base.name,
        type="lora" if plan.method == "lora" else "checkpoint",
        training_date=trained,
        dataset_name=plan.dataset.source.name,
        dataset_size=len(plan.dataset.sprites),
        dataset_version=fingerprint,
        hyperparameters={
            **(dataclasses.asdict(plan.network) if plan.method == "lora" else {}),
            **dataclasses.asdict(plan.train),
            "resolution": plan.dataset.resolution,
            "repeats": plan.dataset.repeats,
            "kohya": dict(plan.kohya),
        },
        metrics=metrics,
        trigger_words=tuple(word.strip() for word in plan.dataset.trigger.split(",") if word.strip()),
        recommended_strength=plan.preset.export.strength,
        status="staging",
        license=plan.preset.export.license,
        engine=plan.engine,
        exports=tuple(path.name for path in exports),
    )


def _describe_line(plan: Plan) -> str:
    rank = [f"rank {plan.network.rank}, alpha {plan.network.alpha:g}"] if plan.method == "lora" else []
    parts = (
        f"{'LoRA' if plan.method == 'lora' else 'DreamBooth'} on {plan.base.spec.title}",
        *rank,
        f"{len(plan.dataset.sprites)} sprites",
        f"{plan.train.steps:,} steps",
        f"engine {plan.engine}",
    )
    return " · ".join(parts)


def _save(picture: Image.Image, path: Path) -> Path:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    write_atomically(path, stream.getvalue())
    return path


def _link(source: Path, target: Path) -> None:
    """A whole model is large: the same file under a second name where the file system can, else a copy."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _is_finite(tensor: Tensor) -> bool:
    kind, exponent = _EXPONENT[tensor.dtype]
    bits: NDArray[np.unsignedinteger] = tensor.data.view(kind)
    mask = kind(exponent)
    return not any(np.any((bits[start : start + _PIECE] & mask) == mask) for start in range(0, bits.size, _PIECE))
