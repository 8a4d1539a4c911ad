"""PEFT's format: a folder for each component (`unet/`, `text_encoder/`), each with adapter_config.json and weights.

PEFT scales a module by its alpha / its rank, both told by patterns (peft: utils/other.py, get_pattern_key): nothing
is lost. transformers 5.6 took `text_model.` out of CLIP's module paths, so a text encoder's folder fits either side of
that release: `flat_text_encoder` says which.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from converters.errors import ConversionError
from converters.lora import (
    NOTE,
    Lora,
    Module,
    Written,
    carry_metadata,
    encode_alpha,
    guess_prefix,
    read_note,
    spelled_name,
    write_note,
)
from converters.names import Component, Name, is_layer
from converters.tensors import Tensor, Weights, read_file, sync_path, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.lora import Source

COMPONENTS: tuple[Component, ...] = ("unet", "text_encoder", "text_encoder_2")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
# Settings that change what the weights mean, with the value that leaves the meaning as it is.
_PLAIN = {"use_dora": False, "bias": "none", "lora_bias": False, "modules_to_save": None, "layer_replication": None}
_PLAIN |= {"trainable_token_indices": None, "target_parameters": None, "fan_in_fan_out": False}


def matches(source: Source) -> bool:
    """Whether a folder holds PEFT adapters by component."""
    return source.weights is None and any((source.path / component / _CONFIG).is_file() for component in COMPONENTS)


def build(lora: Lora, *, flat_text_encoder: bool = False) -> dict[Component, tuple[Weights, dict[str, Any]]]:
    """For each component its tensors and its adapter_config."""
    built: dict[Component, tuple[Weights, dict[str, Any]]] = {}
    for component in COMPONENTS:
        modules = {name: module for name, module in lora.modules.items() if name.component == component}
        if not modules:
            continue
        paths = {name: flatten_path(name) if flat_text_encoder else name.path for name in modules}
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            tensors[f"base_model.model.{paths[name]}.lora_A.weight"] = module.down
            tensors[f"base_model.model.{paths[name]}.lora_B.weight"] = module.up
        metadata = {**lora.metadata, "format": "pt", NOTE: write_note(modules)}
        config = _build_config({paths[name]: module for name, module in modules.items()})
        built[component] = (Weights(tensors=tensors, metadata=metadata), config)
    return built


def write(lora: Lora, out: Path, *, flat_text_encoder: bool = False) -> Written:
    """Write the adapters into the folder `out`: made under a temporary name, renamed when whole."""
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        for component, (weights, config) in build(lora, flat_text_encoder=flat_text_encoder).items():
            (temporary / component).mkdir(parents=True)
            write_file(temporary / component / _WEIGHTS, weights.tensors, weights.metadata)
            text = json.dumps(config, indent=2) + "\n"
            (temporary / component / _CONFIG).write_text(text, encoding="utf-8")
            sync_path(temporary / component / _CONFIG)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
        sync_path(out.parent)
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return Written(paths=tuple(out / component for component in COMPONENTS if (out / component).is_dir()))


def parse(source: Source) -> Lora:
    """Raises ConversionError for what a kohya LoRA cannot hold, and for keys of no known model."""
    found: dict[Component, tuple[Weights, dict[str, Any]]] = {}
    for component in COMPONENTS:
        folder = source.path / component
        if (folder / _CONFIG).is_file():
            found[component] = (read_file(folder / _WEIGHTS), _read_config(folder / _CONFIG))
    pairs = {component: _pair_up(component, weights) for component, (weights, _) in found.items()}
    places: list[tuple[str, str]] = [(component, path) for component, paths in pairs.items() for path in paths]
    modules: dict[Name, Module] = {}
    metadata: dict[str, str] = {}
    for component, (weights, config) in found.items():
        prefix = guess_prefix(component, places)
        spellings = read_note(weights.metadata, [f"{component}.{path}" for path in pairs[component]])
        for path, pair in pairs[component].items():
            spelling = spellings.get(f"{component}.{path}")
            value = find_alpha(config, path, rank=pair["A"].shape[0])
            alpha = spelling.alpha_tensor(value) if spelling else encode_alpha(value, pair["A"].dtype)
            name = spelled_name(component, path, spelling, prefix=prefix)
            modules[name] = Module(down=pair["A"], up=pair["B"], alpha=alpha)
        metadata |= carry_metadata(weights.metadata)
    return Lora(modules=modules, metadata=metadata)


def flatten_path(name: Name) -> str:
    """A text encoder's path as transformers 5.6 and later have it."""
    return name.path if name.component == "unet" else name.path.removeprefix("text_model.")


def deepen_path(component: Component, path: str) -> str:
    """A path of either kind -> the one of transformers before 5.6."""
    if component != "unet" and not is_layer(component, path) and is_layer(component, f"text_model.{path}"):
        return f"text_model.{path}"
    return path


def _build_config(modules: Mapping[str, Module]) -> dict[str, Any]:
    rank = Counter(module.rank for module in modules.values()).most_common(1)[0][0]
    alpha = Counter(module.alpha_value for module in modules.values()).most_common(1)[0][0]
    ranks = {f"^{path}": module.rank for path, module in modules.items() if module.rank != rank}
    alphas = {f"^{path}": _plain(module.alpha_value) for path, module in modules.items() if module.alpha_value != alpha}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": sorted(modules),
    }


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConversionError(f"{path}: not the config of a LoRA")
    odd = {key for key, plain in _PLAIN.items() if config.get(key, plain) not in (plain, None, [], {})}
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] not in {"gaussian", "eva"}:
        odd.add("init_lora_weights")  # pissa, olora and their kin change the base model's weights
    if odd:
        raise ConversionError(f"{path}: settings that a kohya LoRA cannot hold", keys=odd)
    return cast("dict[str, Any]", config)


def _pair_up(component: Component, weights: Weights) -> dict[str, dict[str, Tensor]]:
    """Module path (transformers before 5.6) -> its two matrices, by the letter PEFT gives them."""
    pairs: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in weights.tensors.items():
        match = _KEY.fullmatch(key)
        path = deepen_path(component, match.group(1)) if match else ""
        if match and is_layer(component, path):
            pairs.setdefault(path, {})[match.group(2)] = tensor
        else:
            unknown.append(f"{component}: {key}")
    if unknown:
        raise ConversionError("keys of no known model", keys=unknown)
    halves = [f"{component}.{path}" for path, pair in pairs.items() if set(pair) != {"A", "B"}]
    if halves:
        raise ConversionError("modules without lora_A or lora_B", keys=halves)
    return pairs


def find_alpha(config: Mapping[str, Any], path: str, *, rank: int) -> float:
    """PEFT's alpha of a module, as kohya means it (alpha / rank); `use_rslora` divides by the root of the rank."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", kind) for kind in (path, path.removeprefix("text_model."))):
            alpha = value
            break
    return float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha)
