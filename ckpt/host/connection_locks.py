"""The locks that CRIU leaves on connections of what it has killed: whose they are, and their end.

They keep the other ends from seeing a connection go until it is restored, and a restore of the same images removes them.
One of another checkpoint does not: its connections would be silent for ever.

Rule: a lock is removed when something else takes the place of what it was for, and not before.
Source: criu/netfilter.c; host/criu/netlock.py.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.host.criu import netlock
from ckpt.host.criu.pstree import read_inventory
from ckpt.host.jobs import JobRecord


def lock_of(images: str) -> str:
    """The name of the lock of the dump in this directory."""
    return netlock.table_of(read_inventory(Path(images)).run_id)


def release(record: JobRecord | None) -> None:
    """Remove what is left of the locks that were noted when the job was stopped; never fails."""
    for name in record.connection_locks if record is not None else ():
        with suppress(CkptError, ValueError):
            netlock.remove_table(name)
