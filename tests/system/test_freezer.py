"""Freezing real trees: what stops a freeze, freezes of others, gathering trees that fork, putting them back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from fakes.freezer import RecordingJournal
from real.ticking import Ticking, await_true, is_running, living_operation, scratch_cgroup, ticking

from ckpt.errors import CannotCheckpoint, FreezeTimeout, WrongState
from ckpt.host import cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.host.freezer import CgroupFreezer, GatheringFreezer
from ckpt.host.freezer_control import control_of
from ckpt.host.gathering import Gathering
from ckpt.host.journal import Gathered
from ckpt.host.process_table import all_processes, descendants
from ckpt.units import MILLISECOND, SECOND, Nanoseconds, Pid

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root"),
]
TIMEOUT = Nanoseconds(5 * SECOND)

# process_vm_readv(2) of memory whose pages a userfaultfd must bring, and nobody does: the fault happens in the
# kernel, where no freezer reaches the task (state D, but killable).
STUCK = """
import ctypes, fcntl, mmap, os, struct
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(323, os.O_CLOEXEC)
if fd < 0: raise SystemExit(77)
fcntl.ioctl(fd, 0xc018aa3f, struct.pack("=QQQ", 0xaa, 0, 0))
area = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
fcntl.ioctl(fd, 0xc020aa00, struct.pack("=QQQQ", address, 4096, 1, 0))
buffer = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
ours, theirs = Vector(ctypes.addressof(buffer), 8), Vector(address, 8)
print("stuck", flush=True)
libc.process_vm_readv(os.getpid(), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
"""

# Forks children that fork and end at once, as fast as it can: what a gathering must keep up with.
FORKING = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                time.sleep(0.02)
                os._exit(0)
            time.sleep(0.001)
while True:
    time.sleep(0.01)
"""


@pytest.fixture(params=[2, 1])
def hierarchy(request: pytest.FixtureRequest) -> Hierarchy:
    found = cgroups.unified() if request.param == 2 else cgroups.freezer_v1()
    if found is None:
        pytest.skip(f"no freezer of version {request.param} is mounted")
    return found


@pytest.fixture
def unified() -> Hierarchy:
    found = cgroups.unified()
    if found is None:
        pytest.skip("no cgroup version 2 is mounted")
    return found


@contextmanager
def running(program: str, *, cgroup: str = "") -> Iterator[subprocess.Popen[str]]:
    """The program; in this cgroup before it can fork, else where the test is."""
    join = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', cgroup) if cgroup else ()
    process = subprocess.Popen(
        [*join, sys.executable, "-I", "-S", "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in [*descendants((Pid(process.pid),), all_processes())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def gathering(subject: Pid, journal: RecordingJournal) -> GatheringFreezer:
    return GatheringFreezer(
        Gathering(
            subject="the test",
            operation_id=living_operation(),
            members=lambda table, known: descendants({subject, *known}, table),
            note=journal.note,
        ),
        journal,
    )


def test_a_task_that_cannot_be_frozen_is_named_with_what_it_waits_in_and_the_rest_runs_on(
    hierarchy: Hierarchy,
) -> None:
    with scratch_cgroup(hierarchy) as place, ticking(2) as subject, running(STUCK) as stuck:
        assert stuck.stdout is not None
        if stuck.stdout.readline() != "stuck\n":
            pytest.skip("no userfaultfd here")
        await_true(lambda: _state(stuck.pid) == "D", "the process is stuck in the kernel")
        subject.move_into(place)
        cgroups.add_process(place, Pid(stuck.pid))
        journal = RecordingJournal()
        with pytest.raises(FreezeTimeout) as caught:
            CgroupFreezer(place, journal).freeze(Nanoseconds(50 * MILLISECOND))
        assert len(caught.value.tasks) == 1
        assert f"({stuck.pid}) is in state D, waits in handle_userfault" in caught.value.tasks[0]
        assert "50 ms" in caught.value.message
        assert caught.value.exit_code == 12
        assert subject.runs()
        assert not journal.open_steps


def test_nested_cgroups_are_frozen_with_the_one_above(hierarchy: Hierarchy) -> None:
    with scratch_cgroup(hierarchy) as place, ticking(2) as subject:
        below = place + "/a/b"
        cgroups.make(below)
        cgroups.add_process(place, subject.pids()[0])
        cgroups.add_process(below, subject.pids()[1])
        freezer = CgroupFreezer(place, RecordingJournal())
        freezer.freeze(TIMEOUT)
        assert subject.stands_still()
        freezer.thaw()
        assert subject.runs()


@pytest.mark.parametrize("where", ["above", "below"])
def test_a_freeze_from_above_or_below_is_refused_because_criu_would_hang_in_it(
    hierarchy: Hierarchy, where: str
) -> None:
    with scratch_cgroup(hierarchy) as top, ticking(1) as subject:
        place = top + "/workload"
        cgroups.make(place + "/inner")
        subject.move_into(place + "/inner")
        other = control_of(top if where == "above" else place + "/inner")
        assert other is not None
        other.freeze(TIMEOUT)
        journal = RecordingJournal()
        with pytest.raises(WrongState, match="is frozen, and a checkpoint of"):
            CgroupFreezer(place, journal).freeze(TIMEOUT)
        assert not journal.noted
        assert other.held()
        other.thaw()
        assert subject.runs()


def test_a_tree_is_gathered_below_its_own_cgroup_and_put_back_where_each_process_was(
    unified: Hierarchy,
) -> None:
    with scratch_cgroup(unified) as place, ticking(3) as subject, ticking(1) as neighbour:
        neighbour.move_into(place)
        cgroups.make(place + "/a")
        first, second, third = subject.pids()
        cgroups.add_process(place, first)
        cgroups.add_process(place + "/a", second)
        cgroups.add_process(place + "/a", third)
        journal = RecordingJournal()
        freezer = gathering(subject.root, journal)
        assert os.path.dirname(freezer.cgroup) == place
        freezer.gather()
        noted = journal.noted[0]
        assert isinstance(noted, Gathered)
        assert {origin.pid: origin.cgroup for origin in noted.origins} == {
            first: place,
            second: place + "/a",
            third: place + "/a",
        }
        freezer.freeze(TIMEOUT)
        assert subject.stands_still()
        assert neighbour.runs()
        freezer.thaw()
        os.rmdir(place + "/a")  # gone meanwhile: its processes go into the one above
        freezer.release()
        assert subject.place(unified) == {place}
        assert not os.path.exists(freezer.cgroup)
        assert subject.runs()
        assert not journal.open_steps


def test_a_tree_that_forks_all_the_time_is_gathered_whole_and_put_back_whole(unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place, running(FORKING, cgroup=place) as forking:
        await_true(lambda: len(_tree(forking.pid)) > 10, "the tree forks")
        freezer = gathering(Pid(forking.pid), RecordingJournal())
        freezer.gather()
        freezer.freeze(TIMEOUT)
        inside = set(cgroups.processes_below(freezer.cgroup))
        alive = {pid for pid in _tree(forking.pid) if is_running(pid)}
        assert alive <= inside
        freezer.thaw()
        freezer.release()
        assert not os.path.exists(freezer.cgroup)
        await_true(
            lambda: all(
                cgroups.cgroup_of(pid, unified) == place or not is_running(pid) for pid in _tree(forking.pid)
            ),
            "all are back",
        )


def test_a_process_born_inside_goes_back_to_where_its_parent_came_from(unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place, ExitStack() as stack:
        cgroups.make(place + "/a")
        forking = stack.enter_context(running(FORKING, cgroup=place + "/a"))
        await_true(lambda: len(_tree(forking.pid)) > 3, "the tree forks")
        freezer = gathering(Pid(forking.pid), RecordingJournal())
        freezer.gather()
        before = set(_tree(forking.pid))
        await_true(lambda: len(set(_tree(forking.pid)) - before) > 3, "processes are born inside")
        freezer.freeze(TIMEOUT)
        born = {pid for pid in set(_tree(forking.pid)) - before if is_running(pid)}
        assert born
        freezer.release()
        places = {pid: cgroups.cgroup_of(pid, unified) for pid in born}
        assert all(places[pid] == place + "/a" for pid in born if is_running(pid))


def test_a_threaded_cgroup_is_refused_because_its_threads_could_not_be_put_back(unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place, ticking(1) as subject:
        subject.move_into(place)
        cgroups.make(place + "/t")
        cgroups.write(place + "/t", "cgroup.type", "threaded")
        cgroups.write(place + "/t", "cgroup.threads", str(subject.root))
        with pytest.raises(CannotCheckpoint, match="threaded cgroup"):
            gathering(subject.root, RecordingJournal())
        cgroups.write(place, "cgroup.threads", str(subject.root))


def test_a_zombie_of_the_tree_does_not_stop_kill(unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place:
        subject = Ticking(2)
        try:
            subject.move_into(place)
            os.kill(subject.pids()[1], signal.SIGKILL)
            await_true(lambda: _state(subject.pids()[1]) == "Z", "the child is a zombie")
            freezer = CgroupFreezer(place, RecordingJournal())
            freezer.freeze(TIMEOUT)
            freezer.kill()
            assert not subject.alive()
            assert Path(f"/proc/{subject.root}").exists()  # our own child, not reaped yet: it keeps its pid
        finally:
            subject.end()


def _tree(pid: int) -> list[Pid]:
    return list(descendants((Pid(pid),), all_processes()))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
