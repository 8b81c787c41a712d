"""How the supervisor answers one stat call: as the kernel does, with other numbers where the table says so.

Rules:
- What is not in the table, and whatever goes wrong here, is left to the task's own call (FLAG_CONTINUE): its
  result or its error is the kernel's. A call is answered here only when it can be answered fully.
- A path is resolved in the task's root: this process changes its root to the task's and opens the path from
  there; symbolic links and ".." then mean what they mean to the task, in its mount namespace too.
- A task that may not look everywhere is answered only if the path can be opened with its credentials. In a user
  namespace of its own it may, if it has the capability there: the table is about its own files.
- Nothing is imported after the start: the root may be another one.
Source: seccomp_unotify(2), openat2(2), path_resolution(7), proc_pid_fd(5), credentials(7); struct stat, struct
statx.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

from ckpt.host.virtual.calls import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, StatCalls
from ckpt.host.virtual.kernel import Files, TaskMemory, errno
from ckpt.host.virtual.walking import walk

STATX_BYTES: Final = 256
ENTRY_BYTES: Final = 32

_STAT_BYTES: Final = 128 if platform.machine() == "aarch64" else 144
_PATH_BYTES_MAX: Final = 4096
_PAGE_BYTES: Final = 4096
_ENOENT, _ELOOP = 2, 40
_O_PATH: Final = os.O_PATH | os.O_CLOEXEC
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_OPEN_HOW: Final = struct.Struct("<3Q")
_STATX_INO, _STATX_BASIC_AND_MNT_ID = 0x100, 0x17FF
_AT_NO_AUTOMOUNT, _AT_STATX_SYNC = 0x800, 0x6000
_FLAGS_KNOWN: Final = AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | AT_EMPTY_PATH | _AT_STATX_SYNC
_STATX_MASK_RESERVED: Final = 1 << 31
# Where the identity stands in the two structures.
_STAT_IDENTITY: Final = slice(0, 16)
_STATX_MASK: Final = slice(0, 4)
_STATX_INODE: Final = slice(0x20, 0x28)
_STATX_DEVICE: Final = slice(0x88, 0x90)
_STATX_DEVICE_AND_MOUNT: Final = slice(0x88, 0x98)
_LOOKS_EVERYWHERE: Final = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_STATUS_BYTES_MAX: Final = 1 << 20  # a task may be in 65,536 groups


class Answers:
    """Answers calls by a table, one at a time, in a process of one thread."""

    def __init__(self, calls: StatCalls) -> None:
        self._calls = calls
        self._files = Files(calls)
        self._memory = TaskMemory()
        self._proc = os.open("/proc", _O_PATH | os.O_DIRECTORY)
        self._home = os.open("/", _O_PATH | os.O_DIRECTORY)
        self._groups = os.getgroups()
        self._rights: tuple[int, int, list[int]] | None = None
        self._stats: dict[bytes, bytes] = {}
        self._statxs: dict[bytes, tuple[bytes, bytes]] = {}
        self._path = ctypes.create_string_buffer(_PATH_BYTES_MAX)
        self._path_address = ctypes.addressof(self._path)
        found = ctypes.create_string_buffer(STATX_BYTES)
        self._found = memoryview(found).cast("B")
        self._found_address = ctypes.addressof(found)
        self._how = [
            ctypes.create_string_buffer(_OPEN_HOW.pack(_O_PATH | flags, 0, _RESOLVE_NO_MAGICLINKS))
            for flags in (0, os.O_NOFOLLOW)
        ]
        self._how_addresses = [ctypes.addressof(how) for how in self._how]
        self._null_path = self._files.takes_null_path(self._home, AT_EMPTY_PATH, self._found_address)
        self._home_key = self._root_key(os.getpid())
        self._root = self._home_key
        self._sees_no_self = False

    @property
    def away(self) -> bool:
        """Whether this process stands in another root than its own, and so keeps it from being unmounted."""
        return self._root != self._home_key

    def use(self, entries: bytes) -> None:
        """Answer by this table from now on: (real device, real inode, device, inode), 64 bits each."""
        stats: dict[bytes, bytes] = {}
        statxs: dict[bytes, tuple[bytes, bytes]] = {}
        for place in range(0, len(entries), ENTRY_BYTES):
            real, seen = entries[place : place + 16], entries[place + 16 : place + 32]
            stats[real] = seen
            statxs[real[8:] + _major_minor(real)] = (seen[8:], _major_minor(seen))
        self._stats, self._statxs = stats, statxs

    def go_home(self) -> None:
        """Return to this process's own root."""
        os.fchdir(self._home)
        os.chroot(".")
        self._root = self._home_key
        self._sees_no_self = False

    def find(self, task: int, number: int, arguments: tuple[int, ...]) -> tuple[int, int] | None:
        """Where give() must write, and how many bytes; None if the task's own call shall run.

        Args:
            task: The thread that calls, as this PID namespace sees it.
            number: The call's number.
            arguments: Its six arguments.
        """
        calls = self._calls
        if number == calls.fstat:
            fd = _as_int(arguments[0])
            if fd < 0 or not self._find_described(task, fd, 0, None):
                return None
            return arguments[1], _STAT_BYTES
        directory, path, flags, mask, out = AT_FDCWD, arguments[0], 0, None, arguments[1]
        if number == calls.fstatat:
            directory, path, out, flags = _as_int(arguments[0]), *arguments[1:4]
        elif number == calls.statx:
            directory, path, flags, mask, out = _as_int(arguments[0]), *arguments[1:5]
            mask &= 0xFFFFFFFF
            if mask & _STATX_MASK_RESERVED or flags & _AT_STATX_SYNC == _AT_STATX_SYNC:
                return None
        elif number == calls.lstat:
            flags = AT_SYMLINK_NOFOLLOW
        elif number != calls.stat:
            return None
        flags &= 0xFFFFFFFF
        if flags & ~_FLAGS_KNOWN:
            return None
        size = self._read_path(task, path) if path else 0 if self._null_path else -1
        if size < 0:
            return None
        if size:
            if not self._find_named(task, directory, size, flags, mask):
                return None
        elif not flags & AT_EMPTY_PATH or not self._find_described(task, directory, flags, mask):
            return None
        return out, _STAT_BYTES if mask is None else STATX_BYTES

    def give(self, task: int, out: int, size: int) -> bool:
        """Write what find() found into the task's memory; False if it cannot be written there."""
        return self._memory.write(task, out, size, self._found_address) == size

    def _find_described(self, task: int, fd: int, flags: int, mask: int | None) -> bool:
        """What a descriptor, or the current directory, refers to. The task has it already: no rights are needed."""
        name = b"%d/cwd" % task if fd == AT_FDCWD else b"%d/fd/%d" % (task, fd)
        return self._look(self._proc, name, flags & _AT_STATX_SYNC, mask) and self._translate(mask)

    def _find_named(self, task: int, directory: int, size: int, flags: int, mask: int | None) -> bool:
        self._enter_root(task)
        base = -1
        try:
            if self._path[0] != b"/":
                name = b"%d/cwd" % task if directory == AT_FDCWD else b"%d/fd/%d" % (task, directory)
                base = os.open(name, _O_PATH, dir_fd=self._proc)
            # What is not in the table needs no answer, so nobody learns anything from it.
            if not self._look_along(task, base, size, flags, mask) or not self._translate(mask):
                return False
            self._rights = self._limits(task)
            if self._rights is None:
                return True
            self._files.act_as(*self._rights)
            try:
                return self._look_along(task, base, size, flags, mask) and self._translate(mask)
            finally:
                self._rights = None
                self._files.act_as(0, 0, self._groups)
        finally:
            if base >= 0:
                os.close(base)

    def _look_along(self, task: int, base: int, size: int, flags: int, mask: int | None) -> bool:
        """Look at what the path leads to, from `base` or from the root."""
        follow = not flags & AT_SYMLINK_NOFOLLOW
        how = self._how_addresses[0 if follow else 1]
        file = self._files.open_at(base, self._path_address, how, _OPEN_HOW.size)
        if file < 0:
            error = errno()
            if error != _ELOOP and not (self._sees_no_self and error == _ENOENT):
                return False
            file = walk(self._path.raw[:size], base, lambda name: self._open_own(task, name), follow=follow)
        try:
            return self._look(file, b"", flags & _AT_STATX_SYNC | AT_EMPTY_PATH, mask)
        finally:
            os.close(file)

    def _open_own(self, task: int, name: bytes) -> int:
        """A name in the task's /proc/PID: it may follow its own links even where that is not accessible to it."""
        rights = self._rights
        if rights is not None:
            self._files.act_as(0, 0, self._groups)
        try:
            return os.open(b"%d/%s" % (task, name), _O_PATH, dir_fd=self._proc)
        finally:
            if rights is not None:
                self._files.act_as(*rights)

    def _look(self, directory: int, path: bytes, flags: int, mask: int | None) -> bool:
        if mask is None:
            return self._files.look(directory, path, flags, self._found_address) == 0
        return self._files.look_extended(directory, path, flags, mask, self._found_address) == 0

    def _translate(self, mask: int | None) -> bool:
        """Replace the identity that was found; False if it is not in the table."""
        found = self._found
        if mask is None:
            seen = self._stats.get(bytes(found[_STAT_IDENTITY]))
            if seen is None:
                return False
            found[_STAT_IDENTITY] = seen
            return True
        if not int.from_bytes(found[_STATX_MASK], "little") & _STATX_INO:
            return False
        parts = self._statxs.get(bytes(found[_STATX_INODE]) + bytes(found[_STATX_DEVICE]))
        if parts is None:
            return False
        found[_STATX_INODE], found[_STATX_DEVICE] = parts
        return True

    def _read_path(self, task: int, address: int) -> int:
        """The length of the path that is now in our buffer; -1 if there is none, or it has no end."""
        count = self._memory.read(task, address, _PATH_BYTES_MAX, self._path_address, _PAGE_BYTES)
        if count <= 0:
            return -1
        return self._path.raw.find(b"\0", 0, count)

    def _root_key(self, task: int) -> bytes:
        """What tells the task's root from others: its mount, which belongs to one mount namespace, and its file."""
        name = b"%d/root" % task
        if self._files.look_extended(self._proc, name, 0, _STATX_BASIC_AND_MNT_ID, self._found_address):
            return b""
        return bytes(self._found[_STATX_INODE]) + bytes(self._found[_STATX_DEVICE_AND_MOUNT])

    def _enter_root(self, task: int) -> None:
        key = self._root_key(task)
        if key == self._root:
            return
        root = os.open(b"%d/root" % task, _O_PATH, dir_fd=self._proc)
        try:
            os.fchdir(root)
            os.chroot(".")
        finally:
            os.close(root)
        self._root = key
        try:
            os.readlink(b"/proc/self")
        except OSError:
            self._sees_no_self = True
        else:
            self._sees_no_self = False

    def _limits(self, task: int) -> tuple[int, int, list[int]] | None:
        """File system uid, gid and groups of a task that may not look everywhere; else None."""
        if self._files.capabilities(task) & _LOOKS_EVERYWHERE:
            return None
        fd = os.open(b"%d/status" % task, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            status = os.read(fd, _STATUS_BYTES_MAX)
        finally:
            os.close(fd)
        fsuid, fsgid = (int(_field(status, name).split()[3]) for name in (b"\nUid:", b"\nGid:"))
        return fsuid, fsgid, [int(group) for group in _field(status, b"\nGroups:").split()]


def _field(status: bytes, name: bytes) -> bytes:
    start = status.index(name) + len(name)
    return status[start : status.index(b"\n", start)]


def _as_int(argument: int) -> int:
    """The kernel's `int` in a register."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low & (1 << 31) else low


def _major_minor(identity: bytes) -> bytes:
    """The device of an identity as struct statx holds it."""
    device = int.from_bytes(identity[:8], "little")
    return struct.pack("<II", device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00)
