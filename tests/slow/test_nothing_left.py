"""Whatever ends, and however: no process of a trainer stays behind, even if pixelkit itself is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from fake_trainer import ENTRY, ROOT, Bench, on, open_bench

from pixelkit import launch as launch_module
from pixelkit.progress import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from open_bench(tmp_path)


def test_an_orphan_in_the_group_is_ended(bench: Bench) -> None:
    code = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', __file__])"
    exit_ = bench.run(bench.command(code))
    assert exit_.returncode == 0
    assert exit_.seconds < 3


def test_an_orphan_that_will_not_go_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "LEFT_GRACE", 0.3)
    code = """
        import subprocess, sys
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", deaf, __file__], stdout=subprocess.PIPE)
        child.stdout.readline()
    """
    exit_ = bench.run(bench.command(code))
    assert exit_.returncode == 0
    assert exit_.seconds < 4


def test_a_daemon_is_found(bench: Bench) -> None:
    """Two forks, a session of its own, our pipe in its hand."""
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.wait()
    """
    exit_ = bench.run(bench.command(code))
    assert exit_.returncode == 0
    assert exit_.seconds < 3


def test_a_trainer_that_never_ends_after_its_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_module, "SAVE_GRACE", 0.3)
    exit_ = bench.run(bench.command(ENTRY + "train(1, 0)\ntime.sleep(60)", launcher=True))
    assert exit_.reason == "ended"
    assert exit_.last_step == 1
    assert exit_.seconds < 4


def test_an_error_in_the_display_leaves_nothing(bench: Bench) -> None:
    def fail() -> None:
        raise ValueError("display")

    with pytest.raises(ValueError, match="display"):
        bench.run(bench.command(ENTRY + "train(save=False)", launcher=True), act=on(Step, fail))
    bench.wait_until_gone(2)


DRIVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from pixelkit.launch import launch
from pixelkit.process import Command
command = Command(argv=tuple({argv!r}), env=dict(os.environ), cwd=Path({cwd!r}), obeys_control={obeys!r})
launch(command, log=Path("log.txt"), metrics=Path("metrics.jsonl"))
"""
WORKER = "subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)', __file__])\n"
NOISE = "\nimport threading\ndef noise():\n    while True: print('x' * 200, flush=True)\n"
NOISE += "threading.Thread(target=noise, daemon=True).start()\n"
READY = "open('ready', 'w').write(str(os.getpid()))\n"


@pytest.mark.parametrize(
    ("code", "saved", "obeys"),
    [
        pytest.param(ENTRY + WORKER + READY + "train()", "parent", True, id="saves"),
        pytest.param(ENTRY + WORKER + NOISE + READY + "train()", "parent", True, id="saves-while-printing"),
        pytest.param(ENTRY + WORKER + READY + "train(save=False)", "", True, id="ignores"),
        pytest.param("import os, subprocess, sys, time\n" + WORKER + READY + "time.sleep(60)", "", False, id="plain"),
    ],
)
def test_killing_pixelkit_ends_the_trainer(bench: Bench, code: str, saved: str, obeys: bool) -> None:
    """SIGKILL: pixelkit can do nothing any more. Launcher, trainer and its helper process all end by themselves."""
    command = bench.command(code, launcher=True, obeys_control=obeys)
    driver = bench.script(
        DRIVER.format(root=str(ROOT), argv=command.argv, cwd=str(bench.folder), obeys=obeys), "driver.py"
    )
    pixelkit = subprocess.Popen([sys.executable, str(driver)], cwd=bench.folder)
    bench.wait_for("ready")
    time.sleep(0.2)
    assert len(bench.left()) >= 4
    pixelkit.kill()
    pixelkit.wait()
    if saved:
        assert bench.wait_for("saved") == saved
    bench.wait_until_gone(8)


def test_killing_pixelkit_before_the_trainer_listens(bench: Bench) -> None:
    """The launcher is still busy with its own imports, and reads no pipe."""
    command = bench.command("import os, time\n" + READY + "time.sleep(60)")
    driver = bench.script(
        DRIVER.format(root=str(ROOT), argv=command.argv, cwd=str(bench.folder), obeys=True), "driver.py"
    )
    pixelkit = subprocess.Popen([sys.executable, str(driver)], cwd=bench.folder)
    bench.wait_for("ready")
    pixelkit.kill()
    pixelkit.wait()
    bench.wait_until_gone(3)
