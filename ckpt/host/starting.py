"""Start a command as a job, and end one: registry, cgroup, log and shim put together.

Rules:
- What a start made is removed again if the start fails.
- A job must be able to live on after the terminal is gone: its standard input is /dev/null, a file, a pipe, or a
  terminal of its own whose master its shim has.
- A job's output goes to files that are only appended to: CRIU lets these grow between dump and restore.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ckpt.errors import FeatureMissing, OsRefused, WrongState
from ckpt.host import cgroups, connection_locks, launch
from ckpt.host.freezer_control import Control, control_of
from ckpt.host.guard.memory import make_memory_cgroup
from ckpt.host.jobs import JobRecord, JobRegistry, cgroup_name, remove_cgroups
from ckpt.host.launch import JobSpec, StartedJob, Stdio
from ckpt.host.mounts import shown_by_host
from ckpt.host.network.building import build, host_link_of
from ckpt.host.outside import JobTerminal
from ckpt.host.process_table import ProcessRef, boot_id
from ckpt.host.volumes import owning
from ckpt.host.volumes.owning import WantedVolume
from ckpt.model.network import Network
from ckpt.units import ByteCount, JobName, Nanoseconds

LOG: Final = "log"
ERRORS_LOG: Final = "log.stderr"
"""In a job's directory, beside LOG, where its standard error is kept apart."""

STDIN_POSITION: Final = "stdin.position"
"""In a job's directory: how many bytes of its standard input, a pipe of ours, it has read."""

_PROCS: Final = "cgroup.procs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start: `log` "" means files in the job's directory, with stderr in its own if `apart`.

    `network` None leaves the job in the host's. With a `terminal` that is all its standard streams.
    `group` is that of the job, or "". `memory_max` limits its memory. `feeder` writes into the pipe that is its `stdin`.
    """

    name: JobName
    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    umask: int
    log: str
    apart: bool
    volumes: tuple[WantedVolume, ...] = ()
    network: Network | None = None
    stdin: Stdio = Stdio(path=os.devnull)
    terminal: JobTerminal | None = None
    group: str = ""
    memory_max: ByteCount | None = None
    feeder: ProcessRef | None = None


def start(registry: JobRegistry, command: Command) -> JobRecord:
    """Start the command as a job; when this returns, it no longer depends on this process.

    Raises:
        WrongState: a job of this name runs, or its cgroup holds processes.
        Locked: another ckpt is at this job.
        CommandFailed: the command cannot be executed.
        Usage: a volume cannot be had at its place, or of this size.
        OsRefused, FeatureMissing, NoSpace: this host cannot; names what failed.
    """
    with contextlib.ExitStack() as held, contextlib.ExitStack() as undo:
        held.enter_context(registry.lock(command.name))
        registry.refuse_running(command.name)
        hidden = held.enter_context(owning.provided(registry.state, command.name, command.volumes))
        is_new = not os.path.exists(registry.directory(command.name))
        directory = registry.prepare(command.name)
        if is_new:
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
        stdout, stderr = _logs(command, directory)
        cgroup = _own_cgroup(cgroup_name(command.name))
        undo.callback(cgroups.remove, cgroup)
        places = _with_limit(command, cgroup)
        undo.callback(lambda: [cgroups.remove(each) for each in places])
        network = _network(registry, command, held)
        saved: list[JobRecord] = []

        connection_locks.release(registry.find(command.name))

        def register(started: StartedJob) -> None:
            saved.append(_record(command, started, places, stdout))
            registry.save(saved[0])

        spec = JobSpec(
            name=command.name,
            argv=command.argv,
            cwd=command.cwd,
            environment=command.environment,
            exit_path=registry.exit_path(command.name),
            cgroup_procs=tuple(f"{each}/{_PROCS}" for each in places),
            umask=command.umask,
            stdin=command.stdin,
            stdout=Stdio.log(stdout),
            stderr=Stdio.log(stderr),
            hidden_mounts=hidden,
            network=network,
            terminal=command.terminal,
            terminal_log=stdout,
        )
        launch.start_job(spec, register=register)
        undo.pop_all()
    return saved[0]


def stop(registry: JobRegistry, name: JobName, grace_s: float) -> bool:
    """End the job: SIGTERM, and after the grace period SIGKILL for all of its cgroup.

    Returns:
        Whether it ended by itself.

    Raises:
        NoSuchTarget: there is no such job.
        WrongState: it does not run.
        OsRefused: a task cannot be killed.
    """
    view = registry.look(name)
    if not view.is_alive:
        host = registry.moved_to(name)
        raise WrongState(
            subject=f"Job {name}",
            state=view.state,
            operation="stopping it",
            needed="running",
            remedy=f"It was moved to {host}." if host else "'ckpt ps' shows the state of all jobs.",
        )
    record = view.record
    ended = launch.stop(record.root, grace_s=grace_s, kill=_control(record).kill)
    remove_cgroups(record)
    return ended


def kill(record: JobRecord) -> None:
    """Kill everything of the job that runs; its cgroups stay.

    Raises:
        OsRefused: a task cannot be killed.
    """
    _control(record).kill()


def _control(record: JobRecord) -> Control:
    control = control_of(record.cgroup)
    if control is None:
        raise OsRefused(operation="end", subject=record.cgroup, reason="it has no freezer, or is gone")
    return control


def _network(registry: JobRegistry, command: Command, held: contextlib.ExitStack) -> int:
    """The namespace of the job's own network, as long as `held` lasts, joined; -1 for the host's."""
    if command.network is None:
        return -1
    built = build(command.network, host_link_of(registry.state, command.name), restored=False)
    held.callback(built.close)
    built.join()
    return built.namespace


def _logs(command: Command, directory: str) -> tuple[str, str]:
    """The files for stdout and stderr; those in the job's directory begin anew."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{directory}/{STDIN_POSITION}")
    if command.log:
        path = os.path.abspath(command.log)
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))
        except OSError as error:
            raise OsRefused(operation="write", subject=path, reason=error.strerror or str(error)) from error
        return path, path
    stdout, stderr = f"{directory}/{LOG}", f"{directory}/{ERRORS_LOG}"
    for path in (stdout, stderr):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    # Made now, so that whoever follows them finds them.
    for path in (stdout, stderr) if command.apart else (stdout,):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
    return stdout, stderr if command.apart else stdout


def _own_cgroup(name: str) -> str:
    hierarchy = cgroups.unified() or cgroups.freezer_v1()
    if hierarchy is None:
        raise FeatureMissing(
            feature="a cgroup freezer", remedy="Mount cgroup2, or the version-1 freezer hierarchy."
        )
    cgroup = f"{hierarchy.mountpoint}/{name}"
    pids = cgroups.processes_below(cgroup) if os.path.isdir(cgroup) else []
    if pids:
        raise WrongState(
            subject=f"The cgroup {cgroup}",
            state=f"in use by {len(pids)} process(es), the first is {pids[0]}",
            operation="a job of this name",
            needed="to be empty",
            remedy="End them, or choose another --name.",
        )
    try:
        cgroups.make(cgroup)
    except OSError as error:
        raise OsRefused(
            operation="make the cgroup", subject=cgroup, reason=error.strerror or str(error)
        ) from error
    return cgroup


def _with_limit(command: Command, cgroup: str) -> tuple[str, ...]:
    """The job's cgroup, and the one that limits its memory, where that is wanted and is another."""
    if command.memory_max is None:
        return (cgroup,)
    limited = make_memory_cgroup(cgroup_name(command.name), command.memory_max)
    return tuple(dict.fromkeys((cgroup, limited)))


def _record(command: Command, started: StartedJob, places: tuple[str, ...], log: str) -> JobRecord:
    process: ProcessRef = started.command or started.root
    return JobRecord(
        name=command.name,
        argv=command.argv,
        cwd=command.cwd,
        created=Nanoseconds(time.time_ns()),
        boot_id=boot_id(),
        cgroups=places,
        root=started.root,
        command=process,
        shim=started.shim,
        log=log,
        group=command.group,
        feeder=command.feeder,
        started_as=command.argv,
        host_mounts=shown_by_host(started.root.pid),
    )
