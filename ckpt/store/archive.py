"""ckpt's own archive: one checkpoint as a compressed tar, written and read as a stream.

    ckpt-archive     "ckpt archive 1"
    manifest         the plain bytes of the manifest; their SHA-256 is the checkpoint's id
    signatures/0 …   the plain bytes of each signature's document; there may be none
    files/0 …        every file of the checkpoint, in the order of Checkpoint.files

Rules: an archive is what somebody sent. The reader knows of every header how it must be, from the manifest,
and takes no other; sizes are bounded before memory is spent. Nothing is stored before a trusted key is found
to have signed the manifest, and nothing is committed before every file has the root that the manifest says.
The same checkpoint with the same signatures gives the same tar, byte for byte.
Source: docs/formats.md; F12, F30 and F32 of images/FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final, NoReturn, Protocol

from ckpt.codec.limits import DOCUMENT_BYTES_MAX
from ckpt.codec.objects import MANIFEST, SIGNATURE, checkpoint_id
from ckpt.codec.records import Signature
from ckpt.errors import FormatUnknown, ObjectCorrupt
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.reports import StoredCheckpoint, TransferReport
from ckpt.store import tarball
from ckpt.store.compress_stream import CompressedReader, CompressedWriter
from ckpt.units import SECOND, ByteCount, CheckpointId

SIGNATURES_MAX: Final = 64
SIGNATURE_BYTES_MAX: Final = 4096

_MARK: Final = b"ckpt archive "
_VERSION: Final = 1
_MARK_BYTES_MAX: Final = 64
_READ_BYTES: Final = 1 << 20
_REMEDY: Final = "Export the checkpoint again."


class ArchiveSource(Protocol):
    """What an export needs of a store."""

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """The checkpoint."""

    def signatures(self, checkpoint: CheckpointId) -> tuple[Signature, ...]:
        """Who vouches for it."""

    def stream(self, checkpoint: CheckpointId, file: StoredFile) -> Iterator[bytes]:
        """The verified bytes of one of its files, in order."""


class ArchiveWriter(Protocol):
    """What an import needs of a writer."""

    @property
    def new_bytes(self) -> ByteCount:
        """Plain bytes that the store had not seen."""

    @property
    def stored_bytes(self) -> ByteCount:
        """What the store grew by."""

    def add_stream(
        self, read: Callable[[int], bytes], *, name: str, size_bytes: int, mode: int
    ) -> StoredFile:
        """Store a file that comes as a stream: `read` gives at most as many bytes as it is asked for."""

    def commit(self, checkpoint: Checkpoint, *, signatures: tuple[Signature, ...]) -> CheckpointId:
        """Make it durable."""


class ArchiveTarget(Protocol):
    """What an import needs of a store."""

    def has(self, checkpoint: CheckpointId) -> bool:
        """Whether it is there."""

    def writer(self) -> AbstractContextManager[ArchiveWriter]:
        """A writer of one checkpoint."""


def export_archive(source: ArchiveSource, checkpoint: CheckpointId, write: Callable[[bytes], object]) -> None:
    """Write the checkpoint to `write`, which takes all of what it is given.

    Raises:
        ObjectMissing, ObjectCorrupt: the checkpoint is not whole.
        FormatUnknown: its manifest is of a version that archives do not have.
    """
    stored = source.load(checkpoint).checkpoint
    manifest = MANIFEST.encode(stored)
    if checkpoint_id(manifest) != checkpoint:
        raise FormatUnknown(
            subject=f"The checkpoint {checkpoint[:12]}",
            reason="its manifest is of an older version, which has no archives of this kind",
            remedy="Export it with --format criu; or restore it, and dump it again.",
        )
    mtime = stored.created_ns // SECOND
    with CompressedWriter(write) as stream:

        def put(name: str, size: int, content: Iterable[bytes]) -> None:
            stream.write(tarball.header(name, size, mtime))
            for piece in content:
                stream.write(piece)
            stream.write(tarball.padding(size))

        mark = b"%s%d\n" % (_MARK, _VERSION)
        put("ckpt-archive", len(mark), [mark])
        put("manifest", len(manifest), [manifest])
        for number, signature in enumerate(source.signatures(checkpoint)):
            document = SIGNATURE.encode(signature)
            put(f"signatures/{number}", len(document), [document])
        for number, file in enumerate(stored.files):
            put(f"files/{number}", file.size_bytes, source.stream(checkpoint, file))
        stream.write(tarball.END)


class ArchiveReader:
    """An archive whose documents have been read and checked, and whose files come next.

    Who signed it is known, and whether the signatures are right is not: that is the caller's to judge.
    """

    def __init__(self, read: Callable[[int], bytes], name: str) -> None:
        """Read the documents from `read`, which gives at most as many bytes as it is asked for.

        Raises:
            FormatUnknown: it is no archive of ckpt, or one of a newer ckpt.
            ObjectCorrupt: damaged, or cut short.
        """
        self._name = name
        self._stream = CompressedReader(read, name)
        self._mtime = 0
        self._read_mark()
        manifest = self._document("manifest", self._block(), DOCUMENT_BYTES_MAX)
        self.checkpoint: Final = MANIFEST.decode(manifest, f"of the archive {name}")
        self.id: Final = checkpoint_id(manifest)
        if MANIFEST.encode(self.checkpoint) != manifest:
            raise FormatUnknown(
                subject=name, reason="its manifest is not as this ckpt writes it", remedy=_REMEDY
            )
        self._next = b""
        self.signatures: Final = tuple(self._read_signatures())

    def store_files(self, writer: ArchiveWriter) -> None:
        """Give all files to the writer; returns when every one is as the manifest says, and the archive is over.

        Raises:
            ObjectCorrupt: damaged, or cut short; names the file.
            CkptError: what the writer says.
        """
        for number, file in enumerate(self.checkpoint.files):
            name = f"files/{number}"
            if self._next != self._header(name, file.size_bytes):
                self._refuse(f"there is no {name} of {file.size_bytes} bytes where it must be")
            member = _Member(self, file.size_bytes)
            found = writer.add_stream(member.read, name=file.name, size_bytes=file.size_bytes, mode=file.mode)
            if member.left or found != file:
                self._refuse(f"{name} ({file.name}) is not what the manifest says")
            self._skip_padding(file.size_bytes)
            self._next = self._block()
        if self._next + self._block() != tarball.END:
            self._refuse("more follows its last file")
        self._stream.end()

    def take(self, count: int) -> bytes:
        """At least one byte and at most `count` of what comes next.

        Raises:
            ObjectCorrupt: nothing comes.
        """
        return self._stream.read(count) or self._refuse("it ends too early")

    def _read_mark(self) -> None:
        block = self._block()
        size = tarball.size_in(block)
        self._mtime = tarball.mtime_in(block) or 0
        if size is None or size > _MARK_BYTES_MAX or block != self._header("ckpt-archive", size):
            raise FormatUnknown(subject=self._name, reason="it does not begin as an archive of ckpt does")
        mark = self._exactly(size)
        self._skip_padding(size)
        if mark != b"%s%d\n" % (_MARK, _VERSION):
            found = mark.removeprefix(_MARK).strip().decode("ascii", "replace")
            raise FormatUnknown(
                subject=self._name,
                reason=f"it is an archive of version {found}, and this ckpt reads version {_VERSION}",
                remedy="Use a newer ckpt.",
            )

    def _read_signatures(self) -> Iterator[Signature]:
        for number in range(SIGNATURES_MAX + 1):
            self._next = self._block()
            name = f"signatures/{number}"
            if not self._next.startswith(name.encode() + b"\0"):
                return
            if number == SIGNATURES_MAX:
                self._refuse(f"it has more than {SIGNATURES_MAX} signatures")
            document = self._document(name, self._next, SIGNATURE_BYTES_MAX)
            yield SIGNATURE.decode(document, f"{name} of the archive {self._name}")

    def _document(self, name: str, block: bytes, bytes_max: int) -> bytes:
        """The content of a member whose size nobody knows but its header, which is `block`."""
        size = tarball.size_in(block)
        if size is None or block != self._header(name, size):
            self._refuse(f"there is no {name} where it must be")
        if size > bytes_max:
            self._refuse(f"its {name} has {size} bytes, and at most {bytes_max} are allowed")
        content = self._exactly(size)
        self._skip_padding(size)
        return content

    def _header(self, name: str, size: int) -> bytes:
        return tarball.header(name, size, self._mtime)

    def _block(self) -> bytes:
        """The next header: the block, or the three blocks where the first is an extended header."""
        block = self._exactly(tarball.BLOCK_BYTES)
        return block + self._exactly(2 * tarball.BLOCK_BYTES) if tarball.is_extended(block) else block

    def _skip_padding(self, size: int) -> None:
        expected = tarball.padding(size)
        if self._exactly(len(expected)) != expected:
            self._refuse("there is something between two members")

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            pieces.append(self.take(min(count, _READ_BYTES)))
            count -= len(pieces[-1])
        return b"".join(pieces)

    def _refuse(self, reason: str) -> NoReturn:
        raise ObjectCorrupt(kind="archive", name=self._name, reason=reason, remedy=_REMEDY)


class _Member:
    """The content of one member."""

    def __init__(self, archive: ArchiveReader, size: int) -> None:
        self._archive = archive
        self.left = size

    def read(self, count: int) -> bytes:
        """At most `count` bytes of what is left of it."""
        if not self.left:
            return b""
        found = self._archive.take(min(count, self.left, _READ_BYTES))
        self.left -= len(found)
        return found


def import_archive(
    archive: ArchiveReader,
    open_target: Callable[[], ArchiveTarget],
    check_trust: Callable[[CheckpointId, tuple[Signature, ...]], tuple[Signature, ...]],
) -> TransferReport:
    """Store the archive's checkpoint, which keeps its id.

    Args:
        archive: One whose files have not been read.
        open_target: Opens the store; called when the checkpoint is trusted.
        check_trust: Raises Untrusted unless somebody who is trusted vouches for this id; gives the signatures
            that are kept, none where the store shall sign it itself.

    Raises:
        Untrusted: nothing was written.
        ObjectCorrupt: damaged, or cut short; nothing remains.
        CkptError: what the store says.
    """
    signatures = check_trust(archive.id, archive.signatures)
    target = open_target()
    was_there = target.has(archive.id)
    with target.writer() as writer:
        archive.store_files(writer)
        found = writer.commit(archive.checkpoint, signatures=signatures)
    return TransferReport(
        id=found,
        image_bytes=archive.checkpoint.image_bytes,
        new_bytes=writer.new_bytes,
        stored_bytes=writer.stored_bytes,
        was_there=was_there,
    )
