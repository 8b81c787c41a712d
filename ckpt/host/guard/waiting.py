"""Who was ended for want of memory and waits to be brought back: one file each. Fits the port `WaitingRoom`.

    STATE/guard/JOB.json, STATE/guard/@DIGEST.json      a job; a cgroup, by the digest of its name

Rules:
- A record is replaced as a whole, and durable when put() returns.
- A record that cannot be read waits for nobody, and stays where it is: an operator may want to see it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from ckpt.errors import NoSpace, OsRefused, Usage
from ckpt.host.journal import remove_file, sync_directory
from ckpt.model.guarding import Waiting, Watched
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds

_VERSION: Final = 1
_RECORD_BYTES_MAX: Final = 64 << 10
_SUFFIX: Final = ".json"


def waits(state: str, job: JobName) -> bool:
    """Whether the job waits to be brought back."""
    return HostWaitingRoom(state).find(TargetRef(kind=TargetKind.JOB, name=job)) is not None


def forget(state: str, job: JobName) -> None:
    """Let the job wait no more, if it did."""
    HostWaitingRoom(state).remove(TargetRef(kind=TargetKind.JOB, name=job))


class HostWaitingRoom:
    """The records of this host. Fits the port `WaitingRoom`."""

    def __init__(self, state: str) -> None:
        """Keep them below the directory `state`."""
        self._state = state
        self._directory = f"{state}/guard"

    def put(self, waiting: Waiting) -> None:
        """Write it down, in place of what was known of the same target; durable.

        Raises:
            NoSpace, OsRefused: it cannot be written.
        """
        path = self._path(waiting.ref)
        document = {"version": _VERSION, **asdict(waiting)}
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            with open(f"{path}.new", "w", encoding="utf-8") as stream:
                json.dump(document, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(f"{path}.new", path)
            for each in (self._directory, self._state):
                sync_directory(each)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    place=self._directory, available_bytes=0, needed_bytes=4096, option="CKPT_STATE"
                ) from error
            raise OsRefused(operation="write", subject=path, reason=error.strerror or str(error)) from error

    def of(self, watched: Watched) -> tuple[Waiting, ...]:
        """Who waits for room in this cgroup, the longest first."""
        found = [
            each for each in self._all() if each.watched == watched.cgroup and watched.job in (None, each.job)
        ]
        return tuple(sorted(found, key=lambda each: each.since_ns))

    def find(self, ref: TargetRef) -> Waiting | None:
        """What is known of this target; None if it does not wait."""
        return _read(self._path(ref))

    def remove(self, ref: TargetRef) -> None:
        """It waits no more."""
        remove_file(self._path(ref))

    def _all(self) -> list[Waiting]:
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = sorted(os.listdir(self._directory))
        found = (_read(f"{self._directory}/{name}") for name in names if name.endswith(_SUFFIX))
        return [each for each in found if each is not None]

    def _path(self, ref: TargetRef) -> str:
        name = ref.name
        if ref.kind is not TargetKind.JOB:
            name = "@" + hashlib.sha256(os.fsencode(f"{ref.kind} {ref.name}")).hexdigest()[:32]
        return f"{self._directory}/{name}{_SUFFIX}"


def _read(path: str) -> Waiting | None:
    with suppress(OSError, ValueError, KeyError, TypeError, Usage):
        with open(path, "rb") as stream:
            document = json.loads(stream.read(_RECORD_BYTES_MAX))
        return _waiting(document)
    return None


def _waiting(document: dict[str, Any]) -> Waiting | None:
    if document["version"] != _VERSION:
        return None
    checkpoint = document["checkpoint"]
    return Waiting(
        ref=TargetRef(kind=TargetKind(document["ref"]["kind"]), name=str(document["ref"]["name"])),
        checkpoint=None if checkpoint is None else CheckpointId(str(checkpoint)),
        store=str(document["store"]),
        watched=str(document["watched"]),
        cgroup=str(document["cgroup"]),
        limit=ByteCount(int(document["limit"])),
        usage=ByteCount(int(document["usage"])),
        goal=float(document["goal"]),
        since_ns=Nanoseconds(int(document["since_ns"])),
    )
