"""The pages that CRIU has written of one page map.

Source: criu/pagemap.c: a pages file has them one after another, in the order of the page map.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.precopy.runs import WORDS, Pages, Rows, batches
from ckpt.model.checkpoint import AddressRun
from ckpt.units import PAGE_BYTES


def dumped_pages(pages_file: Path, runs: Sequence[AddressRun]) -> Iterator[tuple[Pages, Rows]]:
    """The pages in the file's order, with what is in them; `runs` are those that its page map tells.

    Raises:
        ObjectCorrupt: the file is shorter than its page map says.
        OsRefused: it cannot be read.
    """
    numbers = np.array([(run.page, run.count) for run in runs], np.int64)
    total = int(numbers[:, 1].sum())
    try:
        with open(pages_file, "rb") as stream:
            size = stream.seek(0, 2)
            if size < total * PAGE_BYTES:
                raise ObjectCorrupt(
                    kind="image file",
                    name=pages_file.name,
                    reason=f"it has {size} bytes, and its page map names {total} pages",
                )
            mapped = mmap.mmap(stream.fileno(), total * PAGE_BYTES, prot=mmap.PROT_READ)
    except OSError as error:
        raise OsRefused(
            operation="read", subject=str(pages_file), reason=error.strerror or str(error)
        ) from error
    rows = np.frombuffer(mapped, np.uint64).reshape(-1, WORDS)
    begin = 0
    for pages in batches(numbers):
        yield pages, rows[begin : begin + len(pages)]
        begin += len(pages)
