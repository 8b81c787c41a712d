"""Locks between ckpt processes, and those of processes that died."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ckpt.errors import Locked
from ckpt.host import locks

HOLDER = """
import sys
import threading
from ckpt.host.locks import exclusive
with exclusive(sys.argv[1], ["web"], subject="web"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_a_lock_that_is_held_names_its_holder_and_is_not_swept(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        with (
            pytest.raises(Locked, match=f"process {holder.pid}"),
            locks.exclusive(str(tmp_path), ["web"], subject="job web"),
        ):
            pass
        locks.sweep(str(tmp_path))
        assert list(tmp_path.iterdir()) == [tmp_path / "web"]
        holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_holder_left_locks_nobody_and_is_swept(tmp_path: Path) -> None:
    for _ in range(2):
        with hold(tmp_path) as holder:
            holder.kill()
    assert list(tmp_path.iterdir()) == [tmp_path / "web"]
    locks.sweep(str(tmp_path))
    locks.sweep(str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_being_swept_after_a_holder_that_nobody_has_reaped_is_waited_for(
    tmp_path: Path,
) -> None:
    dead = hold(tmp_path)
    dead.kill()
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its pid still leads to it
    swept = os.open(tmp_path / "web", os.O_RDWR)
    fcntl.flock(swept, fcntl.LOCK_EX)
    letting_go = threading.Timer(0.05, os.close, [swept])
    letting_go.start()
    with locks.exclusive(str(tmp_path), ["web"], subject="job web"):
        pass
    letting_go.join()
    with dead:
        pass


def test_what_another_one_is_in_the_way_of_is_tried_again_until_patience_ends() -> None:
    attempts: list[int] = []

    def third_time() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise Locked(subject="Job web", holder="process 1")
        return "done"

    def never() -> None:
        raise Locked(subject="Job web", holder="process 1")

    assert locks.patiently(third_time, 5.0) == "done"
    with pytest.raises(Locked):
        locks.patiently(never, 0.1)
    with pytest.raises(Locked):
        locks.patiently(never, 600.0, gives_up=lambda: True)
