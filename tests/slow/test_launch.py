"""Real processes: small fake trainers, watched, stopped and killed by launch, and pixelkit killed above them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_trainer import ENTRY, Bench, on, open_bench

from pixelkit.diagnosis import diagnose
from pixelkit.errors import EngineError, StorageError
from pixelkit.launch import Exit, launch
from pixelkit.process import Command
from pixelkit.progress import Bar, Begin, Emitted, Event, LogLine, NonFinite, Notice, Save, Step, Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pixelkit import launch as launch_module

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from open_bench(tmp_path)


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


def test_output_closed_long_before_the_end(bench: Bench) -> None:
    exit_ = bench.run(bench.command("import os, time\nos.close(1); os.close(2); time.sleep(0.5); os._exit(4)"))
    assert exit_.returncode == 4


BARS = "".join(
    f"os.write(2, '\\rsteps:  {step * 10}%|█| {step}/10 [00:01<00:01,  1.00s/it, avr_loss={{loss{step}}}]'.encode())\n"
    for step in (1, 2, 2, 3)
)


def test_a_plain_script_is_read_from_its_bar(bench: Bench) -> None:
    code = "import os\n" + BARS.format(loss1=0.5, loss2=0.4, loss3=0.3)
    exit_ = bench.run(bench.command(code, obeys_control=False))
    assert (exit_.returncode, exit_.last_step) == (0, 3)
    metrics = [json.loads(line) for line in bench.metrics.read_text().splitlines()]
    assert [(line["event"], line["step"], line.get("loss")) for line in metrics] == [
        ("begin", 0, None),
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
