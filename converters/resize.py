"""A LoRA of smaller rank: each module cut to its largest singular values, with what that costs.

The ways to choose a rank are those of sd-scripts' networks/resize_lora.py, and so are the results; here the singular
values come from a core of rank x rank instead of the layer's full matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from converters import read_lora
from converters.errors import ConversionError
from converters.kohya_file import write
from converters.lineage import describe_network
from converters.lora import Lora, Module, name_places
from converters.low_rank import build_module, decompose, difference, norm, read_factors, widest
from converters.merge import Changed, check_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from converters.lora import AnyModule
    from converters.low_rank import Svd
    from converters.names import Name
    from converters.tensors import Float64

Keep = Literal["ratio", "cumulative", "fro"]
_NOTHING = 1e-6  # sd-scripts: MIN_SV; a module whose largest singular value is below it gets rank 1


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the new modules are: `rank` (and `conv_rank` for kernels above 1x1) at most, None = as they are.

    `keep` chooses each module's rank up to that: `ratio` keeps singular values above largest / amount, `cumulative`
    their sum up to a share `amount`, `fro` the Frobenius norm up to a share `amount`.
    """

    rank: int | None = None
    conv_rank: int | None = None
    keep: Keep | None = None
    amount: float = 0.0

    def __post_init__(self) -> None:
        if any(rank is not None and rank < 1 for rank in (self.rank, self.conv_rank)):
            raise ConversionError("a rank is 1 or more")
        if self.rank is None and self.keep is None:
            raise ConversionError("a resize needs a rank, or a share of the singular values to keep")
        if self.keep in {"cumulative", "fro"} and not 0 < self.amount <= 1:
            raise ConversionError(f"{self.keep} keeps a share between 0 and 1, not {self.amount:g}")
        if self.keep == "ratio" and not self.amount > 1:
            raise ConversionError(f"ratio keeps values above the largest / {self.amount:g}; it must be above 1")

    def choose(self, svd: Svd, *, conv: bool) -> int:
        """The rank of a module with these singular values, as sd-scripts' rank_resize has it."""
        values = svd.values
        most = (self.conv_rank or self.rank) if conv else self.rank
        most = min(most or values.size, values.size)
        if values[0] <= _NOTHING:
            return 1
        return most if self.keep is None else min(_index(values, self.keep, self.amount, full=svd.full) + 1, most)


def resize(
    source: Path | str,
    out: Path | str,
    size: Size,
    *,
    dtype: str = "",
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Changed:
    """Write a LoRA file or folder with smaller ranks as a kohya file; the scale alpha / rank stays.

    `dtype` of the tensors (default: the source's). Raises ConversionError: modules that are no plain pair of matrices,
    `out` there already.
    """
    check_target(out, overwrite=overwrite)
    made = resize_lora(read_lora(source)[1], size, dtype=dtype, on_progress=on_progress)
    write(made.lora, Path(out))
    return made


def resize_lora(
    lora: Lora, size: Size, *, dtype: str = "", on_progress: Callable[[int, int], None] | None = None
) -> Changed:
    """A LoRA with smaller ranks; see resize."""
    other = [name for name, part in lora.modules.items() if not isinstance(part, Module) or part.magnitude is not None]
    if other:
        raise ConversionError("LyCORIS and DoRA modules have no rank to cut", keys=name_places(other))
    modules: dict[Name, AnyModule] = {}
    errors: dict[str, float] = {}
    lost = wanted = 0.0
    for done, (name, module) in enumerate(lora.modules.items(), 1):
        if not isinstance(module, Module):
            continue
        modules[name], away, whole = _cut(module, size, dtype)
        errors[f"{name.component}.{name.path}"] = away / whole if whole else 0.0
        lost, wanted = lost + away**2, wanted + whole**2
        if on_progress:
            on_progress(done, len(lora.modules))
    before, after = describe_network(lora), describe_network(Lora(modules=modules, metadata=lora.metadata))
    was, became = (found["ss_network_dim"] for found in (before, after))
    comment = f"dimension is resized from {was} to {became}"
    if size.keep:
        comment = f"Dynamic resize with sv_{size.keep}: {size.amount:g} from {was}"
    if former := lora.metadata.get("ss_training_comment"):
        comment = f"{comment}; {former}"
    metadata = {**lora.metadata, **after, "ss_training_comment": comment}
    return Changed(
        lora=Lora(modules=modules, metadata=metadata),
        errors=errors,
        error=(lost / wanted) ** 0.5 if wanted else 0.0,
    )


def _cut(module: Module, size: Size, dtype: str) -> tuple[Module, float, float]:
    """The smaller module; the norm of what is missing, and of what was there."""
    before = read_factors(module)
    svd = decompose(before)
    shape = module.shape
    rank = size.choose(svd, conv=len(shape) == 4)
    stored = widest({module.up.dtype, module.down.dtype})
    if rank == module.rank and module.mid is None and dtype in {"", stored}:
        return module, 0.0, norm(before) * abs(module.scale)
    wanted = dtype or ("F32" if stored.startswith("F8") else stored)
    small = build_module(svd.cut(rank), shape, alpha=module.scale * rank, dtype=wanted)
    return small, difference(before, read_factors(small)) * abs(module.scale), norm(before) * abs(module.scale)


def _index(values: Float64, keep: Keep, amount: float, *, full: int) -> int:
    """sd-scripts: index_sv_ratio, index_sv_cumulative, index_sv_fro; `full` counts the values that are 0, too."""
    if keep == "ratio":
        index = int(np.sum(values > values[0] / amount))
    else:
        shares = np.cumsum(values if keep == "cumulative" else values**2)
        index = int(np.searchsorted(shares / shares[-1], amount if keep == "cumulative" else amount**2)) + 1
    return max(1, min(index, full - 1))
