"""A program that lives by its files' device and inode numbers, restored where the files have other ones.

It is dumped, its files are replaced, it is restored, and asked for everything that it holds; then a second connection
to its database is opened and closed, for a wrong identity shows as lost rows only after that.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.filesystems import mounted
from harness.identity import Victim, change_device, compile_static, replace_files, replace_folder
from harness.processes import MARK
from harness.subjects import Workload
from harness.traces import Traces

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]

# Held by a descriptor, and of a kind whose content can be moved to another inode.
PLACEABLE = {
    "notes",
    "mapped",
    "locked",
    "rollback.db",
    "wal.db",
    "wal.db-wal",
    "followed.log",
    "watched.log",
}


class Life:
    """The victim, as a job or in a cgroup, on a file system of its own; through dump and restore."""

    def __init__(self, ckpt: Ckpt, workload: Workload, programs: Path, place: Path) -> None:
        self._ckpt = ckpt
        self._workload = workload
        self._target: list[object] = []
        self._place = place
        files = place / "files"
        files.mkdir()
        self.victim = Victim(files, place.with_name("control"), programs)

    def start_in_cgroup(self) -> None:
        self._workload.spawn(self.victim.command(), self._place.parent)
        self._target = ["--cgroup", self._workload.cgroup]
        self.victim.await_ready()

    def start_as_job(self) -> None:
        self._target = [self._ckpt.new_job_name()]
        started = self._ckpt("run", "--detach", "--name", *self._target, "--", *self.victim.command())
        self._workload.cgroup = Cgroup(Path(started["cgroup"]))
        self.victim.await_ready()

    def change(self, change: Callable[[], None], policy: str, **environ: str) -> list[dict[str, Any]]:
        """Dump it, change its files while nothing of it runs, and restore it; returns what became of the files."""
        dumped = self._ckpt("dump", *self._target, "--stop", **environ)
        self._workload.await_empty()
        change()
        restored = self._ckpt("restore", dumped["id"], "--inodes", policy, **environ)
        self._workload.cgroup = Cgroup(Path(restored["cgroup"]))
        if "--cgroup" in self._target:
            self._target = ["--cgroup", self._workload.cgroup]
        outcomes: list[dict[str, Any]] = restored.get("inodes", [])
        return outcomes

    def replace_files(self) -> None:
        replace_files(self.victim.files)

    def replace_folder(self) -> None:
        replace_folder(self.victim.files)

    def change_device(self) -> None:
        change_device(self._place)

    def filters(self) -> set[int]:
        """How many seccomp filters its processes have."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self._workload.pids()]
        return {int(status.partition("Seccomp_filters:")[2].split()[0]) for status in statuses}

    def rows_at_the_end(self) -> dict[str, tuple[int, str]]:
        """What is in the databases once nothing of it runs any more."""
        self._workload.kill()
        return self.victim.rows()


@pytest.fixture(scope="module")
def programs(compiled: Path) -> Path:
    compile_static(compiled)
    return compiled


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system for the victim to live on: ext4, unless a test asks for others."""
    with mounted(getattr(request, "param", "ext4"), tmp_path) as place:
        yield place


@pytest.fixture
def life(ckpt: Ckpt, workload: Workload, programs: Path, place: Path) -> Life:
    return Life(ckpt, workload, programs, place)


@pytest.mark.parametrize("change", ["folder", "device"])
def test_without_the_identities_it_breaks_and_loses_committed_rows(change: str, life: Life) -> None:
    life.start_in_cgroup()
    assert life.victim.wrong() == {}

    life.change(life.replace_folder if change == "folder" else life.change_device, "ignore")

    wrong = life.victim.wrong()
    assert {
        "watched log, watched.log",
        "cache, notes",
        "hard link, second-name",
        "fstat, a pipe",
    } <= wrong.keys()
    assert "replaced" in wrong["tail -F, polling, followed.log"]
    assert "wrong answers" in wrong[f"static program, {life.victim.files}/notes"]
    # Its journal compares the inode alone.
    assert ("readonly database" in wrong.get("rollback journal, rollback.db", "")) == (change == "folder")

    # All is well with the other database until the process opens it once more.
    assert "write-ahead log, wal.db" not in wrong
    life.victim.ask("second")
    life.victim.ask("write")
    committed = life.victim.ask("check")["rows"]["wal"]
    rows, verdict = life.rows_at_the_end()["wal"]
    assert rows < committed
    assert verdict == "ok"


@pytest.mark.parametrize("way", ["placed", "virtual", "virtual without a patched libc"])
def test_it_goes_on_as_before_over_two_rounds(way: str, life: Life) -> None:
    method, *unpatched = way.split(" without ")
    environ = {"CKPT_INODE_METHODS": "placed,virtual" if method == "placed" else "virtual"}
    environ |= {"CKPT_INODE_PATCH": "no"} if unpatched else {}
    (life.start_in_cgroup if method == "placed" else life.start_as_job)()
    assert life.victim.wrong() == {}

    changes = [life.replace_files] * 2 if method == "placed" else [life.replace_folder, life.change_device]
    outcomes: list[dict[str, Any]] = []
    for change in changes:
        outcomes = life.change(change, "keep", **environ)
        check_outcomes(outcomes, life.victim.files, method)
        check_victim(life, outcomes)
        for order in ("second", "write", "exec"):
            life.victim.ask(order)

    check_victim(life, outcomes)
    assert life.victim.wrong("rotate") == {}
    committed = life.victim.ask("check")["rows"]
    assert life.rows_at_the_end() == {name: (rows, "ok") for name, rows in committed.items()}


@pytest.mark.parametrize("place", ["xfs", "btrfs", "tmpfs", "overlay"], indirect=True)
def test_it_goes_on_as_before_on_other_file_systems(life: Life) -> None:
    life.start_in_cgroup()
    outcomes = life.change(life.replace_folder, "keep", CKPT_INODE_METHODS="virtual")
    check_outcomes(outcomes, life.victim.files, "virtual")
    for order in ("second", "write"):
        life.victim.ask(order)
    check_victim(life, outcomes)


def test_the_demo_shows_the_failures_and_none_with_keep(traces: Traces) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/lib/demo_inodes.py"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, MARK: traces.mark},
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert traces.processes() == []


def check_outcomes(outcomes: list[dict[str, Any]], files: Path, method: str) -> None:
    """What the restore says is what was seen to be so, and the files went the way that was asked for."""
    assert [outcome for outcome in outcomes if outcome["seen"] != outcome["recorded"]] == []
    ways = {outcome["path"]: outcome["method"] for outcome in outcomes}
    assert {ways.get(f"{files}/{name}") for name in PLACEABLE} == {method}


def check_victim(life: Life, outcomes: list[dict[str, Any]]) -> None:
    """The program itself finds nothing wrong, and has one filter at the most, however often it was restored.

    A directory's entries come from the file system itself: no layer above it can answer for them.
    """
    virtual = {str(outcome["recorded"]["inode"]) for outcome in outcomes if outcome["method"] == "virtual"}
    wrong = life.victim.wrong()
    excused = {
        what for what, how in wrong.items() if what.startswith("listing") and how.split()[1] in virtual
    }
    assert {what: how for what, how in wrong.items() if what not in excused} == {}
    assert life.filters() <= {0, 1}
