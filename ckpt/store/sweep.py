"""Remove checkpoints, and then whatever nothing refers to.

Rules: F65 to F68 of images/FORMAT.md. A manifest's end is durable before the first of its chunks goes: at every
instant, all that a manifest refers to is there. What a living writer has pinned stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckpt.errors import ObjectMissing
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.model.reports import SweepReport
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.indexing import forget_packs
from ckpt.store.marking import Needs, mark
from ckpt.store.objects import Objects
from ckpt.store.packs import Packs
from ckpt.store.repacking import WASTE_MAX, Repacking, needed_bytes
from ckpt.store.tags import Tags
from ckpt.store.vault import Vault
from ckpt.units import ByteCount, CheckpointId


class Sweep:
    """One sweep."""

    def __init__(self, backend: Backend, vault: Vault, packs: Packs, progress: Progress = UNWATCHED) -> None:
        self._backend = backend
        self._progress = progress
        self._vault = vault
        self._packs = packs
        self._objects = Objects(backend, vault)
        self._catalogue = Catalogue(backend, vault)
        self._tags = Tags(backend, vault)
        self._removed = 0
        self._freed = 0

    def run(
        self,
        removed: tuple[CheckpointId, ...],
        *,
        patient: bool,
        repack: bool,
        spare_tagged: bool = False,
    ) -> SweepReport:
        """Remove these checkpoints with their tags, and all that no other one needs.

        Args:
            removed: The checkpoints.
            patient: Whether to wait for others who create or delete.
            repack: Whether to write packs anew of which little is needed.
            spare_tagged: Whether to leave those of them that have a tag when nobody else is at work any more.

        Raises:
            ObjectMissing: one of them is not there; nothing was removed.
            ObjectCorrupt: one of the others cannot be read, so that its needs are unknown; nothing was removed.
            FormatUnknown: the same.
            Locked: others are at work, and did not finish.
        """
        kept = self._kept(removed)
        repacked = self._repack(kept) if repack else 0
        # What was written anew is needed by the placements that say so; what it was made of, by nobody.
        with self._backend.sweeping(patient=patient):
            if spare_tagged:
                tagged = self._tags.of_checkpoints()
                removed = tuple(checkpoint for checkpoint in removed if checkpoint not in tagged)
            self._delete_all(removed)
        return SweepReport(
            removed_objects=self._removed,
            freed_bytes=ByteCount(self._freed - repacked),
            repacked_bytes=ByteCount(repacked),
        )

    def preview(self, removed: tuple[CheckpointId, ...]) -> SweepReport:
        """What run() would remove and free; nothing is changed.

        Raises:
            ObjectMissing, ObjectCorrupt, FormatUnknown: as run() does.
        """
        needs = Needs()
        kept = self._kept(removed)
        mark(self._objects, kept, needs)
        repacking = Repacking(self._backend, self._vault, self._packs)
        for name in (layout.manifest(checkpoint) for checkpoint in removed):
            self._count(name)
        for name in self._unneeded(kept, needs, frozenset()):
            self._count(name)
        repacked = 0
        for ref in needs.packs.values():
            if needs.needs(ref.name) and repacking.waste(ref, needs) >= WASTE_MAX:
                live = needed_bytes(self._packs.list_of(ref), needs.chunks[ref.name])
                repacked += live
                self._freed += ref.object_bytes - live
        return SweepReport(
            removed_objects=self._removed,
            freed_bytes=ByteCount(self._freed),
            repacked_bytes=ByteCount(repacked),
        )

    def _kept(self, removed: tuple[CheckpointId, ...]) -> set[CheckpointId]:
        ids = set(self._catalogue.ids())
        for checkpoint in removed:
            if checkpoint not in ids:
                raise ObjectMissing(place=self._backend.place, kind="checkpoint", name=checkpoint)
        return ids - set(removed)

    def _repack(self, kept: set[CheckpointId]) -> int:
        needs = Needs()
        mark(self._objects, kept, needs)
        with self._backend.lease() as lease:
            repacking = Repacking(self._backend, self._vault, self._packs, self._progress)
            return repacking.run(needs, kept, lease)

    def _delete_all(self, removed: tuple[CheckpointId, ...]) -> None:
        # With nobody else at work: checkpoints may have come since, or gone and come again.
        kept = self._kept_now(removed)
        needs = Needs()
        mark(self._objects, kept, needs)
        pinned = self._backend.pinned()

        self._delete(layout.manifest(checkpoint) for checkpoint in sorted(removed))
        # Before the marks that count, durably: else an older one would count again after a crash.
        self._delete(found.object for found in self._tags.superseded())
        self._backend.flush()
        self._delete(self._unneeded(kept, needs, pinned))
        left = self._backend.list(layout.PACKS)
        self._freed += forget_packs(
            self._backend, {digest for name in left if (digest := layout.digest_in(name))}
        )
        count, space = self._backend.clear_leftovers()
        self._removed += count
        self._freed += space
        self._backend.flush()

    def _kept_now(self, removed: tuple[CheckpointId, ...]) -> set[CheckpointId]:
        return set(self._catalogue.ids()) - set(removed)

    def _unneeded(self, kept: set[CheckpointId], needs: Needs, pinned: frozenset[str]) -> Iterator[str]:
        """Names of objects that nothing refers to. What ckpt did not make is left alone."""
        for name in self._backend.list(layout.RECEIPTS):
            if (digest := layout.digest_in(name)) and CheckpointId(digest) not in kept:
                yield name
        for found in self._tags.marks():
            if found.checkpoint not in kept:
                yield found.object
        for name in self._backend.list(layout.SIGNATURES):
            if (signature := layout.signature_in(name)) and signature.checkpoint not in kept:
                yield name
        yield from self._unneeded_placements(kept)
        for name in self._backend.list(layout.CHUNKS):
            if (digest := layout.digest_in(name)) and digest not in needs.old_chunks:
                yield name
        for name in self._backend.list(layout.PACKS):
            digest = layout.digest_in(name)
            if digest and not needs.needs(digest) and name not in pinned:
                yield name

    def _unneeded_placements(self, kept: set[CheckpointId]) -> Iterator[str]:
        names = self._objects.placement_names()
        newest = {name.checkpoint: name for name in names}
        for name in names:
            if name.checkpoint not in kept or newest[name.checkpoint] != name:
                yield name.object

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._freed += self._backend.delete(name)
            self._removed += 1

    def _count(self, name: str) -> None:
        found = self._backend.stat(name)
        if found is not None:
            self._freed += found.space_bytes
            self._removed += 1
