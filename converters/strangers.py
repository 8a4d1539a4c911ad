"""What a file is that is no LoRA: told by its first bytes, or by the names of its tensors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HEAD = 512  # bytes that describe_file wants to see
_TEXT = rb"(?:\xef\xbb\xbf)?\s*"
_FILES: tuple[tuple[bytes, str], ...] = (
    (rb"PK\x03\x04|\x80[\x02-\x05]",
     "a pickle (.ckpt, .pt, .bin), not safetensors; pickles can run code and are not opened"),
    (rb"GGUF", "GGUF (quantised weights), not safetensors"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "a picture, not safetensors"),
    (rb"\x89HDF", "HDF5 (Keras), not safetensors"),
    (rb"7z\xbc\xaf|Rar!|\x1f\x8b", "an archive, not safetensors: unpack it"),
    (_TEXT + rb"version https://git-lfs",
     "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`, or download it again"),
    (_TEXT + rb"<(?:!doctype html|html|head|body)",
     "a web page, not safetensors: the download went wrong (is a login needed?)"),
    (_TEXT + rb"<(?:\?xml|error)", "an XML error message, not safetensors: the download went wrong"),
    (_TEXT + rb'\{\s*"(?:error|message|detail)"', "an error message, not safetensors: the download went wrong"),
    (rb"\x00+\Z", "nothing but zeros: the download or the copy was cut off"),
)  # fmt: skip
_MODELS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("control_model.", "controlnet_cond_embedding."), "a ControlNet, not a LoRA"),
    (("model.diffusion_model.", "double_blocks.", "joint_blocks.", "cond_stage_model.", "conditioner.embedders."),
     "a whole checkpoint, not a LoRA; `pixelkit lora extract` makes a LoRA of the difference to another"),
    (("emb_params", "string_to_param", "clip_l", "clip_g"), "an embedding (textual inversion), not a LoRA"),
    (("first_stage_model.", "decoder.", "encoder.conv_in"), "a VAE, not a LoRA"),
    (("down_blocks.", "conv_in.", "mid_block.", "transformer_blocks."), "a model's own weights, not a LoRA"),
    (("text_model.", "embeddings.", "shared."), "a text encoder, not a LoRA"),
)  # fmt: skip


def read_head(path: Path) -> bytes:
    """The first bytes of a file, enough for describe_file. Raises OSError."""
    with path.open("rb") as handle:
        return handle.read(HEAD)


def is_pickle(head: bytes) -> bool:
    """Whether a file begins as torch.save writes it, today (zip) or before 1.6 (protocol 2 to 5)."""
    return re.match(_FILES[0][0], head) is not None


def describe_file(head: bytes) -> str:
    """What a file with these first bytes is instead of safetensors; empty where they do not tell."""
    return next((what for pattern, what in _FILES if re.match(pattern, head, re.IGNORECASE | re.DOTALL)), "")


def describe_tensors(names: Iterable[str]) -> str:
    """What a file with such tensors is instead of a LoRA; empty where they do not tell."""
    names = tuple(names)
    for starts, what in _MODELS:
        if any(name.startswith(starts) for name in names):
            return what
    return ""
