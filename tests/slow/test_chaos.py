"""kill -9 at random moments, `pixelkit resume` after each: what is shipped in the end is what an undisturbed run ships.

PIXELKIT_CHAOS is the number of kills (default 3), PIXELKIT_CHAOS_SEED the moments.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from safetensors import safe_open

from pixelkit.rundir import RunDir, list_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("PIXELKIT_CHAOS", "3"))
SEED = int(os.environ.get("PIXELKIT_CHAOS_SEED", str(random.SystemRandom().randrange(10_000))))
SETTINGS = (
    'engine="diffusers"', "train.steps=8", "train.save_every_steps=2", "sample.steps=2",
    'sample.prompts=["{trigger}, a potion"]', 'export.formats=["kohya", "peft", "diffusers", "catsith"]',
)  # fmt: skip
PHASES = ("start", "preparing", "training", "shipping")
VICTIMS = ("pixelkit", "everything", "trainer")
# What tells of times, and what follows from them: hashes over whole files, and their sizes, as times are of many lengths.
TIMES = (
    "_at", "date", "hash", "session", "seconds", "sha256", "created", "createdat", "modified", "autov2", "autov3",
    "bytes", "size", "sizekb",
)  # fmt: skip
LIMIT = 600


class Chaos:
    """Runs in a folder, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "runs"
        self.sprites = folder / "sprites"
        self.sprites.mkdir()
        for picture in sorted((ROOT / "presets" / "quickstart").glob("*.png"))[:8]:
            for file in (picture, picture.with_suffix(".txt")):
                shutil.copy(file, self.sprites)
        self.environment = {key: value for key, value in os.environ.items() if key != "PIXELKIT_SD_SCRIPTS"}
        self.environment["XDG_CONFIG_HOME"] = str(folder / "settings")
        self.environment["CHAOS_TEST"] = str(self.root)
        self.log = folder / "log.txt"

    def begin(self) -> subprocess.Popen[bytes]:
        """Go on with the run, or start one where there is none yet."""
        if run := self.find_run():
            return self._start("resume", run.path)
        settings = [part for value in (*SETTINGS, f'dataset.path="{self.sprites}"') for part in ("--set", value)]
        return self._start("run", "quickstart", *settings)

    def _start(self, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pixelkit", *map(str, arguments), "--runs", str(self.root)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def find_run(self) -> RunDir | None:
        return next(iter(list_runs(self.root)), None)

    def state(self) -> str:
        run = self.find_run()
        return str(run.read_manifest()["state"]) if run else "start"

    def finish(self) -> RunDir:
        assert self.begin().wait(LIMIT) == 0, self.log.read_text()[-4000:]
        run = self.find_run()
        assert run is not None
        return run

    def processes(self) -> list[psutil.Process]:
        """All that was started for these runs and is alive: pixelkit, trainers, what loads exports again."""
        found = []
        for process in psutil.process_iter():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get("CHAOS_TEST") == str(self.root):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def kill(self, victim: str, pixelkit: subprocess.Popen[bytes]) -> None:
        for process in self.processes():
            if victim == "everything" or (process.pid == pixelkit.pid) == (victim == "pixelkit"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)

    def left(self) -> list[str]:
        """Processes and temporary files that should not be there any more."""
        files = [path for path in self.root.rglob("*") if path.name.startswith(".") or ".part" in path.name]
        return [str(one) for one in (*self.processes(), *files)]


@pytest.fixture
def chaos(tmp_path: Path) -> Iterator[Chaos]:
    here = Chaos(tmp_path)
    yield here
    for process in here.processes():
        process.kill()


def test_whatever_is_killed_the_shipment_is_the_same(chaos: Chaos) -> None:
    chance = random.Random(SEED)
    print(f"PIXELKIT_CHAOS={KILLS} PIXELKIT_CHAOS_SEED={SEED}", flush=True)
    run = chaos.finish()
    expected, lasted = fingerprint(run.export), measure_phases(run)
    shutil.rmtree(run.path)
    for number in range(KILLS):
        wanted = PHASES[number % len(PHASES)] if len(PHASES) <= KILLS else chance.choice(PHASES)
        victim = VICTIMS[number % len(VICTIMS)]
        pixelkit = chaos.begin()
        end = time.monotonic() + LIMIT
        while pixelkit.poll() is None and wanted not in {"start", chaos.state()}:
            assert time.monotonic() < end, chaos.log.read_text()[-4000:]
            time.sleep(0.01)
        delay = chance.uniform(0, lasted[wanted])
        try:
            pixelkit.wait(delay)
        except subprocess.TimeoutExpired:
            if victim == "trainer" and chaos.state() != "training":
                victim = "everything"  # where what loads the exports is killed alone, the sidecar rightly says so
            print(f"kill {number}: {victim} {delay:.2f} s into {wanted}; state {chaos.state()}", flush=True)
            chaos.kill(victim, pixelkit)
        code = pixelkit.wait(LIMIT)
        assert code in {0, 7, 8, -signal.SIGKILL}, (code, chaos.log.read_text()[-4000:])
        if chaos.state() == "done":
            compare(chaos, expected)
            print("shipped", flush=True)
    if chaos.find_run() or not KILLS:
        chaos.finish()
        compare(chaos, expected)


def compare(chaos: Chaos, expected: dict[str, str]) -> None:
    run = chaos.find_run()
    assert run is not None
    assert fingerprint(run.export) == expected
    steps = [event["step"] for event in run.read_metrics() if event["event"] == "step"]
    assert steps == list(range(1, 9)), steps
    assert not chaos.left()
    shutil.rmtree(run.path)


def measure_phases(run: RunDir) -> dict[str, float]:
    """Seconds that an undisturbed run was in each state; from its start to the first about as long as to prepare."""
    from datetime import datetime

    history = run.read_manifest()["history"]
    times = [(entry["state"], datetime.fromisoformat(entry["time"]).timestamp()) for entry in history]
    found = {state: then - at + 1 for (state, at), (_, then) in itertools.pairwise(times)}
    return {"start": 4.0, "preparing": 1.0, **{phase: found[phase] for phase in ("training", "shipping")}}


def fingerprint(export: Path) -> dict[str, str]:
    """Each file of a shipment -> a hash of all of it that does not tell of the time."""
    return {str(path.relative_to(export)): _hash(path) for path in sorted(export.rglob("*")) if path.is_file()}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
            digest.update(json.dumps(_timeless(file.metadata() or {}), sort_keys=True).encode())
    elif path.suffix in {".json", ".info"}:
        digest.update(json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True).encode())
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if not key.lower().endswith(TIMES)}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
