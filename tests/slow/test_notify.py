"""Notifications: real commands, and a real server on this machine."""

from __future__ import annotations

import http.server
import json
import shlex
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from click.testing import CliRunner

from pixelkit import notify as notices
from pixelkit import paths
from pixelkit.cli import main
from pixelkit.errors import PresetError
from pixelkit.notify import Ended, notify
from pixelkit.paths import write_setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = Ended(event="run", name="hero-1", state="done", run="/runs/hero-1", model="/runs/hero-1/hero.safetensors")


def python(code: str, *arguments: object) -> str:
    return shlex.join([sys.executable, "-c", code, *map(str, arguments)])


class Server:
    """Keeps what is posted; `status` is its answer, after `delay` seconds."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, Any]] = []
        self.status, self.delay = 204, 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.posts.append((self.path, self.headers["Content-Type"], json.loads(body)))
                time.sleep(outer.delay)
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook?key=s3cret"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_nothing_is_set() -> None:
    assert notify(RUN) == []


def test_a_command_gets_json_and_variables(tmp_path: Path) -> None:
    file, log = tmp_path / "told.json", tmp_path / "log.txt"
    log.write_text("the trainer's\n")
    code = (
        "import json, os, sys; told = json.load(sys.stdin); print('heard'); "
        "told['variables'] = {k: v for k, v in os.environ.items() if k.startswith('PIXELKIT_')}; "
        "json.dump(told, open(sys.argv[1], 'w'))"
    )
    write_setting("notify_command", python(code, file))
    assert notify(Ended(**{**RUN.__dict__, "log": log, "state": "failed", "message": "out of memory; 日本"})) == []
    told = json.loads(file.read_text())
    variables = told.pop("variables")
    assert told == {
        "event": "run",
        "name": "hero-1",
        "state": "failed",
        "run": "/runs/hero-1",
        "model": "/runs/hero-1/hero.safetensors",
        "message": "out of memory; 日本",
        "text": "pixelkit: run hero-1 failed: out of memory; 日本",
        "content": "pixelkit: run hero-1 failed: out of memory; 日本",
    }
    assert variables["PIXELKIT_STATE"] == "failed" and variables["PIXELKIT_MESSAGE"] == "out of memory; 日本"
    assert log.read_text() == "the trainer's\nnotify_command:\nheard\n"


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    write_setting("notify_command", python("", "; touch", tmp_path / "never") + f" ; touch {tmp_path}/never2")
    assert notify(RUN) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "warning"),
    [
        ("/no/such/program", "notify_command: No such file or directory"),
        (python("import sys; print('no network'); sys.exit(3)"), "notify_command: exit code 3: no network"),
    ],
)
def test_a_command_that_fails_is_a_warning(command: str, warning: str) -> None:
    write_setting("notify_command", command)
    assert notify(RUN) == [warning]


def test_a_command_without_end_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "COMMAND_LIMIT", 1.0)
    code = (
        "import subprocess as s, sys; p = s.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(str(p.pid)); p.wait()"
    )
    write_setting("notify_command", python(code, tmp_path / "pid"))
    assert notify(RUN) == ["notify_command: not done after 1 s, killed"]
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until


def test_what_a_command_leaves_in_the_background_keeps_nobody_waiting() -> None:
    write_setting("notify_command", python("import subprocess as s; s.Popen(['sleep', '5'], start_new_session=True)"))
    began = time.monotonic()
    assert notify(RUN) == []
    assert time.monotonic() - began < 4


def test_a_webhook_gets_the_same_json(server: Server) -> None:
    write_setting("notify_webhook", server.address)
    assert notify(RUN) == []
    assert server.posts == [("/hook?key=s3cret", "application/json", RUN.as_dict())]


def test_a_webhook_that_fails_is_a_warning_without_its_secret(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write_setting("notify_webhook", server.address)
    server.status = 403
    assert notify(RUN) == ["notify_webhook http://127.0.0.1/...: answered 403"]
    monkeypatch.setattr(notices, "WEBHOOK_LIMIT", 0.3)
    server.delay = 2
    (warning,) = notify(RUN)
    assert "s3cret" not in warning and "127.0.0.1" in warning
    server.server.server_close()
    server.server.shutdown()
    (warning,) = notify(RUN)
    assert "s3cret" not in warning and "127.0.0.1" in warning


def test_settings_have_kinds(tmp_path: Path) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["config", *arguments])

    assert call("set", "notify_command", "say 'it is done'").exit_code == 0
    assert call("show", "notify_command").output == "say 'it is done'\n"
    assert call("set", "notify_webhook", "https://chat.example/hooks/T0/s3cret?token=s3cret").exit_code == 0
    for arguments in (("show",), ("show", "notify_webhook")):
        assert "https://chat.example/..." in call(*arguments).output
        assert "s3cret" not in call(*arguments).output
    assert "s3cret" in paths.settings_file().read_text()
    assert paths.settings_file().stat().st_mode & 0o077 == 0, "others can read the webhook's address"
    for wrong in ("chat.example/hook", "ftp://chat.example/x", "https://", "file:///etc/passwd"):
        assert call("set", "notify_webhook", wrong).exit_code == 3
    with pytest.raises(PresetError, match="quotation"):
        write_setting("notify_command", "say 'it is")
    assert call("set", "notify_webhook", "").exit_code == 0
    assert "notify_webhook" not in paths.read_settings()


def test_broken_settings_are_a_warning() -> None:
    paths.settings_file().write_text('notify_comand = "x"\n')
    (warning,) = notify(RUN)
    assert "no setting is called notify_comand" in warning
