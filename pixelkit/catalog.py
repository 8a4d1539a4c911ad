"""Base models and hardware profiles: data in presets/bases and presets/hardware, read into strict models."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pixelkit.errors import CatalogError, did_you_mean
from pixelkit.paths import PACKAGE, data_dir, user_path
from pixelkit.preset import Family, KohyaValue, Precision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MEMORY_OVERHEAD_GIB = 2.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_Model = TypeVar("_Model", bound=_Data)


class BaseSampling(_Data):
    """How pictures of this base are made unless the preset says otherwise."""

    sampler: Literal["ddim", "euler", "euler_a", "dpm++"]
    steps: int
    guidance: float


class BaseMemory(_Data):
    """GiB of device memory: weights, and each image of the batch at the native resolution; linear in the canvas area."""

    weights: float
    per_image: float
    per_image_checkpointed: float


class BaseSpec(_Data):
    """A base model: what it is, what it needs, which numbers suit it. `engines` in order of preference."""

    title: str
    family: Family
    source: Annotated[str, Field(description="hub id, or package:FOLDER for one that comes with pixelkit")]
    files: Annotated[
        tuple[str, ...], Field(strict=False, description="file names to look for in the models folder first")
    ] = ()
    engines: Annotated[tuple[Literal["kohya", "diffusers"], ...], Field(strict=False)] = ("kohya",)
    stands_alone: Annotated[
        bool, Field(description="trains with the diffusers engine, without asking, where sd-scripts is absent")
    ] = False
    local_only: Annotated[bool, Field(description="there is no hub folder that the trainer could load")] = False
    layout: Annotated[
        Literal["stock", "diffusers"],
        Field(description="diffusers = a UNet of a layout that sd-scripts itself cannot load"),
    ] = "stock"
    resolution: int
    bucket_step: int
    latent_scale: int = 8
    v_parameterization: bool = False
    licence: str
    train_text_encoder: bool = False
    needs: Annotated[dict[str, str], Field(description="further files: sd-scripts' option -> usual file name")] = {}
    sample: BaseSampling
    memory: BaseMemory
    kohya: dict[str, KohyaValue] = {}
    ranges: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model, found: `location` is a file, a folder or a hub id; `files` are those of `spec.needs` that were found."""

    name: str
    spec: BaseSpec
    location: str
    local: bool
    files: Mapping[str, str] = field(default_factory=dict)


class FamilySettings(_Data):
    """What suits one family on one machine. Checkpointing starts above a batch size; 0 = always, absent = never."""

    batch_size: int
    checkpointing_above: int | None = None
    unchecked_needs_gib: Annotated[
        float | None, Field(description="checkpointing stays off only with so much free memory")
    ] = None
    compile: bool = False
    kohya: dict[str, KohyaValue] = {}


class HardwareProfile(_Data):
    """A machine: precision, optimizer, and per family the batch size and memory savers."""

    title: str
    kind: Literal["cuda", "rocm", "mps", "cpu"]
    names: Annotated[
        tuple[str, ...], Field(strict=False, description="parts of the device's name that mean this profile")
    ] = ()
    memory_gib: Annotated[float, Field(description="smallest device memory that this profile is for")] = 0
    unified: Annotated[bool, Field(description="the device shares the machine's memory")] = False
    stop_below_gib: Annotated[
        float | None,
        Field(description="a training saves and stops when less of the machine's memory is available", gt=0),
    ] = None
    precision: Precision
    save_precision: Literal["fp16", "bf16", "float"] = "fp16"
    optimizer: Literal["adamw", "adamw8bit", "adafactor"]
    fused_optimizer: bool = False
    workers: int
    environment: dict[str, str] = {}
    kohya: dict[str, KohyaValue] = {}
    families: dict[Family, FamilySettings]


def _read(model: type[_Model], path: Path) -> _Model:
    try:
        return model.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"{path}: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise CatalogError(f"{path}: {faults}") from error


def list_bases() -> dict[str, BaseSpec]:
    """All bases of presets/bases, by name."""
    return {path.stem: _read(BaseSpec, path) for path in sorted((data_dir("presets") / "bases").glob("*.toml"))}


def list_hardware() -> dict[str, HardwareProfile]:
    """All profiles of presets/hardware, by name."""
    return {
        path.stem: _read(HardwareProfile, path) for path in sorted((data_dir("presets") / "hardware").glob("*.toml"))
    }


def find_spec(name: str) -> BaseSpec:
    """What suits a base of the catalogue, or a family, wherever its files are. Raises CatalogError."""
    bases = list_bases()
    known: dict[str, BaseSpec] = {str(family): bases[base] for family, base in FAMILY_BASE.items()}
    known |= bases
    if name not in known:
        raise CatalogError(
            f"no base is called {name}", hint=did_you_mean(name, known) or f"there are {', '.join(bases)}"
        )
    return known[name]


def find_base(name: str, family: Family | None, *, folder: Path, models: Path | None) -> Base:
    """A base by its catalogue name, by path (relative to `folder`) or by hub id; the latter two need `family`.

    A catalogue base is looked for by its file names in `models` (the user's models folder) before its hub id is taken.
    Raises CatalogError: unknown name, missing family, a file that is no model.
    """
    bases = list_bases()
    if name in bases:
        spec = bases[name]
        if family and family != spec.family:
            raise CatalogError(
                f"family = {family}, but base {name} is of the family {spec.family}", hint="remove family"
            )
        return _place(name, spec, models)
    path = (folder / user_path(name)).resolve()
    if not path.exists() and not _HUB_ID.fullmatch(name):
        hint = did_you_mean(name, bases) or f"there are {', '.join(bases)}; or give a path or a hub id, with family"
        raise CatalogError(f"base = {name}: no base of that name, and no such file", hint=hint)
    if family is None:
        raise CatalogError(
            f"base = {name} is a path or hub id, so family must be given too", hint='for example family = "sdxl"'
        )
    spec = bases[FAMILY_BASE[family]]
    if not path.exists():
        return Base(name=name, spec=spec, location=name, local=False)
    check_model(path)
    if path.is_dir() and family == "sd15" and not _has_stock_unet(path):
        spec = spec.model_copy(update={"layout": "diffusers", "engines": ("kohya", "diffusers")})
    return Base(name=path.stem, spec=spec, location=str(path), local=True, files=_find_needs(spec, models))


FAMILY_BASE: Mapping[Family, str] = {"sd15": "sd15", "sd2": "sd21", "sdxl": "sdxl", "sd3": "sd35", "flux": "flux-dev"}


def _place(name: str, spec: BaseSpec, models: Path | None) -> Base:
    if spec.source.startswith("package:"):
        return Base(name=name, spec=spec, location=str(PACKAGE / spec.source.removeprefix("package:")), local=True)
    needed = _find_needs(spec, models)
    for file in spec.files:
        if found := _find_file(models, file):
            check_model(found)
            return Base(name=name, spec=spec, location=str(found), local=True, files=needed)
    return Base(name=name, spec=spec, location=spec.source, local=False, files=needed)


def _find_needs(spec: BaseSpec, models: Path | None) -> Mapping[str, str]:
    return {option: str(path) for option, file in spec.needs.items() if (path := _find_file(models, file))}


def _find_file(models: Path | None, file: str) -> Path | None:
    return next(iter(sorted(models.rglob(file))), None) if models and models.is_dir() else None


def check_model(path: Path) -> None:
    """Raises CatalogError unless `path` is a whole safetensors file or a diffusers folder."""
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CatalogError(
                f"{path} is a folder without model_index.json, so no diffusers model",
                hint="give the .safetensors file, or a diffusers folder",
            )
        return
    if path.suffix in {".ckpt", ".pt", ".pth", ".bin"}:
        raise CatalogError(
            f"{path.name} is a pickle, which can run code when it is loaded",
            hint="use the .safetensors file of the same model",
        )
    if not path.is_file():
        raise CatalogError(f"{path} is no file")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size - 8, 100_000_000):
            raise CatalogError(f"{path.name} is no safetensors file, or it is cut off", hint="download it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
            raise CatalogError(f"{path.name} is no safetensors file", hint="download it again") from None
    if 8 + length + end != size:
        raise CatalogError(f"{path.name} is cut off: {size} bytes of {8 + length + end}", hint="download it again")


def _has_stock_unet(folder: Path) -> bool:
    """Whether a diffusers folder holds a UNet of SD1.5's own layout, the only one that sd-scripts loads (train_util.py:5559)."""
    try:
        config = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return True
    return (
        config.get("block_out_channels") == [320, 640, 1280, 1280]
        and config.get("layers_per_block", 2) == 2
        and bool(config.get("mid_block_type", "yes"))
    )


# Bytes that one trained weight takes in float32: itself, its gradient, and what the optimizer keeps of it.
TRAINED_BYTES: Mapping[str, int] = {"adamw": 16, "adamw8bit": 10, "adafactor": 8, "lion": 12, "sgd": 12, "prodigy": 24}


def expected_memory(
    spec: BaseSpec, *, batch_size: int, checkpointing: bool, canvas_area: int, optimizer: str | None = None
) -> float:
    """GiB of device memory that training is expected to need: computed, not measured.

    `optimizer` where the whole model is trained; `spec.memory.weights` holds it in 2 bytes a weight.
    """
    per_image = spec.memory.per_image_checkpointed if checkpointing else spec.memory.per_image
    weights = spec.memory.weights * (TRAINED_BYTES.get(optimizer, 16) / 2 if optimizer else 1)
    return weights + MEMORY_OVERHEAD_GIB + per_image * batch_size * canvas_area / spec.resolution**2
