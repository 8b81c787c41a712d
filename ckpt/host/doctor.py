"""What this host can do for ckpt, and what it lacks: probed, never concluded from versions.

Rules: a finding is `missing` only if dumps or restores cannot work without it; what merely narrows them is a
`warning`, with its remedy. What needs root and was not probed for that says so. Nothing of the host is
changed, but for a cgroup and a time namespace that are made and removed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Final

from ckpt.errors import CkptError
from ckpt.host import cgroups
from ckpt.host.criu import engine, locate, netlock
from ckpt.host.criu.outcome import Features
from ckpt.host.freezer_control import control_of
from ckpt.host.launch import init_path
from ckpt.host.timens import TimeNamespace
from ckpt.host.virtual.probing import why_no_layer
from ckpt.model.checks import HostCheck, State
from ckpt.units import SECOND, human_bytes

LIBRARIES: Final = ("click", "msgpack", "protobuf", "pycriu", "zstandard", "paramiko", "rich")
NOFILE_WANTED: Final = 16_384
"""CRIU needs about 1100 descriptors of its own above those of the restored tasks."""

SPACE_WANTED_BYTES: Final = 1 << 30
PIPE_WANTED_BYTES: Final = 1 << 20
_SYSTEM_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_FREEZE_PATIENCE: Final = SECOND

CAPABILITIES: Final = {
    "CAP_SYS_ADMIN": (21, "no dump and no restore works"),
    "CAP_SYS_PTRACE": (19, "no dump works"),
    "CAP_NET_ADMIN": (12, "no open TCP connection can be dumped"),
    "CAP_SYS_RESOURCE": (24, "tasks of other users than root cannot be dumped"),
}
_REQUIRED_CAPABILITIES: Final = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")

_NEEDED_FEATURES: Final = {
    "timens": "restore only with --time host",
    "timerfd": "programs with timerfd cannot be dumped",
    "network_lock_nftables": "open TCP connections cannot be kept",
    "clone3_set_tid": "restores of many tasks race with others for their pids",
}


def examine(state_directory: str) -> tuple[HostCheck, ...]:
    """Look at everything; what fails in an unforeseen way becomes a finding too."""
    looks: tuple[Callable[[], tuple[HostCheck, ...]], ...] = (
        _rights,
        _criu,
        _cgroups,
        _time_namespaces,
        _nftables,
        _init,
        _identities,
        _volumes,
        lambda: (directory_finding("state directory", state_directory, "CKPT_STATE"),),
        _python,
        _limits,
        _run_directory,
        _tools,
    )
    return tuple(finding for look in looks for finding in look())


def directory_finding(name: str, path: str, option: str) -> HostCheck:
    """Whether the directory, or the nearest one above it that exists, can be written, and its space."""
    place = Path(path).absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        return HostCheck(
            name=name,
            state=State.MISSING if os.geteuid() == 0 else State.WARNING,
            detail=f"{path} is not writable for uid {os.geteuid()}",
            remedy=f"Make it writable, run as root, or choose another place with {option}.",
        )
    space = os.statvfs(place)
    free = space.f_bavail * space.f_frsize
    detail = f"{path}, {human_bytes(free)} free"
    if free < SPACE_WANTED_BYTES:
        return HostCheck(
            name=name, state=State.WARNING, detail=detail, remedy=f"Free some space there, or set {option}."
        )
    return HostCheck(name=name, state=State.OK, detail=detail)


def _rights() -> tuple[HostCheck, ...]:
    if os.geteuid() != 0:
        return (
            HostCheck(
                name="root",
                state=State.WARNING,
                detail=f"this is uid {os.geteuid()}, so some things could not be probed",
                remedy="Run 'ckpt doctor' as root; dump, restore and run need root too.",
            ),
        )
    held = _effective_capabilities()
    found = [HostCheck(name="root", state=State.OK, detail="yes")]
    for name, (bit, loss) in CAPABILITIES.items():
        if held >> bit & 1:
            continue
        required = name in _REQUIRED_CAPABILITIES
        found.append(
            HostCheck(
                name="capabilities",
                state=State.MISSING if required else State.WARNING,
                detail=f"no {name}: {loss}",
                remedy=f"Give ckpt {name} (a container may have dropped it).",
            )
        )
    return tuple(found)


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _criu() -> tuple[HostCheck, ...]:
    try:
        path = locate.find_criu()
    except CkptError as error:
        return (HostCheck(name="criu", state=State.MISSING, detail=error.message, remedy=error.advice),)
    where = how_found(path, os.environ)
    try:
        version = engine.version(path)
    except CkptError as error:
        return (
            HostCheck(
                name="criu",
                state=State.MISSING,
                detail=f"{path} ({where}) does not work: {error.message}",
                remedy="Run scripts/setup, or set CKPT_CRIU to the path of a working criu.",
            ),
        )
    found = HostCheck(name="criu", state=State.OK, detail=f"{path}, version {version}, {where}")
    return (found, *_features(path))


def how_found(path: Path, environment: Mapping[str, str]) -> str:
    """By which of its rules locate.find_criu() came to this path."""
    if environment.get("CKPT_CRIU"):
        return "named by $CKPT_CRIU"
    placed = {locate.BESIDE: "installed by ckpt host setup", locate.PRIVATE: "installed by scripts/setup"}
    return placed.get(path, "found in PATH")


def _features(path: Path) -> tuple[HostCheck, ...]:
    if os.geteuid() != 0:
        return (
            HostCheck(
                name="criu features",
                state=State.WARNING,
                detail="not probed: CRIU probes the kernel only as root",
                remedy="Run 'ckpt doctor' as root.",
            ),
        )
    return judge_features(engine.features(path))


def judge_features(features: Features) -> tuple[HostCheck, ...]:
    """One finding for all features together, and one for each that is needed and not there."""
    names = [field.name for field in fields(features)]
    there = [name for name in names if getattr(features, name)]
    absent = [name for name in names if name not in there]
    detail = f"{', '.join(there) or 'none'}" + (f"; not: {', '.join(absent)}" if absent else "")
    return (
        HostCheck(
            name="criu features",
            state=State.OK if there else State.MISSING,
            detail=detail,
            remedy="" if there else "CRIU cannot work on this kernel: run scripts/setup for a newer one.",
        ),
        *(
            HostCheck(
                name="criu features",
                state=State.WARNING,
                detail=f"no {name}: {_NEEDED_FEATURES[name]}",
                remedy="Use a newer CRIU (scripts/setup), or a kernel with this feature.",
            )
            for name in absent
            if name in _NEEDED_FEATURES
        ),
    )


def _cgroups() -> tuple[HostCheck, ...]:
    mounted = cgroups.hierarchies()
    versions = {hierarchy.version for hierarchy in mounted}
    layout = {frozenset(): "none", frozenset({1}): "version 1", frozenset({2}): "version 2"}.get(
        frozenset(versions), "hybrid (version 1 and 2)"
    )
    freezing = cgroups.unified() or cgroups.freezer_v1()
    if freezing is None:
        return (
            HostCheck(
                name="cgroups",
                state=State.MISSING,
                detail=f"layout: {layout}; no freezer",
                remedy="Mount cgroup version 2: mount -t cgroup2 none /sys/fs/cgroup",
            ),
        )
    detail = f"layout: {layout}; freezer: {freezing.mountpoint} (version {freezing.version})"
    if os.geteuid() != 0:
        return (HostCheck(name="cgroups", state=State.OK, detail=f"{detail}, not tried: that needs root"),)
    return (_try_freezer(freezing.mountpoint, detail),)


def _try_freezer(mountpoint: str, detail: str) -> HostCheck:
    """Make a cgroup, freeze it, and remove it again."""
    directory = f"{mountpoint}/ckpt-doctor-{os.getpid()}"
    problem = ""
    try:
        cgroups.make(directory)
        control = control_of(directory)
        if control is None:
            problem = "a new cgroup has no freezer"
        else:
            control.freeze(_FREEZE_PATIENCE)
            control.thaw()
    except CkptError as error:
        problem = error.message
    except OSError as error:
        problem = error.strerror or str(error)
    finally:
        with suppress(OSError):
            cgroups.remove(directory)
    if problem:
        return HostCheck(
            name="cgroups",
            state=State.MISSING,
            detail=f"{detail}, which does not work: {problem}",
            remedy="Mount the cgroup file system writable, with its freezer.",
        )
    return HostCheck(name="cgroups", state=State.OK, detail=f"{detail}, works")


def _time_namespaces() -> tuple[HostCheck, ...]:
    try:
        TimeNamespace.of_this_process().close()
    except CkptError as error:
        return (
            HostCheck(
                name="time namespaces",
                state=State.WARNING,
                detail=f"{error.message} Restored clocks will jump to the host's.",
                remedy="Use a kernel with CONFIG_TIME_NS, or restore with --time host.",
            ),
        )
    return (HostCheck(name="time namespaces", state=State.OK, detail="yes"),)


def _nftables() -> tuple[HostCheck, ...]:
    if os.geteuid() != 0:
        return (
            HostCheck(
                name="nftables",
                state=State.WARNING,
                detail="not probed: that needs root",
                remedy="Run 'ckpt doctor' as root.",
            ),
        )
    try:
        tables = netlock.list_tables()
    except CkptError as error:
        return (
            HostCheck(
                name="nftables",
                state=State.WARNING,
                detail=f"{error.message} Open TCP connections cannot be locked during a dump.",
                remedy="Use a kernel with nf_tables.",
            ),
        )
    if tables:
        return (
            HostCheck(
                name="nftables",
                state=State.WARNING,
                detail=f"{len(tables)} lock(s) of CRIU are there: {', '.join(tables[:3])}"
                + (" …" if len(tables) > 3 else ""),
                remedy="They belong to workloads that were dumped with --stop --tcp-established and wait for "
                "their restore; one of another is removed with: nft delete table inet NAME.",
            ),
        )
    return (HostCheck(name="nftables", state=State.OK, detail="reachable, no locks left behind"),)


def _init() -> tuple[HostCheck, ...]:
    try:
        return (HostCheck(name="init of jobs", state=State.OK, detail=init_path()),)
    except CkptError as error:
        return (
            HostCheck(name="init of jobs", state=State.MISSING, detail=error.message, remedy=error.advice),
        )


def _identities() -> tuple[HostCheck, ...]:
    reason = why_no_layer()
    if reason:
        return (
            HostCheck(
                name="identities",
                state=State.WARNING,
                detail=f"what is no longer the same file is shown under another number: {reason}",
                remedy="Restore where the files are the same, or start jobs with 'ckpt run --volume'.",
            ),
        )
    return (
        HostCheck(name="identities", state=State.OK, detail="stat calls of restored tasks can be answered"),
    )


def _volumes() -> tuple[HostCheck, ...]:
    missing = [
        what
        for what, is_there in (
            ("/dev/loop-control", os.path.exists("/dev/loop-control")),
            ("mkfs.ext4", shutil.which("mkfs.ext4", path=_SYSTEM_PATH) is not None),
        )
        if not is_there
    ]
    if missing:
        return (
            HostCheck(
                name="volumes",
                state=State.WARNING,
                detail=f"no 'ckpt run --volume': {' and '.join(missing)} cannot be found",
                remedy="Load the kernel module loop, install e2fsprogs.",
            ),
        )
    return (HostCheck(name="volumes", state=State.OK, detail="loop devices, mkfs.ext4"),)


def _python() -> tuple[HostCheck, ...]:
    versions: list[str] = []
    absent: list[str] = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    detail = f"Python {platform.python_version()}; {', '.join(versions)}"
    if absent:
        return (
            HostCheck(
                name="python",
                state=State.MISSING,
                detail=f"{detail}; not installed: {', '.join(absent)}",
                remedy="Run scripts/setup, which makes the virtual environment whole.",
            ),
        )
    return (HostCheck(name="python", state=State.OK, detail=detail),)


def _limits() -> tuple[HostCheck, ...]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = files == resource.RLIM_INFINITY or files >= NOFILE_WANTED
    pipe = int(Path("/proc/sys/fs/pipe-max-size").read_text(encoding="ascii"))
    return (
        HostCheck(
            name="open files",
            state=State.OK if enough else State.WARNING,
            detail=f"hard limit {'none' if files == resource.RLIM_INFINITY else files}",
            remedy="" if enough else f"Raise it (ulimit -Hn {NOFILE_WANTED}) for workloads with many files.",
        ),
        HostCheck(
            name="pipe size",
            state=State.OK if pipe >= PIPE_WANTED_BYTES else State.WARNING,
            detail=f"fs.pipe-max-size {human_bytes(pipe)}",
            remedy="" if pipe >= PIPE_WANTED_BYTES else "sysctl fs.pipe-max-size=1048576",
        ),
    )


def _run_directory() -> tuple[HostCheck, ...]:
    if filesystem_of("/run") == "tmpfs":
        return (
            HostCheck(name="/run", state=State.OK, detail="a tmpfs: CRIU keeps its kernel features there"),
        )
    return (
        HostCheck(
            name="/run",
            state=State.WARNING,
            detail="no tmpfs, so CRIU probes the kernel at most of its starts (about 30 ms)",
            remedy="Mount a tmpfs at /run, as most systems do.",
        ),
    )


def filesystem_of(path: str) -> str:
    """The type of the file system that is mounted at this very path; "" if none is."""
    found = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            before, _, after = line.partition(" - ")
            if before.split()[4] == path:
                found = after.split()[0]  # the last one mounted is the one that is seen
    return found


def _tools() -> tuple[HostCheck, ...]:
    # CRIU calls these by name for workloads with network or mount namespaces of their own.
    absent = [name for name in ("ip", "tar") if shutil.which(name) is None]
    if absent:
        return (
            HostCheck(
                name="tools",
                state=State.WARNING,
                detail=f"not in PATH: {', '.join(absent)}",
                remedy="Install the packages iproute2 and tar.",
            ),
        )
    return (HostCheck(name="tools", state=State.OK, detail="ip, tar"),)
