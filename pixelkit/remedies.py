"""What to change in a plan whose training failed: a ladder of rungs for want of memory, one change for numbers that ran away.

Each change is said in the preset's own keys, so that it is an override for now and a line of TOML for good.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pixelkit.plan import Plan

Overrides = Mapping[str, object]
"""Dotted key of a preset -> value."""

# How far blocks may be swapped: as sd-scripts allows it, and the profiles of small cards have it.
SWAPS: Final[Mapping[str, tuple[int, ...]]] = {"flux": (8, 16, 28), "sd3": (8, 16)}
FP8: Final[Mapping[str, str]] = {"sdxl": "fp8_base_unet", "sd15": "fp8_base", "sd3": "fp8_base", "flux": "fp8_base"}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A way to need less memory. `step_down` gives what changes, or None where the rung does not apply (any more).

    `says` may name the keys of what changes. `starts_optimizer_anew`: a state of before does not fit; the weights do.
    """

    name: str
    says: str
    step_down: Callable[[Plan], Overrides | None]
    starts_optimizer_anew: bool = False

    def tell(self, changes: Overrides) -> str:
        """For the user."""
        return self.says.format_map({key.rpartition(".")[2]: value for key, value in changes.items()})


def _checkpoint(plan: Plan) -> Overrides | None:
    return None if plan.train.gradient_checkpointing else {"train.gradient_checkpointing": True}


def _halve_batch(plan: Plan) -> Overrides | None:
    """Images per optimizer step stay, and with them the number of steps, however the preset counts them."""
    train = plan.train
    if train.batch_size == 1:
        return None
    smaller = max(size for size in range(1, train.batch_size // 2 + 1) if train.batch_size % size == 0)
    changes: dict[str, object] = {
        "train.batch_size": smaller,
        "train.gradient_accumulation": train.gradient_accumulation * train.batch_size // smaller,
        "train.steps": train.steps,
        "train.gradient_checkpointing": train.gradient_checkpointing,  # a profile may want none for small batches
    }
    # Epochs are counted in steps, and with another batch size an epoch may have another number of them.
    if plan.preset.train.save_every_epochs:
        changes["train.save_every_steps"] = train.save_every_steps
    if plan.preset.sample.every_epochs:
        changes["sample.every_steps"] = plan.sample.every_steps
    return changes


def _quantize_optimizer(plan: Plan) -> Overrides | None:
    fits = plan.engine == "kohya" and plan.method == "lora" and plan.network.kind == "lora" and plan.device == "cuda"
    if not fits or plan.train.optimizer != "adamw" or "optimizer_type" in plan.kohya or not has_bitsandbytes():
        return None
    return {"train.optimizer": "adamw8bit"}


def _quantize_base(plan: Plan) -> Overrides | None:
    option = FP8.get(plan.base.spec.family)
    fits = plan.engine == "kohya" and plan.method == "lora" and plan.device == "cuda" and plan.train.precision != "no"
    if not fits or option is None or plan.kohya.get(option) or plan.kohya.get("fp8_base"):
        return None
    return {f"kohya.{option}": True}


def _swap_blocks(plan: Plan) -> Overrides | None:
    swaps = SWAPS.get(plan.base.spec.family, ())
    if plan.engine != "kohya" or plan.device != "cuda" or plan.machine.unified:
        return None  # where the device shares the machine's memory there is nowhere to swap to
    now = plan.kohya.get("blocks_to_swap") or 0
    more = next((count for count in swaps if isinstance(now, int) and count > now), None)
    return {"kohya.blocks_to_swap": more} if more else None


def has_bitsandbytes() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


LADDER: Final[tuple[Rung, ...]] = (
    Rung(
        name="gradient checkpointing",
        says="gradient checkpointing on (slower by about a third)",
        step_down=_checkpoint,
    ),
    Rung(
        name="smaller batch",
        says="batch size {batch_size} with gradient accumulation {gradient_accumulation}: as many images a step as before",
        step_down=_halve_batch,
    ),
    Rung(
        name="8-bit optimizer",
        says="AdamW in 8 bits, which starts anew on the weights of the last step file; the learning rate goes on",
        step_down=_quantize_optimizer,
        starts_optimizer_anew=True,
    ),
    Rung(name="fp8 base", says="the base in 8 bits", step_down=_quantize_base),
    Rung(name="swapped blocks", says="{blocks_to_swap} blocks of the base wait in main memory", step_down=_swap_blocks),
)
"""From what costs least to what costs most; a rung that still applies is taken again before the next."""


@dataclass(frozen=True, kw_only=True)
class Mend:
    """Why a training ran out of numbers, by what is known of it, and the one change that mends it, where there is one."""

    why: str
    changes: Overrides


def propose_mend(plan: Plan, what: str, step: int) -> Mend:
    """`what` was not finite (loss, gradient, latents, weights) in optimizer step `step`, from 1."""
    train = plan.train
    if what == "latents":
        return _mend_vae(plan)
    if train.precision == "fp16":
        has_bf16 = plan.device == "rocm" or (plan.device == "cuda" and plan.machine.capability >= (8, 0))
        precision = "bf16" if has_bf16 else "no"
        why = f"mixed fp16 ends at 65,504, which this base passes; {precision} does not"
        return Mend(why=why, changes={"train.precision": precision})
    if step <= 1:
        why = (
            "it was so in the very first step, before anything was learned: the base's file is damaged, or an image is"
        )
        return Mend(why=why, changes={})
    most = plan.base.spec.ranges.get("train.learning_rate", [0.0, float("inf")])[1]
    rate = f"learning_rate = {train.learning_rate:g}"
    why = (
        f"{rate} is above the usual range of {plan.base.name}, which ends at {most:g}"
        if train.learning_rate > most
        else f"the weights ran away, mostly for a learning rate that is too high ({rate})"
    )
    return Mend(why=why, changes={"train.learning_rate": float(f"{train.learning_rate / 2:.6g}")})


def _mend_vae(plan: Plan) -> Mend:
    full = plan.engine != "kohya" or plan.train.precision == "no" or plan.base.spec.family == "sdxl"
    if full or plan.kohya.get("no_half_vae"):
        return Mend(
            why="the base's VAE makes no numbers even in full precision: it is damaged, or an image is", changes={}
        )
    return Mend(why="the base's VAE overflows in half precision", changes={"kohya.no_half_vae": True})
