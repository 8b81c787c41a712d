"""The door to the kernel of the supervisor's processes: notifications, another task's memory, stat calls.

Rules: functions give what the kernel gives, and -1 with errno() for an error; they allocate nothing that can be
avoided. Addresses are numbers. Nothing but the standard library is imported.
Source: seccomp_unotify(2), process_vm_readv(2), openat2(2), statx(2), capget(2); include/uapi/linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final

from ckpt.host.virtual.calls import StatCalls

NOTIFICATION: Final = struct.Struct("<QIIiIQ6Q")
"""struct seccomp_notif: id, pid, flags, then struct seccomp_data: nr, arch, instruction_pointer, args."""

FLAG_CONTINUE: Final = 1

_RESPONSE: Final = struct.Struct("<QqiI")
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_NOTIF_ID_VALID, _NOTIF_ID_VALID_OLD = 0x40082102, 0x80082102
_NOTIF_SET_FLAGS: Final = 0x40082104
_FD_SYNC_WAKE_UP: Final = 1
_SYS_OPENAT2: Final = 437  # on every architecture
_CAPABILITY_HEAD: Final = struct.Struct("<Ii")
_CAPABILITY_VERSION: Final = 0x20080522
_CAPABILITY_SETS_BYTES: Final = 24
_LONG: Final = ctypes.c_long

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc["syscall"]
_syscall.argtypes = (_LONG,) * 6
_syscall.restype = _LONG
# The same function once more, for a path that is given as bytes.
_syscall_at = _libc["syscall"]
_syscall_at.argtypes = (_LONG, _LONG, ctypes.c_char_p, _LONG, _LONG, _LONG)
_syscall_at.restype = _LONG
_ioctl = _libc["ioctl"]
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_readv = _libc["process_vm_readv"]
_writev = _libc["process_vm_writev"]
for _function in (_readv, _writev):
    _function.argtypes = (ctypes.c_int, ctypes.c_void_p, _LONG, ctypes.c_void_p, _LONG, _LONG)
    _function.restype = ctypes.c_ssize_t

errno = ctypes.get_errno


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("size", ctypes.c_size_t))


class TaskMemory:
    """Reads and writes other tasks' memory, by the task's id: what a handle would refer to changes at an exec."""

    def __init__(self) -> None:
        self._local = _Iovec(0, 0)
        self._remote = (_Iovec * 2)()
        self._addresses = (ctypes.addressof(self._local), ctypes.addressof(self._remote))

    def read(self, task: int, address: int, size: int, to: int, granule: int) -> int:
        """Bring up to `size` bytes to the address `to`; fewer where what follows a granule is not mapped."""
        first = min(size, granule - address % granule)
        self._local.base, self._local.size = to, size
        self._remote[0].base, self._remote[0].size = address, first
        self._remote[1].base, self._remote[1].size = address + first, size - first
        return int(_readv(task, self._addresses[0], 1, self._addresses[1], 2, 0))

    def write(self, task: int, address: int, size: int, source: int) -> int:
        """Bring `size` bytes from the address `source` to the task."""
        self._local.base, self._local.size = source, size
        self._remote[0].base, self._remote[0].size = address, size
        return int(_writev(task, self._addresses[0], 1, self._addresses[1], 1, 0))


class Files:
    """Opens and looks at files."""

    def __init__(self, calls: StatCalls) -> None:
        self._calls = calls
        self._head = ctypes.create_string_buffer(_CAPABILITY_HEAD.size)
        self._head_address = ctypes.addressof(self._head)
        self._sets = ctypes.create_string_buffer(_CAPABILITY_SETS_BYTES)
        self._sets_address = ctypes.addressof(self._sets)

    def open_at(self, directory: int, path: int, how: int, how_bytes: int) -> int:
        """openat2: `path` and `how` are addresses."""
        return int(_syscall(_SYS_OPENAT2, directory, path, how, how_bytes, 0))

    def look(self, directory: int, path: bytes, flags: int, to: int) -> int:
        """newfstatat: fill the struct stat at `to`."""
        return int(_syscall_at(self._calls.fstatat, directory, path, to, flags, 0))

    def look_extended(self, directory: int, path: bytes, flags: int, mask: int, to: int) -> int:
        """Fill the struct statx at `to`."""
        return int(_syscall_at(self._calls.statx, directory, path, flags, mask, to))

    def takes_null_path(self, directory: int, flags: int, to: int) -> bool:
        """Whether this kernel takes no path at all for an empty one."""
        return not _syscall(self._calls.fstatat, directory, 0, to, flags, 0)

    def capabilities(self, task: int) -> int:
        """The lower 32 effective capabilities of a thread; none if it is gone."""
        _CAPABILITY_HEAD.pack_into(self._head, 0, _CAPABILITY_VERSION, task)
        if _syscall(self._calls.capget, self._head_address, self._sets_address, 0, 0, 0):
            return 0
        return int.from_bytes(self._sets.raw[:4], "little")

    def act_as(self, fsuid: int, fsgid: int, groups: list[int]) -> None:
        """Look at files with these rights from now on. Of this thread alone: libc would tell all."""
        array = (ctypes.c_uint * max(1, len(groups)))(*groups)
        _syscall(self._calls.setgroups, len(groups), ctypes.addressof(array), 0, 0, 0)
        _syscall(self._calls.setfsgid, fsgid, 0, 0, 0, 0)
        _syscall(self._calls.setfsuid, fsuid, 0, 0, 0, 0)


class Response:
    """Answers notifications; its memory is allocated once."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(_RESPONSE.size)
        self._address = ctypes.addressof(self._buffer)
        self._id = ctypes.c_uint64(0)
        self._id_address = ctypes.addressof(self._id)
        self._valid_request = _NOTIF_ID_VALID

    def is_valid(self, listener: int, notification: int) -> bool:
        """Whether the task still waits for the answer."""
        self._id.value = notification
        if not _ioctl(listener, self._valid_request, self._id_address):
            return True
        if errno() == _ENOTTY_OR_EINVAL[0] or errno() == _ENOTTY_OR_EINVAL[1]:
            # Before Linux 5.9 the request had its direction the wrong way round.
            self._valid_request = _NOTIF_ID_VALID_OLD
            return not _ioctl(listener, self._valid_request, self._id_address)
        return False

    def send(self, listener: int, notification: int, flags: int) -> None:
        """Let the task go on: with result 0, or with its own call by FLAG_CONTINUE. If it is gone, so be it."""
        _RESPONSE.pack_into(self._buffer, 0, notification, 0, 0, flags)
        _ioctl(listener, _NOTIF_SEND, self._address)


_ENOTTY_OR_EINVAL: Final = (25, 22)


def receive(listener: int, to: int) -> bool:
    """Take the next notification to the address `to`, which must hold zeros; False if there is none after all."""
    return bool(_ioctl(listener, _NOTIF_RECV, to) == 0)


def wake_at_once(listener: int) -> bool:
    """Hand the processor over directly between task and supervisor, where the kernel can; whether it can."""
    return bool(_ioctl(listener, _NOTIF_SET_FLAGS, _FD_SYNC_WAKE_UP) == 0)


def filesystem_type(fd: int) -> int:
    """The magic number of the file system that a file lives on; -1 if it cannot be told."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        return -1
    return int.from_bytes(buffer.raw[: ctypes.sizeof(_LONG)], "little")
