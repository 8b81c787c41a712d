"""A store of checkpoints over any backend; fits the `Store` port of the flows.

Rules: images/FORMAT.md. Reading needs no lock and no right to write.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Final

from ckpt.codec.records import Signature, StoreConfig
from ckpt.codec.v1 import ChunkedCheckpoint
from ckpt.errors import CkptError, ObjectCorrupt, ObjectMissing
from ckpt.model.checkpoint import StoredFile
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.model.reports import Problem, StoredCheckpoint, StoreStatistics, SweepReport, VerifyReport
from ckpt.store import layout, upgrading
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.chunked import ChunkedContents
from ckpt.store.contents import Contents, PlacedContents
from ckpt.store.fetching import fetch
from ckpt.store.objects import Objects
from ckpt.store.packs import Packs
from ckpt.store.parallel import each
from ckpt.store.signing import Signatures, Trust
from ckpt.store.statistics import statistics
from ckpt.store.sweep import Sweep
from ckpt.store.tags import Tags
from ckpt.store.vault import Vault
from ckpt.store.verify import Verification
from ckpt.store.writer import Writer
from ckpt.units import ByteCount, CheckpointId, Nanoseconds, Tag

RANGE_BYTES_MAX: Final = 16 << 20
"""The most of a file that read_range() gives at once."""

_PIECES_IN_ORDER_FROM: Final = 1 << 20


class Store:
    """Checkpoints in a backend whose config was read: see opening.open_store and opening.open_local.

    `progress` is told of the bytes of files as they are stored, fetched, streamed, checked and written anew.
    """

    def __init__(
        self,
        backend: Backend,
        config: StoreConfig,
        *,
        config_version: int,
        vault: Vault | None = None,
        trust: Trust | None = None,
    ) -> None:
        self._backend = backend
        self._config = config
        self._config_version = config_version
        self._vault = vault or Vault()
        self._packs = Packs(backend, self._vault)
        self._objects = Objects(backend, self._vault)
        self._catalogue = Catalogue(backend, self._vault)
        self._tags = Tags(backend, self._vault)
        self._trust = trust
        self._signatures = Signatures(backend, self._vault, trust)
        self._opened: tuple[CheckpointId, Contents] | None = None
        self.progress: Progress = UNWATCHED

    @property
    def place(self) -> str:
        """How the user named it."""
        return self._backend.place

    @property
    def is_encrypted(self) -> bool:
        """Whether its objects are sealed."""
        return self._vault.is_encrypted

    @property
    def signatures_required(self) -> bool:
        """Whether only what a trusted key has signed is restored from it.

        It is so unless the store says otherwise, and this host too: who can write to the store could change
        what the store says.
        """
        return self._config.signatures_required or (
            self._trust is not None and not self._trust.allows_unsigned(self._config.id)
        )

    @contextmanager
    def writer(self, parent: CheckpointId | None = None) -> Iterator[Writer]:
        """A writer of one checkpoint; sweeps spare what it needs while it lives.

        What was not committed is removed at the end, as far as nobody else is at work.

        Args:
            parent: The checkpoint that most of the new one is expected to be like.

        Raises:
            StoreUnusable: not writable.
            Locked: a sweep did not end in time.
        """
        self.upgrade()
        sign = self._signatures.signer(_now)
        with ExitStack() as stack:
            lease = stack.enter_context(self._backend.lease())
            writer = Writer(
                self._backend,
                self._vault,
                self._packs,
                lease,
                parent=parent,
                sign=sign,
                progress=self.progress,
            )
            try:
                yield writer
            finally:
                writer.close()
                stack.close()  # what it had pinned may go
                if not writer.committed and writer.began:
                    # Not the error that matters now; and what remains, the next sweep takes.
                    with suppress(CkptError):
                        writer.take_back()

    def upgrade(self) -> None:
        """Make a store of an older format one of today's; what is in it stays as it is.

        Raises:
            Locked: an older ckpt is at work in it.
            StoreUnusable: not writable.
        """
        if self._config_version < upgrading.CONFIG_VERSION:
            upgrading.put_config(self._backend, self._config)
            self._config_version = upgrading.CONFIG_VERSION

    def resolve(self, ref: str) -> CheckpointId:
        """The one checkpoint that a REF names: an id, JOB@latest, JOB~N, a tag, a job, a beginning of an id.

        Raises:
            ObjectMissing: none; says what would be there.
            AmbiguousRef: it is the beginning of several ids.
        """
        return self._catalogue.resolve(ref)

    def has(self, checkpoint: CheckpointId) -> bool:
        """Whether there is a checkpoint of this id."""
        return self._backend.stat(layout.manifest(checkpoint)) is not None

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """Read and verify a manifest.

        Raises:
            ObjectMissing: there is none of this id.
            ObjectCorrupt: damaged.
            FormatUnknown: written by a newer ckpt.
        """
        return self._load(checkpoint, self._tags.of_checkpoints())

    def manifest_bytes(self, checkpoint: CheckpointId) -> bytes:
        """The manifest as it is written: its digest is the id; raises what load() does."""
        return self._objects.manifest_bytes(checkpoint)

    def list(self, on_problem: Callable[[Problem], None] | None = None) -> tuple[StoredCheckpoint, ...]:
        """All checkpoints, oldest first.

        Args:
            on_problem: Is told of each manifest that cannot be read, which is then left out; without it, the
                first such error is raised.
        """
        tags = self._tags.of_checkpoints()
        found: dict[CheckpointId, StoredCheckpoint] = {}
        for checkpoint in self._catalogue.ids():
            try:
                found[checkpoint] = self._load(checkpoint, tags)
            except ObjectMissing:
                continue  # removed since the names were listed
            except CkptError as error:
                if on_problem is None:
                    raise
                on_problem(Problem(slug=error.slug, subject=checkpoint, message=error.message))
        return tuple(sorted(found.values(), key=lambda stored: (stored.checkpoint.created_ns, stored.id)))

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        """Write a file of a checkpoint to `path`, every byte verified; nothing remains if that fails.

        Raises:
            ObjectMissing: something that it needs is not there.
            ObjectCorrupt: damaged.
            NoSpace: the target's file system is full.
        """
        contents = self.contents(checkpoint)
        try:
            fetch(contents, file, path, self.progress)
        except ObjectMissing:
            # Packs may have been written anew since: then a newer placement says where it is now.
            self._opened = None
            if not self._moved(contents, checkpoint):
                raise
            fetch(self.contents(checkpoint), file, path, self.progress)

    def stream(self, checkpoint: CheckpointId, file: StoredFile) -> Iterator[bytes]:
        """The verified bytes of a file in order, at most 1 MiB at once (16 MiB of one of version 1).

        Raises:
            ObjectMissing: something that it needs is not there.
            ObjectCorrupt: damaged.
        """
        done = 0
        contents = self.contents(checkpoint)
        while True:
            try:
                for plain in _in_order(contents, file, done):
                    yield plain
                    done += 1
                    self.progress.moved(len(plain))
            except ObjectMissing:
                # Packs may have been written anew since: then a newer placement says where it is now.
                self._opened = None
                if not self._moved(contents, checkpoint):
                    raise
                contents = self.contents(checkpoint)
            else:
                return

    def read_range(self, checkpoint: CheckpointId, file: StoredFile, offset: int, size: int) -> bytes:
        """The verified bytes of a file from `offset` on, at most RANGE_BYTES_MAX at once; no more of it is read than must be.

        Raises:
            ObjectMissing: something that it needs is not there.
            ObjectCorrupt: damaged, or whoever asks believes the file to be longer than it is.
        """
        assert 0 <= size <= RANGE_BYTES_MAX
        if not 0 <= offset <= file.size_bytes - size:
            raise ObjectCorrupt(
                kind="file",
                name=file.name,
                reason=f"it has {file.size_bytes} bytes, and {size} are looked for at byte {offset}",
            )
        return self._read(checkpoint, lambda contents: contents.read_range(file, offset, size))

    def page_digests(self, checkpoint: CheckpointId, file: StoredFile) -> bytes:
        """The SHA-256 of each CHUNK_BYTES of a file, one after another; the last ones are filled up with zeros.

        Its content is not read, but for checkpoints of version 1.

        Raises:
            ObjectMissing: something that it needs is not there.
            ObjectCorrupt: damaged.
        """
        return self._read(checkpoint, lambda contents: contents.page_digests(file))

    def contents(self, checkpoint: CheckpointId) -> Contents:
        """The files of a checkpoint; those of the last one are kept.

        Raises:
            ObjectMissing, ObjectCorrupt, FormatUnknown: what says where they are cannot be read.
        """
        if self._opened is None or self._opened[0] != checkpoint:
            self._opened = checkpoint, self._open(checkpoint)
        return self._opened[1]

    def tag(self, checkpoint: CheckpointId, tag: Tag) -> None:
        """Give the checkpoint a tag; it is taken from the one that had it.

        Raises:
            ObjectMissing: no such checkpoint.
            BadName: no tag can be called so.
        """
        with self._backend.writing():
            if not self.has(checkpoint):
                raise ObjectMissing(place=self.place, kind="checkpoint", name=checkpoint)
            self._tags.give(checkpoint, tag)

    def untag(self, tag: Tag) -> None:
        """Remove a tag; the checkpoint stays.

        Raises:
            ObjectMissing: there is no such tag.
        """
        with self._backend.writing():
            self._tags.take(tag)

    def remove(self, checkpoints: tuple[CheckpointId, ...], *, spare_tagged: bool = False) -> SweepReport:
        """Remove the checkpoints with their tags, and every object that nothing refers to any more.

        Packs of which little is still needed are written anew without the rest. Others may write meanwhile.

        Args:
            checkpoints: What goes.
            spare_tagged: Not those of them that have a tag by then.

        Raises:
            ObjectMissing: one of them is not there; nothing was removed.
            ObjectCorrupt: another one is damaged, so that its needs are unknown; nothing was removed.
            FormatUnknown: another one was written by a newer ckpt; nothing was removed.
            Locked: others did not let go in time.
        """
        self.upgrade()
        return Sweep(self._backend, self._vault, self._packs, self.progress).run(
            checkpoints, patient=True, repack=True, spare_tagged=spare_tagged
        )

    def preview(self, checkpoints: tuple[CheckpointId, ...]) -> SweepReport:
        """What remove() would remove, about; nothing is changed, and raises what that does but Locked."""
        return Sweep(self._backend, self._vault, self._packs).preview(checkpoints)

    def used_bytes(self) -> ByteCount:
        """The space that all its objects take."""
        found = (self._backend.stat(name) for folder in layout.FOLDERS for name in self._backend.list(folder))
        return ByteCount(sum(each.space_bytes for each in found if each is not None))

    def verify(self, checkpoints: tuple[CheckpointId, ...] | None) -> VerifyReport:
        """Read and check the named checkpoints, or everything; collects what is wrong and goes on."""
        # What is remembered of packs proves nothing of what is on the disk.
        packs = Packs(self._backend, self._vault)
        return Verification(self._backend, self._vault, packs, self.progress).run(checkpoints)

    def statistics(self) -> StoreStatistics:
        """What the store holds and takes.

        Raises:
            ObjectMissing, ObjectCorrupt, FormatUnknown: a checkpoint cannot be read.
        """
        return replace(
            statistics(self._backend, self._vault, self._packs),
            encrypted=self.is_encrypted,
            signatures_required=self.signatures_required,
        )

    def signatures(self, checkpoint: CheckpointId) -> tuple[Signature, ...]:
        """The signatures of a checkpoint, whether or not anybody trusts them; damaged ones are left out."""
        return self._signatures.of(checkpoint)

    def check_trust(self, checkpoint: CheckpointId) -> None:
        """Return if the checkpoint may be restored: a trusted key has signed it, or this store needs none.

        Raises:
            Untrusted: it is not so; says which command would trust it.
        """
        self._signatures.check(checkpoint, required=self.signatures_required)

    def check_signed(self, checkpoint: CheckpointId) -> None:
        """The same, whatever this store's own setting is: for what comes from elsewhere."""
        self._signatures.check(checkpoint, required=True)

    def sign(self, checkpoint: CheckpointId) -> Signature:
        """Sign a checkpoint with this host's key.

        Raises:
            ObjectMissing: there is none.
            StoreUnusable: the store was opened without keys.
        """
        self._objects.manifest_bytes(checkpoint)
        self.upgrade()
        return self._signatures.add(checkpoint, _now())

    def add_signatures(self, checkpoint: CheckpointId, signatures: tuple[Signature, ...]) -> None:
        """Keep signatures of a checkpoint that others made; those that are there already stay."""
        there = {signature.public_key for signature in self.signatures(checkpoint)}
        self._signatures.keep(
            tuple(signature for signature in signatures if signature.public_key not in there)
        )

    def set_signatures_required(self, required: bool) -> None:  # noqa: FBT001 - a setting's value
        """Say, in the store and on this host, whether only what a trusted key has signed may be restored from it."""
        if self._trust is not None:
            self._trust.allow_unsigned(self._config.id, allowed=not required)
        self._replace_config(replace(self._config, signatures_required=required))

    def rekey(self, secret: bytes) -> None:
        """Have another secret open the encrypted store; its objects stay as they are.

        Raises:
            WrongState: it is not encrypted.
        """
        self._replace_config(upgrading.rewrapped(self.place, self._config, self._vault, secret))

    def _replace_config(self, config: StoreConfig) -> None:
        self.upgrade()
        upgrading.put_config(self._backend, config)
        self._config = config

    def _open(self, checkpoint: CheckpointId) -> Contents:
        if self._objects.newest_placement(checkpoint) is None:
            manifest = self._objects.read_manifest_as_written(checkpoint)
            if isinstance(manifest, ChunkedCheckpoint):
                return ChunkedContents(self._backend, manifest)
        return PlacedContents(self._packs, self._objects.placement_of(checkpoint))

    def _read(self, checkpoint: CheckpointId, read: Callable[[Contents], bytes]) -> bytes:
        contents = self.contents(checkpoint)
        try:
            return read(contents)
        except ObjectMissing:
            # Packs may have been written anew since: then a newer placement says where it is now.
            self._opened = None
            if not self._moved(contents, checkpoint):
                raise
            return read(self.contents(checkpoint))

    def _moved(self, contents: Contents, checkpoint: CheckpointId) -> bool:
        """Whether another placement counts now than the one that was read."""
        if not isinstance(contents, PlacedContents):
            return False
        return self._objects.placement_of(checkpoint) != contents.placement

    def _load(self, checkpoint: CheckpointId, tags: dict[CheckpointId, tuple[Tag, ...]]) -> StoredCheckpoint:
        return StoredCheckpoint(
            id=checkpoint,
            checkpoint=self._objects.read_manifest(checkpoint),
            tags=tags.get(checkpoint, ()),
            stored_bytes=self._catalogue.space_of(checkpoint),
        )


def _in_order(contents: Contents, file: StoredFile, skipped: int) -> Iterator[bytes]:
    """The verified bytes of the pieces of a file, but the first `skipped` ones."""
    pieces = itertools.islice(contents.pieces(file), skipped, None)
    if file.size_bytes <= _PIECES_IN_ORDER_FROM:
        return (bytes(contents.read(file, piece)) for piece in pieces)
    return each(pieces, lambda piece: bytes(contents.read(file, piece)))


def _now() -> Nanoseconds:
    return Nanoseconds(time.time_ns())
