"""The trainer's end of the line to pixelkit. Standard library only: it runs before torch is loaded.

Inside a trainer's process:

    control = Control()
    control.start()                                   # first thing, before the heavy imports
    control.emit("begin", total=1600, epochs=4, engine="kohya")
    for step in ...:
        control.emit("step", step=step, loss=loss)
        if control.take_save(): ...                   # save weights and state now, go on
        if control.take_sample(): ...                 # sample now, go on
        if control.stop_requested: ...                # save, emit "stopped" with this reason, exit 0

Orders come as lines on standard input, when that is a pipe: `stop`, `save`, `sample`. The end of that pipe means
that pixelkit is gone: the trainer stops as ordered; once it has ended, and after HARD_DEADLINE seconds in any case,
its whole process group is killed.

Several processes of one run (torchrun sets RANK, LOCAL_RANK and WORLD_SIZE) share that pipe. Only local rank 0 reads
orders, only rank 0 emits; each sees the pipe end, or the launcher go, and ends itself.

A script that has no such entry is run under this file as a guard (`python control.py COMMAND ...`), which obeys only
the end of the pipe: then the group is ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

EVENT_MARK: Final = b"\x1e"
HARD_DEADLINE: Final = 30.0
GUARD_GRACE: Final = 3.0


class Control:
    """Orders in, events out. `stop_requested` is None, or why to stop: "control", "signal" or "parent"."""

    def __init__(self, *, deadline: float = HARD_DEADLINE) -> None:
        self.stop_requested: str | None = None
        self.rank = int(os.environ.get("RANK", "0"))
        self.alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._reads = int(os.environ.get("LOCAL_RANK", "0")) == 0
        self._deadline = deadline
        self._save = False
        self._sample = False
        self._broken = False
        self._writing = threading.Lock()
        self._interrupted = False
        self._kept_open = -1

    def start(self) -> None:
        """Take over standard input and the signals. Call it once, from the main thread, before anything heavy.

        Started by hand (standard input is a terminal, a file or /dev/null), there are no orders, and only signals stop.
        """
        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._receive_signal)
        orders = take_pipe()
        if orders is None:
            return
        if sys.platform == "linux":
            # When pixelkit dies, our output pipe loses its reader, and the next tqdm line would raise BrokenPipeError
            # inside the training loop, before anything is saved. A reader of our own keeps the pipe whole.
            with contextlib.suppress(OSError):
                if stat.S_ISFIFO(os.fstat(1).st_mode):
                    self._kept_open = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
        listen = self._obey if self._reads else self._await_end
        threading.Thread(target=listen, args=(orders,), name="pixelkit-control", daemon=True).start()
        if not self.alone:
            threading.Thread(target=self._await_launcher, args=(os.getppid(),), daemon=True).start()

    def take_save(self) -> bool:
        """Whether a save was ordered since the last call."""
        ordered, self._save = self._save, False
        return ordered

    def take_sample(self) -> bool:
        """Whether samples were ordered since the last call."""
        ordered, self._sample = self._sample, False
        return ordered

    def emit(self, event: str, **fields: object) -> None:
        """Write one event on file descriptor 1, in one write; of several processes, only the first does.

        Numbers that are not finite become null.

        Never raises for a reader that is gone: what is trained matters more than who watches.
        """
        if self.rank:
            return
        data = EVENT_MARK + json.dumps(_plain({"event": event, **fields}), separators=(",", ":")).encode() + b"\n"
        with self._writing:
            while data and not self._broken:
                try:
                    data = data[os.write(1, data) :]
                except OSError:
                    self._broken = True

    def _receive_signal(self, number: int, _frame: FrameType | None) -> None:
        # SIGTERM may come twice for one request (to the group, and forwarded by a launcher). A second Ctrl-C means it.
        if number == signal.SIGINT:
            if self._interrupted:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt
            self._interrupted = True
        self.stop_requested = self.stop_requested or "signal"

    def _obey(self, orders: int) -> None:
        for line in read_lines(orders):
            if line == b"stop":
                self.stop_requested = self.stop_requested or "control"
            elif line == b"save":
                self._save = True
            elif line == b"sample":
                self._sample = True
        self._leave_parent()

    def _await_end(self, orders: int) -> None:
        """Wait for the end of a pipe whose lines are another process's to read."""
        if hasattr(select, "poll"):
            end = select.poll()
            end.register(orders, 0)  # no event but the hang-up, which is always told
            end.poll()
            self._leave_parent()

    def _await_launcher(self, launcher: int) -> None:
        """torchrun starts each process in a session of its own: a kill of the launcher's group does not reach it."""
        while sys.platform != "win32" and os.getppid() == launcher:
            time.sleep(1.0)
        if sys.platform != "win32":
            self._leave_parent()

    def _leave_parent(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                    os.dup2(nowhere, descriptor)
        self.stop_requested = self.stop_requested or "parent"
        with contextlib.suppress(OSError):
            bury_group(self._deadline)
        self._drain_output(time.monotonic() + self._deadline)
        kill_group()

    def _drain_output(self, end: float) -> None:
        """Read the old pipe until `end`: it may be full, with a thread of ours sitting in its write."""
        with contextlib.suppress(OSError):
            while (
                self._kept_open >= 0 and select.select([self._kept_open], [], [], max(0.0, end - time.monotonic()))[0]
            ):
                if not os.read(self._kept_open, 1 << 16) or time.monotonic() > end:
                    break
        time.sleep(max(0.0, end - time.monotonic()))


def take_pipe() -> int | None:
    """Move standard input's pipe to another descriptor, the null device in its place. None where it is no pipe."""
    try:
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return None
    except OSError:
        return None
    pipe = os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)
    return pipe


def read_lines(descriptor: int) -> Iterator[bytes]:
    """The lines that arrive on `descriptor`, stripped, until its end."""
    pending = b""
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:
            return
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line.strip()


def bury_group(deadline: float) -> None:
    """Kill what is left of this process's group once this process has ended, or after `deadline` seconds.

    A shell outside of the group does it: it outlives a crash, and main threads that sit in C code do not stop it.
    Does nothing where the group is not ours alone (started by hand), and on Windows.
    """
    if sys.platform != "win32" and os.getpgrp() == os.getsid(0):
        wait = f"i=0; while kill -0 {os.getpid()} && [ $i -lt {math.ceil(deadline)} ]; do i=$((i + 1)); sleep 1; done"
        subprocess.Popen(
            ["/bin/sh", "-c", f"{wait}; kill -9 -{os.getpgrp()}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def kill_group() -> None:
    """Kill this process and, in a session of its own (as pixelkit starts trainers), its whole process group."""
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(os.getpid())], check=False)  # noqa: S607
        os._exit(1)
    else:
        if os.getpgrp() == os.getsid(0):
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def guard(argv: list[str]) -> int:
    """Run `argv` and return its exit code; when standard input ends (pixelkit is gone), end the whole process group.

    SIGTERM and SIGINT are for the command, which is in the same group and gets them too: the guard waits for it.
    """
    orders = take_pipe()
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    command = subprocess.Popen(argv)

    gone = threading.Event()

    def watch(descriptor: int) -> None:
        for _ in read_lines(descriptor):
            pass
        gone.set()
        if sys.platform != "win32" and os.getpgrp() == os.getsid(0):
            os.killpg(os.getpgrp(), signal.SIGTERM)
        else:
            command.terminate()
        time.sleep(GUARD_GRACE)
        kill_group()

    if orders is not None:
        threading.Thread(target=watch, args=(orders,), daemon=True).start()
    code = command.wait()
    if gone.is_set():
        time.sleep(2 * GUARD_GRACE)  # the end comes from watch, for all
    if code < 0:
        # End as the command ended, so that pixelkit sees the signal.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _plain(value: Any) -> Any:
    """`value` as JSON knows it: paths as text, tensors of one number as that number, NaN and infinity as null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    try:
        return _plain(value.item())
    except (AttributeError, ValueError, RuntimeError):
        return str(value)


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
