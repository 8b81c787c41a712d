"""What the rules say of descriptors is what real CRIU does with them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from real.asked import Asked
from real.checking import criu_errors, findings, names, overlay
from real.holding import Holder, holding

from ckpt.host.preflight import anonymous_rules, descriptor_rules, device_rules, epoll_rules, watch_rules
from ckpt.model.findings import Severity

pytestmark = pytest.mark.system

RULES = (
    *anonymous_rules.RULES,
    *device_rules.RULES,
    *descriptor_rules.RULES,
    *epoll_rules.RULES,
    *watch_rules.RULES,
)

MARK = "libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)\n"

#: By case: the rule, the program, and a part of the message.
BLOCKED = {
    "ring of io_uring": (
        "io-uring",
        "answer = libc.syscall(425, 4, ctypes.byref(ctypes.create_string_buffer(120)))",
        "anon_inode:[io_uring], which CRIU cannot dump",
    ),
    "ring that is only mapped": (
        "io-uring",
        (
            "f = answer = libc.syscall(425, 4, ctypes.byref(ctypes.create_string_buffer(120)))\n"
            "if f >= 0: held['m'] = libc.mmap(None, 4096, 3, 0x8001, f, 0); os.close(f)"
        ),
        "maps anon_inode:[io_uring]",
    ),
    "userfaultfd": ("userfaultfd", "answer = libc.syscall(323, 0)", "anon_inode:[userfaultfd]"),
    "perf event": (
        "perf-event",
        (
            "b = ctypes.create_string_buffer(128); struct.pack_into('=IIQ', b, 0, 1, 128, 0)\n"
            "answer = libc.syscall(298, b, 0, -1, -1, 0)"
        ),
        "anon_inode:[perf_event]",
    ),
    "bpf map": (
        "bpf",
        "answer = libc.syscall(321, 0, ctypes.create_string_buffer(struct.pack('=IIII', 2, 4, 4, 1), 128), 128)",
        "anon_inode:bpf-map",
    ),
    "landlock ruleset": (
        "landlock-ruleset",
        "answer = libc.syscall(444, struct.pack('=QQQ', 1, 0, 0), 8, 0)",
        "anon_inode:[landlock-ruleset]",
    ),
    "listener of seccomp": (
        "seccomp-listener",
        (
            "f = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0x7FFF0000))\n"
            "p = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', 1, ctypes.addressof(f)))\n"
            "libc.prctl(38, 1, 0, 0, 0); answer = libc.syscall(317, 1, 8, p)"
        ),
        "anon_inode:seccomp notify",
    ),
    "virtual machine": (
        "virtual-machine",
        (
            "k = os.open('/dev/kvm', os.O_RDWR) if os.path.exists('/dev/kvm') else -1\n"
            "answer = libc.ioctl(k, 0xAE01, 0) if k >= 0 else -1"
        ),
        "anon_inode:kvm-vm",
    ),
    "file system context": (
        "anonymous-inode",
        "answer = libc.syscall(430, b'tmpfs', 0)",
        "anon_inode:[fscontext]",
    ),
    "device": (
        "device",
        "answer = os.open('/dev/fuse', os.O_RDWR) if os.path.exists('/dev/fuse') else -1",
        "→ /dev/fuse, a device",
    ),
    "device of another major": (
        "device",
        "answer = os.open('/dev/vcs1', os.O_RDONLY) if os.path.exists('/dev/vcs1') else -1",
        "→ /dev/vcs1, a device",
    ),
    "tunnel in the host's network": (
        "tun",
        "answer = os.open('/dev/net/tun', os.O_RDWR) if os.path.exists('/dev/net/tun') else -1",
        "→ /dev/net/tun, a tunnel",
    ),
    "disk": (
        "disk",
        "answer = os.open('/dev/loop0', os.O_PATH) if os.path.exists('/dev/loop0') else -1",
        "→ /dev/loop0, a disk",
    ),
    "pidfd of a process outside": (
        "pidfd-outside",
        "answer = os.pidfd_open(1)",
        "of process 1, which is not in its tree",
    ),
    "pidfd of a thread": (
        "pidfd-of-thread",
        (
            "t = threading.Thread(target=time.sleep, args=(600,), daemon=True); t.start()\n"
            "answer = libc.syscall(434, t.native_id, os.O_EXCL)"
        ),
        "of a thread",
    ),
    "message queue without its mount": (
        "foreign-mount",
        "answer = libc.mq_open(b'/ckpt-test-rules', 0o102, 0o600, None); libc.mq_unlink(b'/ckpt-test-rules')",
        "on a mount that it does not see",
    ),
    "namespace of nobody": (
        "namespace-outside",
        (
            "p = subprocess.Popen(['unshare', '--uts', 'sleep', '600'])\n"
            "while os.readlink(f'/proc/{p.pid}/ns/uts') == os.readlink('/proc/self/ns/uts'): time.sleep(0.005)\n"
            "answer = os.open(f'/proc/{p.pid}/ns/uts', os.O_RDONLY); p.kill(); p.wait()"
        ),
        "a namespace in which no process of the workload lives",
    ),
    "path of a socket": (
        "opened-as-path",
        (
            "s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.close()\n"
            "answer = os.open('socket', os.O_PATH)"
        ),
        "opened by O_PATH",
    ),
    "path of a named pipe": (
        "opened-as-path",
        "os.mkfifo('fifo'); answer = os.open('fifo', os.O_PATH)",
        "opened by O_PATH",
    ),
    "file of an epoll instance that another process holds": (
        "epoll-target",
        (
            "import select\n"
            "r, w = os.pipe(); held['e'] = select.epoll(); held['e'].register(r); child = os.fork()\n"
            "if not child: held['e'].close(); os.close(w); signal.pause()\n"
            "os.close(r); answer = 0"
        ),
        "open in other processes alone",
    ),
    "watch in /proc": (
        "watch-unreachable",
        "answer = libc.inotify_add_watch(libc.inotify_init1(0), b'/proc/self/status', 2)",
        "of proc, and CRIU cannot find that file",
    ),
    "watch on terminals": (
        "watch-unreachable",
        "answer = libc.inotify_add_watch(libc.inotify_init1(0), b'/dev/pts', 0x100)",
        "of devpts, and CRIU cannot find that file",
    ),
    "watch on a file that is gone from memory": (
        "watch-unreachable",
        (
            "f = '/dev/shm/ckpt-test-rules'; held['f'] = open(f, 'w')\n"
            "answer = libc.inotify_add_watch(libc.inotify_init1(0), f.encode(), 2); os.unlink(f)"
        ),
        "of tmpfs, and CRIU cannot find that file",
    ),
}


@pytest.fixture
def holder(criu: Path, tmp_path: Path) -> Iterator[Holder]:
    with holding() as started:
        started.do(f"os.chdir({str(tmp_path)!r})")
        yield started


@pytest.mark.parametrize("case", BLOCKED)
def test_what_criu_cannot_dump_is_a_blocker(case: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    rule, program, message = BLOCKED[case]
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
    "events": (
        "import select\n"
        "held['e'] = os.eventfd(0), select.epoll(), libc.inotify_init1(0), libc.fanotify_init(0, 0)\n"
        "held['t'] = libc.timerfd_create(1, 0), libc.signalfd(-1, ctypes.create_string_buffer(128), 0)"
    ),
    "plain devices": (
        "held['d'] = [os.open(f'/dev/{d}', os.O_RDONLY) for d in ('null', 'zero', 'full', 'urandom')]"
    ),
    "path of a plain device": "held['d'] = os.open('/dev/null', os.O_PATH)",
    "terminal of its own": "held['t'] = os.openpty()",
    "pidfds": (
        "p = subprocess.Popen(['true']); held['dead'] = os.pidfd_open(p.pid); p.wait()\n"
        "held['own'] = os.pidfd_open(os.getpid())"
    ),
    "namespaces of its own": "held['n'] = [os.open(f'/proc/self/ns/{n}', os.O_RDONLY) for n in os.listdir('/proc/self/ns')]",
    "paths of files": (
        "open('f', 'w').close(); os.symlink('f', 'l')\n"
        "held['p'] = os.open('f', os.O_PATH), os.open('.', os.O_PATH), os.open('l', os.O_PATH | os.O_NOFOLLOW)"
    ),
    "named pipe": "os.mkfifo('fifo'); held['p'] = os.open('fifo', os.O_RDWR)",
    "file of an epoll instance under another number": (
        "import select\n"
        "r, w = os.pipe(); e = select.epoll(); e.register(r); held['p'] = os.dup(r), w, e; os.close(r)"
    ),
    "process that has ended": (
        "p = subprocess.Popen(['sleep', '600']); held['dead'] = open(f'/proc/{p.pid}/status')\n"
        "held['own'] = open('/proc/self/status'), open('/proc/1/status'); p.kill(); p.wait()"
    ),
    "watches": (
        "os.mkdir('d'); i = libc.inotify_init1(0)\n"
        "for d in (b'd', b'/dev', b'/etc'): libc.inotify_add_watch(i, d, 0x100)\n"
        f"{MARK}libc.fanotify_mark(libc.fanotify_init(0, 0), 0x11, 8, -100, b'd')"
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_what_criu_dumps_is_no_blocker(case: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    holder.do(f"{FINE[case]}\nanswer = 0")
    found = findings(holder.cgroup, RULES)
    assert names(found, Severity.BLOCKER) | names(found, Severity.WARNING) == set()
    assert criu_errors(criu, holder, tmp_path / "images") == ""


def test_a_network_of_its_own_may_have_a_tunnel(criu: Path) -> None:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("this host has no tunnels")
    with holding("unshare", "--net") as held:
        held.do("held['d'] = os.open('/dev/net/tun', os.O_RDWR)")
        assert "tun" not in names(findings(held.cgroup, RULES), Severity.BLOCKER)


def test_a_file_from_another_mount_namespace_is_a_blocker(criu: Path, tmp_path: Path) -> None:
    with holding("unshare", "--mount") as held:
        # Its standard error is the /dev/null that it was started with.
        found = findings(held.cgroup, descriptor_rules.RULES)
        assert "fd 2 → /dev/null, which lies on a mount that it does not see" in found[0].message
        assert criu_errors(criu, held, tmp_path / "images")


def test_a_file_of_a_mount_that_was_taken_away_is_a_blocker(
    holder: Holder, criu: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        holder.do(f"held['f'] = open('{place}/f', 'w')")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
    assert "foreign-mount" in names(findings(holder.cgroup, RULES), Severity.BLOCKER)
    assert "Can't lookup mount" in criu_errors(criu, holder, tmp_path / "images")


def test_a_watch_on_an_overlay_is_a_blocker(holder: Holder, criu: Path, tmp_path: Path) -> None:
    with overlay(tmp_path) as merged:
        holder.do(f"libc.inotify_add_watch(libc.inotify_init1(0), b'{merged}/d', 0x100)")
        try:
            assert "watch-unreachable" in names(findings(holder.cgroup, RULES), Severity.BLOCKER)
            assert "Can't dump that handle" in criu_errors(criu, holder, tmp_path / "images")
        finally:
            holder.do("os.closerange(3, 100)")


def test_permission_that_a_frozen_process_must_give_is_a_blocker(holder: Holder, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    asked.write_text("x")
    marked = int(
        holder.do(
            f"{MARK}held['f'] = libc.fanotify_init(4, 0)\n"
            f"answer = libc.fanotify_mark(held['f'], 1, 0x10000, -100, b'{asked}')"
        )
    )
    if marked < 0:
        pytest.skip("this kernel asks for no permission")
    assert "fanotify-permission" in names(findings(holder.cgroup, RULES), Severity.BLOCKER)
    with holder.frozen(), subprocess.Popen(["cat", asked], stdout=subprocess.PIPE) as reader:
        # Who opens the file waits for the answer of a frozen process: ckpt would, too.
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(timeout=0.3)
        reader.kill()
    holder.do("os.close(held['f'])")


# --------------------------------------------------------------------------- what the restore shows


@pytest.fixture
def program(workload: Workload, tmp_path: Path) -> Asked:
    return Asked(workload, tmp_path)


def stop(ckpt: Ckpt, workload: Workload) -> str:
    checkpoint = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--force")["id"])
    workload.await_empty()
    return checkpoint


LOST_AT_RESTORE = {
    "proc-of-thread": (
        "import threading\n"
        "t = threading.Thread(target=time.sleep, args=(0.1,)); t.start()\n"
        "held['f'] = open(f'/proc/self/task/{t.native_id}/status'); t.join()\n"
        "while os.path.exists(f'/proc/self/task/{t.native_id}'): time.sleep(0.005)"
    ),
    "opened-as-path": "m, s = os.openpty(); held['t'] = m, s, os.open(os.ttyname(s), os.O_PATH)",
}


@pytest.mark.parametrize("rule", LOST_AT_RESTORE)
def test_what_cannot_be_restored_is_a_blocker(
    rule: str, program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    program.do(LOST_AT_RESTORE[rule])
    assert rule in names(findings(workload.cgroup, RULES), Severity.BLOCKER)
    ckpt("restore", stop(ckpt, workload), exit_code=22)


def test_a_file_of_a_process_outside_is_a_warning_and_fails_when_that_has_ended(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            program.do(f"held['f'] = open('/proc/{other.pid}/status')")
            found = findings(workload.cgroup, RULES)
            assert "proc-outside" in names(found, Severity.WARNING)
            checkpoint = stop(ckpt, workload)
        finally:
            other.kill()
    ckpt("restore", checkpoint, exit_code=22)


def test_a_mark_on_a_file_system_is_lost(program: Asked, workload: Workload, ckpt: Ckpt) -> None:
    marked = program.do(
        "import ctypes; libc = ctypes.CDLL(None)\n"
        f"{MARK}held['f'] = libc.fanotify_init(0, 0)\n"
        f"answer = libc.fanotify_mark(held['f'], 0x101, 8, -100, b'/')"
    )
    if marked < 0:
        pytest.skip("this kernel has no such marks")
    marks = (
        "answer = sum(line.startswith('fanotify sdev') for line in open(f'/proc/self/fdinfo/{held[\"f\"]}'))"
    )
    assert program.do(marks) == 1
    assert "fanotify-filesystem" in names(findings(workload.cgroup, RULES), Severity.WARNING)
    ckpt("restore", stop(ckpt, workload))
    assert program.do(marks) == 0


WATCH = (
    "import ctypes; libc = ctypes.CDLL(None); held['i'] = libc.inotify_init1(0o4000)\n"
    "open('watched', 'w').close(); libc.inotify_add_watch(held['i'], b'watched', 0xFFF)\n"
)
FANOTIFY = (
    f"import ctypes; libc = ctypes.CDLL(None)\n{MARK}held['i'] = libc.fanotify_init(0, 0)\n"
    "open('watched', 'w').close(); libc.fanotify_mark(held['i'], 1, 8, -100, b'watched')\n"
)
WATCHES = (
    "answer = sum('notify ' in line and 'ino:' in line for line in open(f'/proc/self/fdinfo/{held[\"i\"]}'))"
)


@pytest.mark.parametrize("watch", [WATCH, FANOTIFY], ids=["inotify", "fanotify"])
def test_a_watch_on_a_file_that_is_gone_cannot_be_restored(
    watch: str, program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    folder = program.do(f"{watch}answer = os.getcwd()")
    # Who has it open is not of the workload, so that CRIU makes no new one.
    with open(f"{folder}/watched", encoding="ascii"):
        program.do("os.unlink('watched')")
        assert program.do(WATCHES) == 1
        assert "watch-nameless" in names(findings(workload.cgroup, RULES), Severity.BLOCKER)
        failed = ckpt("restore", stop(ckpt, workload), exit_code=22)
        assert "Unable to open" in failed["error"]["message"]


OPEN = "f = held['f'] = open('watched', 'r+'); f.truncate(4096); "


@pytest.mark.parametrize(
    ("watch", "held"),
    [
        (WATCH, OPEN),
        (FANOTIFY, OPEN),
        (WATCH, f"{OPEN}held['m'] = libc.mmap(None, 4096, 1, 2, f.fileno(), 0); f.close(); "),
        (WATCH, f"{OPEN}os.fork() or time.sleep(600); f.close(); "),
    ],
    ids=["inotify", "fanotify", "mapped", "of a child"],
)
def test_a_watch_on_a_deleted_file_that_is_open_ends(
    watch: str, held: str, program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    program.do(f"{watch}{held}os.unlink('watched')")
    assert program.do(WATCHES) == 1
    found = findings(workload.cgroup, RULES)
    assert names(found, Severity.BLOCKER) == set()
    assert "watch-nameless" in names(found, Severity.WARNING)
    ckpt("restore", stop(ckpt, workload))
    assert program.do(WATCHES) == 0


@pytest.mark.parametrize("held", ["held['d'] = os.open('watched', os.O_RDONLY)", "os.chdir('watched')"])
def test_a_watch_on_a_directory_that_was_removed_and_is_open_stays(
    held: str, program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    made = WATCH.replace("open('watched', 'w').close()", "os.mkdir('watched')")
    program.do(f"{made}d = os.path.abspath('watched'); {held}; os.rmdir(d)")
    assert program.do(WATCHES) == 1
    assert "watch-nameless" not in {finding.rule for finding in findings(workload.cgroup, RULES)}
    ckpt("restore", stop(ckpt, workload))
    assert program.do(WATCHES) == 1


def test_a_watch_on_a_file_that_another_one_is_mounted_over_cannot_be_restored(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    folder = program.do(f"{WATCH}open('other', 'w').close(); answer = os.getcwd()")
    subprocess.run(["mount", "--bind", f"{folder}/other", f"{folder}/watched"], check=True)
    try:
        assert "watch-nameless" in names(findings(workload.cgroup, RULES), Severity.BLOCKER)
        ckpt("restore", stop(ckpt, workload), exit_code=22)
    finally:
        subprocess.run(["umount", f"{folder}/watched"], check=True)


@contextmanager
def loop_device(content: Path) -> Iterator[str]:
    """A disk that is a file."""
    with content.open("wb") as stream:
        stream.truncate(1 << 20)
    made = subprocess.run(
        ["losetup", "--find", "--show", content], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"this host has no loop devices: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_disk_that_is_only_mapped_is_a_blocker(holder: Holder, criu: Path, tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk") as device:
        # Python's own keeps a descriptor.
        holder.do(
            "libc.mmap.restype = ctypes.c_void_p\n"
            f"f = os.open('{device}', os.O_RDWR); m = libc.mmap(None, 4096, 3, 1, f, 0); os.close(f)\n"
            "ctypes.memset(m, 65, 1)"
        )
        try:
            found = findings(holder.cgroup, RULES)
            assert names(found, Severity.BLOCKER) == {"mapped-device"}
            assert f"maps {device}, a device" in found[0].message
            assert "Can't handle non-regular mapping" in criu_errors(criu, holder, tmp_path / "images")
        finally:
            holder.do("libc.munmap(ctypes.c_void_p(m), 4096)")
        assert names(findings(holder.cgroup, RULES), Severity.BLOCKER) == set()
