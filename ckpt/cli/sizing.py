"""A store that is kept below a size: by `ckpt prune --max-size`, and after each checkpoint of `ckpt run --store-max`.

Rule: the newest checkpoint of each job stays, and what is tagged; else the oldest goes first, whose ever it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckpt.cli import wiring
from ckpt.model.reports import StoredCheckpoint, SweepReport
from ckpt.model.retention import RetentionPolicy, decide
from ckpt.store.fitting import Fit, Space, enough, fit
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, human_bytes

_NEWEST = RetentionPolicy(keep_last=1)


def removable(checkpoints: Iterable[StoredCheckpoint]) -> tuple[CheckpointId, ...]:
    """What may go, in the order in which it does."""
    return tuple(each.checkpoint.id for each in decide(checkpoints, _NEWEST) if not each.is_kept)


def shrink(store: Store, limit: ByteCount) -> Fit:
    """Bring the store below the limit, as far as what may go allows that.

    Raises:
        StoreError: a checkpoint cannot be read, so that it is not known what it needs.
        Locked: others did not let go in time.
    """
    return fit(_space_of(store), limit, removable(store.list()))


def over_limit(used: ByteCount, limit: ByteCount, *, takes: str = "takes") -> str:
    """A sentence, without its period, about a store that is too large when all went that may."""
    return (
        f"the store {takes} {human_bytes(used)}, more than {human_bytes(limit)}: "
        "what is left is the newest of each job, or tagged"
    )


def shrink_preview(
    store: Store, limit: ByteCount, checkpoints: Iterable[StoredCheckpoint], gone: tuple[CheckpointId, ...]
) -> tuple[CheckpointId, ...]:
    """Which of the checkpoints would go beside those that are gone, so that the store fits; nothing is changed."""
    excess = store.used_bytes() - limit
    going = (*gone, *(each for each in removable(checkpoints) if each not in gone))
    if excess <= 0 or len(going) == len(gone) or store.preview(gone).freed_bytes >= excess:
        return ()
    return going[len(gone) : enough(_space_of(store), ByteCount(excess), going)]


def shrink_place(place: str, limit: ByteCount) -> Fit:
    """Bring the store at this place below the limit, and let go of the inodes that were kept for what went."""
    store = wiring.open_store(place)
    done = shrink(store, limit)
    wiring.sweep_pins(store)
    return done


def _space_of(store: Store) -> Space:
    def remove(going: tuple[CheckpointId, ...]) -> SweepReport:
        return store.remove(going, spare_tagged=True)

    return Space(used=store.used_bytes, preview=store.preview, remove=remove)
