"""What decides how fast a training is and how much memory it takes, and what was measured of one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixelkit.plan import Plan

# sd-scripts' options that trade speed for memory.
MEMORY_SAVERS = (
    "blocks_to_swap",
    "cpu_offload_checkpointing",
    "fp8_base",
    "fp8_base_unet",
    "full_bf16",
    "full_fp16",
    "fused_backward_pass",
    "lowram",
    "highvram",
)
_ATTENTION = {"xformers": "xformers", "diffusers_xformers": "xformers", "mem_eff_attn": "mem_eff"}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A training as the clock sees it. Two runs with equal setups take equal time for a step.

    `base`: the base's name where its layout is not the family's own, else empty. `network`: the kind of LoRA, empty where
    none is trained. `images_per_step`: images that an optimizer step sees on the mean over all GPUs (the last batch of a
    bucket is seldom full). `canvas_area`: pixels of an image, on the mean. `memory_savers`: sd-scripts' options that trade
    speed for memory.
    """

    machine: str
    device: Literal["cuda", "rocm", "mps", "cpu"]
    cores: int
    family: str
    base: str
    method: str
    engine: str
    gpus: int
    batch_size: int
    gradient_accumulation: int
    images_per_step: float
    canvas_area: int
    network: str
    rank: int
    train_text_encoder: bool
    cache_text_encoder: bool
    gradient_checkpointing: bool
    compile: bool
    attention: Literal["sdpa", "xformers", "mem_eff"]
    optimizer: str
    precision: str
    memory_savers: str
    workers: int

    @property
    def place(self) -> tuple[str, ...]:
        """What must be the same for one setup's figures to say anything about another's."""
        cores = f"{self.cores} cores" if self.device == "cpu" else ""
        return (self.machine, self.device, cores, self.family, self.base, self.method, self.engine, str(self.gpus))

    @property
    def manner(self) -> tuple[object, ...]:
        """What changes a step's time in ways that no rule foretells."""
        return (
            self.network,
            self.train_text_encoder,
            self.cache_text_encoder,
            self.gradient_checkpointing,
            self.compile,
            self.attention,
            self.optimizer,
            self.precision,
            self.memory_savers,
        )

    @property
    def pixels(self) -> float:
        """Pixels that go through the model at once, on one device."""
        return self.images_per_step / self.gradient_accumulation / self.gpus * self.canvas_area


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What one run, or one probe of `pixelkit tune`, took. Seconds are wall clock.

    `seconds_per_step`: an optimizer step; None where it `failed` (a word: "oom" ...). `seconds_before`: everything that is
    neither step, picture nor save: loading, what the first steps took longer, the end. `peak_memory_gib`: the device's, or
    of all processes where the device shares the machine's memory. `steps`: how many were measured. `when`: UTC, ISO 8601.
    `elsewhere`: empty for this machine's own, else who measured it.
    """

    setup: Setup
    kind: Literal["run", "probe"] = "run"
    seconds_per_step: float | None
    seconds_before: float = 0.0
    seconds_per_picture: float | None = None
    picture_steps: int = 0
    picture_area: int = 0
    seconds_per_save: float | None = None
    peak_memory_gib: float | None = None
    steps: int
    when: str
    run: str = ""
    failed: str | None = None
    elsewhere: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The measure as plain values, for JSON."""
        return dataclasses.asdict(self)


_Record = TypeVar("_Record", Setup, Measure)


def read_measure(values: Mapping[str, Any]) -> Measure:
    """A measure from what `as_dict` gave, also of another version: unknown fields are passed over.

    Raises ValueError for what is no measure.
    """
    try:
        return _read(Measure, {**values, "setup": _read(Setup, values["setup"])})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no measure: {error}") from error


def _read(kind: type[_Record], values: Mapping[str, Any]) -> _Record:
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    chosen = {name: value for name, value in values.items() if name in known}
    for name, value in chosen.items():
        if not _fits(value, str(known[name])):
            raise TypeError(f"{name} = {value!r}")
    return kind(**chosen)


def _fits(value: object, kind: str) -> bool:
    if value is None:
        return "None" in kind
    if isinstance(value, bool):
        return kind == "bool"
    if isinstance(value, int | float):
        return kind.startswith("float") or (isinstance(value, int) and kind == "int")
    return kind == "Setup" if isinstance(value, Setup) else isinstance(value, str) and kind[:3] in {"str", "Lit"}


def images_per_step(plan: Plan) -> float:
    """Images that an optimizer step sees on the mean over all GPUs."""
    train = plan.train
    images = sum(bucket.images for bucket in plan.dataset.buckets)
    batches = sum(-(-bucket.images // train.batch_size) for bucket in plan.dataset.buckets)
    return images / max(1, batches) * train.gradient_accumulation * train.gpus


def setup_of(plan: Plan) -> Setup:
    """The setup of a plan on the machine that it was made for."""
    train, spec = plan.train, plan.base.spec
    kohya = plan.kohya if plan.engine == "kohya" else {}
    images = sum(bucket.images for bucket in plan.dataset.buckets)
    pixels = sum(bucket.width * bucket.height * bucket.images for bucket in plan.dataset.buckets)
    named = next((word for key, word in _ATTENTION.items() if kohya.get(key)), "sdpa")
    savers = (key if kohya[key] is True else f"{key} {kohya[key]}" for key in MEMORY_SAVERS if kohya.get(key))
    return Setup(
        machine=f"{plan.machine.device}, {plan.machine.memory_gib:.0f} GiB",
        device=plan.device,
        cores=plan.machine.cores,
        family=spec.family,
        base="" if spec.layout == "stock" else plan.base.name,
        method=plan.method,
        engine=plan.engine,
        gpus=train.gpus,
        batch_size=train.batch_size,
        gradient_accumulation=train.gradient_accumulation,
        images_per_step=round(images_per_step(plan), 2),
        canvas_area=round(pixels / max(1, images)),
        network=plan.network.kind if plan.makes == "lora" else "",
        rank=plan.network.rank if plan.makes == "lora" else 0,
        train_text_encoder=train.train_text_encoder,
        cache_text_encoder=train.cache_text_encoder,
        gradient_checkpointing=train.gradient_checkpointing,
        compile=train.compile,
        attention=named,  # type: ignore[arg-type]  # one of the words above
        optimizer=f"{train.optimizer} fused" if train.fused_optimizer else train.optimizer,
        precision=train.precision,
        memory_savers=", ".join(savers),
        workers=train.workers,
    )
