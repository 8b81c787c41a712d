"""The memory of this host's cgroups as the port `Memory`, and where the memory of a process is accounted.

Source: Documentation/admin-guide/cgroup-v2.rst, "memory.reclaim"; cgroup-v1/memory.rst, "5.1 force_empty".
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final

from ckpt.errors import FeatureMissing, OsRefused, Usage, WrongState
from ckpt.host import cgroups
from ckpt.host.guard import controls
from ckpt.model.guard_steps import (
    MemoryReading,
)
from ckpt.units import ByteCount, Nanoseconds, Pid, human_bytes

LEAST_LIMIT: Final = ByteCount(2 << 20)
"""With 1 MiB the first process of a job is killed at its start, by whatever kernel."""

_LOOK_AGAIN_S: Final = 0.02
_HIGH_SHARE: Final = 15 / 16
_RECLAIM_ROUNDS: Final = 4


def memory_cgroup_of(pid: Pid) -> str | None:
    """The cgroup that accounts the process's memory; None if it has ended, or no hierarchy accounts memory."""
    hierarchy = controls.hierarchy()
    if hierarchy is None or (place := cgroups.cgroup_of(pid, hierarchy)) is None:
        return None
    # Version 2: memory is accounted in the nearest cgroup above for which the controller is on.
    while not controls.has_controls(place) and place.startswith(hierarchy.mountpoint + "/"):
        place = os.path.dirname(place)
    return place


def make_memory_cgroup(name: str, size: ByteCount) -> str:
    """A cgroup with a limit of `size` for a job that does not run; gives its directory, with version 2 the job's only one.

    Args:
        name: Its path below a mount.
        size: Memory, and swap where that is accounted; with version 2 tasks are slowed down a little below.

    Raises:
        Usage: nothing could be started with so little.
        FeatureMissing: this host does not account memory.
        WrongState: the cgroup holds processes.
        OsRefused: the kernel refused.
    """
    if size < LEAST_LIMIT:
        raise Usage(
            problem=f"With a memory limit of {human_bytes(size)} no process can be started.",
            remedy=f"Give it {human_bytes(LEAST_LIMIT)} or more.",
        )
    hierarchy = controls.hierarchy()
    if hierarchy is None:
        raise FeatureMissing(
            feature="a memory controller for cgroups",
            remedy="Switch it on: cgroup_enable=memory on the kernel's command line.",
        )
    cgroup = f"{hierarchy.mountpoint}/{name}"
    try:
        if hierarchy.version == 2:
            cgroups.make(os.path.dirname(cgroup))
            for above in [hierarchy.mountpoint, *reversed(cgroups.with_all_above(os.path.dirname(cgroup)))]:
                cgroups.write(above, "cgroup.subtree_control", "+memory")
        cgroups.make(cgroup)
        if hierarchy.version == 1 and (pids := cgroups.processes_below(cgroup)):
            raise WrongState(
                subject=f"The cgroup {cgroup}",
                state=f"in use by {len(pids)} process(es), the first is {pids[0]}",
                operation="a job of this name",
                needed="to be empty",
                remedy="End them, or choose another --name.",
            )
        controls.set_limit(cgroup, size)
        if hierarchy.version == 2:
            cgroups.write(cgroup, controls.HIGH, str(int(size * _HIGH_SHARE)))
    except OSError as error:
        raise OsRefused(
            operation=f"set a memory limit of {size} bytes for",
            subject=cgroup,
            reason=error.strerror or str(error),
        ) from error
    return cgroup


def read_memory(cgroup: str) -> MemoryReading | None:
    """The cgroup's memory now; None if it is gone."""
    if not controls.has_controls(cgroup):
        return None
    return MemoryReading(
        charged=ByteCount(controls.charged(cgroup)),
        droppable=ByteCount(controls.droppable(cgroup)),
        limit=ByteCount(controls.limit_of(cgroup)),
        under_oom=controls.is_under_oom(cgroup),
    )


class HostMemory:
    """The memory of this host's cgroups. Fits the port `Memory`."""

    def read(self, cgroup: str) -> MemoryReading | None:
        """The cgroup's memory now; None if it is gone."""
        return read_memory(cgroup)

    def available(self) -> ByteCount:
        """What this host has to give: MemAvailable of /proc/meminfo."""
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return ByteCount(int(line.split()[1]) * 1024)
        return ByteCount(0)

    def reclaim(self, cgroup: str, share: float) -> None:
        """Let the kernel drop and swap out what it can, until the usage is below this share of the limit.

        Raises:
            FeatureMissing: this kernel does not do it on demand.
            OsRefused: the kernel refused.
        """
        name = "memory.reclaim" if controls.is_version_2(cgroup) else "memory.force_empty"
        if not os.path.exists(f"{cgroup}/{name}"):
            raise FeatureMissing(
                feature=f"{name} in {cgroup}",
                remedy="Linux 5.19 or newer has it; leave the step 'reclaim' out.",
            )
        for _ in range(_RECLAIM_ROUNDS):
            reading = read_memory(cgroup)
            wanted = 0 if reading is None else reading.charged - int(share * reading.limit)
            if wanted <= 0:
                return
            before = 0 if reading is None else reading.charged
            try:
                # Version 1 takes no amount: it drops all that it can.
                cgroups.write(cgroup, name, str(wanted) if name == "memory.reclaim" else "0")
            except OSError as error:
                # EAGAIN: less could be reclaimed than was asked for.
                if error.errno not in (errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOENT):
                    raise OsRefused(
                        operation="reclaim memory of", subject=cgroup, reason=error.strerror or str(error)
                    ) from error
            if controls.charged(cgroup) >= before:
                return

    def raise_limit(self, cgroup: str, by: ByteCount, up_to: ByteCount) -> ByteCount:
        """Raise the limit by that much, never above `up_to`; gives what it is now.

        Raises:
            WrongState: it is as high already.
            OsRefused: the kernel refused.
        """
        former = controls.limit_of(cgroup)
        wanted = min(former + by, up_to)
        if not former or wanted <= former:
            raise WrongState(
                subject=f"The limit of {cgroup}",
                state=f"{former} bytes",
                operation="raising it",
                needed=f"below {up_to}",
                remedy="Give the step 'raise' a higher up-to.",
            )
        try:
            controls.raise_to(cgroup, wanted)
            _raise_high(cgroup, former, wanted)
        except OSError as error:
            raise OsRefused(
                operation="raise the limit of", subject=cgroup, reason=error.strerror or str(error)
            ) from error
        return ByteCount(wanted)

    def await_below(self, cgroup: str, share: float, patience: Nanoseconds) -> MemoryReading | None:
        """Wait until the usage is below this share of the limit, at most so long; gives the last reading."""
        deadline = time.monotonic_ns() + patience
        while True:
            reading = read_memory(cgroup)
            if reading is None or reading.is_below(share) or time.monotonic_ns() >= deadline:
                return reading
            # Neither version tells of a usage that falls.
            time.sleep(_LOOK_AGAIN_S)

    def keep(self, cgroup: str, limit: ByteCount) -> None:
        """Have the cgroup there for a job that comes back, with this limit where it had to be made."""
        if not limit or os.path.isdir(cgroup):
            return
        try:
            cgroups.make(cgroup)
            if controls.has_controls(cgroup):
                controls.set_limit(cgroup, limit)
        except OSError as error:
            raise OsRefused(
                operation="make the cgroup", subject=cgroup, reason=error.strerror or str(error)
            ) from error


def _raise_high(cgroup: str, former: int, wanted: int) -> None:
    """Move the mark at which version 2 slows tasks down along with the limit above it."""
    high = cgroups.read_or_empty(cgroup, controls.HIGH)
    if high.isdecimal() and int(high) < former:
        cgroups.write(cgroup, controls.HIGH, str(int(high) * wanted // former))
