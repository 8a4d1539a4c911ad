"""`pixelkit run`: one straight line from a preset to a shipped model."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tomlkit

from pixelkit import __version__
from pixelkit.catalog import list_bases
from pixelkit.dataset.make import Making
from pixelkit.dataset.prepare import Prepared, describe_color, prepare
from pixelkit.diagnosis import diagnose
from pixelkit.engines.kohya.options import recognise_commit
from pixelkit.errors import DataError, EngineError, Interrupted, PixelkitError, StorageError, TrainingError
from pixelkit.launch import Exit, launch
from pixelkit.paths import write_atomically
from pixelkit.progress import Notice
from pixelkit.ready import Choices, Ready, make_ready, planned_data, render_configs, runs_folder
from pixelkit.rundir import RunDir, create_run, find_run, now
from pixelkit.ship import Shipment, inspect_weights, ship
from pixelkit.sources.prepared import CLASS
from pixelkit.start import make_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pixelkit.catalog import Base
    from pixelkit.plan import DatasetPlan
    from pixelkit.process import Command
    from pixelkit.progress import Event

LATENTS = ".latents"


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who looks on: called with preparation's progress (done, total), and with the trainer's events."""

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
    manifest = run.read_manifest()
    if manifest.get("state") == "done":
        raise StorageError(f"{run.path.name} is done: {manifest.get('model')}")
    if run.is_active():
        raise StorageError(f"{run.path.name} is at work (process {manifest['owner']['pid']})")
    sd_scripts, templates = (manifest.get("choices", {}).get(key) for key in ("sd_scripts", "templates"))
    stored = Choices(
        sd_scripts=Path(sd_scripts) if sd_scripts else None, templates=Path(templates) if templates else None
    )
    ready = make_ready(str(run.resolved), stored)
    require_trainer()
    return carry_out(ready, run, watcher, resume=True)


def resolved_preset(ready: Ready) -> str:
    """The preset as TOML that stands alone, wherever it is read from."""
    loaded, plan = ready.loaded, ready.plan
    values = loaded.preset.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    values.pop("extends", None)
    values["dataset"]["path"] = str(plan.dataset.source)
    if loaded.preset.dataset.class_path:
        values["dataset"]["class_path"] = str(
            loaded.resolve_path(loaded.preset.dataset.class_path, "dataset", "class_path")
        )
    if plan.base_loras:
        values["base_loras"] = [f"{path}:{strength:g}" for path, strength in plan.base_loras]
    if plan.network.start_from:
        values["network"]["start_from"] = str(plan.network.start_from)
    if plan.base.local and loaded.preset.base not in list_bases():
        values["base"] = plan.base.location
    tables = {key: values.pop(key) for key in [key for key, value in values.items() if isinstance(value, dict)]}
    return tomlkit.dumps({**values, "engine": plan.engine, "hardware": plan.hardware, **tables})


def carry_out(ready: Ready, run: RunDir, watcher: Watcher, *, resume: bool = False) -> Shipment:
    """Steps 6 to 13 in a run directory; its manifest tells every state and how it ended."""
    try:
        begun_with = run.read_manifest().get("dataset", {}) if resume else {}
        run.update(**_record(ready))
        run.enter("preparing")
        prepared = prepare_images(ready.plan.dataset, run.dataset, on_progress=watcher.on_prepared)
        if any(begun_with.get(key, now_is) != now_is for key, now_is in identify(prepared).items()):
            raise DataError(
                f"the sprites or captions in {ready.plan.dataset.source} are not those this run began with",
                hint="start a new run",
            )
        run.update(dataset=_describe_dataset(ready, prepared))
        start = make_start(ready.plan, run, runs_folder(ready.choices), watcher.on_prepared)
        for remark in start.remarks:
            watcher.on_event(Notice(text=remark))
        if not (resume and _is_trained(ready, run)):
            data = planned_data(ready, run, latents_folder(ready, prepared))
            render_configs(ready, run, data)
            command = ready.engine.command(ready.plan, run, data, resume=_last_state(run) if resume else None)
            write_atomically(run.command, command.shell_line() + "\n")
            run.enter("training")
            with ThreadPoolExecutor(max_workers=1) as beside:
                base_hash = beside.submit(hash_model, ready.plan.base)
                _train(ready, run, command, watcher)
                run.update(base={**run.read_manifest()["base"], "sha256": base_hash.result()})
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
    except (Interrupted, KeyboardInterrupt) as error:
        run.enter("interrupted", reason=str(error) or "stopped by the user")
        if isinstance(error, Interrupted):
            raise
        raise Interrupted("stopped", hint=f"`pixelkit resume {run.path}` goes on") from None
    except PixelkitError as error:
        run.enter("failed", reason=error.message, exit_code=error.exit_code)
        raise
    except OSError as error:
        run.enter("failed", reason=str(error))
        raise StorageError(f"{error.filename or run.path}: {error.strerror or error}") from error
    return shipment


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


def _is_trained(ready: Ready, run: RunDir) -> bool:
    """Whether the trainer had already ended well, so that only the shipping is left."""
    return run.model(ready.plan.name).is_file() and any(event.get("event") == "end" for event in run.read_metrics())


def _last_state(run: RunDir) -> Path | None:
    """The newest state folder that was written whole."""
    states = [Path(str(event.get("path"))) for event in run.read_metrics() if event.get("event") == "state"]
    return next((state for state in reversed(states) if state.is_dir()), None)


def _train(ready: Ready, run: RunDir, command: Command, watcher: Watcher) -> None:
    started = time.time()
    result = launch(command, log=run.log, metrics=run.metrics, on_event=watcher.on_event)
    run.update(
        training={
            "seconds": round(result.seconds, 1),
            "last_step": result.last_step,
            "returncode": result.returncode,
            "peak_memory_bytes": result.peak_memory,
        }
    )
    resume = f"`pixelkit resume {run.path}` goes on from the last saved state" if _last_state(run) else ""
    if result.reason == "stopped":
        saved = "weights and state are saved" if resume else "nothing to resume from was saved"
        raise Interrupted(f"stopped after step {result.last_step}; {saved}", hint=resume)
    if result.reason == "killed":
        raise Interrupted(f"killed after step {result.last_step}", hint=resume)
    model = run.model(ready.plan.name)
    if result.reason != "ended" or result.returncode != 0 or not model.is_file():
        raise _explain(result, run, resume)
    inspect_weights(model, newer_than=started)


def _explain(result: Exit, run: RunDir, resume: str) -> TrainingError:
    diagnosis = diagnose(result, result.tail)
    tail = "\n".join(f"    {line}" for line in _without_launcher(result.tail.splitlines())[-8:])
    parts = [diagnosis.why, diagnosis.do, f"the log's end ({run.log}):\n{tail}" if tail else f"log: {run.log}", resume]
    return TrainingError(diagnosis.what, kind=diagnosis.kind, hint="\n".join(part for part in parts if part))


def _without_launcher(lines: list[str]) -> list[str]:
    """A log's end without the traceback in which accelerate only says that the trainer failed."""
    if not any(line.startswith("subprocess.CalledProcessError") for line in lines[-3:]):
        return lines
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return lines[: starts[-1]] if starts else lines


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
