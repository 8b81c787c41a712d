"""How a job is supervised: how often it is checkpointed, how many checkpoints stay, and what a signal means.

A *supervisor* is the process that does it: the `ckpt run` in the foreground, or one in the background.
Rule: what is said here is written down with the job, so that another supervisor can go on by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ckpt.errors import Usage
from ckpt.model.checkpoint import DumpOptions
from ckpt.units import SECOND, ByteCount, Nanoseconds

RUN_AGAIN_CODE: Final = 75
"""How `ckpt run` exits when the job was ended with a checkpoint to go on from (EX_TEMPFAIL of sysexits.h)."""

MAX_FROZEN_DEFAULT: Final = 0.01
MTBF_DEFAULT: Final = Nanoseconds(24 * 3600 * SECOND)
GRACE_DEFAULT: Final = Nanoseconds(30 * SECOND)
KEEP_DEFAULT: Final = 3


class OnTerm(StrEnum):
    """What SIGTERM means: for the job, or a last checkpoint and the end of the job."""

    FORWARD = "forward"
    CHECKPOINT = "checkpoint"


class AtEnd(StrEnum):
    """What becomes of the supervisor's checkpoints when the job ends by itself.

    SUCCESS removes them if it ends with 0; DELETE with any code; KEEP never. A job that a signal killed keeps them.
    """

    SUCCESS = "success"
    DELETE = "delete"
    KEEP = "keep"


class Standing(StrEnum):
    """Where the supervisor stands: FOREGROUND with whoever waits for the job (a shell, a unit, a CI), who starts it again;
    BACKGROUND by itself, so that ckpt starts it again after a reboot.
    """

    FOREGROUND = "foreground"
    BACKGROUND = "background"


class Reason(StrEnum):
    """Why a supervisor took a checkpoint: kept as its message, by which its own are known from others."""

    PERIODIC = "periodic checkpoint"
    ASKED = "checkpoint asked for by a signal"
    TERM = "checkpoint at SIGTERM"
    PRESSURE = "checkpoint under memory pressure"
    SUSPEND = "checkpoint at shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """How often: `every_ns`, or with `auto` by the measured cost and the mean time between failures.

    Of the time the job stands still at most the share `max_frozen`: where one checkpoint takes longer, they get rarer.

    Raises:
        Usage: a number cannot be.
    """

    every_ns: Nanoseconds = Nanoseconds(0)
    auto: bool = False
    mtbf_ns: Nanoseconds = MTBF_DEFAULT
    max_frozen: float = MAX_FROZEN_DEFAULT

    def __post_init__(self) -> None:
        if not 0 < self.max_frozen <= 1:
            raise Usage(problem=f"A share of {self.max_frozen:.2%} of the time frozen cannot be.")
        if not self.auto and self.every_ns <= 0:
            raise Usage(problem="An interval must be more than zero.")
        if self.mtbf_ns <= 0:
            raise Usage(problem="The mean time between failures must be more than zero.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What the supervisor of one job does.

    `interval` None takes no periodic checkpoints. `keep` is how many of the supervisor's own stay, 0 for all.
    `with_files` are saved with each, as `ckpt dump --with-files` does. `store` is where they go; `store_max` the size
    that it is pruned to after each, 0 for none. `log` is the file of the job's output, "" for its own. `group` are the
    jobs that are frozen together; "" for this one alone.
    """

    store: str
    log: str = ""
    interval: Interval | None = None
    keep: int = KEEP_DEFAULT
    on_term: OnTerm = OnTerm.FORWARD
    grace_ns: Nanoseconds = GRACE_DEFAULT
    at_end: AtEnd = AtEnd.SUCCESS
    with_files: tuple[str, ...] = ()
    store_max: ByteCount = ByteCount(0)
    group: str = ""
    options: DumpOptions = field(default_factory=DumpOptions)
    standing: Standing = Standing.FOREGROUND
