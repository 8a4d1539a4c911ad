"""train_network.py of sd-scripts as it stands, but for its loader, which takes the toy base's small UNet as it is.

accelerate launch stock_trainer.py --config_file ...        (in the folder of sd-scripts)
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def load_toy(args: Any, *_: Any, **__: Any) -> tuple[Any, Any, Any, bool]:
    """In place of train_util._load_target_model, which pours any folder into SD1.5's layout."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    base = args.pretrained_model_name_or_path
    models = ((CLIPTextModel, "text_encoder"), (AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"))
    text_encoder, vae, unet = (kind.from_pretrained(base, subfolder=name).float() for kind, name in models)
    return text_encoder, vae, unet, False


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    from library import train_util

    train_util._load_target_model = load_toy
    runpy.run_path("train_network.py", run_name="__main__")
