"""Steps 7 to 11 of a run: rendered, launched, judged; and what is tried when memory is short or numbers run away."""

from __future__ import annotations

import json
import math
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import tomlkit

from pixelkit.catalog import list_bases, list_hardware
from pixelkit.diagnosis import diagnose
from pixelkit.errors import Interrupted, PixelkitError, StorageError, TrainingError
from pixelkit.launch import Exit, launch
from pixelkit.memory import GIB, MemoryGuard
from pixelkit.paths import write_atomically
from pixelkit.preset import Optimizer
from pixelkit.process import find_started
from pixelkit.progress import Event, Notice, Step
from pixelkit.ready import Ready, make_ready, planned_data, render_configs
from pixelkit.remedies import LADDER, Mend, Overrides, Rung, propose_mend
from pixelkit.rundir import now
from pixelkit.ship import inspect_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pixelkit.rundir import RunDir

    Listeners = Sequence[Callable[[Event], None]]

LEFT_PATIENCE: Final = 40.0
"""Seconds for a trainer to save and end whose pixelkit was killed; it kills itself after 30 (engines/control.py)."""
MENDED: Final = "mended.toml"
_LAST_LINES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Foothold:
    """What training goes on from: a state folder, or weights without an optimizer's state; nothing: the beginning."""

    state: Path | None = None
    weights: Path | None = None
    step: int = 0

    def __str__(self) -> str:
        return f"from step {self.step}" if self.state or self.weights else "from the beginning"


def train(ready: Ready, run: RunDir, *, latents: Path, listeners: Listeners, resume: bool = False) -> Ready:
    """Train until there is a model; the plan that it was trained by in the end.

    Out of memory, it goes down the ladder rung by rung and goes on from the last state. Raises TrainingError, and
    Interrupted where the user stopped it.
    """
    taken: list[tuple[Rung, Overrides]] = []
    foothold = find_foothold(run) if resume else Foothold()
    while True:
        attempt = _Attempt(ready, run, foothold, taken, listeners)
        try:
            attempt.run_trainer(latents)
        except TrainingError as error:
            if error.kind != "oom" or not ready.choices.retry:
                raise
            ready = _step_down(ready, run, error, taken, listeners)
            foothold = find_foothold(run)
        else:
            return ready


def is_trained(run: RunDir, name: str) -> bool:
    """Whether the trainer had already ended well, so that only the shipping is left."""
    return run.model(name).is_file() and any(event.get("event") == "end" for event in run.read_metrics())


def find_foothold(run: RunDir) -> Foothold:
    """The last state; or the weights that an optimizer started anew on, as long as it has saved no state of its own."""
    state, step = run.last_state() or (None, 0)
    for retry in reversed(run.read_manifest().get("retries", [])):
        if weights := retry.get("from_weights"):
            if step <= retry["from_step"] and Path(weights).is_file():
                return Foothold(weights=Path(weights), step=retry["from_step"])
            break
    return Foothold(state=state, step=step)


def take_over(run: RunDir, tell: Callable[[Event], None]) -> None:
    """Before a run goes on: let a trainer end that a killed pixelkit left behind, and remove what it did not finish."""
    end, told = time.monotonic() + LEFT_PATIENCE, False
    while left := find_started(str(run.log.absolute())):
        if not told:
            tell(Notice(text="waiting for the trainer of before, which still saves"))
            told = True
        if time.monotonic() > end:
            for process in left:
                process.kill()
        time.sleep(0.2)
    run.remove_leftovers()


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
    # What the machine chose is kept: a run that goes on elsewhere, or after a tune, goes on as it began.
    train = {key: value for key, value in values.get("train", {}).items() if key != "effective_batch"}
    chosen = {"batch_size", "gradient_accumulation", "gradient_checkpointing"}
    chosen |= {"optimizer"} if plan.train.optimizer in get_args(Optimizer) else set()
    values["train"] = train | {key: getattr(plan.train, key) for key in sorted(chosen)}
    tables = {key: values.pop(key) for key in [key for key, value in values.items() if isinstance(value, dict)]}
    return tomlkit.dumps({**values, "engine": plan.engine, "hardware": plan.hardware, **tables})


class _Attempt:
    """One trainer, from its configuration to a file that was looked at."""

    def __init__(
        self,
        ready: Ready,
        run: RunDir,
        foothold: Foothold,
        taken: Sequence[tuple[Rung, Overrides]],
        listeners: Listeners,
    ) -> None:
        self._ready = ready
        self._run = run
        self._foothold = foothold
        self._listeners = listeners
        self._to_keep = bool(taken)

    def run_trainer(self, latents: Path) -> None:
        """Raises TrainingError, Interrupted."""
        ready, run, foothold = self._ready, self._run, self._foothold
        data = planned_data(ready, run, latents)
        if foothold.weights:
            data = replace(data, weights=foothold.weights)
        render_configs(ready, run, data)
        command = ready.engine.command(ready.plan, run, data, resume=foothold.state)
        if foothold.weights:
            command = replace(command, argv=(*command.argv, "--initial_step", str(foothold.step)))
        write_atomically(run.command, command.shell_line() + "\n")
        model = run.model(ready.plan.name)
        before = _stamp(model)
        result = launch(
            command,
            log=run.log,
            metrics=run.metrics,
            on_event=self._take,
            orders=run.take_order,
            guard=make_guard(ready.plan.hardware),
        )
        with suppress(StorageError):  # on a full disk, how it ended is the better thing to say
            run.update(training=_describe(result))
        self._judge(result, model, before)

    def _take(self, event: Event) -> None:
        if self._to_keep and isinstance(event, Step):
            self._to_keep = False
            _keep(self._ready, self._run, self._tell)
        self._tell(event)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def _judge(self, result: Exit, model: Path, before: tuple[int, ...] | None) -> None:
        run, goes_on = self._run, _say_how_to_go_on(self._run)
        if result.reason == "stopped":
            saved = "weights and state are saved" if goes_on else "nothing to resume from was saved"
            raise Interrupted(f"stopped after step {result.last_step}; {saved}", hint=goes_on)
        if result.reason == "killed":
            raise Interrupted(f"killed after step {result.last_step}", hint=goes_on)
        if result.reason != "ended" or result.returncode != 0 or not model.is_file():
            raise _explain(self._ready, result, run, goes_on)
        # Told by the file itself, since a clock may have been set back meanwhile.
        if _stamp(model) == before:
            raise TrainingError(
                f"{model} is older than this training", kind="stale", hint="the trainer wrote elsewhere"
            )
        inspect_weights(model, newer_than=-math.inf)


def make_guard(profile: str) -> MemoryGuard | None:
    """Where the profile says below which memory a training must end."""
    mark = list_hardware()[profile].stop_below_gib
    return MemoryGuard(stop_below=mark * GIB) if mark else None


def _stamp(file: Path) -> tuple[int, ...] | None:
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size


def _describe(result: Exit) -> dict[str, Any]:
    return {
        "seconds": round(result.seconds, 1),
        "last_step": result.last_step,
        "returncode": result.returncode,
        "peak_memory_bytes": result.peak_memory,
        **({"memory": result.memory_note} if result.memory_note else {}),
    }


def _say_how_to_go_on(run: RunDir) -> str:
    return f"`pixelkit resume {run.path}` goes on from the last saved state" if run.last_state() else ""


def _step_down(
    ready: Ready, run: RunDir, error: TrainingError, taken: list[tuple[Rung, Overrides]], listeners: Listeners
) -> Ready:
    """The plan one rung lower, told and written down. Raises TrainingError at the ladder's end."""
    found = _find_rung(ready, run, taken)
    if found is None:
        raise _give_up(error, taken)
    rung, changes, lower = found
    taken.append((rung, changes))
    state, step = run.last_state() or (None, 0)
    entry: dict[str, object] = {"rung": rung.name, "reason": error.message, "changes": changes}
    entry |= {"at_step": _last_step(run), "from_state": str(state) if state else None, "from_step": step}
    if rung.starts_optimizer_anew and (weights := run.last_weights(ready.plan.name)):
        entry |= {"from_state": None, "from_weights": str(weights[0]), "from_step": weights[1]}
    retries = [*run.read_manifest().get("retries", []), {**entry, "time": now()}]
    run.update(retries=retries)
    written = [key for key, value in changes.items() if _overrules(ready, run, key, value)]
    overruled = f" (overrules {', '.join(written)} of your preset)" if written else ""
    notice = Notice(
        text=f"out of memory at step {entry['at_step']}: {error.message}; "
        f"trying {rung.tell(changes)}{overruled}, {find_foothold(run)}"
    )
    for listener in listeners:
        listener(notice)
    return lower


def _find_rung(
    ready: Ready, run: RunDir, taken: Sequence[tuple[Rung, Overrides]]
) -> tuple[Rung, Overrides, Ready] | None:
    """The next rung that applies and gives a plan that passes every check."""
    for rung in LADDER:
        changes = rung.step_down(ready.plan)
        if changes is None or (
            rung.starts_optimizer_anew and not run.last_weights(ready.plan.name) and run.last_state()
        ):
            continue
        overrides = {key: value for _, earlier in taken for key, value in earlier.items()} | dict(changes)
        settings = tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
        choices = replace(ready.choices, overrides=settings, hardware=None, engine=None)
        try:
            return rung, changes, make_ready(str(run.resolved), choices)
        except PixelkitError:
            continue
    return None


def _give_up(error: TrainingError, taken: Sequence[tuple[Rung, Overrides]]) -> TrainingError:
    tried = "; ".join(rung.tell(changes) for rung, changes in taken)
    more = "a lower dataset.resolution, a lower network.rank, a smaller base, or a machine with more memory would help"
    head = f"tried, and still too much: {tried}" if tried else "nothing is left that would save memory by itself"
    return TrainingError(error.message, kind="oom", hint=f"{head}\n{more}\n{error.hint}")


def _overrules(ready: Ready, run: RunDir, key: str, value: object) -> bool:
    """Whether this changes what the artist's own file says; the resolved preset says what the machine chose as well."""
    table, _, name = key.partition(".")
    settings = getattr(ready.loaded.preset, table)
    now_is = settings.get(name) if isinstance(settings, dict) else getattr(settings, name)
    try:
        written = name in tomllib.loads(run.preset.read_text("utf-8-sig")).get(table, {})
    except (OSError, ValueError, TypeError):
        return False
    return written and now_is not in {None, value}


def _last_step(run: RunDir) -> int:
    return max((event["step"] for event in run.read_metrics() if event.get("event") == "step"), default=0)


def _keep(ready: Ready, run: RunDir, tell: Callable[[Event], None]) -> None:
    """A rung that trains becomes part of the run's preset, for whoever resumes it."""
    try:
        write_atomically(run.resolved, resolved_preset(ready))
        write_atomically(run.plan, json.dumps(ready.plan.as_dict(), indent=2, default=str) + "\n")
    except StorageError as error:
        tell(Notice(text=f"{error.message}; a later resume will have to find out again what fits into memory"))


def _explain(ready: Ready, result: Exit, run: RunDir, goes_on: str) -> TrainingError:
    diagnosis = diagnose(result, result.tail)
    tail = "\n".join(f"    {line}" for line in _without_launcher(result.tail.splitlines())[-_LAST_LINES:])
    log = f"the log's end ({run.log}):\n{tail}" if tail else f"log: {run.log}"
    why, do = diagnosis.why, diagnosis.do
    if diagnosis.kind == "nonfinite" and result.nonfinite:
        mend = propose_mend(ready.plan, result.nonfinite, result.last_step)
        why, do = mend.why, _offer_mend(mend, run) or "look at the base's file and at the sprites"
    return TrainingError(
        diagnosis.what, kind=diagnosis.kind, hint="\n".join(part for part in (why, do, log, goes_on) if part)
    )


def _offer_mend(mend: Mend, run: RunDir) -> str:
    """The run's preset with the one change, as a file; what to do with it."""
    if not mend.changes:
        return ""
    document = tomlkit.parse(run.resolved.read_text("utf-8"))
    for key, value in mend.changes.items():
        table, _, name = key.partition(".")
        document.setdefault(table, tomlkit.table())[name] = value
    mended = run.path / MENDED
    write_atomically(mended, tomlkit.dumps(document))
    changes = ", ".join(f"{key} = {json.dumps(value)}" for key, value in mend.changes.items())
    return f"`pixelkit run {mended}` trains it with {changes}; what was saved before is untouched"


def _without_launcher(lines: list[str]) -> list[str]:
    """A log's end without the traceback in which accelerate only says that the trainer failed."""
    if not any(line.startswith("subprocess.CalledProcessError") for line in lines[-3:]):
        return lines
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return lines[: starts[-1]] if starts else lines
