"""One attempt to move a workload: rounds, the freeze, the handing over, and what follows it.

Rules: M2 to M4 of migrate.py. The last undo that is registered is the first that is done: nobody thaws before what was
committed is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from ckpt.codec.migration_messages import Offer, Running
from ckpt.errors import (
    CannotMigrate,
    CkptError,
    CommitUndelivered,
    NoSpace,
    OsRefused,
    PagesLost,
    PeerFailed,
    PeerRefused,
    SameHost,
)
from ckpt.flow.migration_call import MigrateCall, MigratePorts
from ckpt.flow.migration_check import Looked
from ckpt.flow.migration_ports import (
    FarSide,
    Memory,
    PageService,
    Shipping,
    SourceRecords,
)
from ckpt.flow.ports import (
    Jobs,
    Operation,
)
from ckpt.flow.snapshot import Keeping, Snapshot, Wanted
from ckpt.flow.undo import Undo
from ckpt.model.checkpoint import AddressRun, Checkpoint, StoredFile
from ckpt.model.migration import SourceState
from ckpt.model.moves import RoundReport, extra_name, file_root
from ckpt.model.target import Target
from ckpt.units import PAGE_BYTES, SECOND, ByteCount, Nanoseconds, Pid

ROUNDS_MAX: Final = 8
"""Of the rounds while it runs, where the user names no number."""

_FEW_BYTES: Final = 1 << 20
_SHRINKS: Final = 0.8
"""A round that would send more than this part of the one before has come to what the workload writes meanwhile."""

_PACE: Final = 1 << 30
"""About how many bytes CRIU writes, or restores, in a second."""

_SHARE: Final = 0.1
"""What may be added to the time of a dump and a restore, for the sake of being done: more rounds send more bytes."""

_PAGES: Final = "pages-"

_ONE_TREE: Final = (
    "with --tcp-established: their connections cannot all stay locked while the trees end one after another"
)


@dataclass(slots=True)
class Migration:
    """One attempt; a workload that run() has begun with runs here or there when that returns or raises."""

    call: MigrateCall
    ports: MigratePorts
    target: Target
    looked: Looked

    rounds: list[RoundReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    running: Running | None = None
    downtime_ns: Nanoseconds = Nanoseconds(0)
    dump_ns: Nanoseconds = Nanoseconds(0)
    restore_ns: Nanoseconds = Nanoseconds(0)
    followed_bytes: ByteCount = ByteCount(0)
    _pages: PageService | None = None
    _trouble: CkptError | None = None
    _is_lost: bool = False
    _is_killed: bool = False
    _sent_before: int = 0

    @property
    def is_committed(self) -> bool:
        """Whether it may never run here again."""
        return self.ports.records.state.has_committed

    def run(self) -> None:
        """Do it; the workload runs here or there when this returns or raises."""
        with Undo("the migration") as undo:
            self.ports.records.begin(self.target)
            undo.on_failure("give it up", self._give_up)
            try:
                self._run()
            except PeerRefused:
                raise
            except PeerFailed:
                self._is_lost = True
                raise
        if self._trouble is not None:
            raise self._trouble

    def _run(self) -> None:
        call, ports, target = self.call, self.ports, self.target
        with Undo("the migration") as undo:
            has_pages = self._offer()
            operation = ports.operations.begin(f"migration of {target.ref} to {call.host}")
            undo.always("end the operation", lambda: self._unless_alive(operation.end))
            operation.decided_by(ports.records.path)
            selection = ports.saver.select((), operation)
            freezer = ports.targets.freezer(target, operation)
            undo.always("put the processes back", freezer.release)
            undo.always("thaw the workload", lambda: self._unless_alive(freezer.thaw))
            undo.on_failure("join its network again", lambda: self._attach(operation))
            operation.guard()
            freezer.gather()
            operation.note_phase("offered")
            memory = ports.senders.memory(operation, ports.far, resumed=has_pages)
            undo.always("drop what was kept of the memory", memory.close)
            shipping = ports.senders.shipping(self.looked.ship, with_open=call.ship_open)
            if call.lazy:
                self._pages = ports.senders.page_service(ports.far, ports.tell)
                undo.always("end the way of its pages", self._pages.close)
            self._pre_copy(operation, memory, shipping)
            snapshot = Snapshot(
                Wanted(
                    options=call.options,
                    freeze_timeout=call.freeze_timeout,
                    force=bool(call.allow),
                    lazy=call.lazy,
                ),
                ports.snapshot,
                target,
                operation,
                freezer,
                selection,
            )
            # The last registered is the first that is done: nobody thaws before what was committed is killed.
            undo.always("finish what was committed", lambda: self._finish(operation, snapshot))
            # Asked before the freeze, it takes no time of it.
            ports.inspector.host_facts()
            ports.records.note(SourceState.FROZEN)
            ports.tell("freezing")
            try:
                snapshot.take(
                    held=lambda: self._hand_over(operation, snapshot, memory, shipping),
                    one_tree=_ONE_TREE if call.options.tcp_established else "",
                )
            except CkptError:
                # From the commit on CRIU's opinion does not count: what it has not killed is killed below.
                if not self.is_committed:
                    raise
            self.warnings += snapshot.warnings

    def _unless_alive(self, act: Callable[[], None]) -> None:
        """Do it, unless what was committed could not be killed: then the guardian, who goes on trying, must find all."""
        if self._is_killed or not self.is_committed:
            act()

    def _attach(self, operation: Operation) -> None:
        if not self.is_committed:
            self.ports.networks.attach(self.target, operation)

    def _offer(self) -> bool:
        """Have the target take it; gives whether it has pages of it already."""
        call = self.call
        self.ports.tell(f"beginning with {call.base} there" if call.base else "offering it")
        trees = self.ports.senders.trees(self.target) if call.base else ()
        offer = Offer(
            migration=self.ports.records.id,
            attempt=self.ports.records.attempt,
            job=self.target.job or "",
            source_host=self.ports.own_host,
            needs=self.looked.needs,
            time=call.time,
            inodes=call.inodes,
            pids=call.pids,
            cgroup=call.cgroup,
            resume=call.resumed,
            base=call.base,
            roots=tuple(tree.root for tree in trees),
        )
        try:
            accepted = self.ports.far.offer(offer)
        except PeerRefused as error:
            if error.their_slug != SameHost.slug:
                raise
            raise CannotMigrate(
                target=str(self.target.ref),
                host=call.host,
                reasons=("it is there already: that is this very host",),
                remedy=SameHost.hint,
            ) from error
        self.ports.records.note(SourceState.TRANSFERRING)
        return accepted.has_pages

    def _pre_copy(self, operation: Operation, memory: Memory, shipping: Shipping) -> None:
        """Send memory and files while the workload runs, as long as each round sends clearly less than the one before."""
        wanted = 0 if self.call.lazy else self.call.pre_copy
        for number in range(ROUNDS_MAX if wanted is None else wanted):
            self.ports.tell(f"round {number}")
            if not self.rounds:
                self.ports.progress.expect(self.looked.needs.memory_bytes)
            began = self.ports.clock.stopwatch()
            shipping.pass_over(self.target, self.ports.far)
            sent = memory.round(self.ports.senders.trees(self.target), self.ports.far)
            self._end_round(began, sent.changed_pages)
            operation.note_phase(f"round-{number}")
            if self._is_enough(memory.estimate(self.ports.senders.trees(self.target))):
                return

    def _is_enough(self, expected_pages: int) -> bool:
        """Whether another round, which would send so many pages, would not pay."""
        last = self.rounds[-1]
        if expected_pages * PAGE_BYTES <= _FEW_BYTES or expected_pages > _SHRINKS * last.changed_pages:
            return True
        largest = max(self.rounds, key=lambda each: each.changed_pages)
        takes_ns = expected_pages * largest.ns / max(1, largest.changed_pages)
        frozen_anyway_ns = 2 * self.looked.needs.memory_bytes * SECOND / _PACE
        return takes_ns < _SHARE * frozen_anyway_ns

    def _end_round(self, began: Nanoseconds, changed_pages: int) -> None:
        self.ports.far.end_round(len(self.rounds))
        sent = self.ports.far.sent_bytes
        done = RoundReport(
            sent_bytes=ByteCount(sent - self._sent_before),
            ns=Nanoseconds(self.ports.clock.stopwatch() - began),
            changed_pages=changed_pages,
        )
        self._sent_before = sent
        self.rounds.append(done)
        self.ports.tell_round(done)

    def _hand_over(
        self, operation: Operation, snapshot: Snapshot, memory: Memory, shipping: Shipping
    ) -> None:
        """In CRIU's hands, frozen: send the rest, have the target hold it, and commit."""
        far, clock = self.ports.far, self.ports.clock
        self.dump_ns = Nanoseconds(clock.stopwatch() - snapshot.froze_at)
        self.ports.tell("sending the last changes")
        snapshot.set_instant()
        changed = sum(
            memory.finish(root, directory, far).changed_pages
            for root, directory in snapshot.image_directories
        )
        operation.note_phase("compared")
        shipment = shipping.last_pass(self.target, far)
        self.warnings += shipment.warnings
        checkpoint = replace(
            self._describe(snapshot),
            saved_files=shipment.files,
            saved_directories=shipment.directories,
        )
        self._end_round(snapshot.froze_at, changed)
        operation.note_phase("sent")
        if self._pages is not None:
            images = [directory for _, directory in snapshot.image_directories]
            self._pages.serve(snapshot.view.trees, images)
        self.ports.tell("restoring there")
        held = far.prepare(checkpoint, shipment.absent, shipment.made)
        self.restore_ns = held.restore_ns
        operation.note_phase("held")
        self.ports.networks.detach(self.target, operation)
        self.ports.records.note(SourceState.COMMITTED)
        operation.note_phase("committed")
        if self._pages is not None:
            self._post_copy(operation, snapshot, self._pages)

    def _post_copy(self, operation: Operation, snapshot: Snapshot, pages: PageService) -> None:
        """Have it run there at once; it stays frozen here until all its memory is there."""
        try:
            pages.follow(lambda: self._let_go(operation, snapshot))
            self._note_phase("followed", operation)
        except BaseException as error:
            # CRIU would let it go on here.
            snapshot.freezer.kill()
            if isinstance(error, PeerFailed):
                self._trouble = PagesLost(host=self.call.host, reason=error.reason)
            raise
        finally:
            self.followed_bytes = pages.sent_bytes

    def _let_go(self, operation: Operation, snapshot: Snapshot) -> None:
        """Have the target let go of its copy."""
        self.running = self.ports.far.commit()
        self.downtime_ns = Nanoseconds(self.ports.clock.stopwatch() - snapshot.froze_at)
        self._note_phase("running", operation)

    def _note_phase(self, phase: str, operation: Operation) -> None:
        """Note it, if there is room for that: the record has said all that counts."""
        with suppress(NoSpace, OsRefused):
            operation.note_phase(phase)

    def _describe(self, snapshot: Snapshot) -> Checkpoint:
        numbers = iter(range(1 << 20))

        def add_image(root: Pid, path: str, name: str, _addresses: tuple[AddressRun, ...]) -> StoredFile:
            is_sent = name.startswith(_PAGES)
            size = self.ports.senders.size_of(path) if is_sent else self._send(path, root, name)
            return StoredFile(name=name, size_bytes=size, mode=0o600, root=file_root(root, name))

        def add_file(path: str, name: str) -> StoredFile:
            sent_as = extra_name(next(numbers))
            size = self._send(path, Pid(0), sent_as)
            return StoredFile(name=name, size_bytes=size, mode=0o600, root=file_root(Pid(0), sent_as))

        return snapshot.describe(
            Keeping(add_image=add_image, add_file=add_file), job=self.target.job, message="", parent=None
        )

    def _send(self, path: str, root: Pid, name: str) -> ByteCount:
        return self.ports.senders.send_file(path, root, name, self.ports.far)

    def _finish(self, operation: Operation, snapshot: Snapshot) -> None:
        """Kill what was committed, and have the target let go of its copy; nothing if it was not committed."""
        if not self.is_committed:
            return
        ports = self.ports
        try:
            snapshot.freezer.kill()
            self._is_killed = True
            self._note_phase("killed", operation)
        except CkptError as error:
            # It stands still and never runs again: the target's copy need not wait for its end.
            self.warnings.append(
                f"what is left of it here could not be ended yet ({error.message}): it stands still until 'ckpt recover'"
            )
        try:
            if self.running is None:
                if isinstance(self._trouble, PagesLost):
                    return
                self._let_go(operation, snapshot)
            # As long as something is left to kill, the record must say so.
            if self._is_killed:
                ports.networks.remove(self.target)
                finish(self.target, self.call.host, ports.records, ports.jobs, ports.far)
        except (NoSpace, OsRefused, OSError) as error:
            if self.running is None:
                raise
            self.warnings.append(
                f"it runs on {self.call.host}, which could not be written down here ({error}): 'ckpt recover' will"
            )
        except PeerFailed as error:
            if self.running is None:
                self._trouble = self._trouble or CommitUndelivered(
                    host=self.call.host, reason=error.reason, migration=ports.records.id
                )
            else:
                self.warnings.append(
                    f"{self.call.host} could not be told that all is done ({error.reason}): 'ckpt recover' will"
                )

    def _give_up(self) -> None:
        """The workload runs on here: tell the target, if that can be, to drop what it has."""
        records = self.ports.records
        if self.is_committed:
            return
        if self._is_lost:
            # It may come again, and then the transfer can go on.
            if records.state is SourceState.FROZEN:
                records.note(SourceState.TRANSFERRING)
            return
        records.note(SourceState.ABORTED)
        # With the record kept, `ckpt recover` tells it later.
        with suppress(PeerFailed):
            try:
                self.ports.far.abort()
            except PeerRefused as error:
                # There is no other side that could have anything of it.
                if error.their_slug != SameHost.slug:
                    raise
            records.remove()


def finish(target: Target | None, host: str, records: SourceRecords, jobs: Jobs, far: FarSide) -> None:
    """It runs there: write that down, and have both records dropped.

    Raises:
        PeerFailed: the target could not be told to forget.
    """
    if target is not None and target.job is not None:
        jobs.mark_migrated(target.job, host)
    records.note(SourceState.FINISHED)
    far.forget()
    records.remove()
