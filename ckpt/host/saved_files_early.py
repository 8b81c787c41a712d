"""Copies of files that do not seem to change, made before the freeze, so that under it only what changed is copied.

Rules:
- A copy counts only if the file's version (device, inode, size, mtime, ctime) was the same before it, after it and
  under the freeze, and if its ctime was old by then: a clock of a few milliseconds, or of seconds, gives two changes
  one time.
- Who writes through a shared mapping that was there before the copy need not change the times: such a file is copied
  under the freeze. One that is mapped later gets a new time when it is first written to; but not on a tmpfs.
- Only on file systems whose clock is this host's.
Source: mm/memory.c, fault_dirty_shared_page(); mm/mmap.c, vma_wants_writenotify().
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from ckpt.host.inodes.attributes import attributes_of
from ckpt.host.saved_files_found import FoundFile, filesystem_of
from ckpt.host.saved_files_record import READ, version_of
from ckpt.host.sparse_copy import copy_frozen
from ckpt.model.checkpoint import ExtendedAttribute
from ckpt.units import SECOND

SETTLED_NS: Final = 2 * SECOND
"""How old the last change of a file must be: the coarsest of the file systems count in seconds."""

_TRUSTED: Final = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "overlay"))
_SHARED: Final = re.compile(rb"^\S+ .w.s \S+ \S+ (\d+) +(/.*)$", re.MULTILINE)
_MAPS_BYTES_MAX: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyCopy:
    """A copy that was made early, and what was said of the file then."""

    path: str
    version: tuple[int, ...]
    attributes: tuple[ExtendedAttribute, ...]


class EarlyCopies:
    """The early copies of one dump."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], EarlyCopy] = {}

    def make(self, files: Iterable[FoundFile], places: Mapping[int, str]) -> None:
        """Copy those of the files that do not seem to change; never fails: what cannot be copied is not.

        Args:
            files: In any order.
            places: From a device to the directory for copies of the files on it.
        """
        settled_ns = time.time_ns() - SETTLED_NS
        trusted: dict[int, bool] = {}
        quiet = []
        for file in files:
            device = file.status.st_dev
            if device not in trusted:
                trusted[device] = filesystem_of(file.path) in _TRUSTED
            if trusted[device] and max(file.status.st_ctime_ns, file.status.st_mtime_ns) < settled_ns:
                quiet.append(file)
        if not quiet:
            return
        # Before the copies: what is mapped after this is not written to without a new time.
        inodes, paths = _mapped_to_write()
        for file in quiet:
            key = (file.status.st_dev, file.status.st_ino)
            if key not in self._copies and key[1] not in inodes and file.path not in paths:
                with suppress(OSError):
                    self._copy(file, f"{places[key[0]]}/saved-early-{len(self._copies)}")

    def of(self, status: os.stat_result) -> EarlyCopy | None:
        """The copy of a file that has this status now, if there is one, and it still counts."""
        early = self._copies.get((status.st_dev, status.st_ino))
        return early if early is not None and early.version == version_of(status) else None

    def _copy(self, file: FoundFile, path: str) -> None:
        source = os.open(file.path, READ)
        try:
            version = version_of(file.status)
            if version_of(os.fstat(source)) != version:
                return
            try:
                copy_frozen(source, file.status.st_size, path)
                attributes = attributes_of(source)
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                raise
            if version_of(os.fstat(source)) != version:
                os.unlink(path)
                return
        finally:
            os.close(source)
        self._copies[version[0], version[1]] = EarlyCopy(path=path, version=version, attributes=attributes)


def _mapped_to_write() -> tuple[set[int], set[str]]:
    """The inode numbers and the paths of all files that any process may write to through a shared mapping.

    Without the devices: that of a mapping is another one than stat(2) gives on some file systems.
    """
    inodes: set[int] = set()
    paths: set[str] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        # It may end meanwhile.
        with suppress(OSError), open(f"/proc/{name}/maps", "rb") as stream:
            for inode, path in _SHARED.findall(stream.read(_MAPS_BYTES_MAX)):
                inodes.add(int(inode))
                paths.add(os.fsdecode(path))
    return inodes, paths
