"""Pins: hard links that are made at a dump, so that a file's inode outlives the file's replacement.

Below the state directory:

    pins/records/ID.json    the pins that a checkpoint needs
    pins/files/NUMBER       the pins themselves, where they are on this file system (pindirs.py)
    pins/places             all directories of pins that were ever made, one a line
    pins/lock

Rules:
- A record is written before its pins are made: a pin that no record names is nobody's.
- A file that cannot be pinned is no failure: it has one way less to keep its identity, and the reason is told.
- A pin changes the file's link count and ctime, once. Its digest is remembered under the new ctime; the mtime
  would tell of any change since.
- On overlayfs a hard link copies the file up, unless it was: only what the workload holds for writing is pinned.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host import journal
from ckpt.host.inodes import calls
from ckpt.host.inodes.moved import identity_of
from ckpt.host.inodes.pindirs import PinDirectories, is_ours, path_of, pin_name
from ckpt.host.inodes.places import Place, Refused, opened_place
from ckpt.host.inspection.digests import DigestCache, Wanted
from ckpt.model.inodes import FileKind, InodeRecord, Role, RoleKind
from ckpt.units import CheckpointId, Digest

RECORD_BYTES_MAX: Final = 64 << 20
_CHECKPOINT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PIN: Final = re.compile(r"[1-9][0-9]*", re.ASCII)
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - not a place for temporary files of ours
_WRITES_FILE: Final = ("-w-s", "rw-s", "-wxs", "rwxs")
_NEVER: Final = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "fuse", "nfs", "nfs4"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpinned:
    """A file that was not pinned, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The pins that a checkpoint needs, by their numbers."""

    store: str
    inodes: frozenset[int]


class Pins:
    """All pins of one state directory."""

    def __init__(self, state: str) -> None:
        """Of the state directory `state`, which need not be there yet."""
        self._home = f"{state}/pins"
        self._directories = PinDirectories(state)
        self._digests = DigestCache(f"{state}/digests.sqlite")
        self._noted: set[str] = set()

    def pin(
        self, checkpoint: CheckpointId, inodes: Iterable[InodeRecord], *, store: str = ""
    ) -> tuple[Unpinned, ...]:
        """Pin the files that are worth it, and say which could not be. Safe to repeat.

        Args:
            checkpoint: Whose pins they are.
            inodes: Its records, with their digests.
            store: Where it is kept, by the name that sweep() is given.

        Raises:
            OsRefused: the state directory cannot be written; nothing was pinned.
        """
        wanted = [record for record in inodes if is_worth_a_pin(record)]
        if not wanted:
            return ()
        unpinned: list[Unpinned] = []
        digested: list[tuple[Wanted, Digest]] = []
        with self._locked():
            self._noted.clear()
            self._write(checkpoint, _Record(store=store, inodes=frozenset(each.inode for each in wanted)))
            for record in wanted:
                try:
                    before, after = self._pin(record)
                    if record.digest is not None and before.st_ctime_ns == record.ctime_ns:
                        digested.append((_wanted(record, after), record.digest))
                except Refused as refused:
                    unpinned.append(Unpinned(path=record.path, reason=str(refused)))
                except OSError as error:
                    unpinned.append(Unpinned(path=record.path, reason=_reason(error)))
        self._digests.keep(digested)
        return tuple(unpinned)

    def release(self, checkpoints: Iterable[CheckpointId]) -> None:
        """These checkpoints are no more: remove the pins that no other one needs. Safe to repeat.

        Raises:
            OsRefused: the state directory cannot be written.
        """
        if not os.path.isdir(self._home):
            return
        with self._locked():
            for checkpoint in checkpoints:
                journal.remove_file(self._path(checkpoint))
            self._sweep()

    def sweep(self, store: str, known: Collection[str]) -> None:
        """Remove the pins of checkpoints that are no more.

        Args:
            store: The store that was looked into: of checkpoints in others nothing is known.
            known: The checkpoints that are in it.

        Raises:
            OsRefused: the state directory cannot be written.
        """
        if not os.path.isdir(self._home):
            return
        with self._locked():
            for checkpoint in self._checkpoints():
                record = self._read(checkpoint)
                if record is None or (record.store == store and checkpoint not in known):
                    journal.remove_file(self._path(checkpoint))
            self._sweep()

    def _pin(self, record: InodeRecord) -> tuple[os.stat_result, os.stat_result]:
        """Pin the file, if it still is the recorded one; gives what it was, and what it is with the pin."""
        with opened_place(record.path) as place:
            before = place.status()
            if identity_of(before) != (record.device, record.inode):
                raise Refused("another file has its name now")
            if record.filesystem.type == "overlay" and not _held_for_writing(record.roles):
                raise Refused("a hard link would copy it up in its overlay")
            with self._directories.making(place) as directory:
                self._know(path_of(directory))
                return before, _link(place, directory, before)

    def _know(self, directory: str) -> None:
        if directory in self._noted:
            return
        if directory not in self._places():
            with open(f"{self._home}/places", "ab") as stream:
                stream.write(os.fsencode(directory) + b"\n")
        self._noted.add(directory)

    def _places(self) -> list[str]:
        with suppress(FileNotFoundError), open(f"{self._home}/places", "rb") as stream:
            lines = stream.read(RECORD_BYTES_MAX).split(b"\n")[:-1]
            return [os.fsdecode(line) for line in lines]
        return []

    def _sweep(self) -> None:
        records = (self._read(checkpoint) for checkpoint in self._checkpoints())
        # Numbers of all file systems in one: a pin that stays for another one's sake is the smaller evil.
        needed = {pin_name(inode) for record in records if record is not None for inode in record.inodes}
        # One that is not mounted now is looked at the next time.
        left = [place for place in self._places() if not _sweep_place(place, needed)]
        if not left:
            journal.remove_file(f"{self._home}/places")
            return
        with open(f"{self._home}/places.new", "wb") as stream:
            stream.write(b"".join(os.fsencode(place) + b"\n" for place in left))
        os.rename(f"{self._home}/places.new", f"{self._home}/places")

    def _checkpoints(self) -> list[str]:
        names = [name.removesuffix(".json") for name in sorted(os.listdir(f"{self._home}/records"))]
        return [name for name in names if _CHECKPOINT.fullmatch(name)]

    def _path(self, checkpoint: str) -> str:
        if not _CHECKPOINT.fullmatch(checkpoint):
            raise ValueError(checkpoint)
        return f"{self._home}/records/{checkpoint}.json"

    def _write(self, checkpoint: CheckpointId, record: _Record) -> None:
        path = self._path(checkpoint)
        with open(path + ".new", "wb") as stream:
            stream.write(json.dumps([record.store, sorted(record.inodes)]).encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(path + ".new", path)
        journal.sync_directory(f"{self._home}/records")

    def _read(self, checkpoint: str) -> _Record | None:
        """The record of a checkpoint; None if it was damaged."""
        with open(self._path(checkpoint), "rb") as stream:
            raw = stream.read(RECORD_BYTES_MAX)
        try:
            store, inodes = json.loads(raw)
            return _Record(store=str(store), inodes=frozenset(int(inode) for inode in inodes))
        except (ValueError, TypeError):
            return None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            os.makedirs(f"{self._home}/records", mode=0o700, exist_ok=True)
            fd = os.open(f"{self._home}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # It is held for the time of some system calls: whoever waits, waits for milliseconds.
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
        except OSError as error:
            raise OsRefused(
                operation="keep the pins in",
                subject=self._home,
                reason=_reason(error),
                remedy="Make it writable, or set CKPT_STATE to a directory that is.",
            ) from error


def is_worth_a_pin(record: InodeRecord) -> bool:
    """Whether a workload may notice if this file becomes another inode: it has it open, or writes it by a map."""
    return (
        record.kind is FileKind.REGULAR
        and not record.deleted
        and record.filesystem.mountpoint != ""
        and record.filesystem.type not in _NEVER
        # Shared memory that has a name travels in the checkpoint.
        and os.path.dirname(record.path) != _SHARED_MEMORY
        and record.identity.inode == record.inode
        and record.identity.device == record.device
        and any(role.kind is RoleKind.FD or _writes_by_map(role) for role in record.roles)
    )


def _link(place: Place, directory: int, before: os.stat_result) -> os.stat_result:
    name = pin_name(before.st_ino)
    # O_PATH opens nothing: no lease is broken, and nobody who watches the file sees it.
    with place.opened(os.O_PATH) as fd:
        if identity_of(os.fstat(fd)) != identity_of(before):
            raise Refused("another file has its name now")
        with suppress(FileExistsError):
            calls.link_at(fd, directory, name)
        pin = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if identity_of(pin) == identity_of(before):
            return os.fstat(fd)
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
    raise Refused("a hard link to it has another identity on its file system")


def _sweep_place(path: str, needed: Collection[str]) -> bool:
    """Remove the pins of nobody; True if the directory is gone and need not be looked at again."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not is_ours(fd):
            return False
        for name in os.listdir(fd):
            if _PIN.fullmatch(name) and name not in needed:
                with suppress(OSError):
                    os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
    with suppress(OSError):  # not empty
        os.rmdir(path)
        return True
    return False


def _wanted(record: InodeRecord, status: os.stat_result) -> Wanted:
    return Wanted(
        path=record.path,
        device=record.device,
        inode=record.inode,
        generation=record.generation or 0,
        size=record.size_bytes,
        mtime_ns=record.mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def _writes_by_map(role: Role) -> bool:
    return role.kind is RoleKind.MAP and role.detail.endswith(_WRITES_FILE)


def _held_for_writing(roles: Iterable[Role]) -> bool:
    return any(
        _writes_by_map(role) or (role.kind is RoleKind.FD and "O_RDONLY" not in role.detail) for role in roles
    )


def _reason(error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return "its mount shows only a part of its file system"
    if error.errno == errno.EPERM:
        return "no hard link may be made to it"
    return error.strerror or str(error)
