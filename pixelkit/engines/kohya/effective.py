"""What sd-scripts will really use: options, dataset file and defaults, put together as library/config_util.py does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.engines.kohya.options import load_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# ARGPARSE_OPTNAME_TO_CONFIG_OPTNAME (config_util.py): the names that differ from those in a dataset file
_RENAMED = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}

LORA = frozenset({"train_network", "sdxl_train_network", "flux_train_network", "sd3_train_network"})


def has_module(name: str) -> bool:
    """Whether the package can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def version_of(package: str) -> str:
    """The installed version of a distribution, "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def read_rank(path: str) -> int | None:
    """The rank of a LoRA file in kohya's format, from its header; None where it is unreadable or has several.

    3x3 convolutions are left out: they may have a rank of their own.
    """
    try:
        with Path(path).open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(min(length, 100_000_000)))
        shapes = [entry["shape"] for name, entry in header.items() if name.endswith(".lora_down.weight")]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None
    ranks = {shape[0] for shape in shapes if len(shape) == 2 or shape[2:] == [1, 1]}
    return ranks.pop() if len(ranks) == 1 else None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the rules ask of the machine; tests put their own answers here."""

    has_module: Callable[[str], bool] = has_module
    version_of: Callable[[str], str] = version_of
    read_rank: Callable[[str], int | None] = read_rank


@dataclass(frozen=True, kw_only=True)
class Effective:
    """The options given to a script, its dataset file, and the machine."""

    script: str
    options: Mapping[str, Any]
    dataset: Mapping[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)

    def get(self, name: str) -> Any:
        """The option's value: as given, else the script's default; None for an option the script lacks."""
        option = load_table().options_of(self.script).get(name)
        return self.options.get(name, option.default if option else None)

    def is_given(self, name: str) -> bool:
        """Whether the option was written down at all."""
        return self.options.get(name) is not None

    def datasets(self) -> list[_Level]:
        """One level for each dataset, each seeing [general] and the options below it; one for train_data_dir alone."""
        given = self.dataset.get("datasets") or [{}]
        return [_Level(settings=self, chain=(dataset, self.dataset.get("general", {}))) for dataset in given]

    def subsets(self) -> list[_Level]:
        """The same for each subset."""
        return [
            _Level(settings=self, chain=(subset, *level.chain))
            for level in self.datasets()
            for subset in level.chain[0].get("subsets") or [{}]
        ]

    def pairs(self, name: str) -> dict[str, str]:
        """An option of `key=value` texts, as network_args; what has no `=` is left out."""
        texts = self.get(name) or []
        return dict(text.split("=", 1) for text in texts if isinstance(text, str) and "=" in text)

    @property
    def optimizer(self) -> str:
        """The optimizer's name in lower case, as train_util.py:4828 settles it."""
        if self.get("use_8bit_adam"):
            return "adamw8bit"
        return "lion" if self.get("use_lion_optimizer") else (self.get("optimizer_type") or "AdamW").lower()

    @property
    def scheduler(self) -> str:
        """The scheduler's name; Adafactor with relative_step, its default, brings its own (train_util.py:5078)."""
        relative = self.pairs("optimizer_args").get("relative_step", "True").strip() != "False"
        return "adafactor" if self.optimizer == "adafactor" and relative else str(self.get("lr_scheduler"))

    @property
    def caches_latents(self) -> bool:
        """To memory, or to disk, which implies it (train_util.py:4424)."""
        return bool(self.get("cache_latents") or self.get("cache_latents_to_disk"))

    @property
    def caches_text(self) -> bool:
        """Whether the text encoders' outputs are cached."""
        return bool(self.get("cache_text_encoder_outputs") or self.get("cache_text_encoder_outputs_to_disk"))

    @property
    def samples(self) -> bool:
        """Whether sample images are to be made during the training."""
        every = (self.get("sample_every_n_steps"), self.get("sample_every_n_epochs"))
        return bool(self.get("sample_at_first")) or any(number is not None and number > 0 for number in every)


@dataclass(frozen=True, kw_only=True)
class _Level:
    """A subset or dataset with the levels it falls back to."""

    settings: Effective
    chain: tuple[Mapping[str, Any], ...]

    def written(self, name: str) -> Any:
        """The value that the dataset file or the configuration file gives, None if neither does."""
        for level in (*self.chain, self.settings.options):
            if level.get(name) is not None:
                return level[name]
        return None

    def get(self, name: str) -> Any:
        """The value in effect."""
        for level in self.chain:
            if level.get(name) is not None:
                return level[name]
        return self.settings.get(_RENAMED.get(name, name))

    def resolution(self) -> tuple[int, int] | None:
        """(width, height); the options hold it as text, `512` or `768,512`. None where it is missing or unreadable."""
        value = self.get("resolution")
        try:
            numbers = [int(part) for part in value.split(",")] if isinstance(value, str) else value
        except ValueError:
            return None
        if isinstance(numbers, int):
            numbers = [numbers]
        if not isinstance(numbers, list | tuple) or len(numbers) not in {1, 2}:
            return None
        return numbers[0], numbers[-1]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One combination that sd-scripts refuses, crashes on, or takes for something else than it says.

    `mirrors` is the file:line at the pinned commit that it stands for, `quote` a part of that line. `broken` gives
    something true where the rule is broken; its text fills `{found}` in `message` and `hint`. No `scripts`: all.
    """

    name: str
    mirrors: str
    quote: str
    broken: Callable[[Effective], object]
    message: str
    hint: str
    scripts: frozenset[str] = frozenset()
