"""The cgroup hierarchies of this host: where they are mounted, who is in them, their files.

Version 1, version 2 and both at once ("hybrid"). A cgroup is named by the absolute path of its directory.

Rules:
- The first member of a cgroup that is read is not the last word: processes come and go while it runs.
- A cgroup that vanished meanwhile has no members and no cgroups below; that is no error.
- Only the standard library is imported: the guardian holds this module in its memory.
Source: cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/; proc_pid_mountinfo(5).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ckpt.units import Pid

UNIFIED = "unified"
"""The name of the version-2 hierarchy; the others are named by their controllers, as /proc/PID/cgroup does."""

# Options of a version-1 mount that are no controllers (cgroup_show_options() in kernel/cgroup/cgroup-v1.c).
_FLAGS_V1 = frozenset(
    ("rw", "ro", "none", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods")
)
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted hierarchy.

    `name` is "unified" or the version-1 controllers; `root` is the cgroup that the mount shows at its top,
    as /proc/PID/cgroup would call it.
    """

    name: str
    mountpoint: str
    root: str

    @property
    def version(self) -> int:
        """2 for the unified hierarchy, else 1."""
        return 2 if self.name == UNIFIED else 1

    @property
    def controllers(self) -> frozenset[str]:
        """Its version-1 controllers."""
        return frozenset(self.name.split(",")) if self.version == 1 else frozenset()

    def relative(self, cgroup: str) -> str:
        """The cgroup's path below the mount, with a leading slash."""
        return "/" + os.path.relpath(cgroup, self.mountpoint).removeprefix(".").removeprefix("/")

    def directory(self, path: str) -> str:
        """The directory of a cgroup that /proc/PID/cgroup calls `path`; the mount itself if it is outside."""
        inside = path if self.root == "/" else path.removeprefix(self.root)
        if inside == path and self.root != "/":
            return self.mountpoint
        return os.path.normpath(self.mountpoint + "/" + inside)


def hierarchies() -> tuple[Hierarchy, ...]:
    """The mounted hierarchies in the order in which a relative path is looked up: v2, v1 freezer, others."""
    found: dict[str, Hierarchy] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            before, _, after = line.partition(" - ")
            filesystem, _source, options = after.split()[:3]
            if filesystem not in ("cgroup", "cgroup2"):
                continue
            root, mountpoint = (_unescape(field) for field in before.split()[3:5])
            name = UNIFIED if filesystem == "cgroup2" else _controllers(options)
            # The first mount of a hierarchy serves as well as any other.
            found.setdefault(name, Hierarchy(name=name, mountpoint=mountpoint, root=root))
    return tuple(
        sorted(found.values(), key=lambda each: (each.version == 1, "freezer" not in each.controllers))
    )


def hierarchy_of(cgroup: str) -> Hierarchy | None:
    """The hierarchy that the directory belongs to; None if it is no cgroup."""
    for hierarchy in hierarchies():
        if (cgroup + "/").startswith(hierarchy.mountpoint + "/"):
            return hierarchy if os.path.exists(cgroup + "/cgroup.procs") else None
    return None


def unified() -> Hierarchy | None:
    """The version-2 hierarchy, if it is mounted."""
    return next((each for each in hierarchies() if each.version == 2), None)


def freezer_v1() -> Hierarchy | None:
    """The version-1 freezer's hierarchy, if it is mounted."""
    return next((each for each in hierarchies() if "freezer" in each.controllers), None)


def find(name: str) -> str | None:
    """The directory of the cgroup that the user calls `name`: absolute, or relative to one of the mounts.

    A path as /proc/PID/cgroup shows it, with its leading slash, counts as relative.
    """
    mounts = hierarchies()
    candidates = [name] if name.startswith("/") else []
    candidates += [each.mountpoint + "/" + name.lstrip("/") for each in mounts]
    for candidate in candidates:
        directory = os.path.realpath(candidate)
        if any((directory + "/").startswith(each.mountpoint + "/") for each in mounts) and os.path.isdir(
            directory
        ):
            return directory
    return None


def cgroup_of(pid: Pid, hierarchy: Hierarchy) -> str | None:
    """The directory of the cgroup that the process is in; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                _number, controllers, path = line.rstrip("\n").split(":", 2)
                if (controllers or UNIFIED) == hierarchy.name:
                    return hierarchy.directory(path.removesuffix(" (deleted)"))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def all_cgroups_of(pid: Pid) -> dict[str, str]:
    """The path of the process's cgroup in every hierarchy, mounted or not, by the hierarchy's name."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as stream:
            lines = [line.rstrip("\n").split(":", 2) for line in stream]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {controllers or UNIFIED: path for _number, controllers, path in lines}


def with_all_below(cgroup: str) -> list[str]:
    """The cgroup and every one below it, parents first."""
    found: list[str] = []
    waiting = [cgroup]
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                waiting.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            continue
        found.append(directory)
    return found


def with_all_above(cgroup: str) -> list[str]:
    """The cgroup and every one above it, up to but without the top of the mount."""
    hierarchy = hierarchy_of(cgroup)
    found: list[str] = []
    while hierarchy is not None and len(cgroup) > len(hierarchy.mountpoint):
        found.append(cgroup)
        cgroup = os.path.dirname(cgroup)
    return found


def common_ancestor(cgroups: Iterable[str]) -> str:
    """The deepest cgroup that holds all of these, at or above each."""
    return os.path.commonpath(list(cgroups))


def processes_in(cgroup: str) -> list[Pid]:
    """The processes of this very cgroup; zombies are not among them.

    Processes of a PID namespace that this one cannot see have the pid 0.

    Raises:
        OSError: EOPNOTSUPP for a threaded cgroup, whose processes its domain lists.
    """
    return [Pid(int(word)) for word in read_or_empty(cgroup, "cgroup.procs").split()]


def processes_below(cgroup: str) -> list[Pid]:
    """The processes of this cgroup and of all below it."""
    return [pid for each in with_all_below(cgroup) for pid in processes_in(each)]


def threads_in(cgroup: str) -> list[Pid]:
    """The threads of this very cgroup."""
    name = "cgroup.threads" if os.path.exists(cgroup + "/cgroup.threads") else "tasks"
    return [Pid(int(word)) for word in read_or_empty(cgroup, name).split()]


def add_process(cgroup: str, pid: Pid) -> bool:
    """Move the process, with all its threads, into the cgroup; False if it has ended."""
    try:
        write(cgroup, "cgroup.procs", str(pid))
    except ProcessLookupError:
        return False
    return True


def make(cgroup: str) -> None:
    """Make a cgroup, and those above it that are missing."""
    os.makedirs(cgroup, exist_ok=True)


def remove(cgroup: str) -> bool:
    """Remove the cgroup and the empty ones below it; False if a process is left. Safe to repeat."""
    for each in reversed(with_all_below(cgroup)):
        try:
            os.rmdir(each)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            if error.errno != errno.ENOENT:
                raise
    return True


def read(cgroup: str, name: str) -> str:
    """The text of one of the cgroup's files, without the final newline."""
    with open(f"{cgroup}/{name}", encoding="utf-8", errors="surrogateescape") as stream:
        return stream.read().removesuffix("\n")


def read_or_empty(cgroup: str, name: str) -> str:
    """The text of one of the cgroup's files; "" if the file, or by now the cgroup, is not there."""
    try:
        return read(cgroup, name)
    except OSError as error:
        # ENODEV: the file was open when its cgroup was removed.
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return ""
        raise


def write(cgroup: str, name: str, value: str) -> None:
    """Set one of the files of the cgroup, by a single system call as the kernel wants it."""
    fd = os.open(f"{cgroup}/{name}", os.O_WRONLY)
    try:
        os.write(fd, value.encode(errors="surrogateescape"))
    finally:
        os.close(fd)


def _controllers(options: str) -> str:
    return ",".join(
        option for option in options.split(",") if option not in _FLAGS_V1 and "release_agent=" not in option
    )


def _unescape(field: str) -> str:
    """Undo what mountinfo does to blanks and backslashes."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
