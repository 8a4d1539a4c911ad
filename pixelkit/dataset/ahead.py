"""Work on all cores, results in order, and only a few of them in memory."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


class Mapper(Protocol):
    """Does work on many items somewhere."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """As `map`: results in the items' order, a few ahead. Items are taken in the calling thread."""


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """As `map`, in threads (Pillow and numpy release the interpreter for most of their time).

    Items are taken in the calling thread, a few per core ahead of the results. Left early, nothing more is begun.
    """
    cores = os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=cores)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
