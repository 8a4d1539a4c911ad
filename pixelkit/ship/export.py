"""The trained file in every format that the preset asks for; the training's own file is only read."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converters import ConversionError, convert
from converters.kohya_file import copy_signed
from converters.metadata import build_modelspec
from converters.tensors import read_file
from pixelkit.errors import ShipError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from pixelkit.plan import Plan

# Where a format other than kohya's goes; {name} is the run's.
NAMES: Mapping[str, str] = {
    "peft": "peft",
    "diffusers": "pytorch_lora_weights.safetensors",
    "catsith": "{name}.lora.json",
    "catsith-compact": "{name}.compact.lora.json",
}
_KEYS_TOLD = 3


@dataclass(frozen=True, kw_only=True)
class Exports:
    """What was written: format -> file or folder, the kohya file first; and what a person should know."""

    files: Mapping[str, Path]
    remarks: tuple[str, ...]


def export(plan: Plan, source: Path, folder: Path, metadata: Mapping[str, str], trained: datetime) -> Exports:
    """The kohya file always, signed, with `metadata` laid over its own; the other formats as the preset asks.

    What a format cannot hold is a remark. Raises ShipError where the model itself, or a disk, is at fault.
    """
    target = folder / source.name
    if plan.makes != "lora":
        _link(source, target)
        return Exports(files={"kohya": target}, remarks=())
    files, remarks = {"kohya": target}, []
    try:
        if "modelspec.sai_model_spec" not in read_file(source).metadata:
            metadata = {**_start_modelspec(plan, trained), **metadata}
        copy_signed(source, target, metadata)
    except ConversionError as error:
        raise ShipError(f"the model is trained ({source}), but not exported: {error}") from error
    others = [name for name in plan.preset.export.formats if name != "kohya"]
    if plan.network.kind == "oft" and others:
        remarks.append(f"not exported as {' or '.join(others)}: an OFT is no LoRA, and only the kohya file holds one")
        others = []
    for name in others:
        out = folder / NAMES[name].format(name=plan.name)
        _remove(out)
        try:
            done = convert(target, name, out)
        except ConversionError as error:
            if not error.keys:
                raise ShipError(f"the model is trained ({source}), but not exported as {name}: {error}") from error
            remarks.append(f"not exported as {name}: {_tell(error)}")
            continue
        files[name] = out
        if done.widened:
            tensors = f"{len(done.widened)} tensor{'s'[: len(done.widened) > 1]}"
            remarks.append(f"{out.name}: {tensors} as float32, to hold alpha / rank exactly")
    return Exports(files=files, remarks=tuple(remarks))


def _tell(error: ConversionError) -> str:
    more = len(error.keys) - _KEYS_TOLD
    return f"{error.message}: {', '.join(error.keys[:_KEYS_TOLD])}" + (f" and {more} more" if more > 0 else "")


def _start_modelspec(plan: Plan, trained: datetime) -> dict[str, str]:
    """A modelspec where the trainer wrote none, and one version of the family is all there is."""
    family = {"sd15": "sd15", "sd2": "sd21", "sdxl": "sdxl"}.get(plan.base.spec.family)
    if family is None:
        return {}
    return build_modelspec(
        family=family,
        title=plan.name,
        resolution=plan.dataset.resolution,
        date=trained,
        v_prediction=bool(plan.kohya.get("v_parameterization", plan.base.spec.v_parameterization)),
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """A whole model is large: the same file under a second name where the file system can, else a copy."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
