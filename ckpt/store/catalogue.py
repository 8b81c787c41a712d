"""Which checkpoints there are, and which one a REF names.

Rules: F59 of images/FORMAT.md. A REF is, in this order: a whole id; JOB@latest or JOB~N; a tag; a JOB (its
newest); the beginning of an id, of at least four digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckpt.codec.names import refuse_digest
from ckpt.codec.objects import RECEIPT
from ckpt.codec.records import Receipt
from ckpt.errors import AmbiguousRef, FormatUnknown, ObjectCorrupt, ObjectMissing
from ckpt.store import layout
from ckpt.store.backend import Backend
from ckpt.store.objects import Objects
from ckpt.store.tags import Tags
from ckpt.store.vault import Vault
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds, Tag

_JOB_REF: Final = re.compile(r"(?P<job>[^@~]+)(?:@latest|~(?P<back>[0-9]{1,9}))", re.ASCII)
_PREFIX: Final = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
_CANDIDATES_SHOWN: Final = 5
_DIGITS_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Filed:
    """Where a checkpoint stands among the others: older ones come first."""

    created_ns: Nanoseconds
    id: CheckpointId
    job: JobName | None


class Catalogue:
    """Finds checkpoints, reading as little as possible."""

    def __init__(self, backend: Backend, vault: Vault) -> None:
        self._backend = backend
        self._objects = Objects(backend, vault)
        self._tags = Tags(backend, vault)

    def ids(self) -> list[CheckpointId]:
        """The ids of all checkpoints, readable or not, sorted."""
        names = self._backend.list(layout.MANIFESTS)
        return [CheckpointId(digest) for name in names if (digest := layout.digest_in(name))]

    def receipt(self, checkpoint: CheckpointId) -> Receipt | None:
        """The checkpoint's receipt; None if it is lost or damaged, which `verify` tells of."""
        try:
            found = self._objects.read_document(layout.receipt(checkpoint), RECEIPT, checkpoint)
        except (ObjectCorrupt, FormatUnknown):
            return None
        return found if found and found.checkpoint == checkpoint else None

    def space_of(self, checkpoint: CheckpointId) -> ByteCount:
        """What the store grew by for this checkpoint; without its receipt, the manifest's space alone."""
        receipt = self.receipt(checkpoint)
        space = int(receipt.packs_stored_bytes) if receipt else 0
        for name in (layout.manifest(checkpoint), layout.receipt(checkpoint)):
            found = self._backend.stat(name)
            space += found.space_bytes if found else 0
        return ByteCount(space)

    def resolve(self, ref: str) -> CheckpointId:
        """The one checkpoint that the REF names.

        Raises:
            ObjectMissing: none; says what would be there.
            AmbiguousRef: it is the beginning of several ids.
        """
        ids = self.ids()
        if not refuse_digest(ref):
            return self._present(ref, CheckpointId(ref), ids)
        if match := _JOB_REF.fullmatch(ref):
            return self._of_job(ref, JobName(match["job"]), int(match["back"] or 0), ids)
        if tagged := self._tags.current().get(Tag(ref)):
            return self._present(ref, tagged, ids)
        if any(filed.job == ref for filed in self._filed(ids)):
            return self._of_job(ref, JobName(ref), 0, ids)
        return self._beginning_with(ref, ids)

    def _filed(self, ids: list[CheckpointId]) -> list[Filed]:
        """All checkpoints, oldest first: by their receipts, and where there is none by the manifest."""
        return sorted(self._file(checkpoint) for checkpoint in ids)

    def _file(self, checkpoint: CheckpointId) -> Filed:
        source = self.receipt(checkpoint) or self._objects.read_manifest(checkpoint)
        return Filed(created_ns=source.created_ns, id=checkpoint, job=source.job)

    def _present(self, ref: str, checkpoint: CheckpointId, ids: list[CheckpointId]) -> CheckpointId:
        if checkpoint not in ids:
            raise self._missing(ref, "'ckpt list' shows what it has.")
        return checkpoint

    def _of_job(self, ref: str, job: JobName, back: int, ids: list[CheckpointId]) -> CheckpointId:
        of_job = [filed.id for filed in self._filed(ids) if filed.job == job]
        if back < len(of_job):
            return of_job[-1 - back]
        if of_job:
            remedy = f"The oldest of its {len(of_job)} is {job}~{len(of_job) - 1}."
        else:
            remedy = f"No checkpoint is filed under the job {job}; 'ckpt list' shows what there is."
        raise self._missing(ref, remedy)

    def _beginning_with(self, ref: str, ids: list[CheckpointId]) -> CheckpointId:
        prefix = ref.lower()
        if not _PREFIX.fullmatch(prefix):
            remedy = "Give at least 4 digits of an id, a tag, or a job's name: 'ckpt list' shows them."
            raise self._missing(ref, remedy)
        found = [checkpoint for checkpoint in ids if checkpoint.startswith(prefix)]
        if len(found) > 1:
            shown = tuple(checkpoint[:_DIGITS_SHOWN] for checkpoint in found[:_CANDIDATES_SHOWN])
            raise AmbiguousRef(ref=ref, count=len(found), candidates=shown)
        if not found:
            raise self._missing(ref, "No id begins so, and no tag or job is called so: see 'ckpt list'.")
        return found[0]

    def _missing(self, ref: str, remedy: str) -> ObjectMissing:
        return ObjectMissing(place=self._backend.place, kind="checkpoint", name=ref, remedy=remedy)
