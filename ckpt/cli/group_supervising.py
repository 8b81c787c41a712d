"""What the supervisors of a group's jobs do together: who takes its checkpoints, and which of them stay.

Rules:
- Each job has its own supervisor. One of them, who holds the lock `leading-group-G`, takes the periodic checkpoints of
  all; where it ends, the next one whose interval is over follows. No job's lock can have such a name.
- Instants are kept and removed as a whole, and none before the last job of the group has ended.
- All of it is done under the lock of the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ckpt.cli import wiring, wiring_groups
from ckpt.cli.output import Output
from ckpt.errors import Locked, OsRefused, WrongState
from ckpt.flow.dump import DumpCall
from ckpt.flow.group_dump import GroupDumpCall, dump_group
from ckpt.host import group_ends
from ckpt.host import supervision as kept
from ckpt.host.locks import exclusive, once_free
from ckpt.model.group import complete_instants
from ckpt.model.supervision import AtEnd, OnTerm, Reason, Supervision
from ckpt.units import CheckpointId, JobName

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckpt.model.reports import DumpReport, StoredCheckpoint

PATIENCE_S: Final = 120.0
"""How long the restore of the group by another member's supervisor is waited for."""

_REASONS: Final = frozenset(reason.value for reason in Reason)
_SILENT: Final = Output(json=False, quiet=True)


class Leadership:
    """Whether this supervisor is the one that takes the periodic checkpoints; always, where there is no group."""

    def __init__(self, group: str) -> None:
        """Of this group; "" for none."""
        self._group = group
        self._held = ExitStack()
        self._leads = not group

    def leads(self) -> bool:
        """Whether it is, or becomes it now because nobody else is."""
        if not self._leads:
            try:
                self._held.enter_context(
                    exclusive(
                        f"{wiring.state()}/locks",
                        [f"leading-group-{self._group}"],
                        subject=f"The supervision of group {self._group}",
                    )
                )
                self._leads = True
            except Locked:
                return False
        return True

    def close(self) -> None:
        """Let another one follow."""
        self._held.close()
        self._leads = not self._group


class Ending:
    """Whether the group of a supervisor that begins was asked to end since; never, where there is no group."""

    def __init__(self, supervision: Supervision) -> None:
        """Begin now; only one that ends with a last checkpoint has a part in it."""
        has_part = supervision.on_term is OnTerm.CHECKPOINT
        self._group = JobName(supervision.group) if has_part else JobName("")
        self._since = wiring.stopwatch()

    def ask(self) -> None:
        """Have those end with us that have not begun yet either, or bring the group back right now."""
        # Where that cannot be written down they go on: nothing is lost by that.
        with suppress(OsRefused):
            if self._group:
                group_ends.ask(wiring.state(), self._group, wiring.stopwatch())

    def is_asked(self) -> bool:
        """Whether another supervisor was."""
        return bool(self._group) and group_ends.is_asked(wiring.state(), self._group, self._since)


@contextmanager
def locked(group: JobName) -> Iterator[None]:
    """Hold the lock of the group, once nobody else does.

    Raises:
        Locked: that takes too long.
    """
    with once_free(lambda: wiring_groups.lock(group), PATIENCE_S):
        yield


def take_together(
    job: JobName,
    supervision: Supervision,
    call_of: Callable[[JobName, Supervision], DumpCall],
    *,
    stop: bool,
) -> DumpReport:
    """Take a checkpoint of all jobs of the group that run; gives what became of `job`.

    Args:
        job: The job whose supervisor asks for it.
        supervision: What that one does.
        call_of: The dump of a job that is supervised so.
        stop: They are ended: this waits for a checkpoint that is under way, and goes before all that are due.

    Raises:
        Locked: another ckpt is at the group.
        WrongState: a job of it goes to another store.
        GroupFailed: one of them could not be dumped, and so none was.
    """
    group = JobName(supervision.group)
    registry = wiring.jobs()
    with _lock_to_take(group, stop=stop):
        running, _ = wiring_groups.running_members(group)
        members = tuple(view.name for view in running)
        calls = []
        for member in members:
            own = kept.load(registry, member) or replace(supervision, with_files=(), log="")
            if own.store != supervision.store:
                raise WrongState(
                    subject=f"Job {member} of group {group}",
                    state=f"kept in {own.store}",
                    operation="a checkpoint of the group",
                    needed=f"kept in {supervision.store}, as {job} is",
                    remedy="Give all jobs of a group the same --store.",
                )
            calls.append(call_of(member, own))
        report = dump_group(
            GroupDumpCall(instant=wiring_groups.new_instant(group, members), calls=tuple(calls)),
            wiring_groups.group_dump_ports(supervision.store),
        )
    return next(each for each in report.members if each.checkpoint.job == job)


@contextmanager
def _lock_to_take(group: JobName, *, stop: bool) -> Iterator[None]:
    with ExitStack() as held:
        if stop:
            # An interval may be so short that there is hardly a moment between two checkpoints.
            held.enter_context(wiring_groups.precedence(group))
            held.enter_context(locked(group))
        else:
            with wiring_groups.precedence(group):
                held.enter_context(wiring_groups.lock(group))
        yield


def prune_instants(supervision: Supervision) -> None:
    """Keep the newest `keep` complete instants that supervisors took of the group; remove what is older.

    Raises:
        StoreError: the store cannot be read or written.
        Locked: others did not let go in time, or are at the group.
    """
    group = JobName(supervision.group)
    with wiring_groups.lock(group):
        own = _own_of(supervision)
        instants = complete_instants(own)
        if len(instants) <= supervision.keep:
            return
        oldest = instants[-supervision.keep]
        stay = {stored.id for each in instants[-supervision.keep :] for stored in each.checkpoints}
        _remove(
            supervision,
            [
                each.id
                for each in own
                if each.id not in stay and each.checkpoint.created_ns < oldest.created_ns
            ],
        )


def remove_at_end(supervision: Supervision) -> None:
    """Remove the group's own checkpoints, where its last job has ended and none of them has failed.

    Raises:
        StoreError: the store cannot be read or written.
        Locked: others did not let go in time, or are at the group.
    """
    group = JobName(supervision.group)
    with locked(group):
        views = wiring.jobs().in_group(group)
        if any(view.is_alive for view in views):
            return
        group_ends.forget(wiring.state(), group)
        codes = [None if view.exit is None else view.exit.shell_code for view in views]
        if supervision.at_end is AtEnd.SUCCESS and any(code != 0 for code in codes):
            return
        _remove(supervision, [each.id for each in _own_of(supervision)])


def _own_of(supervision: Supervision) -> list[StoredCheckpoint]:
    """What supervisors took of the group, without what is tagged, oldest first."""
    found = wiring.open_store(supervision.store).list(on_problem=lambda _problem: None)
    return [
        each
        for each in found
        if each.checkpoint.group is not None
        and each.checkpoint.group.name == supervision.group
        and each.checkpoint.message in _REASONS
        and not each.tags
    ]


def _remove(supervision: Supervision, checkpoints: list[CheckpointId]) -> None:
    if checkpoints:
        wiring.open_store(supervision.store).remove(tuple(checkpoints), spare_tagged=True)
        wiring.release_pins(checkpoints, _SILENT)
