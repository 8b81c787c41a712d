"""The operations under way on this host: journal entry, staging directory, guardian.

Layout below the state directory ($CKPT_STATE, /var/lib/ckpt):

    operations/<id>/entry.json      what would have to be undone now; gone: the operation is over
    operations/<id>/staging/        its files

Rules:
- A step is noted before it is taken, and forgotten after it is undone.
- While the workload runs, a note is on the disk before note() returns. While it is frozen, a note is only in
  the kernel's memory: it must outlive this process, which it does, but not the machine, because what is
  frozen does not outlive it either. A sync would be paid in frozen time (0.9 ms here, 10 and more on others).
- Forgetting never fails: what is undone twice is undone.
- $CKPT_FAILPOINT names a phase at which this process kills itself, or, as "PHASE:SIGNAL", sends itself another
  signal: how the tests stop it where they want.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
import signal
import threading
from typing import Final

from ckpt.errors import NoSpace, OsRefused
from ckpt.host import journal, recovery
from ckpt.host.guardian import Guardian
from ckpt.host.process_table import boot_id, stat_of
from ckpt.units import Pid

FAILPOINT: Final = "CKPT_FAILPOINT"
NEEDED_BYTES: Final = 64 * 1024
"""What an entry of a thousand processes takes."""


class JournaledOperation:
    """One use case under way. Fits the port `Operation`; the adapters in host/ use the note_… methods."""

    def __init__(self, directory: str, entry: journal.Entry) -> None:
        self._directory = directory
        self._entry = entry
        self._guardian: Guardian | None = None
        self._lock = threading.Lock()  # CRIU's hooks may come in another thread

    @property
    def id(self) -> str:
        """Its name below operations/, of random digits and the controller: "0f3c…-1234-567890"."""
        return os.path.basename(self._directory)

    @property
    def staging(self) -> str:
        """An empty directory on disk, removed with the operation."""
        return self._directory + "/staging"

    def directory(self, name: str) -> str:
        """Make an empty directory in `staging`, in place of one of an earlier attempt; gives its path.

        Raises:
            NoSpace, OsRefused: it cannot be made.
        """
        path = f"{self.staging}/{name}"
        try:
            if os.path.isdir(path):
                shutil.rmtree(path)
            os.mkdir(path, mode=0o700)
        except OSError as error:
            raise _refused(os.path.dirname(self._directory), error) from error
        return path

    def kept(self, name: str) -> str:
        """The path of a file that outlives the operation, in the state directory; "" gives that directory."""
        return os.path.join(os.path.dirname(os.path.dirname(self._directory)), name).rstrip("/")

    def decided_by(self, record: str) -> None:
        """Let a crash undo what the migration whose record is at this path has not decided otherwise.

        Raises:
            NoSpace: the state directory is full.
        """
        with self._lock:
            self._write(dataclasses.replace(self._entry, record=record), sync=True)

    def guard(self) -> None:
        """Start the guardian: if this process dies before end(), it undoes what was noted, at once.

        Returns before the guardian is up; await_guardian() waits for that.
        """
        if self._guardian is None:
            self._guardian = Guardian.start(self._directory)

    def await_guardian(self) -> None:
        """Return when the guardian watches; one that was killed is replaced. Nothing without guard().

        Raises:
            OsRefused: it does not come up.
        """
        if self._guardian is None:
            return
        if not self._guardian.alive():
            self._guardian.dismiss()
            self._guardian = Guardian.start(self._directory)
        self._guardian.await_ready()

    def end(self) -> None:
        """The operation is over and nothing is left to undo: dismiss the guardian, remove the staging."""
        journal.remove_entry(self._directory)
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None
        # Without an entry the directory is rubbish: whoever comes next may remove what is left of it.
        shutil.rmtree(self._directory, ignore_errors=True)

    def note(self, step: journal.Step) -> None:
        """Note a step that is about to be taken.

        Raises:
            NoSpace: the state directory is full.
        """
        with self._lock:
            self._write(self._entry.with_step(step), sync=not self._frozen)

    def forget(self, step: journal.Step) -> None:
        """The step has been undone. Never fails: a step that stays is undone once more, which does no harm."""
        with self._lock, contextlib.suppress(NoSpace, OsRefused):
            self._write(self._entry.without_step(step), sync=False)

    def note_phase(self, phase: str) -> None:
        """Note how far the operation is: for people, and the place where tests stop it.

        Raises:
            NoSpace: the state directory is full.
        """
        with self._lock:
            self._write(dataclasses.replace(self._entry, phase=phase), sync=False)
        _fail_at(phase)

    def note_criu(self, pid: Pid, *, log: str = "") -> None:
        """Note a CRIU that works for this operation; `log` is the path of its log, which tells its run id."""
        stat = stat_of(pid)
        if stat is not None:
            self.note(journal.CriuStarted(pid=pid, start_ticks=stat.start_ticks, log=log))

    def forget_criu(self, pid: Pid) -> None:
        """That CRIU has ended."""
        self.forget(journal.CriuStarted(pid=pid, start_ticks=0, log=""))

    def note_network_lock(self, run_id: str) -> None:
        """Note that a dump with this run id has locked the workload's connections."""
        self.note(journal.NetworkLocked(run_id=run_id))

    def forget_network_lock(self, run_id: str) -> None:
        """The connections are unlocked again."""
        self.forget(journal.NetworkLocked(run_id=run_id))

    def note_restore(self, cgroup: str) -> None:
        """Note a cgroup into which something is restored: all in it dies if this process does.

        One that is not there yet is to be removed then, too.
        """
        self.note(journal.Restoring(cgroup=cgroup, was_there=os.path.isdir(cgroup)))

    def forget_restore(self, cgroup: str) -> None:
        """The restore is committed, or was taken back."""
        self.forget(journal.Restoring(cgroup=cgroup))

    def note_filing(self, record: str) -> None:
        """Note that the record of a job, at this path, is about to be replaced by that of what is restored.

        Raises:
            NoSpace, OsRefused: it cannot be kept.
        """
        former = f"{self._directory}/former-record"
        try:
            shutil.copyfile(record, former)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(self._directory, error) from error
        with self._lock:
            # Not durable, as it is of no use after a reboot; and what is restored stands still meanwhile.
            self._write(self._entry.with_step(journal.Filed(record=record, former=former)), sync=False)

    def forget_filing(self, record: str) -> None:
        """It is the former one again."""
        self.forget(journal.Filed(record=record, former=""))

    @property
    def ledger(self) -> str:
        """The path of the file in which changes of the workload's files are noted (inodes/ledger.py)."""
        return self._directory + "/ledger"

    def note_files(self, *, committed: bool) -> None:
        """Note that files are changed as `ledger` says; once `committed`, that they stay as they are."""
        self.note(journal.FilesTouched(ledger=self.ledger, committed=committed))

    def note_set_aside(self, directory: str, aside: str) -> None:
        """Note that files of `directory` are about to be moved to the same paths below `aside`."""
        self.note(journal.SetAside(directory=directory, aside=aside))

    def forget_set_aside(self, directory: str, aside: str) -> None:
        """They have been moved back."""
        self.forget(journal.SetAside(directory=directory, aside=aside))

    def commit_restore(self, *, frozen: str | None) -> None:
        """The restore has succeeded: from this one write on nothing of it is taken back any more.

        Args:
            frozen: The cgroup in which it stands still yet, and is to go on also if this process dies; see
                forget_frozen().
        """
        with self._lock, contextlib.suppress(NoSpace, OsRefused):
            entry = self._entry.with_restore_committed()
            if frozen is not None:
                entry = entry.with_step(journal.Frozen(cgroup=frozen, held_before=False))
            self._write(entry, sync=False)

    def forget_frozen(self, cgroup: str) -> None:
        """That cgroup is thawed."""
        self.forget(journal.Frozen(cgroup=cgroup, held_before=False))

    def note_directory(self, path: str) -> None:
        """Note a directory outside `staging` that holds nothing but this operation's files."""
        self.note(journal.Directory(path=path))

    def forget_directory(self, path: str) -> None:
        """The directory is removed, or is to stay."""
        self.forget(journal.Directory(path=path))

    @property
    def _frozen(self) -> bool:
        return any(isinstance(step, journal.Frozen) for step in self._entry.steps)

    def _write(self, entry: journal.Entry, *, sync: bool) -> None:
        try:
            journal.write_entry(self._directory, entry, sync=sync)
        except OSError as error:
            raise _refused(os.path.dirname(self._directory), error) from error
        self._entry = entry


class JournaledOperations:
    """The journal of this host. Fits the port `Operations`."""

    def __init__(self, state: str) -> None:
        """Keep the journal below the directory `state`, which is made if it is missing."""
        self._state = state
        self._directory = state + "/operations"

    def begin(self, what: str) -> JournaledOperation:
        """A new operation with an entry and a staging directory of its own.

        What controllers that died have left is undone first.

        Raises:
            NoSpace: the state directory is full.
            OsRefused: it cannot be written.
        """
        recovery.recover_dead(self._state)
        myself = stat_of(os.getpid())
        assert myself is not None  # this process runs
        entry = journal.Entry(what=what, controller=myself.ref, boot_id=boot_id())
        # The name tells whose it is, also where only the name is left: a cgroup without an entry.
        name = f"{secrets.token_hex(6)}-{myself.pid}-{myself.start_ticks}"
        # The directory appears with its entry in it: one without is an operation that is over.
        directory, hidden = f"{self._directory}/{name}", f"{self._directory}/.{name}"
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            os.mkdir(hidden, mode=0o700)
            os.mkdir(hidden + "/staging", mode=0o700)
            journal.write_entry(hidden, entry, sync=True)
            os.rename(hidden, directory)
            journal.sync_directory(self._directory)
        except OSError as error:
            shutil.rmtree(hidden, ignore_errors=True)
            raise _refused(self._directory, error) from error
        return JournaledOperation(directory, entry)


def _fail_at(phase: str) -> None:
    wanted, _, name = os.environ.get(FAILPOINT, "").partition(":")
    if wanted == phase:
        os.kill(os.getpid(), signal.Signals[name or "SIGKILL"])


def _refused(directory: str, error: OSError) -> NoSpace | OsRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        space = os.statvfs(directory)
        return NoSpace(
            place=directory,
            available_bytes=space.f_bavail * space.f_frsize,
            needed_bytes=NEEDED_BYTES,
            option="CKPT_STATE",
        )
    return OsRefused(
        operation="note what is under way in",
        subject=directory,
        reason=error.strerror or str(error),
        remedy="Make it writable, or set CKPT_STATE to a directory that is.",
    )
