"""Locks and the process table, without a workload."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt.errors import Locked, OsRefused
from ckpt.host.locks import exclusive
from ckpt.host.process_table import (
    ProcessRef,
    ProcessStat,
    descendants,
    is_alive,
    stat_of,
    thread_group_of,
)
from ckpt.units import Pid


def process(pid: int, parent: int) -> ProcessStat:
    return ProcessStat(
        pid=Pid(pid),
        name="x",
        state="S",
        parent=Pid(parent),
        exiting=False,
        kernel_thread=False,
        start_ticks=1,
    )


def test_descendants_are_found_at_every_depth_and_those_of_others_are_not() -> None:
    table = {Pid(n): process(n, parent) for n, parent in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 1))}
    assert descendants([Pid(2)], table) == {2, 3, 4}
    assert descendants([Pid(3), Pid(5), Pid(99)], table) == {3, 4, 5}


def test_parents_that_form_a_ring_by_reused_pids_end_the_search() -> None:
    table = {Pid(2): process(2, 3), Pid(3): process(3, 2)}
    assert descendants([Pid(2)], table) == {2, 3}


def test_a_name_with_blanks_and_parentheses_is_read() -> None:
    named = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; open('/proc/self/comm', 'w').write(') S 1 (x'); print(flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert named.stdout is not None
        named.stdout.readline()
        stat = stat_of(named.pid)
        assert stat is not None
        assert (stat.name, stat.parent) == (") S 1 (x", os.getpid())
    finally:
        named.communicate()


def test_a_process_is_alive_by_its_start_time_and_not_by_its_pid() -> None:
    stat = stat_of(os.getpid())
    assert stat is not None
    assert is_alive(stat.ref)
    assert not is_alive(ProcessRef(pid=stat.pid, start_ticks=stat.start_ticks + 1))
    assert thread_group_of(os.getpid()) == os.getpid()
    assert stat_of(4194305) is None
    assert thread_group_of(4194305) is None


def test_a_lock_names_its_holder_and_is_free_again_afterwards(tmp_path: Path) -> None:
    place = str(tmp_path / "locks")
    with exclusive(place, ["a", "b"], subject="job web"):
        with (
            pytest.raises(Locked, match=f"job web is in use by process {os.getpid()}"),
            exclusive(place, ["b", "c"], subject="job web"),
        ):
            pass
        # Nothing of the refused call is kept.
        with exclusive(place, ["c"], subject="job web"):
            pass
    assert os.listdir(place) == []
    with exclusive(place, ["b"], subject="job web"):
        pass


def test_a_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    program = (
        "import os, sys; from ckpt.host.locks import exclusive\n"
        "with exclusive(sys.argv[1], ['a'], subject='x'): os._exit(0)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, cwd=Path(__file__).resolve().parents[3]
    )
    assert os.listdir(tmp_path) == ["a"]
    with exclusive(str(tmp_path), ["a"], subject="x"):
        pass


def test_a_place_that_cannot_hold_locks_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OsRefused, match="file"), exclusive(f"{tmp_path}/file/locks", ["a"], subject="x"):
        pass
