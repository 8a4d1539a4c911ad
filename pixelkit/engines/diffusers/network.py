"""The LoRA of a diffusers pipeline, under kohya's names: put it in, read it out, write its file, merge a file.

Which modules and which names: sd-scripts networks/lora.py (LoRANetwork.create_modules), on any block layout.
A file's meaning: weight += up @ down * alpha / rank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from converters.errors import ConversionError
from converters.metadata import sign
from converters.tensors import from_numpy, read_file, write_file
from pixelkit.errors import EngineError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pixelkit.engines.diffusers.settings import NetworkSettings

UNET_BLOCKS = frozenset({"Transformer2DModel"})
UNET_CONV_BLOCKS = frozenset({"ResnetBlock2D", "Downsample2D", "Upsample2D"})
TEXT_ENCODER_BLOCKS = frozenset({"CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"})
ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One adapted module: kohya's name (`lora_unet_down_blocks_0_...`), peft's layer, and its alpha."""

    name: str
    module: nn.Module
    alpha: float

    @property
    def down(self) -> nn.Parameter:
        """(rank, in), or (rank, in, k, k) for a convolution."""
        return cast("nn.Parameter", cast("Any", self.module).lora_A[ADAPTER].weight)

    @property
    def up(self) -> nn.Parameter:
        """(out, rank), or (out, rank, 1, 1)."""
        return cast("nn.Parameter", cast("Any", self.module).lora_B[ADAPTER].weight)


def find_targets(model: nn.Module, blocks: frozenset[str]) -> dict[str, nn.Module]:
    """The Linear and Conv2d modules inside blocks of these classes, by their full name."""
    return {
        child_name: child
        for name, block in model.named_modules()
        if type(block).__name__ in blocks
        for child_name, child in block.named_modules(prefix=name)
        if type(child).__name__ in {"Linear", "Conv2d"}
    }


def is_spatial(module: nn.Module) -> bool:
    """Whether it is a convolution of more than 1x1, which conv_rank and conv_alpha are for."""
    return type(module).__name__ == "Conv2d" and cast("nn.Conv2d", module).kernel_size != (1, 1)


def attach_network(settings: NetworkSettings, unet: nn.Module, text_encoder: nn.Module) -> list[Layer]:
    """Freeze both models and put trainable LoRA layers (fp32) into them; the first forward pass is the base's."""
    unet.requires_grad_(requires_grad=False)
    text_encoder.requires_grad_(requires_grad=False)
    blocks = UNET_BLOCKS | UNET_CONV_BLOCKS if settings.conv_rank else UNET_BLOCKS
    layers = _inject(settings, unet, blocks, "lora_unet")
    if settings.train_text_encoder:
        layers += _inject(settings, text_encoder, TEXT_ENCODER_BLOCKS, "lora_te")
    return layers


def _inject(settings: NetworkSettings, model: nn.Module, blocks: frozenset[str], prefix: str) -> list[Layer]:
    targets = {n: m for n, m in find_targets(model, blocks).items() if settings.conv_rank or not is_spatial(m)}
    if not targets:
        raise EngineError(f"the base's {type(model).__name__} has no module that a LoRA could adapt")
    spatial = [name for name, module in targets.items() if is_spatial(module)]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast("int", settings.alpha),
        target_modules="|".join(re.escape(name) for name in targets),
        rank_pattern={_match_any(spatial): settings.conv_rank} if spatial else {},
        alpha_pattern={_match_any(spatial): settings.conv_alpha} if spatial else {},
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    layers = []
    for name in targets:
        alpha = settings.conv_alpha if name in spatial else settings.alpha
        layer = Layer(name=name_in_kohya(prefix, name), module=model.get_submodule(name), alpha=alpha)
        for parameter in (layer.down, layer.up):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)  # noqa: FBT003
        if settings.dropout:
            cast("Any", layer.module).lora_A[ADAPTER].register_forward_hook(_dropout_hook(settings.dropout))
        layers.append(layer)
    return layers


def _match_any(names: list[str]) -> str:
    return f"^(?:{'|'.join(re.escape(name) for name in names)})"


def _dropout_hook(probability: float) -> Any:
    """Dropout between down and up, where networks.lora has it (peft's own is before down)."""

    def drop(module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, probability, training=module.training)

    return drop


def name_in_kohya(prefix: str, module: str) -> str:
    """`lora_te_text_model_...`, dots as underscores. transformers >= 5.6 has no `text_model.`; the files keep it."""
    if prefix == "lora_te" and not module.startswith("text_model."):
        module = f"text_model.{module}"
    return f"{prefix}_{module.replace('.', '_')}"


def export_tensors(layers: list[Layer]) -> dict[str, Tensor]:
    """The network as kohya's keys -> fp32 tensors on the CPU."""
    found: dict[str, Tensor] = {}
    for layer in layers:
        found[f"{layer.name}.lora_down.weight"] = layer.down.detach().cpu()
        found[f"{layer.name}.lora_up.weight"] = layer.up.detach().cpu()
        found[f"{layer.name}.alpha"] = torch.tensor(layer.alpha)
    return found


def import_tensors(layers: list[Layer], tensors: Mapping[str, Tensor], where: str) -> None:
    """Put saved weights back. Raises EngineError where they belong to a network of another shape."""
    have = export_tensors(layers)
    common = have.keys() & tensors.keys()
    wrong = (have.keys() ^ tensors.keys()) | {key for key in common if have[key].shape != tensors[key].shape}
    if wrong:
        raise EngineError(f"{where} holds a LoRA of another shape ({min(wrong)} and {len(wrong) - 1} more)",
                          hint="resume with the rank and base that the run was started with")  # fmt: skip
    with torch.no_grad():
        for layer in layers:
            layer.down.copy_(tensors[f"{layer.name}.lora_down.weight"])
            layer.up.copy_(tensors[f"{layer.name}.lora_up.weight"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all, with the hashes of its tensors among its metadata."""
    raw = {name: from_numpy(tensor.detach().cpu().contiguous().numpy()) for name, tensor in tensors.items()}
    try:
        write_file(path, raw, sign(raw, metadata))
    except ConversionError as error:
        raise StorageError(str(error), hint="is the folder writable, is the disk full?") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file as fp32. Raises StorageError."""
    try:
        return {name: torch.from_numpy(tensor.to_float32().copy()) for name, tensor in read_file(path).tensors.items()}
    except ConversionError as error:
        raise StorageError(str(error)) from error


def merge_file(path: Path, unet: nn.Module, text_encoder: nn.Module) -> int:
    """Add a kohya LoRA file to the weights of a fresh pipeline; how many modules it changed.

    Raises EngineError if the file names a module that is not there or is not of that shape.
    """
    modules = {name_in_kohya("lora_unet", n): m for n, m in unet.named_modules()}
    modules |= {name_in_kohya("lora_te", n): m for n, m in text_encoder.named_modules()}
    merged = 0
    for name, down, up, alpha in _triples(read_tensors(path)):
        weight = cast("nn.Parameter | None", getattr(modules.get(name), "weight", None))
        if weight is None:
            raise EngineError(f"{path.name} changes {name}, which the base has not")
        delta = (up.flatten(1).double() @ down.flatten(1).double() * (alpha / down.shape[0])).to(weight.dtype)
        if delta.numel() != weight.numel():
            raise EngineError(f"{path.name} does not fit the base: {name} has the shape {list(weight.shape)}")
        with torch.no_grad():
            weight.add_(delta.reshape(weight.shape).to(weight.device))
        merged += 1
    return merged


def _triples(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    for key, down in tensors.items():
        name, dot, kind = key.partition(".")
        if kind == "lora_down.weight":
            alpha = tensors.get(f"{name}.alpha")
            yield name, down, tensors[f"{name}.lora_up.weight"], float(down.shape[0] if alpha is None else alpha)
        elif f"{name}{dot}lora_down.weight" not in tensors:
            raise EngineError(f"{key} has no lora_down.weight beside it")
