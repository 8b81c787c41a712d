"""Buffers and fences of devices, which no machine at hand has: with what the kernel calls them."""

from __future__ import annotations

import os
import stat

import pytest

from ckpt.host.inspection import snapshot
from ckpt.host.inspection.holdings import Hold
from ckpt.host.preflight import anonymous_rules, checking, descriptor_rules, file_rules
from ckpt.host.preflight.facts import Facts
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.model.inodes import RoleKind
from ckpt.units import Pid

PID = Pid(os.getpid())
RULES = (*anonymous_rules.RULES, *descriptor_rules.RULES, *file_rules.RULES)


def said_of(target: str, type_: int, *, mapped: bool = False) -> tuple[Finding, ...]:
    """What is said of one object, held by this process, that no rule says of this process without it."""
    taken = snapshot.take([PID], "", None)
    before = set(checking.check(Facts(taken, DumpOptions(), ""), rules=RULES))
    status = os.stat_result((type_ | 0o600, 7, 15, 1, 0, 0, 4096, 0, 0, 0))
    holdings = taken.holdings[PID]
    if mapped:
        holdings.holds.append(Hold(PID, RoleKind.MAP, "1000-2000 rw-s", target, status, "/proc/self/fd/900"))
        holdings.special_maps += (target,) if target.startswith("anon_inode:") else ()
    else:
        holdings.holds.append(Hold(PID, RoleKind.FD, "900 O_RDWR", target, status, "/proc/self/fd/900"))
    found = checking.check(Facts(taken, DumpOptions(), ""), rules=RULES)
    return tuple(finding for finding in found if finding not in before)


# Their inodes have no type; newer kernels make regular files of some.
@pytest.mark.parametrize("type_", [0, stat.S_IFREG])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        "/dmabuf:",
        "/dmabuf:system",
        "anon_inode:sync_file",
        "anon_inode:syncobj_file",
        "anon_inode:[vfio-device]",
        "anon_inode:[iommufd_fault]",
    ],
)
def test_a_buffer_of_a_device_is_a_blocker(target: str, type_: int, *, mapped: bool) -> None:
    (finding,) = said_of(target, type_, mapped=mapped)
    assert (finding.rule, finding.severity) == ("kernel-buffer", Severity.BLOCKER)
    assert f"{'maps' if mapped else '→'} {target}, which CRIU cannot dump" in finding.message


def test_what_nobody_knows_is_a_blocker_of_its_own() -> None:
    (finding,) = said_of("anon_inode:[new]", 0)
    assert (finding.rule, finding.severity) == ("anonymous-inode", Severity.BLOCKER)
