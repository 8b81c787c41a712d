"""The file locks of the machine, read aside while the workload stands still.

Rule: opening /proc/locks waits for an RCU grace period (8 to 23 ms were seen), which needs no processor: so a
thread waits for it while CRIU dumps, and the freeze is none the longer.
Source: locks_start() in the kernel's fs/locks.c (percpu_down_write()); proc_locks(5).
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.units import Pid

_FIELDS_MIN: Final = 8
NO_PROCESS: Final = Pid(-1)
"""The holder of a lock that belongs to an open file description (OFD), not to a process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLock:
    """A lock that is held: `line` is its kind, strictness, access and range, as the kernel writes them."""

    holder: Pid
    device: int
    inode: int
    line: str

    @property
    def is_lease(self) -> bool:
        """Whether opening the file would break it: it is a lease, fcntl(2)."""
        return self.line.startswith("LEASE")


def start_reading() -> Future[tuple[FileLock, ...]]:
    """Begin to read all locks that this PID namespace shows; the answer never fails, but may be empty."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ckpt-locks")
    answer = pool.submit(_read)
    pool.shutdown(wait=False)
    return answer


def parse_locks(text: str) -> tuple[FileLock, ...]:
    """The locks of the text of /proc/locks, without those that are only waited for."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < _FIELDS_MIN or fields[1] == "->":
            continue
        # "1: POSIX  ADVISORY  WRITE 4242 fd:00:131 0 EOF"; both device numbers are hexadecimal.
        major, minor, inode = fields[5].split(":")
        found.append(
            FileLock(
                holder=Pid(int(fields[4])),
                device=os.makedev(int(major, 16), int(minor, 16)),
                inode=int(inode),
                line=" ".join((*fields[1:4], *fields[6:8])),
            )
        )
    return tuple(found)


def _read() -> tuple[FileLock, ...]:
    with suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as stream:
        return parse_locks(stream.read())
    return ()
