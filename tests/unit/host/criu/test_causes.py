"""Every row of the table, with the line of CRIU's log that it was made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.host.criu.causes import ROWS, explain
from ckpt.host.criu.log import LogReading, read_log

# (line of the log, what the cause must say, what the remedy must say)
LINES = [
    ("(00.003211) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds", "too old", "4.2"),
    ("(00.020114) Error (criu/sockets.c:628): sockets: Can't get 1:16 opt: Operation not supported", "too old", "4.2"),
    ("(00.019020) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted", "another user", "CAP_SYS_RESOURCE"),
    ("(00.021301) Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.", "established TCP", "--tcp-established"),
    ("(00.017722) Error (criu/netfilter.c:105): Iptables configuration failed", "locked", "nftables"),
    ("(00.017800) Error (criu/net.c:3436): Locking network failed using nftables", "locked", "nftables"),
    ("(00.019277) Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 5bc4", "not accepted", "again"),
    ("(00.018800) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 6f21", "MPTCP", "GODEBUG"),
    ("(00.018801) Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 40)", "VSOCK", "Close"),
    ("(00.018801) Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected (family 21)", "family 21", "Close"),
    ("(00.022010) Error (criu/sk-inet.c:504): inet: Can't dump corked dgram socket 71c2", "corked", "again"),
    ("(00.022011) Error (criu/sk-unix.c:874): sk unix: External socket is used. Consider using --ext-unix-sk option.", "outside", "--external-unix"),
    ("(00.022012) Error (criu/sk-unix.c:881): sk unix: Can't dump half of stream unix connection. name: (null); peer name: /run/dbus/s", "outside", "Include"),
    ("(00.022013) Error (criu/file-lock.c:110): Some file locks are hold by dumping tasks! You can try --file-locks to dump them.", "file locks", "file locks"),
    ("(00.022014) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/big of 209715200 size, increase limit", "/tmp/big, still open, has 209715200 bytes", "ghost-limit"),
    ("(00.022015) Error (criu/files-reg.c:1122): Can't create link remap for /tmp/x. Use link-remap option.", "/tmp/x", "link_remap"),
    ("(00.022016) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0 path=/dev/null", "descriptor 0 (/dev/null)", "own mount namespace"),
    ("(00.022017) Error (criu/files-ext.c:94): Can't dump file 3 of that type [20600] (chr 195:255)", "descriptor 3 is of a kind that cannot be saved (chr 195:255)", "plugin"),
    ("(00.022018) Error (criu/files-ext.c:94): Can't dump file 7 of that type [600] (anon anon_inode:[perf_event])", "anon_inode:[perf_event]", "Close"),
    ("(00.022019) Error (compel/src/lib/../../parasite.c:588): send_fds failed (-22)", "io_uring", "UV_USE_IO_URING=0"),
    ("(00.022020) Error (criu/parasite-syscall.c:301): Can't retrieve FDs from socket", "io_uring", "UV_USE_IO_URING=0"),
    ("(00.022021) Error (criu/proc_parse.c:502): Unknown shit 600 (anon_inode:[io_uring])", "io_uring", "UV_USE_IO_URING=0"),
    ("(00.022022) Error (criu/proc_parse.c:502): Unknown shit 600 (/secretmem (deleted))", "secret memory", "memfd_secret"),
    ("(00.022023) Error (criu/tun.c:306): tun: Net namespace is required to dump tun link", "tun device", "network namespace"),
    ("(00.022024) Error (criu/tty.c:410): tty: Found slave peer index 3 without correspond master peer", "/dev/pts/3", "setsid"),
    ("(00.022025) Error (criu/tty.c:1010): tty: Don't have tty to inherit session from, aborting", "terminal", "--attach"),
    ("(00.022026) Error (criu/pstree.c:304): The root process 4711 is not a session leader. Consider using --shell-job option", "4711", "setsid"),
    ("(00.022027) Error (criu/cr-dump.c:1528): A session leader of 4711(1) is outside of its pid namespace", "4711", "setsid"),
    ("(00.022028) Error (criu/cr-dump.c:478): Task 4711 with SysVIPC shmem map @7f1200000000 doesn't live in IPC ns", "System V", "IPC namespace"),
    ("(00.022029) Error (criu/namespaces.c:460): Can't dump nested uts namespace for 4712", "uts namespace", "sandbox"),
    ("(00.022030) Error (criu/pstree.c:969): Can't restore sub-task in NS (cflags 20000)", "namespace of its own", "ckpt check"),
    ("(00.022031) 4711: Error (criu/mount.c:48): mnt: BUG at criu/mount.c:48", "no root", "root"),
    ("(00.022032) Error (criu/mount.c:2753): mnt: The --root option is required to restore a mount namespace", "no root", "root"),
    ("(00.022033) Error (criu/util.c:1621): Unable to open the proc file system: Operation not permitted", "user namespace", "PID"),
    ("(00.022034) Error (criu/parasite-syscall.c:641): can't dump unprivileged task whose /proc doesn't belong to it", "host's /proc", "Mount"),
    ("(00.022035) Error (compel/src/lib/infect.c:262): Unseizable non-zombie 4711 found, state S, err -1/10", "task 4711 is traced", "Detach"),
    ("(00.022036) Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 4711 (Operation not permitted)", "task 4711", "Detach"),
    ("(00.022037) Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 4711 (No such process)", "4711 cannot be stopped (No such process)", "still runs"),
    ("(10.022037) Error (criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0", "did not stop", "Thaw"),
    ("(00.022038) Error (criu/seize.c:1043): Neither a cgroupv1 (freezer.state) or cgroupv2 (cgroup.freeze) control file found.", "frozen cgroup", "path"),
    ("(00.022039) Error (compel/src/lib/infect.c:260): The criu itself is within dumped tree.", "inside the workload", "outside"),
    ("(00.022040) Error (criu/pidfd.c:97): pidfd pid 99 is not a part of process tree..", "process 99", "Close"),
    ("(00.022041) Error (criu/page-xfer.c:263): page-xfer: Unable to spice data: No space left on device", "no space", "Free"),
    ("(00.000041) Error (criu/image.c:726): Can't open dir /nowhere: No such file or directory", "/nowhere", "Make"),
    ("(00.000042) Error (criu/config.c:1131): Tracking memory is not available. Consider omitting --track-mem option.", "soft-dirty", "pre-copy"),
    ("(00.000043) Error (criu/mem.c:46): BUG at criu/mem.c:46", "soft-dirty", "pre-copy"),
    ("(00.000044) Error (criu/cr-restore.c:1237): Can't fork for 4711: File exists", "pid 4711 is taken", "--pids new"),
    ("(00.000045) 4711: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 12): Address already in use", "port", "ss -ltnup"),
    ("(00.000046) 4711: Error (criu/sk-unix.c:1651): sk unix: Can't bind id 0xb ino 8812 addr x.sock: Address already in use", "x.sock", "Remove"),
    ("(00.000047) 4711: Error (criu/sk-inet.c:912): inet: Connected TCP socket in image", "established TCP", "--tcp-established"),
    ("(00.000048) 4711: Error (criu/files-reg.c:2353): Can't open file tmp/a b on restore: No such file or directory", "tmp/a b", "Copy"),
    ("(00.000049) 4711: Error (criu/files-reg.c:2175): File tmp/f has bad size 7 (expect 5)", "tmp/f has 7 bytes, and had 5", "Put the file back"),
    ("(00.000050) 4711: Error (criu/files-reg.c:2294): File tmp/f has bad mode 0100600 (expect 0100644)", "0100600", "mode"),
    ("(00.000051) Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)", "empty-image", "again"),
    ("(00.000052) Error (criu/protobuf.c:93): Read 288 bytes while 961 expected from core-4711.img", "core-4711.img is cut off", "again"),
    ("(00.000053) Error (criu/image.c:554): Head magic doesn't match for files.img", "files.img is damaged", "again"),
    ("(00.000054) pie: 4711: Error (criu/pie/restorer.c:1907): Can't read pages data (-9)", "memory's pages", "again"),
    ("(00.000055) pie: 4711: `- returned 0", "cut off", "again"),
    ("(00.000056) 4711: Error (criu/servicefd.c:282): Can't chose service_fd_base: 1024 4035", "(1024)", "ulimit"),
    ("(00.000057) 4711: Error (criu/files-reg.c:2592): No entry for reg-file-ID 0x2a", "memfd", "ckpt check"),
    ("(00.000058) Error (criu/cr-restore.c:2639): Inconsistent sched params received (6.0.0)", "SCHED_DEADLINE", "ckpt check"),
    ("(00.000059) Warn  (criu/cr-restore.c:1054): Root task has pdeath_sig configured, so it will receive one _right_after restore on CRIU exit", "PDEATHSIG", "Clear"),
    # From the messages in CRIU's source.
    ("(00.020100) Error (criu/cr-dump.c:227): 4711 has rseq but kernel lacks get_rseq_conf feature", "rseq", "5.13"),
    ("(00.020101) Error (criu/proc_parse.c:800): Can't dump high memory region ffff80000000-ffff80001000 of task 4711 because kernel commit ee71d16d22bb is missing", "task 4711", "kernel"),
    ("(00.000101) Error (criu/mem.c:1048): Can't restore high memory region ff000000000000-ff000000001000 because kernel does only support vmas up to 7ffffffff000", "ff000000000000", "la57"),
    ("(00.000102) Error (criu/arch/x86/cpu.c:223): cpu: CPU instruction capabilities do not match run time", "processor", "ckpt check REF"),
    ("(00.000103) Error (criu/cr-restore.c:854): Core march mismatch 2", "architecture", "same architecture"),
    ("(00.020104) Error (compel/src/lib/infect.c:847): Can't create memfd in victim: Cannot allocate memory", "memory limit", "memory.max"),
    ("(00.020105) Error (compel/src/lib/ptrace.c:27): suspending seccomp failed: Operation not permitted", "seccomp", "CAP_SYS_ADMIN"),
    ("(00.020106) Error (criu/net.c:2653): net: Unable to restore nftables. CRIU was built without libnftables support", "nftables", "scripts/setup"),
    ('(00.010107) Error (criu/plugin.c:156): Failed in init(0) of "amdgpu_plugin"', "amdgpu_plugin", "driver"),
    ("(00.021101) Error (criu/sk-unix.c:494): sk unix: In-flight connection on non-listening socket 4242", "unix socket", "again"),
    ("(00.000110) 4711: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 12): Cannot assign requested address", "does not exist", "ip addr add"),
    ("(00.021102) Error (criu/sk-inet.c:167): inet: Can't dump 5 inet socket 71c2. Only stream, dgram and raw are supported.", "type 5", "Close"),
    ("(00.021103) Error (criu/sk-inet.c:280): inet: Unsupported socket family: 21", "family 21", "Close"),
    ("(00.000111) Error (criu/sk-unix.c:1912): sk unix: External socket found in image. Consider using the --ext-unix-sk option to allow restoring it.", "outside", "--external-unix"),
    ("(00.021104) Error (criu/sk-netlink.c:218): netlink: Groups above 32 are not supported yet", "netlink", "Close"),
    ("(00.021105) Error (criu/sk-netlink.c:77): netlink: The socket has data to read", "netlink", "again"),
    ("(00.021106) Error (criu/sk-packet.c:71): packet: Multiple MC membership not supported (but can be)", "packet socket", "Close"),
    ("(00.021107) Error (criu/sk-tcp.c:210): tcp: libsoccr_save() failed with -1", "TCP connection", "CAP_NET_ADMIN"),
    ("(00.000112) 4711: Error (criu/sk-inet.c:1020): inet: couldn't find ifindex for eth7", "eth7", "ip link add"),
    ("(00.021108) Error (criu/net.c:650): net: Unsupported link 4 (type 1 kind wireguard)", "wireguard", "Remove it"),
    ("(00.000120) 4711: Error (criu/files-reg.c:2353): Can't open file tmp/a on restore: Permission denied", "tmp/a, which the workload has open, cannot be opened here: Permission denied", "mode"),
    ("(00.000121) 4711: Error (criu/files-reg.c:2155): File usr/lib/x86_64-linux-gnu/libc.so.6 has bad build-ID", "libc.so.6", "same version"),
    ("(00.000122) 4711: Error (criu/files-reg.c:1931): Can't link tmp/.criu.cwd -> tmp/x: File exists", "at tmp/x: File exists", "Remove"),
    ("(00.021120) Error (criu/pipes.c:490): The packetized mode for pipes is not supported yet", "packet mode", "without"),
    ("(00.021121) Error (criu/pipes.c:416): OOM storing pipe", "pipes", "again"),
    ("(00.021122) Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle", "watch", "Remove the watch"),
    ("(00.021123) Error (criu/pidfd.c:71): pidfd: PIDFD_THREAD flag is currently not supported", "thread", "Close"),
    ("(00.021124) Error (criu/eventpoll.c:322): eventpoll: Escaped/closed fd descriptor 9 on pid 4711", "process 4711 watches descriptor 9", "epoll"),
    ("(00.000123) 4711: Error (criu/file-lock.c:640): Can not set posix lock!", "lock", "lslocks"),
    ("(00.021125) Error (criu/proc_parse.c:663): Can't handle non-regular mapping on 4711's map 7f1200000000", "7f1200000000", "plugin"),
    ("(00.021126) Error (criu/proc_parse.c:760): Unsupported mapping found 00007f1200000000-00007f1200001000", "00007f1200000000", "Unmap"),
    ("(00.021127) Error (criu/proc_parse.c:840): PID 4711 has uprobes vma. Consider using --allow-uprobes.", "uprobe", "End"),
    ("(00.000124) 4711: Error (criu/files.c:923): Too big FD number to restore 900000", "900000", "ulimit"),
    ("(00.022101) Error (criu/cr-dump.c:1403): A root task is dead", "has ended", "cgroup"),
    ("(00.022102) Error (criu/cr-dump.c:1540): A session leader of zombie process 4711(7) is outside of its pid namespace", "4711", "setsid"),
    ("(00.022103) Error (criu/tty.c:1830): tty: Found dangling tty with sid 4000 pgid 4711 (pts) on peer fd 0.", "session 4000", "setsid"),
    ("(00.000130) Error (criu/tty.c:2281): tty: ctty inheritance detected sid/pgrp 4000, no PTY peer with sid/pgrp needed", "session 4000", "--attach"),
    ("(00.000131) 4711: Error (criu/tty.c:991): tty: Can't open master pty 1f (index 3)", "/dev/pts/3", "End"),
    ("(00.000132) Error (criu/pstree.c:790): Can't figure out which sid (4000 or 4711)the process 4712 was born with", "session", "setsid"),
    ("(00.000133) 4711: Error (criu/cr-restore.c:1375): Requested sid 4000 doesn't match inherited 4001", "session 4000", "leader"),
    ("(00.022104) Error (criu/seize.c:952): seize: Individually stopped threads not supported", "thread is stopped", "SIGCONT"),
    ("(00.022105) Error (criu/seize.c:335): seize: zombie 4711 (comm make) found while seizing", "4711 (make)", "again"),
    ("(00.022106) Error (criu/seize.c:882): seize: Zombies with threads are not supported", "first thread", "must live"),
    ("(00.022107) Error (compel/src/lib/infect.c:322): Can't dump the 4711 thread with a pending SIGTRAP.", "task 4711", "Detach"),
    ("(10.022108) Error (criu/seize.c:635): seize: Unable to freeze cgroup /sys/fs/cgroup/web (100 x 100ms attempts, timeout: 10s)", "/sys/fs/cgroup/web", "again"),
    ("(00.000134) 4711: Error (criu/cr-restore.c:1539): Pid 4800 do not match expected 4711", "pid 4711", "--pids new"),
    ("(00.000135) Error (criu/pstree.c:386): Current sid 4711 intersects with pid (1) in images", "number 4711", "--pids new"),
    ("(00.000136) Error (criu/pstree.c:640): Can't set kernel pid_max=99999", "99999", "kernel.pid_max=99999"),
    ("(00.000137) Error (criu/cr-restore.c:2035): This process tree can only be restored in a new pid namespace.", "PID namespace", "--pids new"),
    ("(00.023101) Error (criu/namespaces.c:1117): Can't dump a pid namespace without the process init", "first process", "first process"),
    ("(00.023102) Error (criu/namespaces.c:997): One or more namespaces doesn't belong to the target user namespace", "user namespace", "first"),
    ("(00.000140) Error (criu/namespaces.c:1203): Unable to write into 4711/uid_map: Operation not permitted", "uid_map", "root"),
    ("(00.000141) Error (criu/namespaces.c:105): Can't access join-ns file /proc/9/ns/time: No such file or directory", "/proc/9/ns/time", "again"),
    ("(00.000142) Error (criu/timens.c:80): timens: Unable to create a new time namespace: Invalid argument", "time namespace", "--time host"),
    ("(00.000143) Error (criu/ipc_ns.c:872): Failed to restore shm id (0 instead of 3)", "shm 3", "ckpt run"),
    ("(00.023103) Error (criu/mount.c:1092): mnt: Mount 77 ./data (master_id: 5 shared_id: 0) has unreachable sharing. Try --enable-external-masters.", "./data", "--make-rprivate"),
    ('(00.023104) Error (criu/mount.c:3120): mnt: Mount 77:./data is autodetected external mount. Try "--ext-mount-map auto" to allow them.', "./data", "ckpt run"),
    ("(00.023105) Error (criu/mount.c:724): mnt: FS mnt ./data dev 0x2d root / unsupported id 77", "./data", "Unmount"),
    ("(00.023106) Error (criu/filesystems.c:552): mnt: ./mnt/sshfs is a fuse mount but not external", "./mnt/sshfs", "Unmount"),
    ("(00.000144) Error (criu/mount.c:3141): mnt: No mapping for 77:./data mountpoint", "./data", "ckpt restore"),
    ("(00.023107) Error (criu/mount.c:1809): mnt: Unable to dump a file system for 77:./data", "./data", "Unmount"),
    ("(00.023108) Error (criu/files-reg.c:1850): mnt: The mount 77 is overmounted so paths are invisible", "mount 77", "Unmount"),
    ("(00.023109) Error (criu/mount.c:753): mnt: 77:./data doesn't have a proper root mount", "./data", "Mount"),
    ("(00.000145) Error (criu/mount.c:2100): mnt: Unable to mount none ./data (id=77): No such device", "./data", "ckpt show"),
    ("(00.023110) Error (criu/mount.c:3876): mnt: The root task has another root than mntns: /srv", "chroot", "pivot_root"),
    ("(00.000146) 4711: Error (criu/cgroup.c:1140): cg: Can't move 4711 into unified//web/cgroup.procs (-1/12): Device or resource busy", "unified//web/cgroup.procs: Device or resource busy", "--cgroup"),
    ("(00.000147) Error (criu/cgroup.c:1805): cg: Can't make cgroup dir /sys/fs/cgroup/web: Read-only file system", "/sys/fs/cgroup/web cannot be made: Read-only", "--cgroup"),
    ("(00.000148) Error (criu/cgroup.c:1800): cg: Cgroup dir /sys/fs/cgroup/web doesn't exist", "/sys/fs/cgroup/web", "--cgroup"),
    ("(00.000149) Error (criu/cgroup.c:1472): cg: Failed writing 0-31 to web/cpuset.cpus: Numerical result out of range", "web/cpuset.cpus of a cgroup cannot be 0-31", "--cgroup"),
    ("(00.000150) Error (criu/cgroup.c:686): cg: controller hugetlb not found", "hugetlb", "--cgroup"),
    ("(00.023111) Error (criu/proc_parse.c:2722): invalid cgroup configuration, /web is not a suffix of /other", "/web", "cgroup namespaces"),
    ("(00.000151) Error (criu/lsm.c:406): apparmor LSM specified but apparmor not supported by kernel", "apparmor", "without a profile"),
    ("(00.000152) pie: 4711: Error (criu/pie/restorer.c:191): can't write lsm profile -2", "AppArmor", "audit log"),
    ("(00.023112) Error (criu/lsm.c:109): getting selinux profile failed: Permission denied", "SELinux", "audit log"),
    ("(00.000160) Error (criu/pstree.c:610): No kIDs provided, image corruption", "damaged", "again"),
    ("(00.000161) 4711: Error (criu/mem.c:1363): Unable to reserve memory (8589934592 bytes): Cannot allocate memory", "8589934592 bytes", "memory.max"),
    ("(00.000162) 4711: Error (criu/shmem.c:400): shmem: Can't map shmem 0x12 (0x7f00-0x7f01): Cannot allocate memory", "too little memory", "memory.max"),
]  # fmt: skip

NOISE = """\
(00.000001) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
Error: ipv4: Address already assigned.
(00.000002) Error (criu/util.c:640): execvp("iptables-restore", ...) failed: No such file or directory
(00.000003) Error (criu/util.c:655): exited, status=127
"""
AFTERWARDS = """\
(00.900000) Error (criu/cr-dump.c:1763): Dump files (pid: 4711) failed with -1
(00.900001) Error (compel/src/lib/infect.c:428): Unable to detach from 4711: No such process
(00.900002) Error (criu/cr-dump.c:2128): Dumping FAILED.
"""


@pytest.mark.parametrize(
    ("line", "cause", "remedy"), LINES, ids=[line.partition(": ")[2][:40] for line, *_ in LINES]
)
def test_a_known_line_among_noise_becomes_cause_and_remedy(
    tmp_path: Path, line: str, cause: str, remedy: str
) -> None:
    log = tmp_path / "dump.log"
    log.write_text(f"{NOISE}(00.001000) Dumping\n{line}\n{AFTERWARDS}")
    diagnosis = explain(read_log(log))
    assert diagnosis.known
    assert cause in diagnosis.cause
    assert remedy in diagnosis.remedy
    assert line in diagnosis.lines


def test_every_row_is_reached_by_a_line() -> None:
    reached = set()
    for line, *_ in LINES:
        reached.add(next(number for number, row in enumerate(ROWS) if row.line.search(line)))
    assert reached == set(range(len(ROWS)))


def test_the_first_error_that_is_understood_wins(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.1) Error (criu/x.c:1): never seen before\n"
        "(00.2) Error (criu/file-lock.c:110): Some file locks are hold by dumping tasks!\n"
        "(00.3) Error (criu/page-xfer.c:263): Unable to spice data: No space left on device\n"
    )
    diagnosis = explain(read_log(log))
    assert "file locks" in diagnosis.cause
    assert "(00.1) Error (criu/x.c:1): never seen before" in diagnosis.lines


def test_an_unknown_error_gives_the_words_of_criu(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(00.1) before\n(00.2)  4711: Error (criu/x.c:1): the moon is full\n(00.3) after\n")
    diagnosis = explain(read_log(log))
    assert not diagnosis.known
    assert diagnosis.cause == "CRIU says: the moon is full"
    assert str(log) in diagnosis.remedy
    assert diagnosis.lines == ("(00.1) before", "(00.2)  4711: Error (criu/x.c:1): the moon is full")


def test_a_log_without_an_error_gives_its_end(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("(00.1) one\n(00.2) two\n")
    diagnosis = explain(read_log(log))
    assert diagnosis.cause == "CRIU gave no reason; its log ends with: two"
    assert diagnosis.lines == ("(00.1) one", "(00.2) two")


def test_what_was_said_before_there_was_a_log_counts(tmp_path: Path) -> None:
    words = "Error (criu/config.c:105): Can't parse the option of /x: Invalid argument"
    diagnosis = explain(read_log(tmp_path / "none.log"), words)
    assert diagnosis.cause == "CRIU says: Can't parse the option of /x: Invalid argument"
    assert diagnosis.lines == (words,)


def test_no_log_and_no_words_is_said(tmp_path: Path) -> None:
    diagnosis = explain(LogReading(path=tmp_path / "none.log"))
    assert diagnosis.cause == "CRIU gave no reason, and wrote no log"
