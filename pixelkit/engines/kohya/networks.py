"""What a plan's network is to sd-scripts: the module that builds it, and the arguments that shape it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixelkit.plan.network import LYCORIS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixelkit.plan import Plan
    from pixelkit.preset import Family

_LORA: Mapping[Family, str] = {
    "sd15": "networks.lora",
    "sd2": "networks.lora",
    "sdxl": "networks.lora",
    "sd3": "networks.lora_sd3",
    "flux": "networks.lora_flux",
}
_ALGORITHMS = {"dora": "lora", "loha": "loha", "lokr": "lokr"}


def name_module(plan: Plan) -> str:
    """The Python module that sd-scripts imports for this network."""
    kind, family = plan.network.kind, plan.base.spec.family
    if kind in LYCORIS:
        return "lycoris.kohya"
    if kind == "oft":
        return "networks.oft_flux" if family == "flux" else "networks.oft"
    return "networks.dylora" if kind == "dylora" else _LORA[family]


def list_arguments(plan: Plan) -> list[str]:
    """network_args: rank and alpha of the convolutions, and what only one kind of network knows."""
    network = plan.network
    conv = [f"conv_dim={network.conv_rank}", f"conv_alpha={network.conv_alpha:g}"] if network.conv_rank else []
    if network.kind in LYCORIS:
        return [*_lycoris_arguments(plan), *conv]
    if network.kind == "oft":
        # The layers that a LoRA has, rather than attention alone.
        return ["enable_all_linear=True", *(["enable_conv=True"] if network.conv_rank else [])]
    if network.kind == "dylora":
        return [*([f"unit={network.unit}"] if network.unit else []), *conv]
    return conv


def _lycoris_arguments(plan: Plan) -> list[str]:
    """attn-mlp: attention and feed-forward layers; full: convolutions too, which is all that LyCORIS has for them."""
    network = plan.network
    arguments = [f"algo={_ALGORITHMS[network.kind]}", f"preset={'full' if network.conv_rank else 'attn-mlp'}"]
    arguments += ["dora_wd=True"] if network.kind == "dora" else []
    arguments += [f"factor={network.factor}"] if network.factor else []
    # network_dropout reaches networks of sd-scripts only.
    return [*arguments, *([f"dropout={network.dropout:g}"] if network.dropout else [])]
