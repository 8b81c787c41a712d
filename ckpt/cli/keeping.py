"""Which checkpoints a supervisor keeps: its own alone are ever removed, and none that has a tag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ckpt.cli import group_supervising, wiring
from ckpt.cli.output import Output
from ckpt.model.supervision import Reason, Supervision

if TYPE_CHECKING:
    from ckpt.model.reports import StoredCheckpoint
    from ckpt.store.store import Store
    from ckpt.units import CheckpointId, JobName

_REASONS: Final = frozenset(reason.value for reason in Reason)
_SILENT: Final = Output(json=False, quiet=True)


def prune(job: JobName, supervision: Supervision) -> str:
    """Remove the oldest of the job's own over `keep`, and then what the store's size limit asks for.

    Returns:
        "", or a sentence, without its period: the store is larger than that nevertheless.

    Raises:
        StoreError: the store cannot be read or written.
        Locked: others did not let go in time.
    """
    if supervision.keep and supervision.group:
        group_supervising.prune_instants(supervision)
    elif supervision.keep:
        store = wiring.open_store(supervision.store)
        _remove(store, [each.id for each in own_of(store, job)[: -supervision.keep]])
    if supervision.store_max:
        from ckpt.cli.sizing import over_limit, shrink_place  # noqa: PLC0415 - few want it

        used = shrink_place(supervision.store, supervision.store_max).used_bytes
        if used > supervision.store_max:
            return over_limit(used, supervision.store_max)
    return ""


def remove_own(job: JobName, supervision: Supervision) -> None:
    """Remove all of the job's own, and those of a group when its last job has ended; raises what prune() does."""
    if supervision.group:
        group_supervising.remove_at_end(supervision)
        return
    store = wiring.open_store(supervision.store)
    _remove(store, [each.id for each in own_of(store, job)])


def own_of(store: Store, job: JobName) -> list[StoredCheckpoint]:
    """The checkpoints that supervisors took of the job and nobody has tagged, oldest first."""
    return [
        each
        for each in store.list(on_problem=lambda _problem: None)
        if each.checkpoint.job == job and each.checkpoint.message in _REASONS and not each.tags
    ]


def _remove(store: Store, checkpoints: list[CheckpointId]) -> None:
    if checkpoints:
        store.remove(tuple(checkpoints), spare_tagged=True)
        wiring.release_pins(checkpoints, _SILENT)
