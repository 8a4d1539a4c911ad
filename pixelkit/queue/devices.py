"""What a runner can give to jobs: GPUs, each to so many jobs at once, or the processor; and which job fits where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelkit.hardware import detect_machine, list_gpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.queue.attempts import Taken
    from pixelkit.queue.book import Job


@dataclass(frozen=True, kw_only=True)
class Device:
    """`slots` jobs may run on it at once. `is_gpu`: it is one and the same for all runners of this machine."""

    name: str
    slots: int
    free_gib: float
    total_gib: float
    is_gpu: bool


def list_devices(workers: int | None) -> tuple[Device, ...]:
    """The visible GPUs, else what this machine trains on. `workers`: jobs at once, spread over all; default: one on each."""
    gpus = list_gpus()
    if not gpus:
        machine = detect_machine()
        return (
            Device(
                name=machine.kind,
                slots=workers or 1,
                free_gib=machine.available_gib,
                total_gib=machine.memory_gib,
                is_gpu=False,
            ),
        )
    each, more = divmod(workers or len(gpus), len(gpus))
    found = (
        Device(
            name=name,
            slots=each + (number < more),
            free_gib=machine.available_gib,
            total_gib=machine.memory_gib,
            is_gpu=True,
        )
        for number, (name, machine) in enumerate(gpus.items())
    )
    return tuple(device for device in found if device.slots)


def choose_devices(job: Job, taken: Sequence[Taken], devices: Sequence[Device], runner: str) -> tuple[str, ...] | None:
    """Where a job can run now. None: nowhere, let others go first; (): it needs several GPUs at once and has to wait for them.

    A GPU's slots and memory are shared with all other runners; of the processor, each runner has slots of its own.
    """
    wanted = job.gpus if devices[0].is_gpu else 1
    if wanted > len(devices):
        return None
    there = {
        device.name: [one for one in taken if device.name in one.devices and (device.is_gpu or one.runner == runner)]
        for device in devices
    }
    roomy = [device for device in devices if _has_memory(device, job, there[device.name])]
    if len(roomy) < wanted:
        return None
    free = [device for device in roomy if len(there[device.name]) < device.slots]
    free.sort(key=lambda device: len(there[device.name]))
    if len(free) < wanted:
        return () if wanted > 1 else None
    return tuple(device.name for device in free[:wanted])


def _has_memory(device: Device, job: Job, there: Sequence[Taken]) -> bool:
    """Whether what the job takes is free now, and is not what a job that has just begun will take.

    What was asked for is a condition. What a plan expects is an estimate, and never keeps a job from an empty device.
    """
    promised = sum(one.memory_gib or 0 for one in there)
    if job.memory_gib is not None:
        return job.memory_gib <= min(device.free_gib, device.total_gib - promised)
    if job.planned_gib is None or job.planned_gib > device.total_gib:
        return True
    return job.planned_gib <= min(device.free_gib, device.total_gib - promised)


def make_environment(devices: Sequence[Device]) -> dict[str, str]:
    """What makes a job's process see these devices alone."""
    if not devices or not devices[0].is_gpu:
        return {}
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(device.name for device in devices),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
