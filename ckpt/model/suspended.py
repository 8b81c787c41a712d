"""A job that was ended with a checkpoint at a shutdown, and is to run again after it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.units import CheckpointId, JobName, Nanoseconds


class Owner(StrEnum):
    """Who brings a job back: CKPT, or the CALLER who has started it, waits for it, and perhaps gives it its input."""

    CKPT = "ckpt"
    CALLER = "caller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """What to bring back, and how.

    `checkpoint` None: it was just being taken when this was written. `began_ns` is when this life of the job began, by
    which jobs are brought back in the order in which they were started, and `since_ns` when it was to end; both by
    CLOCK_REALTIME.
    """

    job: JobName
    store: str
    checkpoint: CheckpointId | None
    began_ns: Nanoseconds
    since_ns: Nanoseconds
    time: TimePolicy = TimePolicy.SUSPEND
    inodes: InodePolicy = InodePolicy.KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The last life of a job: when it began, whether it goes on, from which checkpoint it came, and which has ended it.

    Without `restored_from` it was started; without `stopped_by` no checkpoint has ended it.
    """

    began_ns: Nanoseconds
    runs: bool
    restored_from: CheckpointId | None = None
    stopped_by: CheckpointId | None = None
