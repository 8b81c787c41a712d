"""Work on many things with all processors and little memory.

Hashing, zstd and the disk release the GIL, so threads are enough.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# One more than processors: while it waits for the disk, the others have work.
WORKERS: Final = min(8, (os.cpu_count() or 1) + 1)

IN_FLIGHT: Final = 2 * WORKERS
"""How many pieces of work may be waiting or running; each may hold a chunk."""


def each(items: Iterable[_Item], work: Callable[[_Item], _Result]) -> Iterator[_Result]:
    """The results of `work` on all items, in their order; its first error ends it."""
    running: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(WORKERS, "store")
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= IN_FLIGHT:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
