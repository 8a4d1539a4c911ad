"""Who gets which model: the current one, or one that is rolled out to a share of the users or to a segment of them.

`current/<style>.json` says it to any program. A user's place is the first 8 hex digits of sha256("salt:id"), a number
below 2**32; a share of 10 % is everyone whose place is below 0.1 * 2**32. So the same user gets the same answer in
every process and on every machine, and a share that grows moves only those who join it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pixelkit.errors import PresetError, StorageError, did_you_mean
from pixelkit.registry.names import SUFFIX, parse_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixelkit.registry.names import ModelName

_PLACES = 1 << 32
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A model for `percent` of the users of a segment; the empty segment is everyone who is in no named one."""

    model: str
    percent: float
    segment: str = ""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What is deployed of a style: the model that `current/` leads to, those it led to before (newest last), rollouts."""

    style: str
    salt: str
    current: str | None = None
    earlier: tuple[str, ...] = ()
    rollouts: tuple[Rollout, ...] = ()

    def as_plain(self) -> dict[str, Any]:
        """As `current/<style>.json` has it; files are relative to the registry's folder."""
        return {
            "style": self.style,
            "model": self.current,
            "file": self.current and locate(self.current),
            "earlier": list(self.earlier),
            "salt": self.salt,
            "rollouts": [
                {
                    "segment": rollout.segment or None,
                    "percent": rollout.percent,
                    "model": rollout.model,
                    "file": locate(rollout.model),
                }
                for rollout in self.rollouts
            ],
        }

    def as_text(self) -> str:
        """The content of `current/<style>.json`."""
        return json.dumps(self.as_plain(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Deployment:
        """What as_plain made. Raises StorageError for anything else."""
        try:
            rollouts = tuple(
                Rollout(model=str(row["model"]), percent=float(row["percent"]), segment=str(row["segment"] or ""))
                for row in plain["rollouts"]
            )
            found = cls(
                style=str(plain["style"]),
                salt=str(plain["salt"]),
                current=plain["model"],
                earlier=tuple(map(str, plain["earlier"])),
                rollouts=rollouts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"not what pixelkit writes: {error!r}") from error
        names = [found.current, *found.earlier, *(rollout.model for rollout in rollouts)]
        if bad := [name for name in names if name is not None and parse_name(str(name)) is None]:
            raise StorageError(f"{bad[0]!r} is no model's name")
        return found

    @property
    def files(self) -> tuple[str, ...]:
        """Models that somebody gets now."""
        used = [self.current, *(rollout.model for rollout in self.rollouts)]
        return tuple(dict.fromkeys(name for name in used if name))

    def release(self, model: str) -> Deployment:
        """This model for everyone; rollouts end. The one before is where a rollback leads."""
        before = [name for name in (*self.earlier, self.current) if name and name != model]
        return replace(self, current=model, earlier=tuple(before), rollouts=())

    def roll_back(self, model: str) -> Deployment:
        """An earlier model for everyone, as if those after it had not been; rollouts end. Forwards it is a release."""
        if model not in self.earlier and self.current and _order(self.current) < _order(model):
            return self.release(model)
        if model in self.earlier:
            before = self.earlier[: self.earlier.index(model)]
        else:
            before = tuple(name for name in self.earlier if _order(name) < _order(model))
        return replace(self, current=model, earlier=before, rollouts=())

    def roll_out(self, rollout: Rollout) -> Deployment:
        """Another share for a segment. At 0 % it ends; of a named segment it stays, if others get something new."""
        others = tuple(other for other in self.rollouts if other.segment != rollout.segment)
        if rollout.percent == 0 and not (rollout.segment and any(other.segment == "" for other in others)):
            return replace(self, rollouts=tuple(other for other in others if other.percent > 0))
        rollouts = sorted((*others, rollout), key=lambda one: one.segment)
        return replace(self, rollouts=tuple(rollouts))

    def forget(self, model: str) -> Deployment:
        """No rollback leads to this model any more."""
        return replace(self, earlier=tuple(name for name in self.earlier if name != model))

    def pick(self, user: str, segment: str = "") -> str | None:
        """The model for a user."""
        found = {rollout.segment: rollout for rollout in self.rollouts}
        rollout = found.get(segment) or found.get("")
        return rollout.model if rollout and is_chosen(self.salt, user, rollout.percent) else self.current


def _order(model: str) -> ModelName:
    name = parse_name(model)
    assert name is not None
    return name


def locate(model: str) -> str:
    """Where a model of production lies."""
    return f"production/{model}{SUFFIX}"


def find_place(salt: str, user: str) -> int:
    """A user's place among 2**32."""
    return int(hashlib.sha256(f"{salt}:{user}".encode("utf-8", "surrogatepass")).hexdigest()[:8], 16)


def is_chosen(salt: str, user: str, percent: float) -> bool:
    """Whether a user belongs to the first `percent` of all."""
    return find_place(salt, user) * 100 < percent * _PLACES


def parse_percent(text: str) -> float:
    """`10%` or `12.5%`. Raises PresetError."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?) ?%", text.strip(), re.ASCII)
    if found is None or float(found[1]) > 100:
        raise PresetError(f"{text} is no share of the users", hint="write 10%, from 0% to 100%")
    return float(found[1])


def parse_segment(text: str) -> str:
    """A segment's name. Raises PresetError."""
    if not re.fullmatch(r"[\w.-]{1,100}", text):
        raise PresetError(f"{text!r} cannot name a segment", hint="use letters, digits, '-', '_' and '.'")
    return text


def read_deployment(folder: Path, style: str) -> Deployment:
    """What `current/<style>.json` says. Raises StorageError where it is missing or broken."""
    path = folder / "current" / f"{style}.json"
    try:
        plain = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise StorageError(f"{path} is broken: {error}", hint="`pixelkit models verify` says what to do") from error
    try:
        return Deployment.from_plain(plain)
    except StorageError as error:
        raise StorageError(
            f"{path} is broken: {error.message}", hint="`pixelkit models verify` says what to do"
        ) from error


def pick_model(folder: Path, style: str, user: str, segment: str = "") -> tuple[str, Path]:
    """The model that a user gets, and its file. No lock, no index. Raises PresetError, StorageError."""
    path = folder / "current" / f"{style}.json"
    if not path.is_file():
        known = [found.stem for found in path.parent.glob("*.json")]
        hint = did_you_mean(style, known) or "`pixelkit models promote MODEL` gives users one"
        raise PresetError(f"no model of {style} is in use in {folder}", hint=hint)
    for _ in range(_TRIES):  # what it names may just be leaving for the archive
        model = read_deployment(folder, style).pick(user, segment)
        if model is None:
            raise PresetError(f"no model of {style} is in use", hint="`pixelkit models promote MODEL` gives users one")
        file = folder / locate(model)
        if file.is_file():
            return model, file
    raise StorageError(f"{file} is gone", hint="`pixelkit models verify` says what to do")
