"""Undo what a controller left that died: for the guardian, and for `ckpt recover` after both died.

Rules:
- First what makes the workload run, then what tidies up: the order is journal.UNDO_ORDER.
- An operation whose controller lives is never touched.
- What a migration has decided is not undone: its source's workload is killed once that has committed, and its
  target's goes on once that has written RUNNING (model/migration.py).
- After a reboot nothing is frozen and nothing runs any more: only files and directories are left to mend.
- Everything is repeatable; a step that fails is reported, the others are undone, and the entry stays with
  what is left, for the next try.
- Only the standard library and small modules are imported: the guardian holds this module in its memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ckpt.errors import CkptError
from ckpt.host import cgroups, journal, locks
from ckpt.host.criu import netlock
from ckpt.host.criu_killing import kill_criu
from ckpt.host.freezer import restore_freeze
from ckpt.host.freezer_control import control_of
from ckpt.host.gathering import CGROUP_PREFIX, is_transient, put_back
from ckpt.host.guard import controls
from ckpt.host.migration_records import SOURCE_NAME, TARGET_NAME, state_in
from ckpt.host.process_table import ProcessRef, boot_id, is_alive
from ckpt.model.migration import SourceState, TargetState
from ckpt.units import Pid

CRIU_GRACE_S: Final = 0.3
"""CRIU notices at its next notification that its socket is closed, and rolls back by itself."""

_CRIU_END_S: Final = 5.0
_AHEAD_S: Final = 0.03
_AHEAD_TASK_S: Final = 0.001
_OPERATION_NAME = re.compile(r"[0-9a-f]{12}-(\d+)-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryAction:
    """One thing that was mended, or could not be: then `problem` says why."""

    subject: str
    done: str
    problem: str = ""


def recover_all(state: str) -> tuple[RecoveryAction, ...]:
    """Undo every operation whose controller is dead, and empty the cgroups that no operation knows.

    Collects problems and goes on; nothing to do gives nothing.
    """
    actions = list(recover_dead(state))
    known = {name for name in _names(state + "/operations") if not _is_over(f"{state}/operations/{name}")}
    for cgroup in _transient_cgroups():
        name = os.path.basename(cgroup).removeprefix(CGROUP_PREFIX)
        # Its name tells who made it: perhaps one that lives, with another state directory.
        if name not in known and not _maker_lives(name):
            actions += _undo_step(journal.Gathered(cgroup=cgroup, home=os.path.dirname(cgroup), origins=()))
    locks.sweep(state + "/locks")  # they lock nobody: not worth a word
    return tuple(actions)


def recover_dead(state: str) -> tuple[RecoveryAction, ...]:
    """Undo every operation whose controller is dead; costs one directory listing where there is none."""
    operations = state + "/operations"
    actions: list[RecoveryAction] = []
    for name in _names(operations):
        if _is_over(f"{operations}/{name}"):
            actions += undo_operation(f"{operations}/{name}")
    return tuple(actions)


def undo_operation(directory: str) -> tuple[RecoveryAction, ...]:
    """Undo the operation in this directory, whose controller is dead, and remove it; safe to repeat.

    If a guardian is at it already, this waits until that one is done.
    """
    with _one_at_a_time(directory) as there:
        if not there:
            return ()
        try:
            entry = journal.read_entry(directory)
        except journal.EntryDamaged:
            # Entries appear whole: this one was damaged by a power cut, after which nothing is frozen, or
            # written by a newer ckpt, whose own recovery must read it.
            if not _is_from_an_earlier_boot(directory):
                return (_failed(directory, "read the journal", "the entry is damaged, or of a newer ckpt"),)
            entry = None
        actions: list[RecoveryAction] = []
        if entry is not None:
            actions, left = _undo_steps(entry)
            if left:
                with contextlib.suppress(OSError):
                    journal.write_entry(directory, dataclasses.replace(entry, steps=tuple(left)), sync=False)
                return tuple(actions)
        journal.remove_entry(directory)
        shutil.rmtree(directory, ignore_errors=True)
        what = entry.what if entry is not None else "an operation"
        actions.append(RecoveryAction(subject=directory, done=f"removed what was left of {what}"))
        return tuple(actions)


def _undo_steps(entry: journal.Entry) -> tuple[list[RecoveryAction], list[journal.Step]]:
    """Undo the steps; gives what was done, and the steps that could not be undone."""
    rebooted = entry.boot_id != boot_id()
    try:
        entry, actions = _as_decided(entry, rebooted=rebooted)
    except CkptError as error:
        return [_failed(entry.record, "read what was decided", error.message)], list(entry.steps)
    frozen = [step.cgroup for step in entry.steps if isinstance(step, journal.Frozen)]
    left: list[journal.Step] = []
    for step in sorted(entry.steps, key=lambda step: journal.UNDO_ORDER.index(type(step))):
        if rebooted and not isinstance(step, _ON_DISK):
            continue
        done = _undo_step(step, frozen)
        actions += done
        if any(action.problem for action in done):
            left.append(step)
    return actions, left


def _as_decided(entry: journal.Entry, *, rebooted: bool) -> tuple[journal.Entry, list[RecoveryAction]]:
    """The entry with what its migration has left to undo; what had to be done at once."""
    state = state_in(entry.record) if entry.record else ""
    kind = os.path.basename(entry.record)
    if kind == SOURCE_NAME and state in (SourceState.COMMITTED, SourceState.FINISHED) and not rebooted:
        frozen = [each.cgroup for each in entry.steps if isinstance(each, journal.Frozen)]
        done: list[RecoveryAction] = []
        for cgroup in frozen:
            # What cannot be killed must stay to be killed, and frozen, also when the record is gone.
            entry = entry.with_step(journal.Frozen(cgroup=cgroup, held_before=True))
            entry = entry.with_step(journal.Killing(cgroup=cgroup))
            # Before CRIU ends, which would let its tasks go, if only into a frozen cgroup. It is told at the second try.
            done += _undo_step(journal.Killing(cgroup=cgroup))
        return entry, [action for action in done if not action.problem]
    if kind == TARGET_NAME and state == TargetState.RUNNING:
        held = [each.cgroup for each in entry.steps if isinstance(each, journal.Restoring)]
        entry = entry.with_restore_committed()
        for cgroup in held:
            entry = entry.with_step(journal.Frozen(cgroup=cgroup, held_before=False))
        if not rebooted:
            _await_instant(step.cgroup for step in entry.steps if isinstance(step, journal.Frozen))
    return entry, []


def _await_instant(cgroups_of_tasks: Iterable[str]) -> None:
    """Wait as long as a restore may have been ahead of the instant for which it set the clocks of its tasks."""
    tasks = sum(len(cgroups.processes_below(each)) for each in cgroups_of_tasks if os.path.isdir(each))
    # Let go earlier they would see their clocks go back (restore_session.py: _FILE_NS, _LET_GO_NS, _LET_GO_TASK_NS).
    time.sleep(_AHEAD_S + tasks * _AHEAD_TASK_S)


def _undo_step(step: journal.Step, frozen: Sequence[str] = ()) -> list[RecoveryAction]:
    """Undo one step of an operation that froze these cgroups."""
    undo = _UNDO[type(step)]
    try:
        done = undo(step, frozen)
    except CkptError as error:
        return [_failed(step.subject, type(step).__name__, error.message)]
    except Exception as error:  # noqa: BLE001 - not even a bug here may keep the next step from thawing
        return [_failed(step.subject, type(step).__name__, f"{type(error).__name__}: {error}")]
    return [RecoveryAction(subject=step.subject, done=done)] if done else []


def _end_criu(step: journal.CriuStarted, frozen: Sequence[str]) -> str:
    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(step.pid, signal.SIGKILL)
        _ended(step.process, _CRIU_END_S)

    if _ended(step.process, CRIU_GRACE_S):  # perhaps by a SIGKILL, as who began the operation
        return ", ".join(kill_criu(lambda: None, None, log=step.log, frozen=frozen))
    return ", ".join(
        (f"ended CRIU (process {step.pid})", *kill_criu(kill, step.pid, log=step.log, frozen=frozen))
    )


def _finish_kill(step: journal.Killing, _frozen: Sequence[str]) -> str:
    control = control_of(step.cgroup)
    if control is None or not cgroups.processes_below(step.cgroup):
        return ""
    control.kill()
    return "killed the rest of a workload whose checkpoint is complete"


def _thaw(step: journal.Frozen, _frozen: Sequence[str]) -> str:
    control = control_of(step.cgroup)
    if control is None:
        return ""
    was_held = control.held()
    # Killed meanwhile: into a frozen cgroup nothing could be restored.
    held_before = step.held_before and bool(cgroups.processes_below(step.cgroup))
    restore_freeze(control, held_before=held_before)
    if held_before:
        return "" if was_held else "froze it again, as it had been before"
    return "thawed" if was_held else ""


def _set_memory_back(step: journal.MemoryControl, _frozen: Sequence[str]) -> str:
    now = cgroups.read_or_empty(step.cgroup, step.name)
    if now in ("", step.former) or controls.is_as(step.name, now, step.former):
        return ""
    problem = controls.write_back(step.cgroup, step.name, step.former)
    if problem:  # it stays raised, which hurts less than to be killed for it
        return f"left it as it is: {problem}"
    return f"set back to {step.former}"


def _unlock_network(step: journal.NetworkLocked, _frozen: Sequence[str]) -> str:
    table = netlock.table_of(step.run_id)
    return f"removed the network lock {table}" if netlock.remove_table(table) else ""


def _attach_network(step: journal.NetworkDetached, _frozen: Sequence[str]) -> str:
    from ckpt.host.network import detaching  # noqa: PLC0415 - few jobs have such a network

    return detaching.attach(step) if step.committed else detaching.remove(step)


def _put_back(step: journal.Gathered, _frozen: Sequence[str]) -> str:
    count = len(cgroups.processes_below(step.cgroup))
    there = os.path.isdir(step.cgroup)
    put_back(step)
    return f"put {count} process(es) back and removed the cgroup" if there else ""


def _abandon_restore(step: journal.Restoring, _frozen: Sequence[str]) -> str:
    if not os.path.isdir(step.cgroup):
        return ""
    inside = cgroups.processes_below(step.cgroup)
    control = control_of(step.cgroup)
    if control is not None:
        control.kill()
    if step.was_there:
        return "killed what was half restored in it" if inside else ""
    cgroups.remove(step.cgroup)
    return "killed what was half restored and removed the cgroup"


def _put_record_back(step: journal.Filed, _frozen: Sequence[str]) -> str:
    if not (os.path.exists(step.former) and os.path.isdir(os.path.dirname(step.record))):
        return ""
    os.replace(step.former, step.record)
    journal.sync_directory(os.path.dirname(step.record))
    return "put the record of the job back as it was before the restore"


def _take_back_files(step: journal.FilesTouched, _frozen: Sequence[str]) -> str:
    # Of restores alone, and nothing is frozen then: the guardian of a dump need not hold it in memory.
    from ckpt.host.inodes import ledger  # noqa: PLC0415

    lines = ledger.read_ledger(step.ledger)
    if not lines:
        return ""
    if step.committed:
        ledger.settle(lines)
        return "removed the former versions of restored files"
    ledger.take_back(lines)
    return f"took {len(lines)} change(s) of files back"


def _remove_directory(step: journal.Directory, _frozen: Sequence[str]) -> str:
    if not os.path.isdir(step.path):
        return ""
    # The shim of a job that was filed already writes down there how it ended.
    for pause_s in (0.01, 0.1, 0.5):
        with contextlib.suppress(OSError):
            shutil.rmtree(step.path)
            return "removed"
        time.sleep(pause_s)
    shutil.rmtree(step.path)
    return "removed"


def _move_back(step: journal.SetAside, _frozen: Sequence[str]) -> str:
    from ckpt.host.saved_files_aside import move_back  # noqa: PLC0415 - the same

    count = move_back(step.directory, step.aside)
    return f"moved {count} file(s) back into {step.directory}" if count else ""


def _thaw_filesystem(step: journal.FilesystemFrozen, _frozen: Sequence[str]) -> str:
    # Few operations have to do with volumes, and every guardian would load this.
    from ckpt.host.volumes import dumping  # noqa: PLC0415

    return dumping.thaw(step.mountpoint)


def _settle_volumes(step: journal.VolumesChanging, _frozen: Sequence[str]) -> str:
    from ckpt.host.volumes import changing  # noqa: PLC0415 - the same

    return changing.finish(step)


_ON_DISK: Final = (journal.FilesTouched, journal.SetAside, journal.VolumesChanging, journal.Directory)

_UNDO: Final[dict[type[journal.Step], Callable[[Any, Sequence[str]], str]]] = {
    journal.CriuStarted: _end_criu,
    journal.Killing: _finish_kill,
    journal.FilesystemFrozen: _thaw_filesystem,
    journal.Frozen: _thaw,
    journal.NetworkLocked: _unlock_network,
    journal.NetworkDetached: _attach_network,
    journal.MemoryControl: _set_memory_back,
    journal.Gathered: _put_back,
    journal.Restoring: _abandon_restore,
    journal.Filed: _put_record_back,
    journal.FilesTouched: _take_back_files,
    journal.SetAside: _move_back,
    journal.VolumesChanging: _settle_volumes,
    journal.Directory: _remove_directory,
}


def _is_over(directory: str) -> bool:
    """Whether nobody works on this operation any more."""
    if os.path.basename(directory).startswith("."):  # just being made
        return not _maker_lives(os.path.basename(directory)[1:])
    try:
        entry = journal.read_entry(directory)
    except journal.EntryDamaged:
        return True
    return entry is None or entry.boot_id != boot_id() or not is_alive(entry.controller)


def _maker_lives(name: str) -> bool:
    """Whether the process that made an operation of this name lives."""
    found = _OPERATION_NAME.fullmatch(name)
    return found is not None and is_alive(ProcessRef(pid=Pid(int(found[1])), start_ticks=int(found[2])))


def _is_from_an_earlier_boot(directory: str) -> bool:
    with open("/proc/stat", encoding="ascii") as stream:
        booted = next(int(line.split()[1]) for line in stream if line.startswith("btime "))
    return os.stat(directory).st_mtime < booted


def _transient_cgroups() -> Iterator[str]:
    for hierarchy in (cgroups.unified(), cgroups.freezer_v1()):
        if hierarchy is not None:
            for each in cgroups.with_all_below(hierarchy.mountpoint):
                if is_transient(each):
                    yield each


def _ended(process: ProcessRef, timeout_s: float) -> bool:
    """Wait until the process has ended; False if it has not in time."""
    if not is_alive(process):
        return True
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(process):
            return True
        ending = select.poll()
        ending.register(pidfd, select.POLLIN)
        return bool(ending.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _one_at_a_time(directory: str) -> Iterator[bool]:
    """Hold off everybody else who wants to undo this operation; False if there is nothing left to undo."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield os.path.isdir(directory)
    finally:
        os.close(fd)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _failed(subject: str, operation: str, problem: str) -> RecoveryAction:
    return RecoveryAction(subject=subject, done=f"could not {operation}", problem=problem)
