"""How an image reaches the VAE: sd-scripts' own functions where it is found, else their rules."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from PIL import Image

from pixelkit.canvas import View, foresee
from pixelkit.dataset.blocks import save_png
from pixelkit.engines.kohya.viewer import Viewer

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.dataset.check import Candidate


class Looking:
    """Use it as a context manager. `folder`: what is seen is also written there, as PNG; without sd-scripts only what is
    untouched, because what its resampling makes of an image only it can say.
    """

    def __init__(self, sd_scripts: Path | None, *, resolution: int, step: int, folder: Path | None) -> None:
        self._resolution, self._step = resolution, step
        self._folder = folder
        self._stack = ExitStack()
        self._viewer = Viewer(sd_scripts, resolution=resolution, step=step) if sd_scripts else None
        if self._viewer:
            self._stack.enter_context(self._viewer)

    def at(self, image: Candidate) -> View:
        """Raises EngineError where sd-scripts cannot answer."""
        save = self._place(image) if self._folder else None
        if self._viewer:
            return self._viewer.look(image.path, alpha=image.masked, save=save)
        view = foresee(image.width, image.height, resolution=self._resolution, step=self._step)
        if save and view.keeps(image.width, image.height):
            with Image.open(image.path) as picture:
                save_png(picture.convert("RGB"), save)
        return view

    def _place(self, image: Candidate) -> Path:
        assert self._folder
        name = image.record["file"] if image.record else image.path.name
        place = (self._folder / name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
