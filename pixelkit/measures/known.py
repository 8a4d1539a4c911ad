"""What is known without a measurement of one's own: figures that others measured, and what can be computed."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeFloat, ValidationError

from pixelkit.errors import StorageError
from pixelkit.paths import data_dir

if TYPE_CHECKING:
    from pathlib import Path

    from pixelkit.measures.setup import Setup

FARTHEST = 4.0  # another's figure says nothing of passes more than so many times larger or smaller
# Words after a device's name that make it another device: an RTX 3090 Ti is no RTX 3090.
OTHER_MODELS = {"ti", "super", "d", "laptop", "max-q", "mobile", "pcie", "nvl"}


def _read_range(value: object) -> object:
    if isinstance(value, list):
        if len(value) != 2 or value[0] > value[1]:
            raise ValueError("two numbers, the lesser first")
        return tuple(value)
    return value, value


Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], BeforeValidator(_read_range)]


class Data(BaseModel):
    """A table of a TOML file of figures: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Published(Data):
    """One figure of presets/costs/measured.toml. `seconds` of an optimizer step, least and most."""

    device: str
    family: str
    base: str = ""
    side: int
    batch: int
    checkpointing: bool | None = None
    attention: str | None = None
    seconds: Range
    memory_gib: float | None = None
    source: str = "published"
    whole: bool = False


class _PublishedFile(Data):
    measured: list[Published]
    on_two_cores: list[dict[str, object]]


class Work(Data):
    """TFLOP for one image of side x side pixels, and the least seconds that a pass was seen to take."""

    side: int
    forward: float
    step: float
    step_checkpointed: float
    pass_seconds: Range = (0.0, 0.0)


class Devices(Data):
    """presets/costs/devices.toml: work by family, peaks in TFLOP/s by device, the share of them that is reached."""

    work: dict[str, Work]
    efficiency: dict[str, Range]
    data_centre: dict[str, float]
    usual: dict[str, float]

    def find_power(self, device: str) -> Power | None:
        """What a device can do; None for an unknown one."""
        for kind in ("data_centre", "usual"):
            for name, peak in getattr(self, kind).items():
                if is_called(device, name):
                    return Power(peak=peak, share=self.efficiency[kind])
        return None


@dataclass(frozen=True, kw_only=True)
class Power:
    """A GPU's peak in TFLOP/s, and the share of it that is reached, least and most."""

    peak: float
    share: tuple[float, float]

    @property
    def least(self) -> float:
        """TFLOP/s that are reached in any case."""
        return self.peak * self.share[0]

    @property
    def most(self) -> float:
        """TFLOP/s that are reached at best."""
        return self.peak * self.share[1]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds for an optimizer step, the likely and its bounds, and where they are from; `whole`: nothing comes on top."""

    seconds: float
    low: float
    high: float
    source: str
    memory_gib: float | None = None
    whole: bool = False


_Model = TypeVar("_Model", bound=Data)


def read_costs(model: type[_Model], path: Path) -> _Model:
    """A TOML file of figures. Raises StorageError that names what is wrong in it."""
    try:
        return model.model_validate(tomllib.loads(path.read_text("utf-8-sig")))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise StorageError(f"{path}: {faults}") from error


def list_published() -> list[Published]:
    """The shipped figures."""
    file = read_costs(_PublishedFile, data_dir("presets") / "costs" / "measured.toml")
    return file.measured + [
        Published.model_validate({"device": "cpu", "whole": True, **entry}) for entry in file.on_two_cores
    ]


def read_devices() -> Devices:
    """The shipped table."""
    return read_costs(Devices, data_dir("presets") / "costs" / "devices.toml")


def is_called(device: str, name: str) -> bool:
    """Whether a device that its driver calls `device` is a `name`: RTX 3090, but not RTX 3090 Ti."""
    words, wanted = (re.split(r"[\s,-]+", text.lower()) for text in (device, name))
    for start in range(len(words) - len(wanted) + 1):
        if words[start : start + len(wanted)] == wanted:
            rest = words[start + len(wanted) :]
            return not rest or rest[0] not in OTHER_MODELS
    return False


def find_published(setup: Setup) -> Pace | None:
    """Another's figure for this device and family, scaled to the setup's passes; None where there is none near enough."""
    if setup.method != "lora":
        return None
    found = [entry for entry in list_published() if _is_about(entry, setup)]
    if not found:
        return None
    entry = min(found, key=lambda entry: _distance(entry, setup))
    pixels = entry.batch * entry.side**2
    factor = setup.pixels / pixels
    if _distance(entry, setup) > FARTHEST:
        return None
    low, high = entry.seconds
    middle, flat = math.sqrt(low * high), (low, high)
    if abs(factor - 1) > 0.01:
        low, high = min(low, low * factor), max(high, high * factor)
        computed = compute(setup)
        middle = min(max(computed.seconds / setup.gradient_accumulation, low), high) if computed else middle * factor
    if entry.device == "cpu" and setup.cores != 2:
        low, high = min(low, low * 2 / setup.cores), max(high, high * 2 / setup.cores)
        middle = math.sqrt(low * high)
    scaled = "" if (low, high) == flat else ", scaled"
    return Pace(
        seconds=middle * setup.gradient_accumulation,
        low=low * setup.gradient_accumulation,
        high=high * setup.gradient_accumulation,
        source=f"measured elsewhere: {entry.source}{scaled}",
        memory_gib=entry.memory_gib if abs(factor - 1) <= 0.01 else None,
        whole=entry.whole,
    )


def compute(setup: Setup) -> Pace | None:
    """A step's time from the model's work and the device's peak; None for a device or a family that is not in the tables."""
    devices = read_devices()
    work, power = devices.work.get(setup.family), devices.find_power(setup.machine)
    if work is None or power is None or setup.device != "cuda" or setup.base or setup.precision == "no":
        return None
    if setup.method in {"dreambooth", "finetune"}:
        each = work.forward * (4 if setup.gradient_checkpointing else 3)
    else:
        each = work.step_checkpointed if setup.gradient_checkpointing else work.step
    total = each * setup.pixels / work.side**2
    floor = work.pass_seconds[setup.gradient_checkpointing]  # seen without compiling, which lowers it
    accumulation = setup.gradient_accumulation
    return Pace(
        seconds=max(total / math.sqrt(power.least * power.most), 0.0 if setup.compile else floor) * accumulation,
        low=total / power.most * accumulation,
        high=max(total / power.least, floor) * accumulation,
        source="computed from the model's work and the GPU's peak,"
        f" of which {power.share[0]:.0%} to {power.share[1]:.0%} are reached",
    )


def compute_picture(setup: Setup, pace: Pace, *, steps: int, area: int) -> float | None:
    """Seconds for a sample picture at the pace of a step: two forward passes a sampling step."""
    work = read_devices().work.get(setup.family)
    if work is None or setup.base:
        return None
    step = work.step_checkpointed if setup.gradient_checkpointing else work.step
    a_pixel = pace.seconds / (setup.gradient_accumulation * setup.pixels)
    return a_pixel * area * steps * 2 * work.forward / step


def _is_about(entry: Published, setup: Setup) -> bool:
    device = (
        setup.device == "cpu"
        if entry.device == "cpu"
        else setup.device == "cuda" and is_called(setup.machine, entry.device)
    )
    return (
        device
        and (entry.family, entry.base) == (setup.family, setup.base)
        and entry.checkpointing in {None, setup.gradient_checkpointing}
        and entry.attention in {None, setup.attention}
    )


def _distance(entry: Published, setup: Setup) -> float:
    pixels = entry.batch * entry.side**2
    return max(pixels, setup.pixels) / min(pixels, max(1.0, setup.pixels))
