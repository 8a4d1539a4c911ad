"""The layer names of SDXL's UNet as Stability published it <-> diffusers', both with underscores for dots.

Three blocks of two resnets each (sd-scripts: library/sdxl_model_util.py, make_unet_conversion_map).
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from converters.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ATTENTION = re.compile(r"(input_blocks_\d+_1|middle_block_1|output_blocks_\d+_1)_(.+)")
_DIFFUSERS_ATTENTION = re.compile(
    r"(down_blocks_\d+_attentions_\d+|mid_block_attentions_0|up_blocks_\d+_attentions_\d+)_(.+)"
)


def read(name: str) -> str:
    """Stability's name of a layer -> diffusers', or an empty string."""
    layers, attentions = places()
    match = _ATTENTION.fullmatch(name)
    if match and match.group(1) in attentions:
        return f"{attentions[match.group(1)]}_{match.group(2)}"
    return layers.get(name, "")


def write(name: str) -> str:
    """The inverse of `read`. Raises ConversionError for a layer that SDXL has not."""
    layers, attentions = ({path: place for place, path in table.items()} for table in places())
    match = _DIFFUSERS_ATTENTION.fullmatch(name)
    if match and match.group(1) in attentions:
        return f"{attentions[match.group(1)]}_{match.group(2)}"
    if name not in layers:
        raise ConversionError("no layer of SDXL", keys=[name])
    return layers[name]


@functools.cache
def places() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The layers outside attention, and the attentions: Stability's name -> diffusers'."""
    resnets = {"middle_block_0": "mid_block_resnets_0", "middle_block_2": "mid_block_resnets_1"}
    attentions = {"middle_block_1": "mid_block_attentions_0"}
    layers = {
        "input_blocks_0_0": "conv_in",
        "out_2": "conv_out",
        "time_embed_0": "time_embedding_linear_1",
        "time_embed_2": "time_embedding_linear_2",
        "label_emb_0_0": "add_embedding_linear_1",
        "label_emb_0_2": "add_embedding_linear_2",
    }
    for block in range(3):
        for layer in range(3):
            down, up = f"input_blocks_{3 * block + layer + 1}", f"output_blocks_{3 * block + layer}"
            if layer < 2:
                resnets[f"{down}_0"] = f"down_blocks_{block}_resnets_{layer}"
                attentions[f"{down}_1"] = f"down_blocks_{block}_attentions_{layer}"
            resnets[f"{up}_0"] = f"up_blocks_{block}_resnets_{layer}"
            attentions[f"{up}_1"] = f"up_blocks_{block}_attentions_{layer}"
        if block < 2:
            layers[f"input_blocks_{3 * block + 3}_0_op"] = f"down_blocks_{block}_downsamplers_0_conv"
            layers[f"output_blocks_{3 * block + 2}_2_conv"] = f"up_blocks_{block}_upsamplers_0_conv"
    parts = {
        "in_layers_2": "conv1",
        "out_layers_3": "conv2",
        "emb_layers_1": "time_emb_proj",
        "skip_connection": "conv_shortcut",
    }
    for place, path in resnets.items():
        layers |= {f"{place}_{part}": f"{path}_{name}" for part, name in parts.items()}
    return layers, attentions
