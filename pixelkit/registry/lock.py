"""One writer at a time: a lock on a file that ends with its process, however that ends."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from pixelkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT = 120.0
"""Seconds."""

if sys.platform == "win32":
    import msvcrt

    _PLACE = 1 << 30  # far behind what is written, so that others can read who holds it

    def _try_lock(stream: IO[bytes]) -> bool:
        stream.seek(_PLACE)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(stream: IO[bytes]) -> None:
        stream.seek(_PLACE)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(stream: IO[bytes]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(stream: IO[bytes]) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)


@contextmanager
def hold_lock(path: Path, what: str, *, wait: float = WAIT) -> Iterator[None]:
    """The lock, for as long as the block runs. Raises StorageError after `wait` seconds, and says who holds it."""
    try:
        stream = path.open("r+b" if path.exists() else "a+b")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="is the folder writable?") from error
    with stream:
        end, pause = time.monotonic() + wait, 0.002
        while not _try_lock(stream):
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
            _unlock(stream)
