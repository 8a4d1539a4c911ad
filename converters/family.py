"""Which base model weights belong to, read from their names and sizes; and what a file's metadata says about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.lora import Lora

# Width of what a UNet's cross attention reads: the text encoders' output.
_CONTEXTS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
# sd-scripts' words for ss_base_model_version and the modelspec's architectures, by their beginnings.
_STATED = {
    "sd_v1": "sd15",
    "sd_v2": "sd21",
    "sdxl": "sdxl",
    "flux": "flux",
    "sd3": "sd3",
    "stable-diffusion-v1": "sd15",
    "stable-diffusion-v2": "sd21",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-3": "sd3",
}
TITLES: Mapping[str, str] = {
    "sd15": "Stable Diffusion 1",
    "sd21": "Stable Diffusion 2",
    "sdxl": "SDXL",
    "flux": "Flux",
    "sd3": "Stable Diffusion 3",
}


def find_family(shapes: Mapping[tuple[str, str], tuple[int, ...]]) -> str:
    """`sd15`, `sd21`, `sdxl`, `flux` or `sd3` by the layers' names and weight shapes; empty where they do not tell."""
    for (component, path), shape in shapes.items():
        if component == "transformer":
            flux = path.startswith(("double_blocks.", "single_blocks.", "single_transformer_blocks."))
            if flux or path.startswith("joint_blocks."):
                return "flux" if flux else "sd3"
        if component == "unet" and path.endswith(("attn2.to_k", "attn2.to_v")):
            return _CONTEXTS.get(shape[1], "")
    return ""


def family_of(lora: Lora) -> str:
    """The family of a LoRA's base; empty where its layers do not tell."""
    shapes = {(name.component, name.path): tuple(module.shape or ()) for name, module in lora.modules.items()}
    return find_family({layer: shape for layer, shape in shapes.items() if len(shape) >= 2})


def stated_family(metadata: Mapping[str, str]) -> str:
    """The family that metadata names; empty where it names none."""
    for key in ("ss_base_model_version", "modelspec.architecture"):
        for start, family in _STATED.items():
            if metadata.get(key, "").lower().startswith(start):
                return family
    return ""


def check_family(lora: Lora) -> None:
    """Raises ConversionError where a LoRA says that it is for another base than its layers fit."""
    found, stated = family_of(lora), stated_family(lora.metadata)
    if found and stated and found != stated:
        raise ConversionError(f"its metadata says {TITLES[stated]}, but its layers are those of {TITLES[found]}")
