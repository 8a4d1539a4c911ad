"""Changes of files that can be done, done again, and undone: what a change of the registry is made of.

Every step knows what was there before, so after a crash it can be taken to its end, or back. Paths are relative to the
registry's folder, with `/`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from pixelkit.errors import StorageError
from pixelkit.paths import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CURRENT = "current"
_PATIENCE: Final = 2.0
"""Seconds that Windows may refuse to replace a file which somebody reads."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """A file or folder to another place on the same disk."""

    source: str
    target: str

    def do(self, root: Path) -> None:
        """Done already where only the target is there."""
        source, target = root / self.source, root / self.target
        if not source.exists():
            if target.exists():
                return
            raise StorageError(f"{source} is gone")
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(source, target)
        _sync_folder(target.parent)
        _sync_folder(source.parent)

    def undo(self, root: Path) -> None:
        """The other way."""
        Move(source=self.target, target=self.source).do(root)


@dataclass(frozen=True, kw_only=True)
class Write:
    """A small text file's content; None = no such file."""

    path: str
    new: str | None
    old: str | None

    def do(self, root: Path) -> None:
        """Whole or not at all."""
        path = root / self.path
        if self.new is None:
            path.unlink(missing_ok=True)
            _sync_folder(path.parent)
        else:
            write_atomically(path, self.new)
            _sync_folder(path.parent)

    def undo(self, root: Path) -> None:
        """Back to the old content."""
        Write(path=self.path, new=self.old, old=self.new).do(root)


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where `current/<style>.safetensors` points: a path as it is in the registry; None = no such link."""

    path: str
    new: str | None
    old: str | None

    def do(self, root: Path) -> None:
        """A link under a temporary name, renamed over the old one: at every instant there is one, and it holds."""
        link = root / self.path
        if self.new is None:
            link.unlink(missing_ok=True)
        else:
            point(root, link, self.new)
        _sync_folder(link.parent)

    def undo(self, root: Path) -> None:
        """Back to the old place."""
        Point(path=self.path, new=self.old, old=self.new).do(root)


Step = Move | Write | Point
_KINDS: Mapping[str, type[Move | Write | Point]] = {"move": Move, "write": Write, "point": Point}


def as_plain(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as plain values, for JSON."""
    names = {kind: name for name, kind in _KINDS.items()}
    return [{"do": names[type(step)], **asdict(step)} for step in steps]


def from_plain(values: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """What as_plain made."""
    return tuple(_KINDS[value["do"]](**{key: part for key, part in value.items() if key != "do"}) for value in values)


def do_all(root: Path, steps: Sequence[Step]) -> None:
    """All steps, in order. Steps that are done already stay so: this also ends what a crash cut off. Raises StorageError."""
    for step in steps:
        try:
            step.do(root)
        except OSError as error:
            raise StorageError(f"{error.filename or root}: {error.strerror or error}") from error


def undo_all(root: Path, steps: Sequence[Step]) -> None:
    """Back to where it was before, last step first; a step that was never done stays so."""
    for step in reversed(steps):
        if isinstance(step, Move) and not (root / step.target).exists():
            continue
        step.undo(root)


def point(root: Path, link: Path, target: str) -> None:
    """Make `link` lead to `target`, atomically: a relative link, or a copy where there are no links."""
    relative = PurePosixPath(os.path.relpath(root / target, link.parent).replace(os.sep, "/"))
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(relative)
    except (OSError, NotImplementedError):
        copy_whole(root / target, temporary)
    try:
        _replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)


def read_target(root: Path, link: Path) -> str | None:
    """Where a link leads, relative to the registry; None where it is no link."""
    if not link.is_symlink():
        return None
    place = os.path.normpath(link.parent / link.readlink())
    return Path(os.path.relpath(place, root)).as_posix()


def copy_whole(source: Path, target: Path) -> None:
    """A copy that has reached the disk."""
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(source: Path, target: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            source.replace(target)
        except PermissionError:
            if os.name != "nt" or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network disks cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
