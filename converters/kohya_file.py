"""kohya's LoRA file, as sd-scripts (networks/lora.py) and LyCORIS write it.

For each module `<name>.alpha` and its matrices: `<name>.lora_down.weight` and `.lora_up.weight` (`.lora_mid.weight`
between them: Tucker), or `.hada_*` (LoHa), or `.lokr_*` (LoKr); `.dora_scale` with DoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters import fused
from converters.errors import ConversionError
from converters.lora import Lora, Written, carry_metadata, check_finite
from converters.metadata import sign, write_signed
from converters.modules import PART_NAMES, build_module
from converters.names import PREFIXES, join_kohya, parse_kohya, unknown_layers
from converters.tensors import Tensor, Weights, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.lora import AnyModule, Source
    from converters.names import Name

# What LyCORIS and others train that is no low-rank change of a known layer's weight.
_OTHER_KINDS = (
    ".diff",
    ".w_norm",
    ".b_norm",
    ".oft_",
    ".boft_",
    ".on_input",
    ".scalar",
    ".a1.",
    ".b1.",
    ".a2.",
    ".b2.",
)


def matches(source: Source) -> bool:
    """Whether a file's keys are those of a kohya LoRA of any kind."""
    return source.weights is not None and any(key.startswith(tuple(PREFIXES)) for key in source.weights.tensors)


def parse(source: Source) -> Lora:
    """The LoRA in an opened file; see parse_weights."""
    return parse_weights(source.weights or read_file(source.path))


def write(lora: Lora, out: Path, *, flat_text_encoder: bool = False) -> Written:  # noqa: ARG001 one file, any library
    """Write the file with its hashes."""
    write_signed(out, name_tensors(lora), lora.metadata)
    return Written(paths=(out,))


def parse_weights(weights: Weights) -> Lora:
    """Raises ConversionError with the keys that are no part of a LoRA of a known model, or that are not finite."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in weights.tensors.items():
        name, _, part = key.partition(".")
        if part in PART_NAMES and name.startswith(tuple(PREFIXES)):
            found.setdefault(name, {})[part] = tensor
        else:
            unknown.append(key)
    if unknown:
        other = any(kind in key for key in unknown for kind in _OTHER_KINDS)
        raise ConversionError("neither LoRA, LoHa nor LoKr: not converted" if other else "unknown keys", keys=unknown)
    names: dict[str, Name] = {}
    for name in found:
        try:
            names[name] = parse_kohya(name)
        except ConversionError:
            unknown.append(name)
    if unknown:
        raise unknown_layers("modules of no known model", unknown)
    modules: dict[Name, AnyModule] = {}
    for name, parts in found.items():
        try:
            modules[names[name]] = build_module(parts)
        except ConversionError as error:
            unknown += [f"{name}.{part}" for part in error.keys]
    if unknown:
        raise ConversionError("modules with parts that miss, or that do not go together", keys=unknown)
    check_finite(weights.tensors)
    return Lora(modules=modules, metadata=carry_metadata(weights.metadata))


def build(lora: Lora) -> Weights:
    """The tensors of a kohya file and its metadata, hashes included. Raises ConversionError as fused.join does."""
    tensors = name_tensors(lora)
    return Weights(tensors=tensors, metadata=sign(tensors, lora.metadata))


def name_tensors(lora: Lora) -> dict[str, Tensor]:
    """The tensors of a kohya file. Raises ConversionError as fused.join does."""
    lora = fused.join(lora)
    tensors: dict[str, Tensor] = {}
    for name, module in lora.modules.items():
        joined = join_kohya(name.component, name.path, prefix=name.prefix, naming=name.naming)
        tensors |= {f"{joined}.{part}": tensor for part, tensor in module.parts.items()}
    return tensors


def copy_signed(source: Path | str, target: Path | str, metadata: Mapping[str, str]) -> None:
    """Copy a LoRA file of any kind, tensors untouched, with `metadata` laid over its own and its hashes made true."""
    weights = read_file(source)
    write_signed(target, weights.tensors, {**weights.metadata, **metadata})
