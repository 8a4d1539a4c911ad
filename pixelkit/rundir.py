"""A run's directory: what it holds, its manifest, its states."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import psutil

from pixelkit.errors import StorageError, did_you_mean
from pixelkit.paths import user_path, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

State = Literal["planned", "preparing", "training", "shipping", "done", "failed", "interrupted"]
MANIFEST = "manifest.json"


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
        """Whether the process that owns the run is alive and at work on it."""
        manifest = self.read_manifest()
        owner = manifest.get("owner", {})
        try:
            alive = psutil.Process(owner["pid"]).create_time() == owner["started"]
        except (KeyError, psutil.Error):
            return False
        return (
            alive
            and manifest.get("state") in {"planned", "preparing", "training", "shipping"}
            and owner["pid"] != os.getpid()
        )

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The events of metrics.jsonl in order; a line that a crash cut off is left out."""
        if self.metrics.is_file():
            for line in self.metrics.read_text("utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event


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
        for number in range(1, 1000):
            path = root / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as error:
        raise StorageError(
            f"cannot create a run in {root}: {error.strerror}", hint="--runs DIR puts runs elsewhere"
        ) from error
    run = RunDir(path=path.resolve())
    write_atomically(run.preset, preset_text)
    write_atomically(run.resolved, resolved)
    write_atomically(run.plan, json.dumps(plan, indent=2, default=str) + "\n")
    run.enter("planned", name=name, created=now())
    return run


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
