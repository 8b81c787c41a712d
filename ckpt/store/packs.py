"""Packs as they are read: their lists and blobs, the last ones kept.

Rules: F80 to F86 of images/FORMAT.md. A list is proved by the pack's name; a blob is not: what is made of it is
compared with the digests.
"""

from __future__ import annotations

from typing import Final

from ckpt.codec.frame import HEADER_BYTES, SALT_BYTES, Kind, read_header
from ckpt.codec.limits import PACK_BYTES_MAX
from ckpt.codec.pack import TRAILER, PackList, damaged, decode_list
from ckpt.codec.placement import PackRef
from ckpt.errors import ObjectMissing
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.cache import Recent
from ckpt.store.compress import from_blob
from ckpt.store.sealing import NotAuthentic
from ckpt.store.vault import Vault, not_authentic
from ckpt.units import ByteCount, Digest

BLOB_BYTES_KEPT: Final = 32 << 20
"""A restore reads the whole chunks of a file, and the deltas of every generation, from front to back."""

_LISTS_KEPT: Final = 256
"""About 130 KiB each."""

LIST_NUMBER: Final = 0
"""The number under which the list of an encrypted pack is sealed; blobs have theirs plus 1."""

LOST_REMEDY: Final = "Run 'ckpt verify' to see what else is affected; restore another checkpoint."


class Packs:
    """The packs of a store. For several threads."""

    def __init__(self, backend: Backend, vault: Vault) -> None:
        self._backend = backend
        self._vault = vault
        self._lists: Recent[PackRef, PackList] = Recent(_LISTS_KEPT)
        self._salts: Recent[str, bytes] = Recent(_LISTS_KEPT)
        self._blobs: Recent[tuple[str, int], bytes] = Recent(BLOB_BYTES_KEPT, len)

    def list_of(self, pack: PackRef) -> PackList:
        """What is in the pack.

        Raises:
            ObjectMissing: it is not there.
            ObjectCorrupt: damaged, or another one than its name says.
        """
        return self._lists.get(pack, lambda: self._read_list(pack))

    def blob(self, pack: PackRef, number: int) -> bytes:
        """The plain chunks of a blob.

        Raises:
            ObjectMissing: the pack is not there.
            ObjectCorrupt: damaged.
        """
        return self._blobs.get((pack.name, number), lambda: self.read_blob(pack, number))

    def read_blob(self, pack: PackRef, number: int) -> bytes:
        """The same, and nothing is kept."""
        listed = self.list_of(pack)
        stored = self.stored_blob(pack, number)
        if self._vault.is_encrypted:
            cipher = self._vault.cipher(Kind.PACK, self._salt(pack))
            try:
                stored = cipher.open(number + 1, stored, b"")
            except NotAuthentic:
                raise not_authentic(Kind.PACK, pack.name) from None
        return from_blob(listed.blobs[number], stored, pack.name)

    def stored_blob(self, pack: PackRef, number: int) -> bytes:
        """A blob's bytes as they are in the pack.

        Raises:
            ObjectMissing: the pack is not there.
            ObjectCorrupt: there is no such blob, or it is cut off.
        """
        listed = self.list_of(pack)
        if number >= len(listed.blobs):
            raise damaged(pack.name, f"blob {number} of {len(listed.blobs)}")
        entry = listed.blobs[number]
        return self._part(pack, listed.offsets[number], entry.stored_bytes)

    def find(self, name: Digest) -> PackRef | None:
        """The pack of this name with its sizes; None if it is not there.

        Raises:
            ObjectCorrupt: cut off.
        """
        place = layout.pack(name)
        found = self._backend.stat(place)
        if found is None:
            return None
        end = self._backend.read_part(place, max(0, found.size_bytes - TRAILER.size), TRAILER.size)
        if end is None:
            return None  # removed meanwhile
        if len(end) < TRAILER.size:
            raise damaged(name, f"it has {found.size_bytes} bytes")
        (list_bytes,) = TRAILER.unpack(end)
        return PackRef(name=name, object_bytes=found.size_bytes, list_bytes=ByteCount(list_bytes))

    def is_whole(self, pack: PackRef) -> bool:
        """Whether a writer may rely on the pack: it is there, and as long as it should be."""
        found = self._backend.stat(layout.pack(pack.name))
        return found is not None and found.size_bytes == pack.object_bytes

    def _read_list(self, pack: PackRef) -> PackList:
        place = layout.pack(pack.name)
        start = self._backend.read_part(place, 0, HEADER_BYTES + SALT_BYTES)
        found = self._backend.stat(place)
        if start is None or found is None:
            raise self._lost(pack)
        header = read_header(start, Kind.PACK, pack.name, found.size_bytes)
        if found.size_bytes != pack.object_bytes or header.sealed != self._vault.is_encrypted:
            raise damaged(
                pack.name, f"it has {found.size_bytes} bytes, and {pack.object_bytes} were put there"
            )
        if pack.list_bytes > PACK_BYTES_MAX:
            raise damaged(pack.name, f"a list of {pack.list_bytes} bytes")
        salt = start[HEADER_BYTES:]
        offset = pack.object_bytes - TRAILER.size - pack.list_bytes
        content = self._part(pack, offset, pack.list_bytes + TRAILER.size)
        if TRAILER.unpack(content[pack.list_bytes :])[0] != pack.list_bytes:
            raise damaged(pack.name, f"its end does not say that its list has {pack.list_bytes} bytes")
        content = content[: pack.list_bytes]
        if self._vault.is_encrypted:
            try:
                content = self._vault.cipher(Kind.PACK, salt).open(LIST_NUMBER, content, b"")
            except NotAuthentic:
                raise not_authentic(Kind.PACK, pack.name) from None
        if self._vault.pack_name(salt, content) != pack.name:
            raise damaged(pack.name, "the digest of its list is another than its name")
        listed = decode_list(content, pack.name)
        if listed.offsets[-1] != offset:
            raise damaged(
                pack.name, f"its blobs end at byte {listed.offsets[-1]}, and its list begins at {offset}"
            )
        self._salts.get(pack.name, lambda: salt)
        return listed

    def _salt(self, pack: PackRef) -> bytes:
        def read() -> bytes:
            return self._part(pack, HEADER_BYTES, SALT_BYTES)

        return self._salts.get(pack.name, read)

    def _part(self, pack: PackRef, offset: int, count: int) -> bytes:
        content = self._backend.read_part(layout.pack(pack.name), offset, count) if offset > 0 else b""
        if content is None:
            raise self._lost(pack)
        if len(content) != count:
            raise damaged(pack.name, f"{count} bytes belong at byte {offset}, and {len(content)} are there")
        return content

    def _lost(self, pack: PackRef) -> ObjectMissing:
        return ObjectMissing(place=self._backend.place, kind="pack", name=pack.name, remedy=LOST_REMEDY)
