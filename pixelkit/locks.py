"""A lock on an open file, which ends with its process, however that ends."""

from __future__ import annotations

import sys
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def try_lock(stream: IO[bytes], *, shared: bool = False, place: int = 0, optional: bool = False) -> bool:  # noqa: ARG001
        """Whether the lock is ours now, until the stream is closed. `place`: the byte that is locked, which none can read."""
        stream.seek(place)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(stream: IO[bytes], *, place: int = 0) -> None:
        """Give it back at once."""
        stream.seek(place)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(stream: IO[bytes], *, shared: bool = False, place: int = 0, optional: bool = False) -> bool:  # noqa: ARG001
        """Whether the lock is ours now, until the stream is closed. `shared`: with others who share it.

        Where the file system knows no locks, it is ours if it is `optional`; else raises OSError.
        """
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if not optional:
                raise
        return True

    def unlock(stream: IO[bytes], *, place: int = 0) -> None:  # noqa: ARG001
        """Give it back at once."""
        fcntl.flock(stream, fcntl.LOCK_UN)
