"""A model comes into the registry: copied, never moved, with its metadata and what was shipped with it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pixelkit.errors import PresetError, StorageError
from pixelkit.registry.copying import copy_beside, copy_file, hash_file, list_exports, list_sidecars
from pixelkit.registry.facts import describe_file, describe_run, find_base, find_run_of
from pixelkit.registry.index import Change, Entry
from pixelkit.registry.names import ModelName, check_style, make_style, next_version, parse_name
from pixelkit.registry.steps import Move, Write
from pixelkit.registry.store import INCOMING, METADATA, as_text, who
from pixelkit.rundir import now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pixelkit.registry.copying import Copied
    from pixelkit.registry.facts import Facts
    from pixelkit.registry.index import Stage
    from pixelkit.registry.names import Bump, Version
    from pixelkit.registry.steps import Step
    from pixelkit.registry.store import Registry
    from pixelkit.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Under which name a model is added: a style, a version or which part of the last one to raise, a candidate or not."""

    style: str | None = None
    version: Version | None = None
    bump: Bump | None = None
    candidate: bool = False
    stage: Stage = "staging"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is to be added: a file, what is known of it, the files that go with it."""

    file: Path
    name: str
    facts: Facts
    beside: Mapping[str, Path] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in (self.file, *self.beside.values()))


def add_model(
    registry: Registry, file: Path, wish: Wish, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Entry:
    """Copy a model in. `file`: what a run shipped, a checkpoint of a run, or a file from elsewhere. Bytes done and in all.

    Raises PresetError for a name that cannot be or is taken, WeightsError for what is no model, StorageError.
    """
    if not file.is_file():
        raise StorageError(f"{file}: no such file")
    source = _look_at(file)
    style = check_style(wish.style) if wish.style else make_style(source.name)
    if registry.index_file.is_file():
        with registry.reading() as index:
            _choose_name(style, wish, index.models())  # before anything large is copied
    done, total = 0, source.size

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_progress(done, total)

    with registry.receiving() as folder:
        copied = copy_file(source.file, folder / "model", count)
        files = copy_beside(source.beside, folder / "beside", count)
        with registry.changing("add") as index:
            entries = index.models()
            name = _choose_name(style, wish, entries)
            _refuse_twin(name, copied, entries)
            metadata = _build_metadata(source.facts, name, wish.stage, copied, files)
            entry = Entry(name=name, stage=wish.stage, metadata=metadata)
            incoming = f"{INCOMING}/{folder.name}"
            metadata_path = registry.find_metadata(entry).relative_to(registry.folder).as_posix()
            steps: list[Step] = [
                Move(source=f"{incoming}/model", target=entry.path),
                *([Move(source=f"{incoming}/beside", target=f"{entry.stage}/{name}")] if files else []),
                Write(path=metadata_path, new=as_text(metadata), old=None),
            ]
            change = Change(
                event="add",
                style=style,
                model=str(name),
                source=None,
                target=entry.place,
                time=now(),
                who=who(),
                reason=wish.reason,
                details={"file": source.file.name, "sha256": copied.sha256},
                steps=steps,
                models={str(name): entry},
            )
            registry.perform(index, change)
    return entry


def _look_at(file: Path) -> _Source:
    run = find_run_of(file)
    if run is None:
        facts = _read_own_metadata(file) or describe_file(file)
        parsed = parse_name(file.name)
        name = parsed.style if parsed else file.stem
        return _Source(file=file, name=facts.get("style") or name, facts=facts, beside=list_sidecars(file))
    facts = describe_run(run, file)
    shipped = file.parent.name == "export"
    beside = list_exports(run.export, run.preset, file.resolve()) if shipped else _with_preset(run)
    return _Source(file=file, name=facts["run"]["preset"] or file.stem, facts=facts, beside=beside)


def _with_preset(run: RunDir) -> dict[str, Path]:
    return {run.preset.name: run.preset} if run.preset.is_file() else {}


def _read_own_metadata(file: Path) -> Facts | None:
    """Metadata beside a file that pixelkit wrote for exactly these bytes."""
    path = file.with_name(f"{file.stem}{METADATA}")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(path.read_text("utf-8"))
        if facts["file"]["sha256"] == hash_file(file):
            return {"base": find_base(facts.get("base_model")), **facts}
    return None


def _choose_name(style: str, wish: Wish, entries: Sequence[Entry]) -> ModelName:
    of_style = [entry.name.version for entry in entries if entry.name.style == style]
    if not of_style:
        for other in {entry.name.style for entry in entries}:
            if other.casefold() == style.casefold():
                raise PresetError(
                    f"there is a style {other}; {style} differs in upper and lower case only", hint=f"--style {other}"
                )
    if wish.version is None:
        return ModelName(style, next_version(of_style, bump=wish.bump, candidate=wish.candidate))
    version = wish.version
    if wish.candidate and version.candidate is None:
        numbers = [taken.candidate for taken in of_style if taken.candidate and taken.release == version]
        version = type(version)(version.major, version.minor, max(numbers, default=0) + 1)
    if version in of_style or (version.candidate and version.release in of_style):
        taken = version if version in of_style else version.release
        free = next_version(of_style, candidate=version.candidate is not None)
        raise PresetError(f"{style} {taken} is there already", hint=f"the next free version is {free}")
    return ModelName(style, version)


def _refuse_twin(name: ModelName, copied: Copied, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.name.style == name.style and entry.sha256 == copied.sha256:
            raise PresetError(f"this very file is here already: {entry.place}")


def _build_metadata(
    facts: Facts, name: ModelName, stage: Stage, copied: Copied, files: Mapping[str, str]
) -> dict[str, Any]:
    known = {key: value for key, value in facts.items() if key not in {"model_name", "status", "style", "version"}}
    return {
        "model_name": str(name),
        "style": name.style,
        "version": str(name.version),
        "status": stage,
        **known,
        "file": {
            "name": name.file,
            "bytes": copied.size,
            "sha256": copied.sha256,
            "AutoV2": copied.sha256[:10],
            "AutoV3": copied.auto_v3,
        },
        "files": dict(files),
        "added": now(),
    }
