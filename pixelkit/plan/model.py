"""The plan: every number of a run, final, each with the place it comes from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixelkit.canvas import Bucket, Canvas
    from pixelkit.catalog import Base
    from pixelkit.hardware import Machine
    from pixelkit.preset import Method, NetworkKind, Preset
    from pixelkit.sources import Sprite


def makes(method: Method) -> Literal["lora", "model", "embedding"]:
    """What a method makes."""
    return "lora" if method == "lora" else "embedding" if method == "textual-inversion" else "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSprite:
    """One sprite: where it lies, how it is enlarged, its final caption, how often it is seen in an epoch."""

    sprite: Sprite
    canvas: Canvas
    caption: str
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """What the trainer will see. `buckets` count repeats and class images; `repeats` is what the preset asks for."""

    source: Path
    sprites: tuple[PlannedSprite, ...]
    class_sprites: tuple[PlannedSprite, ...]
    background: str
    alpha: Literal["flatten", "mask"]
    trigger: str
    resolution: int
    repeats: int
    prior_weight: float
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """The LoRA's shape; conv_rank 0 = no convolutions, factor and unit 0 = the network's own choice.

    `start_from`: an earlier LoRA, brought to this shape before training.
    """

    kind: NetworkKind
    rank: int
    alpha: float
    dropout: float
    conv_rank: int
    conv_alpha: float
    factor: int
    unit: int
    start_from: Path | None


@dataclass(frozen=True, kw_only=True)
class EmbeddingPlan:
    """A new word: `vectors` behind `token`, which start as those of `start_word`, or as noise."""

    token: str
    vectors: int
    start_word: str | None


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Steps are optimizer steps. 0 means never for save_every_steps, min_snr_gamma, noise_offset, max_grad_norm."""

    steps: int
    epochs: float
    steps_per_epoch: int
    batch_size: int
    gradient_accumulation: int
    learning_rate: float
    train_text_encoder: bool
    text_encoder_learning_rate: float
    cache_text_encoder: bool
    optimizer: str
    fused_optimizer: bool
    scheduler: str
    warmup_steps: int
    max_grad_norm: float
    min_snr_gamma: float
    noise_offset: float
    caption_dropout: float
    shuffle_caption: bool
    gradient_checkpointing: bool
    gpus: int
    compile: bool
    precision: str
    save_precision: str
    workers: int
    seed: int
    save_every_steps: int
    clip_skip: int

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step, over all GPUs."""
        return self.batch_size * self.gradient_accumulation * self.gpus


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """Pictures at step 0 and at the end, and each `every_steps` (0 = not on the way). Prompt i has seed + i."""

    prompts: tuple[str, ...]
    negative: str
    every_steps: int
    steps: int
    guidance: float
    seed: int
    sampler: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a run will do. `sources` says for each value, by its dotted name, where it comes from."""

    name: str
    method: Method
    engine: Literal["kohya", "diffusers"]
    base: Base
    base_loras: tuple[tuple[Path, float], ...]
    hardware: str
    device: Literal["cuda", "rocm", "mps", "cpu"]
    machine: Machine
    environment: Mapping[str, str]
    dataset: DatasetPlan
    network: NetworkPlan
    embedding: EmbeddingPlan | None
    train: TrainPlan
    sample: SamplePlan
    preset: Preset
    kohya: Mapping[str, object]
    memory_gib: float
    sources: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def makes(self) -> Literal["lora", "model", "embedding"]:
        """What comes out."""
        return makes(self.method)

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for plan.json."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content["preset"] = self.preset.model_dump(mode="json", exclude_defaults=True)
        content["base"] = {**vars(self.base), "spec": self.base.spec.model_dump(mode="json")}
        for name in ("dataset", "network", "embedding", "train", "sample", "machine"):
            content[name] = content[name] and dataclasses.asdict(content[name])
        return content
