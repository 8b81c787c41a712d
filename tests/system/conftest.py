"""What the system tests start from: real programs, real CRIU, the real command, and a machine left as it was.

Where root or CRIU is missing they skip and say why; with CKPT_REQUIRE_SYSTEM=1 they fail instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from harness import bare_criu
from harness.cgroups import unified_mount
from harness.command import PROGRAM, Ckpt
from harness.leaks import Machine
from harness.pauses import Pauses
from harness.side_by_side import WORKER, taking_part
from harness.subjects import Workload, compile_subjects
from harness.traces import Traces
from harness.waiting import await_condition

SELFTEST = Path(__file__).parents[2] / "scripts/lib/criu_selftest.py"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the other workers before the time of the test begins to count."""
    with taking_part(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def _obstacle() -> str | None:
    """Why system tests cannot run here."""
    if os.geteuid() != 0:
        return "CRIU needs root"
    if unified_mount() is None:
        return "no cgroup version 2 is mounted"
    if (criu := bare_criu.find()) is None:
        return "there is no CRIU: run scripts/setup"
    done = subprocess.run(
        [sys.executable, SELFTEST, criu], check=False, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip() if done.returncode else None


@pytest.fixture(scope="session")
def criu() -> Path:
    """A CRIU that was seen to work here."""
    if obstacle := _obstacle():
        if os.environ.get("CKPT_REQUIRE_SYSTEM") == "1":
            pytest.fail(f"system tests are required, but {obstacle}")
        pytest.skip(f"{obstacle} (CKPT_REQUIRE_SYSTEM=1 makes this a failure)")
    found = bare_criu.find()
    assert found is not None
    return found


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fail the run if processes, cgroups, mounts or network locks outlive it."""
    before = Machine.now()
    yield
    # The kernel, and PID 1 as the parent of orphans, take a moment; what another worker has just then, a test of its.
    await_condition(
        lambda: not Machine.now().since(before),
        lambda: f"these to go away: {Machine.now().since(before)}",
        timeout_s=60 if WORKER else 10,
    )


@pytest.fixture
def pauses() -> Iterator[Pauses]:
    """What tells a time that took too long from one in which the machine stood still."""
    pauses = Pauses()
    pauses.start()
    yield pauses
    pauses.stop()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled C subjects."""
    return compile_subjects(tmp_path_factory.mktemp("subjects"))


@pytest.fixture
def traces(criu: Path, tmp_path: Path) -> Iterator[Traces]:
    """The mark of this test; all that carries it is removed afterwards."""
    traces = Traces(tmp_path)
    yield traces
    traces.remove()


@pytest.fixture
def new_workload(traces: Traces, compiled: Path) -> Callable[[], Workload]:
    """Makes workloads, each with a cgroup of its own."""
    made: list[Workload] = []

    def make() -> Workload:
        made.append(Workload(traces, compiled, f"-{len(made)}"))
        return made[-1]

    return make


@pytest.fixture
def workload(new_workload: Callable[[], Workload]) -> Workload:
    """A workload without programs."""
    return new_workload()


@pytest.fixture
def ckpt(traces: Traces) -> Iterator[Ckpt]:
    """The command, with a store and a state of this test's own."""
    assert PROGRAM.exists(), f"{PROGRAM} is not there: run scripts/setup"
    command = Ckpt(traces)
    yield command
    command.close()


@pytest.fixture
def bare(criu: Path) -> Iterator[bare_criu.BareCriu]:
    """CRIU without ckpt."""
    bare = bare_criu.BareCriu(criu)
    yield bare
    bare.close()
