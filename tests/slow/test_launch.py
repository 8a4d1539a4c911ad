"""Real processes: small fake trainers, watched, stopped and killed by launch, and pixelkit killed above them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from pixelkit import launch as launch_module
from pixelkit.diagnosis import diagnose
from pixelkit.errors import EngineError, StorageError
from pixelkit.launch import Exit, launch
from pixelkit.process import Command
from pixelkit.progress import Bar, Begin, Emitted, Event, LogLine, NonFinite, Notice, Save, Step, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")

ROOT = Path(__file__).parents[2]
CONTROL = ROOT / "pixelkit" / "engines"

ENTRY = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(CONTROL)!r})
from control import Control
control = Control(deadline=1.5)
control.start()
def train(steps=400, pause=0.02, save=True):
    control.emit("begin", total=steps, epochs=1, pid=os.getpid(), engine="fake", versions={{}})
    for step in range(1, steps + 1):
        time.sleep(pause)
        print(f"steps: {{step}}", file=sys.stderr, flush=True)
        control.emit("step", step=step, epoch=1, loss=0.5, lr=1e-4, seconds=pause, memory=None)
        if control.take_save():
            control.emit("save", step=step, path="asked")
        if control.stop_requested:
            if save:
                open("saved", "w").write(control.stop_requested)
                control.emit("stopped", step=step, reason=control.stop_requested)
                sys.exit(0)
    control.emit("end", step=steps, path="x.safetensors")
"""

LAUNCHER = """
import subprocess, sys
command = sys.argv[1:]
process = subprocess.Popen(command)
process.wait()
if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
"""


class Bench:
    """Starts fake trainers in a folder and keeps what launch tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.log = folder / "log.txt"
        self.metrics = folder / "metrics.jsonl"

    def script(self, code: str, name: str = "trainer.py") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(code))
        return path

    def command(self, code: str, *, launcher: bool = False, obeys_control: bool = True) -> Command:
        python = (sys.executable, "-I", "-S")
        argv = (*python, str(self.script(code)))
        if launcher:
            argv = (*python, str(self.script(LAUNCHER, "launcher.py")), *argv)
        return Command(argv=argv, env=dict(os.environ), cwd=self.folder, obeys_control=obeys_control)

    def run(
        self,
        command: Command,
        *,
        act: Callable[[Event], None] = lambda _event: None,
        orders: Callable[[], launch_module.Order | None] | None = None,
    ) -> Exit:
        def see(event: Event) -> None:
            self.events.append(event)
            act(event)

        return launch(command, log=self.log, metrics=self.metrics, on_event=see, orders=orders)

    def left(self) -> list[psutil.Process]:
        """Processes that were started by a script of this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = str(self.folder) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if ours and process.pid != os.getpid():
                found.append(process)
        return found

    def wait_until_gone(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.left():
            assert time.monotonic() < end, self.left()
            time.sleep(0.05)

    def wait_for(self, name: str, seconds: float = 10) -> str:
        end = time.monotonic() + seconds
        while not (self.folder / name).exists() or not (self.folder / name).read_text():
            assert time.monotonic() < end, name
            time.sleep(0.02)
        return (self.folder / name).read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    left = bench.left()
    for process in left:
        process.kill()
    assert not left, left


def on(kind: type[Event], do: Callable[[], object]) -> Callable[[Event], None]:
    """Do it at the first event of a kind."""
    done = []

    def act(event: Event) -> None:
        if isinstance(event, kind) and not done:
            done.append(event)
            do()

    return act


def test_log_metrics_and_events(bench: Bench) -> None:
    code = ENTRY + (
        "print('loading', flush=True)\n"
        "os.write(2, b'\\rsteps:  50%|#| 1/2 [00:01<00:01,  1.00s/it, avr_loss=0.5]')\n"
        "train(2, 0)\n"
        "os.write(1, b'no end of line')\n"
    )
    exit_ = bench.run(bench.command(code, launcher=True))
    assert exit_.returncode == 0
    assert exit_.signal is None
    assert exit_.reason == "ended"
    assert exit_.last_step == 2
    assert exit_.peak_memory >= 0
    assert exit_.tail.splitlines() == ["loading", "steps: 1", "steps: 2", "no end of line"]
    kinds = [type(event).__name__ for event in bench.events]
    assert kinds == ["LogLine", "Bar", "Begin", "LogLine", "Step", "LogLine", "Step", "End", "LogLine"]
    log = bench.log.read_bytes()
    assert (
        log == b"loading\n\rsteps:  50%|#| 1/2 [00:01<00:01,  1.00s/it, avr_loss=0.5]steps: 1\nsteps: 2\nno end of line"
    )
    metrics = [json.loads(line) for line in bench.metrics.read_text().splitlines()]
    assert [line["event"] for line in metrics] == ["begin", "step", "step", "end"]
    assert all(abs(line["time"] - time.time()) < 60 for line in metrics)


def test_metrics_are_appended(bench: Bench) -> None:
    bench.metrics.write_text("{}\n")
    bench.run(bench.command(ENTRY + "train(1, 0)"))
    assert bench.metrics.read_text().startswith("{}\n{")


@pytest.mark.parametrize("launcher", [False, True])
@pytest.mark.parametrize(
    ("end", "code", "name", "kind"),
    [
        ("sys.exit(3)", 3, None, "unknown"),
        ("os.kill(os.getpid(), 9)", -9, "SIGKILL", "killed"),
        ("os.kill(os.getpid(), 11)", -11, "SIGSEGV", "crash"),
        ("control.emit('nonfinite', step=7, what='loss'); sys.exit(65)", 65, None, "nonfinite"),
    ],
)
def test_exit_codes(bench: Bench, launcher: bool, end: str, code: int, name: str | None, kind: str) -> None:
    exit_ = bench.run(bench.command(f"{ENTRY}\n{end}", launcher=launcher))
    assert exit_.returncode == code
    assert exit_.signal == name
    assert exit_.reason == ("nonfinite" if code == 65 else "ended")
    assert diagnose(exit_, exit_.tail).kind == kind


def test_memory_really_runs_out(bench: Bench) -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
        held = [bytes(1 << 27) for _ in range(9)]
    """
    exit_ = bench.run(bench.command(code, launcher=True))
    assert exit_.returncode == 1
    found = diagnose(exit_, exit_.tail)
    assert found.kind == "oom"
    assert found.what == "MemoryError"


def test_peak_memory_counts_the_tree(bench: Bench) -> None:
    exit_ = bench.run(bench.command("import time\nx = b'x' * 200_000_000\ntime.sleep(1.5)", launcher=True))
    assert 200e6 < exit_.peak_memory < 300e6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_saves_and_stops(bench: Bench, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    exit_ = bench.run(
        bench.command(ENTRY + "train()", launcher=True), act=on(Step, lambda: os.kill(os.getpid(), number))
    )
    assert exit_.returncode == 0
    assert exit_.reason == "stopped"
    assert (bench.folder / "saved").read_text() == "control"
    assert any(isinstance(event, Stopped) for event in bench.events)
    assert any(isinstance(event, Notice) for event in bench.events)
    assert signal.getsignal(number) == before


def test_a_second_signal_kills(bench: Bench) -> None:
    """The trainer ignores the first."""
    commands = bench.command(ENTRY + "train(save=False)", launcher=True)
    timer = threading.Timer(0.8, lambda: os.kill(os.getpid(), signal.SIGINT))

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        timer.start()

    exit_ = bench.run(commands, act=on(Step, interrupt))
    assert exit_.reason == "killed"
    assert exit_.signal == "SIGKILL"
    assert exit_.seconds < 4
    assert not bench.left()


@pytest.mark.parametrize(
    ("numbers", "gap"), [((signal.SIGINT, signal.SIGTERM), 0.1), ((signal.SIGHUP, signal.SIGHUP), 0.7)]
)
def test_what_counts_as_one_request(bench: Bench, numbers: tuple[int, int], gap: float) -> None:
    """A terminal and a wrapper both deliver; a terminal that closes sends two hangups. Saving takes a second."""
    code = ENTRY.replace('open("saved"', 'time.sleep(1.0); open("saved"') + "train()"
    timer = threading.Timer(gap, lambda: os.kill(os.getpid(), numbers[1]))

    def interrupt() -> None:
        os.kill(os.getpid(), numbers[0])
        timer.start()

    assert bench.run(bench.command(code), act=on(Step, interrupt)).reason == "stopped"
    assert (bench.folder / "saved").exists()


def test_orders_from_a_queue(bench: Bench) -> None:
    """In another thread, where no signals are handled."""
    orders: list[launch_module.Order | None] = [None, "save", None, "stop"]
    result: list[Exit] = []
    command = bench.command(ENTRY + "train()")
    thread = threading.Thread(
        target=lambda: result.append(bench.run(command, orders=lambda: orders.pop(0) if orders else None))
    )
    thread.start()
    thread.join(10)
    assert result[0].reason == "stopped"
    assert [event.path for event in bench.events if isinstance(event, Save)] == ["asked"]


def test_a_service_manager_ends_everything_at_once(bench: Bench) -> None:
    """SIGTERM kills the launcher; the trainer below it saves all the same."""

    def terminate() -> None:
        begin = next(event for event in bench.events if isinstance(event, Begin))
        os.killpg(os.getpgid(begin.pid), signal.SIGTERM)

    exit_ = bench.run(bench.command(ENTRY + "train()", launcher=True), act=on(Step, terminate))
    assert exit_.reason == "stopped"
    assert (bench.folder / "saved").read_text() == "signal"


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


def test_output_closed_long_before_the_end(bench: Bench) -> None:
    exit_ = bench.run(bench.command("import os, time\nos.close(1); os.close(2); time.sleep(0.5); os._exit(4)"))
    assert exit_.returncode == 4


def test_an_error_in_the_display_leaves_nothing(bench: Bench) -> None:
    def fail() -> None:
        raise ValueError("display")

    with pytest.raises(ValueError, match="display"):
        bench.run(bench.command(ENTRY + "train(save=False)", launcher=True), act=on(Step, fail))
    assert not bench.left()


BARS = "".join(
    f"os.write(2, '\\rsteps:  {step * 10}%|█| {step}/10 [00:01<00:01,  1.00s/it, avr_loss={{loss{step}}}]'.encode())\n"
    for step in (1, 2, 2, 3)
)


def test_a_plain_script_is_read_from_its_bar(bench: Bench) -> None:
    code = "import os\n" + BARS.format(loss1=0.5, loss2=0.4, loss3=0.3)
    exit_ = bench.run(bench.command(code, obeys_control=False))
    assert (exit_.returncode, exit_.last_step) == (0, 3)
    metrics = [json.loads(line) for line in bench.metrics.read_text().splitlines()]
    assert [(line["event"], line["step"], line["loss"]) for line in metrics] == [
        ("step", 1, 0.5),
        ("step", 2, 0.4),
        ("step", 3, 0.3),
    ]
    assert sum(isinstance(event, Bar) for event in bench.events) == 4


def test_a_plain_script_is_ended_when_its_loss_is_no_number(bench: Bench) -> None:
    code = "import os, time\n" + BARS.format(loss1=0.5, loss2="nan", loss3="nan") + "time.sleep(60)"
    exit_ = bench.run(bench.command(code, launcher=True, obeys_control=False))
    assert exit_.reason == "nonfinite"
    assert exit_.seconds < 3
    assert diagnose(exit_, exit_.tail).kind == "nonfinite"


@pytest.mark.parametrize("code", [0, 3, -9, -15])
def test_the_guard_of_plain_scripts_is_transparent(bench: Bench, code: int) -> None:
    end = f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"
    assert bench.run(bench.command(f"import os, sys\n{end}", obeys_control=False)).returncode == code


def test_a_plain_script_is_stopped_with_its_group(bench: Bench) -> None:
    code = "import time\nprint('x', flush=True)\ntime.sleep(60)"
    exit_ = bench.run(
        bench.command(code, launcher=True, obeys_control=False),
        act=on(LogLine, lambda: os.kill(os.getpid(), signal.SIGINT)),
    )
    assert exit_.reason == "stopped"
    assert exit_.seconds < 3


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_does_not_end_the_run(bench: Bench) -> None:
    bench.log = bench.metrics = Path("/dev/full")
    exit_ = bench.run(bench.command(ENTRY + "train(3, 0)"))
    assert exit_.returncode == 0
    assert exit_.last_step == 3
    notices = [event.text for event in bench.events if isinstance(event, Notice)]
    assert len(notices) == 2  # the log's and the metrics', once each
    assert "No space left on device" in notices[0]


def test_bad_starts(bench: Bench) -> None:
    good = bench.command("")
    with pytest.raises(EngineError, match="is not a folder"):
        bench.run(Command(argv=good.argv, env=good.env, cwd=bench.folder / "none"))
    with pytest.raises(EngineError, match="no program /none/python"):
        bench.run(Command(argv=("/none/python",), env=good.env, cwd=bench.folder))
    script = bench.script("#!/none/interpreter\n", "broken")
    script.chmod(0o755)
    with pytest.raises(EngineError, match="cannot start"):
        bench.run(Command(argv=(str(script),), env=good.env, cwd=bench.folder))
    bench.log = bench.folder / "none" / "log.txt"
    with pytest.raises(StorageError, match=r"cannot write .*log\.txt"):
        bench.run(good)


def test_shell_line_does_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_ASCII", "1")
    folder = bench.folder / "it's here"
    folder.mkdir()
    show = 'import os, sys; print(os.getcwd(), os.environ.get("TQDM_ASCII"), os.environ["NEW"], sys.argv[1:])'
    env = {name: value for name, value in os.environ.items() if name != "TQDM_ASCII"} | {"NEW": "a b\n$c"}
    command = Command(argv=(sys.executable, "-c", show, "x 'y'", "*"), env=env, cwd=folder)
    done = subprocess.run(["sh", "-c", command.shell_line()], capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder} None a b\n$c [\"x 'y'\", '*']\n"


def test_output_at_full_speed(bench: Bench) -> None:
    """200,000 lines and 2,000 events: what launch costs against /dev/null."""
    code = ENTRY + (
        "line = 'INFO something worth a line of log ' * 2\n"
        "for step in range(1, 2001):\n"
        "    sys.stdout.write((line + '\\n') * 100); sys.stdout.flush()\n"
        "    control.emit('step', step=step, epoch=1, loss=0.1, lr=1.0, seconds=0.1, memory=None)\n"
    )
    command = bench.command(code)
    start = time.monotonic()
    subprocess.run(command.argv, cwd=command.cwd, stdout=subprocess.DEVNULL, check=True)
    bare = time.monotonic() - start
    count = [0, 0]

    def see(event: Event) -> None:
        count[isinstance(event, Emitted)] += 1

    exit_ = launch(command, log=bench.log, metrics=bench.metrics, on_event=see)
    print(f"\n/dev/null {bare:.2f} s, launch {exit_.seconds:.2f} s, log {bench.log.stat().st_size:,} bytes")
    assert count == [200_000, 2000]
    assert exit_.seconds < bare + 2.5
    assert not any(isinstance(event, NonFinite) for event in bench.events)
