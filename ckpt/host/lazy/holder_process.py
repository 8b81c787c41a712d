"""The holder's own process: keeps copies of the userfaultfds of tasks whose memory still comes, and watches the keeper.

Started by holder.py as `python -I -S -c …`.

Rules:
- When nobody holds a userfaultfd any more, missing pages read as zeros and the tasks run on with them. So where the
  keeper ends without the word that all pages are there, the tasks are killed before the copies are closed.
- Only what `-I -S` offers is imported.
Source: Documentation/admin-guide/mm/userfaultfd.rst; fs/userfaultfd.c, userfaultfd_release().
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Final, NoReturn

DONE: Final = b"done"
FAULTS: Final = b"faults"
RUNS: Final = b"runs "
"""Followed by the cgroup of the tasks, which run from now on."""
HEARD: Final = b"heard"

_MESSAGE_BYTES_MAX: Final = 8192


def main(arguments: list[str]) -> NoReturn:
    """Hold. Argument: the socket's number."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(each, signal.SIG_IGN)
    for path, value in (("/proc/self/comm", "ckpt-holder"), ("/proc/self/oom_score_adj", "-900")):
        with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as stream:
            stream.write(value)
    from ckpt.host.freezer_control import control_of  # noqa: PLC0415

    cgroup = _hold(socket.socket(fileno=int(arguments[0])))
    control = control_of(cgroup) if cgroup else None
    if control is not None:
        control.kill()
    os._exit(0)


def _hold(keeper: socket.socket) -> str:
    """The cgroup whose tasks must end; "" if none must."""
    cgroup = b""
    with contextlib.suppress(OSError):
        # The descriptors that come stay open until this process ends.
        while message := socket.recv_fds(keeper, _MESSAGE_BYTES_MAX, 1)[0]:
            if message == DONE:
                return ""
            if message.startswith(RUNS):
                cgroup = message.removeprefix(RUNS)
            keeper.send(HEARD)
    return os.fsdecode(cgroup)
