"""What the port `Memory` promises of a cgroup: the fake, and this host's, version 1 or 2; and what `Pressure` tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.guarding import MIB, WATCHED, GuardWorld
from harness.memory import set_limit
from harness.subjects import PYTHON
from harness.waiting import await_condition

from ckpt.errors import Locked, WrongState
from ckpt.flow.guard_ports import Memory
from ckpt.host import cgroups
from ckpt.host.guard import controls
from ckpt.host.guard.memory import HostMemory
from ckpt.host.guard.pressure import HostPressure, HostPressures
from ckpt.model.guard_steps import (
    AtOom,
    AtPsi,
    AtShare,
    KillVictim,
    Reclaim,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Watched,
)
from ckpt.units import MILLISECOND, SECOND, ByteCount, Nanoseconds

PATIENCE = Nanoseconds(10 * SECOND)

_HOLD = """
import sys
held = []
for line in sys.stdin:
    size = int(line)
    if size < 0:
        del held[:]
    else:
        held.append(bytes([1]) * (size << 20))
    print("done", flush=True)
"""


class Holder:
    """A process in a cgroup that takes memory as told."""

    def __init__(self, cgroup: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', cgroup, PYTHON, "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, size: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size}\n")
        self._process.stdin.flush()

    def take(self, size: int) -> None:
        """Take that many MiB; all is let go with a number below 0."""
        self.ask(size)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class Setup:
    """The memory of one cgroup with a limit of 64 MiB, and how it is filled."""

    memory: Memory
    cgroup: str
    take: Callable[[int], None]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Path]:
    """A memory cgroup with a limit of 64 MiB."""
    if os.geteuid() != 0 or (hierarchy := controls.hierarchy()) is None:
        pytest.skip("memory cgroups need root, and a controller")
    place = Path(hierarchy.mountpoint) / f"ckpt-test-{os.getpid()}-{tmp_path.name[:40]}"
    place.mkdir()
    set_limit(place, 64 * MIB)
    yield place
    await_condition(lambda: cgroups.remove(str(place)), f"{place} to be removed")


@pytest.fixture
def holder(box: Path) -> Iterator[Holder]:
    holder = Holder(box)
    yield holder
    holder.close()


@pytest.fixture(params=["fake", "host"])
def setup(request: pytest.FixtureRequest) -> Setup:
    if request.param == "fake":
        world = GuardWorld(limit=64 * MIB)

        def take(size: int) -> None:
            world.jobs["web"] = 0 if size < 0 else world.jobs.get("web", 0) + size * MIB

        return Setup(memory=world.ports().memory, cgroup=WATCHED.cgroup, take=take)
    box: Path = request.getfixturevalue("box")
    holder: Holder = request.getfixturevalue("holder")
    return Setup(memory=HostMemory(), cgroup=str(box), take=holder.take)


def test_a_reading_tells_what_is_used_of_which_limit(setup: Setup) -> None:
    setup.take(32)
    reading = setup.memory.read(setup.cgroup)
    assert reading is not None
    assert reading.limit == 64 * MIB
    assert 32 * MIB <= reading.usage < 48 * MIB
    assert not reading.under_oom
    assert reading.is_below(0.8)
    assert not reading.is_below(0.5)
    assert setup.memory.read(f"{setup.cgroup}/none") is None
    assert setup.memory.available() > 0


def test_a_limit_is_raised_by_steps_and_never_above_what_is_allowed(setup: Setup) -> None:
    assert setup.memory.raise_limit(setup.cgroup, ByteCount(32 * MIB), ByteCount(112 * MIB)) == 96 * MIB
    assert setup.memory.raise_limit(setup.cgroup, ByteCount(32 * MIB), ByteCount(112 * MIB)) == 112 * MIB
    with pytest.raises(WrongState):
        setup.memory.raise_limit(setup.cgroup, ByteCount(32 * MIB), ByteCount(112 * MIB))
    reading = setup.memory.read(setup.cgroup)
    assert reading is not None
    assert reading.limit == 112 * MIB


def test_waiting_for_less_ends_with_it_or_with_the_patience(setup: Setup) -> None:
    setup.take(40)
    after = setup.memory.await_below(setup.cgroup, 0.5, Nanoseconds(50 * MILLISECOND))
    assert after is not None
    assert not after.is_below(0.5)
    setup.take(-1)
    after = setup.memory.await_below(setup.cgroup, 0.5, PATIENCE)
    assert after is not None
    assert after.is_below(0.5)


def test_reclaiming_what_is_in_use_does_no_harm(setup: Setup) -> None:
    setup.take(32)
    setup.memory.reclaim(setup.cgroup, 0.1)
    reading = setup.memory.read(setup.cgroup)
    assert reading is not None
    assert reading.usage >= 32 * MIB


@dataclass
class Opened:
    """A guard's ears on the box."""

    pressure: HostPressure
    cgroup: str

    def hears(self) -> frozenset[Event]:
        """The next that comes for the box."""
        found = await_condition(
            lambda: self.pressure.wait(Nanoseconds(SECOND)).get(self.cgroup), "something to be heard"
        )
        assert found is not None
        return found


@pytest.fixture
def listen(box: Path, tmp_path: Path) -> Iterator[Callable[[Policy], Opened]]:
    with ExitStack() as opened:

        def begin(policy: Policy) -> Opened:
            watched = Watched(cgroup=str(box), psi="/proc/pressure/memory")
            pressures = HostPressures(str(tmp_path / "state"), {})
            return Opened(
                pressure=opened.enter_context(pressures.open((watched,), policy)), cgroup=watched.cgroup
            )

        yield begin


def test_a_share_that_is_passed_is_told(listen: Callable[[Policy], Opened], holder: Holder) -> None:
    opened = listen(Policy(at=AtShare(share=0.5)))
    assert opened.pressure.wait(Nanoseconds(0)) == {}
    holder.take(40)
    assert opened.hears() == {Event.THRESHOLD}


def test_a_limit_that_is_reached_is_told_and_nobody_is_killed(
    listen: Callable[[Policy], Opened], holder: Holder, box: Path
) -> None:
    if controls.is_version_2(str(box)):
        pytest.skip("with version 2 a process that takes all at once is killed")
    opened = listen(Policy(at=AtOom(), steps=(KillVictim(),)))
    holder.ask(100)
    assert Event.OOM in opened.hears()
    reading = HostMemory().read(opened.cgroup)
    assert reading is not None
    assert reading.under_oom
    # A limit that somebody raises wakes the guard, and what waited goes on.
    set_limit(box, 256 * MIB)
    opened.pressure.wait(Nanoseconds(5 * SECOND))
    assert HostMemory().await_below(opened.cgroup, 0.9, PATIENCE) is not None


def test_another_limit_has_another_threshold(
    listen: Callable[[Policy], Opened], holder: Holder, box: Path
) -> None:
    opened = listen(Policy(at=AtShare(share=0.5)))
    set_limit(box, 128 * MIB)
    while opened.pressure.wait(Nanoseconds(0)):
        pass
    holder.take(40)
    assert opened.pressure.wait(Nanoseconds(200 * MILLISECOND)) == {}
    holder.take(40)
    assert opened.hears() == {Event.THRESHOLD}


def test_how_long_tasks_waited_can_be_asked_for(listen: Callable[[Policy], Opened]) -> None:
    if not Path("/proc/pressure/memory").exists():
        pytest.skip("this kernel has no PSI")
    psi = AtPsi(full=False, stall_ns=Nanoseconds(200 * MILLISECOND), window_ns=Nanoseconds(2 * SECOND))
    opened = listen(Policy(steps=(Reclaim(at=psi),)))
    assert opened.pressure.wait(Nanoseconds(0)) == {}


def test_one_cgroup_has_one_guard_and_is_left_as_it_was_found(
    listen: Callable[[Policy], Opened], box: Path, tmp_path: Path
) -> None:
    name = controls.HIGH if controls.is_version_2(str(box)) else controls.OOM_CONTROL
    before = (box / name).read_text()
    listen(Policy())
    assert (box / name).read_text() != before
    second = HostPressures(str(tmp_path / "state"), {})
    with pytest.raises(Locked), second.open((Watched(cgroup=str(box)),), Policy()):
        pass
    assert (box / name).read_text() != before


def test_what_was_set_is_set_back(box: Path, tmp_path: Path) -> None:
    name = controls.HIGH if controls.is_version_2(str(box)) else controls.OOM_CONTROL
    before = (box / name).read_text()
    with HostPressures(str(tmp_path / "state"), {}).open((Watched(cgroup=str(box)),), Policy()):
        assert (box / name).read_text() != before
    assert (box / name).read_text() == before
    assert list((tmp_path / "state/operations").iterdir()) == []
