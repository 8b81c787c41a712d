"""CRIU as the port `Dumper`: starts it before the freeze, and knows what belongs to an image set.

Rules:
- CRIU always gets the frozen cgroup's path: without it CRIU hangs on a frozen task, and ending it then
  destroys the task (see host/criu/engine.py).
- Every CRIU is noted in the operation's journal while it lives.
- A CRIU that has to be killed is killed by criu_killing.py, whoever decides it: the workload keeps its
  connections, and is frozen afterwards; the flow thaws it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckpt.errors import CriuError, NoSpace
from ckpt.host import live_waits, mounts, outside
from ckpt.host.carried import carry
from ckpt.host.connection_locks import lock_of
from ckpt.host.criu import engine, kdat
from ckpt.host.criu.addresses import page_addresses
from ckpt.host.criu.channel import END_TIMEOUT
from ckpt.host.criu.complete import check_complete
from ckpt.host.criu.launch import Child, Launcher, launch_child
from ckpt.host.criu.request import DumpRequest
from ckpt.host.criu.timens import write_instant
from ckpt.host.criu.timers import pending_timers, rewind_timers
from ckpt.host.criu.worker import Hooks, Notice, Worker
from ckpt.host.criu_killing import kill_criu
from ckpt.host.inodes.fuse.living import launcher_for
from ckpt.host.inspection.inspector import as_host_view
from ckpt.host.jobs import JobRegistry
from ckpt.host.kept_log import DUMP_LOG, keeping_log
from ckpt.host.network import reading
from ckpt.host.operations import JournaledOperation
from ckpt.host.posix_timers import PosixEnds, ends_in
from ckpt.model.checkpoint import AddressRun, CarriedFile, DumpOptions, DumpStatistics
from ckpt.model.clocks import ClockTarget, PendingTimer
from ckpt.model.network import Network
from ckpt.model.workload import ExternalMount, OutsideFile, Tree
from ckpt.units import MILLISECOND, Nanoseconds, Pid

CRIU_GRACE: Final = Nanoseconds(300 * MILLISECOND)
"""For a dump that was given up: CRIU notices at its next notification, and rolls back by itself."""

_IMAGE_SUFFIX: Final = ".img"
_NO_SPACE: Final = "No space left on device"
_NOTHING: Final = 64 * 1024
"""With fewer bytes left than this a file system is full: CRIU's smallest image sets take more."""


class CriuDumper:
    """Dumps trees with CRIU. Fits the port `Dumper`."""

    def __init__(self, criu: Path, state: str) -> None:
        """Use the CRIU at this path, and keep its cache of kernel features in the directory `state`."""
        self._criu = criu
        self._state = Path(state)

    def start(self, operation: object, tree: Tree, *, lazy: bool = False) -> CriuTreeDump:
        """Start CRIU, so that its start-up is paid before the freeze.

        Args:
            operation: One that JournaledOperations began (an `object`, as a port's adapter must take any).
            tree: The tree that it is meant for.
            lazy: Leave private anonymous memory in the tasks; the images do not have it.

        Raises:
            OsRefused: CRIU could not be started.
        """
        if not isinstance(operation, JournaledOperation):
            raise TypeError(operation)
        launcher: Launcher = launch_child
        # Only a task with mounts of its own may be dumped from another mount namespace (decision 3).
        if tree.owns("mnt") and kdat.is_useful():
            launcher = kdat.KernelCache(directory=self._state).launcher(self._criu, launch_child)
        elif not tree.owns("mnt"):
            launcher = launcher_for(tree.root, launcher)
        at_work = _AtWork(log=f"{operation.staging}/{tree.root}/dump.log")
        # The pages are served by ourselves, out of the tasks, as long as CRIU waits in its post-dump hook: then it
        # finds that nobody asks any more.
        unserved = [_end_without_peer()] if lazy else []
        try:
            with keeping_log(operation.kept(DUMP_LOG)):
                worker = Worker.start(
                    self._criu, launcher=at_work.launched_by(launcher), kept_fds=tuple(unserved)
                )
        finally:
            for fd in unserved:
                os.close(fd)
        lazy_socket = unserved[0] if lazy else None
        return CriuTreeDump(
            worker, operation, tree, at_work, reading.networks_of((tree,)), lazy_socket=lazy_socket
        )

    def external_mounts(self, tree: Tree) -> tuple[ExternalMount, ...]:
        """The mounts of a tree with its own mount namespace that are taken from the host at restore."""
        if not tree.owns("mnt"):
            return ()
        begun_with = JobRegistry(str(self._state)).host_mounts_of(tree.root)
        return mounts.external_mounts(tree.root, [process.pid for process in tree.processes], begun_with)

    def outside_files(self, trees: tuple[Tree, ...]) -> tuple[OutsideFile, ...]:
        """Pipes and terminals that the workload shares with processes outside."""
        return outside.outside_files([process.pid for tree in trees for process in tree.processes])

    def networks(self, trees: tuple[Tree, ...]) -> tuple[Network, ...]:
        """The networks of jobs' own that the trees live in; of any other CRIU takes care.

        Raises:
            CommandFailed, FeatureMissing: ip does not tell.
        """
        return reading.networks_of(trees)

    def connection_lock(self, images: str) -> str:
        """The name of the lock that keeps the connections of what CRIU has killed, until it is restored."""
        return lock_of(images)

    def carry(self, images: str, staging: str, view: object) -> tuple[tuple[CarriedFile, str], ...]:
        """Copy what CRIU will not keep into `staging`, in the `stopped` call."""
        return carry(images, staging, as_host_view(view))

    def image_files(self, images: str) -> tuple[str, ...]:
        """The names of the files that belong to the image set, sorted.

        Raises:
            RestoreFailed: the set is not complete.
        """
        check_complete(Path(images))
        return tuple(sorted(name for name in os.listdir(images) if name.endswith(_IMAGE_SUFFIX)))

    def page_addresses(self, images: str) -> dict[str, tuple[AddressRun, ...]]:
        """From the name of a pages file to the pages of memory that are in it."""
        return page_addresses(Path(images))

    def let_go(self, view: object, thaw: Callable[[], None]) -> None:
        """Call `thaw`, and let the threads wait on where the dump has interrupted them."""
        seen = as_host_view(view)
        processes = [process for tree in seen.trees for process in tree.processes]
        live_waits.go_on(
            [process.pid for process in processes],
            seen.waits,
            seen.clocks.monotonic_ns,
            thaw,
            filtered=[process.pid for process in processes if process.seccomp],
        )

    def set_instant(self, images: str, view: object, monotonic: Nanoseconds, boottime: Nanoseconds) -> None:
        """Write the freeze's instant into the image set, and let its timers be as they were then."""
        instant = ClockTarget(monotonic_ns=monotonic, boottime_ns=boottime)
        rewind_timers(Path(images), instant, as_host_view(view).clocks.realtime_ns, _ends(view))
        write_instant(Path(images), instant)

    def timers(self, images: str, view: object) -> tuple[PendingTimer, ...]:
        """The armed timers that CRIU recorded, after set_instant()."""
        return pending_timers(Path(images), _ends(view))


@dataclass(slots=True, kw_only=True)
class _AtWork:
    """What a CRIU works at: its log, and the cgroup that is frozen for it, "" before it begins."""

    log: str
    cgroup: str = ""

    def launched_by(self, launcher: Launcher) -> Launcher:
        """The launcher; what it starts is killed so that the workload loses nothing."""
        return lambda what: _CriuAtWork(child=launcher(what), work=self)

    def kill(self, kill: Callable[[], object], pid: Pid | None = None) -> None:
        """Kill CRIU, which is this process unless it has ended, and mend what it cannot take back any more."""
        kill_criu(kill, pid, log=self.log if self.cgroup else "", frozen=[self.cgroup])


@dataclass(frozen=True, slots=True, kw_only=True)
class _CriuAtWork:
    """A CRIU process. Fits ckpt.host.criu.launch.Child."""

    child: Child
    work: _AtWork

    @property
    def pid(self) -> Pid:
        """Its pid, as this process sees it."""
        return self.child.pid

    def kill(self) -> None:
        """End it at once; returns when it has ended."""
        self.work.kill(self._kill, self.pid if self.child.wait(Nanoseconds(0)) is None else None)

    def wait(self, timeout: Nanoseconds) -> int | None:
        """Its exit status (negative: the signal), or None if it still runs after `timeout`."""
        return self.child.wait(timeout)

    def _kill(self) -> None:
        self.child.kill()
        self.child.wait(END_TIMEOUT)


class CriuTreeDump:
    """CRIU's process for one tree, already started. Fits the port `TreeDump`."""

    def __init__(
        self,
        worker: Worker,
        operation: JournaledOperation,
        tree: Tree,
        at_work: _AtWork,
        networks: tuple[Network, ...],
        *,
        lazy_socket: int | None,
    ) -> None:
        self._worker = worker
        self._lazy_socket = lazy_socket
        self._networks = networks
        self._operation = operation
        self._tree = tree
        self._at_work = at_work
        self._pid = worker.pid
        operation.note_criu(self._pid, log=at_work.log)

    def run(
        self,
        *,
        root: Pid,
        images: str,
        cgroup: str,
        options: DumpOptions,
        external_mounts: tuple[ExternalMount, ...],
        outside_files: tuple[OutsideFile, ...],
        leave_running: bool,
        before: Callable[[], None],
        stopped: Callable[[], None],
    ) -> DumpStatistics:
        """Dump the tree below `root` into the empty directory `images`.

        Raises:
            DumpFailed: with the cause from CRIU's log; the tasks are as they were.
            NoSpace: the file system of `images` is full; the tasks are as they were.
        """
        request = DumpRequest(
            pid=root,
            images=Path(images),
            leave_running=leave_running,
            freeze_cgroup=Path(cgroup),
            tcp_established=options.tcp_established,
            tcp_close=options.tcp_close,
            file_locks=options.file_locks,
            link_remap=options.link_remap,
            external_unix=options.external_unix,
            shell_job=options.shell_job,
            ghost_limit_bytes=options.ghost_limit_bytes,
            lazy_socket=self._lazy_socket,
            externals=mounts.dump_externals(external_mounts)
            + outside.dump_externals(outside_files)
            + reading.dump_externals(self._networks),
        )
        hooks = {"pre-dump": _calling(before), "post-dump": _calling(stopped)}
        # A full file system has no place for a log, and needs none.
        with keeping_log(self._operation.kept(DUMP_LOG)):
            return self._dump(request, hooks, cgroup)

    def close(self) -> None:
        """End CRIU's process, if it still runs; safe to repeat."""
        self._worker.close()
        self._operation.forget_criu(self._pid)

    def _dump(self, request: DumpRequest, hooks: Hooks, cgroup: str) -> DumpStatistics:
        self._at_work.cgroup = cgroup
        try:
            return engine.dump(self._worker, request, hooks).statistics
        except BaseException as error:
            self._worker.close(CRIU_GRACE)
            # One that was killed by others could not unlock the connections.
            self._at_work.kill(lambda: None)
            if isinstance(error, CriuError) and self._is_for_want_of_space(error, str(request.images)):
                raise self._no_space(str(request.images)) from error
            raise
        finally:
            self._at_work.cgroup = ""

    def _is_for_want_of_space(self, error: CriuError, images: str) -> bool:
        # CRIU's log is on the same file system, and may lack the line that says it.
        return any(_NO_SPACE in line for line in error.log_lines) or _available(images) < _NOTHING

    def _no_space(self, images: str) -> NoSpace:
        needed = sum(_resident(process.pid) for process in self._tree.processes)
        return NoSpace(
            place=self._operation.kept(""),
            available_bytes=_available(images),
            needed_bytes=needed,
            option="CKPT_STATE",
        )


def _ends(view: object) -> PosixEnds:
    seen = as_host_view(view)
    return ends_in(seen.timer_list, seen.clocks.monotonic_ns)


def _end_without_peer() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def _available(directory: str) -> int:
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def _resident(pid: Pid) -> int:
    """The memory of a process that is written at most; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _calling(callback: Callable[[], None]) -> Callable[[Notice], None]:
    def hook(_notice: Notice) -> None:
        callback()

    return hook
