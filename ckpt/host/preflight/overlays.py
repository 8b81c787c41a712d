"""Which layer of an overlay a file is in: its file handle tells, and nothing else does for a deleted one.

Source: struct ovl_fb in the kernel's fs/overlayfs/overlayfs.h; name_to_handle_at(2), AT_HANDLE_FID since Linux 6.5.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_AT_FDCWD, _AT_SYMLINK_FOLLOW, _AT_HANDLE_FID = -100, 0x400, 0x200
_HANDLE_HEAD, _HANDLE_BYTES_MAX = 8, 128
_FLAGS_AT: Final = 6
"""Three bytes of padding come first, then version, magic and length."""

_OF_UPPER: Final = 4
_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_of_upper_layer(path: str) -> bool:
    """Whether the file that a path leads to is in the upper layer; true where the kernel does not tell."""
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD + _HANDLE_BYTES_MAX)
    ctypes.c_uint32.from_buffer(buffer).value = _HANDLE_BYTES_MAX
    mount = ctypes.c_int()
    flags = _AT_SYMLINK_FOLLOW | _AT_HANDLE_FID
    if _libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), flags):
        return True
    return bool(buffer.raw[_HANDLE_HEAD + _FLAGS_AT] & _OF_UPPER)
