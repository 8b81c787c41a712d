"""Files that are written through memory: their times do not tell when they changed.

Source: proc_pid_maps(5); mm/memory.c, fault_dirty_shared_page(): a file gets a new time when a page of it becomes
writable, and not at each write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from ckpt.units import Pid

_WRITABLE: Final = (b"rw-s", b"-w-s", b"rwxs", b"-wxs")


def written_by_map(pids: Iterable[Pid]) -> frozenset[tuple[int, int]]:
    """Device and inode of the files that these processes map so that they can write to them."""
    found: set[tuple[int, int]] = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/maps", "rb") as stream:
            for line in stream:
                addresses, permissions, *_ = line.split(None, 2)
                if permissions in _WRITABLE:
                    start, _, end = addresses.decode().partition("-")
                    # The kernel names map_files without leading zeros.
                    with suppress(OSError):
                        status = os.stat(f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}")
                        found.add((status.st_dev, status.st_ino))
    return frozenset(found)
