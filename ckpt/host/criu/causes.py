"""From the lines of CRIU's log to a cause in plain words and a remedy.

Rules: the rows are tried for each error in the order of the log, so that the first error that is understood
is the cause. Where the log has no error, the warnings and its last lines are tried: some failures are
announced only there. A new failure is a new row, with its real line in the test. What is not understood gives CRIU's own last words, never a bare
"failed".
Source: every row was seen with CRIU 4.1 or 4.2.1 on kernel 6.18.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ckpt.host.criu.log import LogReading

_PREFIX: Final = re.compile(r"^(?:\([\d.]+\)\s*)?(?:pie: )?(?:\d+: )?(?:(?:Error|Warn ) ?\([^)]*\):\s*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A known failure: `line` is searched for; its named groups fill the `cause` and the `remedy`."""

    line: re.Pattern[str]
    cause: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Why CRIU failed: `known` says whether a row explained it; `lines` are those of the log that say so."""

    cause: str
    remedy: str
    lines: tuple[str, ...]
    known: bool


def _row(line: str, cause: str, remedy: str) -> Row:
    return Row(line=re.compile(line), cause=cause, remedy=remedy)


_NEWER: Final = "Install CRIU 4.2 or newer: scripts/setup puts one beside the system's."
_AGAIN: Final = "Fetch or dump the checkpoint again."
_SESSION: Final = (
    "Start it with 'ckpt run' or setsid, or redirect its input and output away from the terminal."
)
_REFUSED: Final = "Such a workload can be dumped but not restored: 'ckpt check' finds it before the dump."

ROWS: Final[tuple[Row, ...]] = (
    # ------------------------------------------------------------------------------ CRIU and the kernel
    _row(
        r"Unexpected rt vDSO area bounds",
        "this CRIU is too old for the running kernel (it does not know the layout of its vDSO)",
        _NEWER,
    ),
    _row(
        r"Can't get 1:16 opt: Operation not supported",
        "this CRIU is too old for the running kernel (it asks inet sockets for an option that is gone)",
        _NEWER,
    ),
    _row(
        r"Can't get rlimit \d+: Operation not permitted",
        "a task belongs to another user, and CAP_SYS_RESOURCE, which that needs, is missing here",
        "Give ckpt the capability CAP_SYS_RESOURCE, or run the workload as root.",
    ),
    _row(
        r"Tracking memory is not available|BUG at criu/mem\.c:46",
        "the kernel has no soft-dirty memory tracking (CONFIG_MEM_SOFT_DIRTY), which pre-dumps need",
        "Dump without pre-copy.",
    ),
    # ------------------------------------------------------------------------------------------ sockets
    _row(
        r"Connected TCP socket, consider using --tcp-established",
        "it has an established TCP connection",
        "Pass --tcp-established to keep the connection, or close it first.",
    ),
    _row(
        r"Connected TCP socket in image",
        "the checkpoint holds an established TCP connection, and the restore was not told to keep it",
        "Restore with the options of the dump (--tcp-established).",
    ),
    _row(
        r"Iptables configuration failed|Locking network failed",
        "the network could not be locked for the dump",
        "Lock with nftables (kernel module nf_tables); iptables' programs are not needed then.",
    ),
    _row(
        r"In-flight connection",
        "a listening TCP socket has a connection that the program has not accepted yet",
        "Try again in a moment, when it was accepted.",
    ),
    _row(
        r"Unsupported proto 262\b",
        "it uses an MPTCP socket, which cannot be saved (Go programs use them by default)",
        "Start it with GODEBUG=multipathtcp=0, or with plain TCP sockets.",
    ),
    _row(
        r"BUG! Unknown socket collected \(family 40\)",
        "it uses an AF_VSOCK socket, which cannot be saved",
        "Close it before the dump.",
    ),
    _row(
        r"BUG! Unknown socket collected \(family (?P<family>\d+)\)",
        "it uses a socket of address family {family}, which cannot be saved",
        "Close it before the dump.",
    ),
    _row(
        r"Can't dump corked dgram socket",
        "a corked UDP socket holds data that was not sent yet",
        "Try again in a moment.",
    ),
    _row(
        r"External socket is used",
        "a unix datagram socket is connected to a process outside the workload",
        "Include that process, or tell CRIU to leave the connection open (--ext-unix-sk).",
    ),
    _row(
        r"Can't dump half of stream unix connection",
        "a unix stream socket is connected to a process outside the workload (D-Bus, X11, a logger)",
        "Include the other process in the workload, or close the connection.",
    ),
    _row(
        r"Can't bind inet socket.*Address already in use",
        "a network port of the workload is in use on this host",
        "Stop what listens there ('ss -ltnup' names it), or restore into another network namespace.",
    ),
    _row(
        r"Can't bind id .* addr (?P<address>.*?):? Address already in use",
        "the path of the unix socket {address} exists already",
        "Remove that file, if nothing serves it any more.",
    ),
    # -------------------------------------------------------------------------------------------- files
    _row(
        r"Some file locks are hold",
        "it holds file locks",
        "Dump with file locks (ckpt does so by default); the restore needs the same.",
    ),
    _row(
        r"Can't dump ghost file (?P<path>.+?) of (?P<size>\d+) size, increase limit",
        "the deleted file {path}, still open, has {size} bytes: more than the limit for such files",
        "Raise the limit for deleted files (--ghost-limit).",
    ),
    _row(
        r"Can't create link remap for (?P<path>\S+)",
        "the name of the open file {path} was removed while another hard link to it exists",
        "Dump with link_remap, as ckpt does by default.",
    ),
    _row(
        r"Can't lookup mount=(?P<mount>-?\d+) for fd=(?P<fd>-?\d+) path=(?P<path>.*)",
        "descriptor {fd} ({path}) was opened in another mount namespace, or is a message queue",
        "Open or redirect it inside the workload's own mount namespace.",
    ),
    _row(
        r"(?:send_fds failed \(-22\)|Can't retrieve FDs from socket)",
        "it uses io_uring, which cannot be saved",
        "Run it without io_uring (libuv: UV_USE_IO_URING=0, or else sysctl kernel.io_uring_disabled=2).",
    ),
    _row(
        r"anon_inode:\[io_uring\]",
        "it uses io_uring, which cannot be saved",
        "Run it without io_uring (libuv: UV_USE_IO_URING=0, or else sysctl kernel.io_uring_disabled=2).",
    ),
    _row(
        r"/secretmem",
        "it uses secret memory (memfd_secret), which nobody else can read",
        "Run it without memfd_secret.",
    ),
    _row(
        r"Can't dump file (?P<fd>-?\d+) of that type \[(?P<mode>[^\]]*)\] \((?P<kind>[^ ]*) ?(?P<name>.*)\)",
        "descriptor {fd} is of a kind that cannot be saved ({kind} {name})",
        "Close it before the dump; the device of a GPU needs CRIU's plugin for it.",
    ),
    _row(
        r"Net namespace is required to dump tun link",
        "it holds a tun device in the host's network namespace",
        "Run it in a network namespace of its own.",
    ),
    _row(
        r"Can't open file (?P<path>.+?) on restore: No such file",
        "the file {path}, which the workload has open, does not exist here",
        "Copy it here.",
    ),
    _row(
        r"File (?P<path>.+?) has bad size (?P<found>\d+) \(expect (?P<expected>\d+)\)",
        "the file {path} has {found} bytes, and had {expected} at the dump",
        "Put the file back as it was at the dump.",
    ),
    _row(
        r"File (?P<path>.+?) has bad mode (?P<found>\S+) \(expect (?P<expected>[^)]+)\)",
        "the file {path} has mode {found}, and had {expected} at the dump",
        "Set its mode back.",
    ),
    _row(
        r"No entry for reg-file-ID",
        "the image of a file is missing: the program was executed from a memfd",
        _REFUSED,
    ),
    # ----------------------------------------------------------------------- terminals, sessions, tasks
    _row(
        r"Found slave peer index (?P<index>\d+) without correspond master peer",
        "it uses a terminal (/dev/pts/{index}) that belongs to a process outside",
        _SESSION,
    ),
    _row(
        r"Don't have tty to inherit session from",
        "the checkpoint belongs to a terminal, and the restore has none",
        "Restore it in a terminal, with --attach.",
    ),
    _row(
        r"root process (?P<pid>\d+) is not a session leader",
        "the root process {pid} does not lead its session: it was started from a shell's terminal",
        _SESSION,
    ),
    _row(
        r"A session leader of (?P<pid>\d+)\(\d+\) is outside of its pid namespace",
        "the session of process {pid} is led from outside its PID namespace",
        "Start the namespace's first process with setsid.",
    ),
    _row(
        r"Unseizable non-zombie (?P<pid>\d+) found",
        "task {pid} is traced by another program (a debugger or strace)",
        "Detach the debugger.",
    ),
    _row(
        r"Unable to interrupt task: (?P<pid>\d+) \(Operation not permitted\)",
        "task {pid} cannot be stopped: it is traced from outside, its first thread has ended, or it just ended",
        "Detach the debugger; a program whose first thread has ended cannot be dumped.",
    ),
    _row(
        r"Unable to interrupt task: (?P<pid>\d+) \((?P<reason>[^)]*)\)",
        "task {pid} cannot be stopped ({reason})",
        "See whether it still runs, then try again.",
    ),
    _row(
        r"Timeout reached",
        "a task did not stop in time: it waits in the kernel (state D), or its cgroup is frozen by others",
        "Thaw the cgroup if others froze it; let the task finish what it waits for, and try again.",
    ),
    _row(
        r"Neither a cgroupv1 \(freezer\.state\) or cgroupv2",
        "the directory that was given as the frozen cgroup is none",
        "Give the path of the cgroup's directory.",
    ),
    _row(
        r"The criu itself is within dumped tree",
        "ckpt itself runs inside the workload",
        "Run ckpt from outside it.",
    ),
    _row(
        r"pidfd pid (?P<pid>-?\d+) is not a part of process tree",
        "it holds a pidfd of process {pid}, which is outside the workload",
        "Close the pidfd, or include that process.",
    ),
    _row(
        r"Inconsistent sched params received",
        "a task has a scheduling policy that cannot be set again (SCHED_DEADLINE)",
        _REFUSED,
    ),
    _row(
        r"Root task has pdeath_sig configured",
        "the root process asked to be killed when its parent ends (PR_SET_PDEATHSIG), and it was",
        "Clear PDEATHSIG in the program before the dump.",
    ),
    _row(
        r"Can't fork for (?P<pid>\d+): File exists",
        "pid {pid} is taken by another process, perhaps one that has ended and was not reaped yet",
        "Wait until it is gone, or restore with --pids new.",
    ),
    # --------------------------------------------------------------------------------------- namespaces
    _row(
        r"SysVIPC shmem map \S+ doesn't live in IPC ns",
        "it uses System V shared memory of the host's IPC namespace",
        "Start it in an IPC namespace of its own ('ckpt run' does).",
    ),
    _row(
        r"Can't dump nested (?P<kind>pid|user|ipc|uts|cgroup|time) namespace",
        "a process of the workload made a {kind} namespace of its own (a sandbox)",
        "Stop that process, or run the program without its sandbox.",
    ),
    _row(
        r"Can't restore sub-task in NS",
        "a process below the root one lives in a mount or network namespace of its own",
        _REFUSED,
    ),
    _row(
        r"BUG at criu/mount\.c:48|--root option is required|--root option required",
        "the workload has a mount namespace of its own, and the restore was given no root for it",
        "Restore with a root that is a private mount point ('ckpt restore' makes one).",
    ),
    _row(
        r"Unable to open the proc file system.*(?:Operation not permitted|EPERM)",
        "the workload lives in a user namespace without PID and mount namespaces of its own",
        "Run it in user, PID and mount namespaces together, or in none.",
    ),
    _row(
        r"can't dump unprivileged task whose /proc doesn't belong to it",
        "the workload lives in user and PID namespaces, with the host's /proc",
        "Mount a /proc of its own inside its mount namespace.",
    ),
    # ------------------------------------------------------------------------------------------- images
    _row(
        r"No space left on device",
        "no space is left where the images are written",
        "Free some space there, or choose another place (CKPT_STATE).",
    ),
    _row(
        r"Can't open dir (?P<path>.+?)(?:: (?P<reason>.*))?$",
        "the directory of the images, {path}, cannot be opened",
        "Make it, or give another.",
    ),
    _row(
        r"Unexpected EOF on \(?(?P<name>[^)]*)\)?",
        "an image file is missing or ends too early ({name})",
        _AGAIN,
    ),
    _row(
        r"Read (?P<found>\d+) bytes while (?P<expected>\d+) expected from (?P<name>\S+)",
        "the image file {name} is cut off",
        _AGAIN,
    ),
    _row(
        r"(?:Head magic|Magic) doesn't match for (?P<name>\S+)",
        "the image file {name} is damaged: it does not begin as it must",
        _AGAIN,
    ),
    _row(
        r"Can't read pages data",
        "the file with the memory's pages is missing or too short",
        _AGAIN,
    ),
    _row(
        r"`- returned 0$|Preadv .* returned 0\b",
        "the file with the memory's pages is cut off, and CRIU reads on for ever",
        _AGAIN,
    ),
    _row(
        r"Can't chose service_fd_base: (?P<limit>\d+) (?P<needed>\d+)",
        "the limit of open files ({limit}) is too low for the workload, which needs about {needed}",
        "Raise the hard limit of open files (ulimit -Hn) where ckpt runs.",
    ),
)


def explain(log: LogReading, message: str = "") -> Diagnosis:
    """Why CRIU failed, from its log and the `message` that it answered, which may be empty."""
    for line in log.errors or (*log.warnings, *log.tail, *message.splitlines()):
        for row in ROWS:
            match = row.line.search(line)
            if match is not None:
                said = {name: value or "" for name, value in match.groupdict().items()}
                return Diagnosis(
                    cause=row.cause.format_map(said),
                    remedy=row.remedy.format_map(said),
                    lines=_with(log.evidence, line),
                    known=True,
                )
    return _unknown(log, message)


def _unknown(log: LogReading, message: str) -> Diagnosis:
    if log.errors:
        cause = f"CRIU says: {_bare(log.errors[0])}"
    elif log.tail:
        cause = f"CRIU gave no reason; its log ends with: {_bare(log.tail[-1])}"
    else:
        words = [line for line in message.splitlines() if line.strip()]
        return Diagnosis(
            cause=f"CRIU says: {_bare(words[0])}" if words else "CRIU gave no reason, and wrote no log",
            remedy="",
            lines=tuple(words[:8]),
            known=False,
        )
    return Diagnosis(
        cause=cause,
        remedy=f"The log {log.path} has the details." if log.tail else "",
        lines=log.evidence,
        known=False,
    )


def _with(lines: tuple[str, ...], line: str) -> tuple[str, ...]:
    return lines if line in lines else (*lines, line)


def _bare(line: str) -> str:
    return _PREFIX.sub("", line).strip()
