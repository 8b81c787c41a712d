"""Pages that follow one another, as arrays: millions of them, where a value for each would take too long.

Rules: pages are int64. Runs are an array of two columns: the first page, and how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES

Pages = npt.NDArray[np.int64]
Runs = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.uint64]
"""The content of pages: a row for each."""

WORDS: Final = PAGE_BYTES // 8
"""How many numbers make a row."""

BATCH_PAGES: Final = 128
"""As many are read and compared at once: their bytes stay in the processor's second cache."""


def no_runs() -> Runs:
    """None."""
    return np.empty((0, 2), np.int64)


def runs_of(pages: Pages) -> Runs:
    """The runs that these pages make, in their order."""
    begins = np.concatenate(([0], np.flatnonzero(np.diff(pages) != 1) + 1))
    return np.column_stack((pages[begins], np.diff(begins, append=len(pages))))


def as_values(runs: Runs) -> Sequence[PageRun]:
    """The same runs as values."""
    return [PageRun(page, count) for page, count in runs.tolist()]


def batches(runs: Runs) -> Iterator[Pages]:
    """All pages of the runs in their order, at most BATCH_PAGES at once."""
    ends = np.cumsum(runs[:, 1])
    total = int(ends[-1]) if len(ends) else 0
    # What is added to a page's place among all to make it its number.
    shifts = runs[:, 0] - ends + runs[:, 1]
    for low in range(0, total, BATCH_PAGES):
        places = np.arange(low, min(low + BATCH_PAGES, total))
        yield places + shifts[np.searchsorted(ends, places, side="right")]
