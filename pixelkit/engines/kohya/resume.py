"""Going on from a step of an earlier run, so that steps, epochs, files, metadata and the numbers themselves go on.

sd-scripts restores weights, optimizer, scheduler and random state, but not its step counter: plain `--resume` counts
from 0 again and rewrites old files, and `--skip_until_initial_step` (LoRA scripts only) is right only within the first
epoch and without accumulation. The counter is a local variable of `train`, out of every hook's reach, so four lines of
it are replaced (PATCHES), in memory, and only for a run that goes on.

Exact: on a CPU, 12 steps at once and 5 steps, a kill and 7 more from the state give the same losses and the same
weights, bit for bit, in any epoch, with gradient accumulation, caption dropout and shuffling, and any number of data
loader workers (order.py sees to the data; the global random state, which noise and timesteps come from, is part of the
state). Needed are the same seed, data, options and number of processes.

Not exact: GPU kernels that add up in any order (attention and convolution backward, unless torch is told to be
deterministic), other hardware or another torch; latents that are cached in memory only, where encoding them is itself
not exact; an optimizer that keeps numbers outside of its `state_dict`; and a run that starts from weights alone, whose
optimizer and noise are new: there steps, learning rate and the order of batches go on, and nothing else.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.engines.kohya.endings import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

# What stands there, and what stands there for a run that goes on. `resumed` is a Resumed.
_COUNTER: Final = ("global_step = 0", "global_step = resumed.first_step")
_BAR: Final = ("tqdm(range(args.max_train_steps)", "tqdm(range(args.max_train_steps - resumed.first_step)")
_EPOCHS: Final = (
    "in range(num_train_epochs):",
    "in range(resumed.first_step // num_update_steps_per_epoch, num_train_epochs):",
)
_BATCHES: Final = (
    "in enumerate(train_dataloader):",
    "in enumerate(resumed.skip_batches(accelerator, train_dataloader, epoch, args.gradient_accumulation_steps)):",
)


def _plain(bar: int, counter: int, epochs: int, batches: int) -> tuple[tuple[int, str, str], ...]:
    return (bar, *_BAR), (counter, *_COUNTER), (epochs, *_EPOCHS), (batches, *_BATCHES)


# By file at the pinned commit: (line, what stands there, what stands there when resuming)
PATCHES: Final = {
    "train_network": (
        # Batches behind us: an epoch's last step may hold fewer than gradient_accumulation_steps.
        (
            1266,
            "initial_step *= args.gradient_accumulation_steps",
            "initial_step = resumed.count_batches(len(train_dataloader), args.gradient_accumulation_steps)",
        ),
        # Batches over batches an epoch; there it is batches over steps an epoch.
        (
            1269,
            "epoch_to_start = initial_step // math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)",
            "epoch_to_start = initial_step // len(train_dataloader)",
        ),
        # The step counter; there it is the batches to skip in the first epoch.
        (1344, "global_step = initial_step", "global_step = resumed.first_step"),
        # The length of the progress bar.
        (1358, "range(args.max_train_steps - initial_step)", "range(args.max_train_steps - resumed.first_step)"),
    ),
    "train_db": _plain(296, 297, 327, 337),
    "sdxl_train": _plain(595, 596, 626, 633),
    "flux_train": _plain(552, 553, 583, 590),
    "sd3_train": _plain(679, 680, 737, 744),
    "train_textual_inversion": _plain(503, 504, 562, 571),
}


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A run of which `first_step` optimizer steps are done."""

    first_step: int

    def count_batches(self, batches: int, accumulation: int) -> int:
        """How many batches those steps consumed, at `batches` an epoch: an epoch's end always makes a step."""
        steps_per_epoch = -(-batches // accumulation)
        return self.first_step // steps_per_epoch * batches + self.first_step % steps_per_epoch * accumulation

    def skip_batches(self, accelerator: Any, loader: Any, epoch: int, accumulation: int) -> Any:
        """The batches that are left of `epoch`, from 0: all of `loader`, but for the first epoch of this run."""
        done = self.count_batches(len(loader), accumulation) - epoch * len(loader)
        return accelerator.skip_first_batches(loader, done) if done > 0 else loader


def find_first_step(args: Any, resume_step: int | None) -> int:
    """The optimizer steps that are behind this run; 0 for a new one. Sets `args.initial_step` where it must be told.

    `resume_step` counts over `args.initial_step`, and that over the state's own train_state.json. The first two also
    count without a state: the run goes on from weights.
    """
    if resume_step is not None:
        args.initial_step = resume_step
    if getattr(args, "initial_step", None) is not None:
        return int(args.initial_step)
    if not args.resume or getattr(args, "initial_epoch", None) is not None or args.resume_from_huggingface:
        return 0
    state = Path(args.resume) / "train_state.json"
    try:
        return int(json.loads(state.read_text(encoding="utf-8"))["current_step"])
    except FileNotFoundError as problem:
        raise Refusal(f"{args.resume} does not say at which step it was saved; give --resume-step") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise Refusal(f"{state} does not say at which step it was saved: {problem}") from problem


def continue_train(original: Callable[..., None], first_step: int) -> Callable[..., None]:
    """The function or method `train` of a script, counting on from `first_step`. Refuses any but the pinned one."""
    module = sys.modules[original.__module__]
    lines, start = inspect.getsourcelines(original)
    for number, old, new in PATCHES.get(Path(str(module.__file__)).stem, ((1, "nothing that is known", ""),)):
        index = number - start
        if not (0 <= index < len(lines)) or lines[index].count(old) != 1:
            raise Refusal(f"cannot resume: {module.__file__}:{number} is not the pinned sd-scripts (expected `{old}`)")
        lines[index] = lines[index].replace(old, new)
    # Compiled under its own name and line numbers, so that a traceback shows the file as it is.
    source = "\n" * (start - 1) + textwrap.dedent("".join(lines))
    scope: dict[str, Any] = {}
    module.__dict__["resumed"] = Resumed(first_step=first_step)
    exec(compile(source, str(module.__file__), "exec"), module.__dict__, scope)  # noqa: S102
    train: Callable[..., None] = scope["train"]
    return train
