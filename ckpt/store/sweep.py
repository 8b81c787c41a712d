"""Remove checkpoints, and then whatever nothing refers to.

Rules: F65 to F68 of images/FORMAT.md. A manifest's end is durable before the first of its chunks goes: at every
instant, all that a manifest refers to is there.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing
from ckpt.model.reports import SweepReport
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.objects import Objects, chunks_of
from ckpt.store.tags import Tags
from ckpt.units import ByteCount, CheckpointId, Digest


class Sweep:
    """One sweep. Its caller holds the store's lock alone."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._removed = 0
        self._freed = 0

    def run(self, removed: tuple[CheckpointId, ...]) -> SweepReport:
        """Remove these checkpoints with their tags, and all that no other one needs.

        Raises:
            ObjectMissing: one of them is not there; nothing was removed.
            ObjectCorrupt: one of the others cannot be read, so that its needs are unknown; nothing was removed.
            FormatUnknown: the same.
        """
        ids = set(Catalogue(self._backend).ids())
        for checkpoint in removed:
            if checkpoint not in ids:
                raise ObjectMissing(place=self._backend.place, kind="checkpoint", name=checkpoint)
        kept = ids - set(removed)
        needed = self._needed_by(kept)

        self._delete(layout.manifest(checkpoint) for checkpoint in sorted(removed))
        # Before the marks that count, durably: else an older one would count again after a crash.
        self._delete(mark.object for mark in Tags(self._backend).superseded())
        self._backend.flush()
        self._delete(self._unneeded(kept, needed))
        self._clear_leftovers()
        self._backend.flush()
        return SweepReport(removed_objects=self._removed, freed_bytes=ByteCount(self._freed))

    def _needed_by(self, kept: set[CheckpointId]) -> set[Digest]:
        objects = Objects(self._backend)
        needed: set[Digest] = set()
        for checkpoint in sorted(kept):
            try:
                needed.update(chunk.digest for chunk in chunks_of(objects.read_manifest(checkpoint)))
            except (ObjectCorrupt, FormatUnknown) as error:
                error.remedy = (
                    "Nothing was removed, because what this one needs cannot be known. "
                    f"Remove it first or together with others: ckpt rm {checkpoint[:12]}"
                )
                raise
        return needed

    def _unneeded(self, kept: set[CheckpointId], needed: set[Digest]) -> Iterable[str]:
        """Names of objects that nothing refers to. What ckpt did not make is left alone."""
        for name in self._backend.list(layout.RECEIPTS):
            if (digest := layout.digest_in(name)) and CheckpointId(digest) not in kept:
                yield name
        for mark in Tags(self._backend).marks():
            if mark.checkpoint not in kept:
                yield mark.object
        for name in self._backend.list(layout.CHUNKS):
            if (digest := layout.digest_in(name)) and digest not in needed:
                yield name

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._freed += self._backend.delete(name)
            self._removed += 1

    def _clear_leftovers(self) -> None:
        count, space = self._backend.clear_leftovers()
        self._removed += count
        self._freed += space
