"""A checkpoint from one store into another: only the chunks are read that the other one lacks.

Rules: F30, F32 and F60 of images/FORMAT.md. The target hashes nothing that it has, and believes no digest: what is
read is verified, and the roots that come out are those of the manifest.
"""

from __future__ import annotations

from ckpt.codec.frame import Kind
from ckpt.codec.placement import PlacedFile
from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.reports import TransferReport
from ckpt.store.contents import PlacedContents
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId


def transfer(source: Store, target: Store, checkpoint: CheckpointId) -> TransferReport:
    """Copy the checkpoint with its signatures; nothing of it remains in the target if that fails.

    Raises:
        ObjectMissing, ObjectCorrupt: it is not whole in the source.
        FormatUnknown: it was made by a ckpt whose checkpoints cannot be moved.
        NoSpace, StoreUnusable: of the target.
    """
    content = source.load(checkpoint).checkpoint
    if target.has(checkpoint):
        target.add_signatures(checkpoint, source.signatures(checkpoint))
        return _report(checkpoint, content, new=0, stored=0, was_there=True)
    contents = source.contents(checkpoint)
    if not isinstance(contents, PlacedContents):
        raise FormatUnknown(
            subject=f"The checkpoint {checkpoint[:12]}",
            reason="it is kept in the format of version 1, in which checkpoints cannot be moved",
            remedy="Restore it, and dump it again.",
        )
    target.progress.expect(sum(file.size_bytes for file in content.files))
    with target.writer(_parent_in(target, content)) as writer:
        for file in content.files:
            placed = contents.placed(file)
            contents.check_root(placed)
            made = writer.add_known(_Known(contents, placed), file, placed.addresses)
            if made.root != file.root:
                raise ObjectCorrupt(
                    kind=str(Kind.MANIFEST), name=checkpoint, reason=f"{file.name} came out as {made.root}"
                )
        writer.commit(content, signatures=source.signatures(checkpoint))
    return _report(checkpoint, content, new=writer.new_bytes, stored=writer.stored_bytes, was_there=False)


class _Known:
    """A file of another store, whose digests are known. Fits examining.Source."""

    def __init__(self, contents: PlacedContents, file: PlacedFile) -> None:
        self._contents = contents
        self._file = file

    def take(self, _first: int, _count: int) -> bytes | None:
        """Nothing: read() may be called in any order."""
        return None

    def digests(self, first: int, count: int) -> bytes | None:
        """The digests that were compared with the file's root."""
        return bytes(self._contents.digests(self._file, first, count))

    def read(self, first: int, count: int) -> bytes:
        """Verified chunks."""
        return bytes(self._contents.verified(self._file, first, count))


def _parent_in(target: Store, content: Checkpoint) -> CheckpointId | None:
    """What the target has that the checkpoint is most like."""
    if content.parent is not None and target.has(content.parent):
        return content.parent
    if content.job is None:
        return None
    try:
        return target.resolve(f"{content.job}@latest")
    except ObjectMissing:
        return None


def _report(
    checkpoint: CheckpointId, content: Checkpoint, *, new: int, stored: int, was_there: bool
) -> TransferReport:
    return TransferReport(
        id=checkpoint,
        image_bytes=content.image_bytes,
        new_bytes=ByteCount(new),
        stored_bytes=ByteCount(stored),
        was_there=was_there,
    )
