"""Tasks, pids, sessions and terminals."""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures.row import REFUSED, SESSION, Row, row

ROWS: Final[tuple[Row, ...]] = (
    row(
        r"Found slave peer index (?P<index>\d+) without correspond master peer",
        "it uses a terminal (/dev/pts/{index}) that belongs to a process outside",
        SESSION,
    ),
    row(
        r"Don't have tty to inherit session from",
        "the checkpoint belongs to a terminal, and the restore has none",
        "Restore it in a terminal, with --attach.",
    ),
    row(
        r"root process (?P<pid>\d+) is not a session leader",
        "the root process {pid} does not lead its session: it was started from a shell's terminal",
        SESSION,
    ),
    row(
        r"A session leader of (?P<pid>\d+)\(\d+\) is outside of its pid namespace",
        "the session of process {pid} is led from outside its PID namespace",
        "Start the namespace's first process with setsid.",
    ),
    row(
        r"Unseizable non-zombie (?P<pid>\d+) found",
        "task {pid} is traced by another program (a debugger or strace)",
        "Detach the debugger.",
    ),
    row(
        r"Unable to interrupt task: (?P<pid>\d+) \(Operation not permitted\)",
        "task {pid} cannot be stopped: it is traced from outside, its first thread has ended, or it just ended",
        "Detach the debugger; a program whose first thread has ended cannot be dumped.",
    ),
    row(
        r"Unable to interrupt task: (?P<pid>\d+) \((?P<reason>[^)]*)\)",
        "task {pid} cannot be stopped ({reason})",
        "See whether it still runs, then try again.",
    ),
    row(
        r"Timeout reached",
        "a task did not stop in time: it waits in the kernel (state D), or its cgroup is frozen by others",
        "Thaw the cgroup if others froze it; let the task finish what it waits for, and try again.",
    ),
    row(
        r"Neither a cgroupv1 \(freezer\.state\) or cgroupv2",
        "the directory that was given as the frozen cgroup is none",
        "Give the path of the cgroup's directory.",
    ),
    row(
        r"The criu itself is within dumped tree",
        "ckpt itself runs inside the workload",
        "Run ckpt from outside it.",
    ),
    row(
        r"pidfd pid (?P<pid>-?\d+) is not a part of process tree",
        "it holds a pidfd of process {pid}, which is outside the workload",
        "Close the pidfd, or include that process.",
    ),
    row(
        r"Inconsistent sched params received",
        "a task has a scheduling policy that cannot be set again (SCHED_DEADLINE)",
        REFUSED,
    ),
    row(
        r"Root task has pdeath_sig configured",
        "the root process asked to be killed when its parent ends (PR_SET_PDEATHSIG), and it was",
        "Clear PDEATHSIG in the program before the dump.",
    ),
    row(
        r"Can't fork for (?P<pid>\d+): File exists",
        "pid {pid} is taken by another process, perhaps one that has ended and was not reaped yet",
        "Wait until it is gone, or restore with --pids new.",
    ),
    row(
        r"A root task is dead",
        "the root process has ended, and its parent has not noted it",
        "Dump what is left of it by its cgroup, or start it again.",
    ),
    row(
        r"A session leader of zombie process (?P<pid>\d+)",
        "the session of process {pid}, which has ended, is led from outside its PID namespace",
        "Start the namespace's first process with setsid.",
    ),
    row(
        r"Found dangling tty with sid (?P<sid>\d+)",
        "it uses a terminal of session {sid}, which is outside",
        SESSION,
    ),
    row(
        r"ctty inheritance detected sid/pgrp (?P<sid>\d+)",
        "the terminal of session {sid} is not part of the checkpoint",
        "Restore it in a terminal, with --attach.",
    ),
    row(
        r"Can't open master pty \S+ \(index (?P<index>\d+)\)|Unable to open \S+ with specified index (?P<other>\d+)",
        "the terminal /dev/pts/{index}{other} is in use on this host",
        "End what uses it, or restore a job that was started with 'ckpt run', which has none.",
    ),
    row(
        r"Can't figure out which sid",
        "a process was forked by one that changed its session afterwards, so that the sessions cannot be made again",
        "Start the program so that setsid comes before it forks others.",
    ),
    row(
        r"Requested sid (?P<sid>\d+) doesn't match inherited|Can't restore sid \((?P<other>\d+)\)",
        "session {sid}{other} cannot be made again",
        "Dump it from the leader of its session on, or start it with 'ckpt run'.",
    ),
    row(
        r"Individually stopped threads not supported",
        "a thread is stopped alone",
        "Let it go on (SIGCONT), and try again.",
    ),
    row(
        r"zombie (?P<pid>\d+) \(comm (?P<name>.*)\) found while seizing",
        "process {pid} ({name}) ended at this moment",
        "Try again.",
    ),
    row(
        r"Zombie thread not supported|Zombies with threads are not supported",
        "the first thread of a process has ended while others run",
        "Such a program cannot be dumped: its first thread must live as long as the others.",
    ),
    row(
        r"SEIZE (?P<pid>\d+): unsupported stop signal (?P<signal>\d+)|Can't dump the (?P<other>\d+) thread with a pending SIGTRAP",
        "task {pid}{other} is in the hands of a debugger",
        "Detach the debugger, and try again.",
    ),
    row(
        r"Unable to freeze cgroup (?P<cgroup>\S+)",
        "the cgroup {cgroup} did not freeze in time: a task of it waits in the kernel (state D)",
        "Let the task finish what it waits for, and try again.",
    ),
    row(
        r"Pid (?P<found>\d+) do not match expected (?P<pid>\d+)",
        "pid {pid} is taken by another process",
        "Wait until it is gone, or restore with --pids new.",
    ),
    row(
        r"Current (?:sid|gid) (?P<id>\d+) intersects with",
        "the session or process group of ckpt itself has the number {id}, which the workload needs",
        "Start ckpt with setsid or from another shell, or restore with --pids new.",
    ),
    row(
        r"Can't set kernel pid_max=(?P<pids>\d+)",
        "the workload has pids up to {pids}, more than this host allows",
        "sysctl kernel.pid_max={pids}, or restore with --pids new.",
    ),
    row(
        r"can only be restored in a new pid namespace",
        "the checkpoint is that of a PID namespace, and pids of it are taken on this host",
        "Restore with --pids new.",
    ),
)
