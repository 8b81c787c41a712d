"""An epoll instance that a child has inherited is judged as CRIU sees it: through one of the two."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.waiting import await_condition
from real.checking import findings, names

from ckpt.host.preflight import epoll_rules
from ckpt.model.findings import Severity

pytestmark = pytest.mark.system

#: The parent waits for a pipe and tells of it; its child has the epoll instance too, and has closed the pipe, as a
#: server's does that only writes its data out. The numbers of both are given.
PROGRAM = """
import os, select, sys, time
parent, child, told = sys.argv[1:]
def next_is(pid):
    with open("/proc/sys/kernel/ns_last_pid", "w") as stream: stream.write(str(int(pid) - 1))
next_is(parent)
if os.fork():
    while True: time.sleep(60)
r, w = os.pipe(); poll = select.epoll(); poll.register(r)
next_is(child)
if not os.fork():
    os.close(r); os.close(w); open(told + ".closed", "w").close()
    while True: time.sleep(60)
while True:
    os.write(w, b"x")
    assert poll.poll(5) and os.read(r, 1)
    with open(told, "a") as stream: stream.write("x")
    time.sleep(0.02)
"""


def started(ckpt: Ckpt, told: Path, *, parent: int, child: int) -> dict[str, str]:
    arguments = (sys.executable, "-I", "-S", "-c", PROGRAM, parent, child, told)
    job = ckpt("run", "--detach", "--name", ckpt.new_job_name(), "--", *arguments)
    closed = told.with_name(told.name + ".closed")
    await_condition(lambda: told.exists() and closed.exists(), "the child to close the pipe")
    return job


def test_what_a_child_has_closed_is_no_blocker(ckpt: Ckpt, criu: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    job = started(ckpt, told, parent=20, child=30)
    assert names(findings(job["cgroup"], epoll_rules.RULES), Severity.BLOCKER) == set()
    dumped = ckpt("dump", job["job"], "--stop")
    before = told.stat().st_size
    ckpt("restore", dumped["id"])
    await_condition(lambda: told.stat().st_size > before + 1, "the parent to be woken again")
    ckpt("stop", job["job"])


def test_what_a_child_with_a_lower_pid_has_closed_fails_at_the_restore(
    ckpt: Ckpt, criu: Path, tmp_path: Path
) -> None:
    job = started(ckpt, tmp_path / "told", parent=30, child=20)
    assert names(findings(job["cgroup"], epoll_rules.RULES), Severity.BLOCKER) == {"epoll-target"}
    dumped = ckpt("dump", job["job"], "--stop", "--force")
    failed = ckpt("restore", dumped["id"], exit_code=22)
    assert "Can't add event" in failed["error"]["message"]
