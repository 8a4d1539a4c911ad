"""A model with all that belongs to it as one zip, the same bytes whenever and wherever it is made."""

from __future__ import annotations

import contextlib
import os
import zipfile
from typing import TYPE_CHECKING

from pixelkit.errors import StorageError
from pixelkit.registry.store import METADATA, as_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pixelkit.registry.index import Entry
    from pixelkit.registry.store import Registry

_TIME = (1980, 1, 1, 0, 0, 0)
_PIECE = 1 << 22


def export(
    registry: Registry, entry: Entry, out: Path, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """Model, metadata, what came with it, and LICENSE.txt, stored as they are. Raises StorageError; `out` whole or not."""
    files = {entry.name.file: registry.find_file(entry)}
    beside = registry.find_beside(entry)
    files |= {name: beside / name for name in entry.metadata.get("files", {})}
    gone = [path for path in files.values() if not path.is_file()]
    if gone:
        raise StorageError(f"{gone[0]} is gone", hint="`pixelkit models verify` says what to do")
    texts = {f"{entry.name}{METADATA}": as_text(entry.metadata), "LICENSE.txt": tell_licences(entry)}
    total, done = sum(path.stat().st_size for path in files.values()), 0
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted({*files, *texts}):
                about = zipfile.ZipInfo(f"{entry.name}/{name}", _TIME)
                about.create_system, about.external_attr = 3, 0o100644 << 16
                if name in texts:
                    archive.writestr(about, texts[name].encode())
                    continue
                about.file_size = files[name].stat().st_size
                with files[name].open("rb") as reading, archive.open(about, "w") as writing:
                    while piece := reading.read(_PIECE):
                        writing.write(piece)
                        done += len(piece)
                        on_progress(done, total)
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        temporary.replace(out)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror or error}", hint="is the disk full?") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def tell_licences(entry: Entry) -> str:
    """The licence of the model and of its base, in a line each."""
    about, base = entry.metadata, entry.metadata.get("base") or {}
    own = about.get("license") or "not stated"
    title = base.get("title") or about.get("base_model") or "an unknown base"
    return f"{entry.name}: {own}\nTrained on {title}: {base.get('licence') or 'licence not stated'}\n"
