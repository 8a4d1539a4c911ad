"""staging -> production -> archive, and who gets what: each function is one change and one row of the log."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pixelkit.errors import PresetError, ShipError, StorageError
from pixelkit.registry.facts import clean_metrics
from pixelkit.registry.index import Change, Entry
from pixelkit.registry.names import ModelName, parse_name, parse_version
from pixelkit.registry.rollout import Deployment, Rollout
from pixelkit.registry.rules import Rules, find_breaches
from pixelkit.registry.store import find_model, find_style, who
from pixelkit.rundir import now

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pixelkit.registry.index import Index, Stage
    from pixelkit.registry.steps import Step
    from pixelkit.registry.store import Registry


@dataclass(frozen=True, kw_only=True)
class Permit:
    """Under which rules, and whether what they refuse is done all the same and written down."""

    rules: Rules = field(default_factory=Rules)
    force: bool = False


def promote(registry: Registry, model: str, permit: Permit, *, reason: str = "") -> Change:
    """A model into production, without its `_rcN`, and to everyone; the one before stays there for a rollback.

    `model` may be a style that has one model in staging. Raises PresetError, ShipError where a rule refuses, StorageError.
    """
    with registry.changing("promote") as index:
        entries = index.models()
        staged = [entry for entry in entries if entry.stage == "staging"]
        entry = find_model(staged if any(entry.name.style == model for entry in staged) else entries, model)
        before = index.deployments().get(entry.name.style)
        if before and before.current == str(entry.name) and not before.rollouts:
            raise PresetError(f"{entry.name} is what everybody gets already")
        forced = _check_rules(registry, permit, entry, before, entries)
        new = _enter(entry, "production", entries)
        after = (before or Deployment(style=entry.name.style, salt=secrets.token_hex(16))).release(str(new.name))
        moved = _plain_move(registry, "promote", entry, new, reason)
        change = replace(
            moved,
            forced=forced,
            details={"current": [before and before.current, after.current]},
            steps=[*moved.steps, *registry.deploy_steps(before, after)],
            deployments=[after],
        )
        return registry.perform(index, change)


def stage_again(registry: Registry, model: str, *, reason: str = "") -> Change:
    """An archived model back to staging. Raises PresetError, StorageError."""
    with registry.changing("promote") as index:
        entries = index.models()
        entry = find_model(entries, model)
        if entry.stage != "archive":
            raise PresetError(f"{entry.name} is in {entry.stage}; only an archived model goes back to staging")
        new = _enter(entry, "staging", entries)
        return registry.perform(index, _plain_move(registry, "stage", entry, new, reason))


def archive(registry: Registry, model: str, *, reason: str = "") -> Change:
    """A model that nobody gets into the archive. Raises PresetError where somebody gets it, StorageError."""
    with registry.changing("archive") as index:
        entries = index.models()
        entry = find_model(entries, model)
        if entry.stage == "archive":
            raise PresetError(f"{entry.name} is archived already")
        before = index.deployments().get(entry.name.style)
        if before and str(entry.name) in before.files:
            how = (
                f"promote another, or `pixelkit models rollback {entry.name.style}`"
                if before.current == str(entry.name)
                else f"`pixelkit models rollout {entry.name.style} {entry.name.version} 0%` ends that"
            )
            raise PresetError(f"{entry.name} is in use: users get it", hint=how)
        new = _enter(entry, "archive", entries)
        change = _plain_move(registry, "archive", entry, new, reason)
        if before and str(entry.name) in before.earlier:
            after = before.forget(str(entry.name))
            steps = [*change.steps, *registry.deploy_steps(before, after)]
            change = replace(change, steps=steps, deployments=[after])
        return registry.perform(index, change)


def rollback(registry: Registry, style: str, *, to: str | None = None, reason: str = "") -> Change:
    """Everyone gets the model before: a rollout under way ends, or else `current/` leads to the model before it.

    `to`: a version that was in production before. The rules are not asked. Raises PresetError, StorageError.
    """
    with registry.changing("rollback") as index:
        entries = find_style(index, style)
        before = index.deployments().get(style)
        if before is None or before.current is None:
            raise PresetError(f"no model of {style} was ever promoted", hint="`pixelkit models promote MODEL`")
        entry = _find_way_back(index, entries, before, to)
        new = _enter(entry, "production", entries)
        after = before.roll_back(str(new.name))
        ended = [f"{rollout.model} {rollout.percent:g}%{_of(rollout.segment)}" for rollout in before.rollouts]
        change = Change(
            event="rollback",
            style=style,
            model=str(new.name),
            source=before.current if before.current != after.current else ", ".join(ended),
            target=after.current,
            time=now(),
            who=who(),
            reason=reason,
            details={"ended_rollouts": ended, "current": [before.current, after.current]},
            steps=[*_move(registry, entry, new), *registry.deploy_steps(before, after)],
            models=_rename(entry, new),
            deployments=[after],
        )
        return registry.perform(index, change)


def roll_out(
    registry: Registry, style: str, version: str, rollout: Rollout, permit: Permit, *, reason: str = ""
) -> Change:
    """A model for a share of the users, or of a segment of them; `rollout.model` is chosen here.

    A model in staging enters production by this, under the rules. 100 % of all users is a promotion. Raises PresetError,
    ShipError where a rule refuses, StorageError.
    """
    with registry.changing("rollout") as index:
        entries = find_style(index, style)
        entry = _find_version(entries, style, version)
        before = index.deployments().get(style)
        if before is None or before.current is None:
            raise PresetError(
                f"no model of {style} is in use that the other users would get",
                hint=f"`pixelkit models promote {entry.name}` gives it to all",
            )
        if before.current == str(entry.name):
            raise PresetError(f"{entry.name} is what everybody gets who is in no rollout")
        old = next((row for row in before.rollouts if row.segment == rollout.segment), None)
        entering = rollout.percent > 0
        forced = _check_rules(registry, permit, entry, before, entries) if entry.stage != "production" else ""
        new = _enter(entry, "production", entries) if entering else entry
        if not entering and (old is None or old.model != str(entry.name)) and not rollout.segment:
            raise PresetError(f"{entry.name} is rolled out to nobody")
        rollout = replace(rollout, model=str(new.name))
        everyone = rollout.percent == 100 and not rollout.segment
        after = before.release(str(new.name)) if everyone else before.roll_out(rollout)
        segment = _of(rollout.segment)
        change = Change(
            event="rollout",
            style=style,
            model=str(new.name),
            source=f"{old.model} {old.percent:g}%{segment}" if old else entry.place,
            target=f"{new.name} {rollout.percent:g}%{segment}",
            time=now(),
            who=who(),
            reason=reason,
            forced=forced,
            details={
                **({"moved": [entry.place, new.place]} if entry.place != new.place else {}),
                **({"current": [before.current, after.current]} if everyone else {}),
            },
            steps=[*_move(registry, entry, new), *registry.deploy_steps(before, after)],
            models=_rename(entry, new),
            deployments=[after],
        )
        return registry.perform(index, change)


def score(registry: Registry, model: str, scores: Mapping[str, float], *, reason: str = "") -> Change:
    """Scores that were measured elsewhere, by people or programs, into a model's metadata. Raises PresetError, StorageError."""
    with registry.changing("score") as index:
        entry = find_model(index.models(), model)
        metrics = {**entry.metadata.get("metrics", {}), **clean_metrics(scores)}
        new = replace(entry, metadata={**entry.metadata, "metrics": metrics})
        was = {name: entry.metadata.get("metrics", {}).get(name) for name in scores}
        change = Change(
            event="score",
            style=entry.name.style,
            model=str(entry.name),
            source=", ".join(f"{name} {value:g}" for name, value in was.items() if value is not None) or None,
            target=", ".join(f"{name} {value:g}" for name, value in scores.items()),
            time=now(),
            who=who(),
            reason=reason,
            steps=[registry.metadata_step(new)],
            models={str(entry.name): new},
        )
        return registry.perform(index, change)


def _check_rules(
    registry: Registry, permit: Permit, entry: Entry, before: Deployment | None, entries: Sequence[Entry]
) -> str:
    """What the rules say against it, if that is overruled. Raises ShipError if not."""
    current = next((other for other in entries if before and str(other.name) == before.current), None)
    beside = registry.find_beside(entry)
    problems = find_breaches(permit.rules, entry, None if current is entry else current, beside)
    if problems and not permit.force:
        raise ShipError(
            f"{entry.name} does not meet the rules for production; nothing was changed",
            hint="mend that, or change the rules; --force goes on and writes into the log that it did",
            problems=problems,
        )
    return "; ".join(problem.what for problem in problems)


def _find_way_back(index: Index, entries: Sequence[Entry], before: Deployment, to: str | None) -> Entry:
    names = {str(entry.name): entry for entry in entries}
    if to is None:
        if any(rollout.percent > 0 for rollout in before.rollouts):
            return names[str(before.current)]
        way = [name for name in before.earlier if name in names]
        if not way:
            raise PresetError(
                f"there is no model of {before.style} before {before.current}",
                hint="--to VERSION names one that was in production",
            )
        return names[way[-1]]
    entry = _find_version(entries, before.style, to)
    if str(entry.name) == before.current and not before.rollouts:
        raise PresetError(f"{entry.name} is what everybody gets already")
    served = entry.stage == "production" or any(
        row["to"] == f"production/{entry.name}" for row in index.log(before.style)
    )
    if not served:
        raise PresetError(
            f"{entry.name} was never in production", hint=f"`pixelkit models promote {entry.name}` brings it there"
        )
    return entry


def _find_version(entries: Sequence[Entry], style: str, text: str) -> Entry:
    name = parse_name(text) or ModelName(style, parse_version(text))
    for entry in entries:
        if entry.name == name:
            return entry
    raise PresetError(
        f"{style} has no version {name.version}",
        hint=f"it has {', '.join(str(entry.name.version) for entry in entries)}",
    )


def _enter(entry: Entry, stage: Stage, entries: Sequence[Entry]) -> Entry:
    """The entry as it will be. Raises PresetError where its release is there already."""
    name = entry.name.release if stage == "production" else entry.name
    if any(other.name == name and other is not entry for other in entries):
        raise PresetError(
            f"{name} is there already, from another candidate", hint="add the file again under a new version"
        )
    file: dict[str, Any] = {**entry.metadata.get("file", {}), "name": name.file}
    about = {"model_name": str(name), "version": str(name.version), "status": stage, "file": file}
    return Entry(name=name, stage=stage, metadata={**entry.metadata, **about})


def _move(registry: Registry, entry: Entry, new: Entry) -> list[Step]:
    if entry.place == new.place:
        return []
    if not registry.find_file(entry).is_file():
        raise StorageError(f"{registry.find_file(entry)} is gone", hint="`pixelkit models verify` says what to do")
    return registry.move_steps(entry, new)


def _rename(entry: Entry, new: Entry) -> dict[str, Entry | None]:
    return {**({str(entry.name): None} if entry.name != new.name else {}), str(new.name): new}


def _plain_move(registry: Registry, event: str, entry: Entry, new: Entry, reason: str) -> Change:
    return Change(
        event=event,
        style=entry.name.style,
        model=str(new.name),
        source=entry.place,
        target=new.place,
        time=now(),
        who=who(),
        reason=reason,
        steps=_move(registry, entry, new),
        models=_rename(entry, new),
    )


def _of(segment: str) -> str:
    return f" of {segment}" if segment else ""
