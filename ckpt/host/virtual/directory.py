"""A layer's directory as the supervisor sees it: by descriptors, because its root may be another one.

    table       what is shown for what: a head, then ENTRY_BYTES for each entry (table.py)
    processes   in whom the filters were put (registry.py)
    servers     who answers: "PID PID", the one that answers first
    control     the socket at which controllers reach these
    server.log  empty, unless the supervisor itself is at fault

Rule: only the standard library is imported: the supervisor's processes hold this module in their memory.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import Final

from ckpt.host.virtual.answering import ENTRY_BYTES

TABLE_NAME, PROCESSES_NAME, SERVERS_NAME = "table", "processes", "servers"
CONTROL_NAME, LOG_NAME = "control", "server.log"
NEW: Final = ".new"
"""Behind the name of a file that is being written, until it takes its place."""
NAMES: Final = (
    *(TABLE_NAME, TABLE_NAME + NEW, PROCESSES_NAME, PROCESSES_NAME + NEW),
    *(SERVERS_NAME, SERVERS_NAME + NEW, CONTROL_NAME, LOG_NAME),
)
"""All that a layer's directory may hold."""

_TABLE_HEAD: Final = struct.Struct("<8sQ")
_TABLE_BYTES_MAX: Final = _TABLE_HEAD.size + (1 << 16) * ENTRY_BYTES
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class LayerDirectory:
    """The directory of the layer that this process serves. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._parent = os.open(os.path.dirname(path), _DIRECTORY)
        self._name = os.path.basename(path)
        self._place = os.open(path, _DIRECTORY)

    def read_table(self) -> bytes:
        """The entries of the table. Raises ValueError if it is damaged."""
        fd = os.open(TABLE_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._place)
        with open(fd, "rb") as stream:
            content = stream.read(_TABLE_BYTES_MAX + 1)
        if len(content) > _TABLE_BYTES_MAX or (len(content) - _TABLE_HEAD.size) % ENTRY_BYTES:
            raise ValueError("the table is damaged")
        return content[_TABLE_HEAD.size :]

    def write_servers(self, content: bytes) -> None:
        """Leave word who serves."""
        name = SERVERS_NAME + NEW
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._place)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        os.rename(name, SERVERS_NAME, src_dir_fd=self._place, dst_dir_fd=self._place)

    def remove(self) -> None:
        """Take all of it away, as far as it is there."""
        for name in NAMES:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._place)
        with suppress(OSError):
            os.rmdir(self._name, dir_fd=self._parent)
