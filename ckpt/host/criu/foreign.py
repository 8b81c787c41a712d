"""A CRIU image directory that ckpt did not make, described as a checkpoint: what its images say, and no more.

Rules: nothing is guessed. What images do not record (the host, the files' inodes, cgroups) stays empty, and a
set that is not whole, or refers to another directory for its pages, is refused.
Source: images/*.proto; criu/pstree.c and criu/tty.c (when shell_job is needed), criu/include/unix-sockets.h
(USK_EXTERN), criu/include/pagemap.h; CRIU writes inventory.img last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ckpt.errors import FormatUnknown, ObjectCorrupt, OsRefused, RestoreFailed
from ckpt.host.criu.addresses import is_elsewhere, page_map, page_maps
from ckpt.host.criu.complete import check_complete
from ckpt.host.criu.foreign_tree import read_tree
from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.pstree import ImageTask, read_tasks
from ckpt.host.criu.statistics import read_dump_statistics
from ckpt.host.criu.timens import read_instant
from ckpt.host.criu.timers import pending_timers
from ckpt.model.checkpoint import Checkpoint, DumpOptions, DumpStatistics, HostFacts, ImageSet
from ckpt.model.clocks import Clocks, ClockTarget, TimeOffsets
from ckpt.model.workload import ExternalMount, TargetKind, Tree, Workload
from ckpt.units import JobName, Nanoseconds, Pid

_SUFFIX: Final = ".img"
_ARCHITECTURES: Final = {
    1: "x86_64",
    2: "armv7l",
    3: "aarch64",
    4: "ppc64le",
    5: "s390x",
    6: "mips",
    7: "loongarch64",
    8: "riscv64",
}
_UNIX_EXTERN: Final = 1 << 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignImages:
    """A checkpoint whose image sets have no files yet, and the directory of each."""

    checkpoint: Checkpoint
    directories: tuple[Path, ...]


def describe(directory: Path, *, job: JobName | None, message: str) -> ForeignImages:
    """Describe a CRIU image directory, or a directory that has one for each of several trees.

    The instant is when inventory.img was written. A tree whose directory is named by a number has that number
    as its root.

    Raises:
        FormatUnknown: it is none, or its pages are elsewhere.
        ObjectCorrupt: it is not whole, or a file of it is not what its name says.
        OsRefused: a file of it cannot be read.
    """
    directories = _directories(directory)
    sets = [_ImageDirectory(path, apart=len(directories) > 1) for path in directories]
    roots = [each.tree.root for each in sets]
    if len(set(roots)) != len(roots):
        raise FormatUnknown(
            subject=str(directory),
            reason="two of its trees have the same root",
            remedy="Import each of them by itself.",
        )
    first = sets[0]
    return ForeignImages(
        directories=tuple(directories),
        checkpoint=Checkpoint(
            job=job,
            message=message,
            created_ns=first.written_ns,
            parent=None,
            frozen_ns=first.frozen_ns,
            dump_ns=first.frozen_ns,
            host=first.host(),
            clocks=_clocks(first),
            timers=tuple(timer for each in sets for timer in pending_timers(each.path)),
            options=_options(sets),
            workload=Workload(
                kind=TargetKind.PID,
                cgroup="",
                trees=tuple(each.on_clocks_of(first) for each in sets),
                cgroups=(),
                external_mounts=_distinct(mount for each in sets for mount in each.external_mounts()),
                outside_files=(),
            ),
            image_sets=tuple(
                ImageSet(root=each.tree.root, files=(), statistics=each.statistics) for each in sets
            ),
            inodes=(),
            carried_files=(),
            saved_files=(),
            saved_directories=(),
            volumes=(),
            settings=(),
            networks=(),
            waits=(),
        ),
    )


def image_names(directory: Path) -> tuple[str, ...]:
    """The names of the files that belong to the image set, sorted.

    Raises:
        OsRefused: the directory cannot be read.
    """
    try:
        with os.scandir(directory) as entries:
            return tuple(
                sorted(entry.name for entry in entries if entry.name.endswith(_SUFFIX) and entry.is_file())
            )
    except OSError as error:
        raise OsRefused(
            operation="read", subject=str(directory), reason=error.strerror or str(error)
        ) from error


class _ImageDirectory:
    """One image set, read where it is needed."""

    def __init__(self, path: Path, *, apart: bool) -> None:
        self.path = path
        try:
            check_complete(path)
        except RestoreFailed as error:
            raise ObjectCorrupt(
                kind="image set", name=str(path), reason=error.cause, remedy="Dump it again."
            ) from error
        _refuse_pages_elsewhere(path)
        self.tasks: tuple[ImageTask, ...] = read_tasks(path)
        named = Pid(int(path.name)) if apart and path.name.isdecimal() and len(path.name) < 10 else None
        self.tree: Tree = read_tree(path, self.tasks, named or self.tasks[0].pid)
        self.written_ns = Nanoseconds((path / "inventory.img").stat().st_mtime_ns)
        self.instant = read_instant(path) if any(path.glob("timens-*.img")) else _now()
        stats = path / "stats-dump"
        self.statistics: DumpStatistics | None = read_dump_statistics(stats) if stats.is_file() else None

    @property
    def frozen_ns(self) -> Nanoseconds:
        """How long it stood still, as CRIU counted; 0 where that is not known."""
        return Nanoseconds(self.statistics.frozen_ns if self.statistics else 0)

    def on_clocks_of(self, first: _ImageDirectory) -> Tree:
        """The tree, its clocks told by those of the first one."""
        offsets = TimeOffsets(
            monotonic_ns=Nanoseconds(self.instant.monotonic_ns - first.instant.monotonic_ns),
            boottime_ns=Nanoseconds(self.instant.boottime_ns - first.instant.boottime_ns),
        )
        return Tree(
            root=self.tree.root,
            processes=self.tree.processes,
            namespaces=self.tree.namespaces,
            time_offsets=offsets,
        )

    def host(self) -> HostFacts:
        """What the images tell of the host: of which kind its processor was."""
        core = read_entries(self.path / f"core-{self.tasks[0].pid}.img", "CORE", "core_entry")
        return HostFacts(
            hostname="",
            kernel="",
            architecture=_ARCHITECTURES.get(core[0].mtype, "") if core else "",
            distribution="",
            cpu_model="",
            cpu_flags=(),
            libc="",
            criu_version="",
            ckpt_version="",
        )

    def external_mounts(self) -> tuple[ExternalMount, ...]:
        """The mounts that were named to CRIU as external; each is taken from the place that its name says."""
        return tuple(
            _external(mount)
            for path in sorted(self.path.glob("mountpoints-*.img"))
            for mount in read_entries(path, "MNTS", "mnt_entry")
            if mount.ext_mount or mount.ext_key
        )

    def needs_external_unix(self) -> bool:
        """Whether a socket is connected to one outside."""
        path = self.path / "files.img"
        return path.is_file() and any(
            entry.usk.uflags & _UNIX_EXTERN for entry in read_entries(path, "FILES", "file_entry")
        )

    def has_locks(self) -> bool:
        """Whether file locks were kept."""
        return any(
            read_entries(path, "FILE_LOCKS", "file_lock_entry") for path in self.path.glob("filelocks*.img")
        )

    def has_connections(self) -> bool:
        """Whether TCP connections were kept."""
        return any(self.path.glob("tcp-stream-*.img"))

    def is_shell_job(self) -> bool:
        """Whether the session or the process group begins outside the tree."""
        root = self.tasks[0]
        return root.session != root.pid or root.group != root.pid


def _directories(directory: Path) -> list[Path]:
    if (directory / "inventory.img").is_file():
        return [directory]
    try:
        below = sorted(each for each in directory.iterdir() if (each / "inventory.img").is_file())
    except OSError as error:
        raise OsRefused(
            operation="read", subject=str(directory), reason=error.strerror or str(error)
        ) from error
    if not below:
        raise FormatUnknown(
            subject=str(directory),
            reason="it is no CRIU image directory: it has no inventory.img",
            remedy="Only a dump that succeeded leaves one: name the directory of --images-dir.",
        )
    return below


def _refuse_pages_elsewhere(images: Path) -> None:
    for path in page_maps(images):
        if any(is_elsewhere(entry) for entry in page_map(path)[1]):
            raise FormatUnknown(
                subject=str(images),
                reason=f"{path.name} refers to pages that are not in the directory, but in an earlier dump's, "
                "or were left at their source",
                remedy="Dump it again without --prev-images-dir and --lazy-pages.",
            )


def _now() -> ClockTarget:
    """For images of a CRIU that recorded no clocks: the tasks go on from when they were taken in."""
    return ClockTarget(
        monotonic_ns=Nanoseconds(time.clock_gettime_ns(time.CLOCK_MONOTONIC)),
        boottime_ns=Nanoseconds(time.clock_gettime_ns(time.CLOCK_BOOTTIME)),
    )


def _clocks(images: _ImageDirectory) -> Clocks:
    return Clocks(
        realtime_ns=images.written_ns,
        monotonic_ns=images.instant.monotonic_ns,
        boottime_ns=images.instant.boottime_ns,
        boot_id="",
        time_zone="",
        clocksource="",
    )


def _options(sets: list[_ImageDirectory]) -> DumpOptions:
    return DumpOptions(
        tcp_established=any(each.has_connections() for each in sets),
        file_locks=any(each.has_locks() for each in sets),
        link_remap=True,
        shell_job=any(each.is_shell_job() for each in sets),
        external_unix=any(each.needs_external_unix() for each in sets),
    )


def _external(mount: Any) -> ExternalMount:
    key = mount.ext_key or mount.mountpoint
    return ExternalMount(
        key=key,
        # What ckpt names is the place on the host; what others name is found where it was inside.
        mountpoint=key if key.startswith("/") else mount.mountpoint,
        filesystem=mount.fsname,
        source=mount.source,
        root=mount.root,
    )


def _distinct(mounts: Iterable[ExternalMount]) -> tuple[ExternalMount, ...]:
    return tuple(dict.fromkeys(mounts))
