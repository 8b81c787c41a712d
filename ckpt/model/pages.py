"""Pages of memory by their numbers: which of a space follow one another.

Rules: a page's number is its address / PAGE_BYTES. A space is a sequence of such numbers that belongs together: the
private memory of one process, or one piece of shared memory.
"""

from __future__ import annotations

from typing import NamedTuple


class PageRun(NamedTuple):
    """The pages `page` … `page + count - 1` of a space."""

    page: int
    count: int  # type: ignore[assignment]  # it hides tuple.count(), which nobody asks a run for
