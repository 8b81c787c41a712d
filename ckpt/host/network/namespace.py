"""Network namespaces as descriptors: a new one, that of a process, and work inside one.

Rule: only the calling thread changes its namespace, and it comes back; what it opens or starts meanwhile stays there.
Source: network_namespaces(7), setns(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from ckpt.errors import OsRefused
from ckpt.host import linux
from ckpt.units import InodeNumber, Pid

_OWN: Final = "/proc/thread-self/ns/net"


def new_namespace() -> int:
    """A descriptor of an empty network namespace, which the caller closes.

    Raises:
        OsRefused: the kernel makes none.
    """
    with _returning():
        try:
            linux.unshare(linux.CLONE_NEWNET)
        except OSError as error:
            raise OsRefused(
                operation="make", subject="a network namespace", reason=error.strerror or str(error)
            ) from error
        return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def namespace_of(pid: Pid) -> int:
    """A descriptor of the process's network namespace, which the caller closes.

    Raises:
        OSError: it has ended.
    """
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def inode_of(namespace: int) -> InodeNumber:
    """What identifies the namespace on this host, while it lives."""
    return InodeNumber(os.fstat(namespace).st_ino)


@contextlib.contextmanager
def within(namespace: int) -> Iterator[None]:
    """Be in the namespace for the body: sockets that are opened, and programs that are started, are there."""
    with _returning():
        linux.setns(namespace, linux.CLONE_NEWNET)
        yield


@contextlib.contextmanager
def _returning() -> Iterator[None]:
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        # It cannot fail: the descriptor keeps the namespace, and what let us out lets us in.
        linux.setns(home, linux.CLONE_NEWNET)
        os.close(home)
