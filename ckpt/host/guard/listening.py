"""The listening socket of a service: the one that systemd passed, or one that is made at a path.

Rules:
- What is passed is taken only if it is meant for this process, and is a listening stream socket of AF_UNIX.
- A socket that nobody listens at any more is replaced; one that somebody listens at is not.
Source: sd_listen_fds(3), systemd.socket(5); unix(7).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from ckpt.errors import OsRefused, Usage, WrongState

_FIRST_PASSED: Final = 3
_BACKLOG: Final = 16
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """The socket that systemd passed to this process, else one at `path`, which is removed at the end.

    Raises:
        Usage: what was passed is no such socket, or not one alone.
        WrongState: somebody listens at `path`.
        OsRefused: no socket can be made there.
    """
    listener = _passed()
    if listener is not None:
        with listener:
            yield listener
        return
    with _made(path) as listener:
        try:
            yield listener
        finally:
            with suppress(OSError):
                os.unlink(path)


def _passed() -> socket.socket | None:
    said = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if said["LISTEN_PID"] != str(os.getpid()):
        return None
    if said["LISTEN_FDS"] != "1":
        raise Usage(problem=f"systemd passed {said['LISTEN_FDS'] or 'no'} sockets; it must be one.")
    try:
        os.set_inheritable(_FIRST_PASSED, False)
        found = socket.socket(fileno=_FIRST_PASSED)
    except OSError as error:
        raise Usage(problem=f"What was passed as descriptor {_FIRST_PASSED} is no socket.") from error
    if (
        found.family is not socket.AF_UNIX
        or found.type is not socket.SOCK_STREAM
        or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        found.close()
        raise Usage(
            problem=f"What was passed as descriptor {_FIRST_PASSED} is no listening unix stream socket.",
            remedy="The socket unit must have ListenStream= with a path, and Accept=no.",
        )
    return found


def _made(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        _remove_stale(path)
        # Made for its owner alone: between bind(2) and a chmod(2) anybody could connect.
        former = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(former)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OsRefused(operation="listen at", subject=path, reason=error.strerror or str(error)) from error
    except WrongState:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # bind(2) says that there is something
    except FileNotFoundError:
        return
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as asking:
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise WrongState(
        subject=f"The socket {path}",
        state="in use",
        operation="guard-hook",
        needed="free",
        remedy="Another process listens there: end it first, or name another path.",
    )
