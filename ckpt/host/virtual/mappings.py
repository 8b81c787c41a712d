"""The mappings of a process: which files' text it runs, and where there is room beside it.

Source: proc_pid_maps(5), "map_files"; elf(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ckpt.units import Pid

_MAPS_BYTES_MAX: Final = 64 * 1024 * 1024
_GUARD_BYTES: Final = 64 * 1024
_LOWEST: Final = 64 * 1024
_HIGHEST: Final = (1 << 47) - 4096

_HEADER_BYTES: Final = 64
_X86_64_ELF: Final = b"\x7fELF\x02\x01"
_EM_X86_64: Final = 62
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_SONAME = 5, 14
_PROGRAM_HEADERS_MAX: Final = 128
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_DYNAMIC: Final = struct.Struct("<qQ")
_DYNAMIC_BYTES_MAX: Final = 64 * 1024
_NAME_BYTES_MAX: Final = 128
_CACHED_FILES_MAX: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One line of /proc/PID/maps; `file` is the "device inode" of what is mapped, "" for anonymous memory."""

    start: int
    end: int
    permissions: str
    offset: int
    file: str
    name: str

    @property
    def is_text(self) -> bool:
        """Whether it is private, can be run and read, and not written."""
        return self.permissions == "r-xp"


def mappings_of(pid: Pid) -> tuple[Mapping, ...]:
    """All mappings of a process, in the order of their addresses.

    Raises:
        OSError: there is no such process, or it has more than can be believed.
    """
    with open(f"/proc/{pid}/maps", "rb") as stream:
        text = stream.read(_MAPS_BYTES_MAX)
    return tuple(_parse(line) for line in text.splitlines())


def _parse(line: bytes) -> Mapping:
    fields = line.split(maxsplit=5)
    start, _, end = fields[0].partition(b"-")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        permissions=fields[1].decode(),
        offset=int(fields[2], 16),
        file="" if fields[4] == b"0" else f"{fields[3].decode()} {fields[4].decode()}",
        name=fields[5].decode(errors="replace") if len(fields) > 5 else "",
    )


def texts_of_library(pid: Pid, mappings: Sequence[Mapping], sonames: frozenset[str]) -> Iterator[Mapping]:
    """The text of every library whose own name for itself (DT_SONAME) is one of these, x86-64 only."""
    wanted = {
        mapping.file
        for mapping in mappings
        if mapping.file and mapping.offset == 0 and _soname_of_mapped(pid, mapping) in sonames
    }
    for mapping in mappings:
        if mapping.file in wanted and mapping.is_text:
            yield mapping


def _soname_of_mapped(pid: Pid, mapping: Mapping) -> str:
    """What the mapped file is called in itself; "" where it says nothing or cannot be read."""
    try:
        # Not by its path: the file may be deleted, or lie in another mount namespace.
        fd = os.open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        status = os.fstat(fd)
        return _soname(_Opened(fd, (status.st_dev, status.st_ino, status.st_ctime_ns)))
    except (OSError, struct.error):
        return ""
    finally:
        os.close(fd)


class _Opened:
    """An open file, equal to another one of the same content."""

    def __init__(self, fd: int, version: tuple[int, int, int]) -> None:
        self.fd = fd
        self._version = version

    def __hash__(self) -> int:
        return hash(self._version)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opened) and self._version == other._version


@lru_cache(_CACHED_FILES_MAX)
def _soname(file: _Opened) -> str:
    header = os.pread(file.fd, _HEADER_BYTES, 0)
    if len(header) < _HEADER_BYTES or not header.startswith(_X86_64_ELF):
        return ""
    (machine,) = struct.unpack_from("<H", header, 18)
    (table_at,) = struct.unpack_from("<Q", header, 32)
    entry_bytes, entries = struct.unpack_from("<HH", header, 54)
    if machine != _EM_X86_64 or entry_bytes != _PROGRAM_HEADER.size or entries > _PROGRAM_HEADERS_MAX:
        return ""
    headers = list(_PROGRAM_HEADER.iter_unpack(os.pread(file.fd, entry_bytes * entries, table_at)))
    tags: dict[int, int] = {}
    for kind, _, offset, _, _, size, _, _ in headers:
        if kind == _PT_DYNAMIC:
            content = os.pread(file.fd, min(size, _DYNAMIC_BYTES_MAX), offset)
            tags.update(_DYNAMIC.iter_unpack(content[: len(content) // _DYNAMIC.size * _DYNAMIC.size]))
    if _DT_SONAME not in tags or _DT_STRTAB not in tags:
        return ""
    strings = tags[_DT_STRTAB]
    for kind, _, offset, address, _, size, _, _ in headers:
        if kind == _PT_LOAD and address <= strings < address + size:
            name = os.pread(file.fd, _NAME_BYTES_MAX, strings - address + offset + tags[_DT_SONAME])
            return name.partition(b"\0")[0].decode(errors="replace")
    return ""


def rooms(mappings: Sequence[Mapping], size: int, near: int) -> list[int]:
    """Addresses at which so many bytes are free, the nearest to `near` first.

    Some room is left beside every mapping, and half of the room into which the heap or the stack may grow.
    """
    found = []
    previous_end, previous_name = _LOWEST, ""
    for mapping in [*mappings, None]:
        start = mapping.start if mapping else _HIGHEST
        half = (start - previous_end) // 2
        first, last = previous_end + _GUARD_BYTES, start - _GUARD_BYTES - size
        if previous_name == "[heap]":
            first += half
        if mapping is not None and mapping.name == "[stack]":
            last -= half
        if first <= last:
            found.append(min(max(near, first), last) & ~4095)
        if mapping:
            previous_end, previous_name = mapping.end, mapping.name
    return sorted(found, key=lambda address: abs(address - near))
