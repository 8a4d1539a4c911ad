"""The error tree: one class per kind of failure, one exit code per class.

An error says what is wrong, where, the nearest legal value and what to do next. `problems` carries every
finding of a check at once; the message is then the summary line.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding: `where` is `file:line [table]` (or a file, or empty), `hint` what to do about it."""

    what: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where} {self.what}" if self.where else self.what
        return f"{text}; {self.hint}" if self.hint else text


class PixelkitError(Exception):
    """Base of everything pixelkit reports to its user without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        lines.append(self.message)
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)


class PresetError(PixelkitError):
    """The preset, or a value given on the command line, is wrong."""

    exit_code = 3


class CatalogError(PixelkitError):
    """A base model or hardware profile is unknown, or its file is wrong."""

    exit_code = 3


class DataError(PixelkitError):
    """The data set is missing, empty, unreadable or does not fit the base."""

    exit_code = 4


class EngineError(PixelkitError):
    """The engine is absent or cannot do what the plan asks."""

    exit_code = 5


class RenderError(PixelkitError):
    """A template failed, or what it rendered is not what the engine understands."""

    exit_code = 6


class TrainingError(PixelkitError):
    """The trainer failed, or ended without a usable file. `kind` names the cause: oom, nonfinite, killed ..."""

    exit_code = 7

    def __init__(self, message: str, *, kind: str, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint=hint, problems=problems)
        self.kind = kind


class ShipError(PixelkitError):
    """Training is done and kept, but an export could not be made."""

    exit_code = 8


class StorageError(PixelkitError):
    """A file or folder cannot be read or written."""

    exit_code = 9


class WeightsError(PixelkitError):
    """A LoRA or a model is broken, is something else, or cannot be written as asked; `problems` are its keys."""

    exit_code = 10


class Interrupted(PixelkitError):  # noqa: N818 - it is no fault
    """The user stopped the run; what was trained is saved."""

    exit_code = 130


def nearest(name: str, legal: Iterable[str]) -> str:
    """The legal name closest to `name`, or an empty string if none is close."""
    options = sorted(legal)
    found = difflib.get_close_matches(name, options, n=1, cutoff=0.6) or difflib.get_close_matches(
        name.lower(), [option.lower() for option in options], n=1, cutoff=0.6
    )
    return found[0] if found else ""


def did_you_mean(name: str, legal: Iterable[str]) -> str:
    """A hint `did you mean X?`, or an empty string if nothing is close."""
    found = nearest(name, legal)
    return f"did you mean {found}?" if found else ""
