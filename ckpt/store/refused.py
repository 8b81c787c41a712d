"""What an OSError of the store's directory means, in our words: the one place where it is converted."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ckpt.errors import CkptError, NoSpace, StoreUnusable

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_REMEDIES: Final = {
    errno.EROFS: "The file system is mounted read-only: remount it, or choose another place with --store.",
    errno.EACCES: "Run ckpt as the store's owner or as root, or choose another place with --store.",
    errno.EPERM: "Run ckpt as root; a file system without hard links cannot hold a store.",
    errno.ENOTDIR: "Choose another place with --store.",
    errno.EMFILE: "Raise the limit of open files: ulimit -n.",
    errno.EIO: "The disk fails: look at the kernel's log, and copy what can still be read.",
}


@contextmanager
def converted(place: str, needed_bytes: int = 0) -> Iterator[None]:
    """Turn an OSError of the body into NoSpace or StoreUnusable."""
    try:
        yield
    except OSError as error:
        raise refusal(place, error, needed_bytes) from error


def refusal(place: str, error: OSError, needed_bytes: int = 0) -> CkptError:
    """The error that this OSError means for the store at `place`."""
    if error.errno in FULL:
        return no_space(place, needed_bytes)
    number = error.errno or errno.EIO
    reason = os.strerror(number)
    if error.filename and str(error.filename) != place:
        reason = f"{reason} ({error.filename})"
    return StoreUnusable(place=place, reason=reason, remedy=_REMEDIES.get(number, ""))


def no_space(place: str, needed_bytes: int) -> NoSpace:
    """The error for a full file system, with what is still free there."""
    try:
        figures = os.statvfs(place)
        available = figures.f_bavail * figures.f_frsize
    except OSError:
        available = 0
    return NoSpace(place=place, available_bytes=available, needed_bytes=needed_bytes)
