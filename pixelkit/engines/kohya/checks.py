"""What the watch looks at in sd-scripts' own objects: cached latents, gradients, rates, memory, metadata.

TU is library/train_util.py at the pinned commit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.engines.kohya.processes import add_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def list_images(dataset: Any) -> Iterator[Any]:
    """Every ImageInfo (TU:181) of a DatasetGroup."""
    for part in getattr(dataset, "datasets", ()):
        yield from part.image_data.values()


def has_finite_latents(info: Any) -> bool:
    """Whether the cached latents of an ImageInfo, in memory or in its npz file, are all finite."""
    import numpy as np

    if info.latents_npz:
        with np.load(info.latents_npz) as arrays:
            return all(np.isfinite(arrays[name]).all() for name in arrays.files if name.startswith("latents"))
    kept: Iterable[Any] = (info.latents, info.latents_flipped)
    return all(latents is None or bool(latents.isfinite().all()) for latents in kept)


def advise_vae(args: Any) -> str:
    """What to change when a VAE overflows."""
    if args.no_half_vae or args.mixed_precision in (None, "no"):
        return "the VAE of this base is damaged: use another, or give a `vae`"
    return "the VAE overflows in half precision: set no_half_vae = true under [kohya]"


def read_rate(accelerator: Any) -> float:
    """The highest learning rate of the optimizer's groups for the step to come, Prodigy's own factor in it."""
    groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]  # noqa: SLF001
    return max((float(group["lr"]) * float(group.get("d", 1.0)) for group in groups), default=0.0)


def measure_norm(accelerator: Any) -> Any:
    """The norm of the gradients that the optimizers are about to use, on their device; None without gradients."""
    import torch

    groups = [group for optimizer in accelerator._optimizers for group in optimizer.param_groups]  # noqa: SLF001
    gradients = [parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


def read_numbers(scalars: list[Any], orders: Sequence[bool], accelerator: Any) -> tuple[list[float], list[bool]]:
    """Tensors of one number each as floats, read from their device at once, and the orders.

    Over several processes the numbers are means, and an order counts that any of them got.
    """
    import torch

    device, count = accelerator.device, accelerator.num_processes
    flat = [scalar.detach().reshape(()).to(device=device, dtype=torch.float32) for scalar in scalars]
    if count == 1:
        return torch.stack(flat).tolist() if flat else [], list(orders)
    flat += [torch.tensor(float(order), device=device) for order in orders]
    numbers = add_up(accelerator, torch.stack(flat)).tolist()
    cut = len(scalars)
    return [number / count for number in numbers[:cut]], [number > 0 for number in numbers[cut:]]


def are_finite(tensors: Iterable[Any], dtype: Any) -> bool:
    """Whether all `tensors` are finite once they are saved as `dtype` (None: as they are). Copies one at a time."""
    return all(
        bool(tensor.detach().to(dtype or tensor.dtype).isfinite().all())
        for tensor in tensors
        if tensor.is_floating_point()
    )


def measure_memory(device: Any) -> int | None:
    """Bytes in use: the most allocated on a CUDA device so far, what is allocated on MPS, this process's on a CPU."""
    import psutil
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.current_allocated_memory())
    return int(psutil.Process().memory_info().rss)


def correct_base_hash(metadata: dict[str, str], base: str) -> None:
    """For a base that is a folder, name its UNet's hash; sd-scripts writes "IsADirectory" (TU:3234)."""
    if metadata.get("ss_sd_model_hash") != "IsADirectory":
        return
    del metadata["ss_sd_model_hash"]
    metadata.pop("ss_new_sd_model_hash", None)
    weights = Path(base) / "unet" / "diffusion_pytorch_model.safetensors"
    if weights.is_file():
        with weights.open("rb") as file:
            metadata["ss_new_sd_model_hash"] = hashlib.file_digest(file, "sha256").hexdigest()
        metadata["ss_new_sd_model_hash_of"] = "unet/diffusion_pytorch_model.safetensors"
