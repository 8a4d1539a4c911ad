"""Weights in a pickle (.pt, .ckpt, .bin): opened only on request, and then by torch with weights_only=True.

A pickle can run any code when it is opened. torch's weights_only reader builds tensors and plain containers and refuses
everything else; what it refuses is refused here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import ConversionError
from converters.strangers import is_pickle, read_head
from converters.tensors import Tensor, Weights, from_numpy

if TYPE_CHECKING:
    from collections.abc import Mapping


def looks_like_pickle(path: Path) -> bool:
    """Whether a file begins as torch.save writes it."""
    try:
        return is_pickle(read_head(path))
    except OSError:
        return False


def read_pickle(path: Path | str) -> Weights:
    """The tensors of a file that torch.save wrote: a table of tensors, or one under `state_dict`.

    Raises ConversionError: torch is not installed, the file holds anything but tensors and plain values, or is broken.
    """
    path = Path(path)
    try:
        import torch  # noqa: PLC0415
    except ImportError as error:
        raise ConversionError(f"{path}: a pickle is read by torch, which is not installed") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets pickle's, zip's and its own errors through
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it holds more than tensors, which could run code"
        raise ConversionError(f"{path}: the pickle cannot be read: {reason}") from error
    table = _unwrap(loaded)
    if table is None:
        raise ConversionError(f"{path}: the pickle holds no table of tensors")
    odd = [str(key) for key, value in table.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise ConversionError(f"{path}: the pickle holds what is no tensor", keys=odd)
    return Weights(tensors={key: _convert(value) for key, value in table.items()}, metadata={})


def _unwrap(loaded: object) -> Mapping[str, Any] | None:
    for key in ("state_dict", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return loaded if isinstance(loaded, dict) and loaded and all(isinstance(key, str) for key in loaded) else None


def _convert(value: Any) -> Tensor:
    import torch  # noqa: PLC0415

    bits = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
    whole = value.detach().contiguous()
    if whole.dtype in bits:
        array = whole.view(torch.int16 if whole.dtype == torch.bfloat16 else torch.uint8).numpy()
        return from_numpy(array, bits[whole.dtype])
    return from_numpy(whole.numpy())
