"""The text of a file of /proc, in half of the time that open() takes: there are hundreds of them."""

from __future__ import annotations

import os
from typing import Final

_READ_BYTES: Final = 1 << 16


def read_text(path: str) -> str:
    """The whole text; what is not UTF-8 is replaced.

    Raises:
        OSError: it is not there, or its process has ended.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while part := os.read(fd, _READ_BYTES):
            text += part
    finally:
        os.close(fd)
    return text.decode(errors="replace")
