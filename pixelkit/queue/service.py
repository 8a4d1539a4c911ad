"""The queue as a service of the user's systemd: starts with the machine, no administrator needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from pixelkit.errors import StorageError
from pixelkit.paths import ENGINE_VARIABLE, write_atomically

NAME: Final = "pixelkit-queue.service"
CARRIED: Final = ("PATH", ENGINE_VARIABLE, "LD_LIBRARY_PATH", "HF_HOME", "XDG_CONFIG_HOME", "CUDA_VISIBLE_DEVICES")
"""Variables that the service gets as they are now."""
ENABLE: Final = ("systemctl --user enable --now pixelkit-queue", "loginctl enable-linger")


def write_unit(runs: Path, workers: int | None) -> str:
    """The unit's text: `pixelkit queue run` on a runs folder, begun again whatever ends it."""
    words = [sys.executable, "-m", "pixelkit", "queue", "run", "--runs", str(runs)]
    words += ["--workers", str(workers)] if workers else []
    variables = {name: os.environ[name] for name in CARRIED if os.environ.get(name)}
    lines = [
        "[Unit]",
        "Description=pixelkit queue",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"WorkingDirectory={_escape(str(runs))}",
        *(f"Environment={_quote(f'{name}={value}')}" for name, value in variables.items()),
        f"ExecStart={' '.join(_quote(word).replace('$', '$$') for word in words)}",
        "Restart=always",
        "RestartSec=5",
        "SuccessExitStatus=130",
        "# Stopping: the runner has running jobs save. Should it die instead, they train on, and the next one finds them.",
        "KillMode=process",
        "TimeoutStopSec=300",
        "# A trainer that was killed for want of memory is a job that failed, and no reason to end the others.",
        "OOMPolicy=continue",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def install_unit(runs: Path, workers: int | None) -> Path:
    """Write the unit to the user's systemd folder and return its path. Raises StorageError where there is no systemd."""
    if not Path("/run/systemd/system").is_dir():
        raise StorageError(
            "this machine does not run systemd",
            hint="`nohup pixelkit queue run &` works anywhere; --print shows the unit",
        )
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    path = Path(home) / "systemd" / "user" / NAME
    runs.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write_unit(runs, workers))
    return path


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    escaped = _escape(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if any(character in word for character in " \t'\"\\;") else escaped
