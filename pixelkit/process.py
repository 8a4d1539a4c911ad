"""A command and the tree of processes that it grows: started in a group of its own, and ended to the last one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from pixelkit.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MARK: Final = "PIXELKIT_TRAINER"
"""A variable in the environment of all that a trainer starts, so that nothing of it is overlooked."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run. `env` is the whole environment. A plain script, without an entry of ours, does not obey control."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    obeys_control: bool = True

    def shell_line(self) -> str:
        """A line to paste into a shell: the folder, what differs from this environment, the quoted command."""
        unset = sorted(os.environ.keys() - self.env.keys())
        changed = {name: value for name, value in sorted(self.env.items()) if os.environ.get(name) != value}
        if sys.platform == "win32":
            words = [f'cd /d "{self.cwd}"', *(f'set "{name}="' for name in unset)]
            words += [f'set "{name}={value}"' for name, value in changed.items()]
            return " && ".join([*words, subprocess.list2cmdline(self.argv)])
        words = [word for name in unset for word in ("-u", name)]
        words += [f"{name}={value}" for name, value in changed.items()]
        words = ["env", *words, *self.argv] if words else list(self.argv)
        return f"cd {shlex.quote(str(self.cwd))} && {shlex.join(words)}"


class ProcessTree:
    """A running command: the leader, its group, and its descendants in other groups, known by a mark they inherit.

    Raises EngineError where it cannot start. `peak_memory`: bytes resident, summed, the most that look() ever saw.
    `purpose` goes into the mark, so that find_started knows the tree of a pixelkit that was killed.
    """

    def __init__(self, command: Command, *, purpose: str = "") -> None:
        if not command.cwd.is_dir():
            raise EngineError(f"{command.cwd} is not a folder", hint="the trainer runs there; see `pixelkit doctor`")
        if shutil.which(command.argv[0], path=command.env.get("PATH")) is None:
            raise EngineError(f"there is no program {command.argv[0]}", hint="see `pixelkit doctor`")
        argv = list(command.argv)
        if not command.obeys_control:
            argv = [sys.executable, "-I", "-S", str(Path(__file__).parent / "engines" / "control.py"), *argv]
        self._mark = f"{purpose}#{uuid.uuid4().hex}"
        try:
            self.process = subprocess.Popen(
                argv,
                env={**command.env, MARK: self._mark},
                cwd=command.cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
                preexec_fn=_end_with_parent(),  # noqa: PLW1509
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise EngineError(f"cannot start {command.argv[0]}: {error.strerror}") from error
        self.obeys_control = command.obeys_control
        self.peak_memory = 0
        self._seen: set[psutil.Process] = set()

    def order(self, word: str) -> None:
        """Send one order down the control pipe."""
        with contextlib.suppress(OSError):
            assert self.process.stdin
            self.process.stdin.write(word.encode() + b"\n")

    def stop(self) -> None:
        """Ask to save and end; where nothing obeys, ask the group to end."""
        self.order("stop")
        if not self.obeys_control:
            self.signal_all(kill=sys.platform == "win32")

    def look(self) -> None:
        """Note descendants and their memory."""
        total = 0
        self._seen = {process for process in self._seen if process.is_running()}
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self.process.pid)
            for process in (leader, *leader.children(recursive=True)):
                self._seen.add(process)
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
        self.peak_memory = max(self.peak_memory, total)

    def left(self) -> list[psutil.Process]:
        """What is alive of the group and of the descendants, the leader included."""
        found = set(self._seen)
        found.update(_find(lambda process: _group_of(process) == self.process.pid or _mark_of(process) == self._mark))
        return [process for process in found if _is_alive(process)]

    def signal_all(self, *, kill: bool) -> None:
        """SIGTERM or SIGKILL to everything that is left."""
        self.look()
        left = self.left()
        if left and sys.platform != "win32":
            # In one go, so that nobody has time to start another. A group that has a member keeps its number.
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL if kill else signal.SIGTERM)
            left = [process for process in left if _group_of(process) != self.process.pid]
        for process in left:
            with contextlib.suppress(psutil.Error):
                if kill:
                    process.kill()
                else:
                    process.terminate()

    def end(self) -> None:
        """Whatever happened: kill what is left, close the lines."""
        if self.process.poll() is None or self.left():
            self.signal_all(kill=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        assert self.process.stdin
        self.process.stdin.close()


def find_started(purpose: str) -> list[psutil.Process]:
    """What is alive of all process trees that were started with this purpose, by whom ever."""
    return [process for process in _find(lambda one: _mark_of(one).startswith(f"{purpose}#")) if _is_alive(process)]


def _find(wanted: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if wanted(process):
                yield process


def _mark_of(process: psutil.Process) -> str:
    return process.environ().get(MARK, "")


def _end_with_parent() -> Callable[[], None] | None:
    """On Linux, what the child does before it becomes the command: ask the kernel for SIGTERM when pixelkit dies.

    The control pipe tells our entry of it anyway. This is for the launcher in between, and for the seconds before the
    entry listens. The kernel means the thread that starts the child: launch() stays in it until the end.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: after it, locks may be held for ever
    parent = os.getpid()

    def ask() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _group_of(process: psutil.Process) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        return os.getpgid(process.pid)
    except OSError:
        return None
