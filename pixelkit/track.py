"""Trackers: the events of a run as curves in TensorBoard and Weights & Biases, the same for every engine and method.

They are written here, from what the trainer tells, not by the trainer. The tags are those of sd-scripts: `loss/current`,
`loss/average`, `lr/unet`; beside them `time/seconds_per_step`, `memory/peak_gib`, and the sample pictures as `sample/INDEX`.
A resumed run goes on in the same curve: what lies beyond the step it resumed from is dropped.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import queue
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from PIL import Image

from pixelkit.errors import Problem
from pixelkit.memory import GIB
from pixelkit.progress import Bar, Begin, Event, Notice, Sample, Save, State, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pixelkit.plan import Plan
    from pixelkit.preset_file import LoadedPreset
    from pixelkit.rundir import RunDir

UPLOAD_GRACE: Final = 60.0
"""Seconds that the end of a run waits for an upload."""
NO_LOGIN: Final = "run `wandb login` once, or set WANDB_API_KEY"


class Curves(Protocol):
    """Where curves are kept. Any of these may raise; `Tracker` sees to it that a run does not notice."""

    name: str

    def begin(self, step: int) -> None:
        """Training begins behind `step`; what was kept of later steps does not count any more."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values of one optimizer step, by tag."""

    def add_picture(self, step: int, index: int, path: Path, prompt: str) -> None:
        """A sample picture; the same index is the same prompt."""

    def flush(self) -> None:
        """Keep what was added until now, whatever happens to this process."""

    def close(self, state: str) -> None:
        """No more follows. `state` is how the run ended: done, failed, interrupted."""


class Tracker:
    """Reads a run's events into curves. It never fails a run: the first trouble is told once, as a Notice, and ends it."""

    def __init__(
        self,
        curves: Curves,
        *,
        read_metrics: Callable[[], Iterable[Mapping[str, Any]]],
        steps_per_epoch: int,
        tell: Callable[[Event], None],
    ) -> None:
        self._curves = curves
        self._read_metrics = read_metrics
        self._tell = tell
        self._losses: deque[float] = deque(maxlen=max(1, steps_per_epoch))
        self._watched = False  # the trainer has an entry of ours; its bars are for people
        self._bar: Bar | None = None
        self._given_up = False

    def take(self, event: Event) -> None:
        """One event, in order, as `launch` hands them out."""
        self._guard(lambda: self._take(event))

    def close(self, how_it_ended: str) -> None:
        """The run is over: "done", "failed" or "interrupted"."""

        def end() -> None:
            self._write_bar()
            self._curves.close(how_it_ended)

        self._guard(end)

    def _guard(self, work: Callable[[], None]) -> None:
        if self._given_up:
            return
        try:
            work()
        except Exception as error:  # of a foreign package; none may end a training
            self._given_up = True
            said = str(error).strip() or type(error).__name__
            self._tell(Notice(text=f"{self._curves.name}: {said.splitlines()[0]}; training goes on without it"))

    def _take(self, event: Event) -> None:
        if isinstance(event, Begin):
            self._begin(event)
        elif isinstance(event, Step):
            self._add(event.step, event.loss, lr=event.lr, seconds=event.seconds, memory=event.memory)
        elif isinstance(event, Sample):
            if (path := Path(event.path)).is_file():
                self._curves.add_picture(event.step, event.index, path, event.prompt)
        elif isinstance(event, Save | State):
            self._curves.flush()  # from here a run may be resumed
        elif isinstance(event, Bar) and event.name == "steps" and not self._watched:
            if self._bar and event.step > self._bar.step:
                self._write_bar()
            self._bar = event

    def _begin(self, event: Begin) -> None:
        step = event.raw.get("step")
        done = step if isinstance(step, int) else 0
        self._watched = True
        self._losses.clear()
        if done:
            before = (e for e in self._read_metrics() if e.get("event") == "step" and e.get("step", 0) <= done)
            self._losses.extend(e["loss"] for e in before if isinstance(e.get("loss"), int | float))
        self._curves.begin(done)

    def _add(self, step: int, loss: float | None, **more: float | None) -> None:
        if loss is not None and math.isfinite(loss):
            self._losses.append(loss)
        values = {
            "loss/current": loss,
            "loss/average": sum(self._losses) / len(self._losses) if self._losses else None,
            "lr/unet": more["lr"],
            "time/seconds_per_step": more["seconds"],
            "memory/peak_gib": more["memory"] / GIB if more["memory"] is not None else None,
        }
        self._curves.add(step, {tag: value for tag, value in values.items() if value is not None})

    def _write_bar(self) -> None:
        """A plain script tells only its moving average; of the drawings of one step the last has it."""
        bar, self._bar = self._bar, None
        if bar and bar.step:
            values = {"loss/average": bar.loss, "time/seconds_per_step": bar.seconds_per_step}
            self._curves.add(bar.step, {tag: value for tag, value in values.items() if value is not None})


class TensorBoard:
    """Event files in a folder, one for each start of the run; a reader drops what a later start takes back."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def begin(self, step: int) -> None:  # noqa: D102 - as in Curves
        from tensorboard.compat.proto.event_pb2 import SessionLog  # noqa: PLC0415 - half a second, which only a run needs

        first = step + 1 if step else 0
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step, summary=Summary(value=scalars))

    def add_picture(self, step: int, index: int, path: Path, prompt: str) -> None:  # noqa: D102
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # noqa: PLC0415

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
        metadata = SummaryMetadata(summary_description=prompt)
        self._write(step, summary=Summary(value=[Summary.Value(tag=f"sample/{index}", image=image, metadata=metadata)]))

    def flush(self) -> None:  # noqa: D102
        if self._writer:
            self._writer.flush()

    def close(self, state: str) -> None:  # noqa: ARG002, D102 - TensorBoard has no place for it
        if self._writer:
            self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record  # noqa: PLC0415

        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

            self._writer = EventFileWriter(str(self._folder), flush_secs=10)
        self._writer.add_event(Record(wall_time=time.time(), step=step, **content))


class Wandb:
    """A run of Weights & Biases. A thread of its own talks to it, so that a slow network never holds up a training.

    `project`: a project, or team/project. Raises, at a later call, what went wrong in the thread.
    """

    name = "wandb"

    def __init__(
        self, run: Path, *, project: str, mode: str, config: Mapping[str, object], tell: Callable[[Event], None]
    ) -> None:
        self._run = run
        self._project = project
        self._mode = mode
        self._config = dict(config)
        self._tell = tell
        self._work: queue.Queue[Callable[[Any], object] | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None
        self._address: str | None = None
        self._exit_code = 0

    def begin(self, step: int) -> None:  # noqa: ARG002, D102 - its server keeps the first value of a step
        self._put(lambda _run: None)

    def add(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self._put(lambda run: run.log(dict(values), step=step) if step >= run.step else None)

    def add_picture(self, step: int, index: int, path: Path, prompt: str) -> None:  # noqa: D102
        def log(run: Any) -> None:
            import wandb  # noqa: PLC0415

            if step >= run.step:
                run.log({f"sample/{index}": wandb.Image(str(path), caption=prompt)}, step=step)

        self._put(log)

    def flush(self) -> None:  # noqa: D102 - it keeps all at once
        return

    def close(self, state: str) -> None:  # noqa: D102
        if self._thread is None:
            return
        self._exit_code = 0 if state == "done" else 1
        self._work.put(None)
        self._thread.join(UPLOAD_GRACE)
        if self._thread.is_alive():
            raise TimeoutError(f"the upload is not done; `wandb sync {self._run / 'wandb'}/run-*` sends the rest")
        self._raise_trouble()

    def _put(self, work: Callable[[Any], object]) -> None:
        self._raise_trouble()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="pixelkit-wandb", daemon=True)
            self._thread.start()
        if self._address:
            address, self._address = self._address, None
            self._tell(Notice(text=f"wandb: {address}"))
        self._work.put(work)

    def _raise_trouble(self) -> None:
        if self._trouble:
            raise self._trouble

    def _serve(self) -> None:
        try:
            run = self._open()
            self._address = run.url if self._mode == "online" else None
            while work := self._work.get():
                work(run)
            run.finish(exit_code=self._exit_code)
        except Exception as error:
            self._trouble = error

    def _open(self) -> Any:
        import wandb  # noqa: PLC0415

        team, _, project = self._project.rpartition("/")
        name = self._run.name
        # All output of this process is pixelkit's; the code and the folders of an artist are none of a server's business.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        if self._mode == "online":
            if trouble := find_login_trouble():
                raise RuntimeError(trouble)
            settings.resume = "allow"
        return wandb.init(
            entity=team or None,
            project=project,
            id=name,
            name=name,
            dir=str(self._run),
            mode=self._mode,
            config=self._config,
            settings=settings,
        )


def find_login_trouble() -> str:
    """What keeps wandb from logging in with what it finds by itself; empty where nothing does. Asks nobody, sends nothing."""
    import wandb  # noqa: PLC0415

    known = inspect.signature(wandb.login).parameters
    wanted = {"prompt": False, "verify": False} if "prompt" in known else {"timeout": 1}
    try:
        logged_in = bool(wandb.login(**wanted))
    except wandb.errors.UsageError:  # of versions that ask, where there is no terminal
        logged_in = False
    return "" if logged_in else f"not logged in: {NO_LOGIN}"


def check_tracking(loaded: LoadedPreset) -> list[Problem]:
    """What keeps the trackers that a preset asks for from working. Imports wandb only where it is asked for."""
    track, problems = loaded.preset.track, []
    if track.tensorboard and loaded.is_written("track", "tensorboard") and not _is_installed("tensorboard"):
        problems.append(
            Problem(
                where=loaded.where("track", "tensorboard"),
                what="tensorboard = true: the package tensorboard is not installed",
                hint="pip install tensorboard, or remove the line",
            )
        )
    if track.wandb:
        where, what = loaded.where("track", "wandb"), f'wandb = "{track.wandb}"'
        if not _is_installed("wandb"):
            hint = "pip install 'pixelkit[wandb]', or remove the line"
            problems.append(Problem(where=where, what=f"{what}: the package wandb is not installed", hint=hint))
        elif track.wandb_mode == "online" and (trouble := find_login_trouble()):
            hint = 'or wandb_mode = "offline"'
            problems.append(Problem(where=where, what=f"{what}: {trouble}", hint=hint))
    return problems


def open_trackers(plan: Plan, run: RunDir, tell: Callable[[Event], None] = lambda _event: None) -> tuple[Tracker, ...]:
    """The trackers of a run, resumed or not. Nothing is written before the first event; `tell` gets notices.

    Hand each event of the run to every `take`, and how it ended to every `close`.
    """
    track = plan.preset.track
    kept: list[Curves] = []
    if track.tensorboard and _is_installed("tensorboard"):
        kept.append(TensorBoard(run.path / "tensorboard"))
    if track.wandb:
        kept.append(Wandb(run.path, project=track.wandb, mode=track.wandb_mode, config=_describe(plan), tell=tell))
    return tuple(
        Tracker(curves, read_metrics=run.read_metrics, steps_per_epoch=plan.train.steps_per_epoch, tell=tell)
        for curves in kept
    )


def _describe(plan: Plan) -> dict[str, object]:
    """What a table of runs is sorted by. No path: whose machine it is, is nobody's business."""
    values = plan.as_dict()
    described: dict[str, object] = {
        "method": plan.method,
        "engine": plan.engine,
        "base": plan.base.name,
        "hardware": plan.hardware,
    }
    described["sprites"] = len(plan.dataset.sprites)
    described |= {f"train.{key}": value for key, value in values["train"].items()}
    if plan.makes == "lora":
        described |= {f"network.{key}": value for key, value in values["network"].items() if key != "start_from"}
    return described


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
