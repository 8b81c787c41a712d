"""The door to libc for the memory of other tasks, and for comparing one's own.

Rules: addresses are numbers, and whoever gives them answers for them. Nothing is raised for what a task does meanwhile.
Source: process_vm_readv(2), memcmp(3).
"""

from __future__ import annotations

import ctypes
import errno

import numpy as np

from ckpt.host.precopy.runs import Mask, Pages, Rows, Runs, runs_of
from ckpt.units import PAGE_BYTES, Pid

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_readv.restype = ctypes.c_ssize_t
_memcmp = _libc.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def differing(ours: Rows, theirs: Rows) -> Mask:
    """For each row, whether it is another one."""
    # Most are the same, and nothing tells that as fast.
    if _is_plain(ours, theirs) and not _memcmp(ours.ctypes.data, theirs.ctypes.data, ours.nbytes):
        return np.zeros(len(ours), np.bool_)
    found: Mask = (ours != theirs).any(axis=1)
    return found


def _is_plain(ours: Rows, theirs: Rows) -> bool:
    return bool(ours.flags.c_contiguous and theirs.flags.c_contiguous and ours.nbytes == theirs.nbytes)


def read_memory(pid: Pid, pages: Pages, into: Rows) -> Pages:
    """Bring pages of a process's memory into the first rows, in their order; gives the places of those that were read.

    One that cannot be read is left out, with what follows it in its run: it was unmapped, or is no memory.

    Raises:
        ProcessLookupError: the process has ended.
        PermissionError: it may not be read.
    """
    runs = runs_of(pages)
    ends = np.cumsum(runs[:, 1])
    read: list[Pages] = []
    place = run = 0
    while run < len(runs):
        got = _read(pid, runs[run:], into.ctypes.data + place * PAGE_BYTES)
        read.append(np.arange(place, place + got))
        run = int(np.searchsorted(ends, place + got, side="right"))
        if run < len(runs):
            place = int(ends[run])
        run += 1
    return np.concatenate(read)


def _read(pid: Pid, runs: Runs, to: int) -> int:
    """How many pages were read, from the first one on."""
    remote = runs * PAGE_BYTES
    local = np.array((to, remote[:, 1].sum()), np.int64)
    got = int(_readv(pid, local.ctypes.data, 1, remote.ctypes.data, len(remote), 0))
    number = ctypes.get_errno() if got < 0 else 0
    if number == errno.ESRCH:
        raise ProcessLookupError(number, "process_vm_readv")
    if number == errno.EPERM:
        raise PermissionError(number, "process_vm_readv")
    return max(got, 0) // PAGE_BYTES
