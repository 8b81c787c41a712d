"""What the rules say of processes, limits and cgroups is what a dump and a restore by ckpt really do."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.filesystems import make_image
from harness.subjects import Workload
from harness.waiting import await_condition
from real.asked import Asked
from real.checking import findings, names
from real.verdicts import BareVerdict

from ckpt.host import cgroups
from ckpt.host.inspection import snapshot
from ckpt.host.preflight import cgroup_rules, checking, kinship_rules, limit_rules, process_rules
from ckpt.host.preflight.facts import Facts
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.units import Pid

pytestmark = pytest.mark.system

RULES = (*process_rules.RULES, *kinship_rules.RULES, *limit_rules.RULES, *cgroup_rules.RULES)

TOOLS = """
import ctypes, os, resource, signal, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long,) * 2 + (ctypes.c_void_p,) * 2
libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
def until(true):
    while not true(): time.sleep(0.005)
def child(*command):
    held['p'] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    until(lambda: open(f"/proc/{held['p'].pid}/comm").read() != 'python\\n' or command[0] == sys.executable)
    # What loads its libraries yet maps more, and opens files.
    until(lambda: command[0] != 'sleep' or 'nanosleep' in open(f"/proc/{held['p'].pid}/wchan").read())
    return held['p'].pid
def state(pid):
    with open(f'/proc/{pid}/stat') as stream: return stream.read().rpartition(') ')[2][0]
def clone(flags):
    pid = libc.syscall(56, flags | 17, 0, 0, 0, 0)
    if pid == 0:
        if os.environ.get('LEADS'): os.setsid()
        libc.pause()
    return pid
def clone_vm(flags=0x100, function=libc.pause, argument=None):
    held['s'] = ctypes.create_string_buffer(65536)
    function = ctypes.cast(function, ctypes.c_void_p)
    return libc.clone(function, ctypes.addressof(held['s']) + 65000, flags | 17, argument)
def run():
    while True: pass
"""

LEADER_ENDS = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    "ctypes.CDLL(None).pthread_exit(None)"
)

#: By case: the rule, the program, and a part of what the dump says.
DUMP_FAILS = {
    "child that it traces": (
        "traced",
        "answer = libc.ptrace(0x4206, child('sleep', '600'), None, None)",
        "",
    ),
    "child that stopped under its trace": (
        "traced",
        (
            "c = 'import ctypes, os; ctypes.CDLL(None).ptrace(0, 0, 0, 0); os.kill(os.getpid(), 19)'\n"
            "p = child(sys.executable, '-c', c); until(lambda: state(p) == 't')"
        ),
        "",
    ),
    "child of another user": (
        "other-user",
        "held['p'] = subprocess.Popen(['sleep', '600'], user=65534); until(lambda: state(held['p'].pid) == 'S')",
        "CAP_SYS_RESOURCE",
    ),
    "memory in common": ("address-space-shared", "answer = clone_vm()", "VM id"),
    "directories in common": ("directories-shared", "answer = clone(0x200)", "FS id"),
    "no more files": (
        "descriptors-full",
        "resource.prlimit(child('sleep', '600'), resource.RLIMIT_NOFILE, (5, 5))",
        "failed",
    ),
    "no more memory": (
        "addresses-full",
        (
            # Only when it sleeps it has mapped all that it will.
            "p = child('sleep', '600')\n"
            "while ') S ' not in open(f'/proc/{p}/stat').read(): time.sleep(0.005)\n"
            "v = int(open(f'/proc/{p}/statm').read().split()[0]) * 4096 + (64 << 10)\n"
            "resource.prlimit(p, resource.RLIMIT_AS, (v, v))"
        ),
        "mmap",
    ),
}

#: By case: the rule, and the program; the dump works.
RESTORE_FAILS = {
    "program in a memfd": (
        "program-in-memfd",
        (
            "m = os.memfd_create('program'); os.sendfile(m, os.open('/bin/sleep', os.O_RDONLY), 0, 1 << 24)\n"
            "held['p'] = os.fork() or os.execve(m, ['sleep', '600'], {})\n"
            "until(lambda: 'memfd' in os.readlink(f\"/proc/{held['p']}/exe\"))"
        ),
    ),
    "deadlines": (
        "sched-deadline",
        "answer = libc.syscall(314, 0, struct.pack('=IIQiIQQQ', 48, 6, 0, 0, 0, 10**7, 10**8, 10**8), 0)",
    ),
    "high descriptor": (
        "descriptor-number",
        (
            "limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)); held['f'] = os.dup2(1, limit - 1)"
        ),
    ),
}

FINE = {
    "zombie": "held['p'] = subprocess.Popen(['true']); until(lambda: state(held['p'].pid) == 'Z')",
    "stopped child": (
        "p = child(sys.executable, '-c', 'import os; os.kill(os.getpid(), 19)'); until(lambda: state(p) == 'T')"
    ),
    "descriptors in common with a child": "answer = clone(0x400)",
    "scheduling": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))",
    "strict seccomp": (
        "c = 'import ctypes; l = ctypes.CDLL(None); l.prctl(22, 1, 0, 0, 0)\\nwhile True: pass'\n"
        "p = child(sys.executable, '-c', c); until(lambda: 'Seccomp:\\t1' in open(f'/proc/{p}/status').read())"
    ),
    "three files more": "resource.prlimit(child('sleep', '600'), resource.RLIMIT_NOFILE, (6, 6))",
    "a little memory more": (
        "p = child('sleep', '600'); v = int(open(f'/proc/{p}/statm').read().split()[0]) * 4096 + (128 << 10)\n"
        "resource.prlimit(p, resource.RLIMIT_AS, (v, v))"
    ),
    "other limits": (
        "p = child('sleep', '600')\n"
        "for limit in ('FSIZE', 'NPROC', 'STACK', 'DATA', 'MEMLOCK', 'SIGPENDING'):\n"
        "    resource.prlimit(p, getattr(resource, 'RLIMIT_' + limit), (0, 0))"
    ),
    "threads": "[threading.Thread(target=time.sleep, args=(600,), daemon=True).start() for _ in range(50)]",
}


class Subject:
    """A program in a cgroup, what the rules say of it, and ckpt."""

    def __init__(self, workload: Workload, ckpt: Ckpt, folder: Path) -> None:
        self.workload = workload
        self.ckpt = ckpt
        self.name = ckpt.new_job_name()
        self._asked = Asked(workload, folder)
        self.pid = self._asked.pid
        self.do(TOOLS)

    def do(self, program: str) -> object:
        return self._asked.do(program)

    def findings(self) -> tuple[Finding, ...]:
        return findings(self.workload.cgroup, RULES)

    def dump(self, *options: object) -> subprocess.CompletedProcess[str]:
        target = ("--cgroup", self.workload.cgroup, "--name", self.name)
        return self.ckpt.run("dump", "--force", *target, *options)

    def restore(self) -> subprocess.CompletedProcess[str]:
        self.workload.await_empty()
        return self.ckpt.run("restore", self.name)


@pytest.fixture
def subject(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> Subject:
    return Subject(workload, ckpt, tmp_path)


def we_may_exceed_limits() -> bool:
    return bool(Facts(snapshot.take([], "", None), DumpOptions(), "").own_capabilities & 1 << 24)


@pytest.mark.parametrize("case", DUMP_FAILS)
def test_what_cannot_be_dumped_is_told(case: str, subject: Subject) -> None:
    rule, program, said = DUMP_FAILS[case]
    if rule == "other-user" and we_may_exceed_limits():
        pytest.skip("this process has CAP_SYS_RESOURCE")
    assert names(subject.findings(), Severity.BLOCKER) == set()
    subject.do(program)
    assert names(subject.findings(), Severity.BLOCKER) == {rule}
    done = subject.dump()
    assert done.returncode == 21, done
    assert said in done.stderr
    assert subject.do("answer = 'it runs on'") == "it runs on"


def test_a_process_whose_first_thread_has_ended_is_told(subject: Subject, criu: Path, tmp_path: Path) -> None:
    subject.do(f"p = child(sys.executable, '-c', {LEADER_ENDS!r}); until(lambda: state(p) == 'Z')")
    try:
        assert names(subject.findings(), Severity.BLOCKER) == {"leader-ended"}
        assert "Zombies with threads" in BareVerdict(criu, tmp_path).dump(subject.pid)
    finally:
        # cgroup.kill signals the first thread alone, which is dead.
        subject.do("held['p'].kill(); held['p'].wait()")


@pytest.mark.parametrize("case", RESTORE_FAILS)
def test_what_cannot_be_restored_is_told(case: str, subject: Subject) -> None:
    rule, program = RESTORE_FAILS[case]
    if rule == "descriptor-number" and we_may_exceed_limits():
        pytest.skip("this process has CAP_SYS_RESOURCE")
    if subject.do(program) == -1:
        pytest.skip("this kernel does not allow it")
    assert names(subject.findings(), Severity.BLOCKER) == {rule}
    done = subject.dump("--stop")
    assert done.returncode == 0, done
    assert subject.restore().returncode == 22


@pytest.mark.parametrize("case", FINE)
def test_what_goes_on_after_a_restore_is_not_held_against_it(case: str, subject: Subject) -> None:
    subject.do(FINE[case])
    assert subject.findings() == ()
    done = subject.dump("--stop")
    assert done.returncode == 0, done
    done = subject.restore()
    assert done.returncode == 0, done
    assert subject.do("answer = 'it runs on'") == "it runs on"


def test_a_parent_that_waits_for_its_child_of_vfork_is_told_and_criu_cannot_stop_it(
    subject: Subject, criu: Path, tmp_path: Path
) -> None:
    subject.do(
        "p = child(sys.executable, '-c', 'import ctypes; l = ctypes.CDLL(None); l.syscall(58) or l.pause()')\n"
        "until(lambda: open(f'/proc/{p}/wchan').read() in ('kernel_clone', 'wait_for_vfork_done'))"
    )
    assert "vfork" in names(subject.findings(), Severity.BLOCKER)
    assert BareVerdict(criu, tmp_path).dump(subject.pid)


# -------------------------------------------------------------------------------------------------- shared with others


@pytest.mark.parametrize("goes_on", [False, True], ids=["for a moment", "for good"])
def test_what_a_process_that_runs_shares_is_told_when_it_lasts(subject: Subject, *, goes_on: bool) -> None:
    # As before and after a parent's wait in vfork(2): it runs, or would if it got a CPU.
    child = "clone_vm()" if goes_on else "clone_vm(function=libc.usleep, argument=100_000)"
    subject.do(f"answer = {child}\nthreading.Thread(target=run, daemon=True).start()")
    found = names(subject.findings(), Severity.BLOCKER)
    assert ("address-space-shared" in found) is goes_on


def test_what_is_shared_with_a_parent_outside_is_copied(subject: Subject) -> None:
    pid = int(str(subject.do("os.environ['LEADS'] = '1'; answer = clone(0x400)")))
    await_condition(lambda: os.getsid(pid) == pid, "the child to lead a session")
    taken = snapshot.take([Pid(pid)], "", None)
    (finding,) = checking.check(Facts(taken, DumpOptions(), ""), rules=kinship_rules.RULES)
    assert (finding.rule, finding.severity) == ("shared-with-kin-outside", Severity.WARNING)
    assert f"its table of descriptors with process {subject.pid}" in finding.message
    done = subject.ckpt.run("dump", "--pid", pid, "--stop", "--name", subject.name)
    assert done.returncode == 0, done
    subject.do(f"os.waitpid({pid}, 0)")
    restored = subject.ckpt("restore", subject.name)["pid"]
    kcmp = ctypes.CDLL(None).syscall(312, subject.pid, restored, 2, 0, 0)
    assert kcmp in (1, 2), "it should be another table now"


THREADS_APART = {
    "descriptors": (
        "libc.unshare(0x400); [os.open('/', os.O_RDONLY) for _ in range(3)]",
        "table of descriptors",
        "len(os.listdir(f'/proc/self/task/{tid}/fd')) - len(os.listdir('/proc/self/fd'))",
    ),
    "directory": (
        "libc.unshare(0x200); os.chdir('/usr')",
        "working directory",
        "os.readlink(f'/proc/self/task/{tid}/cwd')",
    ),
    "network": (
        "libc.unshare(0x40000000)",
        "net namespace",
        "os.readlink(f'/proc/self/task/{tid}/ns/net') == os.readlink('/proc/self/ns/net')",
    ),
}


@pytest.mark.parametrize("case", THREADS_APART)
def test_what_one_thread_has_for_itself_is_lost(case: str, subject: Subject) -> None:
    apart, what, question = THREADS_APART[case]
    subject.do(
        f"def go():\n    {apart}; held['tid'] = threading.get_native_id(); libc.pause()\n"
        "threading.Thread(target=go, daemon=True).start(); until(lambda: 'tid' in held); tid = held['tid']"
    )
    (finding,) = subject.findings()
    assert (finding.rule, finding.severity) == ("thread-apart", Severity.WARNING)
    assert f"has a {what} of its own" in finding.message
    before = subject.do(f"answer = {question}")
    assert subject.dump("--stop").returncode == 0
    done = subject.restore()
    assert done.returncode == 0, done
    assert subject.do(f"answer = {question}") != before


# ------------------------------------------------------------------------------------------------------------- cgroups


@contextmanager
def version_1(controller: str, workload: Workload) -> Iterator[Path]:
    """A cgroup of this controller; it is removed with all that is in it."""
    mounted = next((each for each in cgroups.hierarchies() if controller in each.controllers), None)
    if mounted is None:
        pytest.skip(f"no version-1 {controller} controller is mounted")
    place = Path(mounted.mountpoint) / workload.cgroup.path.name
    place.mkdir()
    try:
        yield place
    finally:
        if place.exists():
            if (place / "freezer.state").exists():
                (place / "freezer.state").write_text("THAWED")
            workload.kill()
            await_condition(lambda: cgroups.remove(str(place)), f"{place} to be removed")


@pytest.mark.parametrize(("threads", "limit"), [(0, 2), (3, 5)])
def test_a_limit_of_tasks_without_room_for_criu_is_told(threads: int, limit: int, subject: Subject) -> None:
    with version_1("pids", subject.workload) as place:
        start = "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
        subject.do(f"[{start} for _ in range({threads})]")
        (place / "cgroup.procs").write_text(str(subject.pid))
        (place / "pids.max").write_text(str(limit + 1))
        assert subject.findings() == ()
        (place / "pids.max").write_text(str(limit))
        (finding,) = subject.findings()
        assert (finding.rule, finding.severity) == ("pids-limit", Severity.BLOCKER)
        assert subject.dump("--stop").returncode == 0
        assert subject.restore().returncode != 0


@pytest.mark.parametrize(("free_mib", "is_enough"), [(4, False), (9, True)])
def test_a_limit_of_memory_without_room_for_criu_is_told(
    free_mib: int, *, is_enough: bool, subject: Subject
) -> None:
    with version_1("memory", subject.workload) as place:
        (place / "cgroup.procs").write_text(str(subject.pid))
        subject.do("held['b'] = bytearray(b'x' * (20 << 20))")
        used = int((place / "memory.usage_in_bytes").read_text())
        (place / "memory.limit_in_bytes").write_text(str(used + (free_mib << 20)))
        assert names(subject.findings(), Severity.BLOCKER) == (set() if is_enough else {"memory-limit"})
        assert subject.dump("--stop").returncode == 0
        assert (subject.restore().returncode == 0) == is_enough


def test_a_cgroup_that_others_have_frozen_is_told(subject: Subject) -> None:
    below = subject.workload.cgroup.path / "below"
    below.mkdir()
    subject.do("answer = child('sleep', '600')")
    (below / "cgroup.procs").write_text(str(subject.do("answer = held['p'].pid")))
    (below / "cgroup.freeze").write_text("1")
    await_condition(lambda: "frozen 1" in (below / "cgroup.events").read_text(), "the freeze")
    (finding,) = subject.findings()
    assert (finding.rule, finding.severity) == ("frozen-cgroup", Severity.BLOCKER)
    assert f"echo 0 > {below}/cgroup.freeze" in finding.remedy
    assert subject.dump().returncode == 62
    (below / "cgroup.freeze").write_text("0")
    assert subject.findings() == ()


def test_a_version_1_cgroup_that_others_have_frozen_is_told(subject: Subject) -> None:
    with version_1("freezer", subject.workload) as place:
        (place / "cgroup.procs").write_text(str(subject.do("answer = child('sleep', '600')")))
        (place / "freezer.state").write_text("FROZEN")
        await_condition(lambda: "FROZEN" in (place / "freezer.state").read_text(), "the freeze")
        assert names(subject.findings(), Severity.BLOCKER) == {"frozen-cgroup"}
        assert subject.dump("--freeze-timeout", "500ms").returncode == 12


def test_a_child_outside_the_cgroup_is_told(subject: Subject, traces: object) -> None:
    other = traces.cgroup("-other")  # type: ignore[attr-defined]
    pid = subject.do("answer = child('sleep', '600')")
    assert subject.findings() == ()
    (other.path / "cgroup.procs").write_text(str(pid))
    (finding,) = subject.findings()
    assert (finding.rule, finding.pid, finding.severity) == ("child-outside-cgroup", pid, Severity.BLOCKER)
    # Also under the freeze, where the program has had no time to start another.
    done = subject.ckpt.run("dump", "--cgroup", subject.workload.cgroup)
    assert done.returncode == 30
    assert "lives outside the cgroup" in done.stderr


def test_a_daemon_of_the_tree_is_left_behind_by_a_dump_of_the_tree(subject: Subject) -> None:
    taken = snapshot.take([Pid(subject.pid)], "", None)
    assert checking.check(Facts(taken, DumpOptions(), ""), rules=RULES) == ()
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(600)"
    subject.do(f"subprocess.run([sys.executable, '-c', {daemon!r}], check=True)")
    taken = snapshot.take([Pid(subject.pid)], "", None)
    (finding,) = checking.check(Facts(taken, DumpOptions(), ""), rules=RULES)
    assert (finding.rule, finding.severity) == ("left-behind", Severity.WARNING)
    assert str(subject.workload.cgroup) in finding.remedy
    assert subject.findings() == ()  # as a cgroup it has both
    done = subject.ckpt.run("dump", "--pid", subject.pid, "--stop")
    assert done.returncode == 0, done
    assert subject.workload.pids() == [finding.pid]


# ------------------------------------------------------------------------------------------------ what is waited for


def test_a_thread_that_waits_for_a_frozen_file_system_is_told(subject: Subject, tmp_path: Path) -> None:
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    make_image("ext4", image)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        (place / "file").write_text("")
        subprocess.run(["fsfreeze", "--freeze", place], check=True)
        try:
            subject.do(
                f"p = child('sh', '-c', 'exec dd if=/dev/zero of={place}/file count=1 2>/dev/null')\n"
                "until(lambda: state(p) == 'D')"
            )
            (finding,) = subject.findings()
            assert (finding.rule, finding.severity) == ("uninterruptible", Severity.WARNING)
            assert subject.dump("--freeze-timeout", "500ms").returncode == 12
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", place], check=True)
        subject.do("held['p'].wait()")
        assert subject.findings() == ()
    finally:
        subject.workload.kill()
        subprocess.run(["umount", place], check=True)


def test_too_little_space_for_the_images_is_told(subject: Subject, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", small], check=True)
    taken = snapshot.take([Pid(subject.pid)], str(subject.workload.cgroup), None)
    facts = Facts(taken, DumpOptions(), str(subject.workload.cgroup), staging=str(small))
    assert checking.check(facts, rules=limit_rules.RULES) == ()
    subject.do("held['b'] = os.urandom(32 << 20)")
    facts = Facts(taken, DumpOptions(), str(subject.workload.cgroup), staging=str(small))
    (finding,) = checking.check(facts, rules=limit_rules.RULES)
    assert (finding.rule, finding.severity) == ("staging-space", Severity.BLOCKER)
    target = ("--cgroup", subject.workload.cgroup)
    done = subject.ckpt.run("dump", "--force", *target, CKPT_STATE=str(small))
    assert done.returncode != 0
    assert "is full" in done.stderr or "space" in done.stderr
