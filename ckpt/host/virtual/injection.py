"""Put the filter in a process that is stopped, and take its listener out.

Rules:
- All threads get it, by one call of one of them (SECCOMP_FILTER_FLAG_TSYNC).
- The process keeps no descriptor of it. Filters that it has already do not see our calls (suspended by ptrace).
- no_new_privs is set only where the kernel asks for it: in a process without CAP_SYS_ADMIN.
- A filter cannot be taken away again: who undoes a restore ends the processes.
Source: seccomp(2), seccomp_unotify(2), pidfd_getfd(2), ptrace(2) (PTRACE_O_SUSPEND_SECCOMP).
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from typing import Final

from ckpt.errors import FeatureMissing, OsRefused
from ckpt.host import linux
from ckpt.host.ptrace import Tracee
from ckpt.host.virtual.calls import StatCalls, stat_calls
from ckpt.host.virtual.filter import INSTRUCTION_BYTES, number_of
from ckpt.units import Pid

_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC, _FLAG_NEW_LISTENER, _FLAG_TSYNC_ESRCH, _FLAG_WAIT_KILLABLE = 0x1, 0x8, 0x10, 0x20
_FLAGS: Final = _FLAG_TSYNC | _FLAG_NEW_LISTENER | _FLAG_TSYNC_ESRCH
_PR_SET_NO_NEW_PRIVS: Final = 38
_SOCK_FPROG: Final = struct.Struct("<HxxxxxxQ")
STRICT: Final = 1
"""The mode in which a process may only read, write, return and exit."""
_REASONS: Final = {
    errno.EBUSY: "another supervisor answers its system calls already (a seccomp listener)",
    errno.ESRCH: "its threads have different seccomp filters",
    errno.EINVAL: "the kernel lacks seccomp user notification, or the process is in seccomp's strict mode",
    errno.ENOMEM: "it has too many seccomp filters",
    errno.EMFILE: "it has no free file descriptor",
}


def inject(tracee: Tracee, program: bytes) -> int:
    """Install a filter in all threads of a process; gives a descriptor, of ours, of its listener.

    Args:
        tracee: The process, stopped.
        program: What layer_filter() gave.

    Raises:
        FeatureMissing: the architecture's calls are not known.
        OsRefused: it cannot be; says why. The process has no new filter then.
    """
    calls = stat_calls()
    if calls is None:
        raise FeatureMissing(feature="the numbers of this architecture's calls", remedy="")
    if seccomp_mode(tracee.pid) == STRICT:
        raise _refused(tracee.pid, "it is in seccomp's strict mode")
    try:
        with tracee.unfiltered(), tracee.scratch(_SOCK_FPROG.size + len(program)) as address:
            head = _SOCK_FPROG.pack(len(program) // INSTRUCTION_BYTES, address + _SOCK_FPROG.size)
            tracee.write(address, head + program)
            theirs = _install_with_room(tracee, calls, address)
            try:
                return _take(tracee.pid, theirs)
            finally:
                tracee.call(calls.close, theirs)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise _refused(tracee.pid, reason) from error


def layers_of(tracee: Tracee) -> tuple[int, ...]:
    """The numbers of the layers whose filters a stopped process has, the newest first."""
    return tuple(number for number in map(number_of, tracee.seccomp_filters()) if number is not None)


def seccomp_mode(pid: Pid) -> int:
    """0 without seccomp, 1 in strict mode, 2 with filters; 0 for a process that has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as stream:
            for line in stream:
                if line.startswith(b"Seccomp:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def _install_with_room(tracee: Tracee, calls: StatCalls, address: int) -> int:
    """A process that has used up its descriptors gets one more, for a moment."""
    try:
        return _install(tracee, calls, address)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    soft, hard = resource.prlimit(tracee.pid, resource.RLIMIT_NOFILE)
    if soft >= hard:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    resource.prlimit(tracee.pid, resource.RLIMIT_NOFILE, (soft + 1, hard))
    try:
        return _install(tracee, calls, address)
    finally:
        resource.prlimit(tracee.pid, resource.RLIMIT_NOFILE, (soft, hard))


def _install(tracee: Tracee, calls: StatCalls, address: int) -> int:
    # A signal interrupts a call that the supervisor has not taken yet: it is made again, or gives EINTR where the
    # program asked for that. Once it is taken only a kernel before 5.19 lets that happen.
    for flags in (_FLAGS | _FLAG_WAIT_KILLABLE, _FLAGS):
        for privileged in (True, False):
            if not privileged:
                tracee.call(calls.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            try:
                return tracee.call(calls.seccomp, _SET_MODE_FILTER, flags, address)
            except OSError as error:
                if error.errno == errno.EACCES and privileged:
                    continue
                if error.errno == errno.EINVAL and flags != _FLAGS:
                    break
                raise
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _take(pid: Pid, fd: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        return linux.pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)


def _refused(pid: Pid, reason: str) -> OsRefused:
    return OsRefused(
        operation="virtualize the inodes of",
        subject=f"process {pid}",
        reason=reason,
        remedy="Put the files back as they were, or restore with --inodes ignore.",
    )
