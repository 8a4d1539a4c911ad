"""kohya's LoRA file, as sd-scripts (networks/lora.py) writes it.

For each module `<name>.lora_down.weight`, `<name>.lora_up.weight` and `<name>.alpha`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.errors import ConversionError
from converters.lora import Lora, Module, Written, carry_metadata
from converters.metadata import sign
from converters.names import PREFIXES, join_kohya, parse_kohya
from converters.tensors import Tensor, Weights, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.lora import Source
    from converters.names import Name

_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


def matches(source: Source) -> bool:
    """Whether a file's keys are those of a kohya LoRA of any kind."""
    return source.weights is not None and any(
        key.startswith(("lora_unet_", "lora_te")) for key in source.weights.tensors
    )


def parse(source: Source) -> Lora:
    """The LoRA in an opened file; see parse_weights."""
    return parse_weights(source.weights or read_file(source.path))


def write(lora: Lora, out: Path, *, flat_text_encoder: bool = False) -> Written:  # noqa: ARG001 one file, any library
    """Write the file with its hashes."""
    weights = build(lora)
    write_file(out, weights.tensors, weights.metadata)
    return Written(paths=(out,))


def parse_weights(weights: Weights) -> Lora:
    """Raises ConversionError with the keys that are no part of a plain LoRA of a known model."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in weights.tensors.items():
        name, _, part = key.partition(".")
        if part in _PARTS and name.startswith(tuple(PREFIXES)):
            found.setdefault(name, {})[_PARTS[part]] = tensor
        else:
            unknown.append(key)
    if unknown:
        kind = "LyCORIS or DoRA: not converted yet" if any(_is_lycoris(key) for key in unknown) else "unknown keys"
        raise ConversionError(kind, keys=unknown)
    halves = [name for name, parts in found.items() if not {"down", "up"} <= set(parts)]
    if halves:
        raise ConversionError("modules without lora_down or lora_up", keys=halves)
    names: dict[str, Name] = {}
    for name in found:
        try:
            names[name] = parse_kohya(name)
        except ConversionError:
            unknown.append(name)
    if unknown:
        raise ConversionError("modules of no known model", keys=unknown)
    modules = {
        names[name]: Module(down=parts["down"], up=parts["up"], alpha=parts.get("alpha"))
        for name, parts in found.items()
    }
    return Lora(modules=modules, metadata=carry_metadata(weights.metadata))


def build(lora: Lora) -> Weights:
    """The tensors of a kohya file and its metadata, hashes included."""
    tensors: dict[str, Tensor] = {}
    for name, module in lora.modules.items():
        joined = join_kohya(name.component, name.path, prefix=name.prefix, naming=name.naming)
        tensors[f"{joined}.lora_down.weight"] = module.down
        tensors[f"{joined}.lora_up.weight"] = module.up
        if module.alpha is not None:
            tensors[f"{joined}.alpha"] = module.alpha
    return Weights(tensors=tensors, metadata=sign(tensors, lora.metadata))


def copy_signed(source: Path | str, target: Path | str, metadata: Mapping[str, str]) -> None:
    """Copy a LoRA file of any kind, tensors untouched, with `metadata` laid over its own and its hashes made true."""
    weights = read_file(source)
    write_file(target, weights.tensors, sign(weights.tensors, {**weights.metadata, **metadata}))


def _is_lycoris(key: str) -> bool:
    return any(part in key for part in (".hada_", ".lokr_", ".dora_scale", ".lora_mid", ".oft_", ".diff"))
