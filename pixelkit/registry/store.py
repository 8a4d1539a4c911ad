"""The registry: a folder with production/, staging/, archive/ and current/, its index, and how both change together.

A change is noted in the index, done on disk, and noted as done, under one lock. If its process dies in between, the next
command ends it; if it fails, it is undone. The files alone say what there is: `verify --rebuild` makes the index from them.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import psutil

from pixelkit.errors import PresetError, StorageError, did_you_mean
from pixelkit.paths import read_settings, user_path
from pixelkit.registry.index import Change, Index, Stage
from pixelkit.registry.lock import hold_lock
from pixelkit.registry.names import parse_name
from pixelkit.registry.rollout import locate
from pixelkit.registry.steps import CURRENT, Move, Point, Step, Write, do_all, undo_all
from pixelkit.rundir import now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pixelkit.registry.index import Entry
    from pixelkit.registry.names import ModelName
    from pixelkit.registry.rollout import Deployment

STAGES: tuple[Stage, ...] = get_args(Stage)
INCOMING = ".incoming"
METADATA = ".pixelkit.json"
_TEMPORARY = re.compile(r"\..+\.(json\.\w{8}|safetensors\.\d+\.tmp)")
_REBUILD = "`pixelkit models verify --rebuild` makes the index from the files"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The registry in a folder. Nothing is opened or made before it is needed."""

    folder: Path

    @property
    def index_file(self) -> Path:
        """The SQLite file."""
        return self.folder / "registry.sqlite"

    @property
    def rules_file(self) -> Path:
        """What a model must meet to reach production; need not be there."""
        return self.folder / "rules.toml"

    def find_link(self, style: str) -> Path:
        """`current/<style>.safetensors`."""
        return self.folder / CURRENT / f"{style}.safetensors"

    def find_file(self, entry: Entry) -> Path:
        """A model's file."""
        return self.folder / entry.path

    def find_metadata(self, entry: Entry) -> Path:
        """A model's metadata, beside it."""
        return self.folder / entry.stage / f"{entry.name}{METADATA}"

    def find_beside(self, entry: Entry) -> Path:
        """The folder of what came with a model: other formats, sidecars, pictures."""
        return self.folder / entry.stage / str(entry.name)

    @contextmanager
    def reading(self) -> Iterator[Index]:
        """The index, to read from; a change that a crash cut off is ended first. Raises StorageError."""
        if not self.index_file.is_file():
            if models := self.list_files():
                count = f"{len(models)} model{'s'[: len(models) > 1]}"
                raise StorageError(f"{self.folder} holds {count}, but no index ({self.index_file.name})", hint=_REBUILD)
            raise StorageError(
                f"there is no registry in {self.folder}",
                hint="`pixelkit models add RUN` starts one; --registry DIR or the setting `registry` names another",
            )
        with contextlib.closing(Index(self.index_file)) as index:
            if index.pending():
                with contextlib.suppress(StorageError), self._locked("read", wait=0):
                    self.recover(index)
            yield index

    @contextmanager
    def changing(self, what: str) -> Iterator[Index]:
        """The index, with the registry's one lock. Makes the registry where there is none. Raises StorageError."""
        try:
            for name in (*STAGES, CURRENT):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {error.filename}: {error.strerror}", hint="--registry DIR") from error
        if not self.index_file.is_file() and self.list_files():
            raise StorageError(f"{self.folder} holds models, but no index ({self.index_file.name})", hint=_REBUILD)
        with self._locked(what), contextlib.closing(Index(self.index_file)) as index:
            self.recover(index)
            yield index

    @contextmanager
    def _locked(self, what: str, **options: float) -> Iterator[None]:
        with hold_lock(self.folder / ".lock", f"`models {what}` by {who()}", **options):
            yield

    def recover(self, index: Index) -> Change | None:
        """End what a crash cut off, or take it back where it cannot be ended. Raises StorageError where neither goes."""
        change = index.pending()
        if change is None:
            return None
        for name in (*STAGES, CURRENT):
            for left in (self.folder / name).glob(".*"):  # all writing here is under the lock: nobody else's
                if _TEMPORARY.fullmatch(left.name):
                    left.unlink(missing_ok=True)
        try:
            do_all(self.folder, change.steps)
        except StorageError as error:
            try:
                undo_all(self.folder, change.steps)
            except (OSError, StorageError):
                raise StorageError(
                    f"`{change.event} {change.model}` of {change.time} was interrupted and cannot be ended: {error.message}",
                    hint="put the file back, or let `pixelkit models verify --rebuild` go by the files as they are",
                ) from error
            index.drop()
            return None
        done = replace(change, details={**change.details, "ended_after_a_crash": now()})
        index.end(done)
        return done

    def find_interrupted(self) -> Change | None:
        """A change that was begun and, unless somebody is at it right now, cut off."""
        if not self.index_file.is_file():
            return None
        try:
            with contextlib.closing(Index(self.index_file)) as index:
                return index.pending()
        except StorageError:
            return None

    def perform(self, index: Index, change: Change) -> Change:
        """Do a change as a whole, or nothing of it. Raises StorageError."""
        for step in change.steps:
            if isinstance(step, Move) and (self.folder / step.target).exists():
                raise StorageError(
                    f"{self.folder / step.target} is in the way; the index does not know it",
                    hint="`pixelkit models verify` says what to do",
                )
        index.begin(change)
        try:
            do_all(self.folder, change.steps)
        except BaseException:
            undo_all(self.folder, change.steps)
            index.drop()
            raise
        index.end(change)
        return change

    def list_files(self) -> list[tuple[Stage, ModelName]]:
        """The models on disk, whatever the index says."""
        found = []
        for stage in STAGES:
            for path in sorted((self.folder / stage).glob("*.safetensors")):
                name = parse_name(path.name)
                if name and path.is_file() and not path.name.startswith("."):
                    found.append((stage, name))
        return found

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """A folder on the registry's disk for what is being copied in; it goes away afterwards."""
        try:
            self.folder.joinpath(INCOMING).mkdir(parents=True, exist_ok=True)
            self.clear_incoming()
            process = psutil.Process()
            mark = f"{platform.node() or 'host'}~{process.pid}~{process.create_time():.0f}~{os.urandom(4).hex()}"
            folder = self.folder / INCOMING / mark
            folder.mkdir()
        except OSError as error:
            raise StorageError(f"cannot write to {self.folder}: {error.strerror}", hint="--registry DIR") from error
        try:
            yield folder
        finally:
            if not _is_awaited(self, folder):
                shutil.rmtree(folder, ignore_errors=True)

    def clear_incoming(self) -> list[str]:
        """Remove what killed processes of this machine were copying in; names of what was removed."""
        removed = []
        for folder in self.folder.joinpath(INCOMING).glob("*~*~*~*"):
            host, pid, started, _ = folder.name.split("~")
            if host == (platform.node() or "host") and not _is_alive(pid, started) and not _is_awaited(self, folder):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return removed

    def move_steps(self, entry: Entry, target: Entry) -> list[Step]:
        """A model with all that belongs to it from one place and name to another; its new metadata."""
        old = self.find_metadata(entry)
        steps: list[Step] = [Move(source=entry.path, target=target.path)]
        if self.find_beside(entry).is_dir():
            steps.append(Move(source=f"{entry.stage}/{entry.name}", target=f"{target.stage}/{target.name}"))
        return [
            *steps,
            Write(path=self._relative(self.find_metadata(target)), new=as_text(target.metadata), old=None),
            Write(path=self._relative(old), new=None, old=_read_text(old)),
        ]

    def metadata_step(self, entry: Entry) -> Step:
        """New metadata for a model that stays where it is."""
        path = self.find_metadata(entry)
        return Write(path=self._relative(path), new=as_text(entry.metadata), old=_read_text(path))

    def deploy_steps(self, before: Deployment | None, after: Deployment) -> list[Step]:
        """The link first, then the file for other programs. Both lead to files that are there at every instant."""
        path = self.folder / CURRENT / f"{after.style}.json"
        steps: list[Step] = []
        new, old = (locate(one.current) if one and one.current else None for one in (after, before))
        if new != old:
            steps.append(Point(path=self._relative(self.find_link(after.style)), new=new, old=old))
        return [*steps, Write(path=self._relative(path), new=after.as_text(), old=_read_text(path))]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def open_registry(folder: Path | None = None) -> Registry:
    """--registry, else the user's setting `registry`, else ./models. Raises PresetError for the folder of base models."""
    settings = read_settings()
    chosen = (folder or user_path(settings.get("registry", "models"))).absolute()
    if (bases := settings.get("models", "")) and chosen.resolve() == Path(bases).resolve():
        raise PresetError(
            f"{chosen} is the folder of base models (the setting `models`); the registry needs one of its own",
            hint="`pixelkit config set registry DIR`, or --registry DIR",
        )
    return Registry(folder=chosen)


def find_model(entries: Sequence[Entry], text: str) -> Entry:
    """A model by its name, its file, or its path; a style alone is its only model. Raises PresetError."""
    name = parse_name(Path(text).name)
    for entry in entries:
        if entry.name == name:
            return entry
    of_style = [entry for entry in entries if entry.name.style == text]
    if len(of_style) == 1:
        return of_style[0]
    if of_style:
        raise PresetError(f"{text} has {len(of_style)} models: {', '.join(str(entry.name) for entry in of_style)}")
    known = [str(entry.name) for entry in entries]
    raise PresetError(f"{text}: no such model", hint=did_you_mean(text, known) or "`pixelkit models list` shows all")


def find_style(index: Index, style: str) -> list[Entry]:
    """The models of a style. Raises PresetError."""
    entries = index.models()
    if found := [entry for entry in entries if entry.name.style == style]:
        return found
    known = {entry.name.style for entry in entries}
    raise PresetError(
        f"{style}: no style of that name", hint=did_you_mean(style, known) or "`pixelkit models list` shows all"
    )


def as_text(metadata: object) -> str:
    """Metadata as it lies beside a model."""
    return json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def who() -> str:
    """user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # an id without a name, in a container
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{platform.node() or 'unknown'}"


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _is_alive(pid: str, started: str) -> bool:
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except (psutil.Error, ValueError):
        return False


def _is_awaited(registry: Registry, folder: Path) -> bool:
    """Whether an interrupted `add` will still take its files from here."""
    change = registry.find_interrupted()
    return change is not None and f"{INCOMING}/{folder.name}/" in change.as_text()
