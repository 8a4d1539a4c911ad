"""`<style>_vX.Y[_rcN].safetensors`: the one grammar of names and versions in the registry."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Literal

from pixelkit.errors import PresetError
from pixelkit.preset import check_name as check_file_name

if TYPE_CHECKING:
    from collections.abc import Iterable

Bump = Literal["major", "minor"]
SUFFIX = ".safetensors"
_NUMBER = r"(0|[1-9][0-9]{0,5})"
_VERSION = rf"{_NUMBER}\.{_NUMBER}(?:_rc([1-9][0-9]{{0,5}}))?"
_LONGEST = 100  # bytes of a style: the version, the sidecars' endings and a temporary name still fit behind it


@total_ordering
@dataclass(frozen=True)
class Version:
    """X.Y, or the Nth release candidate for it. 1.10 is above 1.9, and 1.1 above 1.1_rc2."""

    major: int
    minor: int
    candidate: int | None = None

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + (f"_rc{self.candidate}" if self.candidate else "")

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, int, float]:
        return self.major, self.minor, self.candidate or float("inf")

    @property
    def release(self) -> Version:
        """The version that a candidate is for."""
        return Version(self.major, self.minor)


@total_ordering
@dataclass(frozen=True)
class ModelName:
    """A model of the registry: a style at a version. Printed, it is the file's name without `.safetensors`."""

    style: str
    version: Version

    def __str__(self) -> str:
        return f"{self.style}_v{self.version}"

    def __lt__(self, other: ModelName) -> bool:
        return (self.style, self.version) < (other.style, other.version)

    @property
    def file(self) -> str:
        """The model's file name."""
        return f"{self}{SUFFIX}"

    @property
    def release(self) -> ModelName:
        """The name without `_rcN`."""
        return ModelName(self.style, self.version.release)


def parse_name(text: str) -> ModelName | None:
    """A model's name, with or without `.safetensors`; None for anything else."""
    found = re.fullmatch(rf"(.+)_v({_VERSION})", text.removesuffix(SUFFIX))
    return ModelName(found[1], parse_version(found[2])) if found and _fault(found[1]) == "" else None


def parse_version(text: str) -> Version:
    """`1.2` or `1.2_rc3`, a `v` before it or not. Raises PresetError."""
    found = re.fullmatch(_VERSION, text.removeprefix("v"))
    if found is None:
        raise PresetError(f"{text} is no version", hint="write it as 1.2, or 1.2_rc1 for a release candidate")
    major, minor, candidate = found.groups()
    return Version(int(major), int(minor), int(candidate) if candidate else None)


def check_style(style: str) -> str:
    """The name of a style, as it is. Raises PresetError for what could not be one on every platform."""
    if fault := _fault(style):
        raise PresetError(f"{style!r} cannot be the name of a style: {fault}", hint="--style NAME gives another")
    return style


def _fault(style: str) -> str:
    try:
        check_file_name(style)
    except ValueError as error:
        return str(error)
    if len(style.encode()) > _LONGEST:
        return "too long for a file name"
    return "it reads like a model's version" if re.fullmatch(rf".+_v{_VERSION}", style) else ""


def make_style(name: str) -> str:
    """A style's name made of any text, a file's or a preset's: signs that file names cannot hold become `-`."""
    name = unicodedata.normalize("NFC", name)
    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in name).lstrip("-._")
    while len(name.encode()) > _LONGEST:
        name = name[:-1]
    if re.fullmatch(rf".+_v{_VERSION}", name):
        name = name.rpartition("_v")[0]
    return check_style(name.rstrip("-._") or "style")


def _raise(last: Version | None, bump: Bump | None) -> Version:
    if last is None:
        return Version(1, 0)
    return Version(last.major + 1, 0) if bump == "major" else Version(last.major, last.minor + 1)


def next_version(versions: Iterable[Version], *, bump: Bump | None = None, candidate: bool = False) -> Version:
    """The version after all of `versions`: a minor one unless `bump` says major; the first is 1.0.

    A candidate without `bump` goes on with the highest open candidate, if one is above all releases. A release never
    takes the version that a candidate waits for.
    """
    taken = set(versions)
    highest = max((version for version in taken if version.candidate is None), default=None)
    open_ones = [version for version in taken if version.candidate and (highest is None or version > highest)]
    if candidate and bump is None and open_ones:
        release = max(open_ones).release
    else:
        last = highest if candidate else max((version.release for version in taken), default=None)
        release = _raise(last, bump)
    if not candidate:
        return release
    numbers = [version.candidate for version in taken if version.candidate and version.release == release]
    return Version(release.major, release.minor, max(numbers, default=0) + 1)
