"""The metadata of a LoRA made from others: what is still true stays, what is not goes, and where it came from is said."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from converters.lora import AnyModule, Lora
    from converters.names import Name

# What a LoRA shares with every other that was trained on the same base; the rest tells how one of them was trained.
_OF_THE_BASE = frozenset(
    {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_sd_model_name",
        "ss_sd_model_hash",
        "ss_new_sd_model_hash",
        "ss_vae_name",
        "ss_vae_hash",
        "ss_new_vae_hash",
        "ss_clip_skip",
        "ss_zero_terminal_snr",
        "modelspec.sai_model_spec",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.resolution",
        "modelspec.prediction_type",
        "modelspec.encoder_layer",
        "modelspec.license",
    }
)


def merge_metadata(metadata: Sequence[Mapping[str, str]], titles: Sequence[str], *, title: str) -> dict[str, str]:
    """What all sources say alike about their base, with the names of the sources."""
    first, *others = metadata
    kept = {key: value for key, value in first.items() if key in _OF_THE_BASE}
    kept = {key: value for key, value in kept.items() if all(other.get(key) == value for other in others)}
    if "modelspec.sai_model_spec" in kept:
        kept["modelspec.title"] = title
        kept["modelspec.merged_from"] = ", ".join(titles)
        kept["modelspec.date"] = now()
    else:
        kept = {key: value for key, value in kept.items() if not key.startswith("modelspec.")}
    kept["ss_training_comment"] = f"merged from {', '.join(titles)}"
    return kept


def describe_network(lora: Lora) -> dict[str, str]:
    """The keys of a plain LoRA that its modules decide: rank and alpha, those of its convolutions apart."""
    plain = {name: module for name, module in lora.modules.items() if not is_wide(module)}
    wide = {name: module for name, module in lora.modules.items() if is_wide(module)}
    found = {
        "ss_network_dim": _common(plain or wide, lambda module: str(module.rank)),
        "ss_network_alpha": _common(plain or wide, lambda module: str(module.alpha_value)),
    }
    try:
        arguments = json.loads(lora.metadata.get("ss_network_args") or "{}")
    except ValueError:
        arguments = {}
    arguments = {key: value for key, value in arguments.items() if key not in {"conv_dim", "conv_alpha", "algo"}}
    if wide and plain:
        arguments["conv_dim"] = _common(wide, lambda module: str(module.rank))
        arguments["conv_alpha"] = _common(wide, lambda module: str(module.alpha_value))
    module = lora.metadata.get("ss_network_module", "")
    found["ss_network_module"] = module if module.startswith("networks.lora") else "networks.lora"
    found["ss_network_args"] = json.dumps(arguments)
    return found


def title_of(metadata: Mapping[str, str], name: str) -> str:
    """A model's title, as the modelspec's merged_from lists it; the file's name where it has none."""
    return metadata.get("modelspec.title") or name


def now() -> str:
    """The time as modelspec.date has it."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def is_wide(module: AnyModule) -> bool:
    """Whether a module belongs to a convolution above 1x1."""
    return any(size != 1 for size in (module.shape or ())[2:])


def _common(modules: Mapping[Name, AnyModule], read: Callable[[AnyModule], str]) -> str:
    values = {read(module) for module in modules.values()}
    return values.pop() if len(values) == 1 else "Dynamic"
