"""Asks sd-scripts itself what it makes of an image: the other end of view.py."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Self

from pixelkit.canvas import View
from pixelkit.engines.kohya.view import SEPARATOR
from pixelkit.errors import EngineError
from pixelkit.paths import PACKAGE
from pixelkit.process import Command, ProcessTree

if TYPE_CHECKING:
    from pathlib import Path


class Viewer:
    """A process that runs sd-scripts' own bucket and resize functions. Use it as a context manager."""

    def __init__(self, sd_scripts: Path, *, resolution: int, step: int) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
        env |= {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), str(sd_scripts)]), "PYTHONUTF8": "1"}
        argv = (sys.executable, "-m", "pixelkit.engines.kohya.view")
        self._tree = ProcessTree(Command(argv=argv, env=env, cwd=sd_scripts))
        self._said: list[str] = []
        self._send({"resolution": resolution, "step": step})

    def look(self, path: Path, *, alpha: bool = False, save: Path | None = None) -> View:
        """What becomes of one image; `save`: a PNG of it. Raises EngineError where sd-scripts cannot answer."""
        self._send({"path": os.path.abspath(path), "alpha": alpha, "save": os.path.abspath(save) if save else None})  # noqa: PTH100
        assert self._tree.process.stdout
        for line in self._tree.process.stdout:
            text = line.decode(errors="replace")
            if SEPARATOR in text:
                answer = json.loads(text.rpartition(SEPARATOR)[2])
                return View(resized=tuple(answer["resized"]), bucket=tuple(answer["bucket"]), same=answer["same"])
            self._said.append(text.rstrip())
        tail = "\n".join(f"    {said}" for said in self._said[-5:])
        raise EngineError(f"sd-scripts could not look at {path.name}", hint=f"what it said last:\n{tail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._tree.process.stdin
        self._tree.process.stdin.close()
        self._tree.process.wait()

    def _send(self, value: dict[str, object]) -> None:
        try:
            assert self._tree.process.stdin
            self._tree.process.stdin.write(json.dumps(value).encode() + b"\n")
        except OSError:
            return  # it ended; the next look tells why
