"""The other host of a migration, and what reads the source of one, in the world of world.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fakes import world as fake
from fakes.calls import dump_ports
from fakes.needs import needs
from fakes.world import InjectedError, World

from ckpt.codec.migration_messages import Accepted, Held, Offer, RoundDone, Running
from ckpt.errors import PeerFailed, PeerRefused
from ckpt.flow.migration_call import MigrateCall, MigratePorts
from ckpt.model.checkpoint import Checkpoint, DumpOptions
from ckpt.model.findings import Finding
from ckpt.model.inodes import InodeRecord
from ckpt.model.migration import MigrationId, SourceState
from ckpt.model.migration_moves import check_source_move
from ckpt.model.moves import RoundReport
from ckpt.model.needs import Needs
from ckpt.model.progress import UNWATCHED
from ckpt.model.shipping import Shipment
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import TargetKind, Tree
from ckpt.units import SECOND, ByteCount, JobName, Nanoseconds, Pid


@dataclass
class There:
    """The other host: what it has of the workload. `broken` lets every further word be lost."""

    world: World
    findings: tuple[Finding, ...] = ()
    received: bool = False
    held: bool = False
    running: bool = False
    broken: bool = False
    lost_at: str = ""
    refused_at: str = ""

    def hear(self, word: str) -> None:
        """The source says this."""
        if word == self.lost_at:
            self.broken = True
        if self.broken:
            raise PeerFailed(host="there", reason="the connection broke")
        self.world.step(f"say {word}")
        if word == self.refused_at:
            raise PeerRefused(
                host="there", reason="it cannot", their_slug="restore-failed", their_exit_code=22
            )


@dataclass
class FakeFarSide:
    there: There
    host: str = "there"
    sent_bytes: ByteCount = ByteCount(0)

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        self.there.hear("judge")
        return self.there.findings

    def offer(self, offer: Offer) -> Accepted:
        self.there.hear("offer")
        self.there.received = True
        return Accepted(has_pages=False)

    def end_round(self, number: int) -> RoundDone:
        self.there.hear(f"round {number}")
        self.sent_bytes = ByteCount(self.sent_bytes + 4096)
        return RoundDone(number=number, received_bytes=ByteCount(4096))

    def prepare(self, checkpoint: Checkpoint, absent: Any = (), made: Any = ()) -> Held:
        self.there.hear("prepare")
        self.there.held = True
        return Held(pid=Pid(7), pids=(Pid(7),), cgroup="/ckpt/web", restore_ns=Nanoseconds(5), warnings=())

    def commit(self) -> Running:
        assert not self.there.world.alive, "the source still lives"
        self.there.hear("commit")
        assert self.there.held
        self.there.running = True
        return Running(pid=Pid(7), pids=(Pid(7),), cgroup="/ckpt/web", warnings=())

    def abort(self) -> None:
        assert not self.there.running
        self.there.hear("abort")
        self.there.received = self.there.held = False

    def forget(self) -> None:
        assert self.there.running
        self.there.hear("forget")
        self.there.received = self.there.held = False


@dataclass
class FakeRecords:
    world: World
    id: MigrationId = MigrationId("0123456789abcdef")
    path: str = "/state/migrations/0123456789abcdef/source.json"
    attempt: int = 1
    states: list[SourceState] = field(default_factory=list)
    is_there: bool = False

    @property
    def state(self) -> SourceState:
        return self.states[-1] if self.states else SourceState.PREPARING

    def begin(self, target: Target) -> None:
        self.world.step("begin the record")
        self.is_there = True
        self.states.append(SourceState.PREPARING)

    def note(self, state: SourceState) -> None:
        check_source_move(self.state, state)
        self.world.step(f"record {state}")
        self.states.append(state)

    def remove(self) -> None:
        self.world.step("remove the record")
        self.is_there = False

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class FakeRound:
    scanned_pages: int
    changed_pages: int


@dataclass
class FakeMemory:
    """Sends so many pages in each round, and so many in the end."""

    world: World
    changing: list[int]
    is_open: bool = True

    def round(self, trees: tuple[Tree, ...], far: FakeFarSide) -> FakeRound:
        assert not self.world.frozen
        self.world.step("send memory")
        return FakeRound(1000, self.changing.pop(0) if self.changing else 0)

    def estimate(self, trees: tuple[Tree, ...]) -> int:
        return self.changing[0] if self.changing else 0

    def finish(self, root: Pid, images: str, far: FakeFarSide) -> FakeRound:
        assert self.world.frozen
        self.world.step("send the last memory")
        return FakeRound(1000, 3)

    def close(self) -> None:
        self.is_open = False


@dataclass
class FakeShipping:
    world: World

    def pass_over(self, target: Target, far: FakeFarSide) -> None:
        self.world.step("send files")

    def last_pass(self, target: Target, far: FakeFarSide) -> Shipment:
        assert self.world.frozen
        self.world.step("send the last files")
        return Shipment(files=(), directories=(), absent=(), made=(), warnings=())


@dataclass
class FakeSenders:
    world: World
    changing: list[int] = field(default_factory=lambda: [100_000, 10_000, 0])
    memories: list[FakeMemory] = field(default_factory=list)

    def trees(self, target: Target) -> tuple[Tree, ...]:
        return self.world.trees

    def memory(self, operation: object, far: FakeFarSide, *, resumed: bool) -> FakeMemory:
        self.world.step("open the spool")
        self.memories.append(FakeMemory(self.world, list(self.changing)))
        return self.memories[-1]

    def shipping(self, paths: Sequence[str], *, with_open: bool) -> FakeShipping:
        return FakeShipping(self.world)

    def open_files(self, records: Sequence[InodeRecord], lacking: Collection[str]) -> tuple[str, ...]:
        return ()

    def own_directory(self, target: Target) -> str:
        return ""

    def size_of(self, path: str) -> ByteCount:
        return ByteCount(4096)

    def send_file(self, path: str, root: Pid, name: str, far: FakeFarSide) -> ByteCount:
        self.world.step("send an image")
        return ByteCount(4096)

    def page_service(self, far: FakeFarSide, tell: Callable[[str], None]) -> Any:
        raise NotImplementedError


class FakeNeeds:
    def needs_of(self, target: Target) -> Needs:
        return replace(needs(), memory_bytes=ByteCount(1 << 18))


@dataclass
class Moving:
    """A migration of the world's job to another host."""

    world: World
    there: There
    records: FakeRecords
    senders: FakeSenders
    networks: fake.FakeNetworks
    jobs: FakeMovedJobs
    rounds: list[RoundReport] = field(default_factory=list)

    @property
    def ports(self) -> MigratePorts:
        """The ports, all of them fakes."""
        ports = dump_ports(self.world)
        return MigratePorts(
            clock=ports.clock,
            operations=ports.operations,
            targets=ports.targets,
            inspector=ports.inspector,
            saver=ports.saver,
            jobs=self.jobs,
            snapshot=ports.snapshot,
            needs=FakeNeeds(),
            senders=self.senders,  # type: ignore[arg-type]  # it knows its own far side alone
            networks=self.networks,
            records=self.records,
            far=FakeFarSide(self.there),  # type: ignore[arg-type]  # without what is never asked
            own_host="here",
            tell=lambda _phase: None,
            progress=UNWATCHED,
            tell_round=self.rounds.append,
        )


class FakeMovedJobs(fake.FakeJobs):
    """Jobs that may have migrated."""

    migrated_to: str = ""

    def mark_migrated(self, job: JobName, host: str) -> None:
        self.world.step("mark the job")
        self.migrated_to = host

    def with_root(self, roots: tuple[Pid, ...]) -> JobName | None:
        return None


def moving(**changes: Any) -> Moving:
    """A world and its other host, whose fields may be given."""
    world = fake.World(fail_at=changes.pop("fail_at", None))
    return Moving(
        world=world,
        there=There(world, **changes),
        records=FakeRecords(world),
        senders=FakeSenders(world),
        networks=fake.FakeNetworks(world),
        jobs=FakeMovedJobs(world),
    )


def migrate_call(**changes: Any) -> MigrateCall:
    call = MigrateCall(
        target=TargetRef(kind=TargetKind.JOB, name="web"),
        host="there",
        options=DumpOptions(),
        freeze_timeout=Nanoseconds(10 * SECOND),
    )
    return replace(call, **changes)


__all__ = ["InjectedError", "Moving", "There", "migrate_call", "moving"]
