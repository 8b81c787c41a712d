"""A checkpoint on its way into the store.

Rules: F60 to F64 of images/FORMAT.md. Chunks first, then the receipt; when all of it is durable, the manifest.
Until then everything is garbage that the next sweep removes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from ckpt.codec.frame import Kind
from ckpt.codec.names import refuse_component
from ckpt.codec.objects import MANIFEST, RECEIPT, checkpoint_id, digest_of
from ckpt.codec.records import Receipt
from ckpt.errors import OsRefused
from ckpt.model.checkpoint import Checkpoint, Chunk, StoredFile
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.objects import Objects, chunks_of
from ckpt.store.parallel import IN_FLIGHT, WORKERS
from ckpt.units import ByteCount, CheckpointId, Digest


class Writer:
    """Writes one checkpoint. Not for several threads; it has its own."""

    def __init__(self, backend: Backend, chunk_bytes: ByteCount) -> None:
        self._backend = backend
        self._objects = Objects(backend)
        self._chunk_bytes = chunk_bytes
        self._pool = ThreadPoolExecutor(WORKERS, "store")
        self._storing: deque[tuple[int, Future[ByteCount | None]]] = deque()
        self._known: set[Digest] = set()
        self._new_bytes = 0
        self._stored_bytes = 0
        self.committed = False

    @property
    def began(self) -> bool:
        """Whether anything was given to the store."""
        return bool(self._known)

    @property
    def new_bytes(self) -> ByteCount:
        """Plain bytes of the chunks that the store had not seen; those of zeros alone are never new."""
        return ByteCount(self._new_bytes)

    @property
    def stored_bytes(self) -> ByteCount:
        """The space that the new objects took so far: on disk, their blocks."""
        return ByteCount(self._stored_bytes)

    def add_file(self, path: str, name: str) -> StoredFile:
        """Write the chunks of the file at `path` that the store lacks; some may still be on their way.

        Raises:
            OsRefused: the file cannot be read, is not a regular one, or its name is none.
            NoSpace: the store is full.
        """
        if reason := refuse_component(name):
            raise OsRefused(operation="store", subject=path, reason=reason)
        try:
            with open(path, "rb", opener=_open_regular) as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                chunks = tuple(self._store_chunks(iter(lambda: file.read(self._chunk_bytes), b"")))
        except OSError as error:
            raise OsRefused(operation="read", subject=path, reason=error.strerror or str(error)) from error
        size = sum(chunk.size_bytes for chunk in chunks)
        return StoredFile(name=name, size_bytes=ByteCount(size), mode=mode, chunks=chunks)

    def commit(self, checkpoint: Checkpoint) -> CheckpointId:
        """Make the chunks durable, then write the manifest; it is durable when this returns.

        Raises:
            ObjectMissing: the checkpoint refers to a chunk that is not there.
            ObjectCorrupt: the checkpoint breaks a rule of the format.
            NoSpace: full; nothing of the manifest remains.
        """
        self._settle(0)
        self._check_chunks(checkpoint)
        # All names of chunks, also those that another writer made, before any manifest that relies on them.
        self._backend.flush()
        checkpoint_id = self._write_documents(checkpoint)
        self._backend.flush()
        self.committed = True
        return checkpoint_id

    def close(self) -> None:
        """End the threads; what was not committed stays as garbage."""
        self._pool.shutdown(cancel_futures=True)

    def _store_chunks(self, blocks: Iterator[bytes]) -> Iterator[Chunk]:
        """The chunks in order; each is hashed, then stored, while the next ones are read."""
        hashing: deque[tuple[bytes, Future[Digest]]] = deque()
        for block in blocks:
            hashing.append((block, self._pool.submit(digest_of, block)))
            if len(hashing) >= WORKERS:
                yield self._store_chunk(*hashing.popleft())
        while hashing:
            yield self._store_chunk(*hashing.popleft())

    def _store_chunk(self, block: bytes, hashed: Future[Digest]) -> Chunk:
        digest = hashed.result()
        if digest not in self._known:
            self._known.add(digest)
            self._settle(IN_FLIGHT - 1)
            self._storing.append((len(block), self._pool.submit(self._objects.put_chunk, digest, block)))
        return Chunk(digest=digest, size_bytes=ByteCount(len(block)))

    def _settle(self, remaining: int) -> None:
        """Wait until at most so many chunks are on their way; raises what went wrong with the others."""
        while len(self._storing) > remaining:
            size, stored = self._storing.popleft()
            space = stored.result()
            if space is not None:
                self._new_bytes += size
                self._stored_bytes += space

    def _check_chunks(self, checkpoint: Checkpoint) -> None:
        """Nothing is committed that refers to chunks which this writer has neither written nor seen."""
        for chunk in chunks_of(checkpoint):
            if chunk.digest not in self._known:
                self._objects.require_chunk(chunk)
                self._known.add(chunk.digest)

    def _write_documents(self, checkpoint: Checkpoint) -> CheckpointId:
        manifest = MANIFEST.encode(checkpoint)
        found = checkpoint_id(manifest)
        receipt = Receipt(
            checkpoint=found,
            job=checkpoint.job,
            created_ns=checkpoint.created_ns,
            new_bytes=self.new_bytes,
            chunks_stored_bytes=self.stored_bytes,
        )
        # The receipt first: a crash between the two leaves garbage, not a checkpoint without one.
        for name, kind, plain in (
            (layout.receipt(found), Kind.RECEIPT, RECEIPT.encode(receipt)),
            (layout.manifest(found), Kind.MANIFEST, manifest),
        ):
            self._stored_bytes += self._objects.put_plain(name, kind, plain) or 0
        return found


def _open_regular(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "not a regular file", path)
