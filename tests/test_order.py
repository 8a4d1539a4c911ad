"""The order of batches and what is drawn for each: functions of seed, epoch and item, whoever draws."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pixelkit.engines.kohya import order  # noqa: E402


class Captions:
    """Draws as sd-scripts' data sets do: buckets shuffled with a global seed, captions from the global state."""

    def __init__(self) -> None:
        self.epoch = self.step = 0

    def __len__(self) -> int:
        return 10

    def set_current_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        random.seed(epoch)

    def set_current_step(self, step: int) -> None:
        self.step = step

    def __getitem__(self, item: int) -> tuple[int, int, int, float, float]:
        return item, self.epoch, self.step, random.random(), float(torch.rand(()))


def make_loader(epoch: Any, *, workers: int = 0, seed: int = 5, processes: int = 1) -> Any:
    def collate(batch: list[Any]) -> Any:
        return batch[0]

    collate.current_epoch = epoch  # type: ignore[attr-defined]
    loader = torch.utils.data.DataLoader(Captions(), shuffle=True, collate_fn=collate, num_workers=workers)
    assert order.is_shuffling(loader)
    return order.order_batches(loader, seed=seed, processes=processes, accumulation=2)


def read_epoch(loader: Any, epoch: Any, number: int) -> list[Any]:
    epoch.value = number
    return list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_any_epoch_by_itself(workers: int) -> None:
    epoch = SimpleNamespace(value=0)
    loader = make_loader(epoch, workers=workers)
    epochs = [read_epoch(loader, epoch, number) for number in (1, 2, 3)]
    assert all(sorted(item for item, *_ in batches) == list(range(10)) for batches in epochs)
    assert len({tuple(item for item, *_ in batches) for batches in epochs}) == 3
    assert len({batch[3] for batches in epochs for batch in batches}) == 30
    random.seed(8)
    torch.manual_seed(8)
    assert read_epoch(make_loader(epoch), epoch, 3) == epochs[2]
    assert read_epoch(make_loader(epoch, seed=6), epoch, 3) != epochs[2]


def test_the_global_state_is_left_alone() -> None:
    epoch = SimpleNamespace(value=0)
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(torch.rand(()))
    random.seed(1)
    torch.manual_seed(1)
    read_epoch(make_loader(epoch), epoch, 1)
    assert (random.random(), float(torch.rand(()))) == expected


def test_epoch_and_step_are_told_before_the_item_is_read() -> None:
    epoch = SimpleNamespace(value=0)
    batches = read_epoch(make_loader(epoch), epoch, 2)
    assert {number for _, number, *_ in batches} == {2}
    assert [step for _, _, step, *_ in batches] == [5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    steps = [step for _, _, step, *_ in read_epoch(make_loader(epoch, processes=2), epoch, 2)]
    assert steps == [3, 3, 3, 3, 4, 4, 4, 4, 5, 5]


def test_only_the_training_data_is_ordered() -> None:
    collate = SimpleNamespace(current_epoch=1)
    assert not order.is_shuffling(torch.utils.data.DataLoader([1, 2], shuffle=False, collate_fn=lambda batch: batch))
    assert not order.is_shuffling(torch.utils.data.DataLoader([1, 2], shuffle=True))
    assert not order.is_shuffling(collate)
