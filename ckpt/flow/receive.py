"""Take in a workload that another host sends: the target's side of a migration.

Rules:
  T1  What is said is followed only where the states allow it (model/migration_moves.py), and written down first.
  T2  HELD is written down when all that a restore needs is durable, and CRIU holds the restored tasks.
  T3  RUNNING is written down before the first step, in the instant after which nobody takes the tasks away any more.
  T4  What never ran may be restored again from what was received, as often as it takes.
Source: decisions/0013.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from ckpt.codec.migration_messages import (
    Abort,
    Aborted,
    Accepted,
    AskFile,
    AskState,
    Commit,
    FileBlocks,
    FileKnown,
    Forget,
    Held,
    ImageFile,
    Offer,
    Prepare,
    Running,
    State,
)
from ckpt.errors import WrongState
from ckpt.flow.filling import Filling
from ckpt.flow.ports import CheckpointSource, Operation
from ckpt.flow.restore import Gate, RestoreCall, RestorePorts, restore
from ckpt.flow.restore import Held as HeldRestore
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import FilesPolicy, InodePolicy
from ckpt.model.migration import AloneTarget, TargetState, alone_target
from ckpt.model.migration_moves import Word, heard
from ckpt.model.moves import Policies, job_there
from ckpt.model.origin import Origin
from ckpt.model.pages import PageRun
from ckpt.model.reports import RestoreReport
from ckpt.model.shipping import ShippedDirectory
from ckpt.units import ByteCount, JobName, Pid


class ReceivedSource(CheckpointSource, Protocol):
    """A checkpoint that has come."""

    @property
    def absent(self) -> tuple[str, ...]:
        """Paths at which no file may be found."""

    @property
    def made(self) -> tuple[ShippedDirectory, ...]:
        """Directories that are made where they are missing."""

    @property
    def pages_from(self) -> str:
        """The socket of who brings the pages that the images lack; "" where they lack none."""


class Received(Protocol):
    """What has come of one workload, on disk."""

    @property
    def has_pages(self) -> bool:
        """Whether something came in an earlier attempt."""

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Keep pages of memory."""

    def end_round(self) -> ByteCount:
        """A round is over; gives what came in it."""

    def known(self) -> Iterator[tuple[str, Sequence[PageRun], bytes]]:
        """The pages that are here, with the SHA-256 of each."""

    def image_file(self, file: ImageFile, content: memoryview) -> None:
        """Keep a piece of an image file."""

    def ask_file(self, ask: AskFile) -> tuple[FileKnown, bytes]:
        """What is here at a path, and the digests of its blocks."""

    def file_blocks(self, blocks: FileBlocks, content: memoryview) -> None:
        """Keep blocks of a file."""

    def begin_settling(
        self, checkpoint: Checkpoint, absent: Sequence[str], made: Sequence[ShippedDirectory]
    ) -> Callable[[], None]:
        """Begin to make all of it durable, with the checkpoint; what is given returns when it is, or raises."""

    def refuse_lost_pages(self) -> None:
        """Nothing, if a restore can have all memory.

        Raises:
            WrongState: the memory was to follow, and nobody brings it any more.
        """

    def source(self) -> ReceivedSource:
        """The checkpoint that came, for a restore.

        Raises:
            ObjectCorrupt, ObjectMissing: it is not whole.
        """

    def close(self) -> None:
        """Let go of it; what came stays."""


class TargetSide(Protocol):
    """One migration on its target: its record, what came, and how it is restored."""

    @property
    def id(self) -> str:
        """The migration's id."""

    @property
    def path(self) -> str:
        """The record's file."""

    @property
    def state(self) -> TargetState | None:
        """The last that was written down."""

    @property
    def attempt(self) -> int:
        """The number of the offer that was accepted last; 0 for none."""

    @property
    def job(self) -> str:
        """The job's name; "" for none."""

    @property
    def policies(self) -> Policies:
        """How it is to be restored."""

    def accept(self, offer: Offer) -> None:
        """Write down that it is taken; durable."""

    def note(self, state: TargetState) -> None:
        """Write down how far it is; durable when this returns, and as before if this raises."""

    def remove(self) -> None:
        """Forget it, with all that came."""

    def tidy(self) -> None:
        """Remove what came, and keep the record."""

    def received(self) -> Received:
        """What came of it."""

    def roots(self) -> tuple[tuple[Pid, ...], str]:
        """The processes of the job that came by this migration, and its cgroup; none if it has ended."""


class TargetSides(Protocol):
    """The migrations to this host."""

    def open(self, migration: str) -> AbstractContextManager[TargetSide]:
        """One of them, locked, whether anything of it is here or not.

        Raises:
            SameHost: it begins on this host.
            Locked: another process works on it, and does not let go in time.
        """


PortsFor = Callable[[CheckpointSource], RestorePorts]
"""What a restore from there needs."""

FillingFrom = Callable[[str, Sequence[Pid]], Filling]
"""The checkpoint of this host that a REF names, as a beginning for the trees with these roots; raises what find_filling() does."""


class Reception:
    """Answers one source. Fits ckpt.remote.reception.Reception."""

    def __init__(self, sides: TargetSides, restore_ports: PortsFor, filling: FillingFrom) -> None:
        self._sides = sides
        self._ports_for = restore_ports
        self._filling_from = filling
        self._open: AbstractContextManager[TargetSide] | None = None
        self._side: TargetSide | None = None
        self._received: Received | None = None

    def offer(self, offer: Offer) -> Accepted:
        """Take it, or raise; nothing is restored yet."""
        self.close()
        side = self._at(offer.migration)
        after = heard(side.state, Word.OFFER, attempt=offer.attempt, known_attempt=side.attempt)
        assert after is TargetState.RECEIVING
        # Later attempts find what it gave, and perhaps newer pages in its place.
        is_first = side.state is None
        filling = self._filling_from(offer.base, offer.roots) if offer.base and is_first else None
        side.accept(offer)
        self._received = side.received()
        if filling is None:
            return Accepted(has_pages=self._received.has_pages)
        for space, runs, content in filling.pages():
            self._received.pages(space, runs, memoryview(content))
        self._received.end_round()
        return Accepted(has_pages=True)

    def pages(self, space: str, runs: Sequence[PageRun], content: memoryview) -> None:
        """Keep these pages."""
        self._content.pages(space, runs, content)

    def end_round(self, _number: int) -> ByteCount:
        """All pages of the round came; gives how many plain bytes that were."""
        return self._content.end_round()

    def known(self) -> Iterator[tuple[str, Sequence[PageRun], bytes]]:
        """The SHA-256 of each page that is here."""
        return self._content.known()

    def image_file(self, file: ImageFile, content: memoryview) -> None:
        """Keep this piece of an image file."""
        self._content.image_file(file, content)

    def ask_file(self, ask: AskFile) -> tuple[FileKnown, bytes]:
        """What is at this path: whether it is there, and the digests of its blocks."""
        return self._content.ask_file(ask)

    def file_blocks(self, blocks: FileBlocks, content: memoryview) -> None:
        """Keep these blocks of a shipped file."""
        self._content.file_blocks(blocks, content)

    def prepare(self, prepare: Prepare, held: Callable[[Held], Commit | Abort]) -> Running | Aborted:
        """Restore and hold it, tell that with `held`, and do what that answers."""
        side = self._known
        heard(side.state, Word.PREPARE)
        settled = self._content.begin_settling(prepare.checkpoint, prepare.absent, prepare.made)
        gate = _AskingGate(side, settled, held)
        try:
            return _restore(side, self._content, gate, self._ports_for)
        except _AbortedError:
            side.note(TargetState.ABORTED)
            self._drop()
            return Aborted()
        finally:
            settled()

    def commit(self, commit: Commit) -> Running:
        """Let go of one that was held on an earlier connection, or say that it runs."""
        return commit_alone(self._at(commit.migration), self._ports_for)

    def abort(self, abort: Abort) -> None:
        """Drop all of it; there may be nothing."""
        side = self._at(abort.migration)
        if heard(side.state, Word.ABORT) is not None:
            side.note(TargetState.ABORTED)
        self._drop()

    def forget(self, forget: Forget) -> None:
        """Drop the record and what came; there may be none."""
        heard(self._at(forget.migration).state, Word.FORGET)
        self._drop()

    def state(self, ask: AskState) -> State:
        """How far it is."""
        side = self._at(ask.migration)
        pids, _ = side.roots()
        return State(migration=side.id, state=side.state or "", job=side.job, pid=pids[0] if pids else Pid(0))

    def close(self) -> None:
        """The connection is over: let go of what is here; it stays."""
        if self._received is not None:
            self._received.close()
        self._received = None
        opened, self._open, self._side = self._open, None, None
        if opened is not None:
            opened.__exit__(None, None, None)

    @property
    def _known(self) -> TargetSide:
        if self._side is None:
            raise WrongState(
                subject="The migration",
                state="not offered",
                operation="what was asked",
                needed="to be offered before",
                remedy="Install the same version of ckpt on both hosts.",
            )
        return self._side

    @property
    def _content(self) -> Received:
        side = self._known
        if self._received is None or side.state is not TargetState.RECEIVING:
            raise WrongState(
                subject="The migration",
                state=side.state or "not offered",
                operation="what was sent",
                needed="to be offered before",
                remedy="Install the same version of ckpt on both hosts.",
            )
        return self._received

    def _at(self, migration: str) -> TargetSide:
        if self._side is None or self._side.id != migration:
            self.close()
            opened = self._sides.open(migration)
            self._side = opened.__enter__()
            self._open = opened
        return self._side

    def _drop(self) -> None:
        side = self._known
        if self._received is not None:
            self._received.close()
            self._received = None
        side.remove()
        self.close()


def commit_alone(side: TargetSide, ports_for: PortsFor) -> Running:
    """Let go of what was held by a process that is gone: it is restored again, and goes on.

    Raises:
        WrongState: it is not for that.
        CkptError: it cannot be restored; what came stays, and it can be tried again.
    """
    after = heard(side.state, Word.COMMIT)
    if after is TargetState.RUNNING:
        pids, cgroup = side.roots()
        return Running(pid=pids[0] if pids else Pid(0), pids=pids, cgroup=cgroup, warnings=())
    received = side.received()
    received.refuse_lost_pages()
    side.note(TargetState.COMMITTED)
    try:
        return _restore(side, received, _OpenGate(side), ports_for)
    finally:
        received.close()


def settle_alone(side: TargetSide, ports_for: PortsFor) -> str:
    """Do what the target may do without asking the source; gives a sentence for people, "" if nothing was to do.

    Raises:
        WrongState: it is in doubt: only the source knows.
        CkptError: it cannot be restored; what came stays, and it can be tried again.
    """
    state = side.state
    if state is None:
        side.remove()
        return ""
    what = alone_target(state)
    match what:
        case AloneTarget.DROP:
            if state is not TargetState.ABORTED:
                side.note(TargetState.ABORTED)
            side.remove()
        case AloneTarget.RESTORE:
            commit_alone(side, ports_for)
        case AloneTarget.TIDY:
            side.tidy()
        case AloneTarget.KEEP:
            raise WrongState(
                subject=f"Migration {side.id}",
                state="held here, its source silent",
                operation="finishing it",
                needed="told by its source",
                remedy=what.sentence,
            )
    return what.sentence


class _AbortedError(Exception):
    """The source has aborted while it was held."""


class _OpenGate:
    """Lets it go: the source has committed."""

    def __init__(self, side: TargetSide) -> None:
        self._side = side

    def begin(self, operation: Operation) -> None:
        operation.decided_by(self._side.path)

    def held(self, _held: HeldRestore) -> Origin:
        return Origin(migration=self._side.id)

    def let_go(self) -> None:
        self._side.note(TargetState.RUNNING)


class _AskingGate(_OpenGate):
    """Asks the source, once all is durable."""

    def __init__(
        self, side: TargetSide, settled: Callable[[], None], ask: Callable[[Held], Commit | Abort]
    ) -> None:
        super().__init__(side)
        self._settled = settled
        self._ask = ask

    def held(self, held: HeldRestore) -> Origin:
        self._settled()
        self._side.note(TargetState.HELD)
        said = self._ask(
            Held(
                pid=held.pids[0],
                pids=held.pids,
                cgroup=held.cgroup,
                restore_ns=held.restore_ns,
                warnings=held.warnings,
            )
        )
        if said.migration != self._side.id:
            raise WrongState(
                subject=f"Migration {self._side.id}",
                state="held",
                operation=f"what was said of migration {said.migration}",
                needed="to be spoken of",
                remedy="Run 'ckpt recover' on the source: it asks both sides and goes on from there.",
            )
        if isinstance(said, Abort):
            raise _AbortedError
        return super().held(held)


def _restore(side: TargetSide, received: Received, gate: Gate, ports_for: PortsFor) -> Running:
    source = received.source()
    policies = side.policies
    checkpoint = source.load(source.resolve(side.id)).checkpoint
    call = RestoreCall(
        ref=side.id,
        job=job_there(JobName(side.job) if side.job else None, side.id),
        time=TimePolicy(policies.time),
        inodes=InodePolicy(policies.inodes),
        new_pids=policies.pids == "new",
        cgroup=policies.cgroup,
        files=FilesPolicy.SAVED if checkpoint.saved_files or checkpoint.saved_directories else None,
        absent=source.absent,
        made=source.made,
        pages_from=source.pages_from,
    )
    report: RestoreReport = restore(call, ports_for(source), gate)
    return Running(pid=report.pid, pids=report.pids, cgroup=report.cgroup, warnings=report.warnings)
