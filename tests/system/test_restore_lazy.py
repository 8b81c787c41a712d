"""A workload goes on before its memory has come out of the store: all of it comes, and nothing runs on without."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.subjects import Program, Workload
from harness.traces import Traces
from harness.waiting import await_condition
from real.crashing import Counting, Crash, Scene

pytestmark = pytest.mark.system

DAMAGED = 42


class Large(Counting):
    """It looks at 4 of its blocks of 1 MiB at each tick: it is at all of them again after 64 ticks."""

    size_mib = 256


class Small(Counting):
    """The same in 16 ticks."""

    size_mib = 64


LOOKED_AT_ALL = 130
"""So many ticks cover all blocks of either, whole."""


@pytest.fixture
def scene(ckpt: Ckpt, traces: Traces) -> Scene:
    return Scene(ckpt, traces)


class Stopped:
    """A job of one large program, dumped and stopped."""

    def __init__(self, scene: Scene, workload: Workload) -> None:
        self.scene = scene
        self.program: Program = workload.new(Large)
        self.job = scene.ckpt.new_job_name()
        started = scene.ckpt("run", "--detach", "--name", self.job, "--", *self.program.command())
        self.cgroup = Cgroup(Path(started["cgroup"]))
        self.program.pid = started["pid"]
        self.program.await_ready()
        self.program.remember()
        self.id: str = scene.ckpt("dump", self.job, "--stop")["id"]
        self.program.was_taken_back()
        scene.remember(alive=[])

    def first_tick_after(self, number: int) -> int:
        """When (CLOCK_REALTIME) it first ticked after the first `number` ticks."""
        return int(self.program.log.ticks()[number]["realtime_ns"])

    def ticks(self) -> int:
        return len(self.program.log.ticks())

    def packs(self) -> list[Path]:
        return [path for path in (self.scene.ckpt.store / "packs").rglob("*") if path.is_file()]

    def assert_whole(self) -> None:
        self.program.await_progress(LOOKED_AT_ALL)
        self.program.check()


@pytest.fixture
def stopped(scene: Scene, workload: Workload) -> Stopped:
    return Stopped(scene, workload)


def test_it_goes_on_before_its_memory_is_there_and_all_of_it_comes(stopped: Stopped) -> None:
    scene, before = stopped.scene, stopped.ticks()
    ended = scene.crash("restore", stopped.id, "--lazy", "--json")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    assert document["lazy"]
    assert document["resumed_ms"] < document["total_ms"]
    assert stopped.first_tick_after(before) < ended.when_ns
    stopped.assert_whole()
    # With all memory there it is a job like any other, which can be dumped again.
    again = scene.ckpt("dump", stopped.job)["id"]
    assert scene.ckpt("verify", again)["ok"]
    scene.ckpt("stop", stopped.job)
    scene.await_nothing_left()


def test_trees_of_a_cgroup_find_their_memory_whole_and_so_do_their_children(
    workload: Workload, scene: Scene
) -> None:
    programs = [workload.start(Small), workload.start("tree"), workload.start("shell")]
    checkpoint = scene.ckpt("dump", "--stop", "--cgroup", workload.cgroup)["id"]
    document = scene.ckpt("restore", checkpoint, "--lazy")
    assert len(document["pids"]) == len(programs)
    for program in programs:
        program.await_progress(LOOKED_AT_ALL if isinstance(program, Small) else 25)
        program.check()


def test_what_cannot_have_its_memory_any_more_is_ended_and_can_be_restored_again(stopped: Stopped) -> None:
    scene = stopped.scene
    with scene.stopped_at("follows", "restore", stopped.id, "--lazy") as command:
        assert stopped.cgroup.pids()
        command.kill()
    await_condition(lambda: not stopped.cgroup.pids(), "the workload to end")
    scene.await_nothing_left()
    scene.assert_recovered()
    assert stopped.job in scene.jobs()
    assert stopped.job not in scene.jobs("running")
    stopped.program.check()
    scene.ckpt("restore", stopped.id)
    stopped.program.was_taken_back()
    stopped.assert_whole()


def test_ctrl_c_does_not_end_it(stopped: Stopped) -> None:
    with stopped.scene.stopped_at("follows", "restore", stopped.id, "--lazy") as command:
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGTERM)
    assert stopped.scene.await_end(command).status == 0
    stopped.assert_whole()


@pytest.mark.parametrize(("damage", "exit_code"), [("flipped", DAMAGED), ("away", 41)])
def test_damage_that_is_met_when_it_runs_ends_it_and_names_the_pack(
    damage: str, exit_code: int, stopped: Stopped
) -> None:
    scene, packs = stopped.scene, stopped.packs()
    whole = {path: path.read_bytes() for path in packs}
    with scene.stopped_at("follows", "restore", stopped.id, "--lazy", "--json") as command:
        for path in packs:
            if damage == "away":
                path.unlink()
            else:
                path.write_bytes(_flipped_everywhere(whole[path]))
    ended = scene.await_end(command)
    assert ended.status == exit_code, (ended.out, ended.err)
    error = json.loads(ended.out)["error"]
    assert any(path.name[:12] in error["message"] for path in packs), error
    assert "was ended" in error["hint"]
    assert not stopped.cgroup.pids()
    for path, content in whole.items():
        path.write_bytes(content)
    scene.await_nothing_left()
    stopped.program.check()
    scene.ckpt("restore", stopped.id, "--lazy")
    stopped.program.was_taken_back()
    stopped.assert_whole()


def test_damage_in_what_must_be_there_first_starts_nothing(stopped: Stopped) -> None:
    scene = stopped.scene
    before = stopped.ticks()
    for path in stopped.packs():
        path.write_bytes(b"")
    ended: Crash = scene.crash("restore", stopped.id, "--lazy")
    assert ended.status == DAMAGED, ended.err
    scene.await_nothing_left()
    assert stopped.ticks() == before


@pytest.mark.parametrize("phase", ["fetched", "restored", "kept", "filed"])
def test_kill_9_before_it_goes_on_leaves_nothing(phase: str, stopped: Stopped) -> None:
    crash = stopped.scene.crash("restore", stopped.id, "--lazy", CKPT_FAILPOINT=phase)
    assert crash.status == -signal.SIGKILL, crash.err
    stopped.scene.await_nothing_left()
    stopped.scene.assert_recovered()


@pytest.mark.parametrize("other", [("--count", "2", "--pids", "new"), ("--attach",)])
def test_it_stays_for_one_workload_and_for_its_memory_alone(other: tuple[str, ...], ckpt: Ckpt) -> None:
    error = ckpt.run("restore", "web", "--lazy", *other)
    assert error.returncode == 2
    assert f"--lazy and {other[0]} exclude each other" in error.stderr


def _flipped_everywhere(content: bytes) -> bytes:
    """Each blob has something wrong in it, its beginning and its end being as they were."""
    damaged = bytearray(content)
    for at in range(4096, len(damaged) - (1 << 18), 1 << 16):
        damaged[at] ^= 1
    return bytes(damaged)
