"""Take the sockets of frozen processes out of TCP repair mode, where a CRIU that was killed left them.

To read a connection's queues CRIU switches its socket into repair mode, and back when it is done. A program
that goes on with a socket in repair mode loses its connection: what it sends only counts up the sequence
number (seen: the peer gets RST). CRIU switches back by itself in every case but one: SIGKILL.
Rule: the processes must be frozen, so that none of them uses a socket meanwhile.
Source: tcp(7) lacks it; net/ipv4/tcp.c, TCP_REPAIR; criu/sk-tcp.c, tcp_repair_off(); pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from typing import Final

from ckpt.host import linux
from ckpt.units import Pid

_TCP_REPAIR: Final = 19
_OFF: Final = 0


def end_tcp_repair(pids: Iterable[Pid]) -> int:
    """Switch repair mode off where it is on; gives the number of sockets. A process that has ended has none."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                count += sum(_end(pidfd, fd) for fd in _sockets(pid))
            finally:
                os.close(pidfd)
    return count


def _sockets(pid: Pid) -> list[int]:
    directory = f"/proc/{pid}/fd"
    found: list[int] = []
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            if os.readlink(f"{directory}/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def _end(pidfd: int, fd: int) -> bool:
    try:
        with socket.socket(fileno=linux.pidfd_getfd(pidfd, fd)) as shared:
            if shared.type != socket.SOCK_STREAM or shared.family not in (socket.AF_INET, socket.AF_INET6):
                return False
            if shared.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR) == _OFF:
                return False
            shared.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF)
            return True
    except OSError:  # closed meanwhile, or no TCP socket
        return False
