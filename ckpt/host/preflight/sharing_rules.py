"""Rules over memory and locks that a workload shares with processes outside.

Rule: the processes of the host are searched only if the workload has something that can be shared.
Source: mmap(2), flock(2), proc_locks(5), proc_pid_fdinfo(5); criu/file-lock.c; criu/shmem.c.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inspection.holdings import Hold, Key
from ckpt.host.inspection.processes import ProcessFacts
from ckpt.host.preflight.facts import Facts, named, subject
from ckpt.host.preflight.held_descriptors import descriptors
from ckpt.host.preflight.outsiders import tree_of, who
from ckpt.host.preflight.rule import Found, Rule
from ckpt.host.process_table import stat_of
from ckpt.model.findings import Severity
from ckpt.units import Pid

_AREA: Final = re.compile(rb"^\S+ ...s \S+ ([0-9a-f]+:[0-9a-f]+) ([0-9]+) ", re.MULTILINE)
_SHARED_MEMORY: Final = "/dev/shm/"  # noqa: S108 - not a place for temporary files of ours
_BY_DESCRIPTION: Final = frozenset(("FLOCK", "OFDLCK"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldLock:
    task: ProcessFacts
    hold: Hold
    kind: str
    exclusive: bool
    taken_by: Pid

    @property
    def is_shareable(self) -> bool:
        """Whether it belongs to an open file, and so to all who have that open; and keeps others away."""
        return self.kind in _BY_DESCRIPTION and self.exclusive


def _shared_memory(facts: Facts) -> Iterator[Found]:
    mine = facts.once(_own_shared_memory)
    for other in _outside(facts) if mine else ():
        with suppress(OSError), open(f"/proc/{other}/maps", "rb") as stream:
            for key in dict.fromkeys(_AREA.findall(stream.read())):
                if key in mine:
                    task, path = mine[key][0]
                    yield _shared_with(task, path, f"{who((other,))}, which is not in the workload")
    for holders in mine.values():
        task, path = holders[0]
        for sharer, _ in holders:
            if tree_of(facts, sharer.pid) != tree_of(facts, task.pid) and not path.startswith(_SHARED_MEMORY):
                yield _shared_with(task, path, f"{sharer.label}, which is in another tree")


def _shared_with(task: ProcessFacts, path: str, other: str) -> Found:
    return Found(
        pid=task.pid,
        subject=path,
        message=f"{task.label} shares the memory {path} with {other}",
        remedy=_remedy_for(path),
    )


def _remedy_for(path: str) -> str | None:
    if path.startswith(_SHARED_MEMORY):
        return "A restore takes its content back to that of the dump, for both."
    return None


def _own_shared_memory(facts: Facts) -> dict[tuple[bytes, bytes], list[tuple[ProcessFacts, str]]]:
    """Memory that is mapped shared, by device and inode as maps has them, with those who map it."""
    found: dict[tuple[bytes, bytes], list[tuple[ProcessFacts, str]]] = {}
    for task in facts.tasks:
        for line in facts.holdings(task).maps_text.splitlines():
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[1].endswith(b"s"):
                path = os.fsdecode(fields[5])
                if path.startswith(("/memfd:", "/dev/zero (deleted)", "/SYSV", _SHARED_MEMORY)):
                    found.setdefault((fields[3], fields[4]), []).append(
                        (task, path.removesuffix(" (deleted)"))
                    )
    return found


def _lock_outside(facts: Facts) -> Iterator[Found]:
    relatives = facts.once(_relatives)
    for lock in facts.once(_locks):
        if not lock.is_shareable:
            continue
        for other in {lock.taken_by, *relatives} - facts.pids - {Pid(-1), Pid(0)}:
            if _holds_lock(other, lock.hold.key, lock.kind):
                yield Found(
                    pid=lock.task.pid,
                    subject=subject(lock.hold),
                    message=f"{named(lock.task, lock.hold)}, whose lock {who((other,))} holds as well",
                    remedy=f"Process {other} must have closed the file when it is restored.",
                )


def _lock_across_trees(facts: Facts) -> Iterator[Found]:
    first: dict[Key, _HeldLock] = {}
    for lock in facts.once(_locks):
        if not lock.is_shareable:
            continue
        other = first.setdefault(lock.hold.key, lock)
        if tree_of(facts, other.task.pid) != tree_of(facts, lock.task.pid):
            yield Found(
                pid=lock.task.pid,
                subject=subject(lock.hold),
                message=f"{named(lock.task, lock.hold)}, whose lock {other.task.label} holds as well, in another tree",
            )


def _lock_awaited(facts: Facts) -> Iterator[Found]:
    locks = {_as_locks_has(lock.hold.key): lock for lock in facts.once(_locks)}
    if not locks:
        return
    with open("/proc/locks", encoding="ascii", errors="replace") as stream:
        for line in stream:
            # "1: -> FLOCK  ADVISORY  WRITE 4242 fd:00:131 0 EOF"
            _, arrow, *fields = line.split()
            if arrow != "->" or fields[4] not in locks or Pid(int(fields[3])) in facts.pids:
                continue
            lock, other = locks[fields[4]], Pid(int(fields[3]))
            yield Found(
                pid=lock.task.pid,
                subject=subject(lock.hold),
                message=f"{named(lock.task, lock.hold)}, and {who((other,))} waits for its lock",
                remedy=f"Process {other} gets the lock when the workload ends, and must have given it back when it is "
                "restored.",
            )


def _lock_held(facts: Facts) -> Iterator[Found]:
    for lock in facts.once(_locks):
        yield Found(
            pid=lock.task.pid,
            subject=subject(lock.hold),
            message=f"{named(lock.task, lock.hold)}, and has locked it ({lock.kind})",
        )


def _locks(facts: Facts) -> tuple[_HeldLock, ...]:
    found = []
    for task, hold in facts.once(descriptors).files:
        if stat.S_ISREG(hold.status.st_mode) and "lock" in facts.fdinfo(hold):
            # "lock:	1: FLOCK  ADVISORY  WRITE 4242 fd:00:131 0 EOF"
            _, kind, _, access, pid, *_ = facts.fdinfo(hold)["lock"].split()
            found.append(
                _HeldLock(
                    task=task, hold=hold, kind=kind, exclusive=access == "WRITE", taken_by=Pid(int(pid))
                )
            )
    return tuple(found)


def _as_locks_has(key: Key) -> str:
    return f"{os.major(key[0]):02x}:{os.minor(key[0]):02x}:{key[1]}"


def _relatives(facts: Facts) -> frozenset[Pid]:
    """The ancestors of the workload: whoever opened a file before it started has it still."""
    found: set[Pid] = set()
    for tree in facts.snapshot.trees:
        pid = facts.snapshot.processes[tree.root].process.parent
        while pid > 1 and pid not in found and (parent := stat_of(pid)) is not None:
            found.add(pid)
            pid = parent.parent
    return frozenset(found)


def _holds_lock(pid: Pid, key: Key, kind: str) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if (status.st_dev, status.st_ino) == key:
                    with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii", errors="replace") as stream:
                        if any(line.startswith("lock:") and kind in line for line in stream):
                            return True
    return False


def _outside(facts: Facts) -> Iterator[Pid]:
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own and Pid(int(name)) not in facts.pids:
            yield Pid(int(name))


RULES: Final = (
    Rule(
        name="lock-across-trees",
        severity=Severity.BLOCKER,
        title="A lock of flock(2), or of an open file description, that two trees of the workload hold.",
        effect="The trees are restored one after another, and the second never gets the lock: the workload would be lost.",
        remedy="Let only one of the trees keep the file open (daemons close what they do not need).",
        source="criu/file-lock.c; seen",
        find=_lock_across_trees,
    ),
    Rule(
        name="shared-memory-outside",
        severity=Severity.WARNING,
        title="Shared memory (anonymous, memfd, /dev/shm) that a process outside of the workload maps as well.",
        effect="The restored workload has memory of its own, which that process does not see.",
        remedy="Dump both processes together, or let them share a file that has a name.",
        source="seen",
        find=_shared_memory,
    ),
    Rule(
        name="lock-outside",
        severity=Severity.WARNING,
        title="A lock of flock(2), or of an open file description, that a process outside holds as well (as of "
        "'flock FILE COMMAND').",
        effect="As long as the other one holds it the restore waits (flock), or fails (open file description).",
        remedy="The other process must have closed the file when it is restored.",
        source="criu/file-lock.c; seen",
        find=_lock_outside,
    ),
    Rule(
        name="lock-awaited",
        severity=Severity.WARNING,
        title="A lock that a process outside waits for.",
        effect="That process gets it when the workload ends, and the restore waits for it.",
        remedy="The other process must have given the lock back when it is restored.",
        source="criu/file-lock.c; seen",
        find=_lock_awaited,
    ),
    Rule(
        name="lock",
        severity=Severity.INFO,
        title="A file lock or a lease.",
        effect="It is taken again at the restore, which waits while another process has it.",
        remedy="Nobody else may have it when the workload is restored.",
        source="criu/file-lock.c; seen with POSIX, OFD and flock locks and leases",
        find=_lock_held,
    ),
)
