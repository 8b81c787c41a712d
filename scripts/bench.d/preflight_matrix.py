"""Little workloads of all kinds: each holds one thing, and tells afterwards whether it still has it.

Rule: nothing here says what ought to come out. What a check says and what really happens is found by running both.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from preflight_outside import (
    fifo_reader,
    loop_mount,
    mapped_outside,
    outside_pipe,
    outside_terminal,
    tcp_peer,
    unix_peer,
)

Outside = Callable[[Path], AbstractContextManager[object]]


@dataclass(frozen=True)
class Case:
    """One workload.

    `setup` and `probe` are snippets for images/subjects/snippets.py. `command` starts it (unshare, prlimit …).
    `outside` is what must be there besides, for as long as it runs: it is given the workload's folder.
    """

    name: str
    setup: str = ""
    probe: str = ""
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    outside: Outside = lambda _folder: nullcontext()
    stdin: Callable[[], AbstractContextManager[int]] | None = None


SHM = Path("/dev/shm", f"ckpt-bench-{os.getpid()}")

CONNECTED = (
    "held['l'] = socket.create_server(('127.0.0.1', 0)); held['a'] = socket.create_connection(held['l'].getsockname())\n"
    "held['b'] = held['l'].accept()[0]"
)
TALKS = "held['a'].sendall(b'x'); lost = '' if held['b'].recv(1) == b'x' else 'a byte'"
CHILD = "held['p'] = subprocess.Popen({words!r})"
CHILD_LIVES = "lost = '' if held['p'].poll() is None else 'the child'"
IN_NAMESPACE = (
    "held['p'] = subprocess.Popen(['unshare', '--{kind}', 'sleep', '600'])\n"
    "while os.readlink(f\"/proc/{{held['p'].pid}}/ns/{file}\") == os.readlink('/proc/self/ns/{file}'): time.sleep(0.005)"
)
MEMFD_PROGRAM = (
    "m = os.memfd_create('program', 0); os.write(m, open('/bin/sleep', 'rb').read())\n"
    "held['p'] = subprocess.Popen(['sleep', '600'], executable=f'/proc/self/fd/{m}', pass_fds=(m,)); os.close(m)\n"
    "while 'memfd' not in os.readlink(f\"/proc/{held['p'].pid}/exe\"): time.sleep(0.005)"
)

OTHER_ROOT = (
    'r=$(mktemp -d) && mount -t tmpfs none "$r" && for d in /*; do if [ -L "$d" ]; then cp -P "$d" "$r/"; '
    'elif [ -d "$d" ]; then mkdir "$r$d" && mount --rbind "$d" "$r$d"; fi; done; '
    'cd "$r" && mkdir old && pivot_root . old && umount -l /old && exec "$0" "$@"'
)

CASES: tuple[Case, ...] = (
    # ------------------------------------------------------------------------------ what is plain
    Case("memory", "held['m'] = os.urandom(1 << 20); held['h'] = hash(held['m'])", "lost = '' if hash(held['m']) == held['h'] else 'memory'"),
    Case("threads", "held['t'] = [threading.Thread(target=time.sleep, args=(600,), daemon=True) for _ in range(20)]; [t.start() for t in held['t']]", "lost = '' if all(t.is_alive() for t in held['t']) else 'threads'"),
    Case("children", CHILD.format(words=["sleep", "600"]), CHILD_LIVES),
    Case("zombie", "held['p'] = subprocess.Popen(['true']); time.sleep(0.2)", "lost = '' if held['p'].wait() == 0 else 'the status'"),
    Case("stopped child", "held['p'] = subprocess.Popen(['sleep', '600']); os.kill(held['p'].pid, signal.SIGSTOP); os.waitid(os.P_PID, held['p'].pid, os.WSTOPPED | os.WNOWAIT)", "lost = '' if open(f\"/proc/{held['p'].pid}/stat\").read().split(') ')[1][0] == 'T' else 'the stop'; os.kill(held['p'].pid, signal.SIGCONT)"),
    Case("open file", "held['f'] = open(folder + '/f', 'w+'); held['f'].write('abc'); held['f'].flush()", "held['f'].write('d'); held['f'].flush(); lost = '' if open(folder + '/f').read() == 'abcd' else 'the place in the file'"),
    Case("directory and chdir", "os.mkdir(folder + '/d'); os.chdir(folder + '/d'); held['d'] = os.open('.', os.O_RDONLY)", "lost = '' if os.getcwd() == folder + '/d' else 'the directory'"),
    Case("changed root", "os.mkdir(folder + '/r'); held['d'] = os.open('/', os.O_RDONLY); os.chroot(folder + '/r'); os.fchdir(held['d']); os.chroot('.'); os.chdir('/')"),
    Case("events", "held['e'] = (os.eventfd(3), select.epoll(), libc.inotify_init1(0), libc.timerfd_create(1, 0)); held['e'][1].register(held['e'][0], select.EPOLLIN)", "lost = '' if os.eventfd_read(held['e'][0]) == 3 else 'the count'"),
    Case("inotify", "held['i'] = libc.inotify_init1(2048); libc.inotify_add_watch(held['i'], folder.encode(), 0x100)", "open(folder + '/new', 'w').close(); lost = '' if os.read(held['i'], 4096) else 'the watch'"),
    Case("fanotify", "held['i'] = libc.fanotify_init(2, 0); libc.fanotify_mark(held['i'], 1, ctypes.c_uint64(0x20), -100, folder.encode())"),
    Case("signals blocked and waiting", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); os.kill(os.getpid(), signal.SIGUSR1)", "lost = '' if signal.SIGUSR1 in signal.sigpending() else 'the signal'"),
    Case("timers", "signal.signal(signal.SIGALRM, lambda *_: held.update(fired=1)); signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)", "end = time.monotonic() + 5; held.pop('fired', 0)\nwhile 'fired' not in held and time.monotonic() < end: time.sleep(0.01)\nlost = '' if 'fired' in held else 'the timer'"),
    Case("pipe of its own", "held['p'] = os.pipe(); os.write(held['p'][1], b'abc')", "lost = '' if os.read(held['p'][0], 9) == b'abc' else 'what was in it'"),
    Case("socket pair", "held['s'] = socket.socketpair(); held['s'][0].send(b'abc')", "lost = '' if held['s'][1].recv(9) == b'abc' else 'what was in it'"),
    Case("terminal of its own", "held['t'] = os.openpty()", "os.write(held['t'][0], b'a\\n'); lost = '' if os.read(held['t'][1], 9) == b'a\\n' else 'the terminal'"),
    Case("plain devices", "held['d'] = [os.open('/dev/' + d, os.O_RDONLY) for d in ('null', 'zero', 'full', 'urandom', 'random')]", "lost = '' if os.read(held['d'][1], 1) == b'\\0' else '/dev/zero'"),
    Case("files of proc", "held['f'] = [open('/proc/self/status'), open('/proc/1/status'), open('/proc/meminfo')]", "lost = '' if held['f'][2].read() else 'meminfo'"),
    Case("file of a process that ended", "p = subprocess.Popen(['sleep', '600']); held['f'] = open(f'/proc/{p.pid}/status'); p.kill(); p.wait()"),
    Case("other user", "os.setgroups([]); os.setgid(65534); os.setuid(65534)", "lost = '' if os.getuid() == 65534 else 'the user'"),
    Case("no privileges and a filter", "libc.prctl(38, 1, 0, 0, 0)\nf = struct.pack('=HBBI', 6, 0, 0, 0x7fff0000); b = ctypes.create_string_buffer(f)\nlibc.prctl(22, 2, struct.pack('=HxxxxxxQ', 1, ctypes.addressof(b)), 0, 0)", "lost = '' if 'Seccomp:\\t2' in open('/proc/self/status').read() else 'the filter'"),
    Case("capabilities dropped", "libc.prctl(24, 21, 0, 0, 0)"),
    Case("nice and limits", "import resource; os.nice(5); resource.setrlimit(resource.RLIMIT_NOFILE, (500, 600))", "lost = '' if os.nice(0) == 5 and resource.getrlimit(resource.RLIMIT_NOFILE) == (500, 600) else 'nice or a limit'"),
    Case("many descriptors", "held['f'] = [open('/dev/null') for _ in range(900)]"),
    Case("own pid namespace", CHILD.format(words=["sleep", "600"]), CHILD_LIVES, command=("unshare", "--pid", "--mount-proc", "--kill-child", "--fork")),
    Case("umask, name", "os.umask(0o27); libc.prctl(15, b'renamed', 0, 0, 0)", "lost = '' if os.umask(0o27) == 0o27 and open('/proc/self/comm').read() == 'renamed\\n' else 'umask or name'"),
    # ------------------------------------------------------------------------------ memory
    Case("shared memory", "m = mmap.mmap(-1, 4096); held['m'] = m; m[0] = 7", "lost = '' if held['m'][0] == 7 else 'memory'"),
    Case("shared memory by name", f"f = open({str(SHM)!r}, 'w+b'); f.truncate(4096); held['m'] = mmap.mmap(f.fileno(), 4096); held['m'][0] = 7; os.unlink(f.name)", "lost = '' if held['m'][0] == 7 else 'memory'"),
    Case("memfd", "m = os.memfd_create('x'); os.ftruncate(m, 4096); held['m'] = mmap.mmap(m, 4096); held['m'][0] = 7", "lost = '' if held['m'][0] == 7 else 'memory'"),
    Case("memfd, sealed", "m = os.memfd_create('x', 3); os.write(m, b'abc'); fcntl.fcntl(m, 1033, 8)", "lost = '' if fcntl.fcntl(m, 1034) == 8 else 'the seal'"),
    Case("locked memory", "held['m'] = mmap.mmap(-1, 1 << 16, flags=0x22); libc.mlockall(1)", "lost = '' if 'VmLck:\\t       0' not in open('/proc/self/status').read() else 'the lock'"),
    Case("memory locked on fault", "held['m'] = mmap.mmap(-1, 1 << 22, flags=0x22); a = ctypes.addressof(ctypes.c_char.from_buffer(held['m'])); libc.syscall(325, ctypes.c_void_p(a), ctypes.c_size_t(1 << 22), 1)", "n = [int(l.split()[1]) for l in open('/proc/self/smaps') if l.startswith('Locked:')]; lost = '' if max(n) < 4000 else 'on fault: all of it is locked now'"),
    Case("huge pages by advice", "held['m'] = mmap.mmap(-1, 4 << 20, flags=0x22); held['m'].madvise(14); held['m'][0] = 1", "lost = '' if held['m'][0] == 1 else 'memory'"),
    Case("aio context", "c = ctypes.c_ulong(0); libc.syscall(206, 16, ctypes.byref(c))"),
    Case("secret memory", "m = libc.syscall(447, 0); os.ftruncate(m, 4096); held['m'] = mmap.mmap(m, 4096); os.close(m)"),
    Case("SysV memory of the host", "s = libc.shmget(0, 4096, 0o1600); held['a'] = libc.shmat(s, None, 0); libc.shmctl(s, 0, None)"),
    Case("SysV memory, own IPC namespace", "s = libc.shmget(0, 4096, 0o1600); held['a'] = libc.shmat(s, None, 0); ctypes.memset(held['a'], 7, 1)", "lost = '' if ctypes.string_at(held['a'], 1) == b'\\7' else 'memory'", command=("unshare", "--ipc")),
    Case("SysV semaphore of the host", "held['s'] = libc.semget(0, 1, 0o1600); libc.semop(held['s'], struct.pack('=Hhh', 0, 1, 0x1000), 1)", "lost = '' if libc.semctl(held['s'], 0, 12) == 1 else 'the semaphore'; libc.semctl(held['s'], 0, 0)"),
    Case("file that others map", "f = open(folder + '/shared', 'r+b'); held['m'] = mmap.mmap(f.fileno(), 4096)", outside=mapped_outside),
    Case("io_uring", "held['r'] = libc.syscall(425, 4, ctypes.byref(ctypes.create_string_buffer(120)))"),
    Case("io_uring, mapped only", "r = libc.syscall(425, 4, ctypes.byref(ctypes.create_string_buffer(120))); held['m'] = libc.mmap(None, 4096, 3, 0x8001, r, 0); os.close(r)"),
    Case("userfaultfd", "held['u'] = libc.syscall(323, 1)"),
    # ------------------------------------------------------------------------------ descriptors of the kernel
    Case("perf event", "b = ctypes.create_string_buffer(128); struct.pack_into('=IIQ', b, 0, 1, 128, 0); held['p'] = libc.syscall(298, b, 0, -1, -1, 0)"),
    Case("bpf map", "held['b'] = libc.syscall(321, 0, ctypes.create_string_buffer(struct.pack('=IIII', 2, 4, 4, 1), 128), 128)"),
    Case("landlock rules", "held['l'] = libc.syscall(444, struct.pack('=QQQ', 1, 0, 0), 8, 0)"),
    Case("pidfd of a child", "held['p'] = subprocess.Popen(['sleep', '600']); held['d'] = os.pidfd_open(held['p'].pid)", "signal.pidfd_send_signal(held['d'], 9); lost = '' if held['p'].wait() == -9 else 'the pidfd'"),
    Case("pidfd of a process outside", "held['d'] = os.pidfd_open(1)"),
    Case("fuse device", "held['d'] = os.open('/dev/fuse', os.O_RDWR)"),
    Case("tun in the host's network", "held['d'] = os.open('/dev/net/tun', os.O_RDWR)"),
    Case("loop control", "held['d'] = os.open('/dev/loop-control', os.O_RDWR)"),
    Case("message queue", "held['q'] = libc.mq_open(b'/ckpt-bench-queue', 0o102, 0o600, None); libc.mq_unlink(b'/ckpt-bench-queue')"),
    # ------------------------------------------------------------------------------ files
    Case("deleted file", "held['f'] = open(folder + '/f', 'w+b'); held['f'].write(b'abc'); held['f'].flush(); os.unlink(folder + '/f')", "held['f'].seek(0); lost = '' if held['f'].read() == b'abc' else 'its content'"),
    Case("deleted file above the limit", "held['f'] = open(folder + '/f', 'w+b'); held['f'].write(b'a' * (3 << 20)); held['f'].flush(); os.unlink(folder + '/f')", options=("--ghost-limit", "2M")),
    Case("deleted name of a hard link", "held['f'] = open(folder + '/f', 'w+b'); held['f'].write(b'abc'); held['f'].flush(); os.link(folder + '/f', folder + '/g'); os.unlink(folder + '/f')", "held['f'].seek(0); lost = '' if held['f'].read() == b'abc' else 'its content'"),
    Case("replaced file", "held['f'] = open(folder + '/f', 'w+b'); held['f'].write(b'abc'); held['f'].flush(); open(folder + '/n', 'w').close(); os.rename(folder + '/n', folder + '/f')", "held['f'].seek(0); lost = '' if held['f'].read() == b'abc' else 'its content'"),
    Case("replaced program", "import shutil; shutil.copy('/bin/sleep', folder + '/s'); held['p'] = subprocess.Popen([folder + '/s', '600']); time.sleep(0.1); shutil.copy('/bin/cat', folder + '/n'); os.rename(folder + '/n', folder + '/s')", CHILD_LIVES),
    Case("removed directory", "os.mkdir(folder + '/d'); os.chdir(folder + '/d'); os.rmdir(folder + '/d')"),
    Case("locks", "held['f'] = open(folder + '/f', 'w'); fcntl.flock(held['f'], fcntl.LOCK_EX); fcntl.lockf(held['f'], fcntl.LOCK_EX, 10)", "lost = '' if open('/proc/locks').read().count(str(os.fstat(held['f'].fileno()).st_ino)) == 2 else 'a lock'"),
    Case("lease", "held['f'] = open(folder + '/f', 'w'); fcntl.fcntl(held['f'], 1024, fcntl.F_WRLCK)", "lost = '' if fcntl.fcntl(held['f'], 1025) == fcntl.F_WRLCK else 'the lease'"),
    Case("file on a mount that is gone", "held['f'] = open(folder + '/mounted/f', 'w'); subprocess.run(['umount', '-l', folder + '/mounted'], check=True)", outside=loop_mount),
    Case("file on a tmpfs of its own", "held['f'] = open(folder + '/mounted/f', 'w')", "held['f'].write('x')", outside=loop_mount),
    Case("program from a memfd", MEMFD_PROGRAM, CHILD_LIVES),
    # ------------------------------------------------------------------------------ sockets
    Case("listening", "held['l'] = socket.create_server(('127.0.0.1', 0))", "a = socket.create_connection(held['l'].getsockname()); lost = '' if held['l'].accept() else 'it'"),
    Case("connection to itself", CONNECTED, TALKS),
    Case("connection to itself, kept", CONNECTED, TALKS, options=("--tcp-established",)),
    Case("connection outside, kept", "held['a'] = socket.create_connection(('127.0.0.1', int(open(folder + '/port').read())))", "held['a'].sendall(b'x'); lost = '' if held['a'].recv(1) == b'x' else 'a byte'", options=("--tcp-established",), outside=tcp_peer),
    Case("connection that is not accepted", "held['l'] = socket.create_server(('127.0.0.1', 0)); held['a'] = socket.create_connection(held['l'].getsockname())", options=("--tcp-established",)),
    Case("UDP", "held['u'] = socket.socket(2, 2); held['u'].bind(('127.0.0.1', 0)); held['u'].connect(held['u'].getsockname())", "held['u'].send(b'x'); lost = '' if held['u'].recv(9) == b'x' else 'a datagram'"),
    Case("UDP, corked", "held['u'] = socket.socket(2, 2); held['u'].connect(('127.0.0.1', 9)); held['u'].setsockopt(17, 1, 1); held['u'].send(b'x')"),
    Case("raw and ping", "held['r'] = (socket.socket(2, 3, 1), socket.socket(17, 3, 0))"),
    Case("netlink", "held['n'] = socket.socket(16, 3, 0); held['n'].bind((0, 1))"),
    Case("netlink, unread", "held['n'] = socket.socket(16, 3, 0); held['n'].bind((0, 0)); held['n'].send(struct.pack('=IHHIIB', 17, 18, 0x301, 1, 0, 0)); time.sleep(0.1)"),
    Case("multipath TCP", "held['s'] = socket.socket(2, 1, 262)"),
    Case("vsock", "held['s'] = socket.socket(40, 1, 0)"),
    Case("AF_ALG", "held['s'] = socket.socket(38, 5, 0); held['s'].bind(('hash', 'sha256'))"),
    Case("unix stream outside", "held['s'] = socket.socket(1, 1); held['s'].connect(folder + '/outside')", outside=unix_peer),
    Case("unix datagrams outside", "held['s'] = socket.socket(1, 2); held['s'].connect(folder + '/outside')", outside=lambda folder: unix_peer(folder, socket.SOCK_DGRAM)),
    Case("unix datagrams outside, allowed", "held['s'] = socket.socket(1, 2); held['s'].connect(folder + '/outside')", "held['s'].send(b'x')", options=("--external-unix",), outside=lambda folder: unix_peer(folder, socket.SOCK_DGRAM)),
    Case("unix listening, name removed", "held['s'] = socket.socket(1, 1); held['s'].bind(folder + '/s'); held['s'].listen(); os.unlink(folder + '/s')"),
    Case("unix listening, abstract", "held['s'] = socket.socket(1, 1); held['s'].bind('\\0ckpt-bench-' + str(os.getpid())); held['s'].listen()", "c = socket.socket(1, 1); c.connect(held['s'].getsockname())"),
    Case("unix connection that is not accepted", "held['l'] = socket.socket(1, 1); held['l'].bind(folder + '/s'); held['l'].listen(); held['a'] = socket.socket(1, 1); held['a'].connect(folder + '/s')", "lost = '' if held['l'].accept() else 'it'"),
    Case("descriptors on their way", "held['s'] = socket.socketpair(); socket.send_fds(held['s'][0], [b'x'], [1, 2])", "lost = '' if len(socket.recv_fds(held['s'][1], 9, 9)[1]) == 2 else 'descriptors'"),
    Case("other congestion control", CONNECTED + "\nheld['a'].setsockopt(6, 13, b'reno')", "lost = '' if held['a'].getsockopt(6, 13, 16).startswith(b'reno') else 'the congestion control'", options=("--tcp-established",)),
    # ------------------------------------------------------------------------------ what is shared with others
    Case("standard input from a pipe outside", "", "", stdin=outside_pipe),
    Case("terminal outside", "", stdin=outside_terminal),
    Case("terminal outside, allowed", "", options=("--shell-job",), stdin=outside_terminal),
    Case("named pipe that is read outside", "held['f'] = os.open(folder + '/fifo', os.O_WRONLY)", "os.write(held['f'], b'x')", outside=fifo_reader),
    # ------------------------------------------------------------------------------ processes and namespaces
    Case("traced child", "held['p'] = subprocess.Popen(['sleep', '600']); libc.ptrace.argtypes = (ctypes.c_long,) * 2 + (ctypes.c_void_p,) * 2; libc.ptrace(0x4206, held['p'].pid, None, None)"),
    Case("child of vfork", "held['p'] = subprocess.Popen([sys.executable, '-c', 'import ctypes; l = ctypes.CDLL(None); l.syscall(58) or l.pause()'])\nwhile open(f\"/proc/{held['p'].pid}/wchan\").read() not in ('kernel_clone', 'wait_for_vfork_done'): time.sleep(0.005)"),
    Case("leader that has ended", "p = 'import ctypes, threading, time; threading.Thread(target=time.sleep, args=(90,)).start(); ctypes.CDLL(None).pthread_exit(None)'\nheld['p'] = subprocess.Popen([sys.executable, '-c', p])\nwhile ') Z ' not in open(f\"/proc/{held['p'].pid}/stat\").read(): time.sleep(0.005)"),
    Case("deadline scheduling", "libc.syscall(314, 0, struct.pack('=IIQiIQQQ', 48, 6, 0, 0, 0, 10**7, 5 * 10**7, 10**8), 0)"),
    Case("real-time scheduling", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(3))", "lost = '' if os.sched_getscheduler(0) == os.SCHED_FIFO else 'the policy'; os.sched_setscheduler(0, 0, os.sched_param(0))"),
    Case("affinity", "os.sched_setaffinity(0, {0})", "lost = '' if os.sched_getaffinity(0) == {0} else 'the affinity'"),
    Case("priority of input and output", "libc.syscall(251, 1, 0, (2 << 13) | 6)", "lost = '' if libc.syscall(252, 1, 0) == (2 << 13) | 6 else 'the priority'"),
    Case("timer slack, coredump filter", "libc.prctl(29, 12345, 0, 0, 0); open('/proc/self/coredump_filter', 'w').write('0x11')", "lost = '' if libc.prctl(30, 0, 0, 0, 0) == 12345 and int(open('/proc/self/coredump_filter').read(), 16) == 0x11 else 'one of them'"),
    Case("personality", "libc.personality(0x0040000)", "lost = '' if libc.personality(0xffffffff) == 0x0040000 else 'the personality'"),
    Case("memory policy", "libc.syscall(238, 1, struct.pack('=Q', 1), 8)", "m = ctypes.c_int(); libc.syscall(239, ctypes.byref(m), None, 0, None, 0); lost = '' if m.value == 1 else 'the policy'"),
    Case("own mounts", "subprocess.run(['mount', '-t', 'tmpfs', 'own', '/mnt'], check=True); held['f'] = open('/mnt/f', 'w')", "held['f'].write('x')", command=("unshare", "--mount")),
    Case("other root directory", command=("unshare", "--mount", "sh", "-c", OTHER_ROOT)),
    Case("user namespace alone", "", command=("unshare", "--user", "--map-root-user")),
    Case("own network", "held['l'] = socket.socket(2, 1); held['l'].bind(('0.0.0.0', 0)); held['l'].listen()", command=("unshare", "--net")),
    Case("own host name and IPC", "socket.sethostname('inner')", "lost = '' if socket.gethostname() == 'inner' else 'the name'", command=("unshare", "--uts", "--ipc")),
    Case("own time namespace", "held['t'] = time.clock_gettime(time.CLOCK_MONOTONIC)", "lost = '' if time.clock_gettime(time.CLOCK_MONOTONIC) >= held['t'] else 'time'", command=("unshare", "--time", "--monotonic", "5000", "--fork")),
    Case("own cgroup namespace", "", command=("unshare", "--cgroup")),
    *(Case(f"child in another {kind} namespace", IN_NAMESPACE.format(kind=kind, file="mnt" if kind == "mount" else kind), CHILD_LIVES) for kind in ("ipc", "uts", "user", "cgroup", "net", "mount")),
)  # fmt: skip
