"""The content and the attributes of one open file for another: shared where the file system can, holes as holes.

Source: ioctl_ficlone(2), lseek(2) "SEEK_DATA", copy_file_range(2), xattr(7), acl(5).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

from ckpt.host.inodes import calls

_BLOCK_BYTES: Final = 1 << 16
_COMPARE_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_BLOCK_BYTES)
_COPIED_FLAGS: Final = 0x000000CB
"""Secure deletion, undeletion, synchronous, no dump, no access times: the flags that change no content."""

_SPECIAL_FLAGS: Final = 0x40100830
"""Immutable, append-only, encrypted, verity, without case: what a copy would lack, or what forbids replacing the file."""

_CANNOT_CLONE: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EBADF, errno.ETXTBSY)


def copy_content(source: int, target: int, *, zeros_are_holes: bool = False) -> None:
    """Let `target` hold what `source` holds, in whatever it held before.

    Args:
        source: Open for reading.
        target: Open for reading and writing.
        zeros_are_holes: Whether blocks of zeros in `source` are holes: what comes out of a store has none.

    Raises:
        OSError: there is no space; then the content of `target` is neither.
    """
    size = os.fstat(source).st_size
    try:
        calls.clone(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        _copy_data(source, target, size, zeros_are_holes=zeros_are_holes)
    os.ftruncate(target, size)


def copy_attributes(source: int, target: int) -> None:
    """Let `target` have the owner, mode, extended attributes, access lists and times of `source`.

    Raises:
        OSError: one of them cannot be set.
    """
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, status.st_mode & 0o7777)
    # After the owner: that takes capabilities away, which are an attribute.
    _copy_xattrs(source, target)
    flags = calls.inode_flags(source) & _COPIED_FLAGS
    before = calls.inode_flags(target)
    if before & _COPIED_FLAGS != flags:
        calls.set_inode_flags(target, before & ~_COPIED_FLAGS | flags)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def same_content(one: int, other: int) -> bool:
    """Whether two open files hold the same bytes."""
    here, there = os.fstat(one), os.fstat(other)
    if here.st_size != there.st_size or os.path.samestat(here, there):
        return here.st_size == there.st_size
    size = here.st_size
    at = 0
    while at < size:
        block = os.pread(one, _COMPARE_BYTES, at)
        if not block or block != os.pread(other, len(block), at):
            return False
        at += len(block)
    return True


def begins_with(whole: int, beginning: int) -> bool:
    """Whether an open file holds what another one holds, and more after it."""
    size = os.fstat(beginning).st_size
    if os.fstat(whole).st_size <= size:
        return False
    at = 0
    while at < size:
        block = os.pread(beginning, _COMPARE_BYTES, at)
        if not block or block != os.pread(whole, len(block), at):
            return False
        at += len(block)
    return True


def copy_to(source: int, start: int, target: int, at: int) -> None:
    """Copy what an open file holds from `start` on to where `at` is in another one.

    Raises:
        OSError: there is no space.
    """
    while block := os.pread(source, _COMPARE_BYTES, start):
        written = 0
        while written < len(block):
            written += os.pwrite(target, block[written:], at + written)
        start += len(block)
        at += len(block)


def same_attributes(one: int, other: int) -> bool:
    """Whether what copy_attributes() copies is equal, but for the time of the last access."""
    here, there = os.fstat(one), os.fstat(other)
    return (
        (here.st_mode, here.st_uid, here.st_gid, here.st_mtime_ns)
        == (there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns)
        and _xattrs(one) == _xattrs(other)
        and not (calls.inode_flags(one) ^ calls.inode_flags(other)) & _COPIED_FLAGS
    )


def is_special(fd: int) -> bool:
    """Whether the file has attributes that no copy of it can have, or that forbid replacing it."""
    return bool(calls.inode_flags(fd) & _SPECIAL_FLAGS)


def needed_bytes(fd: int) -> int:
    """What a copy takes on the disk, in bytes."""
    return os.fstat(fd).st_blocks * 512


def check_space(directory: int, needed: int) -> None:
    """Nothing, if so many bytes fit on the file system of an open directory.

    Raises:
        OSError: ENOSPC if not.
    """
    space = os.fstatvfs(directory)
    if needed > space.f_bavail * space.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy_data(source: int, target: int, size: int, *, zeros_are_holes: bool) -> None:
    old_size = os.fstat(target).st_size
    at = 0
    while at < size:
        try:
            data = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size  # a hole up to the end
        data = min(data, size)
        _clear(target, at, min(data, old_size))
        if data == size:
            break
        at = min(size, os.lseek(source, data, os.SEEK_HOLE))
        if zeros_are_holes:
            _send_blocks(source, target, data, at, old_size)
        else:
            _send(source, target, data, at)


def _send(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            count = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
            count = os.pwrite(target, os.pread(source, min(_COMPARE_BYTES, end - start), start), start)
        if count == 0:  # somebody outside cut it short
            break
        start += count


def _send_blocks(source: int, target: int, start: int, end: int, old_size: int) -> None:
    while start < end:
        block = os.pread(source, min(_BLOCK_BYTES, end - start), start)
        if not block:
            break
        if block == _ZEROS[: len(block)]:
            _clear(target, start, min(start + len(block), old_size))
        else:
            written = 0
            while written < len(block):
                written += os.pwrite(target, block[written:], start + written)
        start += len(block)


def _clear(target: int, start: int, end: int) -> None:
    """Let what the file held there read as zeros."""
    if start >= end:
        return
    try:
        calls.punch_hole(target, start, end - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        while start < end:
            start += os.pwrite(target, _ZEROS[: end - start], start)


def _xattrs(fd: int) -> dict[str, bytes]:
    try:
        return {name: os.getxattr(fd, name) for name in os.listxattr(fd)}
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise


def _copy_xattrs(source: int, target: int) -> None:
    wanted, there = _xattrs(source), _xattrs(target)
    for name in there.keys() - wanted.keys():
        with suppress(FileNotFoundError):
            os.removexattr(target, name)
    for name, value in wanted.items():
        if there.get(name) != value:
            os.setxattr(target, name, value)
