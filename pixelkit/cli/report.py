"""How results and errors look on a terminal. Only the result's path goes to standard output in `run`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pixelkit.errors import PixelkitError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pixelkit.pipeline import Watcher
    from pixelkit.plan import Plan
    from pixelkit.ship import Shipment

MOST_PROBLEMS = 100


def stdout() -> Console:
    """For tables that are the command's answer; wide where nobody looks, so that no cell is cut."""
    return Console(file=sys.stdout, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def stderr() -> Console:
    """For everything beside the answer."""
    return Console(file=sys.stderr, soft_wrap=True)


def print_error(error: PixelkitError) -> None:
    """Every finding on a line of its own (of very many the first), then what is wrong and what to do."""
    console = stderr()
    for problem in error.problems[:MOST_PROBLEMS]:
        console.print(escape(str(problem)), highlight=False)
    if more := len(error.problems[MOST_PROBLEMS:]):
        console.print(f"... and {more} more", highlight=False)
    label = f"error ({error.kind})" if isinstance(error, TrainingError) else "error"
    console.print(f"[bold red]{label}:[/] {escape(error.message)}", highlight=False)
    if error.hint:
        console.print(escape(error.hint), highlight=False)


@contextmanager
def watching() -> Iterator[Watcher]:
    """A progress display on standard error for as long as the block runs."""
    from pixelkit.display import Display
    from pixelkit.pipeline import Watcher
    from pixelkit.progress import LogLine

    with Display() as display:
        yield Watcher(
            on_prepared=lambda done, total: display.show(LogLine(text=f"preparing sprites {done}/{total}")),
            on_event=display.show,
        )


def print_shipment(shipment: Shipment) -> None:
    """What came out, on standard error; the model's path as the last line of standard output."""
    console = stderr()
    for line in shipment.summary:
        console.print(escape(line), highlight=False)
    click.echo(shipment.model)


def print_plan(plan: Plan) -> None:
    """The plan as a table: value, and where it comes from."""
    out = stdout()
    dataset, train, sample = plan.dataset, plan.train, plan.sample
    out.print(
        f"[bold]{escape(plan.name)}[/]: {plan.method} on {plan.base.name} ({escape(plan.base.spec.title)}) "
        f"with the {plan.engine} engine",
        highlight=False,
    )
    out.print(f"base      {escape(plan.base.location)}{'' if plan.base.local else '  (from the hub)'}", highlight=False)
    out.print(f"hardware  {plan.hardware}: {escape(str(plan.machine))}", highlight=False)
    sizes = sorted({(s.canvas.sprite_width, s.canvas.sprite_height, s.canvas.scale) for s in dataset.sprites})
    shown = ", ".join(f"{width}x{height} x{scale}" for width, height, scale in sizes[:4]) + (
        ", ..." if len(sizes) > 4 else ""
    )
    buckets = ", ".join(f"{bucket.width}x{bucket.height}: {bucket.images}" for bucket in dataset.buckets[:6])
    class_images = f", {len(dataset.class_sprites)} class images" if dataset.class_sprites else ""
    out.print(
        f"sprites   {len(dataset.sprites)} from {escape(str(dataset.source))} ({shown}){class_images}", highlight=False
    )
    out.print(f"canvases  {buckets} images an epoch", highlight=False)
    table = Table("value", "", "from", box=None, header_style="bold")
    fused = ", fused" if train.fused_optimizer else ""
    lora: dict[str, object] = {
        "network.rank": plan.network.rank,
        "network.alpha": f"{plan.network.alpha:g}",
        "network.dropout": plan.network.dropout,
        "network.conv_rank": plan.network.conv_rank or "none",
    }
    rows: dict[str, object] = {
        "dataset.resolution": dataset.resolution,
        "dataset.repeats": dataset.repeats,
        "dataset.trigger": dataset.trigger or "none",
        "dataset.background": dataset.background,
        **(lora if plan.method == "lora" else {}),
        "train.steps": f"{train.steps} = {train.epochs:g} epochs of {train.steps_per_epoch}",
        "train.batch_size": train.batch_size,
        "train.gradient_accumulation": f"{train.gradient_accumulation} (effective batch {train.effective_batch})",
        "train.learning_rate": f"{train.learning_rate:g}",
        "train.text_encoder": train.train_text_encoder,
        **(
            {"train.text_encoder_learning_rate": f"{train.text_encoder_learning_rate:g}"}
            if train.train_text_encoder
            else {}
        ),
        "train.optimizer": f"{train.optimizer}{fused}",
        "train.scheduler": train.scheduler,
        "train.warmup_steps": train.warmup_steps,
        "train.precision": train.precision,
        "train.gradient_checkpointing": train.gradient_checkpointing,
        "train.min_snr_gamma": train.min_snr_gamma,
        "train.noise_offset": train.noise_offset,
        "train.max_grad_norm": train.max_grad_norm,
        "train.caption_dropout": train.caption_dropout,
        "train.shuffle_caption": train.shuffle_caption,
        "train.save_every_steps": train.save_every_steps or "only at the end",
        "train.seed": train.seed,
        "sample.every_steps": sample.every_steps or "first and last",
        "sample.sampler": f"{sample.sampler}, {sample.steps} steps, guidance {sample.guidance:g}",
        **({f"kohya.{key}": value for key, value in plan.kohya.items()} if plan.engine == "kohya" else {}),
    }
    for name, value in rows.items():
        table.add_row(name, _plain(value), escape(plan.sources.get(name, "default")))
    out.print(table)
    out.print(
        f"memory    about {plan.memory_gib:.1f} GiB expected (computed), "
        f"{plan.machine.available_gib:.1f} of {plan.machine.memory_gib:.1f} GiB free",
        highlight=False,
    )
    for warning in plan.warnings:
        out.print(f"[yellow]warning[/]   {escape(warning)}", highlight=False)


def print_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """A manifest, its nested values as JSON."""
    out = stdout()
    out.print(escape(str(path)), highlight=False)
    for key, value in manifest.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        out.print(f"[bold]{key}[/]  {escape(text)}", highlight=False)


def _plain(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else escape(str(value))
