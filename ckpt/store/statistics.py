"""What a store holds and takes, in all and job by job.

Rules: F36 of images/FORMAT.md. Placements and the lists of packs are read, no contents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ckpt.errors import ObjectCorrupt, ObjectMissing
from ckpt.model.reports import JobStatistics, StoreStatistics
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.catalogue import Catalogue
from ckpt.store.marking import Needs, mark
from ckpt.store.objects import Objects
from ckpt.store.packs import Packs
from ckpt.store.repacking import needed_bytes
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, ByteCount, CheckpointId, Digest, JobName


def statistics(backend: Backend, vault: Vault, packs: Packs) -> StoreStatistics:
    """What the store holds; whether it is encrypted and signed, the caller fills in.

    Raises:
        ObjectMissing, ObjectCorrupt, FormatUnknown: a checkpoint cannot be read.
    """
    objects = Objects(backend, vault)
    by_job: dict[JobName | None, set[CheckpointId]] = defaultdict(set)
    plain: dict[CheckpointId, int] = {}
    for checkpoint in Catalogue(backend, vault).ids():
        try:
            content = objects.read_manifest(checkpoint)
        except ObjectMissing:
            continue  # removed since the names were listed
        by_job[content.job].add(checkpoint)
        plain[checkpoint] = sum(file.size_bytes for file in content.files)
    needs = {job: _needs(objects, checkpoints) for job, checkpoints in by_job.items()}
    everything = _union(needs.values())
    space = {name: _space(backend, name) for name in backend.list(layout.PACKS)}
    old_space = {name: _space(backend, name) for name in backend.list(layout.CHUNKS)}
    waste = sum(
        size - round(size * _needed_part(packs, everything, digest))
        for name, size in space.items()
        if (digest := layout.digest_in(name))
    )
    waste += sum(
        size
        for name, size in old_space.items()
        if (digest := layout.digest_in(name)) and digest not in everything.old_chunks
    )
    documents = sum(
        _space(backend, name)
        for folder in layout.FOLDERS
        if folder not in {layout.PACKS, layout.CHUNKS}
        for name in backend.list(folder)
    )
    stored = sum(space.values()) + sum(old_space.values()) + documents
    jobs = []
    for job in sorted(by_job, key=lambda name: (name is None, name or "")):
        others = _union(need for other, need in needs.items() if other != job)
        jobs.append(
            JobStatistics(
                job=job,
                checkpoints=len(by_job[job]),
                plain_bytes=ByteCount(sum(plain[checkpoint] for checkpoint in by_job[job])),
                unique_bytes=ByteCount(needs[job].chunk_count() * CHUNK_BYTES),
                exclusive_bytes=ByteCount(_exclusive(needs[job], others).chunk_count() * CHUNK_BYTES),
                stored_bytes=ByteCount(
                    sum(_share(packs, _exclusive(needs[job], others), name) for name in needs[job].packs)
                    + sum(
                        _space(backend, name)
                        for checkpoint in by_job[job]
                        for name in (layout.manifest(checkpoint), layout.receipt(checkpoint))
                    )
                ),
            )
        )
    return StoreStatistics(
        checkpoints=len(plain),
        plain_bytes=ByteCount(sum(plain.values())),
        unique_bytes=ByteCount(everything.chunk_count() * CHUNK_BYTES),
        stored_bytes=ByteCount(stored),
        garbage_bytes=ByteCount(waste),
        packs=len(space),
        encrypted=False,
        signatures_required=False,
        jobs=tuple(jobs),
    )


def _needs(objects: Objects, checkpoints: set[CheckpointId]) -> Needs:
    needs = Needs()
    mark(objects, checkpoints, needs)
    return needs


def _union(several: Iterable[Needs]) -> Needs:
    union = Needs()
    for needs in several:
        union.packs.update(needs.packs)
        union.old_chunks |= needs.old_chunks
        for name, bits in needs.chunks.items():
            union.chunks[name] |= bits
    return union


def _exclusive(needs: Needs, others: Needs) -> Needs:
    found = Needs(packs=needs.packs)
    for name, bits in needs.chunks.items():
        found.chunks[name] = bits & ~others.chunks.get(name, 0)
    return found


def _share(packs: Packs, needs: Needs, name: Digest) -> int:
    """The bytes of a pack that belong to the needed chunks, with what lists them in proportion."""
    return round(needs.packs[name].object_bytes * _needed_part(packs, needs, name))


def _needed_part(packs: Packs, needs: Needs, name: Digest) -> float:
    """The part of a pack, from 0 to 1, that belongs to the needed chunks."""
    bits = needs.chunks.get(name, 0)
    if not bits:
        return 0.0
    try:
        listed = packs.list_of(needs.packs[name])
    except (ObjectCorrupt, ObjectMissing):
        return 1.0  # what cannot be read is not called garbage
    return needed_bytes(listed, bits) / (listed.offsets[-1] - listed.offsets[0])


def _space(backend: Backend, name: str) -> int:
    found = backend.stat(name)
    return found.space_bytes if found else 0
