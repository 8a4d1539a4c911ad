"""What a LoRA file is, from its tensors and its own words; nothing is guessed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters import read_lora
from converters.family import TITLES, family_of, stated_family
from converters.metadata import hash_file, hash_tensors
from converters.modules import HadaModule, KronModule, Module
from converters.tensors import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.lora import AnyModule
    from converters.metadata import FileHashes


@dataclass(frozen=True, kw_only=True)
class Description:
    """A LoRA file or folder. Empty strings and tables where the file does not tell.

    `base` by the layers, `stated` by the metadata. `kinds`, `ranks`, `alphas`, `dtypes` and `modules` (by component)
    count modules. `hashes` of a safetensors file; `true_hash` says whether the hash in its metadata is that of its
    tensors, None where there is none.
    """

    format: str
    base: str
    stated: str
    modules: Mapping[str, int]
    kinds: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    dtypes: Mapping[str, int]
    trigger: str
    hashes: FileHashes | None
    true_hash: bool | None
    metadata: Mapping[str, str]


def describe(path: Path | str, *, unsafe_pickle: bool = False) -> Description:
    """Raises ConversionError as read_lora does."""
    path = Path(path)
    name, lora = read_lora(path, unsafe_pickle=unsafe_pickle)
    parts = lora.modules.values()
    hashes, true_hash, metadata = None, None, dict(lora.metadata)
    if name in {"kohya", "diffusers"} and not unsafe_pickle:
        hashes = hash_file(path)
        weights = read_file(path)
        metadata = dict(weights.metadata)
        if stated := metadata.get("sshs_model_hash"):
            true_hash = stated == hash_tensors(weights.tensors)
    return Description(
        format=name,
        base=TITLES.get(family_of(lora), ""),
        stated=TITLES.get(stated_family(metadata), ""),
        modules=Counter(part.component for part in lora.modules),
        kinds=Counter(name_kind(module) for module in parts),
        ranks=dict(sorted(Counter(module.rank for module in parts).items())),
        alphas=dict(sorted(Counter(module.alpha_value for module in parts).items())),
        dtypes=Counter(tensor.dtype for module in parts for key, tensor in module.parts.items() if key != "alpha"),
        trigger=metadata.get("modelspec.trigger_phrase", ""),
        hashes=hashes,
        true_hash=true_hash,
        metadata=metadata,
    )


def name_kind(module: AnyModule) -> str:
    """`LoRA`, `LoHa`, `LoKr`; with a Tucker core, with DoRA."""
    kind = {Module: "LoRA", HadaModule: "LoHa", KronModule: "LoKr"}[type(module)]
    tucker = any(part in {"lora_mid.weight", "hada_t1", "lokr_t2"} for part in module.parts)
    return kind + (" with a Tucker core" if tucker else "") + (" and DoRA" if module.magnitude is not None else "")
