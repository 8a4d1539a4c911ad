"""Files copied into the registry's own disk: hashed on the way, synced, the source only read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_PIECE = 1 << 22
_WEIGHTS = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
_MOST = 64 << 20  # bytes of a sidecar of a file from elsewhere


@dataclass(frozen=True, kw_only=True)
class Copied:
    """Bytes and hashes of a copy; `auto_v3`: the first 12 digits of the hash of what follows a safetensors header."""

    size: int
    sha256: str
    auto_v3: str


def copy_file(source: Path, target: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Copied:
    """A copy that has reached the disk, hashed while it was read. Raises StorageError, also if the source changed."""
    whole, body, position = hashlib.sha256(), hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reading, target.open("wb") as writing:
            before = os.fstat(reading.fileno())
            start = None
            while piece := reading.read(_PIECE):
                if start is None:
                    start = 8 + int.from_bytes(piece[:8], "little")
                whole.update(piece)
                body.update(memoryview(piece)[max(start - position, 0) :])
                writing.write(piece)
                position += len(piece)
                on_bytes(len(piece))
            writing.flush()
            os.fsync(writing.fileno())
            after = os.fstat(reading.fileno())
    except OSError as error:
        raise StorageError(
            f"cannot copy {source} to {target.parent}: {error.strerror}", hint="is the disk full?"
        ) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or position != after.st_size:
        raise StorageError(f"{source} changed while it was copied", hint="wait until it is written, then try again")
    return Copied(size=position, sha256=whole.hexdigest(), auto_v3=body.hexdigest()[:12])


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as reading:
        while piece := reading.read(_PIECE):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def copy_beside(files: Mapping[str, Path], folder: Path, on_bytes: Callable[[int], None]) -> dict[str, str]:
    """Files into a folder under their relative names; name -> sha256."""
    return {name: copy_file(path, folder / name, on_bytes).sha256 for name, path in sorted(files.items())}


def list_exports(export: Path, preset: Path, model: Path) -> dict[str, Path]:
    """What a run shipped with its model, and its preset: relative name -> file. Its metadata is in the registry's own."""
    left_out = {model, model.with_name(f"{model.stem}.pixelkit.json")}
    found = {path.relative_to(export).as_posix(): path for path in _walk(export) if path not in left_out}
    return {**found, **({preset.name: preset} if preset.is_file() else {})}


def list_sidecars(model: Path) -> dict[str, Path]:
    """What lies beside a file from elsewhere and begins with its name: previews, descriptions; no other weights."""
    return {
        path.name: path
        for path in sorted(model.parent.glob("*"))
        if path.name.startswith(f"{model.stem}.")
        and path.suffix.lower() not in _WEIGHTS
        and path.name != f"{model.stem}.pixelkit.json"
        and path.is_file()
        and path.stat().st_size <= _MOST
    }


def _walk(folder: Path) -> Iterable[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
