"""A run's directory: what it holds, its manifest, its states."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import psutil

from pixelkit.errors import StorageError, did_you_mean
from pixelkit.locks import try_lock
from pixelkit.paths import user_path, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

State = Literal["planned", "preparing", "training", "shipping", "done", "failed", "interrupted"]
Order = Literal["stop", "save", "sample"]
ACTIVE: Final = frozenset({"planned", "preparing", "training", "shipping"})
MANIFEST = "manifest.json"
LOCK_PATIENCE: Final = 0.5
"""Seconds to try for a run's lock: who only looks whether it is held has it for a moment."""
# What writing to a temporary name leaves where it is killed before the rename: here, in the engines, in the exports.
_LEFTOVER = re.compile(r"\.(.+\.[a-z0-9_]{8}|.+\.(tmp|new)|.+\.part(\.\w+)?)|.+\.part\.safetensors|.+-state\.part")
_STATE_STEP = re.compile(r"-step(\d+)-state")


@dataclass(frozen=True, kw_only=True)
class RunDir:
    """runs/NAME-TIMESTAMP: every file of a run has its place here."""

    path: Path

    @property
    def preset(self) -> Path:
        """The preset as the artist wrote it."""
        return self.path / "preset.toml"

    @property
    def resolved(self) -> Path:
        """The preset that stands alone: nothing extended, overrides in, absolute paths, engine and hardware named."""
        return self.path / "resolved.toml"

    @property
    def plan(self) -> Path:
        """The plan: every value final, with its source."""
        return self.path / "plan.json"

    @property
    def config(self) -> Path:
        """The rendered files that the engine reads."""
        return self.path / "config"

    @property
    def command(self) -> Path:
        """The command line, to be pasted into a shell."""
        return self.path / "command.txt"

    @property
    def log(self) -> Path:
        """Everything that the trainer printed."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: steps, samples, saves."""
        return self.path / "metrics.jsonl"

    @property
    def dataset(self) -> Path:
        """The prepared sprites and captions."""
        return self.path / "dataset"

    @property
    def output(self) -> Path:
        """What the trainer writes: checkpoints, states, samples."""
        return self.path / "output"

    def model(self, name: str) -> Path:
        """The trainer's final file for an output name."""
        return self.output / f"{name}.safetensors"

    @property
    def export(self) -> Path:
        """What is shipped."""
        return self.path / "export"

    @property
    def manifest(self) -> Path:
        """States, hashes, versions, times: the record of the run."""
        return self.path / MANIFEST

    @property
    def lock(self) -> Path:
        """Locked by the process that is at work on the run, for as long as it lives."""
        return self.path / "lock"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Own the run while the block lasts; orders from before are forgotten. Raises StorageError where another process does."""
        try:
            stream = self.lock.open("a+b")
        except OSError as error:
            raise StorageError(f"cannot write {self.lock}: {error.strerror}") from error
        with stream:
            end = time.monotonic() + LOCK_PATIENCE
            while not try_lock(stream, optional=True):
                if time.monotonic() > end:
                    pid = self.read_manifest().get("owner", {}).get("pid", "unknown")
                    raise StorageError(f"{self.path.name} is at work (process {pid})", hint="wait for it, or stop it")
                time.sleep(LOCK_PATIENCE / 10)
            while self.take_order():
                pass
            yield

    def remove_leftovers(self) -> None:
        """Remove temporary files of a process that was killed. Only for who holds the run."""
        for folder, folders, files in os.walk(self.path):
            for name in filter(_LEFTOVER.fullmatch, files):
                Path(folder, name).unlink(missing_ok=True)
            for name in filter(_LEFTOVER.fullmatch, tuple(folders)):
                shutil.rmtree(Path(folder, name), ignore_errors=True)
                folders.remove(name)

    def leave_order(self, word: Order) -> None:
        """Ask the process at work on the run to save and stop, to save, or to sample; it looks several times a second.

        Ignored where no process is at work. Raises StorageError where the run's directory cannot be written.
        """
        if word not in get_args(Order):
            raise ValueError(word)
        write_atomically(self._order(word), "")

    def take_order(self) -> Order | None:
        """The next order that was left, "stop" before all others; it is taken away."""
        for word in get_args(Order):
            try:
                self._order(word).unlink()
            except OSError:
                continue
            taken: Order = word
            return taken
        return None

    def _order(self, word: str) -> Path:
        return self.path / f"{word}.order"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest. Raises StorageError if it is missing or broken."""
        try:
            content: dict[str, Any] = json.loads(self.manifest.read_text("utf-8"))
        except OSError as error:
            raise StorageError(f"cannot read {self.manifest}: {error.strerror}") from error
        except ValueError as error:
            raise StorageError(f"{self.manifest} is broken: {error}") from error
        if not isinstance(content, dict):
            raise StorageError(f"{self.manifest} is broken: it holds no table")
        return content

    def update(self, **fields: object) -> None:
        """Set fields of the manifest, atomically."""
        content = self.read_manifest() if self.manifest.exists() else {}
        write_atomically(self.manifest, json.dumps({**content, **fields}, indent=2, default=str) + "\n")

    def enter(self, state: State, **fields: object) -> None:
        """Enter a state: the manifest keeps each state's time (UTC) and the process that owns the run."""
        content = self.read_manifest() if self.manifest.exists() else {}
        history = [*content.get("history", []), {"state": state, "time": now()}]
        owner = {"pid": os.getpid(), "started": psutil.Process().create_time()}
        self.update(state=state, history=history, owner=owner, **fields)

    def is_active(self) -> bool:
        """Whether a process is at work on the run."""
        manifest = self.read_manifest()
        if manifest.get("state") not in ACTIVE:
            return False
        held = _is_locked(self.lock)
        return _is_alive(manifest.get("owner", {})) if held is None else held

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The events of metrics.jsonl in order, as those of one run: what a resumed or repeated training did again is left out.

        After a "begin" behind step s, events of later steps from before it do not count; behind step 0 nothing from before
        does. A line that a crash cut off is left out.
        """
        if not self.metrics.is_file():
            return
        limits = _find_limits(self.metrics)
        session = 0
        with self.metrics.open("rb") as stream:
            for line in stream:
                event = _parse(line)
                if event is None:
                    continue
                session += event.get("event") == "begin"
                step = event.get("step")
                if limits[session] > 0 and not (isinstance(step, int) and step > limits[session]):
                    yield event

    def last_state(self) -> tuple[Path, int] | None:
        """The newest state folder that was written whole, and its step.

        Whether metrics.jsonl tells of it does not matter: a trainer still saves when pixelkit was killed above it.
        """
        told = {Path(str(event.get("path"))).name: event.get("step") for event in self.read_metrics()}
        found = [
            (step, path)
            for path in self.output.glob("*-state")
            if path.is_dir() and (step := _step_of(path, told.get(path.name))) is not None
        ]
        return max(found)[::-1] if found else None

    def last_weights(self, name: str) -> tuple[Path, int] | None:
        """The newest weights file that was saved on the way, and its step."""
        start = f"{name}-step"
        found = [
            (int(digits), path)
            for path in self.output.glob("*.safetensors")
            if path.stem.startswith(start) and (digits := path.stem.removeprefix(start)).isdigit()
        ]
        return max(found)[::-1] if found else None


def _find_limits(metrics: Path) -> list[float]:
    """For the events before each "begin", and those after the last: up to which step they count; 0 means none of them."""
    starts: list[float | None] = []
    with metrics.open("rb") as stream:
        for line in stream:
            is_begin = b'"begin"' in line
            if not is_begin and (not starts or starts[-1] is not None):
                continue
            event = _parse(line) or {}
            step = event.get("step")
            if event.get("event") == "begin":
                starts.append(step if isinstance(step, int) else None)
            elif event.get("event") == "step" and isinstance(step, int) and starts:
                starts[-1] = step - 1  # a trainer that does not say where it begins
    limits = [float("inf")]
    for start in reversed(starts):
        limits.insert(0, min(limits[0], float("inf") if start is None else start))
    return limits


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _step_of(state: Path, told: object) -> int | None:
    """From the folder's name, from what the engine wrote into it, or from what it told."""
    if named := _STATE_STEP.search(state.name):
        return int(named[1])
    for file, key in (("train_state.json", "current_step"), ("trainer.json", "step")):
        try:
            return int(json.loads((state / file).read_text("utf-8"))[key])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return told if isinstance(told, int) else None


def _is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock; None where there is none to look at."""
    try:
        with path.open("rb") as stream:
            return not try_lock(stream, shared=True, optional=True)
    except OSError:
        return None


def _is_alive(owner: Mapping[str, Any]) -> bool:
    try:
        alive = bool(psutil.Process(owner["pid"]).create_time() == owner["started"])
    except (KeyError, psutil.Error):
        return False
    return alive and int(owner["pid"]) != os.getpid()


def now() -> str:
    """The time in UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def create_run(root: Path, name: str, *, preset_text: str, plan: Mapping[str, object], resolved: str = "") -> RunDir:
    """A new run directory in state "planned". Two runs of one name in one second get different directories.

    Raises StorageError if `root` cannot be written.
    """
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_unborn(root)
        part = root / f".{name}-{stamp}.{platform.node()}-{os.getpid()}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    except OSError as error:
        raise StorageError(
            f"cannot create a run in {root}: {error.strerror}", hint="--runs DIR puts runs elsewhere"
        ) from error
    begun = RunDir(path=part)
    try:
        write_atomically(begun.preset, preset_text)
        write_atomically(begun.resolved, resolved)
        write_atomically(begun.plan, json.dumps(plan, indent=2, default=str) + "\n")
        begun.enter("planned", name=name, created=now())
        return RunDir(path=_settle(part, root / f"{name}-{stamp}").resolve())
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _settle(part: Path, path: Path) -> Path:
    """A directory that is complete gets its name, or the next one that is free."""
    for number in range(1, 1000):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not free.exists():
            try:
                return part.rename(free)
            except OSError:  # another was quicker
                if not free.exists():
                    raise
    raise StorageError(f"{path.parent} holds a thousand runs of this second")


def _remove_unborn(root: Path) -> None:
    """What processes of this machine left that were killed while they created a run."""
    for part in root.glob(f".*.{platform.node()}-*.part"):
        pid = part.name.removesuffix(".part").rpartition("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(part, ignore_errors=True)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's directory."""
    return (folder / MANIFEST).is_file() and (folder / "resolved.toml").is_file()


def list_runs(root: Path) -> Iterator[RunDir]:
    """The run directories below `root`, oldest first."""
    if root.is_dir():
        found = [path.parent for path in root.glob(f"*/{MANIFEST}")]
        yield from (RunDir(path=path.resolve()) for path in sorted(found, key=_creation))


def _creation(path: Path) -> float:
    plan = path / "plan.json"  # written once
    return plan.stat().st_mtime if plan.is_file() else 0.0


def find_run(root: Path, name: str) -> RunDir:
    """A run by its directory, its directory's name, or `latest`. Raises StorageError with the nearest name."""
    direct = user_path(name)
    for path in (direct, root / name):
        if (path / MANIFEST).is_file():
            return RunDir(path=path.resolve())
    runs = list(list_runs(root))
    if name == "latest" and runs:
        return runs[-1]
    hint = did_you_mean(name, [run.path.name for run in runs]) or f"`pixelkit runs list --runs {root}` shows all"
    raise StorageError(f"{name}: no run of that name in {root}", hint=hint)
