"""What is refused is what real CRIU cannot do, and nothing else: each case is tried with both.

Exempt: what CRIU dumps and cannot restore, which is refused although its dump succeeds.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.holding import Holder, holding

from ckpt.errors import CannotCheckpoint
from ckpt.host.inspection import HostInspector

pytestmark = pytest.mark.system

SEIZE_S = 2


def refusals(holder: Holder, tmp_path: Path, *, tcp_established: bool) -> tuple[str, ...]:
    """What is said against a dump, before the freeze or under it."""
    inspector = HostInspector(str(tmp_path / "state"))
    try:
        survey = inspector.survey(holder.target)
        with holder.frozen():
            inspector.confirm(survey, holder.cgroup, tcp_established=tcp_established)
    except CannotCheckpoint as error:
        return error.reasons
    return ()


def criu_errors(criu: Path, holder: Holder, tmp_path: Path, *options: str) -> str:
    """What CRIU itself says against it; "" if it dumped it."""
    images = tmp_path / "images"
    images.mkdir()
    command = [criu, "dump", "--tree", str(holder.pid), "--images-dir", images, "--log-file", "dump.log"]
    command += ["-v4", "--leave-running", "--network-lock", "skip", "--file-locks", "--link-remap"]
    command += ["--timeout", str(SEIZE_S), *options]
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    log = (images / "dump.log").read_text(errors="replace")
    return "\n".join(line for line in log.splitlines() if "Error" in line) if done.returncode else ""


@pytest.fixture
def holder(criu: Path) -> Iterator[Holder]:
    with holding() as started:
        yield started


CHILD_IN_NAMESPACE = """
p = subprocess.Popen(['unshare', '--{kind}', 'sleep', '600'])
while os.readlink(f'/proc/{{p.pid}}/ns/{kind}') == os.readlink('/proc/self/ns/{kind}'):
    time.sleep(0.005)
answer = 0
"""

REFUSED = {
    "io_uring": (
        "answer = libc.syscall(425, 4, ctypes.byref(ctypes.create_string_buffer(120)))",
        "anon_inode:[io_uring]: run it without io_uring",
    ),
    "io_uring that is only mapped": (
        (
            "f = answer = libc.syscall(425, 4, ctypes.byref(ctypes.create_string_buffer(120)))\n"
            "if f >= 0: held['m'] = libc.mmap(None, 4096, 3, 0x8001, f, 0); os.close(f)"
        ),
        "maps anon_inode:[io_uring]",
    ),
    "userfaultfd": ("answer = libc.syscall(323, 0)", "anon_inode:[userfaultfd]"),
    "perf event": (
        (
            "b = ctypes.create_string_buffer(128); struct.pack_into('=IIQ', b, 0, 1, 128, 0)\n"
            "answer = libc.syscall(298, b, 0, -1, -1, 0)"
        ),
        "anon_inode:[perf_event]",
    ),
    "bpf map": (
        "answer = libc.syscall(321, 0, ctypes.create_string_buffer(struct.pack('=IIII', 2, 4, 4, 1), 128), 128)",
        "anon_inode:bpf-map",
    ),
    "landlock ruleset": (
        "answer = libc.syscall(444, struct.pack('=QQQ', 1, 0, 0), 8, 0)",
        "anon_inode:[landlock-ruleset]",
    ),
    "secret memory": (
        (
            "m = answer = libc.syscall(447, 0)\n"
            "if m >= 0: os.ftruncate(m, 4096); held['m'] = mmap.mmap(m, 4096); os.close(m)"
        ),
        "maps /secretmem, which",
    ),
    "device": (
        "answer = os.open('/dev/fuse', os.O_RDWR) if os.path.exists('/dev/fuse') else -1",
        "→ /dev/fuse, a device",
    ),
    "tun in the host's network": (
        "answer = os.open('/dev/net/tun', os.O_RDWR) if os.path.exists('/dev/net/tun') else -1",
        "→ /dev/net/tun, a device",
    ),
    "disk": (
        "answer = os.open('/dev/loop0', os.O_PATH) if os.path.exists('/dev/loop0') else -1",
        "→ /dev/loop0, a disk",
    ),
    "pidfd of a process outside": ("answer = os.pidfd_open(1)", "of process 1, which is not in its tree"),
    "message queue without its mount": (
        "answer = libc.mq_open(b'/ckpt-test-inspect', 0o102, 0o600, None); libc.mq_unlink(b'/ckpt-test-inspect')",
        "on a mount that it does not see",
    ),
    "multipath TCP": ("held['s'] = socket.socket(2, 1, 262); answer = 0", "a socket of MPTCP: let it open"),
    "vsock": ("held['s'] = socket.socket(40, 1, 0); answer = 0", "a socket of AF_VSOCK"),
    "SysV memory of the host": (
        (
            "libc.shmat.restype = ctypes.c_void_p; s = libc.shmget(0, 4096, 0o1600)\n"
            "answer = 0 if libc.shmat(s, None, 0) else -1; libc.shmctl(s, 0, None)"
        ),
        "maps SysV shared memory (/SYSV00000000) of the host",
    ),
    "open connection": (
        (
            "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())\n"
            "c = a.accept(); answer = 0"
        ),
        "an open TCP connection: give --tcp-established",
    ),
    "connection that is not accepted": (
        (
            "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())\n"
            "b.close(); answer = 0"
        ),
        "has not accepted a connection",
    ),
    "child that it traces": (
        (
            "held['p'] = subprocess.Popen(['sleep', '600'])\n"
            "libc.ptrace.argtypes = (ctypes.c_long,) * 2 + (ctypes.c_void_p,) * 2\n"
            "answer = libc.ptrace(0x4206, held['p'].pid, None, None)"
        ),
        "is traced by process",
    ),
    "child of vfork": (
        (
            "p = subprocess.Popen([sys.executable, '-c', 'import ctypes; l = ctypes.CDLL(None); "
            "l.syscall(58) or l.pause()'])\n"
            "while open(f'/proc/{p.pid}/wchan').read() not in ('kernel_clone', 'wait_for_vfork_done'):\n"
            "    time.sleep(0.005)\n"
            "answer = 0"
        ),
        "is just starting a program",
    ),
} | {
    f"child in another {kind} namespace": (
        CHILD_IN_NAMESPACE.format(kind=kind),
        f"lives in another {kind} namespace",
    )
    for kind in ("ipc", "uts", "user", "cgroup")
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_criu_cannot_dump_is_refused(case: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    program, reason = REFUSED[case]
    try:
        done = int(holder.do(program))
    except AssertionError:
        pytest.skip("this kernel has no such thing")
    if done < 0:
        pytest.skip("this kernel has no such thing")
    reasons = refusals(holder, tmp_path, tcp_established=False)
    assert reason in "; ".join(reasons)
    assert criu_errors(criu, holder, tmp_path)


def test_a_process_whose_leader_has_ended_is_refused(holder: Holder, criu: Path, tmp_path: Path) -> None:
    holder.do(
        "program = ('import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); '\n"
        "           'ctypes.CDLL(None).pthread_exit(None)')\n"
        "p = subprocess.Popen([sys.executable, '-c', program])\n"
        "while ') Z ' not in open(f'/proc/{p.pid}/stat').read(): time.sleep(0.005)"
    )
    try:
        reasons = refusals(holder, tmp_path, tcp_established=False)
        assert "has ended, and its other threads run on" in "; ".join(reasons)
        assert "Zombies with threads" in criu_errors(criu, holder, tmp_path)
    finally:
        # cgroup.kill signals the leader alone, which is dead; should this be killed, it ends by itself.
        holder.do("p.kill(); p.wait()")


def test_a_file_from_another_mount_namespace_is_refused(criu: Path, tmp_path: Path) -> None:
    with holding("unshare", "--mount") as held:
        # Its standard error is the /dev/null that it was started with.
        assert "fd 2 → /dev/null, which lies on a mount that it does not see" in "; ".join(
            refusals(held, tmp_path, tcp_established=False)
        )
        assert criu_errors(criu, held, tmp_path)


DUMPED = {
    "aio": "c = ctypes.c_ulong(0); answer = libc.syscall(206, 16, ctypes.byref(c))",
    "shared memory": (
        "f = open('/dev/shm/ckpt-test-inspect', 'w+b'); f.truncate(4096); held['m'] = mmap.mmap(f.fileno(), 4096)\n"
        "os.unlink(f.name); answer = 0"
    ),
    "memfd": "m = os.memfd_create('x'); os.ftruncate(m, 4096); held['m'] = mmap.mmap(m, 4096); answer = 0",
    "shared zeros": "f = open('/dev/zero', 'r+b'); held['m'] = mmap.mmap(f.fileno(), 4096); answer = 0",
    "mapped file in /dev": (
        "f = open('/dev/ckpt-test-inspect', 'w+b'); f.truncate(4096); held['m'] = mmap.mmap(f.fileno(), 4096)\n"
        "os.unlink(f.name); answer = 0"
    ),
    "descriptors of proc": (
        "held['own'] = open('/proc/self/status'); held['other'] = open('/proc/1/status')\n"
        "p = subprocess.Popen(['sleep', '600']); held['dead'] = open(f'/proc/{p.pid}/status')\n"
        "p.kill(); p.wait(); answer = 0"
    ),
    "pidfds": (
        "p = subprocess.Popen(['true']); held['dead'] = os.pidfd_open(p.pid); p.wait()\n"
        "answer = os.pidfd_open(os.getpid())"
    ),
    "events": (
        "import select\n"
        "held['e'] = os.eventfd(0), select.epoll(), libc.inotify_init1(0), libc.fanotify_init(0, 0)\n"
        "held['t'] = libc.timerfd_create(1, 0), libc.signalfd(-1, ctypes.create_string_buffer(128), 0); answer = 0"
    ),
    "plain devices": (
        "held['d'] = [os.open(f'/dev/{d}', os.O_RDONLY) for d in ('null', 'zero', 'full', 'urandom')]; answer = 0"
    ),
    "terminal of its own": "held['t'] = os.openpty(); answer = 0",
    "sockets": (
        "held['s'] = [socket.socket(*each) for each in ((1, 1), (1, 5), (2, 1), (2, 2), (2, 3, 1), (16, 3))]\n"
        "held['p'] = socket.socketpair(); held['l'] = socket.create_server(('127.0.0.1', 0)); answer = 0"
    ),
    "zombie of another user": (
        "p = subprocess.Popen(['true'], user=65534)\n"
        "while ') Z ' not in open(f'/proc/{p.pid}/stat').read(): time.sleep(0.005)\n"
        "answer = 0"
    ),
    "forked child": "held['p'] = os.fork() or signal.pause(); answer = 0",
    "deleted files and directories": (
        "d = '/tmp/ckpt-test-inspect-' + str(os.getpid()); os.mkdir(d); os.chdir(d)\n"
        "held['f'] = open('f', 'w'); os.unlink('f'); os.rmdir(d); answer = 0"
    ),
}


@pytest.mark.parametrize("case", DUMPED)
def test_what_criu_dumps_is_not_refused(case: str, holder: Holder, criu: Path, tmp_path: Path) -> None:
    if int(holder.do(DUMPED[case])) < 0:
        pytest.skip("this kernel has no such thing")
    assert refusals(holder, tmp_path, tcp_established=False) == ()
    assert criu_errors(criu, holder, tmp_path) == ""


def test_a_changed_root_is_not_refused(holder: Holder, criu: Path, tmp_path: Path) -> None:
    inside = tmp_path / "root"
    inside.mkdir()
    holder.do(f"os.chroot({str(inside)!r}); os.chdir('/')")
    assert refusals(holder, tmp_path, tcp_established=False) == ()
    assert criu_errors(criu, holder, tmp_path) == ""


def test_open_connections_are_dumped_with_the_option(holder: Holder, criu: Path, tmp_path: Path) -> None:
    holder.do(
        "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname()); c = a.accept()"
    )
    assert refusals(holder, tmp_path, tcp_established=True) == ()
    assert criu_errors(criu, holder, tmp_path, "--tcp-established") == ""


def test_a_connection_in_flight_is_refused_with_the_option_too(
    holder: Holder, criu: Path, tmp_path: Path
) -> None:
    port = int(holder.do("a = socket.create_server(('127.0.0.1', 0)); answer = a.getsockname()[1]"))
    with socket.create_connection(("127.0.0.1", port)):
        reasons = refusals(holder, tmp_path, tcp_established=True)
        assert "has not accepted a connection" in "; ".join(reasons)
        assert "In-flight" in criu_errors(criu, holder, tmp_path, "--tcp-established")


def test_a_network_of_its_own_may_have_a_tunnel(criu: Path, tmp_path: Path) -> None:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("this host has no tunnels")
    with holding("unshare", "--net") as held:
        held.do("held['d'] = os.open('/dev/net/tun', os.O_RDWR)")
        assert refusals(held, tmp_path, tcp_established=False) == ()


def test_a_container_is_refused_and_mounts_over_the_hosts_root_are_not(criu: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    pivot = f'mount --rbind / {root} && cd {root} && pivot_root . mnt && exec chroot . "$@"'
    with holding("unshare", "--mount", "sh", "-c", 'exec 2>/dev/null; exec "$@"', "sh") as held:
        assert refusals(held, tmp_path, tcp_established=False) == ()
    pivot = f"mount -t tmpfs none {root} && mkdir {root}/old && cd {root} && pivot_root . old"
    with holding("unshare", "--mount", "sh", "-c", 'exec 2>/dev/null; exec "$@"', "sh") as held:
        held.do(f"answer = subprocess.run(['sh', '-c', {pivot!r}], check=True).returncode")
        held.do("os.chroot('.')")
        assert "(a container)" in "; ".join(refusals(held, tmp_path, tcp_established=False))


def test_a_refused_workload_runs_on_at_once(holder: Holder, tmp_path: Path) -> None:
    if int(holder.do("answer = libc.syscall(323, 0)")) < 0:
        pytest.skip("this kernel has no userfaultfd")
    with pytest.raises(CannotCheckpoint):
        HostInspector(str(tmp_path / "state")).survey(holder.target)
    assert "frozen 0" in Path(holder.cgroup, "cgroup.events").read_text()
    assert holder.do("answer = 5") == "5"
