"""The memory controls of one cgroup, version 1 and version 2: what is used, the limits, and what is written there.

Rules:
- The version is probed by the files that are there.
- A limit is never set below what is used: version 2 would kill for it, version 1 refuses.
- Only small modules are imported: the guardian holds this one in its memory, and writes back with it.
Source: Documentation/admin-guide/cgroup-v1/memory.rst; Documentation/admin-guide/cgroup-v2.rst, "Memory".
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from typing import Final

from ckpt.host import cgroups

OOM_CONTROL: Final = "memory.oom_control"
HIGH: Final = "memory.high"
MAX: Final = "memory.max"
LIMIT: Final = "memory.limit_in_bytes"
LIMIT_WITH_SWAP: Final = "memory.memsw.limit_in_bytes"

_UNLIMITED_V1: Final = 1 << 62
"""PAGE_COUNTER_MAX is a little below 2^63, and depends on the page size."""

_SETTLE_TRIES: Final = 20
_SETTLE_PAUSE_S: Final = 0.05
_STILL_GROWING: Final = 1 << 20


def hierarchy() -> cgroups.Hierarchy | None:
    """The hierarchy that accounts memory; None if none does."""
    for each in cgroups.hierarchies():
        if "memory" in each.controllers:
            return each
        if (
            each.version == 2
            and "memory" in cgroups.read_or_empty(each.mountpoint, "cgroup.controllers").split()
        ):
            return each
    return None


def is_version_2(cgroup: str) -> bool:
    """Whether the cgroup's memory controls are those of version 2."""
    return os.path.exists(f"{cgroup}/memory.current")


def has_controls(cgroup: str) -> bool:
    """Whether the cgroup has memory controls at all: a version-2 root has none."""
    return is_version_2(cgroup) or os.path.exists(f"{cgroup}/{LIMIT}")


def charged(cgroup: str) -> int:
    """The bytes that are charged to the cgroup and those below; 0 if it is gone."""
    name = "memory.current" if is_version_2(cgroup) else "memory.usage_in_bytes"
    return int(cgroups.read_or_empty(cgroup, name) or 0)


def droppable(cgroup: str) -> int:
    """Of these, what of files nobody used lately: the kernel drops it when it needs to."""
    wanted = "inactive_file" if is_version_2(cgroup) else "total_inactive_file"
    for line in cgroups.read_or_empty(cgroup, "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted:
            return int(value)
    return 0


def is_under_oom(cgroup: str) -> bool:
    """Whether tasks wait for memory because killing is off; version 2 knows no such state."""
    return "under_oom 1" in cgroups.read_or_empty(cgroup, OOM_CONTROL).splitlines()


def limit_of(cgroup: str) -> int:
    """The cgroup's own limit in bytes; 0 for none."""
    text = cgroups.read_or_empty(cgroup, MAX if is_version_2(cgroup) else LIMIT)
    value = int(text) if text.isdecimal() else 0
    return 0 if value >= _UNLIMITED_V1 else value


def limit_names(cgroup: str) -> tuple[str, ...]:
    """The files that hold the limit, in the order in which it is raised."""
    if is_version_2(cgroup):
        return (MAX,)
    # The limit of memory is at most that of memory and swap, where swap is accounted.
    with_swap = cgroups.read_or_empty(cgroup, LIMIT_WITH_SWAP)
    return (LIMIT_WITH_SWAP, LIMIT) if with_swap else (LIMIT,)


def raise_to(cgroup: str, size: int) -> None:
    """Let the limit be at least `size`; one that is higher stays.

    Raises:
        OSError: as the kernel says.
    """
    for name in limit_names(cgroup):
        text = cgroups.read(cgroup, name)
        if text.isdecimal() and int(text) < size:
            cgroups.write(cgroup, name, str(size))


def set_limit(cgroup: str, size: int) -> None:
    """Set the limit of a cgroup, up or down.

    Raises:
        OSError: as the kernel says; EBUSY where more is used.
    """
    names = limit_names(cgroup)
    for name in names if size > limit_of(cgroup) > 0 else reversed(names):
        cgroups.write(cgroup, name, str(size))


def with_limits(cgroup: str) -> Iterator[str]:
    """The cgroup and those above it that have a limit, the nearest first."""
    for each in cgroups.with_all_above(cgroup):
        if has_controls(each) and limit_of(each):
            yield each


def is_as(name: str, text: str, value: str) -> bool:
    """Whether a control whose text this is has the value already."""
    return name == OOM_CONTROL and f"oom_kill_disable {value}" in text.splitlines()


def write_back(cgroup: str, name: str, value: str, *, patient: bool = True) -> str:
    """Give a control its former value, unless that could kill; says why it was not given, or "".

    If `patient`, a limit waits a moment for what has just ended to be gone.
    """
    for _ in range(_SETTLE_TRIES if patient else 1):
        try:
            if not _would_kill(cgroup, name, value):
                cgroups.write(cgroup, name, value)
                return ""
        except FileNotFoundError:
            return ""
        except OSError as error:
            if error.errno == errno.ENODEV:
                return ""
            if error.errno not in (errno.EBUSY, errno.EINVAL):
                return error.strerror or str(error)
        time.sleep(_SETTLE_PAUSE_S)
    return f"more than {value} bytes are in use"


def _would_kill(cgroup: str, name: str, value: str) -> bool:
    # Version 1 refuses to go below what is used; version 2 does it, and who grows meanwhile is killed.
    return name == MAX and value.isdecimal() and charged(cgroup) + _STILL_GROWING > int(value)
