"""Where the keeper of a migration's pages is found, in the migration's directory on the target.

Rule: the mark stays for as long as what came does: images without their pages are never taken for whole ones.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import NoSuchTarget, OsRefused

_SOCKET: Final = "pages"
_MARK: Final = "pages.lazy"


def socket_in(directory: str) -> str:
    """The path of the keeper's socket."""
    return f"{directory}/{_SOCKET}"


def is_lazy(directory: str) -> bool:
    """Whether memory was to follow what came."""
    return os.path.exists(f"{directory}/{_MARK}")


def mark_lazy(directory: str) -> None:
    """Note that memory will follow what comes.

    Raises:
        NoSuchTarget: nothing comes there.
        OsRefused: it cannot be written.
    """
    try:
        os.close(os.open(f"{directory}/{_MARK}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        raise NoSuchTarget(
            kind="migration", name=os.path.basename(directory), remedy="Offer it first."
        ) from None
    except OSError as error:
        raise OsRefused(
            operation="write in", subject=directory, reason=error.strerror or str(error)
        ) from error


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """Another path of the same file, short enough for the address of a socket (108 bytes, unix(7))."""
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def listen_at(path: str) -> socket.socket:
    """A socket of the file system at this path, in place of one that is there.

    Raises:
        OsRefused: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        with short_path(path) as short:
            listener.bind(short)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise OsRefused(operation="listen at", subject=path, reason=error.strerror or str(error)) from error
    return listener
