"""What several training processes agree on. Nothing here is called, or costs anything, in a run of one process.

sd-scripts saves states in the main process only, and so loses the random states of the others; and its hooks that
choose what a state holds (train_network.py:925, 946) look for the LoRA's class, which DistributedDataParallel hides:
a state of a stock run with two GPUs has no weights in it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def add_up(accelerator: Any, numbers: Any) -> Any:
    """The sum of the tensor `numbers` over all processes, in all processes."""
    return accelerator.reduce(numbers, reduction="sum")


def gather_random(accelerator: Any) -> list[dict[str, Any]]:
    """The random states of all processes, in each of them, as accelerate.checkpointing writes them."""
    import numpy as np
    import torch
    from accelerate.utils import gather_object

    state = {
        "step": accelerator.step,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),  # noqa: NPY002 - accelerate's
        "torch_manual_seed": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    states: list[dict[str, Any]] = gather_object([state])
    return states


def write_random(states: list[dict[str, Any]], folder: Path) -> None:
    """Add the random states of the other processes to the state that the main process wrote to `folder`."""
    import torch

    for rank, state in enumerate(states[1:], start=1):
        torch.save(state, folder / f"random_states_{rank}.pkl")


def bare_states(accelerator: Any) -> None:
    """Let states hold the models themselves, without DistributedDataParallel: its class, its `module.` in each name.

    A state is then the same for any number of processes, and the hooks of sd-scripts find the LoRA.
    """
    register = accelerator.register_save_state_pre_hook

    def strip_names(_models: list[Any], weights: list[dict[str, Any]], _folder: str) -> None:
        weights[:] = [{name.removeprefix("module."): value for name, value in state.items()} for state in weights]

    def strip_models(models: list[Any], _folder: str) -> None:
        models[:] = [accelerator.unwrap_model(model) for model in models]

    def register_bare(hook: Callable[..., None]) -> Any:
        def call(models: list[Any], weights: list[Any], folder: str) -> None:
            hook([accelerator.unwrap_model(model) for model in models], weights, folder)

        return register(call)

    register(strip_names)
    accelerator.register_load_state_pre_hook(strip_models)
    accelerator.register_save_state_pre_hook = register_bare
