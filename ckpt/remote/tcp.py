"""Connections that notice when the other host is gone.

Rule: what is not confirmed for SILENCE_S ends a connection; the kernel alone would go on for a quarter of an hour.
Source: tcp(7).
"""

from __future__ import annotations

import socket
from typing import Final

from ckpt.remote.inflow import SILENCE_S

_IDLE_S: Final = 10
_PROBE_EVERY_S: Final = 5
_PROBES: Final = 3
_UNHEARD_MS: Final = int(SILENCE_S * 1000)


def watch(connection: socket.socket) -> None:
    """Send at once what is written, and let the connection break when the other host is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)
