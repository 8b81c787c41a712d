"""The journal of one operation: what would have to be undone if its controller died now.

An entry is the file entry.json in a directory of its own. It is a list of steps; each step is noted before
it is taken, and says by itself how it is undone (recovery.py has the table).

Rules:
- An entry appears whole or not at all: written beside, renamed over.
- Steps of one kind and subject replace each other: noting is repeatable.
- A file that cannot be understood is damaged, and its operation is over: see recovery.py.
- Only the standard library and ckpt.errors are imported: the guardian holds this module in its memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any, Final

from ckpt.host.process_table import ProcessRef
from ckpt.units import Pid

ENTRY_NAME: Final = "entry.json"
ENTRY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Half a million gathered processes at 128 bytes each."""

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A process, and the cgroup that it was taken from."""

    pid: Pid
    start_ticks: int
    cgroup: str

    @property
    def process(self) -> ProcessRef:
        """The process, so that it cannot be mistaken for another."""
        return ProcessRef(pid=self.pid, start_ticks=self.start_ticks)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriuStarted:
    """A CRIU that works for the controller, and ends with it or is ended; `log` may name its log."""

    pid: Pid
    start_ticks: int
    log: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return str(self.pid)

    @property
    def process(self) -> ProcessRef:
        """The process, so that it cannot be mistaken for another."""
        return ProcessRef(pid=self.pid, start_ticks=self.start_ticks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Killing:
    """The workload is being killed, its checkpoint being safe: this is finished, never taken back."""

    cgroup: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A cgroup that is frozen for the operation; `held_before`: it was already, by somebody else."""

    cgroup: str
    held_before: bool

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemFrozen:
    """The file system of a volume stands still for its copy, and whoever writes to it waits."""

    mountpoint: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.mountpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLocked:
    """CRIU's nftables table, named after the run id of a dump, holds the workload's connections."""

    run_id: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.run_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDetached:
    """The network of its own of a workload, with this process in it, is not joined to `parent` (network/detaching.py).

    `network` is its kind; `link` the interface on the host's side of a bridge, or inside with a macvlan. Not
    `committed` it is that of a restore, and goes with it; else it is joined again.
    """

    pid: Pid
    start_ticks: int
    network: str
    parent: str
    link: str
    committed: bool = True

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return f"{self.pid}/{self.link}"

    @property
    def process(self) -> ProcessRef:
        """The process, so that it cannot be mistaken for another."""
        return ProcessRef(pid=self.pid, start_ticks=self.start_ticks)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryControl:
    """A memory control of a cgroup (guard/controls.py) is set for the operation; it had the value `former`."""

    cgroup: str
    name: str
    former: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return f"{self.cgroup}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Processes were moved into a cgroup of ours; `home` takes those whose origin nobody knows."""

    cgroup: str
    home: str
    origins: tuple[Origin, ...]

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """A cgroup for a restore: until it is committed, all in it is killed, and it is removed unless it was there."""

    cgroup: str
    was_there: bool = False

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.cgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Filed:
    """A job's `record` was replaced by that of what is restored: until it is committed, the `former` one is put back.

    After a reboot it is not: what is known of the commit may be older than that, and the job may have run.
    """

    record: str
    former: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.record


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumesChanging:
    """A job's volumes are made or replaced: `had_former` says whether it had any, `mounted` whether they were.

    `committed`: the new ones stay, and what only taking back would need is removed; else all is taken back.
    """

    state: str
    job: str
    had_former: bool
    mounted: bool
    committed: bool = False

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.job


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory with files of this operation alone, outside its own."""

    path: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesTouched:
    """Files of the workload were changed for a restore, as the file `ledger` says (inodes/ledger.py).

    `committed`: the restore has succeeded, and what only taking back would need is removed; else all is taken back.
    """

    ledger: str
    committed: bool = False

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Files of `directory` were moved to the same paths below `aside`, for a restore (saved_files_aside.py)."""

    directory: str
    aside: str

    @property
    def subject(self) -> str:
        """What tells this step from others of its kind."""
        return self.aside


Step = (
    CriuStarted
    | Killing
    | FilesystemFrozen
    | Frozen
    | NetworkLocked
    | NetworkDetached
    | MemoryControl
    | Gathered
    | Restoring
    | Filed
    | FilesTouched
    | SetAside
    | VolumesChanging
    | Directory
)

UNDO_ORDER: Final[tuple[type[Step], ...]] = (
    CriuStarted,
    Killing,
    FilesystemFrozen,
    # Before the thaw: the workload goes on with its network.
    NetworkDetached,
    Frozen,
    NetworkLocked,
    # After the thaw: what stands still gives no memory back.
    MemoryControl,
    Gathered,
    Restoring,
    # After the end of what was restored: its shim writes down how that ended.
    Filed,
    FilesTouched,
    SetAside,
    VolumesChanging,
    Directory,
)
"""By kind, not by time: whatever is noted when, CRIU ends before the thaw, and running comes before tidying."""

_KINDS: Final[dict[str, type[Step]]] = {kind.__name__: kind for kind in UNDO_ORDER}


class EntryDamaged(Exception):
    """The file is not an entry; caught by recovery.py, the only one that reads what others wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One operation: who does it, since which boot, how far it is, and what must be undone.

    `record` is the file of a migration whose state decides what is undone (recovery.py); "" for none.
    """

    what: str
    controller: ProcessRef
    boot_id: str
    phase: str = ""
    steps: tuple[Step, ...] = ()
    record: str = ""

    def with_step(self, step: Step) -> Entry:
        """The entry with one more step, in place of the one with the same kind and subject."""
        return dataclasses.replace(self, steps=(*self._others(step), step))

    def without_step(self, step: Step) -> Entry:
        """The entry without the step of this kind and subject."""
        return dataclasses.replace(self, steps=self._others(step))

    def with_restore_committed(self) -> Entry:
        """The entry of a restore that has succeeded: nothing of it is taken back any more."""
        steps = tuple(
            dataclasses.replace(step, committed=True)
            if isinstance(step, (FilesTouched, VolumesChanging, NetworkDetached))
            else step
            for step in self.steps
            if not isinstance(step, (Restoring, Filed, SetAside, Directory))
        )
        return dataclasses.replace(self, steps=steps)

    def _others(self, step: Step) -> tuple[Step, ...]:
        return tuple(each for each in self.steps if (type(each), each.subject) != (type(step), step.subject))

    def encode(self) -> bytes:
        """The entry as JSON."""
        document = {
            "format": _FORMAT,
            "what": self.what,
            "controller": dataclasses.asdict(self.controller),
            "boot_id": self.boot_id,
            "phase": self.phase,
            "steps": [{"kind": type(step).__name__} | dataclasses.asdict(step) for step in self.steps],
            "record": self.record,
        }
        return json.dumps(document).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Entry:
        """The entry that these bytes are.

        Raises:
            EntryDamaged: they are none, or one of another version of ckpt.
        """
        try:
            document: dict[str, Any] = json.loads(raw)
            if document["format"] != _FORMAT:
                raise EntryDamaged
            return cls(
                what=str(document["what"]),
                controller=ProcessRef(**document["controller"]),
                boot_id=str(document["boot_id"]),
                phase=str(document["phase"]),
                steps=tuple(_step(each) for each in document["steps"]),
                record=str(document.get("record", "")),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EntryDamaged from error


def read_entry(directory: str) -> Entry | None:
    """The entry of an operation's directory; None if it is over.

    Raises:
        EntryDamaged: the file is not an entry.
    """
    try:
        with open(f"{directory}/{ENTRY_NAME}", "rb") as stream:
            if os.fstat(stream.fileno()).st_size > ENTRY_BYTES_MAX:
                raise EntryDamaged
            raw = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Entry.decode(raw)


def write_entry(directory: str, entry: Entry, *, sync: bool) -> None:
    """Replace the entry in one step; with `sync` it also survives a power cut.

    Raises:
        OSError: as the file system says; the old entry is still there.
    """
    path = f"{directory}/{ENTRY_NAME}"
    try:
        with open(path + ".new", "wb") as stream:
            stream.write(entry.encode())
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.rename(path + ".new", path)
    except OSError:
        remove_file(path + ".new")
        raise
    if sync:
        sync_directory(directory)


def remove_entry(directory: str) -> None:
    """End the operation: from here on its directory is only something to tidy up. Safe to repeat."""
    remove_file(f"{directory}/{ENTRY_NAME}")


def remove_file(path: str) -> None:
    """Remove the file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(directory: str) -> None:
    """Make the names in the directory durable."""
    # rename(2) is atomic but not durable: the new name survives a crash only after
    # fsync(2) on the directory that holds it.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _step(document: dict[str, Any]) -> Step:
    fields = dict(document)
    kind = _KINDS[fields.pop("kind")]
    if kind is Gathered:
        fields["origins"] = tuple(Origin(**each) for each in fields["origins"])
    return kind(**fields)
