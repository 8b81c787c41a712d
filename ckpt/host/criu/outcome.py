"""What CRIU answers, as values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckpt.model.checkpoint import DumpStatistics
from ckpt.units import Nanoseconds, Pid


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreStatistics:
    """CRIU's own figures of one restore (stats-restore): durations in nanoseconds, counts of 4 KiB pages."""

    forking_ns: Nanoseconds
    restore_ns: Nanoseconds
    pages_compared: int
    pages_skipped_cow: int
    pages_restored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOutcome:
    """A finished dump of the tree below `pid`."""

    pid: Pid
    statistics: DumpStatistics
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOutcome:
    """A finished restore: `pid` is the root's pid as CRIU's PID namespace sees it."""

    pid: Pid
    statistics: RestoreStatistics
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CriuVersion:
    """What a CRIU says of itself."""

    major: int
    minor: int
    sublevel: int = 0
    git_id: str = ""

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" + (f".{self.sublevel}" if self.sublevel else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What CRIU can do on this kernel, each probed by CRIU itself.

    The names are those of `criu check --feature`, "-" written as "_".
    """

    mem_dirty_track: bool
    uffd: bool
    uffd_noncoop: bool
    pidfd_store: bool
    timens: bool
    timerfd: bool
    network_lock_nftables: bool
    pagemap_scan: bool
    clone3_set_tid: bool
    openat2: bool
    move_mount_set_group: bool
    ns_pid: bool
