"""Does a process carry a stub of an earlier restore? Asked without stopping it, of every restored process.

Rule: a stub is anonymous memory that is run (stub.py); whatever else is, a JIT's, does not begin like one.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ckpt.host.virtual.mappings import mappings_of
from ckpt.host.virtual.stub import PAGE, decode_stub
from ckpt.units import Pid


def carries_stub(pid: Pid) -> bool:
    """Whether there is one in its memory; False for a process that cannot be read."""
    with suppress(OSError):
        texts = [each for each in mappings_of(pid) if each.is_text and not each.file]
        if texts:
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return any(_begins_with_stub(memory, each.start) for each in texts)
            finally:
                os.close(memory)
    return False


def _begins_with_stub(memory: int, address: int) -> bool:
    with suppress(OSError):
        return decode_stub(os.pread(memory, PAGE, address), address) is not None
    return False
