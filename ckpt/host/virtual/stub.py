"""The machine code and the table that show a process other file identities, as the bytes of one mapping.

The mapping begins with a page: a header, and a block of code for each call site that is patched. The table follows.
Rules:
- The code is the text of stub.S, in which only four numbers are filled in; a test compares the two.
- A stub is never changed but by forward(): another table is another stub. A thread that stands in the old one has
  made its call already, and ends it with the table that was right then.
- The header is laid out like this whatever the version: a stub in a process that was dumped long ago can be found
  and taken out. What a header says is checked before it is used, the process may have written it.
Source: stub.S; struct stat of <asm/stat.h>, struct statx of <linux/stat.h>, new_encode_dev() of <linux/kdev_t.h>.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber

ENTRIES_MAX: Final = 64 * 1024
SITES_MAX: Final = 24
RETIRED_MAX: Final = 16
PAGE: Final = 4096

STAT, FSTAT, LSTAT, NEWFSTATAT, STATX = 4, 5, 6, 262, 332
JUMP_BYTES: Final = 5
MOVED: Final = b"\x48\x89\xd6"
"""`mov %rdx,%rsi`: the instruction that some builds of libc have between the number and the `syscall`."""

_STAT_BLOCK: Final = bytes.fromhex(
    "b8ffffff7f0f1f000f0585c0754c4989f349694b084786c86148c1e91081e1ffffff7f48c1e10648"
    "8d05d2ffffff4801c1807930007421488b0149394308751f488b41084939037516488b4118498943"
    "08488b412049890331c0e9faffff7f4883c140ebcc"
)
_AT_BLOCK: Final = _STAT_BLOCK[:14] + b"\x49\x89\xd3" + _STAT_BLOCK[17:]
_STATX_BLOCK: Final = bytes.fromhex(
    "b8ffffff7f0f1f000f0585c075544d89c349694b204786c86148c1e91081e1ffffff7f48c1e10648"
    "8d05d2ffffff4801c1807930007429488b01493943207527488b411049398388000000751a488b41"
    "1849894320488b41284989838800000031c0e9faffff7f4883c140ebc4"
)
BLOCKS: Final = {
    STAT: _STAT_BLOCK, FSTAT: _STAT_BLOCK, LSTAT: _STAT_BLOCK, NEWFSTATAT: _AT_BLOCK, STATX: _STATX_BLOCK,
}  # fmt: skip

_NUMBER_AT, _MOVED_AT, _MASK_AT, _TABLE_AT, _BACK_FROM_END = 1, 5, 0x1F, 0x2A, 11
_FORWARD: Final = b"\xeb\xf9\x90\xeb\xf6"
"""`jmp` to the block's first instruction, from where its `nopl` and its `syscall` were."""
_FACTOR: Final = 0x61C88647
_SHIFT: Final = 16

_MAGIC: Final = b"\x7fckpt-identity\0\0"
_VERSION: Final = 1
_HEADER: Final = struct.Struct(
    "<16sIIIIQ"
)  # magic, version, sites, retired stubs, entries, bytes of the mapping
_SITE: Final = struct.Struct("<QII")  # address, number of the call, whether MOVED follows
_ADDRESS: Final = struct.Struct("<Q")
_DISTANCE: Final = struct.Struct("<i")
_SITES_AT: Final = 64
_RETIRED_AT: Final = _SITES_AT + SITES_MAX * _SITE.size
_BLOCKS_AT: Final = 1024
_BLOCK_BYTES: Final = 128
_ENTRY: Final = struct.Struct("<8Q")
_LENGTH_MAX: Final = PAGE + (3 * ENTRIES_MAX) * _ENTRY.size + PAGE
_ADDRESS_END: Final = 1 << 47

_DEVICE_END: Final = 1 << 32
"""A kernel's device number has 12 bits for the major and 20 for the minor one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place in libc's text that makes a call of the stat family: `mov $number,%eax`, MOVED or not, `syscall`."""

    address: int
    number: int
    has_moved: bool

    @property
    def original(self) -> bytes:
        """The instruction that a jump takes the place of."""
        return b"\xb8" + self.number.to_bytes(4, "little")

    @property
    def after(self) -> int:
        """The address behind the site's `syscall`."""
        return self.address + JUMP_BYTES + (len(MOVED) if self.has_moved else 0) + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StubTable:
    """A table of identities as the code reads it; made once for all processes."""

    entries: int
    hash_mask: int
    content: bytes

    @classmethod
    def of(cls, pairs: Iterable[tuple[Identity, Identity]]) -> StubTable:
        """The table that shows the second of each pair for the first.

        Raises:
            ValueError: more than ENTRIES_MAX, a number that no file has, or one file that is shown as two.
        """
        shown: dict[Identity, Identity] = {}
        for real, seen in pairs:
            if shown.setdefault(real, seen) != seen:
                raise ValueError(f"{real} is shown as two files")
            if len(shown) > ENTRIES_MAX:
                raise ValueError(f"more than {ENTRIES_MAX} identities")
        hashes = max(16, 1 << (2 * len(shown) - 1).bit_length())
        slots = [bytes(_ENTRY.size)] * hashes
        used: set[int] = set()
        for real, seen in shown.items():
            at = (real.inode * _FACTOR % (1 << 64) >> _SHIFT) & hashes - 1
            while at in used:
                at += 1
            used.add(at)
            slots.extend([bytes(_ENTRY.size)] * (at + 2 - len(slots)))
            slots[at] = _ENTRY.pack(*_numbers(real), *_numbers(seen), 1, 0)
        # An empty one ends every search.
        slots.append(bytes(_ENTRY.size))
        return cls(entries=len(shown), hash_mask=hashes - 1, content=b"".join(slots))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stub:
    """A stub in a process, as its header tells: `retired` are earlier ones that a thread may still stand in."""

    address: int
    version: int
    size_bytes: int
    sites: tuple[Site, ...]
    retired: tuple[int, ...]

    @property
    def code(self) -> tuple[int, int]:
        """The addresses of its first instruction and behind its last."""
        start = self.address + _BLOCKS_AT
        return (start, start + len(self.sites) * _BLOCK_BYTES)

    def block(self, index: int) -> int:
        """The address of the block for the site with this index."""
        return self.address + _BLOCKS_AT + index * _BLOCK_BYTES

    @property
    def can_forward(self) -> bool:
        """Whether its blocks are those of this version."""
        return self.version == _VERSION


def stub_bytes(table: StubTable) -> int:
    """The size of the mapping that a stub with this table needs."""
    return PAGE + (len(table.content) + PAGE - 1) // PAGE * PAGE


def encode_stub(
    table: StubTable, *, address: int, sites: tuple[Site, ...], retired: tuple[int, ...]
) -> bytes:
    """The content of the mapping at `address`.

    Raises:
        ValueError: too many sites or retired stubs, or a site is out of a jump's reach.
    """
    if len(sites) > SITES_MAX or len(retired) > RETIRED_MAX:
        raise ValueError(f"{len(sites)} call sites and {len(retired)} retired stubs are too many")
    size = stub_bytes(table)
    content = bytearray(size)
    _HEADER.pack_into(content, 0, _MAGIC, _VERSION, len(sites), len(retired), table.entries, size)
    for index, site in enumerate(sites):
        _SITE.pack_into(
            content, _SITES_AT + index * _SITE.size, site.address, site.number, int(site.has_moved)
        )
        at = _BLOCKS_AT + index * _BLOCK_BYTES
        content[at : at + _BLOCK_BYTES] = _block(site, address + at, address + PAGE, table.hash_mask)
    for index, other in enumerate(retired):
        _ADDRESS.pack_into(content, _RETIRED_AT + index * _ADDRESS.size, other)
    content[PAGE : PAGE + len(table.content)] = table.content
    return bytes(content)


def decode_stub(page: bytes, address: int) -> Stub | None:
    """The stub whose first page this is; None if it is none, or its header contradicts itself."""
    if len(page) < PAGE or not page.startswith(_MAGIC):
        return None
    _, version, sites, retired, _, size = _HEADER.unpack_from(page)
    if sites > SITES_MAX or retired > RETIRED_MAX or size % PAGE or not PAGE < size <= _LENGTH_MAX:
        return None
    found = tuple(
        Site(address=at, number=number, has_moved=bool(moved))
        for at, number, moved in _SITE.iter_unpack(page[_SITES_AT : _SITES_AT + sites * _SITE.size])
    )
    others = struct.unpack_from(f"<{retired}Q", page, _RETIRED_AT)
    if any(site.number not in BLOCKS or site.address >= _ADDRESS_END for site in found):
        return None
    if any(other % PAGE or other >= _ADDRESS_END for other in others):
        return None
    return Stub(address=address, version=version, size_bytes=size, sites=found, retired=others)


def decode_pairs(content: bytes) -> tuple[tuple[Identity, Identity], ...]:
    """What the table of a stub shows, read from the bytes of its mapping."""
    return tuple(
        (_identity(inode, device), _identity(seen, seen_device))
        for inode, device, _, seen, seen_device, _, is_used, _ in _ENTRY.iter_unpack(content[PAGE:])
        if is_used
    )


def jump(source: int, target: int) -> bytes:
    """A jump from one address to another. Raises ValueError: it is too far."""
    distance = target - (source + JUMP_BYTES)
    if not -(1 << 31) <= distance < 1 << 31:
        raise ValueError(f"{source:#x} is out of the reach of {target:#x}")
    return b"\xe9" + _DISTANCE.pack(distance)


def forward(block: int, target: int) -> bytes:
    """What is written over the beginning of a block so that a thread that has not made its call yet goes away.

    A thread that has made it stands behind these bytes. Raises ValueError: the target is too far.
    """
    return jump(block, target) + _FORWARD


def _block(site: Site, address: int, table: int, hash_mask: int) -> bytes:
    code = bytearray(BLOCKS[site.number])
    code[_NUMBER_AT : _NUMBER_AT + 4] = site.number.to_bytes(4, "little")
    if site.has_moved:
        code[_MOVED_AT : _MOVED_AT + len(MOVED)] = MOVED
    code[_MASK_AT : _MASK_AT + 4] = hash_mask.to_bytes(4, "little")
    code[_TABLE_AT : _TABLE_AT + 4] = _DISTANCE.pack(table - (address + _TABLE_AT + 4))
    back = len(code) - _BACK_FROM_END
    code[back : back + JUMP_BYTES] = jump(address + back, site.after)
    return bytes(code).ljust(_BLOCK_BYTES, b"\xcc")


def _numbers(identity: Identity) -> tuple[int, int, int]:
    """The inode, the device as struct stat has it, and as struct statx has it."""
    inode, device = identity.inode, identity.device
    if not (0 <= inode < 1 << 64 and 0 <= device < _DEVICE_END):
        raise ValueError(f"no file has the identity {identity}")
    return (inode, device, os.major(device) | os.minor(device) << 32)


def _identity(inode: int, device: int) -> Identity:
    return Identity(inode=InodeNumber(inode), device=DeviceNumber(device))
