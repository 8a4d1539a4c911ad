"""The order of training batches, and what is drawn for each of them, as functions of the seed and the place alone.

Stock sd-scripts draws both from the global random state: a resumed run would see other batches, drop other captions,
and train on other noise, since noise comes from the same state. Here the order of an epoch is the permutation of
(seed, epoch), an item (its captions shuffled or dropped, its flip, its crop) is drawn with numbers seeded by
(seed, epoch, item), and nothing of either touches the global state, which is left to the noise. It makes no
difference whether data loader workers do it, how far they read ahead, or how many batches are skipped.

TU is library/train_util.py at the pinned commit.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Place(NamedTuple):
    """A batch in a run: its `epoch` (from 1), the optimizer steps done before it, its the number of its `item`."""

    epoch: int
    step: int
    item: int


class EpochOrder:
    """A sampler: each iteration is the permutation that belongs to the epoch of that moment.

    `epoch` holds the number of the epoch in `value`, from 1 (sd-scripts counts in shared memory). `batches_per_step`
    are the batches that all processes together consume for an optimizer step.
    """

    def __init__(self, *, length: int, seed: int, epoch: Any, batches_per_step: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = epoch
        self.batches_per_step = batches_per_step

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Place]:
        import torch

        epoch = int(self.epoch.value)
        first = (epoch - 1) * -(-self.length // self.batches_per_step)
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        for place, index in enumerate(torch.randperm(self.length, generator=generator).tolist()):
            yield Place(epoch, first + place // self.batches_per_step, index)


class SeededItems:
    """A data set of sd-scripts, its items taken by `Place`.

    sd-scripts tells a data set the epoch after an item was read (TU:6665): the first item of each epoch comes from the
    buckets as they were shuffled before, which depends on the number of workers. Here it is told before.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> Any:
        with keep_random():
            self.dataset.set_current_epoch(place.epoch)  # shuffles buckets, seeding the global state (TU:1088)
            self.dataset.set_current_step(place.step)
            seed_random(mix_seed(self.seed, place.epoch, place.item))
            return self.dataset[place.item]

    def set_current_epoch(self, epoch: int) -> None:
        """TU:6665 calls this; each item knows its epoch better."""

    def set_current_step(self, step: int) -> None:
        """TU:6666 calls this; each item knows its step better."""


def order_batches(loader: Any, *, seed: int, processes: int, accumulation: int) -> Any:
    """The shuffling DataLoader of a script, in our order. Its worker seeds come from a generator of its own."""
    import torch

    epoch = loader.collate_fn.current_epoch
    length = len(loader.dataset)
    order = EpochOrder(length=length, seed=seed, epoch=epoch, batches_per_step=processes * accumulation)
    items: Any = SeededItems(loader.dataset, seed)
    return torch.utils.data.DataLoader(
        items,
        batch_size=loader.batch_size,
        sampler=order,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        persistent_workers=loader.persistent_workers,
        generator=torch.Generator().manual_seed(mix_seed(seed)),
    )


def is_shuffling(thing: Any) -> bool:
    """Whether `thing` is a DataLoader with `shuffle=True` and sd-scripts' collator: the training data."""
    import torch

    data = torch.utils.data
    return (
        isinstance(thing, data.DataLoader)
        and isinstance(thing.sampler, data.RandomSampler)
        and hasattr(thing.collate_fn, "current_epoch")
    )


def mix_seed(*numbers: int) -> int:
    """63 bits that depend on every one of `numbers`."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_random(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators of the CPU; those of devices are left alone."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - the legacy state is what data sets draw from
    torch.default_generator.manual_seed(seed)


@contextmanager
def keep_random(*, device: Any = None) -> Iterator[None]:
    """Put back the random state of Python, numpy and torch on the CPU, and of a CUDA `device`, at the end."""
    import numpy as np
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_device = torch.cuda.get_rng_state(device) if device is not None and device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
