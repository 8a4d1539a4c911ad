"""`<name>.pixelkit.json`: what was trained, on what, how well, and what became of it (R19 of the requirements)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

from converters import ConversionError
from converters.metadata import hash_file
from converters.tensors import read_file
from pixelkit import __version__
from pixelkit.errors import ShipError
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a JSON beside a model says. A metric that was not measured is None; nothing is filled in.

    `loading`: how each export was loaded again, as in the manifest.
    """

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
    loading: Mapping[str, Any] = field(default_factory=dict)


def write_sidecar(path: Path, sidecar: Sidecar, model: Path, *, engine_commit: str | None) -> None:
    """Write the JSON, with the hashes by which the tools know `model`. Raises StorageError, ShipError."""
    try:
        hashes = hash_file(model)
        metadata = read_file(model).metadata
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
            "sshs_model_hash": metadata.get("sshs_model_hash"),
            "sshs_legacy_hash": metadata.get("sshs_legacy_hash"),
        },
        "exports": list(sidecar.exports),
        "loading": dict(sidecar.loading) or None,
        "pixelkit": __version__,
        "engine": {"name": sidecar.engine, "commit": engine_commit},
    }
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
