"""The transformers of SD 3 and FLUX as they were published (sd-scripts trains those) <-> as diffusers has them.

Where the published model has one layer, diffusers has several: `qkv` is to_q, to_k, to_v, and FLUX's `linear1` those
and proj_mlp. A LoRA of the one is split exactly: every part takes `down` and alpha as they are, and its own rows of
`up`. The way back is exact when the parts still share their `down`. Parts with a `down` each (diffusers-trained) fit one
layer only at the sum of their ranks, `up` being block-diagonal: bigger, so done when asked. sd-scripts writes its own
`split_qkv` LoRAs in that form (networks/lora_flux.py and lora_sd3.py, state_dict); they are split to the parts' ranks
where the parts' alpha is a number that the file's dtype holds.

A modulation of shift and scale alone (the final layer's; the last context block's of SD 3) has its halves swapped in
diffusers (AdaLayerNormContinuous). Both tables are held against the models in tests/slow/test_families.py.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from converters.errors import ConversionError
from converters.family import TITLES, stated_family
from converters.lora import Lora, name_places
from converters.names import Name, abstract_path, block_numbers
from converters.rows import cut_rows, slim, stack, stack_diagonally

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from converters.lora import AnyModule
    from converters.names import Naming

Family = Literal["flux", "sd3"]

_FINAL = {"final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",)}
_TIME = "time_text_embed.timestep_embedder.linear_"
_TEXT = "time_text_embed.text_embedder.linear_"
_GUIDANCE = "time_text_embed.guidance_embedder.linear_"
_BLOCK, _SINGLE = "transformer_blocks.#", "single_transformer_blocks.#"
_QKV = tuple(f"{_BLOCK}.attn.to_{part}" for part in "qkv")
_CONTEXT_QKV = tuple(f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv")
# The published path -> diffusers' paths in the order of the rows.
LAYERS: Mapping[Family, Mapping[str, tuple[str, ...]]] = {
    "flux": {
        "img_in": ("x_embedder",),
        "txt_in": ("context_embedder",),
        "time_in.in_layer": (f"{_TIME}1",),
        "time_in.out_layer": (f"{_TIME}2",),
        "vector_in.in_layer": (f"{_TEXT}1",),
        "vector_in.out_layer": (f"{_TEXT}2",),
        "guidance_in.in_layer": (f"{_GUIDANCE}1",),
        "guidance_in.out_layer": (f"{_GUIDANCE}2",),
        "double_blocks.#.img_mod.lin": (f"{_BLOCK}.norm1.linear",),
        "double_blocks.#.img_attn.qkv": _QKV,
        "double_blocks.#.img_attn.proj": (f"{_BLOCK}.attn.to_out.0",),
        "double_blocks.#.img_mlp.0": (f"{_BLOCK}.ff.net.0.proj",),
        "double_blocks.#.img_mlp.2": (f"{_BLOCK}.ff.net.2",),
        "double_blocks.#.txt_mod.lin": (f"{_BLOCK}.norm1_context.linear",),
        "double_blocks.#.txt_attn.qkv": _CONTEXT_QKV,
        "double_blocks.#.txt_attn.proj": (f"{_BLOCK}.attn.to_add_out",),
        "double_blocks.#.txt_mlp.0": (f"{_BLOCK}.ff_context.net.0.proj",),
        "double_blocks.#.txt_mlp.2": (f"{_BLOCK}.ff_context.net.2",),
        "single_blocks.#.modulation.lin": (f"{_SINGLE}.norm.linear",),
        "single_blocks.#.linear1": (*(f"{_SINGLE}.attn.to_{part}" for part in "qkv"), f"{_SINGLE}.proj_mlp"),
        "single_blocks.#.linear2": (f"{_SINGLE}.proj_out",),
        **_FINAL,
    },
    "sd3": {
        "x_embedder.proj": ("pos_embed.proj",),
        "context_embedder": ("context_embedder",),
        "t_embedder.mlp.0": (f"{_TIME}1",),
        "t_embedder.mlp.2": (f"{_TIME}2",),
        "y_embedder.mlp.0": (f"{_TEXT}1",),
        "y_embedder.mlp.2": (f"{_TEXT}2",),
        "joint_blocks.#.x_block.adaLN_modulation.1": (f"{_BLOCK}.norm1.linear",),
        "joint_blocks.#.x_block.attn.qkv": _QKV,
        "joint_blocks.#.x_block.attn.proj": (f"{_BLOCK}.attn.to_out.0",),
        "joint_blocks.#.x_block.attn2.qkv": tuple(f"{_BLOCK}.attn2.to_{part}" for part in "qkv"),
        "joint_blocks.#.x_block.attn2.proj": (f"{_BLOCK}.attn2.to_out.0",),
        "joint_blocks.#.x_block.mlp.fc1": (f"{_BLOCK}.ff.net.0.proj",),
        "joint_blocks.#.x_block.mlp.fc2": (f"{_BLOCK}.ff.net.2",),
        "joint_blocks.#.context_block.adaLN_modulation.1": (f"{_BLOCK}.norm1_context.linear",),
        "joint_blocks.#.context_block.attn.qkv": _CONTEXT_QKV,
        "joint_blocks.#.context_block.attn.proj": (f"{_BLOCK}.attn.to_add_out",),
        "joint_blocks.#.context_block.mlp.fc1": (f"{_BLOCK}.ff_context.net.0.proj",),
        "joint_blocks.#.context_block.mlp.fc2": (f"{_BLOCK}.ff_context.net.2",),
        **_FINAL,
    },
}
_PARTS = {path for table in LAYERS.values() for paths in table.values() if len(paths) > 1 for path in paths}
# Inputs of the layers in their blocks: the width, and four times that; SD 3 and 3.5 medium, SD 3.5 large, FLUX.
_WIDTHS: Mapping[int, Family] = {1536: "sd3", 6144: "sd3", 2432: "sd3", 9728: "sd3", 3072: "flux", 12288: "flux"}


def split(lora: Lora) -> Lora:
    """The LoRA with every module under diffusers' path. Raises ConversionError for a module that cannot be cut."""
    if not any(name.naming == "original" for name in lora.modules):
        return lora
    modules: dict[Name, AnyModule] = {}
    refused: list[Name] = []
    for name, module in lora.modules.items():
        if name.naming != "original":
            modules[name] = module
            continue
        kind = abstract_path(name.path)
        paths = _fill(LAYERS["flux"].get(kind) or LAYERS["sd3"][kind], name.path)
        parts = _cut(module, len(paths), swapped=_is_swapped(kind, module))
        if not parts:
            refused.append(name)
        naming: Naming = "diagonal" if parts and parts[0].rank != module.rank else "diffusers"
        for path, part in zip(paths, parts, strict=False):
            modules[Name(component=name.component, path=path, prefix=name.prefix, naming=naming)] = part
    if refused:
        raise ConversionError(
            "modules whose weights cannot be cut as diffusers cuts the layers", keys=name_places(refused)
        )
    return Lora(modules=modules, metadata=lora.metadata)


def join(lora: Lora, *, block_diagonal: bool = False) -> Lora:
    """The LoRA with the transformer's modules as published, which is how sd-scripts and ComfyUI call them.

    Raises ConversionError where several modules are one there and do not share their `down`, unless `block_diagonal`
    allows one of the sum of their ranks (done unasked where `split` made them so); and where nothing tells SD 3 from
    FLUX.
    """
    theirs = {name: module for name, module in lora.modules.items() if _is_split(name)}
    if not theirs:
        return lora
    layers = LAYERS[find_transformer(theirs, lora.metadata)]
    kinds = {path: kind for kind, paths in layers.items() for path in paths}
    found = {name.path: name for name in theirs}
    modules = {name: module for name, module in lora.modules.items() if name not in theirs}
    refused: list[str] = []
    for original in dict.fromkeys(_fill([kinds[abstract_path(path)]], path)[0] for path in found):
        kind = abstract_path(original)
        paths = _fill(layers[kind], original)
        names = [found.get(path) for path in paths]
        parts = [theirs[name] if name else None for name in names]
        allowed = block_diagonal or all(name is not None and name.naming == "diagonal" for name in names)
        swapped = _is_swapped(kind, next(part for part in parts if part))
        joined = _join(parts, swapped=swapped, block_diagonal=allowed)
        if joined:
            modules[Name(component="transformer", path=original, prefix="lora_unet_", naming="original")] = joined
        else:
            refused += [f"transformer.{path}" for path in paths if path in found]
    if refused:
        message = "modules that are one in a kohya file, but share no `down`; block_diagonal makes one of the sum of their ranks"
        raise ConversionError(message, keys=refused)
    return Lora(modules=modules, metadata=lora.metadata)


def is_part(name: Name) -> bool:
    """Whether a module is one of several that are one layer in the published model."""
    return name.component == "transformer" and abstract_path(name.path) in _PARTS


def find_transformer(modules: Mapping[Name, AnyModule], metadata: Mapping[str, str]) -> Family:
    """Which transformer modules under diffusers' paths belong to: by names that only one has, by width, by metadata."""
    kinds = {abstract_path(name.path) for name in modules}
    known: dict[Family, set[str]] = {
        family: {path for paths in table.values() for path in paths} for family, table in LAYERS.items()
    }
    fitting: list[Family] = [family for family, paths in known.items() if kinds <= paths]
    if not fitting:
        raise ConversionError("layers of SD 3 and of FLUX in one file", keys=name_places(modules))
    stated = stated_family(metadata)
    by_width = {_WIDTHS[width] for module in modules.values() if (width := module.shape[1]) in _WIDTHS}
    for candidates in (set(fitting), by_width, {stated}):
        left = [family for family in fitting if family in candidates]
        if len(left) == 1:
            return left[0]
    message = f"layers that {TITLES['sd3']} and {TITLES['flux']} both have; metadata that names one would tell"
    raise ConversionError(f"{message} (modelspec.architecture)", keys=name_places(modules))


def _is_split(name: Name) -> bool:
    """Whether join has to do with it; `lora_transformer_` is a kohya file's own spelling of diffusers' paths."""
    return name.component == "transformer" and name.naming != "original" and name.prefix != "lora_transformer_"


def _fill(kinds: Sequence[str], path: str) -> list[str]:
    """Abstract paths with the block number of `path`."""
    number = block_numbers(path)
    return [kind.replace("#", number[0]) if number else kind for kind in kinds]


def _is_swapped(kind: str, module: AnyModule) -> bool:
    """Whether a layer is a modulation of shift and scale alone, which it is with twice as many outputs as inputs."""
    return kind.endswith("adaLN_modulation.1") and module.shape[0] == 2 * module.shape[1]


def _swap(module: AnyModule) -> AnyModule | None:
    """The module with its rows' halves swapped."""
    half = module.shape[0] // 2
    first, second = cut_rows(module, 0, half), cut_rows(module, half, 2 * half)
    return stack([second, first]) if first and second else None


def _cut(module: AnyModule, count: int, *, swapped: bool) -> Sequence[AnyModule]:
    """The module's parts: equal ones, but of four the first three have as many rows as there are inputs. () if uncut."""
    if count == 1:
        whole = _swap(module) if swapped else module
        return [whole] if whole else []
    rows, inputs = module.shape[0], module.shape[1]
    size = inputs if count == 4 else rows // count
    sizes = [size] * (count - 1) + [rows - size * (count - 1)]
    if sizes[-1] <= 0 or (count == 3 and rows % count):
        return []
    starts = accumulate(sizes[:-1], initial=0)
    parts = [cut_rows(module, start, start + size) for start, size in zip(starts, sizes, strict=True)]
    found = [part for part in parts if part is not None]
    return (slim(found) or found) if len(found) == count else []


def _join(parts: Sequence[AnyModule | None], *, swapped: bool, block_diagonal: bool) -> AnyModule | None:
    """Several modules as one, or one with its halves swapped back; None where that is not possible."""
    found = [part for part in parts if part is not None]
    if len(parts) == 1:
        return _swap(found[0]) if swapped else found[0]
    stacked = stack(found) if len(found) == len(parts) else None
    if stacked or not block_diagonal:
        return stacked
    # A part that was not trained: as many rows as there are inputs, four times that in a single block's MLP.
    sizes = [
        part.shape[0] if part else found[0].shape[1] * (4 if index == 3 else 1) for index, part in enumerate(parts)
    ]
    return stack_diagonally(parts, sizes)
