"""One restore under way: cgroups, the shim, a time namespace, and each tree held until all can go on.

Rules:
- Trees whose clocks agreed at the dump share one time namespace, made here (host/timens.py).
- Everything that is made is undone by abort(), newest first; what is noted in the operation's journal is
  undone by the guardian when this process dies before commit().
- A tree's tasks are moved to their cgroups, and get the settings that CRIU loses, while they are held, before any of
  them runs.
- CRIU lets go of the tasks into a frozen cgroup, and they take their first step at the instant for which their
  clocks were set. Where they must not see what is real (keep()), they stand under ptrace until then: all of a
  session must be called from one thread.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ckpt.errors import (
    FeatureMissing,
    HostMismatch,
    Interrupted,
    OsRefused,
    RestoreFailed,
    WrongState,
)
from ckpt.host import (
    cgroup_settings,
    cgroups,
    connection_locks,
    mounts,
    pace,
    ptrace,
    resuming,
    signalling_timers,
    timerfds,
)
from ckpt.host.criu import engine
from ckpt.host.criu.death_signals import clear_death_signal
from ckpt.host.criu.launch import Launcher
from ckpt.host.criu.pstree import read_inventory
from ckpt.host.criu.request import InheritFd, JoinNamespace, RestoreRequest
from ckpt.host.criu.seccomp_images import strip_filters
from ckpt.host.criu.timerfd_images import ArmedTimerfd
from ckpt.host.criu.worker import Worker
from ckpt.host.freezer_control import Control, control_of
from ckpt.host.inodes import matching, planning
from ckpt.host.inodes.fuse import choosing
from ckpt.host.inodes.fuse.view import FileView
from ckpt.host.inodes.ladder import METHODS, allowed_methods
from ckpt.host.jobs import JOBS_CGROUP, JobRecord, JobRegistry, cgroup_name
from ckpt.host.kept_log import RESTORE_LOG, keeping_log
from ckpt.host.launch import RestoreHost
from ckpt.host.lazy.announcing import Announcer
from ckpt.host.network.restoring import RestoredNetworks
from ckpt.host.operations import JournaledOperation
from ckpt.host.outside import NOTHING_JOINED, Joined, standard_input
from ckpt.host.process_table import ProcessRef, all_processes, descendants, stat_of
from ckpt.host.saved_files_appended import job_of_own_file
from ckpt.host.setting_again import set_again
from ckpt.host.signals import uninterrupted
from ckpt.host.starting import LOG
from ckpt.host.timens import TimeNamespace
from ckpt.host.virtual import covering
from ckpt.host.virtual.carrying import carries_stub
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.clocks import PendingTimer, PendingWait, Resumption, TimeOffsets
from ckpt.model.inodes import InodeMethod, InodeOutcome, InodeRecord
from ckpt.model.network import Network
from ckpt.model.origin import Origin
from ckpt.model.settings import ProcessSettings
from ckpt.model.workload import CgroupRecord, ExternalMount, OutsideFile, Tree
from ckpt.units import MILLISECOND, SECOND, JobName, Nanoseconds, Pid

_NOT_SHOWN: Final = "it cannot be shown under its inode number"
_LET_GO_NS: Final = 10 * MILLISECOND
_LET_GO_TASK_NS: Final = MILLISECOND
"""What CRIU needs from its last point of return until it has let go, and more for each task."""
_FILE_NS: Final = 20 * MILLISECOND
"""What it takes to write a job down, durably; restore_span() reckons with it."""
_MOUNTS_LOST_MAX: Final = 5
"""How often CRIU is asked again because a mount of somebody else's went while it restored."""
_FREEZE_TIMEOUT: Final = Nanoseconds(10 * SECOND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a workload is restored to; `cgroup` "" means one of our own that is named after the job.

    `held` are the paths of the files that it holds: a mount that has one of them may not be missing. `pages_from` is the
    socket of who brings memory that is not there when it goes on; "" for nobody. `joined` takes the place of what it had
    from outside.
    """

    job: JobName
    cgroup: str
    records: tuple[CgroupRecord, ...]
    new_pids: bool
    trees: tuple[Tree, ...]
    held: frozenset[str]
    networks: tuple[Network, ...]
    pages_from: str = ""
    joined: Joined = NOTHING_JOINED


class CriuRestoreSession:
    """A restore under way. Fits the port `RestoreSession`."""

    def __init__(self, criu: Path, jobs: JobRegistry, operation: JournaledOperation, place: Place) -> None:
        self._criu = criu
        self._jobs = jobs
        self._operation = operation
        self._place = place
        self._undo = ExitStack()
        self._held: list[engine.HeldRestore] = []
        self._workers: list[Worker] = []
        self._roots: list[Pid] = []
        self._trees: list[Tree] = []
        self._tracees: list[ptrace.Tracee] = []
        self._goes_on_at = Nanoseconds(0)
        self._came_up_at = Nanoseconds(0)
        self._timerfds: list[tuple[ArmedTimerfd, int]] = []
        self._wall_timers: dict[Pid, signalling_timers.Times] = {}
        self._timed: set[Pid] = set()
        self._layer: covering.Layer | None = None
        self._view: FileView | None = None
        self._pages: Announcer | None = None
        self._namespaces: dict[TimeOffsets | None, TimeNamespace] = {}
        self._records: tuple[CgroupRecord, ...] = ()
        self._made: list[str] = []
        self._directories: list[str] = []
        self._cgroup = ""
        self._feeder: ProcessRef | None = None
        self._locked: list[str] = []
        self._filed = False
        self.problems: tuple[str, ...] = ()
        try:
            self._prepare()
        except BaseException:
            self.abort()
            raise

    @property
    def cgroup(self) -> str:
        """The absolute path of the cgroup that the workload is restored into."""
        return self._cgroup

    def add(
        self,
        *,
        tree: Tree,
        images: str,
        options: DumpOptions,
        external_mounts: tuple[ExternalMount, ...],
        outside_files: tuple[OutsideFile, ...],
        resumption: Resumption,
        waits: tuple[PendingWait, ...],
        timers: tuple[PendingTimer, ...],
        settings: tuple[ProcessSettings, ...],
    ) -> Pid:
        """Restore one more tree and hold it; gives its root's pid on this host.

        Raises:
            HostMismatch: a mount that it needs is not there.
            RestoreFailed: with the cause from CRIU's log; call abort().
        """
        if not self._trees:
            self._start_view()
        began = time.monotonic_ns()
        namespace = self._time_namespace(tree.time_offsets, resumption)
        strip_filters(Path(images))
        wall = resuming.wall_clock_times(Path(images), timers, resumption)
        armed = resuming.mend_images(Path(images), tree, waits, timers, resumption.advance)
        if number := clear_death_signal(Path(images)):
            who = f"process {tree.root} ({tree.processes[0].name})"
            self.problems += (
                f"{who} had asked for signal {number} when its parent ends, which is another one now: it does not any more",
            )
        private_root = ""
        if tree.owns("mnt"):
            self._check_mounts(external_mounts)
            private_root = f"{self._operation.staging}/root-{tree.root}"
            os.mkdir(private_root)
        pids = {process.pid for process in tree.processes}
        replaced = [file for file in outside_files if file.pid in pids]
        substitutes = self._host.substitutes(replaced, log=self._log, joined=self._place.joined)
        if standard_input(replaced) is not None:
            self._feeder = self._place.joined.feeder
        networks = self._networks.of(tree)
        request = RestoreRequest(
            images=Path(images),
            root=Path(private_root) if private_root else None,
            externals=mounts.restore_externals(external_mounts) if private_root else (),
            inherit_fds=(
                *(InheritFd(key=file.key, fd=fd) for file, fd in zip(replaced, substitutes, strict=True)),
                *(InheritFd(key=key, fd=fd) for key, fd in networks.items()),
            ),
            # "self" is the restored root, which has inherited the descriptor from CRIU, and joins after CRIU
            # has given it a time namespace of its own (criu/cr-restore.c, restore_task_with_children).
            join_namespaces=(JoinNamespace(kind="time", path=Path(f"/proc/self/fd/{namespace.fd}")),),
            tcp_established=options.tcp_established,
            tcp_close=read_inventory(Path(images)).closes_connections,
            file_locks=options.file_locks,
            external_unix=options.external_unix,
            shell_job=options.shell_job,
            lazy=self._pages is not None,
        )
        if self._pages is not None:
            self._pages.tree(tree.root, images)
        if options.tcp_established and not tree.owns("net"):
            self._lock_connections(images)
        view = (self._view.descriptor,) if self._view else ()
        kept_fds = (namespace.fd, *substitutes, *networks.values(), *view)
        try:
            with keeping_log(self._operation.kept(RESTORE_LOG)):
                held = self._begin(request, kept_fds, external_mounts if private_root else ())
        finally:
            for fd in substitutes:
                os.close(fd)
        # All tasks are there. CRIU ran in the workload's cgroup, and must not stand still with it.
        cgroups.add_process(_own_cgroup(self._cgroup), self._workers[-1].pid)
        pace.note_pace(self._operation, pace.size_of(images), Nanoseconds(time.monotonic_ns() - began))
        root = self._host_pid(held.pid)
        self._networks.note(tree, root, self._operation)
        self._roots.append(root)
        self._trees.append(tree)
        self._move_down(tree, root)
        self._goes_on_at = resumption.at_ns
        host_pid = resuming.restored_as(root)
        self.problems += set_again(tree, settings, host_pid, (Pid(os.getpid()), self._host.shim.pid))
        self._wall_timers |= {pid: found for each, found in wall.items() if (pid := host_pid(each))}
        self._timed |= {pid for each in resuming.timed(timers, tree) if (pid := host_pid(each))}
        if armed:
            self._timerfds += self._undo.enter_context(timerfds.taken(armed, host_pid))
        return root

    def _begin(
        self, request: RestoreRequest, kept_fds: tuple[int, ...], external_mounts: Sequence[ExternalMount]
    ) -> engine.HeldRestore:
        """Have CRIU restore a tree; once more where a mount that the tree can do without went in the middle of it.

        Raises:
            RestoreFailed, CriuError: also when it went time and again.
        """
        left = _MOUNTS_LOST_MAX
        while True:
            with mounts.stand_ins(external_mounts) as has_lost:
                worker = Worker.start(
                    self._criu,
                    launcher=self._launcher(str(request.root) if request.root else ""),
                    kept_fds=kept_fds,
                )
                self._undo.callback(self._close, worker)
                self._operation.note_criu(worker.pid, log=str(request.log))
                try:
                    held = engine.begin_restore(worker, request)
                except RestoreFailed:
                    left -= 1
                    if left < 0 or not has_lost():
                        raise
                    self._close(worker)
                else:
                    self._workers.append(worker)
                    self._undo.callback(held.abort)
                    self._held.append(held)
                    return held

    def keep(
        self, inodes: tuple[InodeRecord, ...], methods: Mapping[str, InodeMethod]
    ) -> tuple[InodeOutcome, ...]:
        """Let the tasks see the recorded identities from their first step on; nothing of `inodes` for the real ones.

        Raises:
            RestoreFailed, OsRefused: call abort().
        """
        tasks = self._tasks()
        found = matching.matches(inodes, tasks)
        if self._view is not None:
            self.problems += planning.half_kept(found, methods, _NOT_SHOWN)
        plan = planning.plan_for(found if self._view is None else ())
        if not plan.table and not any(map(carries_stub, tasks.values())):
            return planning.outcomes(found, methods, seen={}, is_virtual=False)
        control = control_of(self._cgroup)
        why_not = covering.why_not() or ("" if control else f"{self._cgroup} cannot be frozen")
        if InodeMethod.VIRTUAL not in allowed_methods():
            why_not = f"{METHODS} does not name the virtual layer"
        if why_not or control is None:
            self.problems += planning.unkept(found, why_not)
            return planning.outcomes(found, methods, seen={}, is_virtual=False)
        layer = covering.Layer(plan.table, state=self._operation.kept(""))
        self._undo.callback(layer.abandon)
        layer.start()
        self._stop_all(control)
        self._tracees += ptrace.seize(tasks.values(), control.thaw)
        layer.cover(self._tracees, plan)
        seen = layer.ask(found)
        self._layer = layer
        self.problems += layer.problems
        if self._view is None:
            self.problems += planning.unkept(found, "another file has its identity", seen=seen)
            self.problems += planning.unasked(found, seen)
        return planning.outcomes(found, methods, seen=seen, is_virtual=True)

    def hold(self) -> None:
        """Let nothing run, also if this process dies now: what is traced would go on with its tracer's end."""
        control = control_of(self._cgroup)
        if self._tracees and control is not None:
            control.hold()

    @property
    def is_committed(self) -> bool:
        """Whether the workload is filed, and lives."""
        return self._filed

    def commit(self, origin: Origin, let_go: Callable[[], None] | None = None) -> None:
        """Let all trees go on, and file the workload as a job that came from there.

        Where the cgroup can be frozen it is filed before the first step: a crash then lets it go on, and one before
        that takes it away, without any of it having run.

        Args:
            origin: Where it came from.
            let_go: Called between the two, where nothing of it has run and the workload can be let go by anybody.

        Raises:
            FeatureMissing: `let_go` is given, and the cgroup cannot be frozen.
            RestoreFailed: a tree could not go on; call abort(), which takes the others back.
        """
        control = control_of(self._cgroup)
        tasks = sum(len(tree.processes) for tree in self._trees)
        if self._tracees:
            assert control is not None  # keep() found it
            if self._layer is not None:
                self._layer.keep(self._host.shim)
            resuming.await_instant(Nanoseconds(self._goes_on_at - _FILE_NS))
            self._leave_frozen(control)
            with self._too_late(), uninterrupted():
                self._file(origin, control, let_go)
                with self._living_on(control):
                    self._await_instant()
                    self._thaw(control)
        elif control is not None and (ptrace.supported() or not self._timed or let_go is not None):
            # CRIU takes some milliseconds to let go of the tasks, and filing waits for the disk: a thaw takes none.
            before = _LET_GO_NS + _FILE_NS + tasks * _LET_GO_TASK_NS
            resuming.await_instant(Nanoseconds(self._goes_on_at - before))
            self._stop_all(control)
            with self._too_late(), uninterrupted():
                self._file(origin, control, let_go)
                with self._living_on(control):
                    self._await_instant()
                    self._thaw(control)
        else:
            if let_go is not None:
                raise FeatureMissing(
                    feature=f"a freezer in {self._cgroup}", remedy="Name another cgroup, one of version 2."
                )
            self._await_instant()
            for held in self._held:
                with keeping_log(self._operation.kept(RESTORE_LOG)):
                    held.finish()
            self._file(origin, None, None)
        self._operation.forget_frozen(self._cgroup)
        self._made.clear()
        self._undo.close()

    def _file(self, origin: Origin, control: Control | None, let_go: Callable[[], None] | None) -> None:
        """File the job; from here on it lives, whatever happens to this process: `control` is thawed then."""
        if self._pages is not None:
            self._pages.runs(self._cgroup)
        # The shim reaps them, and tells only as long as it has us to tell it to.
        for worker in self._workers:
            self._close(worker)
        # Until commit_restore() the journal says that this is half restored: a crash takes it away.
        ends_with = self._host.commit(self._roots[0])
        former = self._jobs.find(self._place.job)
        self._undo.callback(self._unfile, former)
        self._operation.note_filing(self._jobs.record_path(self._place.job))
        self._jobs.adopt(
            self._place.job,
            cgroup=self._cgroup,
            root=ends_with.pid,
            shim=self._host.shim,
            origin=origin,
            log=self._log,
            feeder=self._feeder,
        )
        self._operation.note_phase("filed")
        if let_go is not None:
            let_go()
        self._filed = True
        self._operation.commit_restore(frozen=None if control is None else self._cgroup)
        # Of another checkpoint than this one, whose own CRIU has removed: these connections would be silent for ever.
        connection_locks.release(former)
        for run_id in self._locked:
            self._unlock_connections(run_id)
        # Not before: what is killed with a joined network resets its connections.
        self.problems += self._networks.join(self._operation, lambda: self._tasks().values())
        self._operation.note_phase("let-go")

    def _lock_connections(self, images: str) -> None:
        """Let no packet of its connections pass before all trees are there."""
        if run_id := connection_locks.lock(images):
            self._undo.callback(self._unlock_connections, run_id)
            self._operation.note_network_lock(run_id)
            self._locked.append(run_id)

    def _unlock_connections(self, run_id: str) -> None:
        connection_locks.unlock(run_id)
        self._operation.forget_network_lock(run_id)

    @contextmanager
    def _too_late(self) -> Iterator[None]:
        """An interruption that waited until the workload was filed ends nothing any more."""
        try:
            yield
        except Interrupted:
            if not self._filed:
                raise

    @contextmanager
    def _living_on(self, control: Control) -> Iterator[None]:
        """What fails in the context is a problem, and no reason to take away what is filed."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the workload lives
            self.problems += (f"it goes on, but not as it should: {error}",)
            control.thaw()
            for tracee in self._tracees:
                with suppress(OSError):
                    tracee.detach()
            self._tracees.clear()

    def _unfile(self, former: JobRecord | None) -> None:
        """What the job was before it was filed, where that came to nothing."""
        if not self._filed and former is not None:
            self._jobs.save(former)
            self._operation.forget_filing(self._jobs.record_path(former.name))

    def abort(self) -> None:
        """Kill and remove everything that was restored; safe to repeat."""
        self._undo.close()

    def _await_instant(self) -> None:
        """Return at the instant for which the clocks were set, with the timers set for it, too."""
        resuming.await_instant(self._goes_on_at)
        timerfds.rearm(self._timerfds, self._goes_on_at)

    def _thaw(self, control: Control) -> None:
        """Let all tasks run, those with timers that give signals when these are set for this instant.

        Raises:
            OsRefused: a task cannot be traced.
        """
        if self._timed:
            self._tracees += ptrace.seize(self._timed, control.thaw)
        control.thaw()
        self._detach_all()

    def _detach_all(self) -> None:
        """Let the traced tasks run; CRIU has armed their timers when it came to them, and not at this instant."""
        held_ns = Nanoseconds(time.monotonic_ns() - self._came_up_at)
        for tracee in self._tracees:
            # A task that somebody has killed meanwhile has no timers.
            with suppress(OSError):
                signalling_timers.put_off(tracee, held_ns, self._wall_timers.get(tracee.pid, {}))
            tracee.detach()
        self._tracees.clear()

    def _stop_all(self, control: Control) -> None:
        """Let CRIU finish with all trees while the cgroup is frozen: none of the tasks takes a step."""
        self._undo.callback(self._kill_all, control)
        self._came_up_at = Nanoseconds(time.monotonic_ns())
        for held in self._held:
            # From here on the end of CRIU would let the tasks run: they must be killed before it.
            with keeping_log(self._operation.kept(RESTORE_LOG)):
                held.come_up()
        control.freeze(_FREEZE_TIMEOUT)
        for held in self._held:
            with keeping_log(self._operation.kept(RESTORE_LOG)):
                held.finish()

    def _leave_frozen(self, control: Control) -> None:
        """Trace the tasks no more, and let the freezer alone hold them: what is traced dies with its tracer.

        Raises:
            FreezeTimeout: a task does not come to stand still.
        """
        control.hold()
        for tracee in self._tracees:
            tracee.detach()
        self._tracees.clear()
        control.freeze(_FREEZE_TIMEOUT)

    def _kill_all(self, control: Control) -> None:
        if not self._filed:
            control.hold()
        # Before they are killed: who is traced is not gone until its tracer has taken note of its death, and the init
        # of a PID namespace not before all in it are.
        for tracee in self._tracees:
            with suppress(OSError):
                tracee.detach()
        self._tracees.clear()
        if self._filed:
            control.thaw()
        else:
            control.kill()

    def _tasks(self) -> dict[Pid, Pid]:
        """The processes of the restored trees: from the pid of the dump to the one on this host."""
        restored = {}
        for tree, root in zip(self._trees, self._roots, strict=True):
            inside = {resuming.pid_inside(pid): pid for pid in descendants((root,), all_processes())}
            for process in tree.processes:
                pid = inside.get(process.pid_inside)
                if pid is not None and not _is_zombie(pid):
                    restored[process.pid] = pid
        return restored

    def _close(self, worker: Worker) -> None:
        worker.close()
        self._operation.forget_criu(worker.pid)

    def _prepare(self) -> None:
        place = self._place
        if place.pages_from:
            self._pages = Announcer(place.pages_from)
            self._undo.callback(self._pages.close)
        self._undo.enter_context(self._jobs.lock(place.job))
        self._jobs.refuse_running(place.job)
        self._forget_new_job()
        directory = self._jobs.prepare(place.job)
        self._log = place.joined.log or _log_held(place.held, self._jobs.state) or f"{directory}/log"
        self._undo.callback(self._close_namespaces)
        self._networks = RestoredNetworks.make(place.networks, self._jobs.state, place.job)
        self._undo.callback(self._networks.close)
        self._directories = self._make_cgroups()
        # What has a PID namespace of its own gets a new one in any case.
        new_pids = place.new_pids and not any(tree.owns("pid") for tree in place.trees)
        self._host = self._undo.enter_context(
            RestoreHost(
                name=place.job,
                exit_path=self._jobs.exit_path(place.job),
                cgroup_procs=[f"{each}/cgroup.procs" for each in self._directories],
                new_pids=new_pids,
                first_pid=_first_free_pid(place.trees) if new_pids else 0,
            )
        )

    def _start_view(self) -> None:
        """Make the namespace in which the files are seen that were chosen for it, if any were."""
        files = choosing.noted(self._operation.staging)
        if not files:
            return
        if self._place.new_pids or any(tree.owns("mnt") for tree in self._place.trees):
            # CRIU makes the mounts of such a namespace from its images, and knows of no others.
            self.problems += ("no inode number is shown: the workload has a mount namespace of its own",)
            return
        try:
            self._view = FileView.start(files, place=self._operation.directory("fuse"))
        except OsRefused as error:
            self.problems += (error.message,)
            return
        self._undo.callback(self._view.close)

    def _launcher(self, private_root: str) -> Launcher:
        launcher = self._host.launcher(private_root=private_root)
        return launcher if self._view is None else self._view.launcher(launcher)

    def _forget_new_job(self) -> None:
        """Undo a name that is new: a job that was never restored leaves no directory."""
        directory = self._jobs.directory(self._place.job)
        if not os.path.exists(f"{directory}/job.json"):
            self._undo.callback(self._remove_unless_filed, directory)
            self._operation.note_directory(directory)

    def _remove_unless_filed(self, directory: str) -> None:
        if not self._filed:
            shutil.rmtree(directory, ignore_errors=True)
        self._operation.forget_directory(directory)

    def _make_cgroups(self) -> list[str]:
        """Make what is missing of the cgroups; gives all that the first task joins, the workload's own first."""
        place = self._place
        hierarchy = cgroups.unified() or cgroups.freezer_v1()
        if hierarchy is None:
            raise HostMismatch(
                ref=place.job,
                reasons=("no cgroup hierarchy with a freezer is mounted",),
                remedy="Mount cgroup2, for example at /sys/fs/cgroup.",
            )
        cgroup = os.path.normpath(place.cgroup or f"{hierarchy.mountpoint}/{cgroup_name(place.job)}")
        for each in cgroups.hierarchies():
            if cgroup.startswith(each.mountpoint + "/"):
                hierarchy = each
        if not cgroup.startswith(hierarchy.mountpoint + "/"):
            raise HostMismatch(
                ref=place.job,
                reasons=(f"{cgroup} is not below a cgroup mount of this host",),
                remedy="Name another place: 'ckpt restore --cgroup', or 'ckpt migrate --into'.",
            )
        _refuse_used(cgroup)
        self._cgroup = cgroup
        self._records = _moved_to(hierarchy.relative(cgroup), hierarchy.name, place.records)
        self._undo.callback(self._remove_cgroups)
        self._operation.await_guardian()
        self._operation.note_restore(cgroup)
        outcome = cgroup_settings.create_cgroups(self._records, note=self._note_made)
        if not os.path.isdir(cgroup):
            self._made.append(cgroup)
            cgroups.make(cgroup)
        self.problems = outcome.problems
        others = [
            cgroup_settings.directory_of(record, mounted)
            for mounted in cgroups.hierarchies()
            if mounted != hierarchy
            for record in self._records
            if record.hierarchy == mounted.name and place.trees[0].root in record.members
        ]
        return [cgroup, *others]

    def _remove_cgroups(self) -> None:
        if not self._filed:
            control = control_of(self._cgroup)
            if control is not None and cgroups.processes_below(self._cgroup):
                control.kill()
        for directory in reversed(self._made):
            cgroups.remove(directory)
        for cgroup in (*self._made, self._cgroup):
            self._operation.forget_restore(cgroup)
        self._made.clear()

    def _note_made(self, cgroup: str) -> None:
        self._made.append(cgroup)
        self._operation.note_restore(cgroup)

    def _time_namespace(self, offsets: TimeOffsets, resumption: Resumption) -> TimeNamespace:
        key = None if resumption.clocks is None else offsets
        if key not in self._namespaces:
            self._namespaces[key] = (
                TimeNamespace.of_this_process()
                if resumption.clocks is None
                else TimeNamespace.with_clocks(resumption.clocks, resumption.at_ns)
            )
        return self._namespaces[key]

    def _close_namespaces(self) -> None:
        for namespace in self._namespaces.values():
            namespace.close()
        self._namespaces.clear()

    def _check_mounts(self, external_mounts: tuple[ExternalMount, ...]) -> None:
        problems = mounts.mount_problems(external_mounts, self._place.held)
        if problems:
            raise HostMismatch(
                ref=self._place.job, reasons=problems, remedy="Mount it there, and restore again."
            )

    def _host_pid(self, pid: Pid) -> Pid:
        """The restored root's pid on this host."""
        found = self._host.pid_on_host(pid)
        if found is None:
            raise RestoreFailed(cause=f"the restored root, pid {pid} in its namespace, ended at once")
        return found

    def _move_down(self, tree: Tree, root: Pid) -> None:
        """Put each process of the restored tree into the cgroup that it was in."""
        inside = {resuming.pid_inside(pid): pid for pid in descendants((root,), all_processes())}
        here = {process.pid: inside.get(process.pid_inside) for process in tree.processes}
        mounted = {each.name: each for each in cgroups.hierarchies()}
        for record in self._records:
            if record.hierarchy not in mounted:
                continue
            directory = cgroup_settings.directory_of(record, mounted[record.hierarchy])
            for member in record.members:
                pid = here.get(member)
                if pid is not None and cgroups.cgroup_of(pid, mounted[record.hierarchy]) != directory:
                    cgroups.add_process(directory, pid)


def _own_cgroup(cgroup: str) -> str:
    """The cgroup of this process in the hierarchy of another one."""
    hierarchy = cgroups.hierarchy_of(cgroup)
    assert hierarchy is not None  # it was made there
    return cgroups.cgroup_of(Pid(os.getpid()), hierarchy) or hierarchy.mountpoint


def _is_zombie(pid: Pid) -> bool:
    stat = stat_of(pid)
    return stat is None or stat.ended


def _refuse_used(cgroup: str) -> None:
    if not os.path.isdir(cgroup):
        return
    pids = cgroups.processes_below(cgroup)
    if pids:
        raise WrongState(
            subject=f"The cgroup {cgroup}",
            state=f"in use by {len(pids)} process(es), the first is {pids[0]}",
            operation="a restore into it",
            needed="to be empty",
            remedy="End them, or name another place with --cgroup.",
        )
    control = control_of(cgroup)
    # CRIU hangs when it restores into a frozen cgroup.
    if control is not None and control.held():
        control.thaw()


def _moved_to(path: str, hierarchy: str, records: tuple[CgroupRecord, ...]) -> tuple[CgroupRecord, ...]:
    """The records, those of this hierarchy moved below `path`: the first of them is the workload's own."""
    own = [record for record in records if record.hierarchy == hierarchy]
    if not own:
        return records
    top = min((record.path for record in own), key=len)
    return tuple(
        replace(record, path=path + record.path.removeprefix(top))
        # What a job has in other hierarchies is named like it, too.
        if record.hierarchy == hierarchy or (record.path == top and top.startswith(f"/{JOBS_CGROUP}/"))
        else record
        for record in records
    )


def _log_held(held: Collection[str], state: str) -> str:
    """The job's log that the workload writes to, also that of another job that it was; "" for none."""
    own = os.path.realpath(state)
    logs = [path for path in held if os.path.basename(path) == LOG and job_of_own_file(path, own)]
    return min(logs, default="")


def _first_free_pid(trees: tuple[Tree, ...]) -> int:
    """A pid above all that the trees bring along, for CRIU itself."""
    return 1 + max(
        thread
        for tree in trees
        for process in tree.processes
        for thread in (*process.threads, process.pid_inside)
    )
