"""The trainer's config.toml, read strictly. Loads no torch: pixelkit checks with it what it rendered.

Every key must be there: the file is rendered from a plan in which nothing is open. All problems come in one error.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pixelkit.errors import Problem, RenderError, did_you_mean
from pixelkit.toml_lines import locate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Precision = Literal["no", "bf16", "fp16"]
Sampler = Literal["ddim", "euler", "euler_a", "dpm++"]


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """Folders of PNG files with a .txt caption of the same name each; sizes are final: nothing is resized or cropped.

    `repeats`: for each of `images`, how often an epoch shows what is in it. `class_images` (empty: none) are the prior
    preservation set: as many of them as training images go into an epoch.
    """

    images: tuple[str, ...]
    repeats: tuple[int, ...]
    class_images: str
    caption_dropout: float
    batch_size: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The LoRA. `conv_rank` 0 leaves 3x3 convolutions alone; `dropout` acts between down and up."""

    rank: int
    alpha: float
    dropout: float
    conv_rank: int
    conv_alpha: float
    train_text_encoder: bool


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimisation. `steps` are optimizer steps; at 0 is off: min_snr_gamma, max_grad_norm, save_every_steps."""

    steps: int
    gradient_accumulation: int
    learning_rate: float
    text_encoder_learning_rate: float
    optimizer: Literal["adamw", "adamw8bit"]
    weight_decay: float
    scheduler: Literal["cosine", "constant", "linear"]
    warmup_steps: int
    max_grad_norm: float
    min_snr_gamma: float
    noise_offset: float
    prior_loss_weight: float
    gradient_checkpointing: bool
    save_every_steps: int
    compile: bool


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Sample images: prompt i is drawn with seed + i, before training and after; `every_steps` 0 adds none between."""

    prompts: tuple[str, ...]
    negative: str
    every_steps: int
    steps: int
    guidance: float
    seed: int
    width: int
    height: int
    sampler: Sampler


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training. `base` is a diffusers StableDiffusionPipeline (folder or hub id) or a single-file checkpoint."""

    base: str
    output_dir: str
    output_name: str
    seed: int
    precision: Precision
    dataset: DatasetSettings
    network: NetworkSettings
    train: TrainSettings
    sample: SampleSettings
    metadata: dict[str, str]


AT_LEAST: Mapping[str, float] = {
    "seed": 0, "dataset.caption_dropout": 0, "dataset.batch_size": 1, "dataset.workers": 0,
    "network.rank": 1, "network.alpha": 0.001, "network.dropout": 0, "network.conv_rank": 0, "network.conv_alpha": 0,
    "train.steps": 1, "train.gradient_accumulation": 1, "train.learning_rate": 0, "train.text_encoder_learning_rate": 0,
    "train.weight_decay": 0, "train.warmup_steps": 0, "train.max_grad_norm": 0, "train.min_snr_gamma": 0,
    "train.prior_loss_weight": 0, "train.save_every_steps": 0, "sample.every_steps": 0, "sample.steps": 1,
    "sample.guidance": 0, "sample.seed": 0, "sample.width": 8, "sample.height": 8,
}  # fmt: skip
AT_MOST: Mapping[str, float] = {
    "dataset.caption_dropout": 1,
    "network.dropout": 1,
    "seed": 2**62,
    "sample.seed": 2**62,
}


def load_settings(path: Path) -> Settings:
    """Read a config.toml. Raises RenderError that lists everything wrong with it."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RenderError(f"cannot read {path}: {error}") from error
    return parse_settings(text, name=path.name)


def parse_settings(text: str, *, name: str = "config.toml") -> Settings:
    """Settings from the TOML text; `name` stands for the file in errors. Raises RenderError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RenderError(f"{name} is not valid TOML: {error}") from error
    lines = locate(text)
    problems: list[Problem] = []

    def report(path: tuple[str, ...], what: str, hint: str = "") -> None:
        line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 0)
        table = f" [{'.'.join(path[:-1])}]" if path[:-1] else ""
        problems.append(Problem(where=f"{name}:{line}{table}" if line else f"{name}{table}", what=what, hint=hint))

    def read_table(cls: type[Any], table: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        types = get_type_hints(cls)
        for key in table.keys() - types.keys():
            report((*path, key), f"{key}: no such key", did_you_mean(key, types))
        values: dict[str, Any] = {}
        for field in fields(cls):
            here = (*path, field.name)
            if field.name not in table:
                report(here, f"{field.name} is missing")
                continue
            value = table[field.name]
            if isinstance(types[field.name], type) and issubclass(types[field.name], TABLES):
                if isinstance(value, dict):
                    values[field.name] = read_table(types[field.name], value, here)
                else:
                    report(here, f"{field.name} must be a table")
                continue
            problem, values[field.name] = _read_value(types[field.name], value)
            problem = problem or _check_range(".".join(here), values[field.name])
            if problem:
                hint = did_you_mean(value, filter(_is_text, get_args(types[field.name]))) if _is_text(value) else ""
                report(here, f"{field.name} {problem}", hint)
        return values

    values = read_table(Settings, document, ())
    for path, what in [] if problems else _find_contradictions(values):
        report(path, what)
    if problems:
        raise RenderError(f"{name} has {len(problems)} problem{'s'[: len(problems) > 1]}", problems=problems)
    tables = {key: cls(**values.pop(key)) for key, cls in get_type_hints(Settings).items() if cls in TABLES}
    return Settings(**values, **tables)


def _find_contradictions(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """What is legal key by key, and wrong together: (table, key), what."""
    network, dataset = values["network"], values["dataset"]
    if network["conv_rank"] and network["conv_alpha"] < AT_LEAST["network.alpha"]:
        yield ("network", "conv_alpha"), "conv_alpha must be above 0 where there is a conv_rank"
    if len(dataset["images"]) != len(dataset["repeats"]):
        yield ("dataset", "repeats"), "there must be as many repeats as images, one number for each folder"


TABLES = (DatasetSettings, NetworkSettings, TrainSettings, SampleSettings)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _read_value(expected: Any, value: Any) -> tuple[str, Any]:
    """(what is wrong or empty, the value in its final type)."""
    if get_origin(expected) is Literal:
        options = get_args(expected)
        return ("" if value in options else f"must be one of {', '.join(options)}, not {value!r}"), value
    items = list(value.values()) if isinstance(value, dict) else value
    is_texts = isinstance(items, list) and all(isinstance(item, str) for item in items)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    if expected == tuple[int, ...]:
        counts = isinstance(value, list) and all(type(item) is int and item > 0 for item in value)
        return ("" if counts else f"must be a list of whole numbers above 0, not {value!r}"), tuple(
            value
        ) if counts else value
    kind = get_origin(expected) or expected
    legal, noun = {
        float: (is_number, "a number"),
        int: (is_number and isinstance(value, int), "a whole number"),
        bool: (isinstance(value, bool), "true or false"),
        str: (isinstance(value, str), "a text"),
        tuple: (isinstance(value, list) and is_texts, "a list of texts"),
        dict: (isinstance(value, dict) and is_texts, "a table of texts"),
    }[kind]
    if not legal:
        return f"must be {noun}, not {value!r}", value
    return "", kind(value)


def _check_range(key: str, value: Any) -> str:
    if key in {"base", "output_dir", "output_name", "dataset.images"} and not value:
        return "must not be empty"
    if key == "output_name" and (set(value) & set('/\\:*?"<>|') or value in {".", ".."}):
        return f"must be a file name without folder, not {value!r}"
    if key in AT_LEAST and isinstance(value, int | float) and value < AT_LEAST[key]:
        return f"must be at least {AT_LEAST[key]:g}, not {value!r}"
    if key in AT_MOST and isinstance(value, int | float) and value > AT_MOST[key]:
        return f"must be at most {AT_MOST[key]:g}, not {value!r}"
    return ""
