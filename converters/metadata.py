"""What a LoRA file says about itself: hashes, modelspec 1.0.1, the ss_ keys that tools read.

The hashes follow sd-scripts (library/train_util.py: precalculate_safetensors_hashes, model_hash) and the
modelspec (https://github.com/Stability-AI/ModelSpec, library/sai_model_spec.py). They depend on the tensors' bytes:
`sign` computes them anew and is called by everything here that writes a kohya file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.errors import ConversionError
from converters.tensors import Tensor, build_header, order_names

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping

_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000

# family -> modelspec architecture; sd-scripts: determine_architecture. sd21 without v-prediction is the 512 model.
ARCHITECTURES: Mapping[str, str] = {
    "sd15": "stable-diffusion-v1",
    "sd21": "stable-diffusion-v2-512",
    "sd21-v": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
    "sd35": "stable-diffusion-3-5-large",
    "flux-dev": "flux-1-dev",
    "flux-schnell": "flux-1-schnell",
}
_IMPLEMENTATIONS: Mapping[str, str] = {
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux-dev": "https://github.com/black-forest-labs/flux",
    "flux-schnell": "https://github.com/black-forest-labs/flux",
}


@dataclass(frozen=True, kw_only=True)
class FileHashes:
    """Hashes of a file: `sha256`; `auto_v2`, its first 10 digits; `auto_v3`, the first 12 of the tensors' hash."""

    sha256: str
    auto_v2: str
    auto_v3: str


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the bytes after the header: sshs_model_hash, and modelspec.hash_sha256 without its 0x."""
    digest = hashlib.sha256()
    for name in order_names(tensors):
        digest.update(tensors[name].raw)
    return digest.hexdigest()


def hash_legacy(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sshs_legacy_hash: 64 KiB from 1 MiB on, of a file that carries the ss_ keys of `metadata` and no others."""
    position = 0
    digest = hashlib.sha256()
    header = build_header(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    for piece in (memoryview(header), *(tensors[name].raw for name in order_names(tensors))):
        start = max(_LEGACY_START - position, 0)
        stop = min(_LEGACY_START + _LEGACY_LENGTH - position, len(piece))
        if start < stop:
            digest.update(piece[start:stop])
        position += len(piece)
    return digest.hexdigest()[:8]


def sign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with sshs_model_hash, sshs_legacy_hash and, where there is a modelspec, its hash, computed anew."""
    model_hash = hash_tensors(tensors)
    signed = dict(metadata)
    signed["sshs_model_hash"] = model_hash
    signed["sshs_legacy_hash"] = hash_legacy(tensors, metadata)
    if "modelspec.sai_model_spec" in signed:
        signed["modelspec.hash_sha256"] = f"0x{model_hash}"
    return signed


def hash_file(path: Path | str) -> FileHashes:
    """The hashes by which Civitai and the web UIs know a safetensors file. Reads it once, in pieces."""
    whole, body = hashlib.sha256(), hashlib.sha256()
    try:
        with Path(path).open("rb") as handle:
            prefix = handle.read(8)
            header = handle.read(min(int.from_bytes(prefix, "little"), 100_000_000))
            whole.update(prefix + header)
            while chunk := handle.read(1 << 20):
                whole.update(chunk)
                body.update(chunk)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from error
    sha256 = whole.hexdigest()
    return FileHashes(sha256=sha256, auto_v2=sha256[:10], auto_v3=body.hexdigest()[:12])


def build_modelspec(
    *,
    family: str,
    title: str,
    resolution: int | tuple[int, int],
    date: datetime.datetime,
    v_prediction: bool = False,
    description: str = "",
    author: str = "",
    license_name: str = "",
    usage_hint: str = "",
    trigger_phrase: str = "",
    tags: str = "",
    merged_from: str = "",
    thumbnail: str = "",
    encoder_layer: str = "",
    timestep_range: str = "",
    implementation_version: str = "",
) -> dict[str, str]:
    """The modelspec.* keys of a LoRA; empty values are left out, `thumbnail` is a data URL.

    `family` is a key of ARCHITECTURES. `sign` adds hash_sha256. Raises ConversionError for an unknown family or a
    thumbnail that is no data URL.
    """
    key = "sd21-v" if family == "sd21" and v_prediction else family
    if key not in ARCHITECTURES:
        raise ConversionError(f"no modelspec architecture for {family}; one of {', '.join(ARCHITECTURES)}")
    if thumbnail and not thumbnail.startswith("data:"):
        raise ConversionError("a modelspec thumbnail is a data URL")
    width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{ARCHITECTURES[key]}/lora",
        "implementation": _IMPLEMENTATIONS.get(key, "diffusers"),
        "title": title,
        "resolution": f"{width}x{height}",
        "description": description,
        "author": author,
        "date": date.replace(microsecond=0).isoformat(),
        "license": license_name,
        "usage_hint": usage_hint,
        "thumbnail": thumbnail,
        "tags": tags,
        "merged_from": merged_from,
        "trigger_phrase": trigger_phrase,
        "prediction_type": "" if key.startswith("flux") else ("v" if v_prediction else "epsilon"),
        "timestep_range": timestep_range,
        "encoder_layer": encoder_layer,
        "implementation_version": implementation_version,
    }
    return {f"modelspec.{name}": value for name, value in fields.items() if value}


def build_minimum(
    *,
    base_model_version: str,
    rank: int,
    alpha: float,
    v2: bool = False,
    network_module: str = "networks.lora",
    network_args: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """The ss_ keys that other tools need to tell what a LoRA is (sd-scripts: SS_METADATA_MINIMUM_KEYS).

    `base_model_version` is sd-scripts' word for the family: `sd_v1`, `sd_v2`, `sdxl_base_v1-0`, `flux1`, `sd3m`.
    """
    found = {
        "ss_v2": str(v2),
        "ss_base_model_version": base_model_version,
        "ss_network_module": network_module,
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
    }
    if network_args:
        found["ss_network_args"] = json.dumps(network_args)
    return found
