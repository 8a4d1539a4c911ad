"""Captions by vision models through transformers: BLIP, BLIP-2 and Florence-2, from a folder or from the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.dataset.captions.pictures import draw_sprite
from pixelkit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelkit.sources.sprite import Sprite

DEFAULTS: Final = {"blip": "Salesforce/blip-image-captioning-base", "florence": "florence-community/Florence-2-base"}
CLASSES: Final = {
    "blip": {"blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"},
    "florence": {"florence2": "Florence2ForConditionalGeneration"},
}
"""Mode -> what config.json calls itself (model_type) -> the class of transformers."""
TASK: Final = "<CAPTION>"
MOST_TOKENS: Final = 50
BEAMS: Final = 3
INSTALL: Final = "`pip install 'pixelkit[train]'` brings torch and transformers"
_ECHO: Final = re.compile(
    r"^(?:(?:an?|the|this is|there is) )*(?:image|picture|pixel[ -]?art(?: (?:image|picture|style))?)(?: of)? (?:an? |the )?",
    re.IGNORECASE,
)


def load_captioner(mode: str, model: str | None, *, device: str = "auto") -> Callable[[Sprite], str]:
    """A function that captions one sprite. `model`: a folder, or a name on the hub. Same sprite, same caption: nothing is drawn.

    Raises DataError: torch or transformers absent, no such model, a model of another kind.
    """
    try:
        import torch  # noqa: PLC0415 - seconds to load, and not part of the light installation
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise DataError(f"--mode {mode} needs {error.name}, which is not installed", hint=INSTALL) from None
    transformers.utils.logging.set_verbosity_error()
    name = model or DEFAULTS[mode]
    kind = _find_class(mode, name, transformers)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    network, processor = _load(kind, name, transformers, dtype)
    network = network.to(device).eval()
    side = _input_side(processor)

    def caption(sprite: Sprite) -> str:
        picture = draw_sprite(sprite, side)
        prompt = {"text": TASK} if mode == "florence" else {}
        inputs = processor(images=picture, return_tensors="pt", **prompt).to(device, dtype)
        with torch.inference_mode():
            tokens = network.generate(**inputs, max_new_tokens=MOST_TOKENS, num_beams=BEAMS, do_sample=False)
        return tidy(processor.batch_decode(tokens, skip_special_tokens=True)[0])

    return caption


def tidy(text: str) -> str:
    """A model's answer without what every caption of a set would begin with (`a pixel art picture of a`) and end with."""
    text = " ".join(text.replace(TASK, " ").split()).strip(" .,")
    return _ECHO.sub("", text).strip() or text


def _find_class(mode: str, name: str, transformers: Any) -> str:
    """The class of a model, by its config. Raises DataError."""
    config = Path(name, "config.json")
    legal = CLASSES[mode]
    try:
        content = json.loads(config.read_text("utf-8")) if Path(name).is_dir() else _hub_config(name, transformers)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: no model found ({_first_line(error)})",
            hint="--model takes a folder with config.json, or a name on the Hugging Face hub",
        ) from None
    kind = content.get("model_type")
    if kind not in legal:
        other = next((each for each, kinds in CLASSES.items() if kind in kinds), None)
        raise DataError(
            f"{name} is of the kind {kind}; --mode {mode} takes {' or '.join(legal)}",
            hint=f"use --mode {other}" if other else f"as {DEFAULTS[mode]} is",
        )
    if not hasattr(transformers, legal[kind]):
        raise DataError(
            f"transformers {transformers.__version__} has no {legal[kind]}",
            hint="it has from 4.56 on, and sd-scripts pins an older one: `uv run --with 'transformers>=4.56,<5' pixelkit data"
            " caption ...` takes a newer one for this command only",
        )
    return legal[kind]


def _hub_config(name: str, transformers: Any) -> dict[str, Any]:
    content = transformers.PretrainedConfig.get_config_dict(name)[0]
    return dict(content)


def _load(kind: str, name: str, transformers: Any, dtype: Any) -> tuple[Any, Any]:
    try:
        network = getattr(transformers, kind).from_pretrained(name, torch_dtype=dtype)
        processor = transformers.AutoProcessor.from_pretrained(name)
    except Exception as error:
        raise DataError(f"{name} cannot be loaded: {_first_line(error)}", hint="is the folder complete?") from None
    return network, processor


def _input_side(processor: Any) -> int:
    """Pixels of the side that the model's own preparation makes of every picture."""
    size = processor.image_processor.size
    return int(size.get("height") or size.get("shortest_edge") or 384)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
