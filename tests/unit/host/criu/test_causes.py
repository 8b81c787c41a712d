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
    ("(00.022011) Error (criu/sk-unix.c:874): sk unix: External socket is used. Consider using --ext-unix-sk option.", "outside", "ext-unix-sk"),
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
    words = "Error (criu/namespaces.c:105): Can't access join-ns file /x: No such file or directory"
    diagnosis = explain(read_log(tmp_path / "none.log"), words)
    assert diagnosis.cause == "CRIU says: Can't access join-ns file /x: No such file or directory"
    assert diagnosis.lines == (words,)


def test_no_log_and_no_words_is_said(tmp_path: Path) -> None:
    diagnosis = explain(LogReading(path=tmp_path / "none.log"))
    assert diagnosis.cause == "CRIU gave no reason, and wrote no log"
