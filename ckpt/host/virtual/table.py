"""Which identity is shown for which: a permutation, so that no two files ever show the same one.

A file that was moved here shows the number that it had where it was dumped. If another file of this host
really has that number, it must show a different one, or the workload would take the two for hard links: it
shows the number that became free. Chains are closed to cycles that way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from ckpt.errors import ObjectCorrupt
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber

ENTRIES_MAX: Final = 1 << 16
"""More files than a workload can sensibly hold; a table is bounded, because a checkpoint says what is in it."""

MAGIC: Final = b"ckptids1"
ENTRY_BYTES: Final = 32

_HEAD: Final = struct.Struct("<8sQ")
_ENTRY: Final = struct.Struct("<4Q")
_NUMBER_MAX: Final = (1 << 64) - 1
# What the kernel can show: 12 bits of major and 20 of minor, as struct stat holds them.
_DEVICE_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityTable:
    """For each real identity that is not shown as it is, the one that is shown; made by from_pairs()."""

    _shown: dict[Identity, Identity]

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[Identity, Identity]]) -> Self:
        """The table that shows `seen` for `real` in each pair (real, seen), closed to a permutation.

        Raises:
            ValueError: one file would show two identities, two files the same one, a number is none that the
                kernel can show, or there are more than ENTRIES_MAX entries.
        """
        shown: dict[Identity, Identity] = {}
        shown_by: dict[Identity, Identity] = {}
        for real, seen in pairs:
            _check(real)
            _check(seen)
            if shown.setdefault(real, seen) != seen:
                raise ValueError(f"{_words(real)} would show both {_words(shown[real])} and {_words(seen)}")
            if shown_by.setdefault(seen, real) != real:
                raise ValueError(
                    f"{_words(seen)} would be shown for {_words(shown_by[seen])} and {_words(real)}"
                )
        for start in [real for real in shown if real not in shown_by]:
            end = shown[start]
            while end in shown:
                end = shown[end]
            shown[end] = start
        moved = {real: seen for real, seen in shown.items() if real != seen}
        if len(moved) > ENTRIES_MAX:
            raise ValueError(f"{len(moved)} identities are to be changed, and {ENTRIES_MAX} are the most")
        return cls(_shown=moved)

    def __bool__(self) -> bool:
        return bool(self._shown)

    def __len__(self) -> int:
        return len(self._shown)

    def shown(self, real: Identity) -> Identity:
        """What the workload sees for a file that really is `real`."""
        return self._shown.get(real, real)

    def items(self) -> tuple[tuple[Identity, Identity], ...]:
        """All (real, seen) that differ, in the order of the real ones."""
        return tuple(sorted(self._shown.items(), key=lambda pair: (pair[0].device, pair[0].inode)))

    def encode(self) -> bytes:
        """The table as bytes: MAGIC, the number of entries, then ENTRY_BYTES for each; little endian."""
        entries = (
            _ENTRY.pack(real.device, real.inode, seen.device, seen.inode) for real, seen in self.items()
        )
        return _HEAD.pack(MAGIC, len(self._shown)) + b"".join(entries)

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """The table that encode() gave.

        Raises:
            ObjectCorrupt: these bytes are none.
        """
        if len(content) < _HEAD.size:
            raise _corrupt("it is too short")
        magic, count = _HEAD.unpack_from(content)
        if magic != MAGIC or count > ENTRIES_MAX or len(content) != _HEAD.size + count * _ENTRY.size:
            raise _corrupt("its head and its length do not fit")
        pairs = [
            (_identity(real_device, real_inode), _identity(device, inode))
            for real_device, real_inode, device, inode in _ENTRY.iter_unpack(content[_HEAD.size :])
        ]
        try:
            table = cls.from_pairs(pairs)
        except ValueError as error:
            raise _corrupt(str(error)) from error
        if len(table) != count:
            raise _corrupt("it is no permutation")
        return table


def _identity(device: int, inode: int) -> Identity:
    return Identity(device=DeviceNumber(device), inode=InodeNumber(inode))


def _check(identity: Identity) -> None:
    if not (0 <= identity.device <= _DEVICE_MAX and 0 <= identity.inode <= _NUMBER_MAX):
        raise ValueError(f"{_words(identity)} is no identity that the kernel can show")


def _words(identity: Identity) -> str:
    return f"inode {identity.inode} on device {identity.device:#x}"


def _corrupt(reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind="identity table", name="of the virtual layer", reason=reason)
