"""Resuming a LoRA run of sd-scripts so that steps, epochs, file names and metadata go on where they were.

sd-scripts restores weights, optimizer, scheduler and random state, but not its step counter: plain `--resume` counts
from 0 again and rewrites old files, and `--skip_until_initial_step` is right only within the first epoch and without
accumulation. The counter is a local variable of `NetworkTrainer.train`, out of every hook's reach, so four lines of
that method are replaced (PATCHES), in memory, and only for a run that resumes.

Not exact: the order of the images within the epoch that is resumed. sd-scripts draws it anew from the restored
random state, so an image may be seen twice, and another not, in that one epoch.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

from pixelkit.engines.kohya.hooks import Refusal

# (line of train_network.py at the pinned commit, what stands there, what stands there when resuming)
PATCHES: Final = (
    # Batches behind us: an epoch's last step may hold fewer than gradient_accumulation_steps.
    (
        1266,
        "initial_step *= args.gradient_accumulation_steps",
        "initial_step = self.count_batches(initial_step, len(train_dataloader), args.gradient_accumulation_steps)",
    ),
    # Batches over batches an epoch; there it is batches over steps an epoch.
    (
        1269,
        "epoch_to_start = initial_step // math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)",
        "epoch_to_start = initial_step // len(train_dataloader)",
    ),
    # The step counter; there it is the batches to skip in the first epoch.
    (1344, "global_step = initial_step", "global_step = self.first_step"),
    # The length of the progress bar.
    (1358, "range(args.max_train_steps - initial_step)", "range(args.max_train_steps - self.first_step)"),
)


def find_first_step(args: Any, resume_step: int | None) -> int:
    """The optimizer steps that are behind this run; 0 for a new one. Sets `args.initial_step` where it must be told.

    `resume_step` counts over `args.initial_step`, and that over the state's own train_state.json.
    """
    if resume_step is not None:
        args.initial_step = resume_step
    if args.initial_step is not None:
        return int(args.initial_step)
    if not args.resume or args.initial_epoch is not None:
        return 0
    state = Path(args.resume) / "train_state.json"
    if not state.is_file():
        return 0
    try:
        return int(json.loads(state.read_text(encoding="utf-8"))["current_step"])
    except (ValueError, KeyError, TypeError) as problem:
        raise Refusal(f"{state} does not say at which step it was saved: {problem}") from problem


def count_batches(steps: int, batches: int, accumulation: int) -> int:
    """How many batches `steps` optimizer steps consume, at `batches` an epoch: an epoch's end always makes a step."""
    steps_per_epoch = -(-batches // accumulation)
    return steps // steps_per_epoch * batches + steps % steps_per_epoch * accumulation


def continue_train(base: type[Any]) -> type[Any]:
    """A subclass of the trainer `base` whose `train` counts on from `self.first_step`."""
    original = base.train
    module = sys.modules[original.__module__]
    lines, start = inspect.getsourcelines(original)
    for number, old, new in PATCHES:
        index = number - start
        if not (0 <= index < len(lines)) or old not in lines[index]:
            raise Refusal(f"cannot resume: {module.__file__}:{number} is not the pinned sd-scripts (expected `{old}`)")
        lines[index] = lines[index].replace(old, new)
    # Compiled under its own name and line numbers, so that a traceback shows the file as it is.
    source = "\n" * (start - 1) + textwrap.dedent("".join(lines))
    scope: dict[str, Any] = {}
    exec(compile(source, str(module.__file__), "exec"), module.__dict__, scope)  # noqa: S102
    return type("ResumedTrainer", (base,), {"train": scope["train"], "count_batches": staticmethod(count_batches)})
