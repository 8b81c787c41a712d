"""The port `Inspector`: what a workload is and holds, read in three passes.

survey() reads everything while the workload runs; confirm() reads again, under the freeze, what may have
changed; describe() and inodes() make the records, and take digests, when it runs again.
Source: decisions/0007.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from ckpt import VERSION
from ckpt.errors import CannotCheckpoint, NotNow
from ckpt.host import cgroup_settings, cgroups, posix_timers, timer_list, timerfds, waits
from ckpt.host.clock import HostClock
from ckpt.host.criu import engine
from ckpt.host.criu.locate import find_criu
from ckpt.host.hostfacts import read_host_facts
from ckpt.host.inspection import filelocks, records, snapshot
from ckpt.host.inspection.compare import differences
from ckpt.host.inspection.details import DetailReader, Details, Known, kind_of
from ckpt.host.inspection.digests import DigestCache, Result, Wanted
from ckpt.host.inspection.filelocks import FileLock
from ckpt.host.inspection.holdings import Key
from ckpt.host.inspection.records import HeldFile
from ckpt.host.inspection.settings import read_settings
from ckpt.host.inspection.shown import as_on_host
from ckpt.host.inspection.snapshot import Snapshot
from ckpt.host.preflight.checking import (
    BEFORE_FREEZE,
    CHECKED,
    LASTING_UNDER_FREEZE,
    PASSING,
    check,
    unasked,
)
from ckpt.host.preflight.facts import Facts
from ckpt.host.preflight.rule import When
from ckpt.host.process_table import ProcessRef, stat_of
from ckpt.host.virtual.registry import table_for
from ckpt.model.checkpoint import DumpOptions, HostFacts
from ckpt.model.clocks import Clocks, PendingWait
from ckpt.model.findings import Finding, Severity, blockers, in_order, told
from ckpt.model.inodes import DigestState, FileChange, FileKind, Identity, InodeRecord
from ckpt.model.progress import UNWATCHED, Progress
from ckpt.model.settings import ProcessSettings
from ckpt.model.target import Target
from ckpt.model.workload import CgroupRecord, Tree, Workload
from ckpt.units import MILLISECOND, ByteCount, Nanoseconds

DIGEST_LIMIT: Final = ByteCount(64 << 20)
"""Files above this are not digested unless the caller says so: 64 MiB take about 50 ms."""

_TICK_NS: Final = 20 * MILLISECOND
"""How far a file's times may lag behind the clock: two ticks of the slowest kernel (100 Hz)."""

_REMEDIES_MAX: Final = 3
_LOOKS: Final = 3
_LOOK_S: Final = 0.05
"""What passes by itself is looked at so often, so far apart, before a check speaks of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSurvey:
    """Fits the port `Survey`. `found` are all sentences of what is grave, `warnings` those that are told."""

    target: Target
    snapshot: Snapshot
    details: Known
    cgroups: tuple[CgroupRecord, ...]
    found: frozenset[str]
    warnings: tuple[str, ...]
    options: DumpOptions
    force: bool
    sleeps: tuple[waits.Sleep, ...] = ()
    has_wall_timers: bool = False

    @property
    def trees(self) -> tuple[Tree, ...]:
        """The trees as they were then."""
        return self.snapshot.trees


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """Fits the port `FrozenView`.

    `timer_list` is /proc/timer_list, empty where no POSIX timer needs it (ckpt.host.posix_timers); `read_ns` is how
    long the reading under the freeze took.
    """

    clocks: Clocks
    snapshot: Snapshot
    files: dict[Key, HeldFile]
    details: Known
    locks: Future[tuple[FileLock, ...]]
    waits: tuple[PendingWait, ...]
    settings: tuple[ProcessSettings, ...]
    timer_list: bytes
    cgroups: tuple[CgroupRecord, ...]
    warnings: tuple[str, ...]
    read_ns: Nanoseconds

    @property
    def trees(self) -> tuple[Tree, ...]:
        """The trees, in the order in which they are dumped."""
        return self.snapshot.trees


class HostInspector:
    """Fits the port `Inspector`."""

    def __init__(
        self,
        state: str,
        *,
        digest_limit: ByteCount = DIGEST_LIMIT,
        progress: Progress = UNWATCHED,
        allow: frozenset[str] = frozenset(),
    ) -> None:
        """Keep the cache of digests below the directory `state`; what the rules of `allow` find does not count."""
        self._state = state
        self._cache = DigestCache(f"{state}/digests.sqlite", progress)
        self._digest_limit = digest_limit
        self._clock = HostClock()
        self._facts: HostFacts | None = None
        self._allow = allow

    def check(self, target: Target, options: DumpOptions) -> tuple[Finding, ...]:
        """Everything that speaks against a dump with these options, or a restore after it; the gravest first."""
        facts, lasting = self._look(target, options, CHECKED)
        passing = check(facts, PASSING)
        for _ in range(_LOOKS if passing else 0):
            time.sleep(_LOOK_S)
            taken = snapshot.take(snapshot.members_of(target), target.cgroup, None)
            again = check(Facts(taken, options, target.cgroup, staging=self._state), PASSING)
            passing = tuple(finding for finding in again if finding in passing)
        return in_order((*lasting, *passing))

    def survey(self, target: Target, options: DumpOptions, *, force: bool) -> HostSurvey:
        """Everything that may be read while the workload runs.

        Args:
            target: The workload.
            options: What will be dumped, and how.
            force: Go on in spite of what was found; it is among the warnings then.

        Raises:
            CannotCheckpoint: what was found would fail; it was not frozen for it.
        """
        self._clock.read()  # what does not change is read now
        facts, found = self._look(target, options, BEFORE_FREEZE)
        taken = facts.snapshot
        if not force:
            _refuse(target, blockers(found))
        files = records.held_files(hold for each in taken.holdings.values() for hold in each.holds)
        grave = tuple(finding for finding in found if finding.severity is not Severity.INFO)
        return HostSurvey(
            target=target,
            snapshot=taken,
            details=_details(files, taken, {}),
            cgroups=_own_cgroups(taken, target),
            found=frozenset(finding.sentence for finding in grave),
            warnings=told(grave, lambda finding: finding.sentence),
            options=options,
            force=force,
        )

    def _look(
        self, target: Target, options: DumpOptions, when: Collection[When]
    ) -> tuple[Facts, tuple[Finding, ...]]:
        """What is found while it runs, without blockers that are gone when it is read anew."""
        facts, found = self._look_once(target, options, when)
        suspected = {(finding.rule, finding.pid) for finding in blockers(found)}
        if suspected:
            # It runs while it is read: what belongs to two moments may look like what cannot be.
            facts, found = self._look_once(target, options, when)
            found = tuple(
                finding
                for finding in found
                if finding.severity is not Severity.BLOCKER or (finding.rule, finding.pid) in suspected
            )
        return facts, found

    def _look_once(
        self, target: Target, options: DumpOptions, when: Collection[When]
    ) -> tuple[Facts, tuple[Finding, ...]]:
        taken = snapshot.take(snapshot.members_of(target), target.cgroup, None)
        facts = Facts(taken, options, target.cgroup, staging=self._state)
        return facts, tuple(each for each in check(facts, when) if each.rule not in self._allow)

    def watch_waits(self, survey: object) -> HostSurvey:
        """The survey with what the threads wait for now: the last thing before the freeze."""
        if not isinstance(survey, HostSurvey):
            raise TypeError(survey)
        processes = survey.snapshot.processes
        has_wall_timers = posix_timers.may_be_of_the_wall_clock(processes)
        return replace(survey, sleeps=waits.look(processes), has_wall_timers=has_wall_timers)

    def confirm(self, survey: object, cgroup: str, *, patient: bool = True) -> HostView:
        """Read again, under the freeze of `cgroup`, what may have changed; at most 30 µs a file.

        Args:
            survey: What survey() gave (an `object`, as a port's adapter must take any).
            cgroup: The directory of the frozen cgroup.
            patient: Refuse what may be over in a moment also where all else is forced.

        Raises:
            CannotCheckpoint: what was found would fail.
            NotNow: it would fail at this very moment.
        """
        if not isinstance(survey, HostSurvey):
            raise TypeError(survey)
        began = time.monotonic_ns()
        clocks = self._clock.read()
        locks = filelocks.start_reading()
        taken = snapshot.take(cgroups.processes_below(cgroup), cgroup, survey.snapshot)
        facts = Facts(taken, survey.options, cgroup)
        lasting, passing = check(facts, LASTING_UNDER_FREEZE), check(facts, PASSING)
        forbidden, not_now = blockers(lasting), blockers(passing)
        if not survey.force:
            _refuse(survey.target, forbidden)
        if not_now and (patient or not survey.force):
            raise NotNow(
                target=str(survey.target.ref), reasons=told(not_now, lambda finding: finding.message)
            )
        grave = {
            finding.sentence: finding
            for finding in (*forbidden, *not_now, *unasked(lasting), *unasked(passing))
            if finding.sentence not in survey.found
        }
        timerfds.settle(
            (hold.pid, int(hold.detail.partition(" ")[0]))
            for each in taken.holdings.values()
            for hold in each.holds
            if hold.target == timerfds.TARGET
        )
        files = records.held_files(hold for each in taken.holdings.values() for hold in each.holds)
        return HostView(
            clocks=clocks,
            snapshot=taken,
            files=files,
            # What is new since the survey is read while it is certain to be held.
            details=_details(files, taken, survey.details),
            locks=locks,
            waits=waits.confirm(survey.sleeps, clocks.monotonic_ns),
            settings=read_settings(taken.processes.values()),
            timer_list=timer_list.read() if survey.has_wall_timers else b"",
            # What is forked after the thaw would make the cgroups look like somebody else's.
            cgroups=survey.cgroups
            if taken.processes.keys() == survey.snapshot.processes.keys()
            else _own_cgroups(taken, survey.target),
            warnings=told(grave.values(), lambda finding: finding.sentence),
            read_ns=Nanoseconds(time.monotonic_ns() - began),
        )

    def describe(self, view: object, target: Target) -> Workload:
        """The workload as the manifest records it, without what the dumper knows; `view` is confirm()'s."""
        view = as_host_view(view)
        return Workload(
            kind=target.ref.kind,
            cgroup=target.cgroup,
            trees=view.trees,
            cgroups=view.cgroups,
            external_mounts=(),
            outside_files=(),
        )

    def inodes(self, view: object) -> tuple[InodeRecord, ...]:
        """All files with their digests, taken now and marked where they changed; `view` is confirm()'s.

        Pipes, sockets and memfds are among them: their numbers are seen, too.
        """
        view = as_host_view(view)
        files = view.files | records.held_objects(
            hold for each in view.snapshot.holdings.values() for hold in each.holds
        )
        for pid, holdings in view.snapshot.holdings.items():
            records.add_watches(files, pid, holdings.watches)
            records.add_bound_names(files, pid, holdings.holds)
        records.add_directories(files)
        locks = view.locks.result()
        records.add_locks(files, view.snapshot.processes, locks)
        leased = {(lock.device, lock.inode) for lock in locks if lock.is_lease}
        details = view.details | _details(
            {key: held for key, held in files.items() if key not in view.details}, view.snapshot, {}
        )
        digests = {
            key: state
            for key, held in files.items()
            if (state := _undigested(held, is_leased=key in leased)) is not None
            or (state := _unseen(key, held, view)) is not None
        }
        wanted = [key for key in files if key not in digests]
        results = self._cache.take((_wanted(files[key], details[key]) for key in wanted), self._digest_limit)
        digests |= zip(wanted, results, strict=True)
        table = table_for(self._state, _references(view.snapshot))
        shown = table.shown if table else _as_it_is
        return as_on_host(
            records.record(held, details[key], *digests[key], shown=shown) for key, held in files.items()
        )

    def host_facts(self) -> HostFacts:
        """This host, as it was when it was asked first: it costs the start of a CRIU."""
        if self._facts is None:
            self._facts = read_host_facts(str(engine.version(find_criu())), VERSION)
        return self._facts

    def differences(self, inodes: tuple[InodeRecord, ...]) -> tuple[FileChange, ...]:
        """What of the recorded files is not as it was, on this host now."""
        return differences(inodes, self._cache)


def as_host_view(view: object) -> HostView:
    """The view that this host's inspector made: a port's adapter must take any, and knows only its own."""
    if not isinstance(view, HostView):
        raise TypeError(view)
    return view


def _references(taken: Snapshot) -> list[ProcessRef]:
    return [stat.ref for pid in taken.processes if (stat := stat_of(pid)) is not None]


def _as_it_is(identity: Identity) -> Identity:
    return identity


def _refuse(target: Target, found: tuple[Finding, ...]) -> None:
    if found:
        remedies = dict.fromkeys(finding.remedy for finding in found if finding.remedy)
        raise CannotCheckpoint(
            target=str(target.ref),
            reasons=told(found, lambda finding: finding.message),
            remedy=" ".join((*islice(remedies, _REMEDIES_MAX), "Nothing was done to it; it runs on.")),
        )


def _details(files: dict[Key, HeldFile], taken: Snapshot, known: Known) -> Known:
    """The details of all files, those that are known already as they are."""
    reader = DetailReader()
    return {
        key: known[key]
        if key in known and reader.is_current(known[key], held.first)
        else reader.read(
            held.first,
            taken.processes[held.first.pid].namespaces["mnt"],
            is_program=held.is_program,
        )
        for key, held in files.items()
    }


def _own_cgroups(taken: Snapshot, target: Target) -> tuple[CgroupRecord, ...]:
    """The cgroups that hold nothing but the workload; in the freezer's hierarchy not above its own one."""
    found = cgroup_settings.record_cgroups(taken.processes.keys())
    hierarchy = cgroups.hierarchy_of(target.cgroup) if target.cgroup else None
    if hierarchy is None:
        return found
    top = hierarchy.relative(target.cgroup)
    return tuple(
        record
        for record in found
        if record.hierarchy != hierarchy.name or record.path == top or record.path.startswith(top + "/")
    )


def _undigested(held: HeldFile, *, is_leased: bool) -> Result | None:
    """Why no digest is taken of this file; None if one is."""
    if kind_of(held.first.status.st_mode) is not FileKind.REGULAR:
        return None, DigestState.NOT_REGULAR
    if held.first.deleted or is_leased:
        # The content of a file without a name is in the images; opening a leased one would break the lease.
        return None, DigestState.UNREADABLE
    if held.is_written_by_map:
        # A store to a page that is dirty already changes no time: nothing tells whether it came after the thaw.
        return None, DigestState.CHANGED
    return None


def _unseen(key: Key, held: HeldFile, view: HostView) -> Result | None:
    """A file that is only watched was not looked at under the freeze: it must be older than that."""
    status = held.first.status
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    if key in view.files or changed < view.clocks.realtime_ns - _TICK_NS:
        return None
    return None, DigestState.CHANGED


def _wanted(held: HeldFile, details: Details) -> Wanted:
    status, path = held.first.status, held.first.path
    return Wanted(
        # A mount that only the workload has is seen through one of its processes.
        path=path if details.filesystem.mountpoint else f"/proc/{held.first.pid}/root{path}",
        device=status.st_dev,
        inode=status.st_ino,
        generation=details.generation or 0,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )
