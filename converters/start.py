"""An earlier LoRA as the start of a training: brought to the rank and alpha that the new one will have.

Larger: the product of the matrices stays what it was; the new rows of `down` are drawn as sd-scripts draws them
(networks/lora.py: kaiming_uniform with a = sqrt(5)), and the new columns of `up` are 0, so that they can learn.
Smaller: the largest singular values stay. Either way `up` takes up what another alpha / rank would change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters import read_lora
from converters.errors import ConversionError
from converters.kohya_file import write
from converters.lineage import describe_network, is_wide
from converters.lora import Lora, Module, encode_alpha, name_places
from converters.merge import check_target
from converters.resize import Size, resize_lora
from converters.tensors import encode

if TYPE_CHECKING:
    from converters.names import Name
    from converters.tensors import Float32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Rank and alpha of the new LoRA; `conv_rank` 0: its convolutions above 1x1 are not trained."""

    rank: int
    alpha: float
    conv_rank: int = 0
    conv_alpha: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """`error`: the share of the earlier LoRA (Frobenius norm) that the rank cost; `left_out`: modules without a place."""

    path: Path
    error: float
    left_out: tuple[str, ...]


def read_start(source: Path | str) -> Lora:
    """An earlier LoRA of any format. Raises ConversionError where it has modules that no rank describes."""
    lora = read_lora(source)[1]
    other = [name for name, part in lora.modules.items() if not isinstance(part, Module) or part.magnitude is not None]
    if other:
        raise ConversionError("LyCORIS and DoRA modules cannot be gone on from", keys=name_places(other))
    return lora


def find_rank(lora: Lora) -> int:
    """The rank that most of its linear modules have, the larger of two that are as common."""
    ranks = [part.rank for part in lora.modules.values() if not is_wide(part)] or [
        part.rank for part in lora.modules.values()
    ]
    return max(set(ranks), key=lambda rank: (ranks.count(rank), rank))


def fit(source: Path | str, out: Path | str, shape: Shape, *, components: frozenset[str] | None = None) -> Fitted:
    """Write an earlier LoRA as a kohya file (float32) of the new shape; only of `components`, where they are named.

    Raises ConversionError: modules without a rank, `out` there already, nothing left to go on from.
    """
    check_target(out, overwrite=False)
    lora = read_start(source)
    kept: dict[Name, Module] = {}
    for name, part in lora.modules.items():
        assert isinstance(part, Module)
        if (components is None or name.component in components) and (shape.conv_rank or not is_wide(part)):
            kept[name] = part
    if not kept:
        raise ConversionError("none of its modules is trained here")
    left_out = tuple(name_places(name for name in lora.modules if name not in kept))
    cut = resize_lora(
        Lora(modules=kept, metadata=lora.metadata),
        Size(rank=shape.rank, conv_rank=shape.conv_rank or shape.rank),
        dtype="F32",
    )
    modules = {}
    for name, part in cut.lora.modules.items():
        assert isinstance(part, Module)
        rank, alpha = (shape.conv_rank, shape.conv_alpha) if is_wide(part) else (shape.rank, shape.alpha)
        modules[name] = _grow(name, part, rank, alpha)
    made = Lora(modules=modules, metadata=cut.lora.metadata)
    write(replace(made, metadata={**made.metadata, **describe_network(made)}), Path(out))
    return Fitted(path=Path(out), error=cut.error, left_out=left_out)


def _grow(name: Name, module: Module, rank: int, alpha: float) -> Module:
    """The same product at another rank and alpha."""
    down, up = module.down.to_float32(), module.up.to_float32()
    factor = module.scale / (alpha / rank)
    more = rank - module.rank
    if more:
        down = np.concatenate([down, _draw(name, (more, *down.shape[1:]))])
        up = np.concatenate([up, np.zeros((up.shape[0], more, *up.shape[2:]), np.float32)], axis=1)
    if factor != 1:
        up = up * np.float32(factor)
    return Module(
        down=encode(np.ascontiguousarray(down), "F32"),
        up=encode(np.ascontiguousarray(up), "F32"),
        alpha=encode_alpha(alpha, "F32"),
    )


def _draw(name: Name, shape: tuple[int, ...]) -> Float32:
    """Uniform within 1 / sqrt(inputs), the same for the same module."""
    seed = int.from_bytes(hashlib.sha256(f"{name.component}.{name.path}".encode()).digest()[:8], "little")
    bound = 1 / np.sqrt(np.prod(shape[1:]))
    return np.random.default_rng(seed).uniform(-bound, bound, shape).astype(np.float32)
