"""What training starts from: the base, with LoRAs baked in where the preset says so, and an earlier LoRA at the new rank."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelkit.catalog import Base
    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir

BASES = ".bases"


@dataclass(frozen=True, kw_only=True)
class Start:
    """`base`: a base made for this run, or None; `weights`: the LoRA to go on from, or None; `remarks` for the user."""

    base: Path | None = None
    weights: Path | None = None
    remarks: tuple[str, ...] = ()

    def settle(self, base: Base) -> Base:
        """The plan's base, or the one that was made of it."""
        return replace(base, location=str(self.base), local=True) if self.base else base


def plan_start(plan: Plan, run: RunDir, runs: Path) -> Start:
    """Where the files will lie; nothing is made."""
    return Start(
        base=runs.resolve() / BASES / _name_base(plan) if plan.base_loras else None,
        weights=run.path / "start" / f"{plan.name}-start.safetensors" if plan.network.start_from else None,
    )


def make_start(
    plan: Plan, run: RunDir, runs: Path, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Start:
    """Make what is not there yet. A baked base lies in the runs folder, for every run with the same base and LoRAs.

    Raises WeightsError: a LoRA of another base, or broken.
    """
    start = plan_start(plan, run, runs)
    if start == Start():
        return start
    from converters import ConversionError  # noqa: PLC0415 - numpy, which planning does without

    remarks: list[str] = []
    try:
        if start.base and not start.base.exists():
            remarks.append(_bake(plan, start.base, on_progress))
        if start.weights and plan.network.start_from and not start.weights.exists():
            remarks += _fit(plan, plan.network.start_from, start.weights)
    except ConversionError as error:
        raise WeightsError(f"what training starts from cannot be made: {error}") from error
    return replace(start, remarks=tuple(remarks))


def _name_base(plan: Plan) -> str:
    """The same base and LoRAs, by path, size and time of change, have the same name."""
    digest = hashlib.sha256()
    for path, strength in ((Path(plan.base.location), 1.0), *plan.base_loras):
        files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
        about = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        digest.update(repr((str(path), strength, about)).encode())
    name = f"{Path(plan.base.location).stem}-{digest.hexdigest()[:16]}"
    return name if Path(plan.base.location).is_dir() else f"{name}.safetensors"


def _bake(plan: Plan, out: Path, on_progress: Callable[[int, int], None]) -> str:
    from converters.bake import bake  # noqa: PLC0415

    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part{out.suffix}")
    try:
        made = bake(
            [path for path, _ in plan.base_loras],
            plan.base.location,
            part,
            weights=[strength for _, strength in plan.base_loras],
            overwrite=True,
            on_progress=on_progress,
        )
        if not out.exists():
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if part.is_file():
            part.unlink()
    names = ", ".join(f"{path.name} at {strength:g}" for path, strength in plan.base_loras)
    return f"baked into the base: {names} ({made.layers} layers; rounding took {made.lost:.1%} of their effect)"


def _fit(plan: Plan, source: Path, out: Path) -> list[str]:
    from converters.start import Shape, fit  # noqa: PLC0415

    network = plan.network
    text_encoders = ("text_encoder", "text_encoder_2", "text_encoder_3") if plan.train.train_text_encoder else ()
    shape = Shape(rank=network.rank, alpha=network.alpha, conv_rank=network.conv_rank, conv_alpha=network.conv_alpha)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.stem}.part.safetensors")
    part.unlink(missing_ok=True)
    made = fit(source, part, shape, components=frozenset({"unet", "transformer", *text_encoders}))
    part.rename(out)
    cost = f"; the rank cost {made.error:.1%} of it" if made.error > 5e-4 else ""
    left = f"; {len(made.left_out)} of its modules are not trained here and were left behind" if made.left_out else ""
    return [f"goes on from {source.name} at rank {network.rank}{cost}{left}"]
