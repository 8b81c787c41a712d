"""Who feeds a job its standard input through a pipe, and how far that has come.

    STATE/jobs/NAME/stdin.unmoved    nothing was passed on yet in this life of the job
                    stdin.complete   the end of the input was, or the job reads no more

Rules:
- Each of them names the life of the job that it is of, by when that began: what is left of another one says nothing.
- The end is written down before the job can see it, and durable: what the job does afterwards counts. If its pipe ends
  without that, it ended because whoever fed it is gone, and nothing that the job has done since then counts.
- The first byte is passed on when the mark that nothing moved is gone.
- A mark that is missing, for whatever reason, lets less count of what the job did, and never more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from enum import StrEnum
from typing import Final

from ckpt.host import journal
from ckpt.host.jobs import JobRecord, JobRegistry
from ckpt.host.process_table import ProcessRef, boot_id, is_alive, process_ref
from ckpt.units import Pid

_LIFE_BYTES_MAX: Final = 32


class Mark(StrEnum):
    """What is written down of a job's input, in a file of this name."""

    UNMOVED = "stdin.unmoved"
    COMPLETE = "stdin.complete"


def ourselves() -> ProcessRef:
    """This process, as who feeds a job."""
    pid = Pid(os.getpid())
    return process_ref(pid) or ProcessRef(pid=pid, start_ticks=0)


def write_mark(registry: JobRegistry, record: JobRecord, mark: Mark) -> None:
    """Say this of the present life of the job; durable when this returns.

    Raises:
        OSError: it cannot be written.
    """
    directory = registry.directory(record.name)
    fd = os.open(f"{directory}/{mark}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, _life(record))
        os.fsync(fd)
    finally:
        os.close(fd)
    journal.sync_directory(directory)


def remove_mark(registry: JobRegistry, record: JobRecord, mark: Mark) -> None:
    """Say it no more; nothing if it was not said.

    Raises:
        OSError: it cannot be removed.
    """
    with suppress(FileNotFoundError):
        os.unlink(f"{registry.directory(record.name)}/{mark}")


def is_cut_short(registry: JobRegistry, record: JobRecord) -> bool:
    """Whether the job's input ended because who fed it is gone; false for one that nobody fed."""
    feeder = record.feeder
    if feeder is None or (record.boot_id == boot_id() and is_alive(feeder)):
        return False
    return not _has(registry, record, Mark.COMPLETE)


def is_fed(registry: JobRegistry, record: JobRecord) -> bool:
    """Whether somebody feeds the job, and the end of its input is still to come."""
    return record.feeder is not None and not _has(registry, record, Mark.COMPLETE)


def is_position_exact(registry: JobRegistry, record: JobRecord) -> bool:
    """Whether the job's position in its input is, at any moment, as it was last written down, or of no use any more."""
    if record.feeder is None:
        return False
    return _has(registry, record, Mark.COMPLETE) or _has(registry, record, Mark.UNMOVED)


def _has(registry: JobRegistry, record: JobRecord, mark: Mark) -> bool:
    with suppress(OSError), open(f"{registry.directory(record.name)}/{mark}", "rb") as stream:
        return stream.read(_LIFE_BYTES_MAX) == _life(record)
    return False


def _life(record: JobRecord) -> bytes:
    return f"{record.created}\n".encode()
