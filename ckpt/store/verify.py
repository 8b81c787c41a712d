"""Read everything and check it; what is wrong is collected, and nothing ends the reading.

Rules: F69 of images/FORMAT.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ckpt.codec.objects import CONFIG, RECEIPT, TAG_MARK
from ckpt.codec.records import Receipt, TagMark
from ckpt.errors import CkptError, ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import Checkpoint, Chunk
from ckpt.model.reports import Problem, VerifyReport
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.objects import Objects, chunks_of
from ckpt.store.parallel import each
from ckpt.store.tags import Tags
from ckpt.units import ByteCount, CheckpointId, Digest


class Verification:
    """One reading of a store, or of some of its checkpoints."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._objects = Objects(backend)
        self._catalogue = Catalogue(backend)
        self._problems: list[Problem] = []
        self._needs: dict[Chunk, list[CheckpointId]] = {}
        self._chunks = 0
        self._bytes = 0

    def run(self, checkpoints: tuple[CheckpointId, ...] | None) -> VerifyReport:
        """Read the named checkpoints with their chunks; without names, every object of the store."""
        for checkpoint in self._catalogue.ids() if checkpoints is None else checkpoints:
            self._noting(checkpoint, partial(self._check_manifest, checkpoint))
        unneeded: set[Digest] = set()
        if checkpoints is None:
            self._noting("config", self._check_config)
            self._check_marks()
            self._check_strays()
            unneeded = self._present_chunks() - {chunk.digest for chunk in self._needs}
        self._check_chunks([*self._needs, *sorted(unneeded)])
        return VerifyReport(
            checked_chunks=self._chunks, checked_bytes=ByteCount(self._bytes), problems=tuple(self._problems)
        )

    def _noting(self, subject: str, check: Callable[[], None]) -> None:
        try:
            check()
        except CkptError as error:
            self._problems.append(Problem(slug=error.slug, subject=subject, message=error.message))

    def _check_config(self) -> None:
        self._objects.read_document(layout.CONFIG, CONFIG, layout.CONFIG)

    def _check_manifest(self, checkpoint: CheckpointId) -> None:
        manifest = self._objects.read_manifest(checkpoint)
        for chunk in chunks_of(manifest):
            needed_by = self._needs.setdefault(chunk, [])
            if checkpoint not in needed_by[-1:]:
                needed_by.append(checkpoint)
        self._noting(layout.receipt(checkpoint), partial(self._check_receipt, checkpoint, manifest))

    def _check_receipt(self, checkpoint: CheckpointId, manifest: Checkpoint) -> None:
        name = layout.receipt(checkpoint)
        found = self._objects.read_document(name, RECEIPT, name)
        # A lost receipt is no damage: a crash may have taken it, and nothing is needed from it.
        if found and not _fits(found, checkpoint, manifest):
            raise ObjectCorrupt(kind="receipt", name=name, reason="it belongs to another checkpoint")

    def _check_marks(self) -> None:
        for mark in Tags(self._backend).marks():
            expected = TagMark(tag=mark.tag, serial=mark.serial, checkpoint=mark.checkpoint)
            self._noting(mark.object, partial(self._check_mark, mark.object, expected))

    def _check_mark(self, name: str, expected: TagMark) -> None:
        found = self._objects.read_document(name, TAG_MARK, name)
        if found not in {expected, None}:
            raise ObjectCorrupt(kind="tag", name=name, reason="its content does not say what its name says")

    def _check_strays(self) -> None:
        for folder in layout.FOLDERS:
            for name in self._backend.list(folder):
                if not layout.digest_in(name) and not layout.tag_in(name):
                    message = (
                        f"{name} is no object of a store: ckpt did not put it there, and leaves it alone."
                    )
                    self._problems.append(Problem(slug="stray", subject=name, message=message))

    def _present_chunks(self) -> set[Digest]:
        names = self._backend.list(layout.CHUNKS)
        return {digest for name in names if (digest := layout.digest_in(name))}

    def _check_chunks(self, chunks: Iterable[Chunk | Digest]) -> None:
        """Read chunks that checkpoints need, and others by their digest alone."""
        for chunk, outcome in each(chunks, self._read):
            match outcome:
                case ObjectMissing() if self._was_removed(chunk):
                    pass
                case CkptError():
                    subject = chunk.digest if isinstance(chunk, Chunk) else chunk
                    message = f"{outcome.message} {self._whose(chunk)}"
                    self._problems.append(Problem(slug=outcome.slug, subject=subject, message=message))
                case size:
                    self._chunks += 1
                    self._bytes += size

    def _read(self, chunk: Chunk | Digest) -> tuple[Chunk | Digest, CkptError | int]:
        try:
            if isinstance(chunk, Chunk):
                return chunk, len(self._objects.read_chunk(chunk))
            return chunk, self._objects.check_chunk(chunk)
        except CkptError as error:
            return chunk, error

    def _needed_by(self, chunk: Chunk | Digest) -> list[CheckpointId]:
        return self._needs[chunk] if isinstance(chunk, Chunk) else []

    def _was_removed(self, chunk: Chunk | Digest) -> bool:
        """Whether a sweep took the chunk meanwhile: reading does not hold it off."""
        return not any(self._backend.stat(layout.manifest(found)) for found in self._needed_by(chunk))

    def _whose(self, chunk: Chunk | Digest) -> str:
        needed_by = ", ".join(checkpoint[:12] for checkpoint in self._needed_by(chunk))
        return f"Needed by {needed_by}." if needed_by else "No checkpoint needs it."


def _fits(receipt: Receipt, checkpoint: CheckpointId, manifest: Checkpoint) -> bool:
    return (receipt.checkpoint, receipt.job, receipt.created_ns) == (
        checkpoint,
        manifest.job,
        manifest.created_ns,
    )
