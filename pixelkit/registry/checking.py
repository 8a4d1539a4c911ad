"""verify: do the files, the links and the index say the same? And the index made anew from the files."""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.errors import PixelkitError, Problem, StorageError
from pixelkit.paths import write_atomically
from pixelkit.registry.copying import hash_file
from pixelkit.registry.facts import describe_file
from pixelkit.registry.index import Change, Entry, Index
from pixelkit.registry.lock import hold_lock
from pixelkit.registry.names import SUFFIX, parse_name
from pixelkit.registry.rollout import Deployment, read_deployment
from pixelkit.registry.steps import CURRENT, point, read_target
from pixelkit.registry.store import METADATA, STAGES, as_text, who
from pixelkit.rundir import now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pixelkit.registry.index import Stage
    from pixelkit.registry.names import ModelName
    from pixelkit.registry.store import Registry

_REBUILD = "`pixelkit models verify --rebuild` goes by the files"
_TRIES = 3
_PUT_BACK = "put the right file back from a copy or from the run, or remove it and what belongs to it, then --rebuild"


@dataclass(frozen=True, kw_only=True)
class _State:
    """The index at one moment."""

    entries: list[Entry]
    deployments: dict[str, Deployment]
    log: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was looked at and found. `remarks`: what was put right on the way."""

    models: int
    files: int
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]


def verify(
    registry: Registry, *, hashes: bool = True, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Report:
    """Compare everything; `hashes` also reads every file in full (bytes done, bytes in all). Raises StorageError."""
    remarks = [f"removed what a killed `add` had copied: {name}" for name in registry.clear_incoming()]
    for _ in range(_TRIES):
        interrupted = registry.find_interrupted()
        with registry.changing("verify") as index:  # ends what a crash cut off
            state = _State(entries=index.models(), deployments=index.deployments(), log=index.log())
            problems = [Problem(where=registry.index_file.name, what=what, hint=_REBUILD) for what in index.check()]
        if interrupted and state.log and "ended_after_a_crash" in state.log[-1]["details"]:
            remarks.append(f"`{interrupted.event} {interrupted.model}` had been cut off by a crash; it is done now")
        problems += _compare(registry, state, hashes=hashes, on_progress=on_progress)
        with registry.reading() as index:
            if not problems or len(index.log()) == len(state.log):  # else others changed it while we looked
                break
    files = sum(2 + len(entry.metadata.get("files", {})) for entry in state.entries)
    return Report(models=len(state.entries), files=files, problems=tuple(problems), remarks=tuple(remarks))


def _compare(
    registry: Registry, state: _State, *, hashes: bool, on_progress: Callable[[int, int], None]
) -> Iterator[Problem]:
    files = [path for entry in state.entries for path in _files_of(registry, entry)]
    total, done = sum(path.stat().st_size for path in files) if hashes else 0, 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        on_progress(done, total)

    for entry in state.entries:
        yield from _check_model(registry, entry, count if hashes else None)
    yield from _find_unknown(registry, state.entries)
    yield from _check_current(registry, state, hashes=hashes)


def rebuild(registry: Registry, *, reason: str = "") -> list[str]:
    """The index made anew from the files, `current/` mended; what was done. The log goes on where it can be read.

    A model's metadata is believed, so `verify` still finds a file that is not what it was. Raises StorageError.
    """
    if not registry.folder.is_dir():
        raise StorageError(f"there is no folder {registry.folder}")
    done: list[str] = []
    with hold_lock(registry.folder / ".lock", f"`models verify --rebuild` by {who()}"):
        index = _open_or_replace(registry, done)
        try:
            with contextlib.suppress(StorageError):  # what cannot be ended is gone by as it lies
                registry.recover(index)
            entries = _read_entries(registry, done)
            deployments = list(_read_deployments(registry, index, entries, done))
            change = Change(
                event="rebuild",
                style="",
                model="",
                source=None,
                target=None,
                time=now(),
                who=who(),
                reason=reason,
                details={"models": len(entries), "done": done},
            )
            index.replace(entries, deployments, change)
        finally:
            index.close()
    return done


def _check_model(registry: Registry, entry: Entry, count: Callable[[int], None] | None) -> Iterator[Problem]:
    file, about = registry.find_file(entry), entry.metadata.get("file", {})
    expected = {file: (about.get("sha256"), about.get("bytes"))}
    beside = registry.find_beside(entry)
    expected |= {beside / name: (sha256, None) for name, sha256 in entry.metadata.get("files", {}).items()}
    for path, (sha256, size) in expected.items():
        where = path.relative_to(registry.folder).as_posix()
        if not path.is_file():
            yield Problem(where=where, what="is gone", hint=_PUT_BACK)
        elif size is not None and path.stat().st_size != size:
            yield Problem(where=where, what=f"has {path.stat().st_size} bytes, not {size}", hint=_PUT_BACK)
        elif count is not None and hash_file(path, count) != sha256:
            yield Problem(where=where, what="is not what was added: its sha256 differs", hint=_PUT_BACK)
    path = registry.find_metadata(entry)
    where = path.relative_to(registry.folder).as_posix()
    try:
        if json.loads(path.read_text("utf-8")) != entry.metadata:
            yield Problem(where=where, what="differs from the index", hint=f"if it is right, {_REBUILD}")
    except FileNotFoundError:
        yield Problem(where=where, what="is gone", hint=f"{_REBUILD}, and writes it anew")
    except (OSError, ValueError) as error:
        yield Problem(where=where, what=f"cannot be read: {error}", hint=f"remove it; {_REBUILD}, and writes it anew")


def _find_unknown(registry: Registry, entries: Sequence[Entry]) -> Iterator[Problem]:
    known = {registry.folder / entry.path for entry in entries}
    known |= {registry.find_metadata(entry) for entry in entries} | {registry.find_beside(entry) for entry in entries}
    for stage in STAGES:
        for path in sorted((registry.folder / stage).glob("[!.]*")):
            name = parse_name(path.name.removesuffix(METADATA))
            if path in known or (name is None and path.suffix != SUFFIX):  # somebody's own notes
                continue
            where = f"{stage}/{path.name}"
            if path.suffix != SUFFIX:
                yield Problem(where=where, what="belongs to no model that is here", hint="move it away")
            elif name:
                yield Problem(where=where, what="is not in the index", hint=f"{_REBUILD}, and takes it in")
            else:
                hint = "move it away, then `pixelkit models add` it"
                yield Problem(where=where, what="is not named as a model is", hint=hint)


def _check_current(registry: Registry, state: _State, *, hashes: bool) -> Iterator[Problem]:
    names = {str(entry.name): entry for entry in state.entries}
    for style, deployment in state.deployments.items():
        where = f"{CURRENT}/{style}.json"
        try:
            if read_deployment(registry.folder, style) != deployment:
                yield Problem(where=where, what="differs from the index", hint=f"if it is right, {_REBUILD}")
        except StorageError as error:
            yield Problem(where=where, what=error.message, hint=f"remove it, then {_REBUILD}")
        for name in deployment.files:
            if name not in names or names[name].stage != "production":
                yield Problem(where=where, what=f"names {name}, which is not in production", hint=_REBUILD)
        if deployment.current in names:
            yield from _check_link(registry, style, names[deployment.current], hashes=hashes)
    for link in sorted((registry.folder / CURRENT).glob(f"[!.]*{SUFFIX}")):
        if link.stem not in state.deployments:
            yield Problem(where=f"{CURRENT}/{link.name}", what="is of no style that is deployed", hint="remove it")


def _check_link(registry: Registry, style: str, current: Entry, *, hashes: bool) -> Iterator[Problem]:
    link = registry.find_link(style)
    where, target = f"{CURRENT}/{link.name}", read_target(registry.folder, link)
    if target is not None and target != current.path:
        yield Problem(where=where, what=f"leads to {target}, not to {current.path}", hint=f"{_REBUILD}, and mends it")
    elif not link.exists():
        what = "leads nowhere" if target else "is gone"
        yield Problem(where=where, what=what, hint=f"{_REBUILD}, and mends it")
    elif target is None and hashes and hash_file(link) != current.sha256:
        yield Problem(where=where, what=f"is no copy of {current.path}", hint=f"{_REBUILD}, and mends it")


def _files_of(registry: Registry, entry: Entry) -> Iterator[Path]:
    beside = registry.find_beside(entry)
    for path in (registry.find_file(entry), *(beside / name for name in entry.metadata.get("files", {}))):
        if path.is_file():
            yield path


def _open_or_replace(registry: Registry, done: list[str]) -> Index:
    path = registry.index_file
    try:
        index = Index(path)
        if not index.check():
            return index
        index.close()
    except PixelkitError:
        pass
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for ending in ("", "-wal", "-shm"):
        old = path.with_name(f"{path.name}{ending}")
        if old.exists():
            old.replace(path.with_name(f"{path.name}.broken-{stamp}{ending}"))
    done.append(f"the index was broken: kept as {path.name}.broken-{stamp}, the log begins anew")
    return Index(path)


def _read_entries(registry: Registry, done: list[str]) -> list[Entry]:
    found: dict[ModelName, Entry] = {}
    for stage, name in registry.list_files():
        if name in found:
            raise StorageError(
                f"{name} lies in {found[name].stage} and in {stage}", hint="remove one of them, then try again"
            )
        found[name] = _read_entry(registry, stage, name, done)
    return sorted(found.values(), key=lambda entry: entry.name)


def _read_entry(registry: Registry, stage: Stage, name: ModelName, done: list[str]) -> Entry:
    entry = Entry(name=name, stage=stage, metadata={})
    file, path = registry.find_file(entry), registry.find_metadata(entry)
    place = {"model_name": str(name), "style": name.style, "version": str(name.version), "status": stage}
    try:
        known = json.loads(path.read_text("utf-8"))
        about = {**known, **place, "file": {**known["file"], "name": name.file}}
    except (OSError, ValueError, KeyError, TypeError):
        beside = registry.find_beside(entry)
        files = {
            part.relative_to(beside).as_posix(): hash_file(part) for part in sorted(beside.rglob("*")) if part.is_file()
        }
        sha256 = hash_file(file)
        hashes = {"name": name.file, "bytes": file.stat().st_size, "sha256": sha256, "AutoV2": sha256[:10]}
        known = None
        about = {**place, **describe_file(file), "file": hashes, "files": files, "added": now()}
        done.append(f"{stage}/{name}: metadata made anew, from the file alone")
    if about != known:
        write_atomically(path, as_text(about))
    return Entry(name=name, stage=stage, metadata=about)


def _read_deployments(
    registry: Registry, index: Index, entries: Sequence[Entry], done: list[str]
) -> Iterator[Deployment]:
    """By `current/<style>.json`, else by the old index, else by the link."""
    production = {str(entry.name): entry for entry in entries if entry.stage == "production"}
    before = index.deployments()
    folder = registry.folder / CURRENT
    styles = {path.stem for path in folder.glob("[!.]*.json")} | {
        path.stem for path in folder.glob("[!.]*.safetensors")
    }
    for style in sorted(styles | before.keys()):
        link = registry.find_link(style)
        target = read_target(registry.folder, link)
        try:
            found = read_deployment(registry.folder, style)
        except StorageError:
            found = before.get(style) or Deployment(style=style, salt=secrets.token_hex(16))
            done.append(f"current/{style}.json made anew")
        current = found.current if found.current in production else None
        if current is None and target:
            named = parse_name(Path(target).name)
            current = str(named) if str(named) in production else None
        kept = Deployment(
            style=style,
            salt=found.salt,
            current=current,
            earlier=tuple(name for name in found.earlier if name in production and name != current),
            rollouts=tuple(rollout for rollout in found.rollouts if current and rollout.model in production),
        )
        if kept != found:
            done.append(f"current/{style}.json named models that are not in production")
        write_atomically(folder / f"{style}.json", kept.as_text())
        if current is None:
            link.unlink(missing_ok=True)
            done.append(f"{style} has no current model any more: promote one, or roll back")
        elif target != production[current].path or not link.exists():
            is_copy = link.is_file() and not link.is_symlink() and hash_file(link) == production[current].sha256
            if not is_copy:
                point(registry.folder, link, production[current].path)
                done.append(f"current/{link.name} leads to {production[current].path} again")
        yield kept
