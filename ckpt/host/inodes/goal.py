"""The inode goal of an ext4 file system: the number that it looks at first for the next new inode.

Rules:
- The goal is one for the whole file system, whoever makes a file: it is set for one call, under a lock that
  every ckpt of this host respects, and the former value is always written back.
- The number that was got is compared by the caller: somebody else may have been quicker.
Source: Documentation/ABI/testing/sysfs-fs-ext4, "inode_goal"; fs/ext4/ialloc.c, __ext4_new_inode().
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from typing import Final

from ckpt.host.inodes.places import Refused

LOWEST_NUMBER: Final = 12
"""The first ten are reserved, the eleventh is lost+found."""

_PATIENCE_S: Final = 2.0
_POLL_S: Final = 0.001
_TEXT_BYTES_MAX: Final = 32


def goal_path(device: int) -> str:
    """The file in /sys with the inode goal of the file system on this device.

    Raises:
        Refused: it is no ext4 on a disk, or this kernel has no such file.
    """
    link = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    try:
        disk = os.path.basename(os.readlink(link))
    except OSError as error:
        raise Refused("its file system is not ext4 on a disk") from error
    path = f"/sys/fs/ext4/{disk}/inode_goal"
    if not os.path.exists(path):
        raise Refused("its file system is not ext4, which alone can give a wanted inode number")
    return path


class Goal:
    """The inode goal of one file system, with its lock."""

    def __init__(self, path: str) -> None:
        """Take the file that goal_path() named.

        Raises:
            Refused: it cannot be written here.
        """
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(f"{path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)

    def read(self) -> int:
        """The goal now; 0 is none."""
        return int(os.pread(self._fd, _TEXT_BYTES_MAX, 0))

    def make(self, number: int, create: Callable[[], int]) -> int:
        """What `create` gives, called while the goal is `number`.

        Raises:
            Refused: another restore holds the goal for long.
            OSError: of `create`.
        """
        self._lock()
        try:
            former = self.read()
            self._write(number)
            try:
                return create()
            finally:
                self._write(former)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def restore(self, former: int) -> None:
        """Write a value that was read before.

        Raises:
            Refused: another restore holds the goal for long.
        """
        self._lock()
        try:
            if self.read() != former:
                self._write(former)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _write(self, number: int) -> None:
        os.pwrite(self._fd, b"%d" % number, 0)

    def _lock(self) -> None:
        # The file in /sys is the lock: there is one for each disk, whatever state directory a ckpt has.
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > end:
                    raise Refused("somebody else holds the inode goal of its disk") from error
                time.sleep(_POLL_S)
            else:
                return


def restore_goal(path: str, former: int) -> None:
    """Write a former goal back, if the file system is still there.

    Raises:
        Refused: it cannot be written.
    """
    if not (path.startswith("/sys/fs/ext4/") and path.endswith("/inode_goal") and os.path.exists(path)):
        return
    goal = Goal(path)
    try:
        goal.restore(former)
    finally:
        goal.close()
