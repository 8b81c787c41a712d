"""Indexes written, merged and mended.

Rules: F94 to F97 of images/FORMAT.md. An index is a hint: one that is lost costs space in checkpoints to come, and
nothing else. There are never many: a writer that finds several small ones makes one of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Final

from ckpt.codec.frame import Compression, Kind, frame
from ckpt.codec.hooks import decode_index, encode_sorted
from ckpt.codec.objects import digest_of
from ckpt.errors import FormatUnknown, ObjectCorrupt
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.building import PackTable
from ckpt.store.compress import from_object
from ckpt.store.vault import Vault
from ckpt.units import ByteCount, Digest

_SMALL_INDEXES_MAX: Final = 8
_SMALL_BYTES: Final = 32 << 20
"""Indexes above this size are left as they are: two of them would not fit the bound of one."""


def put_index(backend: Backend, vault: Vault, hooks: dict[bytes, int], table: PackTable) -> ByteCount:
    """Write the index of new packs, together with small ones that are there; gives the space that was taken."""
    if not hooks:
        return ByteCount(0)
    small = _small_indexes(backend)
    merged = small if len(small) >= _SMALL_INDEXES_MAX else []
    made = _Entries()
    for name in merged:
        made.add_index(backend, name)
    made.add_hooks(vault, hooks, table)
    space = made.put(backend)
    backend.flush()
    for name in merged:
        space -= backend.delete(name)
    return ByteCount(max(0, space))


def forget_packs(backend: Backend, there: set[Digest]) -> int:
    """Rewrite the indexes that name other packs than these, or cannot be read; gives the space that this freed."""
    freed = 0
    for name in list(_indexes(backend)):
        entries = _Entries()
        if entries.add_index(backend, name) and there.issuperset(entries.names):
            continue
        freed -= entries.put(backend, there)
        freed += backend.delete(name)
    return freed


class _Entries:
    """The entries of several indexes: 12 bytes for each, and no more than 50 while they are sorted."""

    def __init__(self) -> None:
        self.names: dict[Digest, int] = {}
        self._marks = array("Q")
        self._places = array("I")

    def add_index(self, backend: Backend, name: str) -> bool:
        """Take in an index; nothing of one that cannot be read, which is thereby dropped. Gives whether it could."""
        try:
            found = _read(backend, name)
        except (ObjectCorrupt, FormatUnknown):
            return False
        if found is None:
            return False
        marks, places, names = found
        moved = [self._place(pack) for pack in names]
        self._marks.extend(marks)
        self._places.extend(moved[place] for place in places)
        return True

    def add_hooks(self, vault: Vault, hooks: dict[bytes, int], table: PackTable) -> None:
        """Take in what is new; where a mark is there twice, this is the later one, which counts."""
        for digest, place in hooks.items():
            ref = table.refs[place]
            assert ref is not None
            self._marks.append(vault.mark(digest))
            self._places.append(self._place(ref.name))

    def put(self, backend: Backend, there: set[Digest] | None = None) -> int:
        """Write the entries, those of packs that are `there` alone; gives the space that was taken."""
        kept = [name for name in self.names if there is None or name in there]
        places = {self.names[name]: number for number, name in enumerate(kept)}
        marks, packs = array("Q"), array("I")
        # Sorting is stable: of equal marks the later one stands behind.
        for at in sorted(range(len(self._marks)), key=self._marks.__getitem__):
            place = places.get(self._places[at])
            if place is None:
                continue
            if marks and marks[-1] == self._marks[at]:
                packs[-1] = place
            else:
                marks.append(self._marks[at])
                packs.append(place)
        if not marks:
            return 0
        plain = encode_sorted(marks, packs, tuple(kept))
        # Not compressed and not sealed: a part of it is read where a mark must be.
        content = frame(Kind.INDEX, Compression.NONE, len(plain), plain)
        return backend.create(layout.index(digest_of(plain)), content) or 0

    def _place(self, pack: Digest) -> int:
        return self.names.setdefault(pack, len(self.names))


def read_index(backend: Backend, name: str) -> dict[int, Digest]:
    """The marks of an index and their packs.

    Raises:
        ObjectCorrupt: damaged.
        FormatUnknown: written by a newer ckpt.
    """
    found = _read(backend, name)
    if found is None:
        return {}
    marks, places, names = found
    return {mark: names[place] for mark, place in zip(marks, places, strict=True)}


def check_index(backend: Backend, name: str) -> None:
    """Read an index; raises what read_index() does."""
    _read(backend, name)


def _read(backend: Backend, name: str) -> tuple[array[int], array[int], tuple[Digest, ...]] | None:
    content = backend.read(name, Kind.INDEX.object_bytes_max)
    if content is None:
        return None
    plain = from_object(Kind.INDEX, name, content)
    if layout.index(digest_of(plain)) != name:
        raise ObjectCorrupt(
            kind=str(Kind.INDEX), name=name, reason="the digest of its content is another than its name"
        )
    return decode_index(plain, name)


def _indexes(backend: Backend) -> Iterable[str]:
    return (name for name in backend.list(layout.INDEXES) if layout.digest_in(name))


def _small_indexes(backend: Backend) -> list[str]:
    found = []
    for name in _indexes(backend):
        stat = backend.stat(name)
        if stat is not None and stat.size_bytes <= _SMALL_BYTES // _SMALL_INDEXES_MAX:
            found.append(name)
    return found
