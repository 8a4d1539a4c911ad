"""The rows of bench.train: one training each, timed from outside, the same way for sd-scripts alone and for pixelkit."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.train_material import EFFECTIVE_BATCH, LEARNING_RATE, RANK, SEED, Material
from pixelkit.catalog import list_hardware
from pixelkit.dataset.make import Making
from pixelkit.dataset.prepare import prepare
from pixelkit.diagnosis import diagnose
from pixelkit.hardware import Machine, choose_profile, detect_machine
from pixelkit.launch import launch
from pixelkit.process import Command
from pixelkit.progress import Bar, Event
from pixelkit.ready import Choices, make_ready
from pixelkit.sources.prepared import subset_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WARM_UP = 0.25  # share of the steps that compilers, caches and clocks need
TITLES: Mapping[str, str] = {
    "documents": "the documents' flags",
    "defaults": "sd-scripts' defaults",
    "profile": "pixelkit's profile",
    "tuned": "pixelkit, tuned",
    "diffusers": "diffusers' own script",
}
PLAIN = ("documents", "defaults")


class LeftOutError(Exception):
    """This row cannot be measured here; the message says why."""


@dataclass(kw_only=True)
class Row:
    """What one training took. Seconds are wall clock after the warm-up; `losses` are the means of the run's quarters.

    `peak_memory_gib`: how far the device's used memory rose, as its driver says; on a CPU that of the machine.
    """

    case: str
    row: str
    settings: str = ""
    steps: int = 0
    seconds_per_step: float | None = None
    images_per_second: float | None = None
    peak_memory_gib: float | None = None
    mean_loss: float | None = None
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a row needs to know."""

    material: Material
    steps: int
    engine: str
    sd_scripts: Path | None
    tune_minutes: float
    tune_steps: int

    @property
    def runs(self) -> Path:
        """Where pixelkit's runs go."""
        return self.material.folder / "runs"


class MemoryWatch:
    """The most memory used while it runs, above what was used before."""

    def __init__(self) -> None:
        self._before = self._most = self._used()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def gib(self) -> float:
        """GiB."""
        return round(self._most - self._before, 2)

    def _look(self) -> None:
        while not self._end.wait(0.3):
            self._most = max(self._most, self._used())

    @staticmethod
    def _used() -> float:
        machine = detect_machine()
        return machine.memory_gib - machine.available_gib


def measure(bench: Bench, row: str) -> Row:
    """Run one row. What cannot be is said in `failed`."""
    started = time.monotonic()
    result = Row(case=bench.material.case.name, row=row)
    try:
        runner: Callable[[Bench, Row], None] = {
            "profile": run_profile, "tuned": run_tuned, "diffusers": run_diffusers,
        }.get(row, run_plain)  # fmt: skip
        runner(bench, result)
    except LeftOutError as reason:
        result.failed = str(reason)
    result.seconds = round(time.monotonic() - started, 1)
    return result


def summarise(result: Row, times: Mapping[int, float], means: Mapping[int, float]) -> None:
    """Fill in pace and loss. `times`: when each step ended; `means`: the mean loss of all steps until then."""
    last = max(times, default=0)
    first = max(min(times, default=0), round(last * WARM_UP))
    if last <= first:
        raise LeftOutError(f"only {last} steps were seen: too few to measure")
    result.steps = last
    result.seconds_per_step = round((times[last] - times[first]) / (last - first), 4)
    result.images_per_second = round(EFFECTIVE_BATCH / result.seconds_per_step, 3)
    known = {step: mean for step, mean in means.items() if not math.isnan(mean)}
    if len(known) < len(means) or not known:
        result.notes.append("the loss is NaN")
        return
    result.mean_loss = round(known[last], 4)
    ends = [0, *(max(1, round(last * quarter / 4)) for quarter in range(1, 5))]
    sums = [end * known.get(end, 0.0) for end in ends]
    result.losses = [
        round((sums[n + 1] - sums[n]) / (ends[n + 1] - ends[n]), 4) for n in range(4) if ends[n + 1] > ends[n]
    ]


# --- sd-scripts alone


def run_plain(bench: Bench, result: Row) -> None:
    """The stock script of sd-scripts under `accelerate launch`, read from its progress bar."""
    case = bench.material.case
    if bench.sd_scripts is None:
        raise LeftOutError("sd-scripts is not here: --sd-scripts PATH")
    if not case.stock:
        raise LeftOutError("sd-scripts' own loader takes no toy")
    machine = detect_machine()
    output = bench.material.folder / f"{case.name}-{result.row}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    options, batch, precision = list_documents(machine, result) if result.row == "documents" else ([], 1, "no")
    result.settings = f"batch {batch} x {EFFECTIVE_BATCH // batch}, {precision}, {' '.join(options) or 'nothing else'}"
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    argv += ["--mixed_precision", precision, "--dynamo_backend", "no", "--num_cpu_threads_per_process"]
    argv += [str(min(4, machine.cores)), *(["--cpu"] if machine.kind == "cpu" else []), f"{case.script}.py"]
    argv += ["--dataset_config", str(write_dataset(bench, output, batch)), "--mixed_precision", precision, *options]
    settings: dict[str, object] = {
        "pretrained_model_name_or_path": bench.material.base, "tokenizer_cache_dir": bench.material.tokenizers,
        "output_dir": output, "output_name": "lora", "save_model_as": "safetensors", "network_module": "networks.lora",
        "network_dim": RANK, "network_alpha": RANK, "learning_rate": LEARNING_RATE, "lr_scheduler": "constant",
        "max_train_steps": bench.steps, "gradient_accumulation_steps": EFFECTIVE_BATCH // batch, "seed": SEED,
    }  # fmt: skip
    argv += [word for key, value in settings.items() for word in (f"--{key}", str(value))] + [
        "--network_train_unet_only"
    ]
    if case.family == "sdxl":
        argv.append("--no_half_vae")
        result.notes.append("no_half_vae: a half-precision VAE of SDXL gives NaN")
    times, means = {}, {}

    def see(event: Event) -> None:
        if isinstance(event, Bar) and event.name == "steps" and event.step:
            times.setdefault(event.step, time.monotonic())
            if event.loss is not None:
                means[event.step] = event.loss

    scrubbed = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "TQDM_"))}
    command = Command(
        argv=tuple(argv), env={**scrubbed, "PYTHONUNBUFFERED": "1"}, cwd=bench.sd_scripts, obeys_control=False
    )
    with MemoryWatch() as memory:
        ended = launch(command, log=output / "log.txt", metrics=output / "metrics.jsonl", on_event=see)
    result.peak_memory_gib = memory.gib
    if ended.returncode or ended.reason not in {"ended", "nonfinite"}:
        diagnosis = diagnose(ended, ended.tail)
        raise LeftOutError(f"{diagnosis.kind}: {diagnosis.what}")
    summarise(result, times, means)


def list_documents(machine: Machine, result: Row) -> tuple[list[str], int, str]:
    """The flags that the documents give, as far as they work here: options, batch size, precision."""
    options = ["--gradient_checkpointing"]
    has_xformers = importlib.util.find_spec("xformers") is not None
    options.append("--xformers" if has_xformers else "--sdpa")
    if not has_xformers:
        result.notes.append("sdpa, for xformers is not installed")
    if machine.kind != "cpu" and importlib.util.find_spec("bitsandbytes") is not None:
        options += ["--optimizer_type", "AdamW8bit"]
    else:
        result.notes.append("AdamW, for bitsandbytes does not work here")
    if machine.kind == "cpu":
        result.notes.append("full precision, for a CPU trains in no fp16")
    return options, 4, "no" if machine.kind == "cpu" else "fp16"


def write_dataset(bench: Bench, output: Path, batch: int) -> Path:
    """The very images that pixelkit trains on, with captions, for sd-scripts."""
    preset = bench.material.write_preset(steps=bench.steps, engine="kohya")
    ready = make_ready(str(preset), Choices(sd_scripts=bench.sd_scripts))
    plan = ready.plan.dataset
    prepare(plan.sprites, output / "dataset", Making(background=plan.background, alpha=plan.alpha))
    images = output / "dataset" / subset_folder(plan.repeats, [plan.repeats])
    file = output / "dataset.toml"
    file.write_text(
        f'[general]\ncaption_extension = ".txt"\n[[datasets]]\nresolution = {bench.material.case.resolution}\n'
        f'batch_size = {batch}\n[[datasets.subsets]]\nimage_dir = "{images}"\n'
        f"num_repeats = {plan.repeats}\n",
        encoding="utf-8",
    )
    return file


# --- pixelkit


def run_profile(bench: Bench, result: Row) -> None:
    """`pixelkit run` with the machine's profile as it is shipped."""
    profile, _ = choose_profile("auto", detect_machine(), list_hardware())
    run_pixelkit(bench, result, "--hardware", profile)


def run_tuned(bench: Bench, result: Row) -> None:
    """`pixelkit tune`, then `pixelkit run`, which goes by what was found."""
    preset = bench.material.write_preset(steps=bench.steps, engine=bench.engine)
    words = ["--minutes", str(bench.tune_minutes), "--steps", str(bench.tune_steps)]
    done = call_pixelkit(bench, "tune", preset, *words)
    print(done.stdout, flush=True)
    if done.returncode:
        raise LeftOutError(f"tune: {last_words(done.stderr)}")
    run = run_pixelkit(bench, result)
    if "tuned here" not in json.dumps(json.loads((run / "plan.json").read_text("utf-8"))["sources"]):
        raise LeftOutError("the run did not go by what tune found")


def run_pixelkit(bench: Bench, result: Row, *options: str) -> Path:
    """`pixelkit run` of the preset; its run directory."""
    preset = bench.material.write_preset(steps=bench.steps, engine=bench.engine)
    with MemoryWatch() as memory:
        done = call_pixelkit(bench, "run", preset, *options)
    result.peak_memory_gib = memory.gib
    if done.returncode:
        raise LeftOutError(last_words(done.stderr))
    run = Path(done.stdout.splitlines()[-1]).parents[1]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [event for event in events if event.get("event") == "step"]
    times = {event["step"]: event["time"] for event in steps}
    losses = [float("nan") if event["loss"] is None else event["loss"] for event in steps]
    means = {event["step"]: statistics.fmean(losses[: number + 1]) for number, event in enumerate(steps)}
    result.settings = describe_plan(json.loads((run / "plan.json").read_text("utf-8")))
    summarise(result, times, means)
    return run


def call_pixelkit(bench: Bench, command: str, preset: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One command of pixelkit, with settings of its own below the bench's folder."""
    where = ["--sd-scripts", str(bench.sd_scripts)] if bench.sd_scripts else []
    argv = [sys.executable, "-m", "pixelkit", command, str(preset), "--runs", str(bench.runs), *where, *options]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(bench.material.folder / "settings")}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def last_words(text: str) -> str:
    """What a failed command said is wrong."""
    errors = re.findall(r"^error.*: (.*)$", text, re.MULTILINE)
    return errors[-1] if errors else " ".join(text.split()[-40:])


def describe_plan(plan: Mapping[str, Any]) -> str:
    """A plan's settings in a line."""
    train, kohya = plan["train"], plan["kohya"]
    words: Sequence[str] = (
        f"batch {train['batch_size']} x {train['gradient_accumulation']}",
        train["precision"],
        "checkpointing" if train["gradient_checkpointing"] else "",
        "xformers" if kohya.get("xformers") else "sdpa",
        "compile" if train["compile"] else "",
        f"{train['optimizer']}{' fused' if train['fused_optimizer'] and train['optimizer'] == 'adamw' else ''}",
        f"{train['workers']} workers",
        "cached latents",
    )
    return ", ".join(word for word in words if word)


def run_diffusers(bench: Bench, result: Row) -> None:  # noqa: ARG001 - as the others
    """Hugging Face's example, which is in no package of theirs."""
    found = importlib.util.find_spec("diffusers")
    places = found.submodule_search_locations if found else None
    scripts = [path for place in places or () for path in Path(place).rglob("train_text_to_image_lora*.py")]
    if not scripts:
        raise LeftOutError("diffusers' package holds no training script, and nothing is fetched")
    raise LeftOutError(f"{scripts[0]} is here, and this bench does not know how to start it")


def as_record(row: Row) -> dict[str, Any]:
    """For JSON."""
    return asdict(row)
