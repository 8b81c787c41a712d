"""A store of checkpoints over any backend; fits the `Store` port of the flows.

Rules: images/FORMAT.md. Reading needs no lock and no right to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ckpt.codec.records import StoreConfig
from ckpt.errors import CkptError, ObjectMissing
from ckpt.model.checkpoint import StoredFile
from ckpt.model.reports import Problem, StoredCheckpoint, SweepReport, VerifyReport
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.fetching import fetch
from ckpt.store.objects import Objects
from ckpt.store.sweep import Sweep
from ckpt.store.tags import Tags
from ckpt.store.verify import Verification
from ckpt.store.writer import Writer
from ckpt.units import CheckpointId, Tag


class Store:
    """Checkpoints in a backend whose config was read: see opening.open_store and opening.open_local."""

    def __init__(self, backend: Backend, config: StoreConfig) -> None:
        self._backend = backend
        self._config = config
        self._objects = Objects(backend)
        self._catalogue = Catalogue(backend)
        self._tags = Tags(backend)

    @property
    def place(self) -> str:
        """How the user named it."""
        return self._backend.place

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """A writer of one checkpoint; sweeps are held off while it lives.

        What was not committed is removed at the end, unless other writers are at work.

        Raises:
            StoreUnusable: not writable.
            Locked: a sweep did not end in time.
        """
        writer = Writer(self._backend, self._config.chunk_bytes)
        try:
            with self._backend.writing():
                try:
                    yield writer
                finally:
                    writer.close()
        finally:
            if not writer.committed and writer.began:
                # Not the error that matters now; and what remains, the next sweep takes.
                with suppress(CkptError):
                    self._sweep((), patient=False)

    def resolve(self, ref: str) -> CheckpointId:
        """The one checkpoint that a REF names: an id, JOB@latest, JOB~N, a tag, a job, a beginning of an id.

        Raises:
            ObjectMissing: none; says what would be there.
            AmbiguousRef: it is the beginning of several ids.
        """
        return self._catalogue.resolve(ref)

    def load(self, checkpoint: CheckpointId) -> StoredCheckpoint:
        """Read and verify a manifest.

        Raises:
            ObjectMissing: there is none of this id.
            ObjectCorrupt: damaged.
            FormatUnknown: written by a newer ckpt.
        """
        return self._load(checkpoint, self._tags.of_checkpoints())

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

    def fetch(self, file: StoredFile, path: str) -> None:
        """Write the file's plain bytes to `path`, verified chunk by chunk; nothing remains if that fails.

        Raises:
            ObjectMissing: a chunk is not there.
            ObjectCorrupt: a chunk is damaged.
            NoSpace: the target's file system is full.
        """
        fetch(self._objects, file, path)

    def tag(self, checkpoint: CheckpointId, tag: Tag) -> None:
        """Give the checkpoint a tag; it is taken from the one that had it.

        Raises:
            ObjectMissing: no such checkpoint.
            BadName: no tag can be called so.
        """
        with self._backend.writing():
            if self._backend.stat(layout.manifest(checkpoint)) is None:
                raise ObjectMissing(place=self.place, kind="checkpoint", name=checkpoint)
            self._tags.give(checkpoint, tag)

    def untag(self, tag: Tag) -> None:
        """Remove a tag; the checkpoint stays.

        Raises:
            ObjectMissing: there is no such tag.
        """
        with self._backend.writing():
            self._tags.take(tag)

    def remove(self, checkpoints: tuple[CheckpointId, ...]) -> SweepReport:
        """Remove the checkpoints with their tags, and every object that nothing refers to any more.

        Raises:
            ObjectMissing: one of them is not there; nothing was removed.
            ObjectCorrupt: another one is damaged, so that its needs are unknown; nothing was removed.
            FormatUnknown: another one was written by a newer ckpt; nothing was removed.
            Locked: a writer or another sweep is at work.
        """
        return self._sweep(checkpoints, patient=True)

    def verify(self, checkpoints: tuple[CheckpointId, ...] | None) -> VerifyReport:
        """Read and check the named checkpoints, or everything; collects what is wrong and goes on."""
        return Verification(self._backend).run(checkpoints)

    def _load(self, checkpoint: CheckpointId, tags: dict[CheckpointId, tuple[Tag, ...]]) -> StoredCheckpoint:
        return StoredCheckpoint(
            id=checkpoint,
            checkpoint=self._objects.read_manifest(checkpoint),
            tags=tags.get(checkpoint, ()),
            stored_bytes=self._catalogue.space_of(checkpoint),
        )

    def _sweep(self, removed: tuple[CheckpointId, ...], *, patient: bool) -> SweepReport:
        with self._backend.sweeping(patient=patient):
            return Sweep(self._backend).run(removed)
