"""How sd-scripts gets tokens and latents from a diffusers folder: its own tokenizer, and a VAE of any kind and factor.

Imports torch and sd-scripts' `library`: import it only inside the trainer's process. The classes are here and not
within a function because data loader workers receive them pickled.
"""

from __future__ import annotations

import os
from typing import Any

from library import train_util
from library.strategy_sd import SdSdxlLatentsCachingStrategy, SdTokenizeStrategy
from transformers import CLIPTokenizer


def encode_latents(vae: Any, images: Any) -> Any:
    """Latents of images in -1..1, not yet scaled. An AutoencoderTiny has no distribution to draw from."""
    encoded = vae.encode(images)
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()


class FolderTokenizeStrategy(SdTokenizeStrategy):  # type: ignore[misc]  # sd-scripts has no types
    """SdTokenizeStrategy (strategy_sd.py:21) with the base's own tokenizer in place of the one it names."""

    def __init__(self, base: str, max_length: int | None) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.max_length = self.tokenizer.model_max_length if max_length is None else max_length + 2


class FolderLatentsStrategy(SdSdxlLatentsCachingStrategy):  # type: ignore[misc]  # sd-scripts has no types
    """SdSdxlLatentsCachingStrategy (strategy_sd.py:133) for a VAE of any factor; its cache names the VAE."""

    def __init__(self, *, vae_name: str, factor: int, to_disk: bool, batch_size: int, skip_check: bool) -> None:
        super().__init__(True, to_disk, batch_size, skip_check)  # noqa: FBT003 - sd-scripts' own order
        self.suffix = f"_{vae_name}.npz"
        self.factor = factor

    def get_latents_npz_path(self, absolute_path: str, image_size: tuple[int, int]) -> str:
        """The stock one prefers any NAME.npz beside the image, whatever wrote it."""
        return f"{os.path.splitext(absolute_path)[0]}_{image_size[0]:04d}x{image_size[1]:04d}{self.suffix}"  # noqa: PTH122

    def is_disk_cached_latents_expected(
        self,
        bucket_reso: tuple[int, int],
        npz_path: str,
        flip_aug: bool,  # noqa: FBT001
        alpha_mask: bool,  # noqa: FBT001
    ) -> bool:
        """Whether the file holds latents for this bucket: its size too, which the stock one does not look at."""
        if not self._default_is_disk_cached_latents_expected(self.factor, bucket_reso, npz_path, flip_aug, alpha_mask):
            return False
        latents = self.load_latents_from_disk(npz_path, bucket_reso)[0]
        return bool(latents.shape[-2:] == (bucket_reso[1] // self.factor, bucket_reso[0] // self.factor))

    def cache_batch_latents(
        self,
        vae: Any,
        image_infos: list[Any],
        flip_aug: bool,  # noqa: FBT001
        alpha_mask: bool,  # noqa: FBT001
        random_crop: bool,  # noqa: FBT001
    ) -> None:
        """strategy_sd.py:163, with encode_latents."""
        self._default_cache_batch_latents(
            lambda images: encode_latents(vae, images),
            vae.device,
            vae.dtype,
            image_infos,
            flip_aug,
            alpha_mask,
            random_crop,
        )
        if not train_util.HIGH_VRAM:
            train_util.clean_memory_on_device(vae.device)
