"""Tells the user that something long has ended: a command of theirs, a webhook, or both, as their settings say.

Settings, not presets: presets are shared between people, and nobody's preset shall start a command on another's machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal

import psutil

from pixelkit import __version__
from pixelkit.errors import PixelkitError
from pixelkit.paths import is_web_address, read_settings, show_setting

if TYPE_CHECKING:
    from pathlib import Path

COMMAND_LIMIT: Final = 30.0
WEBHOOK_LIMIT: Final = 10.0
"""Seconds."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What ended, and how. `run` and `model` are paths, empty where there are none; `log` gets what a command prints.

    `event`: "run", "job" of a queue, "queue" that is drained, "model" that was rolled back. `state`: done, failed, interrupted.
    """

    event: Literal["run", "job", "queue", "model"]
    name: str
    state: str
    run: str = ""
    model: str = ""
    message: str = ""
    log: Path | None = None

    @property
    def text(self) -> str:
        """The whole in one line, for people."""
        more = f": {self.message or self.model}" if self.message or self.model else ""
        return f"pixelkit: {self.event} {self.name} {self.state}{more}"

    def as_dict(self) -> dict[str, str]:
        """What is sent: the fields, and `text`, which is also `content`: what chat programs show."""
        fields = {key: value for key, value in asdict(self).items() if key != "log"}
        return {**fields, "text": self.text, "content": self.text}


def notify(event: Ended) -> list[str]:
    """Do what the user's settings ask for; nothing where they ask for nothing. What went wrong comes back as warnings."""
    try:
        settings = read_settings()
    except PixelkitError as error:
        return [f"nobody was notified: {error.message}"]
    warnings = []
    if command := settings.get("notify_command", ""):
        warnings.append(_run_command(command, event))
    if address := settings.get("notify_webhook", ""):
        warnings.append(_post(address, event))
    return [warning for warning in warnings if warning]


def _run_command(command: str, event: Ended) -> str:
    """Start the command without a shell; Windows takes the line as it is. JSON on its standard input; PIXELKIT_* variables."""
    fields = event.as_dict()
    variables = {
        f"PIXELKIT_{key.upper()}": fields[key] for key in ("event", "name", "state", "run", "model", "message")
    }
    # A file, not a pipe: what the command leaves running in the background keeps nobody waiting.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(json.dumps(fields).encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                command if sys.platform == "win32" else shlex.split(command),
                env={**os.environ, **{name: value.replace("\0", "") for name, value in variables.items()}},
                stdin=given,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError, IndexError) as error:
            return f"notify_command: {getattr(error, 'strerror', None) or error}"
        try:
            code: int | None = process.wait(COMMAND_LIMIT)
        except subprocess.TimeoutExpired:
            _kill(process)
            code = None
        output.seek(0)
        said = output.read()
    _log(event, said)
    if code == 0:
        return ""
    how = f"not done after {COMMAND_LIMIT:g} s, killed" if code is None else f"exit code {code}"
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
    return ": ".join(["notify_command", how, *last])


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def _log(event: Ended, said: bytes) -> None:
    if event.log and said.strip():
        with contextlib.suppress(OSError), event.log.open("ab") as file:
            file.write(b"notify_command:\n" + said.rstrip() + b"\n")


def _post(address: str, event: Ended) -> str:
    """POST the JSON. A thread of its own: a socket's time limit does not end a server that answers byte by byte."""
    where = f"notify_webhook {show_setting('notify_webhook', address)}"
    if not is_web_address(address):
        return where
    request = urllib.request.Request(  # noqa: S310 - http(s), see above
        address.strip(),
        data=json.dumps(event.as_dict()).encode(),
        headers={"Content-Type": "application/json", "User-Agent": f"pixelkit/{__version__}"},
    )
    trouble = [f"no answer in {WEBHOOK_LIMIT:g} s"]

    def send() -> None:
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_LIMIT):  # noqa: S310 - http(s), see above
                trouble.clear()
        except urllib.error.HTTPError as error:
            trouble[:] = [f"answered {error.code}"]
        except Exception as error:  # http.client's, socket's, ssl's
            reason = getattr(error, "reason", error)
            # Of anything else only the kind: a message may hold the address, and the address may hold a password.
            trouble[:] = [getattr(reason, "strerror", None) or type(reason).__name__]

    sending = threading.Thread(target=send, name="pixelkit-webhook", daemon=True)
    sending.start()
    sending.join(WEBHOOK_LIMIT + 0.5)
    return f"{where}: {trouble[0]}" if trouble else ""
