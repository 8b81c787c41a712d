"""The registry of jobs: one directory for each, and a state that is looked up, never remembered.

    STATE/jobs/NAME/job.json    what was started, where, and as which processes
                    exit.json   how its main process ended; the shim writes it
                    log         what it wrote; shim.log: what its shim had to complain about

Rules:
- job.json is replaced as a whole, and durable when save() returns.
- A pid counts only together with its start time and the boot in which both were seen.
- The name of a job is the name of a directory: nothing that is not a valid name ever becomes a path.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from ckpt.errors import BadName, NoSpace, NoSuchTarget, ObjectCorrupt, OsRefused, WrongState
from ckpt.host import cgroups, linux
from ckpt.host.launch import Exit, open_pidfd
from ckpt.host.locks import exclusive
from ckpt.host.migrations import Migrations
from ckpt.host.mounts import Shows, shown_by_host
from ckpt.host.process_table import ProcessRef, boot_id, is_alive, process_ref
from ckpt.model.origin import Origin
from ckpt.units import ByteCount, CheckpointId, JobName, Nanoseconds, Pid

STATE_VARIABLE: Final = "CKPT_STATE"
STATE_DEFAULT: Final = "/var/lib/ckpt"

JOBS_CGROUP: Final = "ckpt"
"""The cgroup, below a mount, in which jobs have theirs."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_VERSION: Final = 1
_DOCUMENT_BYTES_MAX: Final = 4 << 20
"""Command lines can be 2 MiB long (MAX_ARG_STRLEN times some); more is not ours."""


class JobState(StrEnum):
    """What a job is doing."""

    RUNNING = "running"
    FROZEN = "frozen"
    STOPPED = "stopped"
    EXITED = "exited"
    MIGRATED = "migrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as it was last started or restored.

    `root` is what CRIU dumps and whose end is the job's end: the init of its namespace, or the first tree's
    root of a restored workload that has none. `command` is the user's program, which may be the same.
    `cgroups` are absolute directories, the one that is frozen first. `stopped_by` is the checkpoint after
    whose dump the job was ended on purpose; `migrated_to` the host where it went, and `migration` the id of the
    migration that brought it here. `group` is "" or the group that it belongs to.
    `connection_locks` are those that CRIU has left when it was stopped (connection_locks.py). `feeder` is the process that
    feeds it its standard input through a pipe, dead or alive; None for a job that none feeds (feeding.py). `started_as` is
    the command line that it was once started by, also after restores, () if it was elsewhere; `argv` is what it has now.
    `host_mounts` are the host's mounts that it was begun with in a mount namespace of its own (mounts.shown_by_host()).
    """

    name: JobName
    argv: tuple[str, ...]
    cwd: str
    created: Nanoseconds
    boot_id: str
    cgroups: tuple[str, ...]
    root: ProcessRef
    command: ProcessRef
    shim: ProcessRef
    log: str
    restored_from: CheckpointId | None = None
    stopped_by: CheckpointId | None = None
    migrated_to: str = ""
    migration: str = ""
    group: str = ""
    connection_locks: tuple[str, ...] = ()
    feeder: ProcessRef | None = None
    started_as: tuple[str, ...] = ()
    host_mounts: tuple[Shows, ...] = ()

    @property
    def cgroup(self) -> str:
        """The directory of the cgroup that is frozen."""
        return self.cgroups[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as it is now. `pids` are its processes; `exit` is None while it runs, or if nobody saw its end."""

    record: JobRecord
    state: JobState
    pids: tuple[Pid, ...]
    memory: ByteCount
    exit: Exit | None

    @property
    def name(self) -> JobName:
        """The job's name."""
        return self.record.name

    @property
    def is_alive(self) -> bool:
        """Whether it has processes, frozen or not."""
        return self.state in (JobState.RUNNING, JobState.FROZEN)


def remove_cgroups(record: JobRecord) -> None:
    """Remove the cgroups of a job that has ended, if they were made for the job; one in use stays.

    One that the user named at the restore is the user's.
    """
    for cgroup in record.cgroups:
        if cgroup.endswith(f"/{cgroup_name(record.name)}"):
            with suppress(OSError):
                cgroups.remove(cgroup)


def state_directory() -> str:
    """Where this host's jobs and journals are kept."""
    return os.path.abspath(os.environ.get(STATE_VARIABLE) or STATE_DEFAULT)


def check_name(name: str) -> JobName:
    """The name, if a job may have it.

    Raises:
        BadName: it may not.
    """
    if _NAME.fullmatch(name) is None:
        raise BadName(kind="job", name=name)
    return JobName(name)


def cgroup_name(job: JobName) -> str:
    """The path, below a cgroup mount, of the cgroup that a job has unless the user names another one.

    Raises:
        BadName: no job can have this name.
    """
    return f"{JOBS_CGROUP}/{check_name(job)}"


class JobRegistry:
    """The jobs of this host."""

    def __init__(self, state: str) -> None:
        """Keep them below the directory `state`, which is made when the first job is."""
        self.state = state
        self._jobs = f"{state}/jobs"
        self._locks = f"{state}/locks"

    def directory(self, job: JobName) -> str:
        """The job's directory, whether it exists or not.

        Raises:
            BadName: no job can have this name.
        """
        return f"{self._jobs}/{check_name(job)}"

    def record_path(self, job: JobName) -> str:
        """Where the job itself is written down."""
        return f"{self.directory(job)}/job.json"

    def exit_path(self, job: JobName) -> str:
        """Where the shim writes how the job ended."""
        return f"{self.directory(job)}/exit.json"

    def names(self) -> tuple[JobName, ...]:
        """All jobs, in alphabetical order."""
        with suppress(FileNotFoundError):
            found = [
                JobName(name)
                for name in os.listdir(self._jobs)
                if _NAME.fullmatch(name) and os.path.exists(f"{self._jobs}/{name}/job.json")
            ]
            return tuple(sorted(found))
        return ()

    def prepare(self, job: JobName) -> str:
        """Make the job's directory, if it is missing; gives its path."""
        directory = self.directory(job)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return directory

    def lock(self, job: JobName) -> AbstractContextManager[None]:
        """Keep other ckpt processes from starting, restoring or removing this job.

        Raises:
            BadName: no job can have this name.
            Locked: one of them is at it; names its pid.
        """
        return exclusive(self._locks, [f"job-{check_name(job)}"], subject=f"Job {job}")

    def save(self, record: JobRecord) -> None:
        """Write the job down; durable when this returns.

        Raises:
            NoSpace, OsRefused: it cannot be written; the former record is still there.
        """
        try:
            self._save(record)
        except OSError as error:
            directory = self.directory(record.name)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    place=directory, available_bytes=0, needed_bytes=4096, option=STATE_VARIABLE
                ) from error
            raise OsRefused(
                operation="write", subject=f"{directory}/job.json", reason=error.strerror or str(error)
            ) from error

    def _save(self, record: JobRecord) -> None:
        directory = self.prepare(record.name)
        document = {"version": _VERSION, **asdict(record)}
        new = f"{directory}/job.json.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(fd)
        os.rename(new, f"{directory}/job.json")
        # The new name, and the directory's own, survive a crash only when their directories are synced.
        for each in (directory, self._jobs):
            _sync_directory(each)

    def load(self, job: JobName) -> JobRecord:
        """What was written down of the job.

        Raises:
            NoSuchTarget: there is no such job.
            ObjectCorrupt: its record cannot be read.
        """
        path = f"{self.directory(job)}/job.json"
        try:
            return _record(_read_document(path))
        except FileNotFoundError as error:
            raise NoSuchTarget(kind="job", name=job, remedy="'ckpt ps' lists the jobs.") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ObjectCorrupt(
                kind="record of job", name=job, reason=str(error), remedy=f"Remove {path} if it is of no use."
            ) from error

    def find(self, job: JobName) -> JobRecord | None:
        """What was written down of the job, if anything that can be read."""
        with suppress(NoSuchTarget, ObjectCorrupt):
            return self.load(job)
        return None

    def look(self, job: JobName) -> JobView:
        """The job as it is now.

        Raises:
            NoSuchTarget, ObjectCorrupt: as load().
        """
        record = self.load(job)
        ended = self._exit(record)
        if not _runs(record):
            return JobView(
                record=record, state=_state_at_rest(record), pids=(), memory=ByteCount(0), exit=ended
            )
        if not any(record.argv):  # when it was filed, its memory was still to come
            record = replace(record, argv=_command_line(record.command.pid))
        pids = tuple(cgroups.processes_below(record.cgroup))
        return JobView(
            record=record,
            state=JobState.FROZEN if is_frozen(record.cgroup) else JobState.RUNNING,
            pids=pids,
            memory=memory_of(record.cgroups, pids),
            exit=None,
        )

    def list(self) -> tuple[JobView, ...]:
        """All jobs as they are now; one that is removed meanwhile, or cannot be read, is left out."""
        views = []
        for name in self.names():
            with suppress(NoSuchTarget, ObjectCorrupt):
                views.append(self.look(name))
        return tuple(views)

    def in_group(self, group: str) -> tuple[JobView, ...]:
        """The jobs of a group as they are now, in alphabetical order; none if nobody knows it."""
        return tuple(view for view in self.list() if view.record.group == group)

    def with_root(self, pids: Collection[Pid]) -> JobName | None:
        """The job that runs and whose root process is one of these; None if there is none."""
        for name in self.names():
            with suppress(NoSuchTarget, ObjectCorrupt):
                record = self.load(name)
                if record.root.pid in pids and _runs(record):
                    return name
        return None

    def host_mounts_of(self, root: Pid) -> tuple[Shows, ...]:
        """The host's mounts that the running job with this root was begun with; () if there is none."""
        job = self.with_root([root])
        record = self.find(job) if job is not None else None
        return record.host_mounts if record is not None else ()

    def cgroup_of(self, job: JobName) -> str | None:
        """The absolute path of the job's cgroup; None if there is no such job."""
        with suppress(NoSuchTarget):
            return self.load(job).cgroup
        return None

    def refuse_running(self, job: JobName) -> None:
        """Do nothing if the job has ended, or never was.

        Raises:
            WrongState: it runs.
            ObjectCorrupt: its record cannot be read.
        """
        with suppress(NoSuchTarget):
            view = self.look(job)
            if view.is_alive:
                raise WrongState(
                    subject=f"Job {job}",
                    state=f"{view.state} (process {view.record.root.pid})",
                    operation="that",
                    needed="ended, or never started",
                    remedy=f"Run 'ckpt stop {job}' first, or choose another name.",
                )

    def adopt(
        self,
        job: JobName,
        *,
        cgroup: str,
        root: Pid,
        shim: ProcessRef,
        origin: Origin,
        log: str,
        feeder: ProcessRef | None = None,
    ) -> JobRecord:
        """File a restored workload under the job's name; durable.

        Args:
            job: The name; what it named before is forgotten.
            cgroup: The absolute path of its cgroup.
            root: The process whose end is the job's end.
            shim: The shim that will write that end down.
            origin: Where it came from.
            log: The path that its output goes to, where it has no other.
            feeder: Who feeds it its standard input, if anybody.
        """
        command = _command_below(root)
        former = self.find(job)
        record = JobRecord(
            name=check_name(job),
            argv=_command_line(command),
            cwd=_working_directory(command),
            created=Nanoseconds(time.time_ns()),
            boot_id=boot_id(),
            cgroups=(cgroup, *_others_of_its_own(job, cgroup, root)),
            root=_ref(root),
            command=_ref(command),
            shim=shim,
            log=log,
            restored_from=origin.checkpoint,
            migration=origin.migration,
            group=origin.group or (former.group if former is not None else ""),
            feeder=feeder,
            started_as=former.started_as if former is not None else (),
            host_mounts=shown_by_host(root),
        )
        self.save(record)
        return record

    def mark_stopped(self, job: JobName, checkpoint: CheckpointId, locks: tuple[str, ...] = ()) -> None:
        """The job was ended by ckpt, and lives on in this checkpoint; `locks` are on its connections."""
        self.save(replace(self.load(job), stopped_by=checkpoint, connection_locks=locks))

    def mark_migrated(self, job: JobName, host: str) -> None:
        """The job was ended by ckpt, and lives on, on that host; its cgroup here is removed."""
        record = self.load(job)
        self.save(replace(record, migrated_to=host))
        remove_cgroups(record)

    def moved_to(self, job: JobName) -> str:
        """The host that the job was handed over to, or is just being; "" if it was not, or runs here again."""
        record = self.find(job)
        if record is None or _runs(record):
            return ""
        committed = (
            each.host
            for each in Migrations(self.state).sources()
            # Its record goes only when the job's own says it.
            if each.job == job and each.state.has_committed
        )
        return next(committed, "") or record.migrated_to

    def remove(self, job: JobName) -> None:
        """Forget a job that does not run, with its logs.

        Raises:
            NoSuchTarget: there is no such job.
            WrongState: it runs.
            Locked: another ckpt process is at it.
        """
        with suppress(ObjectCorrupt):
            view = self.look(job)
            if view.is_alive:
                raise WrongState(
                    subject=f"Job {job}",
                    state=view.state,
                    operation="removing it",
                    needed="ended",
                    remedy=f"Run 'ckpt stop {job}' first.",
                )
        with self.lock(job):
            shutil.rmtree(self.directory(job))

    def wait(self, job: JobName, timeout_s: float | None = None) -> Exit | None:
        """Wait until the job has ended, and say how; None if it has not in time.

        Raises:
            NoSuchTarget: there is no such job.
            WrongState: it was moved to another host.
            OsRefused: it ended, and nobody saw how (its shim was killed, or the host went down).
        """
        record = self.load(job)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with ExitStack() as opened:
            watch = linux.inotify_open(self.directory(job), linux.IN_MOVED_TO | linux.IN_DELETE_SELF)
            opened.callback(os.close, watch)
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            # The shim writes down the end; if it was killed, the end itself is all that can be waited for.
            living = {fd for each in (record.shim, record.root) if (fd := open_pidfd(each)) is not None}
            for fd in living:
                opened.callback(os.close, fd)
                poll.register(fd, select.POLLIN)
            while True:
                # Looked at after the watch began, so that no end falls between the two.
                ended = self._exit(record)
                if (ended is not None or not living) and (host := self.moved_to(job)):
                    raise WrongState(
                        subject=f"Job {job}",
                        state=f"moved to {host}",
                        operation="waiting for it",
                        needed="here",
                        remedy=f"Wait for it there: 'ckpt wait {job}'.",
                    )
                if ended is not None or (deadline is not None and time.monotonic() >= deadline):
                    return ended
                if not living:
                    raise OsRefused(
                        operation="tell",
                        subject=f"how job {job} ended",
                        reason="nobody saw it: its shim was killed, or the host went down",
                    )
                left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
                for fd, _events in poll.poll(left):
                    if fd == watch:
                        linux.inotify_drain(watch)
                    else:
                        poll.unregister(fd)
                        living.discard(fd)

    def _exit(self, record: JobRecord) -> Exit | None:
        """The end of this very life of the job: that of an earlier one was written by another shim."""
        try:
            document = _read_document(self.exit_path(record.name))
            if document["shim"] != record.shim.pid:
                return None
            ended = Exit(
                pid=Pid(document["pid"]),
                code=document["code"],
                signal=document["signal"],
                when=Nanoseconds(document["when_ns"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return ended


def is_frozen(cgroup: str) -> bool:
    """Whether the cgroup is frozen, by itself or from above."""
    if "frozen 1" in cgroups.read_or_empty(cgroup, "cgroup.events").splitlines():
        return True
    return cgroups.read_or_empty(cgroup, "freezer.state") in ("FROZEN", "FREEZING")


def memory_of(directories: tuple[str, ...], pids: tuple[Pid, ...]) -> ByteCount:
    """The memory that a job uses: its cgroup's account where it has one, else the sum of its processes' Pss."""
    for directory in directories:
        for name in ("memory.current", "memory.usage_in_bytes"):
            text = cgroups.read_or_empty(directory, name)
            if text:
                return ByteCount(int(text))
    return ByteCount(sum(_pss_bytes(pid) for pid in pids))


def _others_of_its_own(job: JobName, cgroup: str, root: Pid) -> tuple[str, ...]:
    """The cgroups of other hierarchies that are named after the job, and so were made for it."""
    places = (cgroups.cgroup_of(root, each) for each in cgroups.hierarchies())
    return tuple(
        place for place in places if place and place != cgroup and place.endswith(f"/{cgroup_name(job)}")
    )


def _ref(pid: Pid) -> ProcessRef:
    return process_ref(pid) or ProcessRef(pid=pid, start_ticks=0)


def _command_below(root: Pid) -> Pid:
    """The user's program: the first child of an init of ours, else the root itself."""
    with suppress(OSError):
        if os.path.basename(os.readlink(f"/proc/{root}/exe")).startswith("ckpt-init"):
            with open(f"/proc/{root}/task/{root}/children", encoding="ascii") as stream:
                return Pid(int((stream.read().split() or [str(root)])[0]))
    return root


def _command_line(pid: Pid) -> tuple[str, ...]:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as stream:
        return tuple(os.fsdecode(word) for word in stream.read().removesuffix(b"\0").split(b"\0"))
    return ()


def _working_directory(pid: Pid) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd")
    return "/"


def _pss_bytes(pid: Pid) -> int:
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _runs(record: JobRecord) -> bool:
    return record.boot_id == boot_id() and is_alive(record.root)


def _state_at_rest(record: JobRecord) -> JobState:
    if record.migrated_to:
        return JobState.MIGRATED
    return JobState.STOPPED if record.stopped_by is not None else JobState.EXITED


def _read_document(path: str) -> dict[str, Any]:
    with open(path, "rb") as stream:
        document = json.loads(stream.read(_DOCUMENT_BYTES_MAX))
    if not isinstance(document, dict):
        raise TypeError("not an object")
    return document


def _record(document: dict[str, Any]) -> JobRecord:
    if document.pop("version") != _VERSION:
        raise ValueError("written by another version of ckpt")
    document.setdefault("connection_locks", ())
    document.setdefault("started_as", ())
    for name in ("argv", "cgroups", "connection_locks", "started_as"):
        document[name] = tuple(map(str, document[name]))
    for name in ("root", "command", "shim"):
        document[name] = _process(document[name])
    document["host_mounts"] = tuple(
        (str(place), str(device), str(root)) for place, device, root in document.get("host_mounts", ())
    )
    feeder = document.get("feeder")
    document["feeder"] = None if feeder is None else _process(feeder)
    record = JobRecord(**document)
    if not record.cgroups:
        raise ValueError("it names no cgroup")
    return record


def _process(document: dict[str, Any]) -> ProcessRef:
    return ProcessRef(pid=Pid(int(document["pid"])), start_ticks=int(document["start_ticks"]))


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
