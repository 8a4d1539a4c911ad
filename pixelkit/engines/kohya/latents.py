"""Where sd-scripts keeps encoded images between runs. Imports `library`: only inside the trainer's process.

sd-scripts writes NAME_0512x0512_sd.npz beside each image and looks only at the name and the keys of it afterwards
(strategy_base.py:427-472): other pixels, another VAE or resolution are not noticed, and a file that was half written ends
the next run. Here the files lie in a folder that is named by all that changes them, and are renamed when they are whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def redirect_latents(images: Path, latents: Path) -> None:
    """Whatever strategy a script takes keeps the latents of the images below `images` in `latents`."""
    from library import strategy_base

    base = strategy_base.LatentsCachingStrategy
    base.save_latents_to_disk = _whole(base.save_latents_to_disk)
    take = base.set_strategy

    def set_strategy(strategy: Any) -> None:
        kind = type(strategy)  # the class, because data loader workers receive the object pickled
        kind.get_latents_npz_path = _moved(kind.get_latents_npz_path, images, latents)
        take(strategy)

    base.set_strategy = set_strategy


def _moved(find: Callable[..., str], images: Path, latents: Path) -> Callable[..., str]:
    def get_latents_npz_path(self: Any, absolute_path: str, image_size: tuple[int, int]) -> str:
        path = Path(absolute_path)
        if path.is_relative_to(images):
            path = latents / path.relative_to(images)
            path.parent.mkdir(parents=True, exist_ok=True)
        return find(self, str(path), image_size)

    return get_latents_npz_path


def _whole(save: Callable[..., None]) -> Callable[..., None]:
    def save_latents_to_disk(self: Any, npz_path: str, *rest: Any, **named: Any) -> None:
        path = Path(npz_path)
        begun = path.with_name(f".{path.stem}.part.npz")
        save(self, str(begun), *rest, **named)
        begun.replace(path)

    return save_latents_to_disk
