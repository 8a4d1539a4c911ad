"""How results and errors look on a terminal. Only the result's path goes to standard output in `run`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pixelkit.errors import Interrupted, PixelkitError, Problem, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from pixelkit.pipeline import Watcher
    from pixelkit.plan import Plan
    from pixelkit.rundir import RunDir
    from pixelkit.ship import Shipment

MOST_PROBLEMS = 100


def print_table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> None:
    """Rows in aligned columns on standard output. (rich would do it too, and take longer to load than `check` to run.)"""
    cells = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, *([header] if header else []), strict=True)]
    for row in ([list(header)] if header else []) + cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if row == list(header) else line)


def print_error(error: PixelkitError) -> None:
    """Every finding on a line of its own (of very many the first), then what is wrong and what to do."""
    for problem in error.problems[:MOST_PROBLEMS]:
        click.echo(problem, err=True)
    if more := len(error.problems[MOST_PROBLEMS:]):
        click.echo(f"... and {more} more", err=True)
    label = f"error ({error.kind})" if isinstance(error, TrainingError) else "error"
    click.echo(f"{click.style(f'{label}:', fg='red', bold=True)} {error.message}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)


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


@contextmanager
def notifying(watcher: Watcher) -> Iterator[Watcher]:
    """The same watcher; when the block ends, however, the user's own command or webhook is told of the run."""
    from pixelkit.notify import Ended, notify
    from pixelkit.progress import Notice

    begun: list[RunDir] = []
    state, message = "failed", ""
    try:
        yield replace(watcher, on_run=begun.append)
        state = "done"
    except (Interrupted, KeyboardInterrupt) as error:
        state, message = "interrupted", str(error)
        raise
    except PixelkitError as error:
        message = error.message
        raise
    finally:
        for run in begun[-1:]:
            manifest = run.read_manifest()
            ended = Ended(
                event="run",
                name=run.path.name,
                state=state,
                run=str(run.path),
                model=str(manifest.get("model", "")),
                message=message,
                log=run.log,
            )
            for warning in notify(ended):
                watcher.on_event(Notice(text=warning))


@contextmanager
def progressing(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with an ETA on standard error; call it with (done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_notes(remarks: Iterable[str], skipped: Sequence[Problem]) -> None:
    """What an artist should know, and what was left out, on standard error."""
    for remark in remarks:
        click.echo(f"{click.style('warning', fg='yellow')}   {remark}", err=True)
    for problem in skipped[:MOST_PROBLEMS]:
        click.echo(f"{click.style('left out', fg='yellow')}  {problem}", err=True)
    if more := len(skipped[MOST_PROBLEMS:]):
        click.echo(f"... and {more} more", err=True)


def print_shipment(shipment: Shipment) -> None:
    """What came out, on standard error; the model's path as the last line of standard output."""
    for line in shipment.summary:
        click.echo(line, err=True)
    click.echo(shipment.model)


def print_plan(plan: Plan) -> None:
    """The plan as a table: value, and where it comes from."""
    dataset, train, sample = plan.dataset, plan.train, plan.sample
    sizes = sorted({(s.canvas.sprite_width, s.canvas.sprite_height, s.canvas.scale) for s in dataset.sprites})
    shown = [f"{width}x{height} x{scale}" for width, height, scale in sizes[:4]] + ["..."] * (len(sizes) > 4)
    class_images = f", {len(dataset.class_sprites)} class images" if dataset.class_sprites else ""
    buckets = ", ".join(f"{bucket.width}x{bucket.height}: {bucket.images}" for bucket in dataset.buckets[:6])
    title = f"{plan.method} on {plan.base.name} ({plan.base.spec.title}) with the {plan.engine} engine"
    click.echo(f"{click.style(plan.name, bold=True)}: {title}")
    click.echo(f"base      {plan.base.location}{'' if plan.base.local else '  (from the hub)'}")
    for path, strength in plan.base_loras:
        click.echo(f"          with {path} at {strength:g} baked into it")
    click.echo(f"hardware  {plan.hardware}: {plan.machine}")
    click.echo(f"sprites   {len(dataset.sprites)} from {dataset.source} ({', '.join(shown)}){class_images}")
    click.echo(f"canvases  {buckets} images an epoch")
    fused = ", fused" if train.fused_optimizer else ""
    lora: dict[str, object] = {
        "network.kind": plan.network.kind,
        "network.rank": plan.network.rank,
        "network.alpha": f"{plan.network.alpha:g}",
        "network.dropout": plan.network.dropout,
        "network.conv_rank": plan.network.conv_rank or "none",
        **({"network.start_from": plan.network.start_from} if plan.network.start_from else {}),
    }
    word: dict[str, object] = (
        {"embedding.vectors": plan.embedding.vectors, "embedding.start_word": plan.embedding.start_word or "noise"}
        if plan.embedding
        else {}
    )
    rows: dict[str, object] = {
        "dataset.resolution": dataset.resolution,
        "dataset.repeats": dataset.repeats,
        "dataset.trigger": dataset.trigger or "none",
        "dataset.background": dataset.background,
        **{"lora": lora, "model": {}, "embedding": word}[plan.makes],
        "train.steps": f"{train.steps} = {train.epochs:g} epochs of {train.steps_per_epoch}",
        "train.batch_size": train.batch_size,
        **({"train.gpus": train.gpus} if train.gpus > 1 else {}),
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
    table = [(name, value, plan.sources.get(name, "default")) for name, value in rows.items()]
    print_table(table, header=("value", "", "from"))
    from pixelkit.measures import MeasureBook, describe, forecast

    for line in describe(forecast(plan, MeasureBook())):
        click.echo(line)
    for warning in plan.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}   {warning}")


def print_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """A manifest, its nested values as JSON."""
    click.echo(path)
    for key, value in manifest.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        click.echo(f"{click.style(key, bold=True)}  {text}")


def _plain(value: object) -> str:
    if value is None:
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
