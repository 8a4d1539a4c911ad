"""What machine this is, found without torch: NVML through ctypes, ROCm through sysfs, memory through psutil."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from pixelkit.errors import CatalogError, did_you_mean
from pixelkit.memory import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixelkit.catalog import HardwareProfile


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device that will train. Memory in GiB; `capability` is CUDA's compute capability, (0, 0) elsewhere."""

    kind: Literal["cuda", "rocm", "mps", "cpu"]
    device: str
    memory_gib: float
    available_gib: float
    capability: tuple[int, int] = (0, 0)
    unified: bool = False
    cores: int = 1

    def __str__(self) -> str:
        shared = ", shared with the system" if self.unified and self.kind != "cpu" else ""
        return (
            f"{self.device}: {self.memory_gib:.1f} GiB{shared}, {self.available_gib:.1f} GiB free, {self.cores} cores"
        )


def detect_machine() -> Machine:
    """The first NVIDIA GPU that is visible, else AMD, else Apple's, else the processor."""
    return _detect_nvidia() or _detect_amd() or _detect_apple() or _processor("cpu", _processor_name())


def choose_profile(wanted: str, machine: Machine, profiles: Mapping[str, HardwareProfile]) -> tuple[str, str]:
    """The profile's name and why. A named one is taken as it is; `auto` goes by device name, then by memory.

    Raises CatalogError for an unknown name.
    """
    if wanted != "auto":
        if wanted not in profiles:
            hint = did_you_mean(wanted, profiles) or f"there are auto, {', '.join(profiles)}"
            raise CatalogError(f"hardware = {wanted}: no such profile", hint=hint)
        return wanted, "asked for"
    same_kind = {name: profile for name, profile in profiles.items() if profile.kind == machine.kind}
    for name, profile in same_kind.items():
        if any(part.lower() in machine.device.lower() for part in profile.names):
            return name, f"the device is called {machine.device}"
    # Drivers report a little less than the printed size: 23.5 GiB on a 24 GB card.
    fitting = {
        name: profile
        for name, profile in same_kind.items()
        if profile.memory_gib <= machine.memory_gib * 1.06 and not profile.names
    }
    pool = fitting or {name: profile for name, profile in same_kind.items() if not profile.names}
    chosen = (
        max(pool, key=lambda name: pool[name].memory_gib)
        if fitting
        else min(pool, key=lambda name: pool[name].memory_gib)
    )
    reason = {"cuda": f"{machine.memory_gib:.0f} GiB of device memory", "cpu": "no GPU was found"}.get(
        machine.kind, machine.kind
    )
    return chosen, reason


def _processor(kind: Literal["cpu", "mps"], device: str) -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        kind=kind,
        device=device,
        memory_gib=memory.total / GIB,
        available_gib=memory.available / GIB,
        unified=True,
        cores=_cores(),
    )


def _processor_name() -> str:
    """From /proc/cpuinfo: platform.processor() would start a process."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def list_gpus() -> dict[str, Machine]:
    """The NVIDIA GPUs that are visible, each by the name that CUDA_VISIBLE_DEVICES has, or would have, for it.

    Indices are NVML's, which are CUDA's with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    nvml = _load_nvml()
    if nvml is None:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        count = ctypes.c_uint()
        names = list(map(str, range(count.value))) if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else []
    else:
        names = []
        for name in (part.strip() for part in visible.split(",")):
            if name in {"", "-1"}:  # CUDA sees nothing from the first invalid one on
                break
            names.append(name)
    found = {name: _read_gpu(nvml, name) for name in dict.fromkeys(names)}
    return {name: machine for name, machine in found.items() if machine}


def _detect_nvidia() -> Machine | None:
    """The GPU that CUDA_VISIBLE_DEVICES puts first."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = visible.split(",")[0].strip() if visible is not None else "0"
    nvml = _load_nvml() if first not in {"", "-1"} else None
    return _read_gpu(nvml, first) if nvml else None


def _load_nvml() -> ctypes.CDLL | None:
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        return nvml if nvml.nvmlInit_v2() == 0 else None
    except OSError:
        return None


def _read_gpu(nvml: ctypes.CDLL, gpu: str) -> Machine | None:
    """A GPU by its index or its UUID (of another name, the first). GB10 reports no memory: its pool is the machine's."""
    handle = ctypes.c_void_p()
    by_uuid = not gpu.isdigit() and nvml.nvmlDeviceGetHandleByUUID(gpu.encode(), ctypes.byref(handle)) == 0
    index = int(gpu) if gpu.isdigit() else 0
    if not by_uuid and nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    name = ctypes.create_string_buffer(96)
    nvml.nvmlDeviceGetName(handle, name, len(name))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    memory = _NvmlMemory()
    unified = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0 or memory.total == 0
    system = psutil.virtual_memory()
    total, free = (system.total, system.available) if unified else (memory.total, memory.free)
    return Machine(
        kind="cuda",
        device=name.value.decode(errors="replace") or "NVIDIA GPU",
        memory_gib=total / GIB,
        available_gib=free / GIB,
        capability=(major.value, minor.value),
        unified=unified,
        cores=_cores(),
    )


def _detect_amd() -> Machine | None:
    for card in sorted(Path("/sys/class/drm").glob("card[0-9]*/device")):
        try:
            if (card / "vendor").read_text().strip() != "0x1002" or not Path("/dev/kfd").exists():
                continue
            total, used = (int((card / f"mem_info_vram_{which}").read_text()) for which in ("total", "used"))
            name = (card / "product_name").read_text().strip() if (card / "product_name").exists() else "AMD GPU"
        except (OSError, ValueError):
            continue
        return Machine(
            kind="rocm", device=name, memory_gib=total / GIB, available_gib=(total - used) / GIB, cores=_cores()
        )
    return None


def _detect_apple() -> Machine | None:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return _processor("mps", "Apple GPU")
    return None
