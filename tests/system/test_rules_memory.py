"""What the rules say of memory is what real CRIU does with it."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.waiting import await_condition
from real.asked import Asked
from real.checking import criu_errors, findings, names
from real.holding import Holder, holding

from ckpt.host.preflight import memory_rules, sharing_rules
from ckpt.model.findings import Severity

pytestmark = pytest.mark.system

RULES = (*memory_rules.RULES, *sharing_rules.RULES)
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
UFFD_MISSING, UFFD_WRITE_PROTECT = 1, 2

MMAP = (
    "libc.mmap.restype = ctypes.c_void_p\n"
    "libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)\n"
)
LOCK = (
    "a = held['a'] = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
    "p = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(a)))\n"
)

#: By rule: the program, and a part of the message.
BLOCKED = {
    "secret-memory": (
        (
            "m = answer = libc.syscall(447, 0)\n"
            "if m >= 0: os.ftruncate(m, 4096); held['m'] = mmap.mmap(m, 4096); os.close(m)"
        ),
        "maps secret memory",
    ),
    "sysv-memory": (
        (
            "libc.shmat.restype = ctypes.c_void_p; s = libc.shmget(0, 4096, 0o1600)\n"
            "answer = 0 if libc.shmat(s, None, 0) else -1; libc.shmctl(s, 0, None)"
        ),
        "maps SysV shared memory (/SYSV00000000) of the host",
    ),
}


@pytest.fixture
def holder(criu: Path) -> Iterator[Holder]:
    with holding() as started:
        yield started


def test_secret_memory_that_is_not_mapped_is_a_blocker(holder: Holder, criu: Path, tmp_path: Path) -> None:
    if int(holder.do("answer = libc.syscall(447, 0)")) < 0:
        pytest.skip("this kernel has no such thing")
    (finding,) = (each for each in findings(holder.cgroup, RULES) if each.severity is Severity.BLOCKER)
    assert finding.rule == "secret-memory"
    assert "holds secret memory" in finding.message
    assert criu_errors(criu, holder, tmp_path / "images")


@pytest.mark.parametrize("rule", BLOCKED)
def test_what_criu_cannot_dump_is_a_blocker(rule: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    program, message = BLOCKED[rule]
    try:
        done = int(holder.do(program))
    except AssertionError:
        pytest.skip("this kernel has no such thing")
    if done < 0:
        pytest.skip("this kernel has no such thing")
    found = findings(holder.cgroup, RULES)
    assert rule in names(found, Severity.BLOCKER)
    assert message in "; ".join(finding.message for finding in found)
    assert criu_errors(criu, holder, tmp_path / "images")


FINE = {
    "aio": "c = ctypes.c_ulong(0); libc.syscall(206, 16, ctypes.byref(c))",
    "shared memory": (
        "f = open('/dev/shm/ckpt-test-rules-memory', 'w+b'); f.truncate(4096); held['m'] = mmap.mmap(f.fileno(), 4096)\n"
        "os.unlink(f.name)"
    ),
    "memfd": (
        "m = os.memfd_create('x', 2); os.ftruncate(m, 4096); held['m'] = mmap.mmap(m, 4096)\n"
        "fcntl.fcntl(m, 1033, 6)"
    ),
    "shared zeros": "f = open('/dev/zero', 'r+b'); held['m'] = mmap.mmap(f.fileno(), 4096)",
    "memory that a child shares": "held['m'] = mmap.mmap(-1, 4096); os.fork() or signal.pause()",
}


@pytest.mark.parametrize("case", FINE)
def test_what_criu_dumps_is_no_blocker(case: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    holder.do(f"{FINE[case]}\nanswer = 0")
    found = findings(holder.cgroup, RULES)
    assert names(found, Severity.BLOCKER) | names(found, Severity.WARNING) == set()
    assert criu_errors(criu, holder, tmp_path / "images") == ""


def test_a_process_that_ran_into_a_uprobe_is_a_blocker(holder: Holder, criu: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    with uprobe_at_start(program, tmp_path / "trace"):
        holder.do(f"held['p'] = subprocess.Popen(['{program}', '600'])")
        await_condition(
            lambda: "uprobes" in names(findings(holder.cgroup, RULES), Severity.BLOCKER),
            "the probe to be hit",
        )
        assert "has uprobes vma" in criu_errors(criu, holder, tmp_path / "images")


@contextmanager
def uprobe_at_start(program: Path, place: Path) -> Iterator[None]:
    """A uprobe on the first instruction of an ELF program; `place` is made, and tracefs mounted there."""
    image = program.read_bytes()
    (entry, headers) = struct.unpack_from("=QQ", image, 24)
    size, count = struct.unpack_from("=HH", image, 54)
    for at in range(headers, headers + size * count, size):
        kind, _flags, offset, address, _, length = struct.unpack_from("=IIQQQQ", image, at)
        if kind == 1 and address <= entry < address + length:
            entry = entry - address + offset
            break
    place.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "none", place], check=True)
    try:
        events = place / "uprobe_events"
        if not events.exists():
            pytest.skip("this kernel has no uprobes")
        name = f"ckpt_test_{os.getpid()}"
        order(events, f"p:{name} {program}:{entry:#x}")
        enable = place / f"events/uprobes/{name}/enable"
        try:
            enable.write_text("1")
            yield
        finally:
            enable.write_text("0")
            order(events, f"-:{name}")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def order(events: Path, line: str) -> None:
    """Add to the kernel's list of probes, which cannot be sought in."""
    fd = os.open(events, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def test_sysv_memory_of_its_own_is_no_blocker(criu: Path) -> None:
    with holding("unshare", "--ipc") as held:
        held.do(BLOCKED["sysv-memory"][0])
        assert "sysv-memory" not in names(findings(held.cgroup, RULES), Severity.BLOCKER)


# --------------------------------------------------------------------------- what the restore shows


@pytest.fixture
def program(workload: Workload, tmp_path: Path) -> Asked:
    asked = Asked(workload, tmp_path)
    asked.do("global ctypes, libc; import ctypes; libc = ctypes.CDLL(None, use_errno=True)")
    return asked


def stop(ckpt: Ckpt, workload: Workload) -> str:
    checkpoint = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--force")["id"])
    workload.await_empty()
    return checkpoint


def flagged(flag: str) -> str:
    """Let it count its areas with a flag."""
    return f"answer = sum('{flag}' in l.split() for l in open('/proc/self/smaps') if l.startswith('VmFlags'))"


#: By rule: the program, and what tells of the thing that is lost.
LOST = {
    "memory-sealed": (
        (
            f"{MMAP}m = libc.mmap(None, 4096, 3, 0x22, -1, 0)\n"
            "answer = libc.syscall(462, ctypes.c_void_p(m), ctypes.c_size_t(4096), ctypes.c_ulong(0))"
        ),
        flagged("sl"),
    ),
    "protection-keys": (
        (
            f"{LOCK}k = libc.syscall(330, 0, 0)\n"
            "answer = libc.syscall(329, p, ctypes.c_size_t(1 << 20), 3, k) if k > 0 else -1"
        ),
        "answer = sum(l.split()[1] != '0' for l in open('/proc/self/smaps') if l.startswith('ProtectionKey'))",
    ),
    "locked-on-fault": (
        f"{LOCK}answer = libc.syscall(325, p, ctypes.c_size_t(1 << 20), 1)",
        flagged("lf"),
    ),
}


@pytest.mark.parametrize("rule", LOST)
def test_what_is_lost_is_a_warning(rule: str, program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    setting, telling = LOST[rule]
    if program.do(setting) < 0:
        pytest.skip("this kernel, or its CPU, has no such thing")
    assert program.do(telling) == 1
    assert rule in names(findings(workload.cgroup, RULES), Severity.WARNING)
    ckpt("restore", stop(ckpt, workload))
    assert program.do(telling) == 0


def test_locked_memory_is_told_and_locked_again(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    program.do(f"{LOCK}answer = libc.syscall(149, p, ctypes.c_size_t(1 << 20))")
    found = findings(workload.cgroup, RULES)
    assert "memory-locked" in names(found, Severity.INFO)
    assert "has locked 1.0 MiB" in "; ".join(finding.message for finding in found)
    ckpt("restore", stop(ckpt, workload))
    locked = (
        "answer = next(line for line in open('/proc/self/status') if line.startswith('VmLck')).split()[1]"
    )
    assert program.do(locked) == "1024"


def taken_from(pid: int, fd: int) -> int:
    """A duplicate of a process's descriptor (pidfd_getfd)."""
    pidfd = os.pidfd_open(pid)
    try:
        taken = int(ctypes.CDLL(None).syscall(438, pidfd, fd, 0))
    finally:
        os.close(pidfd)
    assert taken >= 0
    return taken


@contextmanager
def supplied(program: Asked, mode: int) -> Iterator[None]:
    """Two pages (`held['a']`) that the program registers with a userfaultfd, which only this process has afterwards."""
    fd = program.do(
        "import struct\n"
        "fd = answer = libc.syscall(323, os.O_CLOEXEC)\n"
        "if fd >= 0:\n"
        "    libc.ioctl(fd, 0xC018AA3F, ctypes.create_string_buffer(struct.pack('=QQQ', 0xAA, 0, 0), 24))\n"
        "    a = held['a'] = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "    p = ctypes.addressof(ctypes.c_char.from_buffer(a))\n"
        f"    b = ctypes.create_string_buffer(struct.pack('=QQQQ', p, 8192, {mode}, 0), 32)\n"
        "    answer = -1 if libc.ioctl(fd, 0xC020AA00, b) else fd"
    )
    if fd < 0:
        pytest.skip("this kernel has no such userfaultfd")
    supplier = taken_from(program.pid, fd)
    try:
        program.do(f"os.close({fd})")
        yield
    finally:
        os.close(supplier)


def test_pages_that_another_process_would_have_supplied_are_lost(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    with supplied(program, UFFD_MISSING):
        assert "page-faults-outside" in names(findings(workload.cgroup, RULES), Severity.BLOCKER)
        checkpoint = stop(ckpt, workload)
    ckpt("restore", checkpoint)
    # It would wait for the page: now nobody is asked.
    assert program.do("answer = held['a'][0]") == 0


def test_memory_whose_writes_are_followed_is_not_followed_any_more(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    followed = flagged("uw")
    with supplied(program, UFFD_WRITE_PROTECT):
        program.do("held['a'][0] = 7")
        assert program.do(followed) == 1
        found = findings(workload.cgroup, RULES)
        assert "write-tracking" in names(found, Severity.WARNING)
        assert names(found, Severity.BLOCKER) == set()
        ckpt("restore", stop(ckpt, workload))
        assert program.do(followed) == 0
        assert program.do("answer = held['a'][0]") == 7


def test_memory_that_a_process_outside_maps_is_split(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    fd = program.do(
        "m = answer = os.memfd_create('x'); os.ftruncate(m, 4096); held['a'] = mmap.mmap(m, 4096)"
    )
    assert "shared-memory-outside" not in names(findings(workload.cgroup, RULES), Severity.WARNING)
    taken = taken_from(program.pid, fd)
    # This process is the one that asks: another one must map it.
    child = os.fork()
    if not child:
        area = mmap.mmap(taken, 4096)
        while area[0] == 0:
            pass
        os._exit(0)
    try:
        with mmap.mmap(taken, 4096) as area:
            found = findings(workload.cgroup, RULES)
            assert "shared-memory-outside" in names(found, Severity.WARNING)
            assert f"shares the memory /memfd:x with process {child}" in "; ".join(f.message for f in found)
            checkpoint = stop(ckpt, workload)
            area[0] = 7
            ckpt("restore", checkpoint)
            assert program.do("answer = held['a'][0]") == 0
    finally:
        os.close(taken)
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_memory_that_two_trees_share_is_split(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    program.do(
        "import signal\n"
        "a = held['a'] = mmap.mmap(-1, 4096); child = os.fork()\n"
        "if not child:\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
        "    while True:\n"
        "        a[1] = a[0]; time.sleep(0.005)\n"
        "os.waitpid(child, 0)"
    )
    copied = "a = held['a']; a[0] = a[0] + 1; time.sleep(0.2); answer = a[1] == a[0]"
    assert program.do(copied)
    found = findings(workload.cgroup, RULES)
    assert "shared-memory-outside" in names(found, Severity.WARNING)
    assert "in another tree" in "; ".join(finding.message for finding in found)
    ckpt("restore", stop(ckpt, workload))
    assert not program.do(copied)


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """Four huge pages, while a test lasts."""
    before = HUGE_PAGES.read_text()
    try:
        HUGE_PAGES.write_text("4")
        if int(HUGE_PAGES.read_text()) < 4:
            pytest.skip("this host has no huge pages to give")
        yield
    finally:
        HUGE_PAGES.write_text(before)


def map_huge(pages: int) -> str:
    return f"{MMAP}m = libc.mmap(None, {pages << 21}, 3, 0x40022, -1, 0); ctypes.memset(m, 65, {pages << 21})"


@pytest.mark.alone
@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_are_told_and_must_be_free_at_the_restore(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    program.do(map_huge(1))
    found = findings(workload.cgroup, RULES)
    assert "huge-pages-unknown" not in names(found, Severity.BLOCKER)
    assert "huge-pages" in names(found, Severity.INFO)
    assert "maps 2.0 MiB of huge pages" in "; ".join(finding.message for finding in found)
    checkpoint = stop(ckpt, workload)
    HUGE_PAGES.write_text("0")
    ckpt("restore", checkpoint, exit_code=22)
    HUGE_PAGES.write_text("4")
    ckpt("restore", checkpoint)


@pytest.mark.alone
@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_without_a_free_one_are_a_blocker(holder: Holder, criu: Path, tmp_path: Path) -> None:
    holder.do(map_huge(4))
    if Path("/run/criu.kdat").exists():
        pytest.skip("CRIU has learnt of huge pages before")
    assert "huge-pages-unknown" in names(findings(holder.cgroup, RULES), Severity.BLOCKER)
    assert "/anon_hugepage" in criu_errors(criu, holder, tmp_path / "images")
