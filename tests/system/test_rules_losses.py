"""What the rules say is lost was there before a dump, and is not after the restore; what they do not tell is kept."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from real.asked import Asked
from real.checking import findings

from ckpt.host.preflight import loss_rules
from ckpt.model.findings import Severity

pytestmark = pytest.mark.system

RULES = loss_rules.RULES

TOOLS = """
import ctypes, mmap, os, struct, subprocess, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def text(path):
    with open(path) as stream: return stream.read()
def flag(number):
    value = ctypes.c_int(); libc.prctl(number, ctypes.byref(value), 0, 0, 0); return value.value
"""

#: By rule: the program, what it has by it, and what it answers without.
LOST = {
    "personality": (
        "answer = libc.personality(0x0040000)",
        "text('/proc/self/personality').strip()",
        "00000000",
    ),
    "memory-merging": (
        "answer = libc.prctl(67, 1, 0, 0, 0)",
        "libc.prctl(68, 0, 0, 0, 0) if 'ksm_merge_any' in text('/proc/self/ksm_stat') else None",
        0,
    ),
    "numa-policy": (
        "answer = libc.syscall(238, 3, ctypes.byref(ctypes.c_ulong(1)), 64)",
        "text('/proc/self/numa_maps').split()[1]",
        "default",
    ),
}

#: Not to be seen from outside: docs/rules.md tells it.
UNSEEN = {
    "no new executable memory": ("libc.prctl(65, 1, 0, 0, 0)", "libc.prctl(66, 0, 0, 0, 0)"),
    "memory errors": ("libc.prctl(33, 1, 1, 0, 0)", "libc.prctl(34, 0, 0, 0, 0)"),
    "session keyring": ("libc.syscall(250, 1, b'ckpt-test')", "text('/proc/keys').count('ckpt-test')"),
}

KEPT = {
    "no new privileges": ("libc.prctl(38, 1, 0, 0, 0)", "libc.prctl(39, 0, 0, 0, 0)"),
    "no huge pages": ("libc.prctl(41, 1, 0, 0, 0)", "libc.prctl(42, 0, 0, 0, 0)"),
    "adopts orphans": ("libc.prctl(36, 1, 0, 0, 0)", "flag(37)"),
    "not dumpable": ("libc.prctl(4, 0, 0, 0, 0)", "libc.prctl(3, 0, 0, 0, 0)"),
    "niceness": ("os.nice(5)", "os.nice(0)"),
    "policy": ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "os.sched_getscheduler(0)"),
    "real time": (
        "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(3))",
        "os.sched_getparam(0).sched_priority",
    ),
    "reset on fork": ("os.sched_setscheduler(0, 0x40000000, os.sched_param(0))", "os.sched_getscheduler(0)"),
    "score": ("open('/proc/self/oom_score_adj', 'w').write('300')", "text('/proc/self/oom_score_adj')"),
}


class Subject:
    """A program that is dumped and restored."""

    def __init__(self, workload: Workload, ckpt: Ckpt, folder: Path) -> None:
        self._workload = workload
        self._ckpt = ckpt
        self._asked = Asked(workload, folder)
        self.pid = self._asked.pid
        self.do(TOOLS)

    def do(self, program: str) -> object:
        return self._asked.do(program)

    def ask(self, *questions: str) -> list[object]:
        return [self.do(f"answer = {question}") for question in questions]

    def found(self) -> list[tuple[str, Severity]]:
        return [(finding.rule, finding.severity) for finding in findings(self._workload.cgroup, RULES)]

    def travel(self) -> None:
        name = self._ckpt.new_job_name()
        self._ckpt("dump", "--cgroup", self._workload.cgroup, "--stop", "--name", name)
        self._workload.await_empty()
        self._ckpt("restore", name)


@pytest.fixture
def subject(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> Subject:
    return Subject(workload, ckpt, tmp_path)


def test_what_is_lost_is_told(subject: Subject) -> None:
    lost = dict(LOST)
    assert subject.found() == []
    for rule, (program, question, without) in LOST.items():
        if subject.do(program) == -1 or subject.ask(question) == [None]:
            del lost[rule]  # this kernel has no such thing
        else:
            assert subject.ask(question) != [without]
    assert "personality" in lost
    assert {rule for rule, _ in subject.found()} == lost.keys()
    assert {severity for _, severity in subject.found()} == {Severity.WARNING}
    subject.travel()
    assert subject.ask(*(question for _, question, _ in lost.values())) == [row[2] for row in lost.values()]


def test_what_cannot_be_seen_from_outside_is_lost_too(subject: Subject) -> None:
    questions = [question for _, question in UNSEEN.values()]
    plain = subject.ask(*questions)
    for program, _ in UNSEEN.values():
        subject.do(program)
    before = subject.ask(*questions)
    assert all(old != new for old, new in zip(plain, before, strict=True))
    assert subject.found() == []
    subject.travel()
    assert subject.ask(*questions) == plain


def test_what_is_kept_is_not_told(subject: Subject) -> None:
    questions = [question for _, question in KEPT.values()]
    for program, question in KEPT.values():
        plain = subject.ask(question)
        subject.do(program)
        assert subject.ask(question) != plain or question == "os.sched_getscheduler(0)"
    before = subject.ask(*questions)
    assert subject.found() == []
    subject.travel()
    assert subject.ask(*questions) == before


def test_a_cgroup_namespace_is_lost(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    started = workload.spawn
    workload.spawn = lambda command, folder: started(["unshare", "--cgroup", *command], folder)  # type: ignore[method-assign]
    subject = Subject(workload, ckpt, tmp_path)
    assert subject.found() == [("cgroup-namespace", Severity.WARNING)]
    assert "0::/\n" in str(subject.do("answer = text('/proc/self/cgroup')"))
    subject.travel()
    assert f"0::/{workload.cgroup.path.name}" in str(subject.do("answer = text('/proc/self/cgroup')"))


def test_semaphores_and_messages_of_the_host_stay_as_they_are(subject: Subject) -> None:
    made = subject.do("answer = libc.semget(0, 1, 0o1600), libc.msgget(0, 0o1600)")
    assert isinstance(made, list)
    semaphores, queue = made
    try:
        assert subject.found() == []
        # 0o10000 is SEM_UNDO.
        subject.do(f"libc.semop({semaphores}, struct.pack('hhh', 0, 5, 0o10000), 1)")
        subject.do(f"libc.msgsnd({queue}, struct.pack('l8s', 1, b'message'), 8, 0)")
        assert set(subject.found()) == {
            ("host-semaphores", Severity.WARNING),
            ("host-messages", Severity.WARNING),
        }
        value = f"libc.semctl({semaphores}, 0, 12, 0)"
        assert subject.ask(value) == [5]
        subject.travel()
        assert subject.ask(value) == [0], "what SEM_UNDO undid at the end of the dump is not done again"
    finally:
        subprocess.run(["ipcrm", "--semaphore-id", str(semaphores), "--queue-id", str(queue)], check=True)


def test_in_an_ipc_namespace_of_its_own_nothing_of_it_is_told_and_the_values_come_back(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    started = workload.spawn
    workload.spawn = lambda command, folder: started(["unshare", "--ipc", *command], folder)  # type: ignore[method-assign]
    subject = Subject(workload, ckpt, tmp_path)
    semaphores = subject.do("answer = libc.semget(0, 1, 0o1600)")
    subject.do(f"libc.semop({semaphores}, struct.pack('hhh', 0, 5, 0), 1)")
    assert subject.found() == []
    subject.travel()
    assert subject.ask(f"libc.semctl({semaphores}, 0, 12, 0)") == [5]


def test_a_root_that_wants_to_die_with_its_parent_lives_on_after_a_restore(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    subject = Subject(workload, ckpt, tmp_path)
    subject.do("libc.prctl(1, 9, 0, 0, 0)")
    # Not to be seen from outside.
    assert subject.found() == []
    name = ckpt.new_job_name()
    ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--name", name)
    workload.await_empty()
    restored = ckpt("restore", name)
    assert any("had asked for signal 9 when its parent ends" in warning for warning in restored["warnings"])
    signal = "struct.unpack('i', (b := ctypes.create_string_buffer(4), libc.prctl(2, b, 0, 0, 0))[0].raw)[0]"
    assert subject.ask(signal) == [0]
