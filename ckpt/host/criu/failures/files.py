"""Files, mappings and other descriptors."""

from __future__ import annotations

from typing import Final

from ckpt.host.criu.failures.row import REFUSED, Row, row

ROWS: Final[tuple[Row, ...]] = (
    row(
        r"Some file locks are hold",
        "it holds file locks",
        "Dump with file locks (ckpt does so by default); the restore needs the same.",
    ),
    row(
        r"Can't dump ghost file (?P<path>.+?) of (?P<size>\d+) size, increase limit",
        "the deleted file {path}, still open, has {size} bytes: more than the limit for such files",
        "Raise the limit for deleted files (--ghost-limit).",
    ),
    row(
        r"Can't create link remap for (?P<path>\S+)",
        "the name of the open file {path} was removed while another hard link to it exists",
        "Dump with link_remap, as ckpt does by default.",
    ),
    row(
        r"Can't lookup mount=(?P<mount>-?\d+) for fd=(?P<fd>-?\d+) path=(?P<path>.*)",
        "descriptor {fd} ({path}) was opened in another mount namespace, or is a message queue",
        "Open or redirect it inside the workload's own mount namespace.",
    ),
    row(
        r"(?:send_fds failed \(-22\)|Can't retrieve FDs from socket)",
        "it uses io_uring, which cannot be saved",
        "Run it without io_uring (libuv: UV_USE_IO_URING=0, or else sysctl kernel.io_uring_disabled=2).",
    ),
    row(
        r"anon_inode:\[io_uring\]",
        "it uses io_uring, which cannot be saved",
        "Run it without io_uring (libuv: UV_USE_IO_URING=0, or else sysctl kernel.io_uring_disabled=2).",
    ),
    row(
        r"/secretmem",
        "it uses secret memory (memfd_secret), which nobody else can read",
        "Run it without memfd_secret.",
    ),
    row(
        r"Can't dump file (?P<fd>-?\d+) of that type \[(?P<mode>[^\]]*)\] \((?P<kind>[^ ]*) ?(?P<name>.*)\)",
        "descriptor {fd} is of a kind that cannot be saved ({kind} {name})",
        "Close it before the dump; the device of a GPU needs CRIU's plugin for it.",
    ),
    row(
        r"Net namespace is required to dump tun link",
        "it holds a tun device in the host's network namespace",
        "Run it in a network namespace of its own.",
    ),
    row(
        r"Can't open file (?P<path>.+?) on restore: No such file",
        "the file {path}, which the workload has open, does not exist here",
        "Copy it here.",
    ),
    row(
        r"File (?P<path>.+?) has bad size (?P<found>\d+) \(expect (?P<expected>\d+)\)",
        "the file {path} has {found} bytes, and had {expected} at the dump",
        "Put the file back as it was at the dump.",
    ),
    row(
        r"File (?P<path>.+?) has bad mode (?P<found>\S+) \(expect (?P<expected>[^)]+)\)",
        "the file {path} has mode {found}, and had {expected} at the dump",
        "Set its mode back.",
    ),
    row(
        r"No entry for reg-file-ID",
        "the image of a file is missing: the program was executed from a memfd",
        REFUSED,
    ),
    row(
        r"Can't open file (?P<path>.+?) on restore: (?P<reason>.+)",
        "the file {path}, which the workload has open, cannot be opened here: {reason}",
        "See its owner, its mode and the file system that it is on.",
    ),
    row(
        r"File (?P<path>.+?) has bad build-ID",
        "the program or library {path} is another build than at the dump",
        "Install the same version of it here.",
    ),
    row(
        r"Can't link (?P<from>.+?) -> (?P<path>.+?): (?P<reason>.+)",
        "the removed file that the workload has open cannot be put back for a moment at {path}: {reason}",
        "Remove what is in its place; its directory must be there, and on the same file system.",
    ),
    row(
        r"packetized mode for pipes is not supported",
        "it has a pipe in packet mode (O_DIRECT), which cannot be saved",
        "Run it without such pipes.",
    ),
    row(
        r"OOM storing pipe",
        "it has more pipes with data than CRIU can save at a time (about 1024)",
        "Try again when fewer pipes are open.",
    ),
    row(
        r"Can't dump that handle",
        "an inotify or fanotify watch is on a file that cannot be found by its handle",
        "Remove the watch before the dump: the file was deleted, or its file system has no handles.",
    ),
    row(
        r"PIDFD_THREAD flag is currently not supported",
        "it holds a pidfd of a thread, which cannot be saved",
        "Close it before the dump.",
    ),
    row(
        r"Escaped/closed fd descriptor (?P<fd>-?\d+) on pid (?P<pid>\d+)",
        "process {pid} watches descriptor {fd} by epoll, and has closed it while another copy of it is open",
        "The program must take a descriptor out of epoll before it closes it.",
    ),
    row(
        r"Can not set (?:flock|ofd lock|posix lock)|Can't set lease",
        "a file lock or lease of the workload cannot be taken again: another process holds it",
        "End that process, or wait for it; 'lslocks' names it.",
    ),
    row(
        r"Strange file mapped at (?P<address>\S+)|Can't handle non-regular mapping on \d+'s map (?P<other>\S+)",
        "a process has mapped a device or another special file (at {address}{other})",
        "Unmap it before the dump; the device of a GPU needs CRIU's plugin for it.",
    ),
    row(
        r"Unsupported mapping found (?P<range>\S+)",
        "a process has a mapping of a kind that cannot be saved ({range}), such as memory of a device",
        "Unmap it before the dump.",
    ),
    row(
        r"PID (?P<pid>\d+) has uprobes vma",
        "a uprobe is set on process {pid} (perf, bpftrace, a profiler)",
        "End the program that set it.",
    ),
    row(
        r"Too big FD number to restore (?P<fd>\d+)",
        "descriptor {fd} of the workload is above the limit of open files here",
        "Raise the hard limit of open files (ulimit -Hn) where ckpt runs.",
    ),
)
