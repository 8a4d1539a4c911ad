"""A Ray cluster of nodes that are processes of this machine, for the tests of what runs on one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# A head needs half a minute where every core is busy.
PATIENCE = 90

_WAIT = """
import sys, time, ray
while not ray.is_initialized():
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level=40)
    except (ConnectionError, RuntimeError):
        time.sleep(1)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.1)
"""


@dataclass
class Nodes:
    """A head without work of its own, and nodes with one core each. All of it is gone after `stop`."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    address: str = ""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        # Sockets lie below it, and their paths must be short.
        self._start(
            "--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false", "--num-cpus=0"
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.2)
        self.wait_for(1)
        for number in range(count):
            self.add()
            self.wait_for(2 + number)  # two that start at once on one machine take each other's sockets

    def add(self) -> subprocess.Popen[bytes]:
        return self._start(f"--address={self.address}", "--num-cpus=1")

    def wait_for(self, count: int) -> None:
        """Until so many nodes, the head among them, are there."""
        subprocess.run(
            [sys.executable, "-c", _WAIT, self.address, str(count)], check=True, timeout=PATIENCE, env=environment()
        )

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As a power cut would: all its processes at once, with all that its workers started."""
        with suppress(psutil.Error):
            top = psutil.Process(node.pid)
            for process in [top, *top.children(recursive=True)]:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        for node in reversed(self.started):
            self.kill(node)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block"]
        with (self.folder / "nodes.log").open("ab") as log:
            node = subprocess.Popen(
                [*command, "--object-store-memory=100000000", "--disable-usage-stats"],
                env={**environment(), **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(node)
        return node


def environment() -> dict[str, str]:
    # A node that is gone is missed sooner than by default.
    quick = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "10"}
    return {**os.environ, **quick, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
