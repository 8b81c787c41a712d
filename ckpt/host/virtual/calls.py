"""The system calls that tell a file's identity: their numbers, and where their arguments stand.

Rule: only the standard library is imported: the supervisor's processes hold this module in their memory.
Source: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h;
include/uapi/linux/audit.h; stat(2), statx(2).
"""

from __future__ import annotations

import platform
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000


class StatCalls(NamedTuple):
    """One architecture's numbers; `stat` and `lstat` are -1 where it has no such calls."""

    audit_arch: int
    stat: int
    lstat: int
    fstat: int
    fstatat: int
    statx: int
    setfsuid: int
    setfsgid: int
    setgroups: int
    capget: int
    seccomp: int
    prctl: int
    close: int


_BY_MACHINE: Final = {
    "x86_64": StatCalls(
        audit_arch=0xC000003E,
        stat=4,
        lstat=6,
        fstat=5,
        fstatat=262,
        statx=332,
        setfsuid=122,
        setfsgid=123,
        setgroups=116,
        capget=125,
        seccomp=317,
        prctl=157,
        close=3,
    ),
    "aarch64": StatCalls(
        audit_arch=0xC00000B7,
        stat=-1,
        lstat=-1,
        fstat=80,
        fstatat=79,
        statx=291,
        setfsuid=151,
        setfsgid=152,
        setgroups=159,
        capget=90,
        seccomp=277,
        prctl=167,
        close=57,
    ),
}


def stat_calls(machine: str = "") -> StatCalls | None:
    """The numbers of an architecture, this machine's by default; None where they are not known."""
    return _BY_MACHINE.get(machine or platform.machine())
