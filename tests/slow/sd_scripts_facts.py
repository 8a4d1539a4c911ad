"""What sd-scripts does by its own functions, in one process: started in its folder, answers go into a JSON file.

    python sd_scripts_facts.py FOLDER_FOR_FILES ANSWERS.json

Nothing is judged here: test_the_25.py does that. TU is library/train_util.py.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CONFIGS = {
    "unknown_key": "[train]\nlearning_ratee = 1e-4\n",
    "text_for_a_switch": '[train]\ncache_latents = "false"\n',
    "quoted_number": '[train]\nlearning_rate = "1e-4"\n',
    "illegal_choice": '[train]\nmixed_precision = "fp32"\n',
    "byte_order_mark": "\ufefflearning_rate = 1e-4\n",
    "two_levels": "[train.optimizer]\nlearning_rate = 1e-4\n",
    "right": '[train]\nlearning_rate = 1e-4\ncache_latents = false\nmixed_precision = "bf16"\n',
}


def read_config(folder: Path, text: str) -> dict[str, Any]:
    """The arguments that train_network.py would train with (TU:4700)."""
    import train_network

    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    sys.argv = ["train_network.py", "--config_file", str(file)]
    parser = train_network.setup_parser()
    args = train_network.train_util.read_config_from_file(parser.parse_args(), parser)
    return {name: getattr(args, name) for name in ("learning_rate", "cache_latents", "mixed_precision")}


def build_dataset(folder: Path, options: str, *, size: tuple[int, int]) -> Any:
    """train_network.py's data set of one captioned image of `size`; `options` are lines of the subset."""
    import train_network
    from library import config_util
    from PIL import Image

    shutil.rmtree(folder / "images", ignore_errors=True)
    (folder / "images").mkdir()
    Image.new("RGB", size, (1, 2, 3)).save(folder / "images" / "a.png")
    (folder / "images" / "a.txt").write_text("a caption", encoding="utf-8")
    file = folder / "dataset.toml"
    subset = f'[[datasets.subsets]]\nimage_dir = "{folder / "images"}"\n{options}'
    file.write_text(f"[[datasets]]\nresolution = 128\nbatch_size = 1\n{subset}", encoding="utf-8")
    args = train_network.setup_parser().parse_args(["--dataset_config", str(file)])
    generator = config_util.BlueprintGenerator(config_util.ConfigSanitizer(True, True, False, True))
    blueprint = generator.generate(config_util.load_user_config(args.dataset_config), args)
    return config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)[0]


def look_at_captions(folder: Path) -> list[str]:
    """The caption of an image with a .txt file beside it."""
    (image,) = build_dataset(folder, "", size=(128, 128)).image_data.values()
    return [image.caption]


def look_at_pixels(folder: Path) -> dict[str, Any]:
    """An enlarged checkerboard, a canvas off the steps, hidden colours, an image without buckets (TU:2948, 2965, 279)."""
    import numpy as np
    from library import train_util
    from PIL import Image

    board = (np.indices((24, 24)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    buckets = train_util.BucketManager(False, (128, 128), 64, 512, 64)
    buckets.make_buckets()
    bucket, resized, _ = buckets.select_bucket(24, 24)
    enlarged = train_util.trim_and_resize_if_required(False, board, bucket, resized, None)[0]

    columns = np.arange(72, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    exact = train_util.BucketManager(True, (128, 128), 64, 512, 64)
    bucket, resized, _ = exact.select_bucket(72, 64)
    cropped = train_util.trim_and_resize_if_required(False, columns, bucket, resized, None)[0]

    Image.new("RGBA", (64, 64), (255, 0, 255, 0)).save(folder / "hidden.png")
    (image,) = build_dataset(folder, "", size=(64, 64)).image_data.values()
    return {
        "colours_after_enlarging": len(np.unique(enlarged.reshape(-1, 3), axis=0)),
        "first_column_after_crop": int(cropped[0, 0, 0]),
        "hidden_pixel": train_util.load_image(str(folder / "hidden.png"))[0, 0].tolist(),
        "resized_without_buckets": list(image.resized_size),
    }


def look_at_latents(folder: Path) -> dict[str, Any]:
    """The cache on disk, filled by a VAE whose answer is known (strategy_base.py:427)."""
    import numpy as np
    import torch
    from library.strategy_sd import SdSdxlLatentsCachingStrategy
    from PIL import Image

    def strategy(sd: bool) -> Any:
        return SdSdxlLatentsCachingStrategy(sd, cache_to_disk=True, batch_size=1, skip_disk_cache_validity_check=False)

    def cache(name: str, value: float, side: int) -> Path:
        path = folder / f"{name}.png"
        Image.new("RGB", (side, side), (1, 2, 3)).save(path)
        npz = strategy(True).get_latents_npz_path(str(path), (side, side))
        info = SimpleNamespace(
            absolute_path=str(path), image=None, bucket_reso=(side, side), resized_size=(side, side),
            resize_interpolation=None, latents_npz=npz,
        )  # fmt: skip
        vae = SimpleNamespace(
            device=torch.device("cpu"),
            dtype=torch.float32,
            encode=lambda batch: SimpleNamespace(
                latent_dist=SimpleNamespace(sample=lambda: torch.full((len(batch), 4, side // 8, side // 8), value))
            ),
        )
        strategy(True).cache_batch_latents(vae, [info], False, False, False)
        return Path(npz)

    npz = cache("sprite", 1.0, 64)
    accepted = strategy(True).is_disk_cached_latents_expected
    other_resolution = accepted((128, 128), str(npz), False, False)
    Image.new("RGB", (64, 64), (200, 100, 50)).save(folder / "sprite.png")
    after_edit = accepted(
        (64, 64), strategy(True).get_latents_npz_path(str(folder / "sprite.png"), (64, 64)), False, False
    )
    poisoned = cache("poisoned", float("nan"), 64)
    names = {
        script: strategy(read_kind(script)).get_latents_npz_path("a.png", (64, 64))
        for script in ("train_db", "sdxl_train")
    }
    return {
        "accepted_for_another_resolution": other_resolution,
        "accepted_after_an_edit": after_edit,
        "poisoned_values": bool(np.isnan(np.load(poisoned)["latents"]).all()),
        "poisoned_accepted": accepted((64, 64), str(poisoned), False, False),
        "names": names,
    }


def read_kind(script: str) -> bool:
    """The first argument (sd) that a script gives its caching strategy: written in its source, in the middle of train()."""
    for node in ast.walk(ast.parse(Path(f"{script}.py").read_text("utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "SdSdxlLatentsCachingStrategy":
            return bool(ast.literal_eval(node.args[0]))
    raise LookupError(script)


def look_at_base_weights(folder: Path) -> list[int]:
    """Modules that a LoRA trains in a UNet of SD1.5's shape, before and after base_weights were merged (TN:646)."""
    import kohya_bases
    from diffusers import UNet2DConditionModel
    from networks import lora
    from safetensors.torch import save_file
    from transformers import CLIPTextModel

    base = kohya_bases.make_toy(folder / "toy")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")

    def count() -> int:
        return len(lora.create_network(1.0, 4, 4, None, [text_encoder], unet).unet_loras)

    before = count()
    network = lora.create_network(1.0, 4, 4, None, [text_encoder], unet)
    network.apply_to([text_encoder], unet)
    save_file(network.state_dict(), folder / "earlier.safetensors")
    lora.create_network_from_weights(
        1.0, str(folder / "earlier.safetensors"), None, [text_encoder], unet, for_inference=True
    )
    return [before, count()]


def look_at_interpolation(folder: Path) -> dict[str, Any]:
    """A misspelt name in a subset: whether it is refused, and what it does (utils.py:267)."""
    import numpy as np
    from library.utils import resize_image

    (image,) = build_dataset(folder, 'resize_interpolation = "nearst"\n', size=(64, 64)).image_data.values()
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    misspelt, bilinear, nearest = (
        resize_image(board, 8, 8, 64, 64, name) for name in (image.resize_interpolation, "bilinear", "nearest")
    )
    return {
        "taken": image.resize_interpolation,
        "is_bilinear": bool((misspelt == bilinear).all()),
        "is_nearest": bool((misspelt == nearest).all()),
    }


def main(folder: Path, answers: Path) -> None:
    """All of it."""
    found: dict[str, Any] = {"config": {name: read_config(folder, text) for name, text in CONFIGS.items()}}
    for look in (look_at_captions, look_at_pixels, look_at_latents, look_at_base_weights, look_at_interpolation):
        found[look.__name__.removeprefix("look_at_")] = look(folder)
    answers.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
