"""The jobs of this host that were suspended: one document for each.

    STATE/suspended/NAME.json

Rules:
- A document is replaced as a whole, and durable when save() returns; its removal is durable when remove() returns.
- Nothing in it belongs to one boot: it is read in the next one.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from typing import Any, Final

from ckpt.errors import NoSpace, NoSuchTarget, ObjectCorrupt, OsRefused
from ckpt.host import journal, supervision
from ckpt.host.jobs import STATE_VARIABLE, JobRegistry, check_name
from ckpt.host.locks import exclusive
from ckpt.host.process_table import boot_id
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.supervision import Standing
from ckpt.model.suspended import Life, Owner, Suspended
from ckpt.units import CheckpointId, JobName, Nanoseconds

_DIRECTORY: Final = "suspended"
_VERSION: Final = 1
_DOCUMENT_BYTES_MAX: Final = 1 << 16
_NAME: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})\.json", re.ASCII)
_CHECKPOINT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FED: Final = ("pipe:", "socket:", "/dev/pts/", "/dev/tty")
"""What a standard input is that somebody writes into."""

_TIME_MAX: Final = 1 << 63


class HostSuspendedJobs:
    """Fits the port `SuspendedJobs`."""

    def __init__(self, registry: JobRegistry) -> None:
        """Keep them in the state directory of this registry, which knows the jobs."""
        self._registry = registry
        self._directory = f"{registry.state}/{_DIRECTORY}"

    def lock(self, job: JobName) -> AbstractContextManager[None]:
        """Be the only one who suspends this job or brings it back.

        Raises:
            BadName: no job can have this name.
            Locked: somebody else does; names its pid.
        """
        return exclusive(
            f"{self._registry.state}/locks",
            [f"suspended-{check_name(job)}"],
            subject=f"The suspension of job {job}",
        )

    def names(self) -> tuple[JobName, ...]:
        """The jobs that something was written down of, readable or not; those that were started first come first."""
        with suppress(FileNotFoundError, NotADirectoryError):
            names = [
                JobName(found[1])
                for name in os.listdir(self._directory)
                if (found := _NAME.fullmatch(name)) is not None
            ]
            return tuple(sorted(names, key=lambda name: (self._began(name), name)))
        return ()

    def find(self, job: JobName) -> Suspended | None:
        """What was written down; None for nothing.

        Raises:
            BadName: no job can have this name.
            ObjectCorrupt: it cannot be read.
        """
        path = self._path(job)
        try:
            with open(path, "rb") as stream:
                return _suspended(job, json.loads(stream.read(_DOCUMENT_BYTES_MAX)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ObjectCorrupt(
                kind="suspension of job",
                name=job,
                reason=_reason(error),
                remedy=f"'ckpt restore {job}' brings its newest checkpoint back; then remove {path}.",
            ) from error

    def save(self, record: Suspended) -> None:
        """Write it down; durable when this returns.

        Raises:
            NoSpace, OsRefused: it cannot be written; the former document is still there.
        """
        path = self._path(record.job)
        with self._told(path):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as stream:
                json.dump({"version": _VERSION, **asdict(record)}, stream)
                stream.flush()
                os.fsync(fd)
            os.rename(f"{path}.new", path)
            for each in (self._directory, self._registry.state):
                journal.sync_directory(each)

    def remove(self, job: JobName) -> None:
        """Forget it; durable, and nothing if there is none.

        Raises:
            OsRefused: it cannot be removed.
        """
        path = self._path(job)
        with self._told(path), suppress(FileNotFoundError):
            os.unlink(path)
            journal.sync_directory(self._directory)

    def life(self, job: JobName) -> Life | None:
        """The job as it is now; None if there is none, or its record cannot be read."""
        with suppress(NoSuchTarget, ObjectCorrupt):
            view = self._registry.look(job)
            return Life(
                began_ns=view.record.created,
                runs=view.is_alive,
                restored_from=view.record.restored_from,
                stopped_by=view.record.stopped_by,
            )
        return None

    def crashed(self) -> tuple[JobName, ...]:
        """The jobs that ran with a supervisor in the background when the host went down, and were not suspended.

        Those that were started first come first.
        """
        now, suspended = boot_id(), set(self.names())
        found = [
            view
            for view in self._registry.list()
            if view.record.boot_id != now
            and view.exit is None
            and view.record.stopped_by is None
            and not self._registry.moved_to(view.name)
            and view.name not in suspended
            and self.has_supervisor_of_its_own(view.name)
        ]
        return tuple(view.name for view in sorted(found, key=lambda view: (view.record.created, view.name)))

    def has_supervisor_of_its_own(self, job: JobName) -> bool:
        """Whether the job is supervised in the background: nobody but ckpt starts its supervisor again."""
        with suppress(ObjectCorrupt):
            found = supervision.load(self._registry, job)
            return found is not None and found.standing is Standing.BACKGROUND
        return False

    def owner(self, job: JobName) -> Owner:
        """Who brings the job back: its caller, if a supervisor in the foreground, or its standard input, is the caller's.

        Raises:
            NoSuchTarget, ObjectCorrupt: there is no such job, or what is written down of it cannot be read.
        """
        supervised = supervision.load(self._registry, job)
        if supervised is not None:
            return Owner.CKPT if supervised.standing is Standing.BACKGROUND else Owner.CALLER
        command = self._registry.load(job).command
        with suppress(OSError):
            if os.readlink(f"/proc/{command.pid}/fd/0").startswith(_FED):
                return Owner.CALLER
        return Owner.CKPT

    def _path(self, job: JobName) -> str:
        return f"{self._directory}/{check_name(job)}.json"

    def _began(self, job: JobName) -> int:
        with suppress(ObjectCorrupt):
            record = self.find(job)
            return 0 if record is None else record.began_ns
        return 0

    @staticmethod
    @contextmanager
    def _told(path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    place=path, available_bytes=0, needed_bytes=4096, option=STATE_VARIABLE
                ) from error
            raise OsRefused(operation="write", subject=path, reason=error.strerror or str(error)) from error


def _reason(error: Exception) -> str:
    match error:
        case KeyError():
            return f"it has no {error.args[0]}"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error) or type(error).__name__


def _suspended(job: JobName, document: Any) -> Suspended:
    if not isinstance(document, dict):
        raise TypeError("not an object")
    if document["version"] != _VERSION:
        raise ValueError("written by another version of ckpt")
    if document["job"] != job:
        raise ValueError(f"it is that of job {document['job']}")
    checkpoint = document["checkpoint"]
    if checkpoint is not None and not _CHECKPOINT.fullmatch(checkpoint):
        raise ValueError(f"{checkpoint!r} is no checkpoint")
    if not isinstance(document["store"], str) or not document["store"]:
        raise TypeError("it names no store")
    return Suspended(
        job=job,
        store=document["store"],
        checkpoint=checkpoint if checkpoint is None else CheckpointId(checkpoint),
        began_ns=_instant(document["began_ns"]),
        since_ns=_instant(document["since_ns"]),
        time=TimePolicy(document["time"]),
        inodes=InodePolicy(document["inodes"]),
    )


def _instant(value: Any) -> Nanoseconds:
    if not isinstance(value, int) or not 0 <= value < _TIME_MAX:
        raise TypeError(f"{value!r} is no instant")
    return Nanoseconds(value)
