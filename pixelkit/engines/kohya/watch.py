"""The watch over one training process of sd-scripts: steps as events, orders obeyed, files whole, never a NaN saved.

`Watch` knows nothing of how a script is built. It sits on the Accelerator, which every script makes with
`train_util.prepare_accelerator` and goes through for each batch, and is told two things more, by hooks.py (scripts with
a trainer class) or scripts.py (plain ones): `visit`, in place of sampling, and `write_weights`, around saving.

The order of one optimizer step in every script: accelerator.accumulate and backward (once a batch), clip_grad_norm_,
the optimizer, sampling with epoch None (`visit`), the save. What was computed (losses, the norm of the gradient) stays
on the device until `visit` reads it all at once, where sd-scripts would read the loss: it costs no wait of its own.

TU is library/train_util.py at the pinned commit.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pixelkit.engines.kohya import checks, order, processes, samples
from pixelkit.engines.kohya.endings import NonFiniteError, Refusal, Stopped

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from pixelkit.engines.control import Control


class Orders(NamedTuple):
    """What all processes do after this step."""

    stop: bool = False
    save: bool = False
    sample: bool = False


class Watch:
    """A run, watched. `step` is the optimizer step done last, counted over resumed runs.

    `first_step` steps were done by the run that is gone on from. `loaded` is set when the first step may begin.
    `final_path` is where the result lies, once it does.
    """

    def __init__(self, control: Control, *, first_step: int, versions: dict[str, str], loaded: threading.Event) -> None:
        self.control = control
        self.versions = versions
        self.loaded = loaded
        self.first_step = self.step = first_step
        self.steps_per_epoch = 1
        self.final_path: Path | None = None
        self.args: Any = None
        self.accelerator: Any = None
        self._alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self._loader: Any = None
        self._losses: list[Any] = []
        self._norms: list[Any] = []
        self._broken_latents: list[Any] = []
        self._random_states: list[dict[str, Any]] = []
        self._rate = 0.0
        self._sampled_at = -1
        self._leaving = False
        self._restore: dict[str, Any] = {}
        self._mark = time.monotonic()
        self._paused = 0.0

    # --- before the first step

    def attach(self) -> None:
        """Watch what every script calls in sd-scripts' library. Once, before the script runs."""
        from library import train_util

        prepare, cache = train_util.prepare_accelerator, train_util.DatasetGroup.new_cache_latents

        def prepare_accelerator(args: Any) -> Any:
            accelerator = prepare(args)
            self.adopt(args, accelerator)
            return accelerator

        def new_cache_latents(group: Any, vae: Any, accelerator: Any) -> None:
            encode = vae.encode
            vae.encode = self._watch_encode(encode)  # a stop does not wait for the latents of a whole data set
            cache(group, vae, accelerator)
            vae.encode = encode
            self._check_latents(group)

        train_util.prepare_accelerator = prepare_accelerator
        train_util.DatasetGroup.new_cache_latents = new_cache_latents

    def adopt(self, args: Any, accelerator: Any) -> None:
        """Sit on the `accelerator` of a run."""
        self.args, self.accelerator = args, accelerator
        self.leave_early()
        accelerator.prepare = self._watch_prepare(accelerator.prepare)
        accelerator.accumulate = self._watch_accumulate(accelerator.accumulate)
        accelerator.backward = self._watch_backward(accelerator.backward)
        accelerator.clip_grad_norm_ = self._watch_norm(accelerator.clip_grad_norm_)
        accelerator.save_state = self._watch_state(accelerator.save_state)
        if not self._alone:
            processes.bare_states(accelerator)

    def begin(self) -> None:
        """Everything is loaded, every count is known, and a state is loaded. Refuses a run that is over already."""
        args = self.args
        self.refuse_nothing_left(args)
        self.steps_per_epoch = -(-len(self._loader) // args.gradient_accumulation_steps)
        if self.first_step and not args.resume:
            for scheduler in self.accelerator._schedulers:  # noqa: SLF001
                for _ in range(self.first_step):
                    scheduler.step()
        self.loaded.set()
        self.control.emit(
            "begin",
            total=args.max_train_steps,
            epochs=math.ceil(args.max_train_steps / self.steps_per_epoch),
            step=self.first_step,
            pid=os.getpid(),
            engine="kohya",
            versions=self.versions,
        )

    def refuse_nothing_left(self, args: Any) -> None:
        """Refuse to go on from a step at or behind the last one."""
        if 0 < args.max_train_steps <= self.first_step:
            raise Refusal(
                f"nothing left to train: the state was saved at step {self.first_step}, "
                f"and the run ends at step {args.max_train_steps}; ask for more steps"
            )

    def leave_early(self) -> None:
        """Stop at once as long as nothing was trained that could be saved. Several processes take one step first."""
        if self._alone and self.control.stop_requested is not None and self.step == self.first_step:
            raise Stopped(self.step)

    def end(self) -> None:
        """Close the trackers, for a training loop that was left early."""
        if self.accelerator is not None:
            self.accelerator.end_training()

    # --- one step

    def note_latents(self, latents: Any) -> None:
        """Latents that were just encoded; sdxl_train and others would train on NaN as zeros."""
        self._broken_latents.append(~latents.isfinite().all())

    def visit(self, epoch: int | None, step: int, draw: Callable[[], None]) -> None:
        """In place of sampling: before training (epoch 0), after each step (epoch None), after each epoch.

        `draw` is sd-scripts' own sampling; it is called, and made to sample, where samples are due.
        """
        if self._leaving and epoch is not None:
            raise Stopped(self.step)
        self._restore_args()
        orders = Orders()
        if epoch is None:
            orders = self._finish_step(step)
        else:
            self.leave_early()
        if self._is_sampling_due(epoch, step, orders):
            self._draw_samples(epoch, step, draw)
        if epoch is None:
            self._obey(orders)
        self._mark, self._paused = time.monotonic(), 0.0

    def _finish_step(self, step: int) -> Orders:
        """Read what the step computed, in one go; the same in all processes."""
        self.step = step
        taken = Orders(self.control.stop_requested is not None, self.control.take_save(), self.control.take_sample())
        losses, norms, latents = self._losses, self._norms, self._broken_latents
        self._losses, self._norms, self._broken_latents = [], [], []
        numbers, orders = checks.read_numbers([*losses, *norms, *latents], taken, self.accelerator)
        loss = sum(numbers[: len(losses)]) / max(1, len(losses))
        kept = "stopped; files saved before are untouched"
        if any(numbers[len(losses) + len(norms) :]):
            message = f"the VAE made latents that are not finite; {checks.advise_vae(self.args)}"
            raise NonFiniteError(step, "latents", message)
        if not math.isfinite(loss):
            raise NonFiniteError(step, "loss", f"the loss of step {step} is {loss}: {kept}")
        if not all(math.isfinite(norm) for norm in numbers[len(losses) : len(losses) + len(norms)]):
            raise NonFiniteError(step, "gradient", f"the gradient of step {step} is not finite: {kept}")
        self.control.emit(
            "step",
            step=step,
            epoch=(step - 1) // self.steps_per_epoch + 1,
            loss=loss,
            lr=self._rate,
            seconds=round(time.monotonic() - self._mark - self._paused, 4),
            memory=checks.measure_memory(self.accelerator.device),
        )
        return Orders(*orders)

    def _obey(self, orders: Orders) -> None:
        """Have the script save right after this, under its own names, when a stop or a save was asked for."""
        args, last = self.args, self.step >= self.args.max_train_steps
        if (orders.stop or orders.save) and last:
            args.save_state_on_train_end = True
        elif orders.stop or orders.save:
            self._leaving = orders.stop
            self._restore = {"save_every_n_steps": args.save_every_n_steps, "save_state": args.save_state}
            if args.save_every_n_steps is None:
                # Without a rhythm these mean nothing, and TU:5803 would divide by None.
                args.save_last_n_steps = args.save_last_n_steps_state = None
            args.save_every_n_steps, args.save_state = 1, True
        rhythms = (args.save_every_n_steps, self.steps_per_epoch)
        if not self._alone and (last or any(rhythm and self.step % rhythm == 0 for rhythm in rhythms)):
            self._random_states = processes.gather_random(self.accelerator)

    def _restore_args(self) -> None:
        for name, value in self._restore.items():
            setattr(self.args, name, value)
        self._restore = {}

    def _watch_accumulate(self, accumulate: Callable[..., Any]) -> Callable[..., Any]:
        """`accelerator.accumulate(models)`, before each batch."""

        def start_batch(*models: Any) -> Any:
            if self._leaving:
                raise Stopped(self.step)
            self._restore_args()
            self.leave_early()
            self._rate = checks.read_rate(self.accelerator)
            return accumulate(*models)

        return start_batch

    def _watch_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        """`accelerator.backward(loss)`, the loss of one batch."""

        def note_loss(loss: Any, **named: Any) -> None:
            self._losses.append(loss.detach())
            backward(loss, **named)
            if self.accelerator.sync_gradients and not self.args.max_grad_norm:
                self._note_norm(checks.measure_norm(self.accelerator))

        return note_loss

    def _watch_norm(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        """`accelerator.clip_grad_norm_(parameters, max_norm)`, which returns the norm; not that of one alone (fused)."""

        def note_norm(parameters: Any, *rest: Any, **named: Any) -> Any:
            norm = clip(parameters, *rest, **named)
            if not hasattr(parameters, "grad"):
                self._note_norm(norm)
            return norm

        return note_norm

    def _note_norm(self, norm: Any) -> None:
        """Mixed fp16 has a scaler, which passes over steps whose gradient is not finite."""
        if norm is not None and self.accelerator.scaler is None:
            self._norms.append(norm)

    def _watch_prepare(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        """`accelerator.prepare(things)`: the training data gets our order."""

        def order_data(*things: Any, **named: Any) -> Any:
            self.leave_early()
            places = [place for place, thing in enumerate(things) if order.is_shuffling(thing)]
            given = list(things)
            for place in places:
                given[place] = order.order_batches(
                    things[place],
                    seed=self.args.seed,
                    processes=self.accelerator.num_processes,
                    accumulation=self.args.gradient_accumulation_steps,
                )
            prepared = prepare(*given, **named)
            for place in places:
                self._loader = prepared if len(things) == 1 else prepared[place]
            return prepared

        return order_data

    # --- samples

    def _is_sampling_due(self, epoch: int | None, step: int, orders: Orders) -> bool:
        """Before training (what the base makes of the prompts), in the preset's rhythm, on request, and at the end."""
        args = self.args
        if not args.sample_prompts or orders.stop or (self._alone and self.control.stop_requested is not None):
            return False
        if epoch is None:
            rhythm = None if args.sample_every_n_epochs else args.sample_every_n_steps
            return orders.sample or step >= args.max_train_steps or bool(rhythm and step % rhythm == 0)
        if epoch == 0:
            return self.first_step == 0
        return bool(args.sample_every_n_epochs and epoch % args.sample_every_n_epochs == 0 and self._sampled_at != step)

    def _draw_samples(self, epoch: int | None, step: int, draw: Callable[[], None]) -> None:
        for sample in samples.draw_samples(self.accelerator, self.args, epoch, draw):
            self.control.emit("sample", step=step, **sample)
        self._sampled_at = step

    # --- files

    def write_weights(self, path: Path, tensors: Iterable[Any], dtype: Any, write: Callable[[str], None]) -> None:
        """Have `write` make the file or folder `path`, whole or not at all, and not of `tensors` that overflow."""
        began = time.monotonic()
        if not checks.are_finite(tensors, dtype):
            raise NonFiniteError(
                self.step, "weights", f"the weights after step {self.step} are not finite as {dtype}; not saved"
            )
        part = path.with_name(f"{path.name}.part")
        remove(part)
        part.mkdir(parents=True)
        try:
            write(str(part / path.name))
            for file in sorted(part.iterdir(), key=lambda file: file.name == path.name):  # SD3 adds files for encoders
                if file.is_dir():
                    remove(path.with_name(file.name))
                file.replace(path.with_name(file.name))
        finally:
            remove(part)
        if (self.args.output_name or "last") in (path.name, path.stem):
            self.final_path = path
        self._paused += time.monotonic() - began
        self.control.emit("save", step=self.step, path=str(path))

    def _watch_state(self, save_state: Callable[..., Any]) -> Callable[..., None]:
        """`accelerator.save_state(folder)`, by the main process, whole or not at all, and saying its step."""

        def save(output_dir: str, *rest: Any, **named: Any) -> None:
            if not self.accelerator.is_main_process:
                return
            began = time.monotonic()
            folder = Path(output_dir)
            part = folder.with_name(f"{folder.name}.part")
            remove(part)
            save_state(str(part), *rest, **named)
            processes.write_random(self._random_states, part)
            told = {"current_epoch": max(0, self.step - 1) // self.steps_per_epoch + 1, "current_step": self.step}
            (part / "train_state.json").write_text(json.dumps(told), encoding="utf-8")
            remove(folder)
            part.rename(folder)
            self._restore_args()
            self._paused += time.monotonic() - began
            self.control.emit("state", step=self.step, path=str(folder))

        return save

    def _watch_encode(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def leave_or_encode(*rest: Any, **named: Any) -> Any:
            self.leave_early()
            return encode(*rest, **named)

        return leave_or_encode

    def _check_latents(self, dataset: Any) -> None:
        """Refuse cached latents that are not finite, and delete their files: sd-scripts would read them for ever."""
        bad = [info for info in checks.list_images(dataset) if not checks.has_finite_latents(info)]
        self.accelerator.wait_for_everyone()  # all have read the files
        if bad:
            for info in bad:
                if info.latents_npz:
                    Path(info.latents_npz).unlink(missing_ok=True)
            names = ", ".join(Path(info.absolute_path).name for info in bad[:3]) + (" ..." if len(bad) > 3 else "")
            message = f"the latents of {len(bad)} images are not finite ({names}); {checks.advise_vae(self.args)}"
            raise NonFiniteError(self.step, "latents", message)


def remove(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
