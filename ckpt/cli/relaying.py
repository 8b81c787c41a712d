"""Hand on what a job writes to files, as it comes, without ever being stuck on a reader that does not read.

Rule: an output that blocks gets an open file description of our own for it: O_NONBLOCK on the one that we share
with others would be seen by them.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from dataclasses import dataclass, field
from typing import Final

from ckpt.errors import OsRefused

_STREAMS: Final = {1: "our standard output", 2: "our standard error"}
_BLOCK_BYTES: Final = 1 << 16
_SOCKET_BLOCK_BYTES: Final = 4096
"""What poll(2) promises room for where a descriptor cannot be opened anew."""


@dataclass(slots=True, kw_only=True)
class Source:
    """A file that a job writes to, how far it was relayed, and the descriptor that it is relayed to."""

    path: str
    offset: int
    target: int
    is_blocked: bool = False
    """Whether the target takes no more at present."""

    is_lost: bool = False
    """Whether the target could not be written: what came since is in the file alone."""

    _own: int = field(default=-1, repr=False)
    _is_gone: bool = False

    def relay(self) -> None:
        """Copy what is new, all of it; waits for the target."""
        while not self.push():
            poll = select.poll()
            poll.register(self.out, select.POLLOUT)
            poll.poll()

    def push(self) -> bool:
        """Copy what is new, as far as the target takes it; gives whether it took all.

        Raises:
            BrokenPipeError: whoever read the target is gone; from then on nothing is copied.
            OsRefused: it cannot be written; from then on nothing is copied.
        """
        self.is_blocked = False
        if self._is_gone:
            return True
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            size = _SOCKET_BLOCK_BYTES if self._is_shared else _BLOCK_BYTES
            while block := os.pread(fd, size, self.offset):
                if self._is_shared and not _has_room(self.target):
                    raise BlockingIOError  # noqa: TRY301 - what a descriptor of our own raises by itself
                self.offset += os.write(self.out, block)
        except BlockingIOError:
            self.is_blocked = True
        except BrokenPipeError:
            self._is_gone = True
            raise
        except OSError as error:
            # The terminal is gone (EIO): whoever should know of it gets SIGHUP.
            self._is_gone = True
            if error.errno != errno.EIO:
                self.is_lost = True
                raise OsRefused(
                    operation="write",
                    subject=_STREAMS.get(self.target, "our output"),
                    reason=error.strerror or str(error),
                    remedy=f"The job goes on; all that it writes is in {self.path}.",
                ) from error
        finally:
            os.close(fd)
        return not self.is_blocked

    @property
    def out(self) -> int:
        """The descriptor that is written to."""
        if self._own < 0:
            self._own = _own_descriptor(self.target)
        return self._own

    @property
    def _is_shared(self) -> bool:
        return self.out == self.target and not _never_blocks(self.target)

    def close(self) -> None:
        """Close what was opened for it."""
        if self._own not in (-1, self.target):
            os.close(self._own)
        self._own = -1


def _own_descriptor(target: int) -> int:
    """An open file description of our own that does not block; the target itself where there can be none."""
    if _never_blocks(target):
        return target
    try:
        return os.open(f"/proc/self/fd/{target}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # A socket, or a pipe that nobody reads.
        if error.errno in (errno.ENXIO, errno.EACCES, errno.ENOENT, errno.EIO, errno.EPERM):
            return target
        raise


def _never_blocks(target: int) -> bool:
    # Opened anew, a regular file would begin at its beginning.
    return stat.S_ISREG(os.fstat(target).st_mode)


def _has_room(target: int) -> bool:
    poll = select.poll()
    poll.register(target, select.POLLOUT)
    return any(events & (select.POLLOUT | select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
