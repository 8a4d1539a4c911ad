"""Work on the nodes of a Ray cluster: results in order, only some of them under way, a lost node's done again by others.

Plain Ray tasks, a batch of items each: results must come back in the items' order and as they are, which Ray Data's blocks
would first take apart; and nothing but `ray` itself has to be installed. Nodes read and write the same folders by the same
paths, which every batch checks on the node it has come to.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
import socket
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import features

from pixelkit import __version__
from pixelkit.errors import EngineError, PixelkitError, StorageError
from pixelkit.sources.prepared import RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pixelkit.dataset.ahead import Mapper

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 16  # a quarter of a second of work or more, beside which a task's two milliseconds are nothing
AHEAD = 4  # batches under way for each of the cluster's cores
RETRIES = 8  # of one batch, whose node or process went away
PATIENCE = 5.0  # seconds


@contextmanager
def spread_over(address: str, *, folder: Path, source: Path) -> Iterator[Mapper]:
    """As `map_ahead`, over the nodes of the cluster at `address`; `folder` is written to, `source` is one file that is read.

    Raises EngineError: no Ray, no cluster, or a node with another pixelkit; StorageError: a node that sees other files.
    """
    with connected(address) as ray:
        if not ray.cluster_resources().get("CPU"):
            raise EngineError(f"the cluster at {address} offers no processors", hint="start a node with `ray start`")
        yield _Spread(ray=ray, folder=folder, source=source)


def end_work(folder: Path) -> None:
    """Nodes that still work on a set, for a command that was killed, stop before their next item."""
    for marker in folder.glob(f"{RECORDS}.{'[0-9a-f]' * 8}"):
        marker.unlink(missing_ok=True)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to a cluster for as long as the block lasts. Raises EngineError."""
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EngineError("--ray needs Ray, which is not installed", hint="pip install 'pixelkit[ray]'") from error
    _check_address(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, namespace="pixelkit", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises whatever came up
        raise EngineError(
            f"cannot join the Ray cluster at {address}: {_last_line(error)}",
            hint=f"this machine must be one of its nodes: `ray start --address={address}`",
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray takes it
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself would look for a cluster that is not there for a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise EngineError(
            f"--ray {address} is no address", hint="write HOST:PORT as `ray start --head` names it, or auto"
        )
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address}: {getattr(error, 'strerror', None) or error}",
            hint="`ray start --head` starts one and names its address",
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """What a node must have in common with the machine that sends it work."""

    cwd: str
    versions: Mapping[str, str | None]
    marker: Path
    sizes: Mapping[Path, int]

    def check(self) -> None:
        """Raises EngineError and StorageError."""
        for name, version in _versions().items():
            if version != self.versions[name]:
                raise EngineError(
                    f"node {platform.node()} has {name} {version}, not {self.versions[name]}",
                    hint="install the same pixelkit on every node",
                )
        try:
            os.chdir(self.cwd)  # relative paths mean the same on every node
            seen = {path: path.stat().st_size for path in (self.marker, *self.sizes)}
        except OSError as error:
            raise StorageError(
                f"node {platform.node()} does not see {error.filename}: {error.strerror}", hint=_SHARE
            ) from None
        for path, size in self.sizes.items():
            if seen[path] != size:
                raise StorageError(f"node {platform.node()} sees another {path}", hint=_SHARE)

    def check_marker(self) -> None:
        """Raises StorageError as soon as the work is not wanted any more: who sent it may be dead."""
        if not self.marker.exists():
            raise StorageError(f"{self.marker.parent} is being prepared by another command")


_SHARE = "sources and results must lie in folders that every node mounts at the same path"


@dataclass(frozen=True, kw_only=True)
class _Spread:
    """The mapper. `ray` is the connected module."""

    ray: Any
    folder: Path
    source: Path

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        work = self.ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
        marker = self.folder / f"{RECORDS}.{secrets.token_hex(4)}"
        waiting: deque[Any] = deque()
        left = iter(items)
        try:
            marker.touch()
            source = _file_of(self.source)
            sizes = {source: source.stat().st_size}
            sight = self.ray.put(_Sight(cwd=str(Path.cwd()), versions=_versions(), marker=marker, sizes=sizes))
            sent = self.ray.put(function)
            while batch := list(islice(left, BATCH)):
                waiting.append(work.remote(sent, batch, sight))
                if len(waiting) > AHEAD * self.ray.cluster_resources().get("CPU", 1):
                    yield from self._take(waiting.popleft())
            while waiting:
                yield from self._take(waiting.popleft())
        except OSError as error:
            raise StorageError(f"cannot use {error.filename}: {error.strerror}") from error
        finally:
            self._drop(waiting)
            marker.unlink(missing_ok=True)

    def _take(self, reference: Any) -> Sequence[Any]:
        try:
            results: list[Any] | PixelkitError = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise EngineError(
                f"a node could not do its part: {_last_line(error)}",
                hint="is the same pixelkit installed on every node?",
            ) from error
        except self.ray.exceptions.RayError as error:
            raise EngineError(
                f"the cluster lost its work: {_last_line(error)}", hint="the same command goes on where it stopped"
            ) from error
        if isinstance(results, PixelkitError):
            raise results
        return results

    def _drop(self, waiting: Sequence[Any]) -> None:
        for reference in waiting:
            self.ray.cancel(reference)
        if waiting:
            self.ray.wait(list(waiting), num_returns=len(waiting), timeout=PATIENCE)


def _work(function: Callable[[Item], Result], items: Sequence[Item], sight: _Sight) -> list[Result] | PixelkitError:
    """One batch, on a node. What pixelkit raises comes back as it is."""
    try:
        sight.check()
        results = []
        for item in items:
            sight.check_marker()
            results.append(function(item))
    except PixelkitError as error:
        return error
    return results


def _versions() -> dict[str, str | None]:
    """What the bytes of a set depend on."""
    return {
        "pixelkit": __version__,
        "Pillow": features.version("pil"),
        "zlib": features.version("zlib"),
        "zlib-ng": features.version("zlib_ng"),
    }


def _file_of(path: Path) -> Path:
    """The file itself, or the zip that it lies in."""
    return next(existing for existing in (path, *path.parents) if existing.exists())


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
