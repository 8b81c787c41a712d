"""A checkpoint on its way into the store.

Rules: F60 to F64 of images/FORMAT.md. Packs first, then the placement, receipt and signatures; when all of it is
durable, the manifest. Until then everything is garbage that the next sweep removes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import BinaryIO, Final

from ckpt.codec.frame import Kind
from ckpt.codec.limits import ADDRESS_RUNS_MAX, PLACEMENT_SERIAL_MAX
from ckpt.codec.names import refuse_component
from ckpt.codec.objects import MANIFEST, RECEIPT, SIGNATURE, checkpoint_id
from ckpt.codec.placement import PlacedFile, Placement, fits
from ckpt.codec.records import Receipt, Signature
from ckpt.errors import CkptError, ObjectCorrupt, ObjectMissing, OsRefused
from ckpt.model.checkpoint import AddressRun, Checkpoint, StoredFile
from ckpt.model.progress import Progress
from ckpt.store import layout
from ckpt.store.backend import Backend, Lease
from ckpt.store.building import PackBuilder, PackTable
from ckpt.store.contents import PIECE_CHUNKS
from ckpt.store.examining import Examined, Examiner, Source
from ckpt.store.indexing import put_index
from ckpt.store.layout import PlacementName, SignatureName
from ckpt.store.memory import keep_freed_memory
from ckpt.store.objects import Objects
from ckpt.store.packs import LOST_REMEDY, Packs
from ckpt.store.parallel import WORKERS
from ckpt.store.parent import Parent
from ckpt.store.placing import FileBuilder
from ckpt.store.similar import RecentChunks, Similar
from ckpt.store.sweep import Sweep
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId

_PIECES_AT_ONCE: Final = 4
"""Pieces of 1 MiB that a thread examines one after the other: to hand each over costs a tenth of the work."""

_TASKS_AHEAD: Final = WORKERS
"""How many such tasks are under way or done before the first of them is placed."""

Sign = Callable[[CheckpointId], Signature]


class Writer:
    """Writes one checkpoint. Not for several threads; it has its own."""

    def __init__(
        self,
        backend: Backend,
        vault: Vault,
        packs: Packs,
        lease: Lease,
        *,
        parent: CheckpointId | None,
        sign: Sign | None,
        progress: Progress,
    ) -> None:
        self._backend = backend
        self._objects = Objects(backend, vault)
        self._packs = packs
        self._vault = vault
        self._lease = lease
        self._sign = sign
        self._progress = progress
        self._pool = ThreadPoolExecutor(WORKERS, "store")
        self._table = PackTable()
        self._builder = PackBuilder(backend, vault, self._pool, self._table, lease)
        self._recent = RecentChunks()
        self._similar = Similar(backend, vault, packs, self._table, lease)
        self._parent = self._open_parent(parent)
        self._placed: dict[tuple[str, int], PlacedFile] = {}
        self._documents_bytes = 0
        self.committed = False

    @property
    def began(self) -> bool:
        """Whether anything may have been given to the store."""
        return self._builder.chunk_count > 0

    @property
    def new_bytes(self) -> ByteCount:
        """Plain bytes of the chunks that the store had not seen; those of zeros alone are never new."""
        return ByteCount(self._builder.chunk_count * CHUNK_BYTES)

    @property
    def stored_bytes(self) -> ByteCount:
        """The space that the new objects took so far: on disk, their blocks."""
        return ByteCount(self._builder.stored_bytes + self._documents_bytes)

    def add_file(self, path: str, name: str, addresses: tuple[AddressRun, ...] = ()) -> StoredFile:
        """Write the chunks of the file at `path` that the store lacks; some may still be on their way.

        Args:
            path: A regular file.
            name: What it is called in the checkpoint.
            addresses: Which pages its chunks are, so that they are compared with the parent's same pages;
                without, they are compared with the same chunks of the parent's file of this name.

        Raises:
            OsRefused: the file cannot be read, is not a regular one, or its name is none.
            NoSpace: the store is full.
        """
        try:
            with open(path, "rb", opener=_open_regular) as file:
                found = os.fstat(file.fileno())
                source = _FileSource(file, found.st_size)
                return self._add(source, name, found.st_size, stat.S_IMODE(found.st_mode), addresses)
        except OSError as error:
            raise OsRefused(operation="read", subject=path, reason=error.strerror or str(error)) from error

    def add_stream(
        self,
        read: Callable[[int], bytes],
        *,
        name: str,
        size_bytes: int,
        mode: int,
        addresses: tuple[AddressRun, ...] = (),
    ) -> StoredFile:
        """The same for bytes that come in order: `read(n)` gives at most n of them, b"" at their end.

        Raises:
            OsRefused: there are fewer bytes than `size_bytes`; the name is none.
            NoSpace: the store is full.
        """
        return self._add(_StreamSource(read, name, size_bytes), name, size_bytes, mode, addresses)

    def add_known(
        self, source: Source, file: StoredFile, addresses: tuple[AddressRun, ...] = ()
    ) -> StoredFile:
        """The same for a file of another store, of which only the chunks are read that this one lacks."""
        return self._add(source, file.name, file.size_bytes, file.mode, addresses)

    def commit(self, checkpoint: Checkpoint, signatures: tuple[Signature, ...] = ()) -> CheckpointId:
        """Make all else durable, then write the manifest; it is durable when this returns.

        Args:
            checkpoint: What the manifest says; its files must have been added.
            signatures: Those that it has already; without any, the store's key signs it.

        Raises:
            ObjectMissing: the checkpoint names a file that was not added, or a pack is gone.
            ObjectCorrupt: the checkpoint breaks a rule of the format.
            NoSpace: full; nothing of the manifest remains.
        """
        manifest = MANIFEST.encode(checkpoint)
        found = checkpoint_id(manifest)
        placement = self._placement(found, checkpoint)
        self._builder.finish()
        with self._backend.writing():
            if self._backend.stat(layout.manifest(found)) is None:
                placement = placement.with_packs(self._table.whole())
                self._check_packs(placement)
                # Before the placement: one of the same checkpoint may be there, and from then on this one counts.
                self._backend.flush()
                self._write_documents(placement, checkpoint, signatures or self._signed(found))
                # All names, also those that another writer made, before any manifest that relies on them.
                self._backend.flush()
                self._put(layout.manifest(found), Kind.MANIFEST, manifest)
                self._backend.flush()
        self.committed = True
        return found

    def take_back(self) -> None:
        """Delete what was written for a checkpoint that was not committed; after close(), without a lease.

        Raises:
            Locked: others are at work, and it is left to the next sweep.
        """
        if self._documents_bytes:
            # A manifest may have come to be in the last moment: only a sweep knows what is needed.
            Sweep(self._backend, self._vault, self._packs).run((), patient=False, repack=False)
            return
        with self._backend.writing():
            for name in self._builder.created:  # nobody else knows these names
                self._backend.delete(name)
            self._backend.flush()

    def close(self) -> None:
        """End the threads; what was not committed stays as garbage."""
        self._pool.shutdown(cancel_futures=True)

    def _open_parent(self, parent: CheckpointId | None) -> Parent | None:
        if parent is None:
            return None
        # Without its parent a checkpoint takes more space, and that is all.
        with suppress(CkptError):
            with self._backend.writing():
                placement = self._objects.placement_of(parent)
                self._lease.pin(layout.pack(ref.name) for ref in placement.packs)
            return Parent(self._packs, placement, self._objects.read_manifest(parent), self._table)
        return None

    def _add(
        self, source: Source, name: str, size_bytes: int, mode: int, addresses: tuple[AddressRun, ...]
    ) -> StoredFile:
        if reason := refuse_component(name):
            raise OsRefused(operation="store", subject=name, reason=reason)
        addresses = _fitting(addresses, size_bytes)
        aligned = self._parent.aligned(name, size_bytes, addresses) if self._parent else None
        examiner = Examiner(source, aligned)
        file = FileBuilder(size_bytes, self._builder, self._recent, self._similar, self._parent)
        left = size_bytes
        for examined in self._examined(examiner, size_bytes):
            file.place(examined)
            part = min(left, examined.count * CHUNK_BYTES)
            self._progress.moved(part)
            left -= part
        placed = file.finish(addresses)
        self._placed[placed.root, placed.size_bytes] = placed
        return StoredFile(name=name, size_bytes=ByteCount(size_bytes), mode=mode, root=placed.root)

    def _examined(self, examiner: Examiner, size_bytes: int) -> Iterator[Examined]:
        """The pieces in order; each is read and compared while the ones before it are placed."""
        chunks = -(-size_bytes // CHUNK_BYTES)
        if chunks <= PIECE_CHUNKS:  # most image files are small: another thread would take longer
            if chunks:
                yield examiner.examine(0, chunks, examiner.prepare(0, chunks))
            return
        keep_freed_memory()
        running: deque[Future[list[Examined]]] = deque()
        try:
            for begin in range(0, chunks, _PIECES_AT_ONCE * PIECE_CHUNKS):
                end = min(begin + _PIECES_AT_ONCE * PIECE_CHUNKS, chunks)
                pieces = [
                    (first, min(PIECE_CHUNKS, end - first)) for first in range(begin, end, PIECE_CHUNKS)
                ]
                prepared = [examiner.prepare(first, count) for first, count in pieces]
                running.append(self._pool.submit(examiner.examine_all, pieces, prepared))
                if len(running) >= _TASKS_AHEAD:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            wait(running)  # they use the source, which is about to be closed

    def _placement(self, checkpoint: CheckpointId, content: Checkpoint) -> Placement:
        files: dict[str, PlacedFile] = {}
        for file in content.files:
            placed = self._placed.get((file.root, file.size_bytes))
            if placed is None:
                raise ObjectMissing(
                    place=self._backend.place,
                    kind="content",
                    name=file.root,
                    remedy=f"It is that of {file.name}: a checkpoint's files are added before it.",
                )
            files[file.root] = placed
        return Placement(checkpoint=checkpoint, packs=(), files=tuple(files.values()))

    def _check_packs(self, placement: Placement) -> None:
        """Nothing is committed that refers to packs which are not there."""
        for ref in placement.packs:
            if not self._packs.is_whole(ref):
                raise ObjectMissing(place=self._backend.place, kind="pack", name=ref.name, remedy=LOST_REMEDY)

    def _signed(self, checkpoint: CheckpointId) -> tuple[Signature, ...]:
        return (self._sign(checkpoint),) if self._sign else ()

    def _write_documents(
        self, placement: Placement, checkpoint: Checkpoint, signatures: tuple[Signature, ...]
    ) -> None:
        found = placement.checkpoint
        for signature in signatures:
            name = SignatureName(checkpoint=found, public_key=signature.public_key).object
            self._put(name, Kind.SIGNATURE, SIGNATURE.encode(signature))
        self._documents_bytes += put_index(self._backend, self._vault, self._builder.hooks, self._table)
        self._put_placement(placement)
        receipt = Receipt(
            checkpoint=found,
            job=checkpoint.job,
            created_ns=checkpoint.created_ns,
            new_bytes=self.new_bytes,
            packs_stored_bytes=self.stored_bytes,
        )
        self._put(layout.receipt(found), Kind.RECEIPT, RECEIPT.encode(receipt))

    def _put_placement(self, placement: Placement) -> None:
        """Write the placement so that it counts: somebody may have begun to write the same checkpoint before."""
        plain = placement.encode()
        space = None
        while space is None:
            newest = self._objects.newest_placement(placement.checkpoint)
            serial = newest.serial + 1 if newest else 1
            if serial > PLACEMENT_SERIAL_MAX:
                raise ObjectCorrupt(
                    kind=str(Kind.PLACEMENT),
                    name=placement.checkpoint,
                    reason="somebody put one there above which there is none",
                    remedy="It belongs to no checkpoint: 'ckpt recover' removes it.",
                )
            name = PlacementName(checkpoint=placement.checkpoint, serial=serial).object
            space = self._objects.put_plain(name, Kind.PLACEMENT, plain)
        self._documents_bytes += space

    def _put(self, name: str, kind: Kind, plain: bytes) -> None:
        self._documents_bytes += self._objects.put_plain(name, kind, plain) or 0


def _fitting(addresses: tuple[AddressRun, ...], size_bytes: int) -> tuple[AddressRun, ...]:
    """The addresses, if they can be those of a file of this size; else none: they only help to find what is alike."""
    chunks = -(-size_bytes // CHUNK_BYTES)
    ordered = sorted(addresses, key=lambda run: run.chunk)
    ends = [0, *(run.chunk + run.count for run in ordered)]
    fit = len(ordered) <= ADDRESS_RUNS_MAX and all(
        end <= run.chunk and run.chunk + run.count <= chunks and fits(run)
        for end, run in zip(ends, ordered, strict=False)
    )
    return tuple(ordered) if fit else ()


class _FileSource:
    """The chunks of a file on disk. Fits examining.Source."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._fd = file.fileno()
        self._size = size_bytes

    def take(self, _first: int, _count: int) -> bytes | None:
        """Nothing: read() may be called in any order."""
        return None

    def digests(self, _first: int, _count: int) -> bytes | None:
        """None: nobody knows them."""
        return None

    def read(self, first: int, count: int) -> bytes:
        """Chunks; the last one of the file may be shorter."""
        content = os.pread(self._fd, count * CHUNK_BYTES, first * CHUNK_BYTES)
        expected = min(count * CHUNK_BYTES, self._size - first * CHUNK_BYTES)
        if len(content) != expected:
            raise OSError(errno.EIO, f"it became shorter than {self._size} bytes while it was read")
        return content


class _StreamSource:
    """Chunks that come one after the other. Fits examining.Source."""

    def __init__(self, read: Callable[[int], bytes], name: str, size_bytes: int) -> None:
        self._read = read
        self._name = name
        self._left = size_bytes

    def take(self, _first: int, count: int) -> bytes | None:
        """The next chunks."""
        wanted = min(count * CHUNK_BYTES, self._left)
        pieces = []
        while wanted:
            piece = self._read(wanted)
            if not piece:
                raise OsRefused(
                    operation="read",
                    subject=self._name,
                    reason=f"it ends {self._left} bytes before its end",
                )
            pieces.append(piece)
            wanted -= len(piece)
            self._left -= len(piece)
        return b"".join(pieces)

    def digests(self, _first: int, _count: int) -> bytes | None:
        """None: nobody knows them."""
        return None

    def read(self, first: int, count: int) -> bytes:
        """Not for streams: take() gave them."""
        raise AssertionError(first, count)


def _open_regular(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)
