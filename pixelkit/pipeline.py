"""`pixelkit run`: one straight line from a preset to a shipped model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit import __version__
from pixelkit.dataset.make import Making
from pixelkit.dataset.prepare import Prepared, describe_color, prepare
from pixelkit.engines.kohya.options import recognise_commit
from pixelkit.errors import DataError, EngineError, Interrupted, PixelkitError, StorageError
from pixelkit.measures import remember
from pixelkit.paths import write_atomically
from pixelkit.progress import Notice
from pixelkit.ready import Choices, Ready, make_ready, planned_data, render_configs, runs_folder
from pixelkit.rundir import RunDir, create_run, find_run, now
from pixelkit.ship import Shipment, ship
from pixelkit.sources.prepared import CLASS
from pixelkit.start import make_start
from pixelkit.track import open_trackers
from pixelkit.training import is_trained, resolved_preset, take_over, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pixelkit.catalog import Base
    from pixelkit.plan import DatasetPlan
    from pixelkit.progress import Event
    from pixelkit.rundir import State

LATENTS = ".latents"


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who looks on: called with the run once its directory is there, with preparation's progress (done, total), with the
    trainer's events.
    """

    on_run: Callable[[RunDir], None] = lambda _run: None
    on_prepared: Callable[[int, int], None] = lambda _done, _total: None
    on_event: Callable[[Event], None] = lambda _event: None


def run_preset(preset: str, choices: Choices, watcher: Watcher) -> Shipment:
    """The whole line. Raises PixelkitError; what was trained until then stays in the run's directory."""
    ready = make_ready(preset, choices)
    require_trainer()
    run = create_run(
        runs_folder(choices),
        ready.plan.name,
        preset_text=ready.loaded.text,
        plan=ready.plan.as_dict(),
        resolved=resolved_preset(ready),
    )
    return carry_out(ready, run, watcher)


def require_trainer() -> None:
    """Raises EngineError where only the light part of pixelkit is installed: enough to check, not to train."""
    missing = [name for name in ("torch", "accelerate", "diffusers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"not installed: {', '.join(missing)}", hint="training needs them: pip install 'pixelkit[train]'"
        )


def resume_run(name: str, choices: Choices, watcher: Watcher) -> Shipment:
    """Go on where a run ended: from its last saved state, or, where training was complete, with the shipping.

    Raises StorageError for a run that is done or at work, DataError where the sprites are not those it began with.
    """
    run = find_run(runs_folder(choices), name)
    _refuse_done(run)
    sd_scripts, templates = (run.read_manifest().get("choices", {}).get(key) for key in ("sd_scripts", "templates"))
    stored = Choices(
        sd_scripts=Path(sd_scripts) if sd_scripts else None,
        templates=Path(templates) if templates else None,
        runs=run.path.parent,
        retry=choices.retry,
    )
    try:
        ready = make_ready(str(run.resolved), stored)
    except PixelkitError as error:
        place = f"the run goes on once this is as it was, or once {run.resolved} names the new place"
        error.hint = "\n".join(part for part in (error.hint, place) if part)
        raise
    require_trainer()
    return carry_out(ready, run, watcher, resume=True)


def _refuse_done(run: RunDir) -> None:
    manifest = run.read_manifest()
    if manifest.get("state") == "done":
        raise StorageError(f"{run.path.name} is done: {manifest.get('model')}")


def carry_out(ready: Ready, run: RunDir, watcher: Watcher, *, resume: bool = False) -> Shipment:
    """Steps 6 to 13 in a run directory that no other process works in; its manifest tells every state and how it ended."""
    with run.hold():
        if resume:
            _refuse_done(run)
            take_over(run, watcher.on_event)
        with _ending(run):
            watcher.on_run(run)
            begun_with = run.read_manifest().get("dataset", {})
            run.update(**_record(ready))
            prepared = _prepare(ready, run, watcher, begun_with)
            start = make_start(ready.plan, run, runs_folder(ready.choices), watcher.on_prepared)
            for remark in start.remarks:
                watcher.on_event(Notice(text=remark))
            if not (resume and is_trained(run, ready.plan.name)):
                ready = _train(ready, run, prepared, watcher, resume=resume)
            run.enter("shipping")
            shipment = ship(
                replace(ready.plan, base=start.settle(ready.plan.base)),
                run,
                palette=prepared.palette,
                fingerprint=prepared.fingerprint,
                sd_scripts=ready.sd_scripts,
            )
            run.enter(
                "done",
                model=str(shipment.model),
                exports=[str(path) for path in shipment.exports],
                metrics=shipment.metrics,
            )
    return shipment


@contextmanager
def _ending(run: RunDir) -> Iterator[None]:
    """Whatever ends the block early is told by the manifest, and as a PixelkitError."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        _enter_last(run, "interrupted", reason=str(error) or "stopped by the user")
        if isinstance(error, Interrupted):
            raise
        raise Interrupted("stopped", hint=f"`pixelkit resume {run.path}` goes on") from None
    except PixelkitError as error:
        _enter_last(run, "failed", reason=error.message, exit_code=error.exit_code)
        raise
    except OSError as error:
        _enter_last(run, "failed", reason=str(error))
        raise StorageError(
            f"{error.filename or run.path}: {error.strerror or error}",
            hint=f"`pixelkit resume {run.path}` goes on once that is mended",
        ) from error


def _enter_last(run: RunDir, state: State, **fields: object) -> None:
    """How it ended, unless that cannot even be written: then what ended it is the better thing to say."""
    with suppress(StorageError):
        run.enter(state, **fields)


def _prepare(ready: Ready, run: RunDir, watcher: Watcher, begun_with: Mapping[str, str]) -> Prepared:
    """Raises DataError where a run goes on with other sprites than it began with."""

    def look_up(done: int, total: int) -> None:
        watcher.on_prepared(done, total)
        if run.take_order() == "stop":
            raise Interrupted("stopped while the sprites were prepared", hint=f"`pixelkit resume {run.path}` goes on")

    run.enter("preparing")
    prepared = prepare_images(ready.plan.dataset, run.dataset, on_progress=look_up)
    if any(begun_with.get(key, now_is) != now_is for key, now_is in identify(prepared).items()):
        raise DataError(
            f"the sprites or captions in {ready.plan.dataset.source} are not those this run began with",
            hint="start a new run",
        )
    run.update(dataset=_describe_dataset(ready, prepared))
    return prepared


def _train(ready: Ready, run: RunDir, prepared: Prepared, watcher: Watcher, *, resume: bool) -> Ready:
    """The base is hashed meanwhile. What it took is remembered, however it ends."""
    run.enter("training")
    trackers = open_trackers(ready.plan, run, watcher.on_event)
    listeners = (watcher.on_event, *(tracker.take for tracker in trackers))
    ended = "failed"
    try:
        with ThreadPoolExecutor(max_workers=1) as beside:
            base_hash = beside.submit(hash_model, ready.plan.base)
            ready = train(ready, run, latents=latents_folder(ready, prepared), listeners=listeners, resume=resume)
            run.update(base={**run.read_manifest()["base"], "sha256": base_hash.result()})
        ended = "done"
    except (Interrupted, KeyboardInterrupt):
        ended = "interrupted"
        raise
    finally:
        for tracker in trackers:
            tracker.close(ended)
        remember(run, ready.plan)
    return ready


def prepare_images(
    plan: DatasetPlan, folder: Path, on_progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Prepared:
    """The sprites into `folder`, the class images into a set within it, on the same background."""
    count, total = len(plan.sprites), len(plan.sprites) + len(plan.class_sprites)
    making = Making(background=plan.background, alpha=plan.alpha)
    prepared = prepare(plan.sprites, folder, making, on_progress=lambda done, _: on_progress(done, total))
    if not plan.class_sprites:
        return prepared
    classes = prepare(
        plan.class_sprites,
        folder / CLASS,
        replace(making, background=describe_color(prepared.background), alpha="flatten"),
        on_progress=lambda done, _: on_progress(count + done, total),
    )
    return replace(
        prepared,
        fingerprint=sha256_of(prepared.fingerprint, classes.fingerprint),
        captions=sha256_of(prepared.captions, classes.captions),
    )


def identify(prepared: Prepared) -> dict[str, str]:
    """What makes two sets the same to a trainer."""
    return {"fingerprint": prepared.fingerprint, "captions": prepared.captions}


def latents_folder(ready: Ready, prepared: Prepared) -> Path:
    """Named by all that changes latents, so that no run ever reads stale ones and the next run with the same data reads these."""
    plan = ready.plan
    base = Path(plan.base.location)
    files = sorted(base.rglob("*.*")) if base.is_dir() else [base] if plan.base.local else []
    changed = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    vae = plan.kohya.get("vae"), plan.kohya.get("no_half_vae"), plan.train.precision
    name = sha256_of(prepared.fingerprint, plan.engine, plan.method, plan.base.location, repr(changed), repr(vae))[:20]
    return runs_folder(ready.choices).resolve() / LATENTS / name


def sha256_of(*texts: str) -> str:
    """One hash of several texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def hash_model(base: Base) -> str | None:
    """sha256 of a base's file, or of all files of its folder with their names; None for one from the hub."""
    if not base.local:
        return None
    location, digest = Path(base.location), hashlib.sha256()
    for path in sorted(location.rglob("*.*")) if location.is_dir() else [location]:
        if path.is_dir():
            continue
        if path != location:
            digest.update(str(path.relative_to(location)).encode() + b"\0")
        with path.open("rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def _record(ready: Ready) -> dict[str, object]:
    plan = ready.plan
    return {
        "pixelkit": __version__,
        "engine": plan.engine,
        "engine_commit": recognise_commit(ready.sd_scripts) if ready.sd_scripts and plan.engine == "kohya" else None,
        "base": {"name": plan.base.name, "location": plan.base.location},
        "hardware": {"profile": plan.hardware, "machine": str(plan.machine)},
        "versions": dict(_versions(("torch", "diffusers", "transformers", "accelerate", "peft"))),
        "python": platform.python_version(),
        "started": now(),
        "argv": sys.argv[1:],
        "choices": {"sd_scripts": ready.sd_scripts, "templates": ready.choices.templates},
    }


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _describe_dataset(ready: Ready, prepared: Prepared) -> dict[str, object]:
    dataset = ready.plan.dataset
    return {
        "source": str(dataset.source),
        "sprites": len(dataset.sprites),
        "class_images": len(dataset.class_sprites),
        "background": describe_color(prepared.background),
        "fingerprint": prepared.fingerprint,
        "captions": prepared.captions,
    }


def write_configs(ready: Ready, folder: Path) -> Sequence[Path]:
    """`pixelkit render`: the configuration alone, checked. The run's other folders are named but not made."""
    run = RunDir(path=folder.resolve())
    rendered = render_configs(ready, run, planned_data(ready, run))
    command = ready.engine.command(ready.plan, run, planned_data(ready, run))
    write_atomically(run.command, command.shell_line() + "\n")
    return [*rendered.files.values(), run.command]


def dry_run(ready: Ready) -> str:
    """The exact command line."""
    run = RunDir(path=(runs_folder(ready.choices) / f"{ready.plan.name}-TIMESTAMP").resolve())
    return ready.engine.command(ready.plan, run, planned_data(ready, run)).shell_line()
