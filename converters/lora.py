"""A LoRA between two formats: its modules by name, and the metadata that goes with them from file to file.

What a module is and what it adds to a layer's weight stands in modules.py; how a kohya file spelled it, in note.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converters.errors import ConversionError
from converters.modules import AnyModule, HadaModule, KronModule, Module
from converters.note import NOTE, encode_alpha

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from converters.names import Name
    from converters.tensors import Tensor, Weights

__all__ = [
    "NOTE", "AnyModule", "HadaModule", "KronModule", "Lora", "Module", "Source", "Written", "carry_metadata",
    "check_finite", "encode_alpha", "name_places",
]  # fmt: skip

# Not carried from file to file: what describes one file's bytes or its container.
_OWN_TO_A_FILE = frozenset({"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "format", NOTE})


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Modules by name, and the metadata that belongs to the LoRA rather than to one file of it."""

    modules: Mapping[Name, AnyModule]
    metadata: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.modules:
            raise ConversionError("no LoRA module in it")
        places = Counter((name.component, name.path) for name in self.modules)
        twins = [f"{component}.{path}" for (component, path), count in places.items() if count > 1]
        if twins:
            raise ConversionError("modules that occur under two names", keys=twins)
        wrong = name_places(name for name, module in self.modules.items() if not module.fits)
        if wrong:
            raise ConversionError("matrices whose shapes or dtypes do not make a LoRA", keys=wrong)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that was opened, or a folder (`weights` is None)."""

    path: Path
    weights: Weights | None


@dataclass(frozen=True, kw_only=True)
class Written:
    """The paths that were written; the tensors that became float32, and those that lost their last bit there."""

    paths: tuple[Path, ...]
    widened: tuple[str, ...] = ()
    rounded: tuple[str, ...] = ()


def name_places(names: Iterable[Name]) -> list[str]:
    """Modules as errors and notes call them: `unet.conv_in`."""
    return [f"{name.component}.{name.path}" for name in names]


def carry_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The part of a file's metadata that goes with the LoRA into another format."""
    return {key: value for key, value in metadata.items() if key not in _OWN_TO_A_FILE}


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises ConversionError with the names of tensors that hold a NaN or an infinity."""
    broken = [name for name, tensor in tensors.items() if not tensor.is_finite()]
    if broken:
        raise ConversionError("tensors with NaN or infinite numbers: the training broke down, or the file", keys=broken)
