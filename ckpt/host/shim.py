"""The shim: the small process that stands above one running job, and outlives the command that started it.

It makes the job's namespaces, or lets CRIU restore into them; it is the reaper of all that runs in the job
(a subreaper), and writes down how the main process ended. One shim per job, about 9 MiB.

Started as `python -I -S -c …` with two file descriptors (launch.py is the other side):
  CONFIG   JSON, read once: see `Configuration`.
  CONTROL  a SEQPACKET socket, one JSON document a packet.

On CONTROL the shim says:
  {"event": "started", "shim": PID, "root": PID, "command": PID}
                                                         a job runs; root is its namespace's init
  {"event": "failed", "stage": …, "errno": N}            it does not; the shim has ended
  {"event": "ready", "shim": PID, "holder": PID}         a restore can begin
  {"event": "spawned", "pid": PID}                       the answer to "spawn"
  {"event": "ended", "pid": PID, "status": N}            a spawned process ended (a wait status)
  {"event": "committed", "root": PID}                    the answer to "commit"
and hears:
  {"op": "spawn", "argv": […], "root": DIRECTORY, "numbers": […]} + descriptors
                                            run this among the job's processes; it gets these descriptors under
                                            these numbers, and no others; unless DIRECTORY is "", it finds a
                                            private bind of "/" there, in a mount namespace of its own
  {"op": "terminal", "log": PATH} + the master of a pseudo-terminal
                                            keep it, and append to the log what is written to the terminal
                                            (under a lock on the log: see `_copy`)
  {"op": "kill", "pid": PID}                end a spawned process and all that it started
  {"op": "commit", "main": PID}             this is the main process; let the job live

Rules:
- Until "commit" the job belongs to the starter: when CONTROL ends without it, everything below the shim is
  killed, and nothing is recorded. After it, the job belongs to nobody, and CONTROL is closed.
- Only direct children, and what hangs below a stopped one, are ever signalled: their pids cannot be reused,
  since nobody but the shim, or a stopped process, could reap them.
- exit.json is durable (file and directory synced) before it appears, so whoever sees it may rely on it.
- Only what `-I -S` offers is imported, and ckpt.host.linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, NoReturn, TypedDict

from ckpt.host import linux

PACKET_BYTES_MAX = 64 * 1024
DESCRIPTORS_MAX = 250
"""SCM_MAX_FD is 253."""

ROLLBACK_TIMEOUT_S = 2.0
"""How long CRIU may take to undo a restore whose starter is gone; then it is killed with all the rest."""

_EXEC_ERRNO = struct.Struct("i")
_CREDENTIALS = struct.Struct("iii")
_DEVPTS_OPTIONS = "mode=620,gid=5,ptmxmode=666"
"""As Debian mounts it; 5 is the group tty, fixed in base-passwd."""

_TIOCGPTPEER = 0x5441
"""Gives a descriptor of the slave; asm-generic/ioctls.h, ioctl_tty(2)."""

_MOUNT_DEVPTS_FLAGS = linux.MS_NOSUID | linux.MS_NOEXEC
_MOUNT_PROC_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


class Stdio(TypedDict):
    """One of the job's first three descriptors: a path to open inside the job, or one that was inherited."""

    path: str
    flags: int
    fd: int


class Configuration(TypedDict):
    """What the starter wants. `argv` is empty where a restore is hosted.

    cgroup_procs: the files to which a process of the job writes itself before anything else.
    own_cgroup_procs: the same for the shim itself.
    exit_path: where the end of the main process is written down.
    init: the versioned path of ckpt-init; for a restore "" unless a new PID namespace is wanted.
    first_pid: for a restore with `init`: the first pid that CRIU itself takes inside, clear of the recorded
        ones; 0 leaves it to the kernel.
    hidden_mounts: where mounts of the host are that are not the job's to see, the newest first.
    terminal: whether the main process leads a session of its own, controlled by the terminal that is its first
        descriptor.
    network: the inherited descriptor of the network namespace that the job lives in; -1 leaves it in the host's.
    """

    name: str
    cgroup_procs: list[str]
    own_cgroup_procs: list[str]
    exit_path: str
    init: str
    first_pid: int
    argv: list[str]
    cwd: str
    umask: int
    environment: dict[str, str]
    stdio: list[Stdio]
    terminal: bool
    hidden_mounts: list[str]
    network: int


class StageError(Exception):
    """A stage of the start failed: its name, and the errno."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(stage, number)
        self.stage = stage
        self.number = number


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StageError(name, error.errno or 0) from error


def main(config_fd: int, control_fd: int) -> None:
    """Be the shim; returns in a process whose parent need not wait for it."""
    with os.fdopen(config_fd, "rb") as stream:
        configuration: Configuration = json.load(stream)
    # What must reach the job's programs is made inheritable one by one, just before exec.
    for fd in {control_fd, *_inherited(configuration)}:
        os.set_inheritable(fd, False)
    if os.fork():
        os._exit(0)
    Shim(configuration, socket.socket(fileno=control_fd)).run()


def _inherited(configuration: Configuration) -> set[int]:
    """The descriptors for the job that the configuration names."""
    named = {configuration["network"], *(stdio["fd"] for stdio in configuration["stdio"])}
    return {fd for fd in named if fd >= 0}


class Shim:
    """Which processes were spawned, which children ended and how, and which one is the main process."""

    def __init__(self, configuration: Configuration, control: socket.socket) -> None:
        self._configuration = configuration
        self._control: socket.socket | None = control
        self._committed = False
        self._spawned: set[int] = set()
        self._statuses: dict[int, int] = {}
        self._terminals: dict[int, str] = {}
        self._main = 0
        self._holder = 0
        self._hold_pipe = -1
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)

    def run(self) -> None:
        """Start or host the job, and stay until its last process has ended."""
        try:
            self._prepare()
            if self._configuration["argv"]:
                command = self._start_job()
                self._say({"event": "started", "shim": os.getpid(), "root": self._main, "command": command})
            else:
                self._hold_namespace()
                self._say({"event": "ready", "shim": os.getpid(), "holder": self._holder})
        except StageError as error:
            self._end_children()
            self._say({"event": "failed", "stage": error.stage, "errno": error.number})
            return
        self._attend()

    def _prepare(self) -> None:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        linux.set_process_name("ckpt-shim")
        linux.become_subreaper()
        _join(self._configuration["own_cgroup_procs"])

    def _start_job(self) -> int:
        """The command's pid, once its program really runs."""
        report, job_end = _report_pair()
        with _stage("make a PID namespace"):
            linux.unshare(linux.CLONE_NEWPID)
            self._main = os.fork()
        if self._main == 0:
            _become(job_end, lambda: _init_argv(self._configuration, job_end))
        job_end.close()
        # Also the network's: it must end with the last process of the job, not with the shim.
        for fd in _inherited(self._configuration):
            os.close(fd)
        with report:
            return _read_report(report)

    def _hold_namespace(self) -> None:
        """Make the PID namespace that a restore with new pids goes into, if one is wanted."""
        if not self._configuration["init"]:
            return
        pipe_end, self._hold_pipe = os.pipe()
        report, job_end = _report_pair()
        with _stage("make a PID namespace"):
            linux.unshare(linux.CLONE_NEWPID)
            self._holder = os.fork()
        if self._holder == 0:
            os.close(self._hold_pipe)
            _become(job_end, lambda: _holder_argv(self._configuration, pipe_end))
        job_end.close()
        os.close(pipe_end)
        with report:
            # It ends with exec, and by then the namespace has its /proc.
            packet = report.recv(PACKET_BYTES_MAX)
            if packet:
                raise _failure(packet)

    def _attend(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            if self._control:
                selector.register(self._control, selectors.EVENT_READ)
            self._selector = selector
            while self._reap() or self._control:
                for key, _events in selector.select():
                    if key.fileobj is self._wakeup:
                        with contextlib.suppress(BlockingIOError):
                            self._wakeup.recv(4096)
                    elif key.fileobj is not self._control:
                        self._copy(key.fd)
                    elif not self._hear():
                        selector.unregister(key.fileobj)
                        self._leave_starter()
            self._copy_all()

    def _reap(self) -> bool:
        """Take every ended child; false when no child is left, neither ended nor running."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self._spawned:
                self._spawned.discard(pid)
                self._say({"event": "ended", "pid": pid, "status": status})
            elif not self._committed:
                self._statuses[pid] = status
            elif pid == self._main:
                # Whoever sees the end may rely on the log as well.
                self._copy_all()
                write_exit(self._configuration["exit_path"], pid, status)

    def _hear(self) -> bool:
        """Take one request; false when the starter is done with us, or gone."""
        assert self._control
        try:
            packet, descriptors, _flags, _address = socket.recv_fds(
                self._control, PACKET_BYTES_MAX, DESCRIPTORS_MAX
            )
        except ConnectionError:
            return False
        if not packet:
            return False
        for fd in descriptors:
            os.set_inheritable(fd, False)
        request = json.loads(packet)
        if request["op"] == "spawn":
            wanted = dict(zip(request["numbers"], descriptors, strict=True))
            self._spawn(request["argv"], request["root"], wanted)
        elif request["op"] == "terminal":
            self._keep_terminal(descriptors.pop(), request["log"])
        elif request["op"] == "commit":
            self._commit(request["main"])
        elif request["op"] == "kill" and request["pid"] in self._spawned:
            _kill_tree(request["pid"])
        for fd in descriptors:
            os.close(fd)
        return not self._committed

    def _spawn(self, argv: list[str], root: str, descriptors: dict[int, int]) -> None:
        pid = os.fork()
        if pid == 0:
            _run_spawned(self._configuration, argv, descriptors, holder=self._holder, root=root)
        self._spawned.add(pid)
        self._say({"event": "spawned", "pid": pid})

    def _keep_terminal(self, master: int, log: str) -> None:
        os.set_blocking(master, False)
        # Held until we end: a job that has closed the terminal may open it again as /dev/tty, and a master that is
        # closed before would hang up its session.
        fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self._terminals[master] = log
        self._selector.register(master, selectors.EVENT_READ)

    def _copy_all(self) -> None:
        for master in list(self._terminals):
            while self._copy(master):
                pass

    def _copy(self, master: int) -> bool:
        """Append to the log what waits at the master; false if nothing does, or the terminal is over.

        The log is locked before anything is taken: whoever finds nothing at the master while the log is not locked
        knows that all is in the log.
        """
        try:
            fd = os.open(
                self._terminals[master], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640
            )
        except OSError:  # its place was removed: there is no log any more, and the job must not wait for us
            fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.read(master, 64 * 1024)
            # A log that cannot be written costs the output, and not the job.
            with contextlib.suppress(OSError):
                while text:
                    text = text[os.write(fd, text) :]
        except BlockingIOError:
            return False
        except OSError:  # EIO: hung up
            self._selector.unregister(master)
            del self._terminals[master]
            os.close(master)
            return False
        finally:
            os.close(fd)
        return True

    def _commit(self, main: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._configuration["exit_path"])
        if self._holder:
            os.write(self._hold_pipe, b"%d\n" % _pid_inside(main))
            os.close(self._hold_pipe)
            main = self._holder
        self._main = main
        self._committed = True
        self._say({"event": "committed", "root": main})

    def _leave_starter(self) -> None:
        """CONTROL is over: with a commit the job lives on, without one nothing of it may stay."""
        assert self._control
        if not self._committed:
            # The starter takes the end of CONTROL for the end of all that it began.
            self._end_children()
        self._control.close()
        self._control = None
        if self._committed and self._main in self._statuses:
            write_exit(self._configuration["exit_path"], self._main, self._statuses[self._main])

    def _say(self, event: dict[str, object]) -> None:
        if self._control:
            with contextlib.suppress(ConnectionError):
                self._control.send(json.dumps(event).encode())

    def _end_children(self) -> None:
        """Kill everything below this process, and wait until it is gone.

        CRIU comes first and alone: it has lost its socket, and undoes what only it knows (network locks).
        """
        deadline = time.monotonic() + ROLLBACK_TIMEOUT_S
        while self._spawned and self._reap() and time.monotonic() < deadline:
            # The wakeup socket tells of each SIGCHLD; the timeout is for the deadline alone.
            with selectors.DefaultSelector() as selector:
                selector.register(self._wakeup, selectors.EVENT_READ)
                selector.select(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
        # Grandchildren become children as their parents die: this ends with the last generation.
        while children := _children():
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            for pid in children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            self._spawned.difference_update(children)


def write_exit(path: str, pid: int, status: int) -> None:
    """Write down, durably, how a process ended: its exit code or its signal, and when (CLOCK_REALTIME)."""
    exited = os.WIFEXITED(status)
    record = {
        "pid": pid,
        "shim": os.getpid(),
        "code": os.WEXITSTATUS(status) if exited else None,
        "signal": None if exited else os.WTERMSIG(status),
        "when_ns": time.time_ns(),
    }
    new = f"{path}.new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, json.dumps(record).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    # rename(2) is atomic but not durable: the new name survives a crash only after fsync(2) on its directory.
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _children() -> list[int]:
    # CRIU needs CONFIG_PROC_CHILDREN as well, so the file is there.
    with open("/proc/thread-self/children", encoding="ascii") as stream:
        return [int(pid) for pid in stream.read().split()]


def _kill_tree(root: int) -> None:
    """Kill a child of ours and all its descendants; those of other children are not touched."""
    stopped: list[int] = []
    found = [root]
    while found:
        # What is stopped neither forks nor reaps: when a look finds nobody new, the list is complete.
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped += found
        known = set(stopped)
        found = [pid for parent in stopped for pid in _children_of(parent) if pid not in known]
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children_of(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as stream:
                children += map(int, stream.read().split())
    return children


def _pid_inside(pid: int) -> int:
    """The pid's number in the namespace below ours; a zombie still has one."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("NSpid:"):
                return int(line.split()[2])
    raise ProcessLookupError(pid)


def _join(cgroup_procs: list[str]) -> None:
    for path in cgroup_procs:
        with _stage(f"join {os.path.dirname(path)}"):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)


# ---------------------------------------------------------------------------- in the job's own processes


def _report_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def _read_report(report: socket.socket) -> int:
    """The command's pid as we see it, when its exec succeeded (the report ends)."""
    command = 0
    while True:
        packet, ancillary, _flags, _address = report.recvmsg(PACKET_BYTES_MAX, socket.CMSG_SPACE(64))
        if not packet:
            break
        if packet[:1] == b"S" and len(packet) == 1:
            for _level, kind, content in ancillary:
                if kind == socket.SCM_CREDENTIALS:
                    command = _CREDENTIALS.unpack_from(content)[0]
        elif len(packet) == _EXEC_ERRNO.size:
            raise StageError("execute", _EXEC_ERRNO.unpack(packet)[0])
        else:
            raise _failure(packet)
    if not command:
        stage = "start ckpt-init"
        raise StageError(stage, 0)
    return command


def _failure(packet: bytes) -> StageError:
    document = json.loads(packet)
    return StageError(document["stage"], document["errno"])


def _become(report: socket.socket, prepare: Any) -> NoReturn:
    """In a fresh child: prepare, and execute what that returns; tell the report what failed."""
    try:
        argv, environment = prepare()
        _reset_signals()
        with _stage("execute ckpt-init"):
            os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is wanted
    except StageError as error:
        report.send(json.dumps({"stage": error.stage, "errno": error.number}).encode())
    finally:
        os._exit(1)


def _init_argv(configuration: Configuration, report: socket.socket) -> tuple[list[str], dict[str, str]]:
    # In the cgroup before anything is allocated or forked for the job: no page and no task escapes it.
    _join(configuration["cgroup_procs"])
    if configuration["network"] >= 0:
        with _stage("enter the job's network"):
            linux.setns(configuration["network"], linux.CLONE_NEWNET)
    with _stage("make the job's namespaces"):
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC)
    _mount_own(configuration["hidden_mounts"])
    with _stage(f"enter {configuration['cwd']}"):
        os.chdir(configuration["cwd"])
    os.umask(configuration["umask"])
    _set_stdio(configuration["stdio"])
    report.set_inheritable(True)
    terminal = ["--terminal"] if configuration["terminal"] else []
    options = ["--report", str(report.fileno()), *terminal]
    argv = [configuration["init"], *options, "--", *configuration["argv"]]
    return argv, configuration["environment"]


def _holder_argv(configuration: Configuration, pipe_end: int) -> tuple[list[str], dict[str, str]]:
    _join(configuration["cgroup_procs"])
    with _stage("make a mount namespace"):
        linux.unshare(linux.CLONE_NEWNS)
    _mount_own(configuration["hidden_mounts"])
    if configuration["first_pid"]:
        with (
            _stage("choose CRIU's pids"),
            open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as stream,
        ):
            stream.write(str(configuration["first_pid"] - 1))
    os.chdir("/")
    os.set_inheritable(pipe_end, True)
    return [configuration["init"], "--hold", str(pipe_end)], dict(os.environ)


def _mount_own(hidden: list[str]) -> None:
    """Give the namespaces the two file systems that must be their own, and hide what is not theirs.

    /proc shows the PID namespace that it was mounted in. And a terminal inside must get its number back at
    the restore: in the host's /dev/pts somebody has it by then (CRIU: "Unable to open dev/ptmx with specified
    index 0"). /dev/ptmx needs nothing: it opens what is mounted at "pts" beside it (devpts_mntget()).
    """
    with _stage("mount the job's /proc"):
        linux.make_mounts_private()
        _mount_instead("proc", "/proc", _MOUNT_PROC_FLAGS, "")
    if os.path.ismount("/dev/pts"):
        with _stage("mount the job's /dev/pts"):
            _mount_instead("devpts", "/dev/pts", _MOUNT_DEVPTS_FLAGS, _DEVPTS_OPTIONS)
    with _stage("hide the volumes of others"):
        for place in hidden:
            if os.path.ismount(place):  # it may have gone meanwhile
                linux.umount(place, flags=linux.MNT_DETACH)


def _mount_instead(filesystem: str, place: str, flags: int, options: str) -> None:
    # What stays below a mount, unseen, CRIU would dump and restore all the same.
    while os.path.ismount(place):
        linux.umount(place, flags=linux.MNT_DETACH)
    linux.mount(filesystem, place, filesystem, flags=flags, options=options)


def _set_stdio(stdio: list[Stdio]) -> None:
    """Open the first three descriptors inside the job's mount namespace.

    CRIU cannot dump a file that was opened in another mount namespace ("Can't lookup mount=24 for fd=0"):
    whatever has a path is opened again by it. Pipes and sockets live in no mount namespace, and terminals are
    named to CRIU by their numbers (`external`): they are kept.
    """
    opened = []
    for wanted in stdio:
        path, flags, position = wanted["path"], wanted["flags"], 0
        if not path:
            target = os.readlink(f"/proc/self/fd/{wanted['fd']}")
            if not target.startswith("/") or os.isatty(wanted["fd"]):
                opened.append(os.dup(wanted["fd"]))
                continue
            with open(f"/proc/self/fdinfo/{wanted['fd']}", encoding="ascii") as stream:
                fields = dict(line.split(":", 1) for line in stream)
            path, flags = target, int(fields["flags"], 8) & (os.O_ACCMODE | os.O_APPEND)
            position = int(fields["pos"])
        with _stage(f"open {path}"):
            opened.append(os.open(path, flags | os.O_NOCTTY, 0o640))
        if position:
            with _stage(f"find the place in {path}"):
                os.lseek(opened[-1], position, os.SEEK_SET)
    # First out of the way, then into place: one of them may stand where another belongs.
    high = [_dup_above(fd, 10) for fd in opened]
    for number, fd in enumerate(high):
        os.dup2(fd, number)


def _dup_above(fd: int, least: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def _reset_signals() -> None:
    """Undo what Python and the shim changed: a program expects the defaults, and an empty mask."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):  # glibc keeps two real-time signals to itself
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _run_spawned(
    configuration: Configuration, argv: list[str], descriptors: dict[int, int], *, holder: int, root: str
) -> NoReturn:
    """In a fresh child: into the cgroup and the mounts, and execute; failures go to stderr, status 126."""
    try:
        # Above all wanted numbers first: one of them may stand where another belongs.
        above = max((2, *descriptors)) + 1
        high = {number: _dup_above(fd, above) for number, fd in descriptors.items()}
        _join(configuration["cgroup_procs"])
        if holder:
            namespace = os.open(f"/proc/{holder}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            linux.setns(_dup_above(namespace, above), linux.CLONE_NEWNS)
        if root:
            _bind_root(root)
        for number, fd in high.items():
            os.dup2(fd, number)
        _reset_signals()
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
    except (OSError, StageError) as error:
        os.write(2, f"ckpt-shim: cannot run {argv[0]}: {error}\n".encode())
    finally:
        os._exit(126)


def _bind_root(root: str) -> None:
    """In a mount namespace of our own, which ends with us, bind "/" to `root`, private.

    CRIU makes the root of a restored mount namespace from it, and crashes if it is no private mount
    (criu/mount.c:48).
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.make_mounts_private()
    linux.mount("/", root, flags=linux.MS_BIND)
    linux.mount("none", root, flags=linux.MS_PRIVATE)
