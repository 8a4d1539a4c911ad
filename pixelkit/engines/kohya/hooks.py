"""The hooks that watch a trainer of sd-scripts: steps as events, saving and stopping on request, never training on NaN.

`Watch` goes before a trainer class (NetworkTrainer or a subclass) in the order of inheritance and overrides only
methods that train_network.py calls on itself. TN below is train_network.py, TU library/train_util.py, at the pinned
commit. Two things have no hook there, and are replaced on the one object concerned: `network.save_weights` (so that a
file appears whole, or not at all) and `accelerator.save_state`.

The order of one optimizer step in TN: on_step_start, process_batch (once a batch), all_reduce_network,
sample_images with epoch None (TN:1491), the save (TN:1497).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.engines.kohya import checks

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from pixelkit.engines.control import Control

# output_dir/sample/NAME_{000002|e000001}_{index}_{time}[_{seed}].png (TU:6576)
SAMPLE_NAME: Final = re.compile(r"_e?\d{6,}_(?P<index>\d{2,})_\d{14}(?:_(?P<seed>\d+))?\.png$")


class Refusal(Exception):  # noqa: N818 - not a fault of the program: what was asked cannot be done
    """The trainer cannot do this; the message says what to change."""


class Stopped(Exception):  # noqa: N818 - it ends the run in order
    """Leaves the training loop after a stop was asked for and everything is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


class NonFiniteError(Exception):
    """Something is NaN or infinite: `what` is "loss", "gradient", "latents" or "weights"."""

    def __init__(self, step: int, what: str, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.what = what


class Watch:
    """A trainer, watched. `step` is the optimizer step done last, counted over resumed runs."""

    def begin_watch(
        self, control: Control, *, first_step: int, versions: dict[str, str], loaded: threading.Event
    ) -> None:
        """Give the trainer its line to pixelkit. `first_step` steps were done by the run that is resumed."""
        self.control = control
        self.versions = versions
        self.loaded = loaded
        self.first_step = self.step = first_step
        self.steps_per_epoch = 1
        self.final_path: Path | None = None
        self.accelerator: Any = None
        self.network: Any = None
        self.args: Any = None
        self._losses: list[float] = []
        self._rate = 0.0
        self._sampled_at = -1
        self._leaving = False
        self._restore: dict[str, Any] = {}
        self._mark = time.monotonic()
        self._paused = 0.0

    def end_watch(self) -> None:
        """Close the trackers, for a training loop that was left early."""
        if self.accelerator is not None:
            self.accelerator.end_training()

    # --- before the first step

    def train(self, args: Any) -> None:
        """TN:491."""
        self.args = args
        parent: Any = super()
        parent.train(args)

    def load_target_model(self, args: Any, weight_dtype: Any, accelerator: Any) -> tuple[Any, ...]:
        """TN:602, the first hook that gets the accelerator."""
        self._leave_early()
        self.accelerator = accelerator
        accelerator.save_state = self._watch_state(accelerator.save_state)
        parent: Any = super()
        version, text_encoder, vae, unet = parent.load_target_model(args, weight_dtype, accelerator)
        vae.encode = self._watch_encode(vae.encode)
        self._leave_early()
        return version, text_encoder, vae, unet

    def cache_text_encoder_outputs_if_needed(self, args: Any, *rest: Any) -> None:
        """TN:633: called whether or not there is such a cache, right after the latents were cached."""
        self._leave_early()
        if args.cache_latents:
            self._check_latents(rest[4])
        parent: Any = super()
        parent.cache_text_encoder_outputs_if_needed(args, *rest)

    def post_process_network(self, args: Any, accelerator: Any, network: Any, *rest: Any) -> None:
        """TN:704, the first hook that gets the network."""
        self.network = network
        network.save_weights = self._watch_weights(network.save_weights)
        parent: Any = super()
        parent.post_process_network(args, accelerator, network, *rest)

    def update_metadata(self, metadata: dict[str, Any], args: Any) -> None:
        """TN:1067: every count is known here, and a state is loaded."""
        parent: Any = super()
        parent.update_metadata(metadata, args)
        if 0 < args.max_train_steps <= self.first_step:
            raise Refusal(
                f"nothing left to train: the state was saved at step {self.first_step}, "
                f"and the run ends at step {args.max_train_steps}; ask for more steps"
            )
        if "sd-scripts" in self.versions:
            metadata["ss_sd_scripts_commit_hash"] = self.versions["sd-scripts"]
        accumulation = int(metadata["ss_gradient_accumulation_steps"])
        self.steps_per_epoch = -(-int(metadata["ss_num_batches_per_epoch"]) // accumulation)
        self.loaded.set()
        self.control.emit(
            "begin",
            total=args.max_train_steps,
            epochs=metadata["ss_num_epochs"],
            step=self.first_step,
            pid=os.getpid(),
            engine="kohya",
            versions=self.versions,
        )

    # --- one step

    def on_step_start(self, *rest: Any, is_train: bool = True) -> None:
        """TN:1425, before each batch."""
        if self._leaving:
            raise Stopped(self.step)
        if is_train:
            self._leave_early()
            self._rate = checks.read_rate(self.accelerator)
        parent: Any = super()
        parent.on_step_start(*rest, is_train=is_train)

    def encode_images_to_latents(self, args: Any, vae: Any, images: Any) -> Any:
        """TN:254. Without this, NaN latents are trained on as zeros (TN:411)."""
        parent: Any = super()
        latents = parent.encode_images_to_latents(args, vae, images)
        if not latents.isfinite().all():
            message = f"the VAE made latents that are not finite; {checks.advise_vae(args)}"
            raise NonFiniteError(self.step + 1, "latents", message)
        return latents

    def process_batch(self, *rest: Any, is_train: bool = True, **named: Any) -> Any:
        """TN:370: the loss of one batch, checked before it can reach a weight."""
        parent: Any = super()
        loss = parent.process_batch(*rest, is_train=is_train, **named)
        if is_train:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(
                    self.step + 1,
                    "loss",
                    f"the loss of step {self.step + 1} is {value}: stopped; files saved before are untouched",
                )
            self._losses.append(value)
        return loss

    def all_reduce_network(self, accelerator: Any, network: Any) -> None:
        """TN:1447, before the optimizer. Mixed fp16 has a scaler, which passes over such steps itself."""
        parent: Any = super()
        parent.all_reduce_network(accelerator, network)
        if accelerator.scaler is None and not checks.is_finite_norm(network.parameters()):
            raise NonFiniteError(
                self.step + 1,
                "gradient",
                f"the gradient of step {self.step + 1} is not finite: stopped; files saved before are untouched",
            )

    def sample_images(self, accelerator: Any, args: Any, epoch: int | None, global_step: int, *rest: Any) -> None:
        """TN:237: called before training (epoch 0), after each step (epoch None) and after each epoch."""
        if epoch is None:
            self._finish_step(global_step)
        elif self._leaving:
            raise Stopped(self.step)
        else:
            self._leave_early()
        if self._is_sampling_due(args, epoch, global_step):
            self._draw_samples(accelerator, args, epoch, global_step, rest)
        if epoch is None:
            self._take_orders(args, last=global_step >= args.max_train_steps)
        self._mark, self._paused = time.monotonic(), 0.0

    def _finish_step(self, step: int) -> None:
        self.step = step
        losses, self._losses = self._losses, []
        self.control.emit(
            "step",
            step=step,
            epoch=(step - 1) // self.steps_per_epoch + 1,
            loss=sum(losses) / max(1, len(losses)),
            lr=self._rate,
            seconds=round(time.monotonic() - self._mark - self._paused, 4),
            memory=checks.measure_memory(self.accelerator.device),
        )

    def _take_orders(self, args: Any, *, last: bool) -> None:
        """Have TN save right after this hook (TN:1497), under its own names, when a stop or a save was asked for."""
        stop = self.control.stop_requested is not None
        if not (self.control.take_save() or stop):
            return
        if last:
            args.save_state_on_train_end = True
            return
        self._leaving = stop
        self._restore = {"save_every_n_steps": args.save_every_n_steps, "save_state": args.save_state}
        if args.save_every_n_steps is None:
            # Without a rhythm these mean nothing, and TU:5803 would divide by None.
            args.save_last_n_steps = args.save_last_n_steps_state = None
        args.save_every_n_steps, args.save_state = 1, True

    def _leave_early(self) -> None:
        """Stop at once as long as this process has trained nothing that could be saved."""
        if self.control.stop_requested is not None and self.step == self.first_step:
            raise Stopped(self.step)

    # --- samples

    def _is_sampling_due(self, args: Any, epoch: int | None, step: int) -> bool:
        """Before training (what the base makes of the prompts), in the preset's rhythm, on request, and at the end."""
        ordered = epoch is None and self.control.take_sample()
        if not args.sample_prompts or self.control.stop_requested is not None:
            return False
        if epoch is None:
            rhythm = None if args.sample_every_n_epochs else args.sample_every_n_steps
            return ordered or step >= args.max_train_steps or bool(rhythm and step % rhythm == 0)
        if epoch == 0:
            return self.first_step == 0
        return bool(args.sample_every_n_epochs and epoch % args.sample_every_n_epochs == 0 and self._sampled_at != step)

    def _draw_samples(self, accelerator: Any, args: Any, epoch: int | None, step: int, rest: tuple[Any, ...]) -> None:
        folder = Path(args.output_dir) / "sample"
        before = set(folder.glob("*.png"))
        parent: Any = super()
        # TU:6380 decides by these whether to sample; dropout is for training only, and TN leaves it on.
        every_epoch = None if epoch is None else 1
        forced = {"sample_at_first": True, "sample_every_n_steps": 1, "sample_every_n_epochs": every_epoch}
        with change(args, forced):
            self.network.eval()
            parent.sample_images(accelerator, args, epoch, step, *rest)
            self.network.train()
        self._sampled_at = step
        prompts = sys.modules["library.train_util"].load_prompts(args.sample_prompts)
        for path in sorted(set(folder.glob("*.png")) - before):
            if found := SAMPLE_NAME.search(path.name):
                index = int(found["index"])
                seed = int(found["seed"]) if found["seed"] else None
                prompt = prompts[index].get("prompt", "")
                self.control.emit("sample", step=step, index=index, seed=seed, prompt=prompt, path=str(path))

    # --- files

    def _watch_weights(self, save_weights: Callable[..., None]) -> Callable[..., None]:
        """`network.save_weights(file, dtype, metadata)`, refusing what is not finite, and writing all or nothing."""

        def save(file: str, dtype: Any, metadata: dict[str, str] | None) -> None:
            began = time.monotonic()
            if not all(value.to(dtype or value.dtype).isfinite().all() for value in self.network.state_dict().values()):
                raise NonFiniteError(
                    self.step, "weights", f"the weights after step {self.step} are not finite as {dtype}; not saved"
                )
            if metadata is not None:
                checks.correct_base_hash(metadata, self.args.pretrained_model_name_or_path)
            path = Path(file)
            part = path.with_name(f"{path.stem}.part{path.suffix}")
            try:
                save_weights(str(part), dtype, metadata)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            if path.stem == (self.args.output_name or "last"):
                self.final_path = path
            self._paused += time.monotonic() - began
            self.control.emit("save", step=self.step, path=str(path))

        return save

    def _watch_state(self, save_state: Callable[..., Any]) -> Callable[..., None]:
        """`accelerator.save_state(folder)`, whole or not at all."""

        def save(output_dir: str, *rest: Any, **named: Any) -> None:
            began = time.monotonic()
            folder = Path(output_dir)
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            save_state(str(part), *rest, **named)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            for name, value in self._restore.items():
                setattr(self.args, name, value)
            self._restore = {}
            self._paused += time.monotonic() - began
            self.control.emit("state", step=self.step, path=str(folder))

        return save

    def _watch_encode(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """`vae.encode`, so that a stop does not wait for the latents of a whole data set."""

        def leave_or_encode(*rest: Any, **named: Any) -> Any:
            self._leave_early()
            return encode(*rest, **named)

        return leave_or_encode

    def _check_latents(self, dataset: Any) -> None:
        """Refuse cached latents that are not finite, and delete their files: sd-scripts would read them for ever."""
        bad = [info for info in checks.list_images(dataset) if not checks.has_finite_latents(info)]
        if bad:
            for info in bad:
                if info.latents_npz:
                    Path(info.latents_npz).unlink(missing_ok=True)
            names = ", ".join(Path(info.absolute_path).name for info in bad[:3]) + (" ..." if len(bad) > 3 else "")
            message = f"the latents of {len(bad)} images are not finite ({names}); {checks.advise_vae(self.args)}"
            raise NonFiniteError(self.step, "latents", message)


@contextmanager
def change(args: Any, values: dict[str, Any]) -> Iterator[None]:
    """`args` with other `values`, for a while."""
    before = {name: getattr(args, name) for name in values}
    for name, value in values.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
