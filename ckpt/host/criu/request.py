"""What CRIU can be asked, as values; rpc.py turns them into messages.

Rules: an option stands here only if a caller in this repository sets it. Paths are absolute: CRIU changes
its working directory. Durations are nanoseconds.
Source: images/rpc.proto, criu/cr-service.c (setup_opts_from_req).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ckpt.units import SECOND, ByteCount, Nanoseconds, Pid

GHOST_LIMIT_MAX: Final = ByteCount(2**32 - 1)
"""ghost_limit is an uint32 in the RPC."""

_UNQUOTABLE: Final = frozenset('"\\\n\r\0')


class LogLevel(StrEnum):
    """How much CRIU writes to its log; every level includes those before it."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


class CgroupMode(StrEnum):
    """What CRIU does about cgroups. IGNORE: tasks are restored into the cgroup that CRIU runs in."""

    IGNORE = "ignore"
    NONE = "none"
    PROPS = "props"
    SOFT = "soft"
    FULL = "full"
    STRICT = "strict"


@dataclass(frozen=True, slots=True, kw_only=True)
class InheritFd:
    """A file descriptor that a restored task gets in place of the one that CRIU calls `key`.

    `key` is as in "pipe:[12345]" or "tty[8800:2]"; `fd` is the number in this process, and must be among
    the `kept_fds` that CRIU was started with.
    """

    key: str
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinNamespace:
    """A namespace (`kind` as in /proc/PID/ns) that the tree is restored into instead of its own."""

    kind: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupRoot:
    """The cgroup below which CRIU puts those of the images; `controller` "" means all."""

    controller: str = ""
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpRequest:
    """Dump the tree below `pid` into the empty directory `images`.

    The log, its config file and the statistics are written to `work` (default: the images' directory).
    `freeze_cgroup` is the directory of the cgroup that is, or will be by the end of the pre-dump hook,
    frozen: it must be given for a frozen cgroup, or CRIU hangs and ending it destroys the workload.
    With `tcp_established` connections are kept, and locked with nftables for that time; else nothing is locked.
    With `tcp_close` a restore, which must be told the same, brings them back closed. `timeout` bounds CRIU's own work, hooks not
    counted; `seize_timeout_s` is CRIU's own limit for stopping the tasks.

    With `lazy_socket` private anonymous memory stays in the tasks, and after the post-dump hook CRIU serves it on
    that descriptor, one of the `kept_fds`, until the other end is closed.
    """

    pid: Pid
    images: Path
    work: Path | None = None
    leave_running: bool = True
    freeze_cgroup: Path | None = None
    tcp_established: bool = False
    tcp_close: bool = False
    file_locks: bool = False
    link_remap: bool = False
    external_unix: bool = False
    shell_job: bool = False
    ghost_limit_bytes: ByteCount = ByteCount(1 << 20)
    lazy_socket: int | None = None
    externals: tuple[str, ...] = ()
    cgroup_mode: CgroupMode = CgroupMode.IGNORE
    log_level: LogLevel = LogLevel.INFO
    seize_timeout_s: int = 10
    timeout: Nanoseconds = Nanoseconds(600 * SECOND)

    def __post_init__(self) -> None:
        _check_paths(self.images, self.work, self.freeze_cgroup)
        _check_timeout(self.timeout)
        if self.pid <= 1:
            raise ValueError(self.pid)
        if not 0 <= self.ghost_limit_bytes <= GHOST_LIMIT_MAX:
            raise ValueError(self.ghost_limit_bytes)
        if self.seize_timeout_s < 1:
            raise ValueError(self.seize_timeout_s)

    @property
    def work_directory(self) -> Path:
        """Where the log and the statistics are written."""
        return self.work or self.images

    @property
    def log(self) -> Path:
        """The path of CRIU's log."""
        return self.work_directory / "dump.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """Restore the tree in the directory `images`.

    `root` must be a mount point when the tree has its own mount namespace. With `sibling` the restored root
    becomes a child of CRIU's parent, which then gets its exit status; else of CRIU's nearest subreaper.
    `work` and `timeout` are as in DumpRequest. With `lazy` pages that the images lack, or have as lazy ones, are filled
    in by the daemon that listens in the work directory (hearing.py in ckpt.host.lazy).
    """

    images: Path
    work: Path | None = None
    root: Path | None = None
    externals: tuple[str, ...] = ()
    inherit_fds: tuple[InheritFd, ...] = ()
    join_namespaces: tuple[JoinNamespace, ...] = ()
    sibling: bool = False
    tcp_established: bool = False
    tcp_close: bool = False
    file_locks: bool = False
    external_unix: bool = False
    shell_job: bool = False
    cgroup_mode: CgroupMode = CgroupMode.IGNORE
    cgroup_roots: tuple[CgroupRoot, ...] = ()
    lazy: bool = False
    lsm_profile: str = ""
    log_level: LogLevel = LogLevel.INFO
    timeout: Nanoseconds = Nanoseconds(600 * SECOND)

    def __post_init__(self) -> None:
        _check_paths(self.images, self.work, self.root)
        _check_timeout(self.timeout)

    @property
    def work_directory(self) -> Path:
        """Where the log and the statistics are written."""
        return self.work or self.images

    @property
    def log(self) -> Path:
        """The path of CRIU's log."""
        return self.work_directory / "restore.log"


def _check_paths(*paths: Path | None) -> None:
    for path in paths:
        # CRIU's config file (criu/config.c, parse_statement) cannot carry these characters.
        if path is not None and (not path.is_absolute() or _UNQUOTABLE & set(str(path))):
            raise ValueError(path)


def _check_timeout(timeout: Nanoseconds) -> None:
    if timeout <= 0:
        raise ValueError(timeout)
