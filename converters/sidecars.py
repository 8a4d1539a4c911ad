"""What lies beside a kohya LoRA file so that other programs know it: plain values, ready for JSON.

| file | read by | source |
|---|---|---|
| `<name>.json` | AUTOMATIC1111's web UI, Forge | extensions-builtin/Lora/ui_edit_user_metadata.py |
| `<name>.civitai.info` | Civitai Helper | scripts/ch_lib/civitai.py: an answer of Civitai's API for a model version |
| `<name>.metadata.json` | ComfyUI Lora-Manager | py/utils/models.py, LoraMetadata |
| `<name>.comfyui.json` | ComfyUI | API format: node id -> class_type, inputs, _meta |

What does not hold is left empty: a LoRA that Civitai never saw has no id there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping

    from converters.metadata import FileHashes

Family = Literal["sd15", "sd2", "sdxl", "sd3", "flux"]
Workflow = dict[str, dict[str, Any]]

# Forge knows Flux and not SD3, AUTOMATIC1111 the other way round; both read what they do not know as text.
_SD_VERSIONS: Mapping[Family, str] = {"sd15": "SD1", "sd2": "SD2", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux"}
_SAMPLERS: Mapping[str, str] = {"ddim": "ddim", "euler": "euler", "euler_a": "euler_ancestral", "dpm++": "dpmpp_2m"}
_SCHEDULERS: Mapping[Family, str] = {"sd3": "sgm_uniform", "flux": "simple"}
_NO_TEXT_ENCODER = "LoRA: strength_clip is 0, for no text encoder was trained and the file holds nothing for it"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What every sidecar tells of one LoRA file.

    `base` is Civitai's word for the base (`SDXL 1.0`), `family` is None where the base is of no layout that these
    programs know. `text_encoder`: whether the file holds modules for one.
    """

    name: str
    title: str
    base: str
    family: Family | None
    trigger: str
    strength: float
    text_encoder: bool
    trained: datetime.datetime
    size: int
    hashes: FileHashes
    description: str = ""
    negative: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    preview: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How to draw with it. `sampler`: ddim, euler, euler_a or dpm++; `cell`: the side of one sprite pixel's block."""

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    sampler: str
    width: int
    height: int
    cell: int


@dataclass(frozen=True, kw_only=True)
class BaseFiles:
    """The base by its usual file names. `encoders`: clip_l, clip_g, t5xxl, ae, where they are files of their own."""

    family: Family
    checkpoint: str
    encoders: Mapping[str, str] = field(default_factory=dict)
    v_prediction: bool = False
    zero_snr: bool = False
    clip_skip: int = 1


def describe_for_webui(card: Card) -> dict[str, Any]:
    """`<name>.json`."""
    return {
        "description": card.description,
        "sd version": _SD_VERSIONS[card.family] if card.family else "Unknown",
        "activation text": card.trigger,
        "preferred weight": card.strength,
        "negative text": card.negative,
        "notes": card.notes,
    }


def describe_for_civitai_helper(card: Card) -> dict[str, Any]:
    """`<name>.civitai.info`. Without an id, so that nothing looks for new versions of a model that is not there."""
    return {
        "id": "",
        "modelId": "",
        "name": card.title,
        "createdAt": card.trained.isoformat(timespec="seconds"),
        "trainedWords": [card.trigger] if card.trigger else [],
        "baseModel": card.base,
        "description": card.description,
        "model": {"name": card.title, "type": "LORA", "nsfw": False, "poi": False, "tags": list(card.tags)},
        "files": [
            {
                "name": f"{card.name}.safetensors",
                "sizeKB": card.size / 1024,
                "type": "Model",
                "metadata": {"format": "SafeTensor"},
                "hashes": {
                    "AutoV2": card.hashes.auto_v2.upper(),
                    "AutoV3": card.hashes.auto_v3.upper(),
                    "SHA256": card.hashes.sha256.upper(),
                },
                "primary": True,
                "downloadUrl": "",
            }
        ],
        "images": [],
        "downloadUrl": "",
    }


def describe_for_lora_manager(card: Card) -> dict[str, Any]:
    """`<name>.metadata.json`. The paths are file names: Lora-Manager puts its own folder before them."""
    return {
        "file_name": card.name,
        "model_name": card.title,
        "file_path": f"{card.name}.safetensors",
        "size": card.size,
        "modified": card.trained.timestamp(),
        "sha256": card.hashes.sha256,
        "base_model": card.base,
        "preview_url": card.preview,
        "preview_nsfw_level": 0,
        "notes": card.notes,
        "from_civitai": False,
        "civitai": {"trainedWords": [card.trigger] if card.trigger else []},
        "tags": list(card.tags),
        "modelDescription": card.description,
        "civitai_deleted": False,
        "favorite": False,
        "exclude": False,
        "usage_tips": json.dumps({"strength": card.strength}),
    }


def build_workflow(card: Card, base: BaseFiles, drawing: Drawing) -> Workflow:
    """`<name>.comfyui.json`: base, LoRA, prompt, picture, and the picture at one pixel per sprite pixel.

    ComfyUI runs it by `POST /prompt` with {"prompt": this}, or by dropping the file on its window.
    """
    nodes, model, clip, vae = _load_base(base)
    strength_clip = card.strength if card.text_encoder else 0
    nodes["lora"] = _node(
        "LoraLoader",
        "LoRA" if card.text_encoder else _NO_TEXT_ENCODER,
        lora_name=f"{card.name}.safetensors",
        strength_model=card.strength,
        strength_clip=strength_clip,
        model=model,
        clip=clip,
    )
    model, clip = ["lora", 0], ["lora", 1]
    if base.v_prediction:
        nodes["sampling"] = _node(
            "ModelSamplingDiscrete",
            "The base predicts v",
            model=model,
            sampling="v_prediction",
            zsnr=base.zero_snr,
        )
        model = ["sampling", 0]
    elif base.family == "sd3":
        nodes["sampling"] = _node("ModelSamplingSD3", "Stable Diffusion 3's shift", model=model, shift=3.0)
        model = ["sampling", 0]
    if base.clip_skip > 1:
        nodes["clip_skip"] = _node("CLIPSetLastLayer", "As in training", clip=clip, stop_at_clip_layer=-base.clip_skip)
        clip = ["clip_skip", 0]
    nodes["positive"] = _node("CLIPTextEncode", "Prompt: the trigger words first", text=drawing.prompt, clip=clip)
    nodes["negative"] = _node("CLIPTextEncode", "Negative prompt", text=drawing.negative, clip=clip)
    positive, guidance = ["positive", 0], drawing.guidance
    if base.family == "flux":
        nodes["guidance"] = _node("FluxGuidance", "FLUX's guidance", conditioning=positive, guidance=guidance)
        positive, guidance = ["guidance", 0], 1.0
    latent = "EmptySD3LatentImage" if base.family in {"sd3", "flux"} else "EmptyLatentImage"
    nodes["canvas"] = _node(
        latent, "The canvas of the training", width=drawing.width, height=drawing.height, batch_size=1
    )
    nodes["sampler"] = _node(
        "KSampler",
        "KSampler",
        seed=drawing.seed,
        steps=drawing.steps,
        cfg=guidance,
        sampler_name=_SAMPLERS[drawing.sampler],
        scheduler=_SCHEDULERS.get(base.family, "normal"),
        denoise=1.0,
        model=model,
        positive=positive,
        negative=["negative", 0],
        latent_image=["canvas", 0],
    )
    nodes["picture"] = _node("VAEDecode", "VAE Decode", samples=["sampler", 0], vae=vae)
    nodes["save_large"] = _node("SaveImage", "As drawn", filename_prefix=card.name, images=["picture", 0])
    nodes |= _reduce(card, drawing)
    return nodes


def _load_base(base: BaseFiles) -> tuple[Workflow, list[Any], list[Any], list[Any]]:
    """The base's nodes; where its model, its text encoders and its VAE come out."""
    files = base.encoders
    nodes: Workflow = {}
    if base.family == "flux":
        nodes["model"] = _node("UNETLoader", "FLUX", unet_name=base.checkpoint, weight_dtype="default")
        nodes["encoders"] = _node(
            "DualCLIPLoader", "Text encoders", clip_name1=files["t5xxl"], clip_name2=files["clip_l"], type="flux"
        )
        nodes["vae"] = _node("VAELoader", "VAE", vae_name=files["ae"])
        return nodes, ["model", 0], ["encoders", 0], ["vae", 0]
    nodes["model"] = _node("CheckpointLoaderSimple", "Base model", ckpt_name=base.checkpoint)
    if base.family == "sd3":
        nodes["encoders"] = _node(
            "TripleCLIPLoader",
            "Text encoders",
            clip_name1=files["clip_l"],
            clip_name2=files["clip_g"],
            clip_name3=files["t5xxl"],
        )
        return nodes, ["model", 0], ["encoders", 0], ["model", 2]
    return nodes, ["model", 0], ["model", 1], ["model", 2]


def _reduce(card: Card, drawing: Drawing) -> Workflow:
    """One pixel per sprite pixel: what does not make a whole block is cut off at the right and the bottom first."""
    if drawing.cell <= 1:
        return {}
    across, down = drawing.width // drawing.cell, drawing.height // drawing.cell
    width, height = across * drawing.cell, down * drawing.cell
    nodes: Workflow = {}
    image: list[Any] = ["picture", 0]
    if (width, height) != (drawing.width, drawing.height):
        nodes["whole_blocks"] = _node(
            "ImageCrop", f"Whole blocks of {drawing.cell} px", image=image, width=width, height=height, x=0, y=0
        )
        image = ["whole_blocks", 0]
    nodes["sprite"] = _node(
        "ImageScale",
        f"One pixel for each block of {drawing.cell}x{drawing.cell}",
        image=image,
        upscale_method="nearest-exact",
        width=across,
        height=down,
        crop="disabled",
    )
    nodes["save_sprite"] = _node(
        "SaveImage", "At the sprite's own size", filename_prefix=f"{card.name}_sprite", images=["sprite", 0]
    )
    return nodes


def _node(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
