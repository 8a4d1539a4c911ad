"""A LoRA that turns one checkpoint into another: the difference of their weights, cut to a rank.

Reference: sd-scripts' networks/extract_lora_from_models.py, with the same layers, the same clamp and the same numbers. There
every layer's full singular vectors are computed; here the eigenvectors of the smaller square, one layer at a time.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.checkpoint import fits, open_checkpoint
from converters.errors import ConversionError
from converters.family import TITLES
from converters.kohya_file import write
from converters.lineage import describe_network, title_of
from converters.lora import Lora
from converters.low_rank import Factors, build_module, decompose_matrix, read_factors
from converters.merge import Changed, check_target
from converters.metadata import build_minimum, build_modelspec
from converters.names import Name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from converters.checkpoint import Checkpoint, Layer
    from converters.lora import AnyModule, Module
    from converters.tensors import Float64

# The layers that sd-scripts' networks.lora trains: attention and MLP; the blocks of convolutions where it has a rank for them.
_ATTENTION = re.compile(
    r"(^|\.)(attentions|self_attn|mlp|double_blocks|single_blocks|joint_blocks|\w*transformer_blocks|block)\."
)
_CONVOLUTIONAL = re.compile(r"\.(resnets|downsamplers|upsamplers)\.")
# family -> sd-scripts' ss_base_model_version, the modelspec's family, the resolution
_KNOWN: Mapping[str, tuple[str, str, int]] = {
    "sd15": ("sd_v1", "sd15", 512),
    "sd21": ("sd_v2", "sd21", 512),
    "sdxl": ("sdxl_base_v1-0", "sdxl", 1024),
}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How the difference is cut: `rank`; `conv_rank` for kernels above 1x1, None = their blocks are left out.

    `clamp` cuts single numbers at that quantile of a module's (1 = none); sd-scripts' default is 0.99. A component
    none of whose layers differs by more than `least` is left out; sd-scripts leaves text encoders out below 0.01.
    """

    rank: int
    conv_rank: int | None = None
    clamp: float = 1.0
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or (self.conv_rank is not None and self.conv_rank < 1):
            raise ConversionError("a rank is 1 or more")
        if not 0 < self.clamp <= 1:
            raise ConversionError(f"clamp is a quantile above 0 and up to 1, not {self.clamp:g}")


def extract(
    original: Path | str,
    tuned: Path | str,
    out: Path | str,
    cut: Cut,
    *,
    dtype: str = "F16",
    v_prediction: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Changed:
    """Write the difference `tuned` - `original` as a kohya file; each is a safetensors file or a diffusers folder.

    Layers that do not differ are left out. Raises ConversionError: models of different kinds, no difference, `out`
    there already.
    """
    check_target(out, overwrite=overwrite)
    first, second = open_checkpoint(Path(original)), open_checkpoint(Path(tuned))
    layers = _compare(first, second, cut)
    modules: dict[Name, AnyModule] = {}
    errors: dict[str, float] = {}
    lost = wanted = 0.0
    for done, layer in enumerate(layers, 1):
        difference = second.read(layer).astype(np.float64) - first.read(layer)
        if np.any(difference):
            module, away = _shorten(difference, cut, dtype)
            size = float(np.linalg.norm(difference))
            modules[_name(first, layer)] = module
            errors[".".join(layer)] = away / size
            lost, wanted = lost + away**2, wanted + size**2
        if on_progress:
            on_progress(done, len(layers))
    if not modules:
        raise ConversionError(f"{original} and {tuned} do not differ in any layer that a LoRA changes")
    metadata = _describe(first, Path(out).stem, v_prediction=v_prediction)
    titles = [title_of(next(iter(model.files.values())).metadata, model.path.stem) for model in (second, first)]
    metadata["ss_training_comment"] = f"extracted as the difference {' - '.join(titles)}"
    metadata |= describe_network(Lora(modules=modules, metadata=metadata))
    lora = Lora(modules=modules, metadata=metadata)
    write(lora, Path(out))
    return Changed(lora=lora, errors=errors, error=(lost / wanted) ** 0.5)


def _compare(first: Checkpoint, second: Checkpoint, cut: Cut) -> list[Layer]:
    """The layers that become modules, by component and path."""
    alien = [layer for layer in first.places if layer not in second.places or not _fit(first, second, layer)]
    if alien or first.places.keys() != second.places.keys():
        alien += [layer for layer in second.places if layer not in first.places]
        families = [TITLES.get(model.family, "an unknown model") for model in (first, second)]
        about = f": {' and '.join(families)}" if families[0] != families[1] else ""
        raise ConversionError(f"models of different kinds{about}", keys=[".".join(layer) for layer in alien])
    by_component: dict[str, list[Layer]] = defaultdict(list)
    for layer in sorted(first.places):
        if _ATTENTION.search(layer[1]) or (cut.conv_rank and _CONVOLUTIONAL.search(layer[1])):
            by_component[layer[0]].append(layer)
    return [
        layer
        for layers in by_component.values()
        if cut.least <= 0 or any(np.max(np.abs(second.read(at) - first.read(at))) > cut.least for at in layers)
        for layer in layers
    ]


def _fit(first: Checkpoint, second: Checkpoint, layer: Layer) -> bool:
    return fits(first.shape(layer), second.shape(layer)) and len(first.shape(layer)) == len(second.shape(layer))


def _shorten(difference: Float64, cut: Cut, dtype: str) -> tuple[Module, float]:
    """A module for a difference, and the norm of what it misses."""
    wide = difference.ndim == 4 and difference.shape[2:] != (1, 1)
    matrix = difference.reshape(difference.shape[0], -1)
    rank = min(cut.conv_rank if wide and cut.conv_rank else cut.rank, *difference.shape[:2])
    factors = decompose_matrix(matrix, rank).cut(rank)
    if cut.clamp < 1:
        high = np.quantile(np.concatenate([factors.up.ravel(), factors.down.ravel()]), cut.clamp)
        factors = Factors(up=np.clip(factors.up, -high, high), down=np.clip(factors.down, -high, high))
    module = build_module(factors, difference.shape, alpha=float(rank), dtype=dtype)
    found = read_factors(module)
    return module, float(np.linalg.norm(matrix - found.up @ found.down))


def _name(model: Checkpoint, layer: Layer) -> Name:
    """As sd-scripts spells it for this kind of model."""
    component, path = layer
    if component == "unet":
        return Name(
            component=component, path=path, prefix="lora_unet_", naming="sai" if model.family == "sdxl" else "diffusers"
        )
    if component == "transformer":
        original = model.path.is_file()
        prefix = "lora_unet_" if original else "lora_transformer_"
        return Name(component=component, path=path, prefix=prefix, naming="original" if original else "diffusers")
    several = model.family in {"sdxl", "flux", "sd3"} or any(part == "text_encoder_2" for part, _ in model.places)
    number = {"text_encoder": "1" if several else "", "text_encoder_2": "2", "text_encoder_3": "3"}[component]
    return Name(component=component, path=path, prefix=f"lora_te{number}_")


def _describe(model: Checkpoint, title: str, *, v_prediction: bool) -> dict[str, str]:
    """Nothing is said about a base that its weights do not tell."""
    if model.family not in _KNOWN:
        return {}
    version, family, resolution = _KNOWN[model.family]
    if v_prediction:
        version += "_v"
    return {
        **build_minimum(base_model_version=version, rank=1, alpha=1.0, v2=model.family == "sd21"),
        **build_modelspec(
            family=family,
            title=title,
            resolution=768 if v_prediction and family == "sd21" else resolution,
            date=datetime.datetime.now(datetime.UTC),
            v_prediction=v_prediction,
        ),
    }
