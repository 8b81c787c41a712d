"""Who is running: /proc/PID/stat of one process or of all, and who descends from whom.

Rules:
- A process is a pid and its start time; a pid alone may be somebody else by now.
- A process that ends while it is read is not there; that is no error.
- Only the standard library is imported: the guardian holds this module in its memory.
Source: proc_pid_stat(5); PF_KTHREAD and PF_EXITING are from the kernel's include/linux/sched.h.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ckpt.units import Pid

_PF_KTHREAD = 0x00200000
_PF_EXITING = 0x00000004


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRef:
    """A process that cannot be mistaken for another: `start_ticks` is field 22 of /proc/PID/stat."""

    pid: Pid
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """A process or thread as /proc/PID/stat shows it; `exiting` is what ends, or has ended."""

    pid: Pid
    name: str
    state: str
    parent: Pid
    kernel_thread: bool
    exiting: bool
    start_ticks: int

    @property
    def ref(self) -> ProcessRef:
        """The process, so that it cannot be mistaken for another."""
        return ProcessRef(pid=self.pid, start_ticks=self.start_ticks)

    @property
    def ended(self) -> bool:
        """Whether only its zombie is left."""
        return self.state in "ZX"


def stat_of(pid: int) -> ProcessStat | None:
    """The process or thread with this id, zombies included; None if there is none."""
    return _read(f"/proc/{pid}/stat")


def thread_stat_of(tid: int) -> ProcessStat | None:
    """As stat_of(), of one thread among thousands.

    For /proc/TID/stat the kernel adds up what all threads of the process used: asked for each of them, that takes a
    time that grows with the square of their number.
    """
    return _read(f"/proc/{tid}/task/{tid}/stat")


def all_processes() -> dict[Pid, ProcessStat]:
    """Every process that this PID namespace shows, threads not."""
    found = (stat_of(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {stat.pid: stat for stat in found if stat is not None}


def descendants(roots: Collection[Pid], table: Mapping[Pid, ProcessStat]) -> set[Pid]:
    """The roots that are in the table, and everything below them."""
    children: dict[Pid, list[Pid]] = {}
    for stat in table.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    found: set[Pid] = set()
    waiting = [root for root in roots if root in table]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def process_ref(pid: int) -> ProcessRef | None:
    """The process that has this pid now; None if there is none, or only its zombie."""
    stat = stat_of(pid)
    return None if stat is None or stat.ended else stat.ref


def is_alive(process: ProcessRef) -> bool:
    """Whether this very process still runs; its zombie does not."""
    return process_ref(process.pid) == process


def thread_group_of(tid: int) -> Pid | None:
    """The process that a thread belongs to; None if there is no such thread."""
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if line.startswith("Tgid:"):
                    return Pid(int(line.split()[1]))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def boot_id() -> str:
    """What tells this run of the kernel from every other."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def _read(path: str) -> ProcessStat | None:
    try:
        with open(path, "rb") as stream:
            line = stream.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name may hold spaces and parentheses; nothing after its end does.
    before, _, after = line.rpartition(")")
    number, _, name = before.partition(" (")
    fields = after.split()
    return ProcessStat(
        pid=Pid(int(number)),
        name=name,
        state=fields[0],
        parent=Pid(int(fields[1])),
        kernel_thread=bool(int(fields[6]) & _PF_KTHREAD),
        exiting=bool(int(fields[6]) & _PF_EXITING),
        start_ticks=int(fields[19]),
    )
