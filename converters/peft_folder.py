"""PEFT's format: a folder for each component (`unet/`, `text_encoder/`), each with adapter_config.json and weights.

PEFT scales a module by its alpha / its rank, both told by patterns (peft: utils/other.py, get_pattern_key): nothing is
lost of LoRA, DoRA, LoHa and LoKr. A Tucker LoRA has no form there: its core is multiplied in, in float32.

One folder holds one kind of adapter. Where a component's modules need several (kinds mixed; LoKr split by more than one
factor; DoRA on a part), the one with most modules is `unet/`, the next `unet-2/`: all of them together are the LoRA.

    model = PeftMixedModel.from_pretrained(unet, "hero/unet")
    model.load_adapter("hero/unet-2", "2")
    model.set_adapter(["default", "2"])

transformers 5.6 took `text_model.` out of CLIPTextModel's module paths (CLIPTextModelWithProjection kept it), so a text
encoder's folder fits either side of that release: `flat_text_encoder` says which.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from converters import fused
from converters.errors import ConversionError
from converters.family import stated_family
from converters.lora import NOTE, Lora, Module, Written, carry_metadata, check_finite, encode_alpha
from converters.modules import PART_NAMES, KronModule, build_module
from converters.names import COMPONENTS, Component, Name, is_layer, unknown_layers
from converters.note import Spelling, guess_prefix, read_note, shape_magnitude, spelled_name, write_note
from converters.peft_config import KINDS, PLAIN, build_config, find_alpha, find_rank, group_modules
from converters.scaling import multiply_exactly, multiply_widened
from converters.tensors import Tensor, Weights, read_file, sync_path, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.lora import AnyModule, Source

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Names of a module's tensors: PEFT's -> kohya's.
_PARTS = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight", "lora_magnitude_vector": "dora_scale"}
_PARTS |= {part: part for part in PART_NAMES if part.startswith(("hada_", "lokr_"))}
_KOHYA_PARTS = {kohya: part for part, kohya in _PARTS.items()}
_KEY = re.compile(rf"base_model\.model\.(.+)\.({'|'.join(map(re.escape, _PARTS))})")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One folder: its name, tensors and config."""

    folder: str
    weights: Weights
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Built:
    """The folders; tensors that became float32 (Tucker cores multiplied in), and those that lost their last bit."""

    adapters: tuple[Adapter, ...]
    widened: tuple[str, ...]
    rounded: tuple[str, ...]


def matches(source: Source) -> bool:
    """Whether a folder holds PEFT adapters by component."""
    return source.weights is None and any((source.path / component / _CONFIG).is_file() for component in COMPONENTS)


def build(lora: Lora, *, flat_text_encoder: bool = False) -> Built:
    """Every component's folders. Raises ConversionError with the modules that PEFT cannot hold."""
    lora = fused.split(lora)
    modules: dict[Name, AnyModule] = {}
    widened: list[str] = []
    rounded: list[str] = []
    for name, module in lora.modules.items():
        modules[name] = module
        if isinstance(module, Module) and module.mid is not None:
            modules[name], exact = module.make_plain()
            key = f"{name.component}.{name.path}.lora_A.weight"
            widened += [key] if module.down.dtype != "F32" else []
            rounded += [] if exact else [key]
    flat = flat_text_encoder and any(name.component == "text_encoder" for name in modules) and not _projects(lora)
    adapters: list[Adapter] = []
    for component in COMPONENTS:
        groups = group_modules({name: module for name, module in modules.items() if name.component == component})
        for number, group in enumerate(groups, start=1):
            own = {name: modules[name] for name in group.ranks}
            paths = {name: flatten_path(name) if flat else name.path for name in own}
            tensors = {
                f"base_model.model.{paths[name]}.{_KOHYA_PARTS[part]}": _as_peft(part, tensor, module)
                for name, module in own.items()
                for part, tensor in module.parts.items()
                if part != "alpha"
            }
            config = build_config(
                group.rule,
                {paths[name]: module for name, module in own.items()},
                {paths[name]: rank for name, rank in group.ranks.items()},
                is_first=number == 1,
            )
            metadata = {**lora.metadata, "format": "pt", NOTE: write_note(own)}
            folder = component if number == 1 else f"{component}-{number}"
            adapters.append(Adapter(folder=folder, weights=Weights(tensors=tensors, metadata=metadata), config=config))
    return Built(adapters=tuple(adapters), widened=tuple(widened), rounded=tuple(rounded))


def write(lora: Lora, out: Path, *, flat_text_encoder: bool = False) -> Written:
    """Write the adapters into the folder `out`: made under a temporary name, renamed when whole."""
    built = build(lora, flat_text_encoder=flat_text_encoder)
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        for adapter in built.adapters:
            folder = temporary / adapter.folder
            folder.mkdir(parents=True)
            write_file(folder / _WEIGHTS, adapter.weights.tensors, adapter.weights.metadata)
            (folder / _CONFIG).write_text(json.dumps(adapter.config, indent=2) + "\n", encoding="utf-8")
            sync_path(folder / _CONFIG)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
        sync_path(out.parent)
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    paths = tuple(out / adapter.folder for adapter in built.adapters)
    return Written(paths=paths, widened=built.widened, rounded=built.rounded)


def parse(source: Source) -> Lora:
    """Raises ConversionError for what a kohya LoRA cannot hold, and for keys of no known model."""
    found = [
        (component, weights, config, _collect_parts(component, weights))
        for component, folder in _find_folders(source.path)
        for weights, config in [(read_file(folder / _WEIGHTS), _read_config(folder / _CONFIG))]
    ]
    places: list[tuple[str, str]] = [(component, path) for component, _, _, parts in found for path in parts]
    modules: dict[Name, AnyModule] = {}
    metadata: dict[str, str] = {}
    twins: list[str] = []
    for component, weights, config, paths in found:
        check_finite(weights.tensors)
        prefix = guess_prefix(component, places)
        spellings = read_note(weights.metadata, [f"{component}.{path}" for path in paths])
        for path, parts in paths.items():
            spelling = spellings.get(f"{component}.{path}")
            name = spelled_name(component, path, spelling, prefix=prefix)
            twins += [f"{component}.{path}"] if name in modules else []
            modules[name] = _read_module(f"{component}.{path}", parts, config, spelling)
        metadata |= carry_metadata(weights.metadata)
    if twins:
        raise ConversionError("modules that more than one folder changes", keys=twins)
    return Lora(modules=modules, metadata=metadata)


def flatten_path(name: Name) -> str:
    """The path of CLIPTextModel's layers as transformers 5.6 and later have it; others are as they were."""
    return name.path.removeprefix("text_model.") if name.component == "text_encoder" else name.path


def deepen_path(component: Component, path: str) -> str:
    """A path of either kind -> the one of transformers before 5.6."""
    if not is_layer(component, path) and is_layer(component, f"text_model.{path}"):
        return f"text_model.{path}"
    return path


def _projects(lora: Lora) -> bool:
    """Whether the first text encoder is a CLIPTextModelWithProjection, as that of SD 3 is."""
    transformer = {name: module for name, module in lora.modules.items() if name.component == "transformer"}
    if transformer:
        return fused.find_transformer(transformer, lora.metadata) == "sd3"
    components = {name.component for name in lora.modules}
    return (
        components >= {"text_encoder_2", "text_encoder_3"}
        or stated_family(lora.metadata) == "sd3"
        or any(name.path == "text_projection" for name in lora.modules if name.component == "text_encoder")
    )


def _as_peft(part: str, tensor: Tensor, module: AnyModule) -> Tensor:
    """A tensor in PEFT's shape: a magnitude is (out,) for a linear layer, (1, out, 1, 1) for a convolution."""
    if part != "dora_scale":
        return tensor
    return tensor.reshape(*((module.shape[0],) if len(module.shape) == 2 else (1, module.shape[0], 1, 1)))


def _find_folders(path: Path) -> list[tuple[Component, Path]]:
    return [
        (component, folder)
        for component in COMPONENTS
        for folder in (path / component, *sorted(path.glob(f"{component}-[0-9]*")))
        if (folder / _CONFIG).is_file()
    ]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") not in KINDS:
        raise ConversionError(f"{path}: not the config of a LoRA, LoHa or LoKr")
    odd = {key for key, plain in PLAIN.items() if config.get(key, plain) not in (plain, None, [], {})}
    if isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"] not in {"gaussian", "eva"}:
        odd.add("init_lora_weights")  # pissa, olora and their kin change the base model's weights
    if odd:
        raise ConversionError(f"{path}: settings that a kohya LoRA cannot hold", keys=odd)
    return cast("dict[str, Any]", config)


def _collect_parts(component: Component, weights: Weights) -> dict[str, dict[str, Tensor]]:
    """Module path (transformers before 5.6) -> its tensors under kohya's names."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in weights.tensors.items():
        match = _KEY.fullmatch(key)
        path = deepen_path(component, match.group(1)) if match else ""
        if match and is_layer(component, path):
            found.setdefault(path, {})[_PARTS[match.group(2)]] = tensor
        else:
            unknown.append(f"{component}: {key}")
    if unknown:
        raise unknown_layers("keys of no known model", unknown)
    return found


def _read_module(
    place: str, parts: Mapping[str, Tensor], config: Mapping[str, Any], spelling: Spelling | None
) -> AnyModule:
    """A module with its alpha, by the note or as PEFT reads its config."""
    kind, path = KINDS[config["peft_type"]], place.partition(".")[2]
    try:
        module = build_module(parts)
    except ConversionError as error:
        raise ConversionError(
            "modules without one of their matrices", keys=[f"{place}.{key}" for key in error.keys]
        ) from error
    dora = kind is Module and bool(config.get("use_dora"))
    if type(module) is not kind or (module.magnitude is not None) != dora:
        raise ConversionError("modules of another kind than adapter_config.json says", keys=[place])
    if isinstance(module, KronModule) and module.is_whole:
        return _read_whole(module, find_alpha(config, path, rank=1) / find_rank(config, path), spelling)
    value = find_alpha(config, path, rank=module.rank)
    first = next(iter(parts.values()))
    alpha = spelling.alpha_tensor(value) if spelling else encode_alpha(value, first.dtype)
    return replace(module, alpha=alpha, magnitude=shape_magnitude(module, spelling))


def _read_whole(module: KronModule, scale: float, spelling: Spelling | None) -> KronModule:
    """A LoKr of two whole factors: kohya's files have no scale there, so PEFT's goes into the small one."""
    assert module.w1 is not None
    small = multiply_exactly(module.w1, scale) or multiply_widened(module.w1, scale)[0]
    return replace(module, w1=small, alpha=spelling.alpha_tensor() if spelling else encode_alpha(1.0, small.dtype))
