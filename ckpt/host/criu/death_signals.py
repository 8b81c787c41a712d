"""The signal that a process asked for when its parent ends (PR_SET_PDEATHSIG), in an image set.

CRIU sets it again, also for the root of the tree, whose parent is CRIU itself until it ends: the signal would kill what
was just restored. Nothing tells it before a dump: it is in no file of /proc.
Source: criu/cr-restore.c ("Root task has pdeath_sig configured"); images/core.proto.
"""

from __future__ import annotations

from pathlib import Path

from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.pstree import read_tasks


def clear_death_signal(images: Path) -> int:
    """Let the root process of an image set ask for none; gives the signal that it had asked for, 0 for none.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read or written.
    """
    root = read_tasks(images)[0]
    found = 0
    for thread in dict.fromkeys((root.pid, *root.threads)):
        path = images / f"core-{thread}.img"
        cores = read_entries(path, "CORE", "core_entry")
        signals = [core.thread_core.pdeath_sig for core in cores if core.HasField("thread_core")]
        if any(signals):
            found = max(found, *signals)
            for core in cores:
                core.thread_core.ClearField("pdeath_sig")
            write_entries(path, "CORE", cores)
    return found
