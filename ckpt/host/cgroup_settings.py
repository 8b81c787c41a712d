"""Record the cgroups that belong to a workload alone, with their settings; make them again at restore.

A cgroup is *dedicated* if every process in it and below belongs to the workload. The root cgroup never is, nor
is a cgroup that ckpt made for the time of a dump.

Rules:
- Only what differs from a new cgroup's value is recorded, in the order in which it must be written back.
- A cgroup that exists at restore is somebody's: it is used as it is.
- A setting that this host refuses is told, not fatal: a workload with another limit is better than none.
Source: Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ckpt.host import cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.host.gathering import is_transient
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.units import Pid

_UNLIMITED_V1 = "9223372036854771712"  # PAGE_COUNTER_MAX pages of 4 KiB

# File and what a new cgroup has in it, in the order of writing: what others depend on comes first. None: what
# a new cgroup has depends on the one above it, so it is always recorded.
_SETTINGS_V2: tuple[tuple[str, str | None], ...] = (
    ("cgroup.type", "domain"),
    ("cgroup.max.depth", "max"),
    ("cgroup.max.descendants", "max"),
    ("cpuset.mems", ""),
    ("cpuset.cpus", ""),
    ("cpu.idle", "0"),
    ("cpu.weight", "100"),
    ("cpu.max", "max 100000"),
    ("cpu.max.burst", "0"),
    ("cpu.uclamp.min", "0.00"),
    ("cpu.uclamp.max", "max"),
    ("memory.oom.group", "0"),
    ("memory.min", "0"),
    ("memory.low", "0"),
    ("memory.high", "max"),
    ("memory.max", "max"),
    ("memory.swap.high", "max"),
    ("memory.swap.max", "max"),
    ("memory.zswap.max", "max"),
    ("pids.max", "max"),
    ("io.weight", "default 100"),
    ("io.bfq.weight", "default 100"),
    ("io.latency", ""),
    ("io.max", ""),
    ("rdma.max", ""),
    # Last: a cgroup with controllers for those below it takes no processes.
    ("cgroup.subtree_control", ""),
)
_SETTINGS_V1: tuple[tuple[str, str | None], ...] = (
    ("memory.use_hierarchy", "1"),
    ("memory.limit_in_bytes", _UNLIMITED_V1),
    # Refused while it is below the limit of memory alone.
    ("memory.memsw.limit_in_bytes", _UNLIMITED_V1),
    ("memory.soft_limit_in_bytes", _UNLIMITED_V1),
    ("memory.swappiness", None),
    ("cpu.shares", "1024"),
    ("cpu.cfs_period_us", "100000"),
    ("cpu.cfs_quota_us", "-1"),
    # Without these two a version-1 cpuset takes no process.
    ("cpuset.cpus", None),
    ("cpuset.mems", None),
    ("cpuset.cpu_exclusive", "0"),
    ("cpuset.mem_exclusive", "0"),
    ("pids.max", "max"),
    ("blkio.weight", "500"),
    ("blkio.bfq.weight", "100"),
    ("blkio.throttle.read_bps_device", ""),
    ("blkio.throttle.write_bps_device", ""),
    ("blkio.throttle.read_iops_device", ""),
    ("blkio.throttle.write_iops_device", ""),
    ("net_cls.classid", "0"),
    ("devices.list", "a *:* rwm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCgroups:
    """What create_cgroups() did: the directories that it made, parents first, and what this host refused."""

    made: tuple[str, ...]
    problems: tuple[str, ...]


def record_cgroups(pids: Collection[Pid]) -> tuple[CgroupRecord, ...]:
    """The dedicated cgroups of these processes in every hierarchy, parents before what is below them."""
    workload = set(pids)
    records: list[CgroupRecord] = []
    for hierarchy in cgroups.hierarchies():
        places = {place for pid in workload if (place := cgroups.cgroup_of(pid, hierarchy)) is not None}
        tops = {top for place in places if (top := _topmost_dedicated(place, workload)) is not None}
        for top in sorted(tops):
            records += [_record(each, hierarchy) for each in sorted(cgroups.with_all_below(top))]
    return tuple(records)


def create_cgroups(records: Sequence[CgroupRecord], *, note: Callable[[str], None]) -> MadeCgroups:
    """Make the recorded cgroups that are missing, with their settings.

    Args:
        records: What record_cgroups() gave, perhaps with other paths.
        note: Called with the directory of each cgroup before it is made.
    """
    made: list[str] = []
    problems: list[str] = []
    mounted = {each.name: each for each in cgroups.hierarchies()}
    for record in sorted(records, key=lambda record: (record.hierarchy, record.path.count("/"))):
        hierarchy = mounted.get(record.hierarchy)
        if hierarchy is None:
            problems.append(f"this host has no cgroup hierarchy {record.hierarchy} for {record.path}")
            continue
        directory = directory_of(record, hierarchy)
        if os.path.isdir(directory):
            continue
        note(directory)
        cgroups.make(directory)
        made.append(directory)
        for setting in record.settings:
            problem = _apply(directory, hierarchy, setting)
            if problem:
                problems.append(f"{directory}: {setting.name} = {setting.value!r}: {problem}")
    return MadeCgroups(made=tuple(made), problems=tuple(problems))


def directory_of(record: CgroupRecord, hierarchy: Hierarchy) -> str:
    """Where the recorded cgroup is, or would be, on this host."""
    return os.path.normpath(f"{hierarchy.mountpoint}/{record.path}")


def _topmost_dedicated(place: str, workload: set[Pid]) -> str | None:
    found = None
    for each in cgroups.with_all_above(place):
        if is_transient(each) or not _holds_only(each, workload):
            break
        found = each
    return found


def _holds_only(cgroup: str, workload: set[Pid]) -> bool:
    try:
        return set(cgroups.processes_below(cgroup)) <= workload
    except OSError:  # a threaded cgroup: its domain decides
        return False


def _record(cgroup: str, hierarchy: Hierarchy) -> CgroupRecord:
    known = _SETTINGS_V2 if hierarchy.version == 2 else _SETTINGS_V1
    settings = [
        CgroupSetting(name=name, value=value)
        for name, default in known
        if (value := cgroups.read_or_empty(cgroup, name)) not in (default, "")
    ]
    return CgroupRecord(
        hierarchy=hierarchy.name,
        path=hierarchy.relative(cgroup),
        settings=tuple(settings),
        members=tuple(sorted(cgroups.processes_in(cgroup))),
    )


def _apply(cgroup: str, hierarchy: Hierarchy, setting: CgroupSetting) -> str:
    """Write the setting back; says what was refused, or ""."""
    known = _SETTINGS_V2 if hierarchy.version == 2 else _SETTINGS_V1
    if setting.name not in dict(known):
        return "not a setting that ckpt writes"
    try:
        if hierarchy.version == 2:
            _offer_controller(cgroup, hierarchy, setting.name)
        for name, value in _writes(setting):
            cgroups.write(cgroup, name, value)
    except FileNotFoundError:
        return "this host has no such setting"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _writes(setting: CgroupSetting) -> list[tuple[str, str]]:
    """The writes that bring the value back."""
    lines = setting.value.splitlines()
    match setting.name:
        case "devices.list":  # may be read only; what is not allowed is denied
            return [("devices.deny", "a"), *(("devices.allow", line) for line in lines)]
        case "cgroup.subtree_control":
            return [(setting.name, " ".join(f"+{name}" for name in setting.value.split()))]
        case _:  # a line for a device is a write of its own
            return [(setting.name, line) for line in lines]


def _offer_controller(cgroup: str, hierarchy: Hierarchy, name: str) -> None:
    """Switch the setting's controller on in the cgroups above, from the top, where it is not."""
    controller = name.partition(".")[0]
    if controller == "cgroup" or os.path.exists(f"{cgroup}/{name}"):
        return
    for each in reversed([*cgroups.with_all_above(os.path.dirname(cgroup)), hierarchy.mountpoint]):
        if controller in cgroups.read_or_empty(each, "cgroup.controllers").split():
            cgroups.write(each, "cgroup.subtree_control", f"+{controller}")
