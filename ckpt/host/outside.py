"""Pipes and terminals that a workload shares with processes outside, and what takes their place at restore.

Rules:
- CRIU says nothing about such a pipe: dump and restore succeed, and the job dies of SIGPIPE at its first
  write. So every one that is recorded must be inherited again: a log, /dev/null, or a pipe to somebody.
- A terminal from outside must be named at the dump as well (`external`), or the dump is refused. So must /dev/tty
  where a process has opened it as the name of such a terminal ("ctty inheritance detected"); at the restore it gets
  what the terminal itself gets.
- What is in a pipe at the dump is not restored where the pipe is inherited (criu/pipes.c, open_pipe()): who feeds it
  gives it again.
- CRIU makes an inherited terminal the controlling one of the session whose it was, and gives it the foreground group
  and the settings that it had.
Source: criu/tty.c, get_tty_driver(), tty_restore_ctl_terminal(); criu/files.c, inherited_fd(); criu/pipes.c.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.process_table import ProcessRef, stat_of
from ckpt.model.workload import OutsideFile, OutsideKind
from ckpt.units import Pid

_PTMX: Final = os.makedev(5, 2)
_OWN_NAME: Final = os.makedev(5, 0)
"""/dev/tty: each session's terminal."""

_OWN_NAME_KEY: Final = f"tty[{_OWN_NAME:x}:"
_PTS_MAJORS: Final = range(136, 144)
_TTY_MAJORS: Final = (4, 204)
"""Virtual consoles and ttyS*, ttyAMA*: a workload that holds one always holds an outside one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTerminal:
    """A pseudo-terminal of this process that is to be a job's: the slave for the job, the master for its shim.

    Both descriptors stay the caller's to close.
    """

    master: int
    slave: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What this process gives a restored job in place of what it had from outside.

    `stdin` is the read end of a pipe for its standard input, -1 for none, and `feeder` who writes into that. What it writes to a terminal, or to a pipe from
    outside, goes to the end of the file `log`, "" for the job's own. The descriptors stay the caller's to close.
    """

    stdin: int = -1
    feeder: ProcessRef | None = None
    terminal: JobTerminal | None = None
    log: str = ""


NOTHING_JOINED: Final = Joined()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    pid: Pid
    fd: int
    writes: bool
    reads: bool


def outside_files(workload: Collection[Pid]) -> tuple[OutsideFile, ...]:
    """The pipes whose other end, and the terminals whose master, is not held in the workload.

    Each is told once, with its first holder. Processes and descriptors that vanish meanwhile are left out.
    The processes of the host are searched only if a pipe is open in one direction alone.
    """
    pipes: dict[str, list[_Held]] = {}
    terminals: dict[str, tuple[_Held, int]] = {}
    by_own_name: dict[str, list[_Held]] = {}
    masters: set[int] = set()
    for pid in workload:
        for fd, target in _descriptors(pid):
            if target.startswith("pipe:["):
                pipes.setdefault(target, []).append(_held(pid, fd))
            # One whose master was closed (" (deleted)") is nobody's any more: CRIU makes such a one itself.
            elif target.startswith("/dev/") and not target.endswith(" (deleted)"):
                with suppress(OSError):
                    _note_terminal(pid, fd, terminals, masters, by_own_name)
    found = [
        OutsideFile(kind=OutsideKind.TTY, key=key, pid=held.pid, fd=held.fd, writes=held.writes)
        for key, (held, index) in terminals.items()
        if index not in masters
    ]
    found += [
        OutsideFile(kind=OutsideKind.TTY, key=key, pid=holders[0].pid, fd=holders[0].fd, writes=True)
        for key, holders in by_own_name.items()
        # They have one name to CRIU, so it is for all of them or for none.
        if not {_controlling_index(held.pid) for held in holders} & {*masters, -1}
    ]
    lonely = {key for key, holders in pipes.items() if not _both_ways(holders)}
    shared = _held_elsewhere(lonely, frozenset(workload)) if lonely else set()
    found += [
        OutsideFile(
            kind=OutsideKind.PIPE,
            key=key,
            pid=pipes[key][0].pid,
            fd=pipes[key][0].fd,
            writes=pipes[key][0].writes,
        )
        for key in pipes
        if key in shared
    ]
    return tuple(found)


def dump_externals(files: Iterable[OutsideFile]) -> tuple[str, ...]:
    """The values of CRIU's option `external` for the dump: terminals alone need one."""
    return tuple(file.key for file in files if file.kind is OutsideKind.TTY)


def is_terminal(file: OutsideFile) -> bool:
    """Whether it is a terminal, by its own name or by that which every session has for its terminal."""
    return file.kind is OutsideKind.TTY


def is_by_its_own_name(file: OutsideFile) -> bool:
    """Whether it is a terminal that was opened as /dev/tty."""
    return file.key.startswith(_OWN_NAME_KEY)


def standard_input(files: Collection[OutsideFile]) -> OutsideFile | None:
    """The pipe that a job reads as its standard input: descriptor 0, or else the only one that it reads."""
    read = [file for file in files if file.kind is OutsideKind.PIPE and not file.writes]
    first = next((file for file in read if file.fd == 0), None)
    return first or (read[0] if len(read) == 1 else None)


def open_substitute(file: OutsideFile, *, log: str) -> int:
    """A descriptor to be inherited in place of a pipe; the caller closes it.

    What the workload writes goes to the end of the file `log`, which is made if it is missing; what it reads
    is at its end at once. For a terminal another terminal is needed: see RestoreHost.substitutes().
    """
    if file.writes:
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _note_terminal(
    pid: Pid,
    fd: int,
    terminals: dict[str, tuple[_Held, int]],
    masters: set[int],
    by_own_name: dict[str, list[_Held]],
) -> None:
    status = os.stat(f"/proc/{pid}/fd/{fd}")
    if not stat.S_ISCHR(status.st_mode):
        return
    if status.st_rdev == _PTMX:
        masters.add(int(_fdinfo(pid, fd)["tty-index"]))
        return
    # CRIU prints both numbers as stat(2) gives them, in hexadecimal.
    key = f"tty[{status.st_rdev:x}:{status.st_dev:x}]"
    if status.st_rdev == _OWN_NAME:
        by_own_name.setdefault(key, []).append(_held(pid, fd))
        return
    major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    if major in _PTS_MAJORS:
        index = (major - _PTS_MAJORS.start) * 256 + minor
        # Numbers are counted in every instance of devpts: one of another instance than the workload's own
        # is from outside, though a master inside may have its number.
        if status.st_dev != os.stat(f"/proc/{pid}/root/dev/pts").st_dev:
            index = -1
    elif major in _TTY_MAJORS:
        index = -1
    else:
        return
    terminals.setdefault(key, (_held(pid, fd), index))


def _controlling_index(pid: Pid) -> int:
    """The number of the pseudo-terminal that controls the process; -1 if it is of another kind, or none."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/stat", "rb") as stream:
        device = int(stream.read().rpartition(b")")[2].split()[4])
        if os.major(device) in _PTS_MAJORS:
            return (os.major(device) - _PTS_MAJORS.start) * 256 + os.minor(device)
    return -1


def _held(pid: Pid, fd: int) -> _Held:
    mode = os.O_RDWR
    with suppress(OSError):
        mode = int(_fdinfo(pid, fd)["flags"], 8) & os.O_ACCMODE
    return _Held(pid=pid, fd=fd, writes=mode != os.O_RDONLY, reads=mode != os.O_WRONLY)


def _both_ways(holders: Iterable[_Held]) -> bool:
    each = list(holders)
    return any(held.writes for held in each) and any(held.reads for held in each)


def _held_elsewhere(keys: set[str], workload: Collection[Pid]) -> set[str]:
    found: set[str] = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and Pid(int(name)) not in workload:
            held = {target for _fd, target in _descriptors(Pid(int(name))) if target in keys} - found
            if held and not _belongs(Pid(int(name)), workload):
                found |= held
            if found == keys:
                break
    return found


def _belongs(pid: Pid, workload: Collection[Pid]) -> bool:
    """Whether the process has joined the workload since that was counted; one that has ended by now holds nothing.

    It runs meanwhile: a child that it has just forked has one end of every pipe of its parent.
    """
    try:
        own = _cgroups(pid)
    except OSError:
        return True
    for each in workload:
        with suppress(OSError):
            if _cgroups(each) == own:
                return True
    parent: Pid | None = pid
    while parent:
        status = stat_of(parent)
        parent = None if status is None else status.parent
        if parent in workload:
            return True
    return False


def _cgroups(pid: Pid) -> bytes:
    with open(f"/proc/{pid}/cgroup", "rb") as stream:
        return stream.read()


def _descriptors(pid: Pid) -> Iterator[tuple[int, str]]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")


def _fdinfo(pid: Pid, fd: int) -> dict[str, str]:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as stream:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in stream)}
