"""Whether this kernel lets stat calls be answered from outside: asked of the kernel itself.

Source: seccomp(2), SECCOMP_GET_ACTION_AVAIL.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from ckpt.host.virtual import covering
from ckpt.host.virtual.calls import stat_calls

_GET_ACTION_AVAIL: Final = 2
_RET_USER_NOTIF: Final = 0x7FC00000
_libc: Final = ctypes.CDLL(None, use_errno=True)


def why_no_layer() -> str:
    """Why no virtual layer can be put over tasks here; "" if it can."""
    calls = stat_calls()
    if reason := covering.why_not():
        return reason
    assert calls is not None  # why_not() has looked
    action = ctypes.c_uint32(_RET_USER_NOTIF)
    if _libc.syscall(calls.seccomp, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) < 0:
        return f"the kernel has no seccomp user notification ({os.strerror(ctypes.get_errno())})"
    return ""
