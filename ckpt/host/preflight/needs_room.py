"""Rules over needs: memory, huge pages, space on disk.

Rule: what is certainly too little is a blocker; what is tight is a warning, as others may take it meanwhile.
Source: /proc/meminfo (MemAvailable); Documentation/admin-guide/mm/hugetlbpage.rst; statvfs(3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckpt.host.doctor import filesystem_of
from ckpt.host.preflight.needs_rule import Here, NeedRule
from ckpt.host.preflight.rule import Found
from ckpt.model.findings import Severity
from ckpt.model.needs import Needs
from ckpt.units import human_bytes

_TIGHT: Final = 1.2
"""Below so much more than is needed, a warning is due."""


def _memory(needs: Needs, _here: Here) -> Iterator[Found]:
    free = _meminfo()
    available = free.get("MemAvailable", 0) + free.get("SwapFree", 0)
    if not free or needs.memory_bytes * _TIGHT <= available:
        return
    is_too_little = needs.memory_bytes > available
    yield Found(
        pid=None,
        subject="memory",
        message=f"the workload fills {human_bytes(needs.memory_bytes)} of memory, and {human_bytes(available)} are "
        "available here (with swap)",
        severity=Severity.BLOCKER if is_too_little else Severity.WARNING,
    )


def _meminfo() -> dict[str, int]:
    found: dict[str, int] = {}
    with suppress(OSError), open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            name, _, value = line.partition(":")
            if value.endswith("kB\n"):
                found[name] = int(value.split()[0]) << 10
    return found


def _huge_pages(needs: Needs, _here: Here) -> Iterator[Found]:
    for wanted in needs.huge_pages:
        pool = f"/sys/kernel/mm/hugepages/hugepages-{wanted.page_bytes >> 10}kB"
        free = _number(f"{pool}/free_hugepages") - _number(f"{pool}/resv_hugepages")
        surplus = max(0, _number(f"{pool}/nr_overcommit_hugepages") - _number(f"{pool}/surplus_hugepages"))
        if wanted.count > free + surplus:
            yield Found(
                pid=None,
                subject=f"huge pages of {human_bytes(wanted.page_bytes)}",
                message=f"the workload maps {wanted.count} huge pages of {human_bytes(wanted.page_bytes)}, and "
                f"{max(0, free + surplus)} are free here",
                remedy=f"Reserve them: echo N > {pool}/nr_hugepages",
            )


def _number(path: str) -> int:
    with suppress(OSError, ValueError):
        return int(Path(path).read_text(encoding="ascii"))
    return 0


def _space(needs: Needs, here: Here) -> Iterator[Found]:
    """Space for the images in the staging area, and for what the store grows by; both may be on one file system."""
    wanted = [
        ("the staging area", here.state, needs.staging_bytes),
        ("the store", here.store, needs.store_bytes),
    ]
    by_device: dict[int, int] = {}
    for what, path, count in wanted:
        if not count:
            continue
        place = _existing(path)
        with suppress(OSError):
            device = os.stat(place).st_dev
            space = os.statvfs(place)
            free = space.f_bavail * space.f_frsize
            by_device[device] = total = by_device.get(device, 0) + count
            if total * _TIGHT > free:
                yield Found(
                    pid=None,
                    subject=str(place),
                    message=f"{what} needs {human_bytes(count)} in {path}, and {human_bytes(free)} are free there",
                    severity=Severity.BLOCKER if total > free else Severity.WARNING,
                )


def _staging_in_memory(needs: Needs, here: Here) -> Iterator[Found]:
    """The images and the memory that is made of them are there at the same time."""
    mount = _existing(here.state)
    while not mount.is_mount():
        mount = mount.parent
    available = sum(_meminfo().get(name, 0) for name in ("MemAvailable", "SwapFree"))
    wanted = needs.memory_bytes + needs.staging_bytes
    if needs.memory_bytes <= available < wanted and filesystem_of(str(mount)) == "tmpfs":
        yield Found(
            pid=None,
            subject=here.state,
            message=f"the staging area {here.state} is in memory itself: the images and the workload take "
            f"{human_bytes(wanted)} together, and {human_bytes(available)} are available here",
        )


def _existing(path: str) -> Path:
    place = Path(path).absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


RULES: Final = (
    NeedRule(
        name="memory",
        severity=Severity.BLOCKER,
        title="Memory",
        effect="The restore, or soon after it the workload, meets the OOM killer.",
        remedy="Free some memory, add swap, or choose another host.",
        find=_memory,
    ),
    NeedRule(
        name="memory-for-staging",
        severity=Severity.BLOCKER,
        title="A staging area on a tmpfs",
        effect="Images and memory together do not fit.",
        remedy="Set CKPT_STATE to a directory on a disk.",
        find=_staging_in_memory,
    ),
    NeedRule(
        name="huge-pages",
        severity=Severity.BLOCKER,
        title="Huge pages",
        effect="CRIU cannot map them.",
        remedy="Reserve more of them.",
        find=_huge_pages,
    ),
    NeedRule(
        name="space",
        severity=Severity.BLOCKER,
        title="Space on disk",
        effect="The images cannot be unpacked, or not be received.",
        remedy="Free some space there, or choose another place: CKPT_STATE for the staging area, --store for the store.",
        find=_space,
    ),
)
