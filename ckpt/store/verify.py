"""Read everything and check it; what is wrong is collected, and nothing ends the reading.

Rules: F69 of images/FORMAT.md. Each chunk is checked once, as the first checkpoint that needs it sees it: whole
ones by their digest, deltas on top of what they are deltas to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ckpt.codec.limits import BLOB_CHUNKS_MAX
from ckpt.codec.objects import CONFIG, RECEIPT, TAG_MARK, chunk_digests
from ckpt.codec.pack import BlobKind, damaged
from ckpt.codec.placement import PackRef, PlacedFile
from ckpt.codec.records import Receipt, TagMark
from ckpt.codec.v1 import Chunk, ChunkedCheckpoint
from ckpt.errors import CkptError, ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.model.reports import Problem, VerifyReport
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.chunked import Chunks
from ckpt.store.contents import PIECE_CHUNKS, PlacedContents
from ckpt.store.indexing import check_index
from ckpt.store.objects import Objects
from ckpt.store.packs import Packs
from ckpt.store.parallel import each
from ckpt.store.repacking import runs_of
from ckpt.store.signing import Signatures
from ckpt.store.tags import Tags
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId, Digest


class _Piece(NamedTuple):
    """Chunks of a file that lie in one blob, and were not checked before."""

    contents: PlacedContents
    file: PlacedFile
    start: int
    length: int
    pack: Digest


class Verification:
    """One reading of a store, or of some of its checkpoints."""

    def __init__(self, backend: Backend, vault: Vault, packs: Packs, progress: Progress = UNWATCHED) -> None:
        self._backend = backend
        self._packs = packs
        self._progress = progress
        self._objects = Objects(backend, vault)
        self._catalogue = Catalogue(backend, vault)
        self._tags = Tags(backend, vault)
        self._signatures = Signatures(backend, vault, None)
        self._old_chunks = Chunks(backend)
        self._problems: list[Problem] = []
        self._old_needs: dict[Chunk, list[CheckpointId]] = {}
        self._checked: dict[Digest, int] = defaultdict(int)
        self._told: set[tuple[str, str]] = set()
        self._named = False
        self._chunks = 0
        self._bytes = 0

    def run(self, checkpoints: tuple[CheckpointId, ...] | None) -> VerifyReport:
        """Read the named checkpoints with their chunks; without names, every object of the store."""
        self._named = checkpoints is not None
        wanted = tuple(self._catalogue.ids()) if checkpoints is None else checkpoints
        if self._progress.is_watched:
            self._expect(wanted)
        for checkpoint in wanted:
            self._noting(checkpoint, partial(self._check_checkpoint, checkpoint))
        old_unneeded: set[Digest] = set()
        if checkpoints is None:
            self._noting("config", self._check_config)
            self._check_marks()
            self._check_signatures(None)
            self._check_indexes()
            self._check_strays()
            self._check_other_packs()
            old_unneeded = self._old_chunks.present() - {chunk.digest for chunk in self._old_needs}
        else:
            for checkpoint in checkpoints:
                self._check_signatures(checkpoint)
        self._check_old_chunks([*self._old_needs, *sorted(old_unneeded)])
        return VerifyReport(
            checked_chunks=self._chunks,
            checked_bytes=ByteCount(self._bytes),
            problems=tuple(self._with_users(checkpoints)),
        )

    def _expect(self, checkpoints: tuple[CheckpointId, ...]) -> None:
        """Say how large the files of these checkpoints are; chunks that several share are passed by quickly."""
        for checkpoint in checkpoints:
            with suppress(CkptError):
                manifest = self._manifest(checkpoint)
                if isinstance(manifest, Checkpoint):  # the chunks of version 1 come at the end, by themselves
                    self._progress.expect(sum(file.size_bytes for file in manifest.files))

    def _manifest(self, checkpoint: CheckpointId) -> Checkpoint | ChunkedCheckpoint:
        manifest = self._objects.read_manifest_as_written(checkpoint)
        return manifest if isinstance(manifest, Checkpoint | ChunkedCheckpoint) else manifest.today()

    def _noting(self, subject: str, check: Callable[[], object]) -> None:
        try:
            check()
        except CkptError as error:
            self._note(error.slug, subject, error.message)

    def _note(self, slug: str, subject: str, message: str) -> None:
        if (subject, message) not in self._told:
            self._told.add((subject, message))
            self._problems.append(Problem(slug=slug, subject=subject, message=message))

    def _check_config(self) -> None:
        # It says how the others are sealed, and is not sealed itself.
        Objects(self._backend, Vault()).read_document(layout.CONFIG, CONFIG, layout.CONFIG)

    # ---------------------------------------------------------------------------- checkpoints and their chunks

    def _check_checkpoint(self, checkpoint: CheckpointId) -> None:
        try:
            self._check_whole(checkpoint)
        except ObjectMissing:
            # Named, it should be there; else it may have been removed since the names were listed.
            if self._named or not self._was_removed(checkpoint):
                raise

    def _check_whole(self, checkpoint: CheckpointId) -> None:
        manifest = self._manifest(checkpoint)
        if isinstance(manifest, ChunkedCheckpoint):
            for file in manifest.files:
                for chunk in file.chunks:
                    needed_by = self._old_needs.setdefault(chunk, [])
                    if checkpoint not in needed_by[-1:]:
                        needed_by.append(checkpoint)
        else:
            self._check_files(checkpoint, manifest)
        self._noting(layout.receipt(checkpoint), partial(self._check_receipt, checkpoint, manifest))

    def _check_files(self, checkpoint: CheckpointId, manifest: Checkpoint) -> None:
        while True:
            placement = self._objects.placement_of(checkpoint)
            problems = list(self._problems_of(PlacedContents(self._packs, placement), manifest))
            if self._was_removed(checkpoint):
                return  # a sweep took it meanwhile: reading does not hold it off
            lost = any(isinstance(problem, ObjectMissing) for problem in problems)
            # Packs may have been written anew since: then a newer placement says where it is now.
            if not lost or self._objects.placement_of(checkpoint) == placement:
                break
        for problem in problems:
            self._note(problem.slug, _subject(problem, checkpoint), problem.message)

    def _problems_of(self, contents: PlacedContents, manifest: Checkpoint) -> Iterator[CkptError]:
        for file in manifest.files:
            passed = 0
            try:
                placed = contents.placed(file)
                contents.check_root(placed)
            except CkptError as error:
                yield error
                self._progress.moved(file.size_bytes)
                continue
            for piece, outcome in each(self._unchecked(contents, placed), _read):
                if outcome is None:
                    self._chunks += piece.length
                    self._bytes += piece.length * CHUNK_BYTES
                else:
                    yield outcome
                # The pieces of one MiB come layer by layer: where the last of them ends does not tell.
                begin = piece.start // PIECE_CHUNKS * PIECE_CHUNKS * CHUNK_BYTES
                if begin > passed:
                    self._progress.moved(begin - passed)
                    passed = begin
            self._progress.moved(file.size_bytes - passed)

    def _unchecked(self, contents: PlacedContents, file: PlacedFile) -> Iterator[_Piece]:
        """The chunks of a file that no checkpoint before had, by the topmost layer of each.

        What is below a delta is checked with it; where it is needed without, as the topmost of another file.
        """
        for first in range(0, file.chunk_count, PIECE_CHUNKS):
            covered = 0
            for layer in reversed(file.layers):
                for start, count, place, chunk in layer.within(
                    first, min(PIECE_CHUNKS, file.chunk_count - first)
                ):
                    pack = contents.placement.packs[place].name
                    topmost = (1 << count) - 1 & ~(covered >> start - first)
                    new = topmost & ~(self._checked[pack] >> chunk)
                    covered |= topmost << start - first
                    self._checked[pack] |= new << chunk
                    for offset, length in runs_of(new, count):
                        yield _Piece(contents, file, start + offset, length, pack)

    def _was_removed(self, checkpoint: CheckpointId) -> bool:
        """Whether a sweep took it meanwhile: reading does not hold it off."""
        return self._backend.stat(layout.manifest(checkpoint)) is None

    def _with_users(self, checkpoints: tuple[CheckpointId, ...] | None) -> Iterator[Problem]:
        """The problems; of each damaged pack it is told which checkpoints need it."""
        damaged_packs = {problem.subject for problem in self._problems} & set(self._checked)
        users: dict[str, list[CheckpointId]] = defaultdict(list)
        # Once more, and only now: a list of users for every pack would not fit in memory.
        for name in self._objects.placement_names() if damaged_packs else ():
            with suppress(CkptError):
                placement = self._objects.read_placement(name)
                if placement and (checkpoints is None or name.checkpoint in checkpoints):
                    for subject in damaged_packs & {ref.name for ref in placement.packs}:
                        users[subject].append(name.checkpoint)
        for problem in self._problems:
            needed_by = ", ".join(dict.fromkeys(user[:12] for user in users[problem.subject]))
            if problem.subject in damaged_packs:
                whose = f"Needed by {needed_by}." if needed_by else "No checkpoint needs it."
                yield replace(problem, message=f"{problem.message} {whose}")
            else:
                yield problem

    def _check_receipt(self, checkpoint: CheckpointId, manifest: Checkpoint | ChunkedCheckpoint) -> None:
        name = layout.receipt(checkpoint)
        found = self._objects.read_document(name, RECEIPT, name)
        # A lost receipt is no damage: a crash may have taken it, and nothing is needed from it.
        if found and not _fits(found, checkpoint, manifest):
            raise ObjectCorrupt(kind="receipt", name=name, reason="it belongs to another checkpoint")

    # -------------------------------------------------------------------------------------- everything else

    def _check_marks(self) -> None:
        for mark in self._tags.marks():
            expected = TagMark(tag=mark.tag, serial=mark.serial, checkpoint=mark.checkpoint)
            self._noting(mark.object, partial(self._check_mark, mark.object, expected))

    def _check_mark(self, name: str, expected: TagMark) -> None:
        found = self._objects.read_document(name, TAG_MARK, name)
        if found not in {expected, None}:
            raise ObjectCorrupt(kind="tag", name=name, reason="its content does not say what its name says")

    def _check_signatures(self, checkpoint: CheckpointId | None) -> None:
        for name in self._signatures.names(checkpoint):
            self._noting(name.object, partial(self._signatures.read, name))

    def _check_indexes(self) -> None:
        for name in self._backend.list(layout.INDEXES):
            if layout.digest_in(name):
                self._noting(name, partial(check_index, self._backend, name))

    def _check_strays(self) -> None:
        for folder in layout.FOLDERS:
            for name in self._backend.list(folder):
                if not layout.is_known(name):
                    message = (
                        f"{name} is no object of a store: ckpt did not put it there, and leaves it alone."
                    )
                    self._note("stray", name, message)

    def _check_other_packs(self) -> None:
        """What no checkpoint needs: whole chunks by their digests, deltas by zstd's check sums."""
        for name in self._backend.list(layout.PACKS):
            if digest := layout.digest_in(name):
                self._noting(digest, partial(self._check_pack, digest))

    def _check_pack(self, name: Digest) -> None:
        ref = self._packs.find(name)
        if ref is None:
            return
        with suppress(ObjectMissing):  # nobody needs it: a sweep may take it
            for number, blob in enumerate(self._packs.list_of(ref).blobs):
                every = (1 << blob.chunks) - 1
                if (self._checked[name] >> number * BLOB_CHUNKS_MAX) & every != every:
                    self._check_blob(ref, number, blob.kind)

    def _check_blob(self, ref: PackRef, number: int, kind: BlobKind) -> None:
        plain = self._packs.read_blob(ref, number)
        count = len(plain) // CHUNK_BYTES
        expected = self._packs.list_of(ref).digests_of(number * BLOB_CHUNKS_MAX, count)
        if kind is BlobKind.WHOLE and b"".join(chunk_digests(plain)) != expected:
            raise damaged(ref.name, f"a chunk of its blob {number} has another digest than it lists")
        self._chunks += (
            count - (self._checked[ref.name] >> number * BLOB_CHUNKS_MAX & (1 << count) - 1).bit_count()
        )

    # ------------------------------------------------------------------------------------------ version 1

    def _check_old_chunks(self, chunks: list[Chunk | Digest]) -> None:
        """Read chunks of version 1 that checkpoints need, and others by their digest alone."""
        for chunk, outcome in each(chunks, self._read_old):
            match outcome:
                case ObjectMissing() if self._all_were_removed(chunk):
                    pass
                case CkptError():
                    subject = chunk.digest if isinstance(chunk, Chunk) else chunk
                    self._note(outcome.slug, subject, f"{outcome.message} {self._whose(chunk)}")
                case size:
                    self._chunks += 1
                    self._bytes += size

    def _read_old(self, chunk: Chunk | Digest) -> tuple[Chunk | Digest, CkptError | int]:
        try:
            if isinstance(chunk, Chunk):
                return chunk, len(self._old_chunks.read(chunk))
            return chunk, self._old_chunks.check(chunk)
        except CkptError as error:
            return chunk, error

    def _users(self, chunk: Chunk | Digest) -> list[CheckpointId]:
        return self._old_needs[chunk] if isinstance(chunk, Chunk) else []

    def _all_were_removed(self, chunk: Chunk | Digest) -> bool:
        return all(self._was_removed(found) for found in self._users(chunk))

    def _whose(self, chunk: Chunk | Digest) -> str:
        needed_by = ", ".join(checkpoint[:12] for checkpoint in self._users(chunk))
        return f"Needed by {needed_by}." if needed_by else "No checkpoint needs it."


def _read(piece: _Piece) -> tuple[_Piece, CkptError | None]:
    try:
        piece.contents.verified(piece.file, piece.start, piece.length)
    except CkptError as error:
        return piece, error
    return piece, None


def _subject(error: CkptError, otherwise: str) -> str:
    """What the error is about, if it says."""
    match error:
        case ObjectCorrupt() | ObjectMissing():
            return error.name
        case _:
            return otherwise


def _fits(receipt: Receipt, checkpoint: CheckpointId, manifest: Checkpoint | ChunkedCheckpoint) -> bool:
    return (receipt.checkpoint, receipt.job, receipt.created_ns) == (
        checkpoint,
        manifest.job,
        manifest.created_ns,
    )
