"""What users name, resolved against real processes and cgroups; every bad target has its sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.controllers import controller, said
from real.ticking import Ticking, await_true, scratch_cgroup, ticking

from ckpt.errors import CannotCheckpoint, CkptError, Locked, NoSuchTarget
from ckpt.host import cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.host.freezer import GatheringFreezer
from ckpt.host.operations import JournaledOperations
from ckpt.host.process_table import all_processes
from ckpt.host.targets import HostTargets
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import JobName

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root"),
]


@pytest.fixture
def unified() -> Hierarchy:
    found = cgroups.unified()
    if found is None:
        pytest.skip("no cgroup version 2 is mounted")
    return found


@pytest.fixture
def targets(tmp_path: Path) -> HostTargets:
    return HostTargets(str(tmp_path), lambda _: None)


@pytest.fixture
def subject() -> Iterator[Ticking]:
    with ticking(2) as tree:
        yield tree


def pid(number: int | str) -> TargetRef:
    return TargetRef(kind=TargetKind.PID, name=str(number))


def cgroup(path: str) -> TargetRef:
    return TargetRef(kind=TargetKind.CGROUP, name=path)


def job(name: str) -> TargetRef:
    return TargetRef(kind=TargetKind.JOB, name=name)


def test_a_tree_that_shares_its_cgroup_must_be_gathered(targets: HostTargets, subject: Ticking) -> None:
    target = targets.resolve(pid(subject.root))
    assert target == Target(ref=pid(subject.root), cgroup="", roots=(subject.root,), job=None)


def test_a_tree_that_has_a_cgroup_to_itself_is_frozen_there(
    targets: HostTargets, subject: Ticking, unified: Hierarchy
) -> None:
    with scratch_cgroup(unified) as place:
        subject.move_into(place)
        assert targets.resolve(pid(subject.root)).cgroup == place
        cgroups.make(place + "/a")
        cgroups.add_process(place + "/a", subject.pids()[1])
        assert targets.resolve(pid(subject.root)).cgroup == place
        assert targets.resolve(pid(subject.pids()[1])).cgroup == place + "/a"


@pytest.mark.parametrize("form", ["{absolute}", "{relative}", "/{relative}", "{absolute}/../{relative}"])
def test_a_cgroup_is_found_by_each_way_to_write_its_path(
    targets: HostTargets, subject: Ticking, unified: Hierarchy, form: str
) -> None:
    with scratch_cgroup(unified) as place, ticking(1) as second:
        subject.move_into(place)
        second.move_into(place)
        name = form.format(absolute=place, relative=os.path.basename(place))
        target = targets.resolve(cgroup(name))
        assert target.cgroup == place
        assert target.roots == tuple(sorted((subject.root, second.root)))


def test_a_cgroup_of_a_controller_without_a_freezer_is_gathered_whole(
    targets: HostTargets, tmp_path: Path, unified: Hierarchy
) -> None:
    memory = next((each for each in cgroups.hierarchies() if "memory" in each.controllers), None)
    if memory is None:
        pytest.skip("no version-1 memory controller is mounted")
    place = f"{memory.mountpoint}/ckpt-test-freezer-targets"
    os.mkdir(place)
    try:
        with ticking(2) as first, ticking(1) as second, ticking(1) as neighbour:
            first.move_into(place)
            second.move_into(place)
            target = targets.resolve(cgroup(place))
            assert target.cgroup == ""
            operation = JournaledOperations(str(tmp_path)).begin("a test")
            freezer = targets.freezer(target, operation)
            assert isinstance(freezer, GatheringFreezer)
            freezer.gather()
            assert set(cgroups.processes_below(freezer.cgroup)) == {*first.pids(), *second.pids()}
            assert neighbour.place(unified) != {freezer.cgroup}
            freezer.release()
            operation.end()
    finally:
        await_true(lambda: cgroups.remove(place), "the cgroup can be removed")


def test_a_job_is_its_cgroup(tmp_path: Path, subject: Ticking, unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place:
        subject.move_into(place)
        targets = HostTargets(str(tmp_path), {JobName("web"): place}.get)
        assert targets.resolve(job("web")) == Target(
            ref=job("web"), cgroup=place, roots=(subject.root,), job=JobName("web")
        )


def refused(targets: HostTargets, ref: TargetRef, kind: type[CkptError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        targets.resolve(ref)
    for word in words:
        assert word in caught.value.message + caught.value.advice


def test_no_such_pid(targets: HostTargets) -> None:
    refused(targets, pid(4194305), NoSuchTarget, "There is no process 4194305")
    refused(targets, pid("twelve"), NoSuchTarget, "There is no process twelve")


def test_a_thread_is_not_a_process_and_its_process_is_named(targets: HostTargets) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        tid = thread.native_id or 0
        refused(targets, pid(tid), NoSuchTarget, f"{tid} is a thread of process {os.getpid()}")
    finally:
        stop.set()
        thread.join()


def test_a_kernel_thread(targets: HostTargets) -> None:
    kernel = next((stat for stat in all_processes().values() if stat.kernel_thread), None)
    if kernel is None:
        pytest.skip("this PID namespace has no kernel threads")
    refused(targets, pid(kernel.pid), CannotCheckpoint, str(kernel.pid), "is a thread of the kernel")


def test_ourselves_an_ancestor_of_ours_and_init(targets: HostTargets) -> None:
    ours, parent = os.getpid(), os.getppid()
    refused(targets, pid(ours), CannotCheckpoint, f"process {ours}", "is this very ckpt", "from outside")
    if parent > 1:
        refused(
            targets,
            pid(parent),
            CannotCheckpoint,
            f"process {parent}",
            f"ancestor of this ckpt (process {ours})",
        )
    refused(targets, pid(1), CannotCheckpoint, "is the init of this host")


def test_a_zombie(targets: HostTargets) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        refused(targets, pid(process.pid), CannotCheckpoint, "has ended", f"process {os.getpid()}")
    finally:
        process.wait()


def test_no_such_cgroup_and_a_directory_that_is_none(targets: HostTargets, tmp_path: Path) -> None:
    refused(targets, cgroup("no/such/group"), NoSuchTarget, "There is no cgroup no/such/group")
    refused(targets, cgroup(str(tmp_path)), NoSuchTarget, f"There is no cgroup {tmp_path}")


def test_an_empty_cgroup(targets: HostTargets, unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place:
        refused(targets, cgroup(place), NoSuchTarget, f"There is no process in the cgroup {place}")


def test_the_root_cgroup(targets: HostTargets) -> None:
    for hierarchy in cgroups.hierarchies():
        refused(targets, cgroup(hierarchy.mountpoint), CannotCheckpoint, hierarchy.name, "whole host")


def test_a_cgroup_that_holds_us(targets: HostTargets, unified: Hierarchy, tmp_path: Path) -> None:
    with scratch_cgroup(unified) as place:
        program = (
            "import sys\n"
            "from ckpt.host.targets import HostTargets\n"
            "from ckpt.model.target import TargetRef\n"
            "from ckpt.model.workload import TargetKind\n"
            "sys.stdin.read()\n"
            "try:\n"
            "    HostTargets(sys.argv[1], lambda _: None).resolve(TargetRef(kind=TargetKind.CGROUP, name=sys.argv[2]))\n"
            "except Exception as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        inside = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        cgroups.write(place, "cgroup.procs", str(inside.pid))
        said_there, _ = inside.communicate()
        assert said_there.startswith("CannotCheckpoint")
        assert f"process {inside.pid}" in said_there
        assert "is this very ckpt" in said_there


def test_a_threaded_cgroup(targets: HostTargets, unified: Hierarchy, subject: Ticking) -> None:
    with scratch_cgroup(unified) as place:
        subject.move_into(place)
        cgroups.make(place + "/t")
        cgroups.write(place + "/t", "cgroup.type", "threaded")
        refused(targets, cgroup(place + "/t"), CannotCheckpoint, "threaded cgroup")


def test_no_such_job_and_a_job_that_does_not_run(tmp_path: Path, unified: Hierarchy) -> None:
    with scratch_cgroup(unified) as place:
        targets = HostTargets(str(tmp_path), {JobName("web"): place, JobName("old"): place + "/gone"}.get)
        refused(targets, job("mail"), NoSuchTarget, "There is no job mail", "ckpt ps")
        refused(targets, job("web"), NoSuchTarget, "There is no running job web", "ckpt restore")
        refused(targets, job("old"), NoSuchTarget, "There is no running job old")


def test_two_of_us_on_one_workload_by_pid_and_by_cgroup(
    targets: HostTargets, tmp_path: Path, subject: Ticking, unified: Hierarchy
) -> None:
    with scratch_cgroup(unified) as place:
        subject.move_into(place)
        with controller(tmp_path, "cgroup", place, "hold") as process:
            said(process, "cgroup")
            for ref in (pid(subject.root), cgroup(place)):
                with pytest.raises(Locked, match=f"is in use by process {process.pid}"):
                    targets.lock(targets.resolve(ref)).__enter__()
            process.send_signal(signal.SIGKILL)
            process.wait()
        with targets.lock(targets.resolve(cgroup(place))):
            assert subject.runs()
        assert not list((tmp_path / "locks").iterdir())


def test_what_a_dead_controller_left_is_mended_before_anything_is_resolved(
    targets: HostTargets, tmp_path: Path, subject: Ticking
) -> None:
    with controller(tmp_path, "pid", str(subject.root), "hold") as process:
        guardian = int(said(process, "guardian"))
        said(process, "cgroup")
        os.kill(guardian, signal.SIGKILL)
        process.kill()
        process.wait()
        assert subject.stands_still()
        assert targets.resolve(pid(subject.root)).cgroup == ""
        assert subject.runs()
