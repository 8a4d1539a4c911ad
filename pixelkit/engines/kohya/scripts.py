"""How the watch gets into a plain script, which has no trainer class made for it: by wrapping functions of the library.

All of them sample through one function, called before training, after each optimizer step and after each epoch, and
save either through two functions of train_util (whole models) or through their trainer's `save_weights` (textual
inversion). The functions are looked up in their module at each call, so they are replaced there, for this process.

TU is library/train_util.py at the pinned commit.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.engines.kohya.resume import continue_train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixelkit.engines.kohya.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Script:
    """A plain script: the module of its `sample_images`, and its trainer's class where it has one."""

    samples: str
    trainer: str | None = None


SCRIPTS: Final = {
    "train_db": Script(samples="library.train_util"),
    "sdxl_train": Script(samples="library.sdxl_train_util"),
    "flux_train": Script(samples="library.flux_train_utils"),
    "sd3_train": Script(samples="library.sd3_train_utils"),
    "train_textual_inversion": Script(samples="library.train_util", trainer="TextualInversionTrainer"),
    "sdxl_train_textual_inversion": Script(samples="library.sdxl_train_util", trainer="SdxlTextualInversionTrainer"),
}


def watch_script(watch: Watch, module: Any, script: Script) -> Callable[[Any], None]:
    """The `train` of `module`, watched; it counts on from the watch's first step. Takes the script's arguments."""
    watch_samples(watch, importlib.import_module(script.samples))
    if script.trainer is None:
        watch_models(watch)
        train: Callable[[Any], None] = module.train
        return continue_train(train, watch.first_step) if watch.first_step else train
    base = getattr(module, script.trainer)
    members: dict[str, Any] = {"save_weights": watch_embeddings(watch, base.save_weights)}
    if watch.first_step:
        members["train"] = continue_train(base.train, watch.first_step)
    return type("WatchedTrainer", (base,), members)().train  # type: ignore[no-any-return]


def watch_samples(watch: Watch, module: Any) -> None:
    """`sample_images(accelerator, args, epoch, steps, device or model, vae, ...)`."""
    sample = module.sample_images

    def sample_images(accelerator: Any, args: Any, epoch: int | None, steps: int, *rest: Any, **named: Any) -> None:
        if epoch == 0:
            watch.begin()
            if not args.cache_latents:
                watch_vae(watch, rest[1])
        watch.visit(epoch, steps, lambda: sample(accelerator, args, epoch, steps, *rest, **named))

    module.sample_images = sample_images


def watch_vae(watch: Watch, vae: Any) -> None:
    """`vae.encode(images)`, a distribution (diffusers) or latents (FLUX, SD3), once for each batch."""
    encode = vae.encode

    def encode_and_note(*rest: Any, **named: Any) -> Any:
        encoded = encode(*rest, **named)
        latents = encoded.latent_dist.parameters if hasattr(encoded, "latent_dist") else encoded
        watch.note_latents(latents)
        return encoded

    vae.encode = encode_and_note


def watch_models(watch: Watch) -> None:
    """The two functions that save a whole model in every script (TU:5851, TU:6029), last argument but one a saver."""
    from library import train_util

    def wrap(save: Callable[..., None]) -> Callable[..., None]:
        def save_whole(args: Any, *rest: Any) -> None:
            *others, save_file, save_folder = rest
            dtype = train_util.prepare_dtype(args)[1]
            savers = [saver and _whole(watch, dtype, saver) for saver in (save_file, save_folder)]
            save(args, *others, *savers)

        return save_whole

    for name in ("save_sd_model_on_epoch_end_or_stepwise_common", "save_sd_model_on_train_end_common"):
        setattr(train_util, name, wrap(getattr(train_util, name)))


def watch_embeddings(watch: Watch, save_weights: Callable[..., None]) -> Callable[..., None]:
    """`TextualInversionTrainer.save_weights(file, embeddings, dtype, metadata)`."""

    def save(self: Any, file: str, embeddings: list[Any], dtype: Any, metadata: Any) -> None:
        write: Callable[[str], None] = lambda part: save_weights(self, part, embeddings, dtype, metadata)  # noqa: E731
        watch.write_weights(Path(file), embeddings, dtype, write)

    return save


def _whole(watch: Watch, dtype: Any, saver: Callable[..., None]) -> Callable[..., None]:
    def save(path: str, *rest: Any) -> None:
        watch.write_weights(Path(path), _trained(watch), dtype, lambda part: saver(part, *rest))

    return save


def _trained(watch: Watch) -> Iterator[Any]:
    for model in watch.accelerator._models:  # noqa: SLF001
        yield from model.parameters()
