"""One writer at a time: a lock on a file that ends with its process, however that ends."""

from __future__ import annotations

import os
import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pixelkit.errors import StorageError
from pixelkit.locks import try_lock, unlock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT = 120.0
"""Seconds."""

# Far behind what is written: on Windows nobody can read what is locked, and others shall read who holds it.
_PLACE = 1 << 30


@contextmanager
def hold_lock(path: Path, what: str, *, wait: float = WAIT) -> Iterator[None]:
    """The lock, for as long as the block runs. Raises StorageError after `wait` seconds, and says who holds it."""
    try:
        stream = path.open("r+b" if path.exists() else "a+b")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="is the folder writable?") from error
    with stream:
        end, pause = time.monotonic() + wait, 0.002
        while not try_lock(stream, place=_PLACE):
            if time.monotonic() >= end:
                stream.seek(0)
                holder = stream.read(200).decode("utf-8", "replace") or "another process"
                raise StorageError(
                    f"the registry {path.parent} is busy: {holder}", hint="wait for it to end, then try again"
                )
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 1.5, 0.05)
        try:
            stream.seek(0)
            stream.truncate()
            stream.write(f"process {os.getpid()}, {what}".encode())
            stream.flush()
            yield
        finally:
            unlock(stream, place=_PLACE)
