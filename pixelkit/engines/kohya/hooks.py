"""How the watch gets into a trainer class: NetworkTrainer of train_network.py (TN) or a subclass, at the pinned commit.

`WatchedNetwork` goes before the trainer in the order of inheritance and overrides only methods that TN calls on
itself. One thing has no hook there and is replaced on the one object concerned: `network.save_weights`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.engines.kohya import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelkit.engines.kohya.watch import Watch


class WatchedNetwork:
    """A LoRA trainer whose `watch` is told what it does."""

    watch: Watch

    def post_process_network(self, args: Any, accelerator: Any, network: Any, *rest: Any) -> None:
        """TN:704, the first hook that gets the network."""
        network.save_weights = self._watch_weights(network)
        parent: Any = super()
        parent.post_process_network(args, accelerator, network, *rest)

    def update_metadata(self, metadata: dict[str, Any], args: Any) -> None:
        """TN:1193: every count is known here, and a state is loaded."""
        parent: Any = super()
        parent.update_metadata(metadata, args)
        if "sd-scripts" in self.watch.versions:
            metadata["ss_sd_scripts_commit_hash"] = self.watch.versions["sd-scripts"]
        self.watch.begin()

    def encode_images_to_latents(self, args: Any, vae: Any, images: Any) -> Any:
        """TN:254. Without this, NaN latents are trained on as zeros (TN:411)."""
        parent: Any = super()
        latents = parent.encode_images_to_latents(args, vae, images)
        self.watch.note_latents(latents)
        return latents

    def sample_images(self, accelerator: Any, args: Any, epoch: int | None, global_step: int, *rest: Any) -> None:
        """TN:237: called before training (epoch 0), after each step (epoch None) and after each epoch."""
        parent: Any = super()
        self.watch.visit(epoch, global_step, lambda: parent.sample_images(accelerator, args, epoch, global_step, *rest))

    def _watch_weights(self, network: Any) -> Callable[..., None]:
        """`network.save_weights(file, dtype, metadata)`."""
        save_weights = network.save_weights

        def save(file: str, dtype: Any, metadata: dict[str, str] | None) -> None:
            if metadata is not None:
                checks.correct_base_hash(metadata, self.watch.args.pretrained_model_name_or_path)
            tensors = network.state_dict().values()
            self.watch.write_weights(Path(file), tensors, dtype, lambda part: save_weights(part, dtype, metadata))

        return save
