"""What a LoRA file says about itself: hashes, modelspec 1.0.1, the ss_ keys that tools read.

The hashes follow sd-scripts (library/train_util.py: precalculate_safetensors_hashes, model_hash) and the
modelspec (https://github.com/Stability-AI/ModelSpec, library/sai_model_spec.py). They depend on the tensors' bytes:
`sign` computes them anew and is called by everything here that writes a kohya file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.errors import ConversionError
from converters.tensors import Tensor, build_header, order_names, write_file

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping

_LEGACY_START, _LEGACY_LENGTH = 0x100000, 0x10000
_PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}
_MAX_THUMBNAIL = 1 << 20

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


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """crc32 of the same bytes as hash_tensors: tells whether tensors are still those a note speaks of, ten times faster."""
    crc = 0
    for name in order_names(tensors):
        crc = zlib.crc32(tensors[name].raw, crc)
    return f"{crc:08x}"


def sign(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with sshs_model_hash, sshs_legacy_hash and, where there is a modelspec, its hash, computed anew."""
    return _seal(metadata, hash_legacy(tensors, metadata), hash_tensors(tensors))


def write_signed(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """write_file with `sign`'s metadata; the tensors are hashed while they are written. Raises ConversionError."""
    legacy_hash = hash_legacy(tensors, metadata)
    write_file(path, tensors, seal=lambda model_hash: _seal(metadata, legacy_hash, model_hash))


def _seal(metadata: Mapping[str, str], legacy_hash: str, model_hash: str) -> dict[str, str]:
    sealed = {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
    if "modelspec.sai_model_spec" in sealed:
        sealed["modelspec.hash_sha256"] = f"0x{model_hash}"
    return sealed


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
    timestep_range: tuple[int, int] | None = None,
    preprocessor: str = "",
    implementation_version: str = "",
) -> dict[str, str]:
    """The modelspec.* keys of a LoRA; empty values are left out, `thumbnail` is a data URL (see read_thumbnail).

    `family` is a key of ARCHITECTURES; `tags` and `merged_from` are lists with commas. `sign` adds hash_sha256.
    is_negative_embedding is for textual inversions only. Raises ConversionError for an unknown family, a title that is
    empty, a thumbnail that is no data URL, timesteps that are no range within 0 and 1000.
    """
    key = "sd21-v" if family == "sd21" and v_prediction else family
    if key not in ARCHITECTURES:
        raise ConversionError(f"no modelspec architecture for {family}; one of {', '.join(ARCHITECTURES)}")
    if thumbnail and not thumbnail.startswith("data:"):
        raise ConversionError("a modelspec thumbnail is a data URL")
    if not title:
        raise ConversionError("a modelspec needs a title")
    first, last = timestep_range or (0, 1000)
    if not 0 <= first < last <= 1000:
        raise ConversionError(f"a timestep range of {first} to {last}; it lies within 0 and 1000")
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
        "timestep_range": f"{first},{last}" if timestep_range else "",
        "encoder_layer": encoder_layer,
        "preprocessor": preprocessor,
        "implementation_version": implementation_version,
    }
    return {f"modelspec.{name}": value for name, value in fields.items() if value}


def read_thumbnail(path: Path | str) -> str:
    """A picture file (PNG, JPEG, WebP, GIF) as the data URL of a modelspec thumbnail.

    Every reader of the header reads it, so it should be small (the specification recommends 256x256). Raises
    ConversionError where it is unreadable, no such picture, or above 1 MiB.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from error
    kind = next((kind for start, kind in _PICTURES.items() if data.startswith(start)), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
    if not kind:
        raise ConversionError(f"{path}: no PNG, JPEG, WebP or GIF")
    if len(data) > _MAX_THUMBNAIL:
        raise ConversionError(f"{path}: {len(data)} bytes are too many for a thumbnail; 256x256 pixels are enough")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


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
