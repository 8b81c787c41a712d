"""What a migration is asked to do, and what it needs of the world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckpt.flow.migration_ports import (
    FarSide,
    Senders,
    SourceRecords,
)
from ckpt.flow.ports import (
    Clock,
    FileSaver,
    Inspector,
    Jobs,
    Networks,
    Operations,
    TargetNeedsReader,
    Targets,
)
from ckpt.flow.snapshot import SnapshotPorts
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.moves import RoundReport
from ckpt.model.progress import Progress
from ckpt.model.target import TargetRef
from ckpt.units import Nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateCall:
    """What the user asked for. `pre_copy` None lets the rounds decide; `allow` are rules whose findings do not stop it;
    `began` is when, on the stopwatch, if not now.
    """

    target: TargetRef
    host: str
    options: DumpOptions
    freeze_timeout: Nanoseconds
    pre_copy: int | None = None
    ship: tuple[str, ...] = ()
    ship_open: bool = False
    allow: tuple[str, ...] = ()
    time: str = "suspend"
    inodes: str = "keep"
    pids: str = "same"
    cgroup: str = ""
    resumed: bool = False
    lazy: bool = False
    began: Nanoseconds | None = None
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratePorts:
    """The outside things that a migration needs; `tell` is told of each round and step."""

    clock: Clock
    operations: Operations
    targets: Targets
    inspector: Inspector
    saver: FileSaver
    jobs: Jobs
    snapshot: SnapshotPorts
    needs: TargetNeedsReader
    senders: Senders
    networks: Networks
    records: SourceRecords
    far: FarSide
    own_host: str
    tell: Callable[[str], None]
    progress: Progress
    tell_round: Callable[[RoundReport], None]
