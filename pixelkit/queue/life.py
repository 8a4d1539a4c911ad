"""Who is alive: processes, known so that neither a reused number nor a restart deceives, and all that a job has started."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping

MARK: Final = "PIXELKIT_QUEUE_JOB"
"""A variable in the environment of a job's process and of all that it starts."""
FRESH: Final = 120.0
"""Seconds for which a sign of life counts, of a process that cannot be looked up from here."""


@dataclass(frozen=True, kw_only=True)
class Life:
    """A process: where it runs (host, boot, namespace of process numbers), its number, when it started."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def read(cls, text: str) -> Self:
        """What str() wrote."""
        host, boot, namespace, pid, started = text.split("|")
        return cls(host=host, boot=boot, namespace=namespace, pid=int(pid), started=started)

    def __str__(self) -> str:
        return "|".join((self.host, self.boot, self.namespace, str(self.pid), self.started))

    @property
    def is_near(self) -> bool:
        """Whether it can be looked up from here: not on another machine, in another container or before a restart."""
        host, boot, namespace = _place()
        return self.namespace == namespace and (self.boot == boot if boot else self.host == host)

    def is_alive(self, seen: float, now: float) -> bool:
        """Whether it runs. `seen`: when it last gave a sign of life, which decides where it cannot be looked up."""
        if self.is_near:
            return _started(self.pid) == self.started
        host, boot, _ = _place()
        if host == self.host and boot != self.boot:
            return False  # the machine was restarted
        return now - seen < FRESH

    def kill(self) -> None:
        """SIGKILL, if it is near and still this very process."""
        if self.is_near and _started(self.pid) == self.started:
            with contextlib.suppress(psutil.Error):
                psutil.Process(self.pid).kill()


def own_life() -> Life:
    """This process."""
    host, boot, namespace = _place()
    return Life(host=host, boot=boot, namespace=namespace, pid=os.getpid(), started=_started(os.getpid()) or "")


def mark_of(book: Path, job: int, attempt: int) -> str:
    """The value of MARK for one attempt at a job."""
    return f"{book.resolve()}:{job}:{attempt}"


def find_marked(mark: str) -> list[psutil.Process]:
    """The living processes of an attempt, its own and all that it started."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment: Mapping[str, str] = process.environ()
            if environment.get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_marked(mark: str) -> None:
    """SIGKILL to all processes of an attempt, until none is left that could start another."""
    while found := [process for process in find_marked(mark) if process.pid != os.getpid()]:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=0.2)


def _place() -> tuple[str, str, str]:
    host = platform.node().replace("|", "-")
    if sys.platform != "linux":
        return host, "", ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return host, boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return host, "", ""


def _started(pid: int) -> str | None:
    """When a living process started. Linux: in ticks since the boot, which no clock that is set right later changes."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.Error:
        return None
