"""Start jobs, host restores, and see jobs end: the starter's side of the shim.

Rules:
- What starts here lives on when this process ends, but only from the moment when it is registered: until
  then, an error or a kill -9 of this process takes it away again (see shim.py).
- A process is a pid and its start time; a pid alone may be somebody else by now.
- Waiting is on file descriptors (pidfd, inotify), never by looking again and again.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckpt.errors import CommandFailed, OsRefused
from ckpt.host import shim
from ckpt.host.criu.launch import Launch, Launcher
from ckpt.host.outside import (
    JobTerminal,
    Joined,
    is_by_its_own_name,
    is_terminal,
    open_substitute,
    standard_input,
)
from ckpt.host.process_table import ProcessRef, is_alive, process_ref
from ckpt.model.workload import OutsideFile, OutsideKind
from ckpt.units import Nanoseconds, Pid

INIT_PLACE = "/opt/ckpt/libexec/ckpt-init"
"""A link to the newest ckpt-init. Always its target is executed, whose name carries the source's digest:
images refer to the executable by its path."""

NOT_FOUND, NOT_EXECUTABLE = 127, 126


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended: with an exit code, or by a signal; `when` is on CLOCK_REALTIME."""

    pid: Pid
    code: int | None
    signal: int | None
    when: Nanoseconds

    @property
    def shell_code(self) -> int:
        """The code that a shell would give: 128 + the signal for one that was killed."""
        return self.code if self.code is not None else 128 + (self.signal or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """One of a job's standard streams: a file by its path, or a descriptor of this process.

    A descriptor of a pipe, socket or terminal is handed on as it is; one of anything else is opened anew by its path
    inside the job, with its access mode and at its position.
    """

    path: str = ""
    flags: int = os.O_RDONLY
    fd: int = -1

    @classmethod
    def null(cls) -> Self:
        """Nothing to read, and what is written is dropped."""
        return cls(path=os.devnull, flags=os.O_RDWR)

    @classmethod
    def log(cls, path: str) -> Self:
        """Append to the file; it is made if it is missing.

        O_WRONLY | O_APPEND exempts it from CRIU's check of sizes: the log may grow between dump and restore.
        """
        return cls(path=os.path.abspath(path), flags=os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @classmethod
    def inherit(cls, fd: int) -> Self:
        """What `fd` of this process refers to."""
        return cls(fd=fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What to start, and where.

    `cgroup_procs`: the cgroup.procs files that the job's first process joins, version 2 and version 1.
    `shim_cgroup_procs`: the same for the shim; empty leaves it in this process's cgroups.
    `exit_path`: the file that will say how the job ended, in a directory that exists; the shim's own
    complaints go to shim.log beside it. `hidden_mounts`: mounts that the job does not see, the newest first.
    `network` is a descriptor of the network namespace that it lives in; -1 for the host's. With a `terminal` that is its
    controlling terminal and the three standard streams; what it writes there goes to the end of `terminal_log`.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    exit_path: str
    cgroup_procs: tuple[str, ...]
    shim_cgroup_procs: tuple[str, ...] = ()
    umask: int = 0o022
    stdin: Stdio = Stdio(path=os.devnull)
    stdout: Stdio = Stdio(path=os.devnull, flags=os.O_RDWR)
    stderr: Stdio = Stdio(path=os.devnull, flags=os.O_RDWR)
    hidden_mounts: tuple[str, ...] = ()
    network: int = -1
    terminal: JobTerminal | None = None
    terminal_log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedJob:
    """A job that runs: its shim, the init of its namespace (what CRIU dumps), and the command itself."""

    shim: ProcessRef
    root: ProcessRef
    command: ProcessRef | None


def init_path() -> str:
    """The versioned path of ckpt-init.

    Raises:
        OsRefused: it was not built.
    """
    path = os.path.realpath(INIT_PLACE)
    if not os.access(path, os.X_OK):
        raise OsRefused(
            operation="execute", subject=INIT_PLACE, reason="it is missing", remedy="Run scripts/setup."
        )
    return path


def start_job(spec: JobSpec, *, register: Callable[[StartedJob], None]) -> StartedJob:
    """Start the command under its init and its shim, and give it a durable place before it is let go.

    Args:
        spec: What to start.
        register: Called once the command's program runs; when it returns, the job no longer depends on this
            process. If it raises, the job is killed.

    Raises:
        CommandFailed: the command cannot be executed: status 127 if it does not exist, else 126.
        OsRefused: its namespaces, cgroups or files could not be set up; names what failed.
    """
    with _Shim(_configuration(spec)) as process:
        shim_ref, event = process.meet("started", command=spec.argv[0])
        root, command = process_ref(event["root"]), process_ref(event["command"])
        # A command that has ended by now leaves only zombies; the shim still knows its status.
        job = StartedJob(
            shim=shim_ref,
            root=root or ProcessRef(pid=Pid(event["root"]), start_ticks=0),
            command=command,
        )
        if spec.terminal is not None:
            process.keep_terminal(spec.terminal.master, spec.terminal_log)
        register(job)
        process.commit(job.root.pid)
        return job


class SpawnedChild:
    """A process that the shim runs for us. Fits ckpt.host.criu.launch.Child."""

    def __init__(self, process: _Shim, pid: Pid) -> None:
        self._process = process
        self.pid = pid

    def kill(self) -> None:
        """End it, and everything that it has started and not yet handed over; harmless if it has ended."""
        if self._process.is_open:
            self._process.send({"op": "kill", "pid": self.pid})

    def wait(self, timeout: Nanoseconds) -> int | None:
        """Its exit status (negative: the signal), or None if it still runs after `timeout`."""
        status = self._process.status_of(self.pid, timeout)
        return None if status is None else os.waitstatus_to_exitcode(status)


class RestoreHost:
    """The parent-to-be of what CRIU restores.

    A context manager: without commit(), leaving it kills everything that was restored. So does the end of
    this process.
    """

    def __init__(
        self,
        *,
        name: str,
        exit_path: str,
        cgroup_procs: Sequence[str],
        shim_cgroup_procs: Sequence[str] = (),
        new_pids: bool = False,
        first_pid: int = 0,
    ) -> None:
        """Start the shim and wait until it is ready.

        Args:
            name: For messages and logs.
            exit_path: See JobSpec.
            cgroup_procs: The cgroup.procs files that CRIU, and with it what it restores, joins. CRIU must be
                told to leave cgroups alone (manage_cgroups IGNORE).
            shim_cgroup_procs: See JobSpec.
            new_pids: Restore into a new PID namespace; for trees that were dumped from the host's. A tree that
                has its own gets another one anyway, and must not be nested: CRIU could not dump it again.
            first_pid: With new_pids, the first pid that CRIU takes for itself there.

        Raises:
            OsRefused: a namespace or cgroup could not be set up.
        """
        configuration = _blank(name, exit_path, cgroup_procs, shim_cgroup_procs)
        configuration["first_pid"] = first_pid
        if new_pids:
            configuration["init"] = init_path()
        self._process = _Shim(configuration)
        try:
            self._shim, event = self._process.meet("ready")
            self._holder: int | None = event["holder"] or None
        except BaseException:
            self._process.close()
            raise

    @property
    def shim(self) -> ProcessRef:
        """The shim, which will be the parent of what is restored."""
        return self._shim

    @property
    def holder(self) -> ProcessRef | None:
        """With new_pids, the init of the new namespace: its end is the job's end. Else None."""
        return None if self._holder is None else process_ref(self._holder)

    def spawn(
        self, argv: Sequence[str], descriptors: Mapping[int, int], *, private_root: str = ""
    ) -> SpawnedChild:
        """Run a program where the job will be.

        Args:
            argv: The program, looked up in PATH, and its arguments.
            descriptors: Its descriptors: from the number that it sees to the one of this process.
            private_root: See launcher().

        Raises:
            OsRefused: the shim has ended.
        """
        self._process.send(
            {"op": "spawn", "argv": list(argv), "root": private_root, "numbers": list(descriptors)},
            list(descriptors.values()),
        )
        return SpawnedChild(self._process, Pid(self._process.expect("spawned")["pid"]))

    def launcher(self, *, private_root: str = "") -> Launcher:
        """What ckpt.host.criu starts CRIU with, so that it runs where the job will be.

        Args:
            private_root: An empty directory on which CRIU finds a private bind of "/", for its option `root`:
                for a tree with a mount namespace of its own. "" leaves CRIU in the mount namespace into which
                it restores any other tree.
        """

        def launch(what: Launch) -> SpawnedChild:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                descriptors = {0: null, 1: null, 2: what.errors_fd}
                descriptors |= {fd: fd for fd in (what.channel_fd, *what.kept_fds)}
                return self.spawn(what.command, descriptors, private_root=private_root)
            finally:
                os.close(null)

        return launch

    def substitutes(self, files: Sequence[OutsideFile], *, log: str, joined: Joined) -> tuple[int, ...]:
        """Descriptors that CRIU can inherit in place of pipes and terminals from outside; the caller closes them.

        What the workload writes goes to the end of the file `log`, which is made if it is missing; what it
        reads from a pipe is at its end, and from a terminal never comes. CRIU insists on a terminal for a
        terminal ("Can't set tty params"): it gets a new one, whose other side the shim keeps. With what is `joined` the
        standard input, and the first terminal, are that.

        Raises:
            OsRefused: the shim has ended.
        """
        made: dict[str, int] = {}
        try:
            fed = standard_input(files) if joined.stdin >= 0 else None
            for file in sorted(files, key=is_by_its_own_name):
                if file.kind is OutsideKind.PIPE:
                    made[file.key] = os.dup(joined.stdin) if file == fed else open_substitute(file, log=log)
                    continue
                terminals = [made[each.key] for each in files if each.key in made and is_terminal(each)]
                if terminals and is_by_its_own_name(file):
                    made[file.key] = os.dup(terminals[0])
                elif joined.terminal is not None and not terminals:
                    self._process.keep_terminal(joined.terminal.master, log)
                    made[file.key] = os.dup(joined.terminal.slave)
                else:
                    made[file.key] = self._new_terminal(log)
        except BaseException:
            for fd in made.values():
                os.close(fd)
            raise
        return tuple(made[file.key] for file in files)

    def _new_terminal(self, log: str) -> int:
        master, slave = os.openpty()
        try:
            self._process.keep_terminal(master, log)
        except BaseException:
            os.close(slave)
            raise
        finally:
            os.close(master)
        return slave

    def pid_on_host(self, pid: Pid) -> Pid | None:
        """The host's pid of what CRIU, in its PID namespace, calls `pid`; None if there is no such process."""
        return pid if self._holder is None else _find_inside(self._holder, pid)

    def commit(self, main: Pid) -> ProcessRef:
        """Let what was restored live without us; its main process's end will be recorded.

        Returns:
            The process whose end is the job's end: `main`, or with new_pids the init of its namespace.
        """
        root = Pid(self._process.commit(main))
        return process_ref(root) or ProcessRef(pid=root, start_ticks=0)

    def abort(self) -> None:
        """Kill everything that was restored and wait until it is gone; safe to repeat, or after commit()."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


def send_signal(process: ProcessRef, number: int) -> bool:
    """Send a signal to this very process; false if it has ended."""
    fd = open_pidfd(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def wait_ended(process: ProcessRef, timeout_s: float | None = None) -> bool:
    """Wait until this very process has ended; false if it has not in time."""
    fd = open_pidfd(process)
    if fd is None:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
    finally:
        os.close(fd)


def stop(root: ProcessRef, *, grace_s: float, kill: Callable[[], None]) -> bool:
    """End a job: SIGTERM, and after the grace period `kill`, which must kill all of its cgroup.

    Returns:
        Whether it ended by itself.
    """
    send_signal(root, signal.SIGTERM)
    # A stopped process takes no SIGTERM; to one that runs, SIGCONT says nothing.
    send_signal(root, signal.SIGCONT)
    ended = wait_ended(root, grace_s)
    kill()
    wait_ended(root)
    return ended


def open_pidfd(process: ProcessRef) -> int | None:
    """A pidfd of this very process, which the caller closes; None if it has ended."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Only now can the pid no longer change hands, so only now is its start time worth a look.
    if is_alive(process):
        return fd
    os.close(fd)
    return None


def _find_inside(holder: int, pid: Pid) -> Pid | None:
    namespace = os.stat(f"/proc/{holder}/ns/pid").st_ino
    wanted = str(pid)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as stream:
                numbers = next((line.split()[1:] for line in stream if line.startswith("NSpid:")), [])
            # The cheap question first: nearly every process answers it with no.
            if numbers[1:] == [wanted] and os.stat(f"/proc/{name}/ns/pid").st_ino == namespace:
                return Pid(int(name))
        except OSError:
            continue
    return None


def _blank(
    name: str, exit_path: str, cgroup_procs: Sequence[str], shim_cgroup_procs: Sequence[str]
) -> shim.Configuration:
    return {
        "name": name,
        "cgroup_procs": list(cgroup_procs),
        "own_cgroup_procs": list(shim_cgroup_procs),
        "exit_path": os.path.abspath(exit_path),
        "init": "",
        "first_pid": 0,
        "argv": [],
        "cwd": "/",
        "umask": 0o022,
        "environment": {},
        "stdio": [],
        "terminal": False,
        "hidden_mounts": [],
        "network": -1,
    }


def _configuration(spec: JobSpec) -> shim.Configuration:
    configuration = _blank(spec.name, spec.exit_path, spec.cgroup_procs, spec.shim_cgroup_procs)
    configuration["init"] = init_path()
    configuration["argv"] = list(spec.argv)
    configuration["cwd"] = spec.cwd
    configuration["umask"] = spec.umask
    configuration["environment"] = dict(spec.environment)
    configuration["stdio"] = [
        {"path": stdio.path, "flags": stdio.flags, "fd": stdio.fd} for stdio in _streams(spec)
    ]
    configuration["terminal"] = spec.terminal is not None
    configuration["hidden_mounts"] = list(spec.hidden_mounts)
    configuration["network"] = spec.network
    return configuration


def _streams(spec: JobSpec) -> tuple[Stdio, Stdio, Stdio]:
    if spec.terminal is None:
        return spec.stdin, spec.stdout, spec.stderr
    slave = Stdio.inherit(spec.terminal.slave)
    return slave, slave, slave


class _Shim:
    """A shim that has not been committed yet, and the socket to it."""

    def __init__(self, configuration: shim.Configuration) -> None:
        self._name = configuration["name"]
        self._statuses: dict[int, int] = {}
        self._log_path = os.path.join(os.path.dirname(configuration["exit_path"]), "shim.log")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        passed = [theirs.fileno(), *(stdio["fd"] for stdio in configuration["stdio"] if stdio["fd"] >= 0)]
        passed += [configuration["network"]] if configuration["network"] >= 0 else []
        config = os.memfd_create("ckpt-shim-configuration")
        log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            os.write(config, json.dumps(configuration).encode())
            os.lseek(config, 0, os.SEEK_SET)
            # -I -S keep the environment and the virtual environment out; the package is all it needs.
            program = (
                f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
                f"from ckpt.host import shim; shim.main({config}, {theirs.fileno()})"
            )
            first = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                pass_fds=(config, *passed),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(config)
            os.close(log)
        first.wait()

    def meet(self, event: str, *, command: str = "") -> tuple[ProcessRef, dict[str, Any]]:
        """Wait for the shim's first word: the shim itself, and what it said."""
        document = self.expect(event, command=command)
        ref = process_ref(document["shim"])
        if ref is None:
            raise self._gone()
        return ref, document

    @property
    def is_open(self) -> bool:
        return self._control.fileno() >= 0

    def send(self, document: dict[str, object], descriptors: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(document).encode()], list(descriptors))
        except OSError as error:
            raise self._gone() from error

    def expect(self, event: str, *, command: str = "") -> dict[str, Any]:
        """The next packet of this kind; the ends of spawned processes that come before it are kept."""
        while True:
            document = self._receive(None)
            assert document is not None
            if document["event"] == event:
                return document
            if document["event"] == "failed":
                raise _refused(document["stage"], document["errno"], command or self._name)

    def status_of(self, pid: Pid, timeout: Nanoseconds) -> int | None:
        deadline = time.monotonic_ns() + timeout
        if not self.is_open:
            # The shim has let go of it (commit), or killed it with all the rest.
            return self._statuses.get(pid, signal.SIGKILL)
        while pid not in self._statuses:
            if self._receive(Nanoseconds(max(0, deadline - time.monotonic_ns()))) is None:
                return None
        return self._statuses[pid]

    def keep_terminal(self, master: int, log: str) -> None:
        self.send({"op": "terminal", "log": os.path.abspath(log)}, [master])

    def commit(self, main: Pid) -> int:
        self.send({"op": "commit", "main": main})
        root: int = self.expect("committed")["root"]
        return root

    def close(self) -> None:
        """Let the shim go; if it was not committed, wait until it has taken everything with it."""
        if not self.is_open:
            return
        self._control.shutdown(socket.SHUT_WR)
        # It ends its side when it is committed, or when nothing is left below it.
        while self._control.recv(shim.PACKET_BYTES_MAX):
            pass
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self, timeout: Nanoseconds | None) -> dict[str, Any] | None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout / 1e6):
            return None
        try:
            packet = self._control.recv(shim.PACKET_BYTES_MAX)
        except ConnectionError as error:
            raise self._gone() from error
        if not packet:
            raise self._gone()
        document: dict[str, Any] = json.loads(packet)
        if document["event"] == "ended":
            self._statuses[document["pid"]] = document["status"]
        return document

    def _gone(self) -> OsRefused:
        return OsRefused(
            operation="talk to",
            subject=f"the shim of {self._name}",
            reason="it has ended",
            remedy=f"See {self._log_path}.",
        )


def _refused(stage: str, number: int, command: str) -> CommandFailed | OsRefused:
    reason = os.strerror(number) if number else "its process ended"
    if stage == "execute":
        return CommandFailed(
            command=command,
            status=NOT_FOUND if number == errno.ENOENT else NOT_EXECUTABLE,
            output=reason,
        )
    operation, _, subject = stage.partition(" ")
    return OsRefused(operation=operation, subject=subject, reason=reason)
