"""Rules over needs: what the kernel and CRIU can do, and cgroup controllers. Probed, never concluded from versions.

The one exception is CRIU's own version: newer image files may hold what an older CRIU does not know, and that
cannot be probed without a restore.
Source: namespaces(7), rseq (kernel/rseq.c), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from ckpt.errors import CkptError
from ckpt.host import cgroups
from ckpt.host.criu import engine, netlock
from ckpt.host.criu.locate import find_criu
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.model.findings import Severity
from ckpt.model.needs import KernelFeature, Needs
from ckpt.model.workload import CgroupRecord

_RSEQ_CALLS: Final = {"x86_64": 334, "aarch64": 293, "riscv64": 293, "loongarch64": 293}
_NUMBERS: Final = re.compile(r"\d{1,6}", re.ASCII)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _namespace(kind: str) -> Callable[[], bool]:
    return lambda: os.path.exists(f"/proc/self/ns/{kind}")


def _user_namespaces() -> bool:
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as stream:
            return int(stream.read()) > 0 and os.path.exists("/proc/self/ns/user")
    except (OSError, ValueError):
        return os.path.exists("/proc/self/ns/user")


def _nftables() -> bool:
    try:
        netlock.list_tables()
    except CkptError:
        return False
    return True


def _rseq() -> bool:
    number = _RSEQ_CALLS.get(os.uname().machine)
    if number is None:
        return True
    # An area of no bytes is refused by every kernel that knows the call.
    _LIBC.syscall(number, 0, 0, 0, 0)
    return ctypes.get_errno() != errno.ENOSYS


def _userfaultfd() -> bool:
    try:
        found = engine.features(find_criu())
    except CkptError:
        return False
    return found.uffd and found.uffd_noncoop


def _ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


_PROBES: Final[Mapping[KernelFeature, Callable[[], bool]]] = {
    KernelFeature.TIME_NAMESPACE: _namespace("time"),
    KernelFeature.USER_NAMESPACE: _user_namespaces,
    KernelFeature.PID_NAMESPACE: _namespace("pid"),
    KernelFeature.NETWORK_NAMESPACE: _namespace("net"),
    KernelFeature.IPC_NAMESPACE: _namespace("ipc"),
    KernelFeature.CGROUP_NAMESPACE: _namespace("cgroup"),
    KernelFeature.NFTABLES: _nftables,
    KernelFeature.SECCOMP_FILTER: lambda: os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
    KernelFeature.RSEQ: _rseq,
    KernelFeature.IPV6: _ipv6,
    KernelFeature.USERFAULTFD: _userfaultfd,
}


def _features(needs: Needs, _here: Here) -> Iterator[Found]:
    for feature in needs.features:
        if not _PROBES[feature]():
            yield Found(pid=None, subject=feature.value, message=f"this host's kernel lacks {feature.value}")


def _criu(needs: Needs, _here: Here) -> Iterator[Found]:
    try:
        path = find_criu()
        found = str(engine.version(path))
    except CkptError as error:
        yield Found(
            pid=None,
            subject="CRIU",
            message=error.message.rstrip("."),
            remedy=error.advice or "Run scripts/setup.",
        )
        return
    if _numbers(found) < _numbers(needs.criu_version):
        yield Found(
            pid=None,
            subject=f"CRIU {found}",
            message=f"{path} is CRIU {found}, and the images are of CRIU {needs.criu_version}, which is newer",
            severity=Severity.WARNING,
        )


def _numbers(version: str) -> tuple[int, ...]:
    numbers = tuple(map(int, _NUMBERS.findall(version[:40])[:3]))
    # 4.2 is 4.2.0.
    return numbers + (0,) * (3 - len(numbers)) if numbers else ()


def _cgroups(needs: Needs, _here: Here) -> Iterator[Found]:
    mounted = {each.name: each for each in cgroups.hierarchies()}
    for record in needs.cgroups:
        hierarchy = mounted.get(record.hierarchy)
        if hierarchy is None:
            if record.settings:
                yield _not_set(record, f"this host has no cgroup hierarchy {record.hierarchy}")
            continue
        if hierarchy.version == 1:
            continue
        offered = cgroups.read_or_empty(hierarchy.mountpoint, "cgroup.controllers").split()
        wanted = {setting.name.partition(".")[0] for setting in record.settings} - {"cgroup"}
        for controller in sorted(wanted - set(offered)):
            yield _not_set(record, f"this host offers no cgroup controller {controller}")


def _not_set(record: CgroupRecord, reason: str) -> Found:
    settings = ", ".join(f"{setting.name} = {setting.value}" for setting in record.settings)
    return Found(
        pid=None,
        subject=f"{record.hierarchy}:{record.path}",
        message=f"{reason}, so {record.path} will be without its settings ({settings[:200]})",
    )


RULES: Final = (
    NeedRule(
        name="kernel-feature",
        severity=Severity.BLOCKER,
        title="Features of the kernel that the workload uses",
        effect="The restore fails.",
        remedy="Use a kernel with this feature; 'ckpt doctor' tells what is there.",
        find=_features,
    ),
    NeedRule(
        name="criu",
        severity=Severity.BLOCKER,
        title="CRIU: missing, or older than the one that made the images",
        effect="Nothing can be restored without it; an older one may not know what is in the images.",
        remedy="Run scripts/setup, or set CKPT_CRIU.",
        find=_criu,
    ),
    NeedRule(
        name="cgroup-controller",
        severity=Severity.WARNING,
        title="Cgroup controllers that the workload's cgroups have settings for",
        effect="The workload is restored without these limits, and the restore says so.",
        remedy="Mount the hierarchy, or switch the controller on.",
        find=_cgroups,
    ),
)
