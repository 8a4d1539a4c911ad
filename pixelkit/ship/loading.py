"""Every export is loaded again before it is called shipped: the other end of loaders.py, which does it with torch.

The process is started before there is anything to load, since importing the libraries takes longest.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

from pixelkit.paths import PACKAGE
from pixelkit.process import Command, ProcessTree
from pixelkit.ship.loaders import SEPARATOR

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.catalog import Base

TIME_LIMIT = 1200.0
"""Seconds. Measured on one slow core: pixelkit-tiny 10, imports and all; SDXL by modules 50, FLUX 215."""
_TAIL = 3

State = Literal["passed", "failed", "not made"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One export loaded again by `program`. effect, difference: the largest by component, None where not measured."""

    format: str
    name: str
    program: str
    state: State
    why: str = ""
    effect: Mapping[str, float] | None = None
    difference: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What came of it.

    `checked`: "outputs": the base ran with each export in it, numbers are absolute differences of its outputs;
    "modules": the base is too large for that, so each layer's change was compared, as a share of its largest number;
    None: nothing could be checked, and `why`.
    """

    checked: Literal["outputs", "modules"] | None
    reference: str = ""
    why: str = ""
    checks: tuple[Check, ...] = field(default=())

    @property
    def parity(self) -> float | None:
        """The largest difference of any export to the reference."""
        found = [value for check in self.checks if check.difference for value in check.difference.values()]
        return max(found, default=None)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The exports that their program does not load right."""
        return tuple(check for check in self.checks if check.state == "failed")

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and the sidecar."""
        return cast("dict[str, Any]", _finite({**asdict(self), "parity": self.parity}))

    def tell(self) -> list[str]:
        """Lines for a person."""
        passed = [f"{check.name} by {check.program}" for check in self.checks if check.state == "passed"]
        lines = []
        if passed and self.checked == "outputs":
            lines.append(f"loaded again: {', '.join(passed)}; outputs agree to {self.parity or 0:.1e}")
        elif passed:
            lines.append(f"loaded again, layer by layer: {', '.join(passed)}; they agree to {self.parity or 0:.1e}")
        lines += [
            f"{check.name} was not loaded again: {check.why}" for check in self.checks if check.state == "not made"
        ]
        if not self.checked:
            lines.append(f"the exports were not loaded again: {self.why}")
        return lines


class Loads(Protocol):
    """Who loads exports again."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def load(self, base: Base, files: Mapping[str, Path]) -> Loading:
        """Load each of `files` (format -> path, kohya among them) on the base. Never raises for what it finds."""


class Loader:
    """The process. Use it as a context manager, and call load once."""

    def __init__(self, sd_scripts: Path | None) -> None:
        self._sd_scripts = sd_scripts
        env = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
        places = [str(PACKAGE.parent), *([str(sd_scripts)] if sd_scripts else [])]
        env |= {"PYTHONPATH": os.pathsep.join(places), "PYTHONUTF8": "1"}
        # What is downloaded or taken from a GPU here, nobody asked for.
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        argv = (sys.executable, "-m", "pixelkit.ship")
        self._tree = ProcessTree(Command(argv=argv, env=env, cwd=PACKAGE.parent))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tree.end()

    def load(self, base: Base, files: Mapping[str, Path], *, limit: float = TIME_LIMIT) -> Loading:
        """Ask, and wait for at most `limit` seconds."""
        request = {
            "family": base.spec.family,
            "base": base.location,
            "sd_scripts": str(self._sd_scripts) if self._sd_scripts else None,
            "files": {name: str(path) for name, path in files.items()},
        }
        try:
            said, _ = self._tree.process.communicate(json.dumps(request).encode() + b"\n", timeout=limit)
        except subprocess.TimeoutExpired:
            return Loading(checked=None, why=f"it took more than {limit:.0f} s")
        except OSError as error:
            return Loading(checked=None, why=f"the process that does it ended ({error.strerror})")
        return read_answer(said.decode(errors="replace"), self._tree.process.returncode, files)


def _finite(value: object) -> object:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_answer(said: str, returncode: int, files: Mapping[str, Path]) -> Loading:
    """What the process said -> what came of it. A process that ended without an answer checked nothing."""
    if SEPARATOR not in said:
        how = f"signal {-returncode}: too little memory?" if returncode < 0 else f"exit {returncode}"
        tail = " | ".join(line.strip() for line in said.splitlines()[-_TAIL:] if line.strip())
        return Loading(checked=None, why=f"the process that does it ended with {how} {tail}".rstrip())
    answer: dict[str, Any] = json.loads(said.rpartition(SEPARATOR)[2])
    checks = [Check(format=name, name=files[name].name, **found) for name, found in answer.get("files", {}).items()]
    return Loading(
        checked=answer["checked"],
        reference=answer.get("reference", ""),
        why=answer.get("why", ""),
        checks=tuple(checks),
    )
