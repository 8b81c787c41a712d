"""What `criu restore` must be told to restore exported images without ckpt, and the figures that go with them.

Source: criu(8), "restore"; decisions/0003 (a tree with its own mounts needs a root that is a private mount).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.pb import image
from ckpt.host.mounts import restore_externals
from ckpt.model.checkpoint import Checkpoint, DumpOptions, DumpStatistics
from ckpt.model.workload import OutsideFile, OutsideKind, Tree
from ckpt.units import Nanoseconds

ROOT: Final = "/run/ckpt-root"
"""Where the commands mount the root of a tree that has its own mount namespace."""

_UINT32_MAX: Final = (1 << 32) - 1


def restore_commands(checkpoint: Checkpoint, tree: Tree, images: str) -> tuple[tuple[str, ...], ...]:
    """The commands, each as its words, that restore the tree from the directory `images`."""
    words = ["criu", "restore", "--images-dir", images, "--restore-detached", *_flags(checkpoint.options)]
    before: list[tuple[str, ...]] = []
    if tree.owns("mnt"):
        before = [
            ("mkdir", "-p", ROOT),
            ("mount", "--bind", "/", ROOT),
            ("mount", "--make-private", ROOT),
        ]
        words += ["--root", ROOT]
        for external in restore_externals(checkpoint.workload.external_mounts):
            words += ["--external", external]
    pids = {process.pid for process in tree.processes}
    for file in checkpoint.workload.outside_files:
        if file.pid in pids:
            words += ["--inherit-fd", f"fd[{_substitute(file)}]:{file.key}"]
    return (*before, tuple(words))


def stats_dump(statistics: DumpStatistics) -> bytes:
    """A stats-dump with these figures; those that a checkpoint does not keep are 0."""
    said = image.dump_stats_entry(
        freezing_time=_microseconds(statistics.freezing_ns),
        frozen_time=_microseconds(statistics.frozen_ns),
        memdump_time=_microseconds(statistics.memory_dump_ns),
        memwrite_time=_microseconds(statistics.memory_write_ns),
        pages_scanned=statistics.pages_scanned,
        pages_skipped_parent=0,
        pages_written=statistics.pages_written,
        irmap_resolve=0,
        pages_lazy=0,
    )
    with tempfile.TemporaryDirectory(prefix="ckpt-") as folder:
        path = Path(folder) / "stats-dump"
        write_entries(path, "STATS", [image.stats_entry(dump=said)])
        return path.read_bytes()


def count_pages_as_before(path: Path) -> None:
    """Say in a page map of CRIU 4.2 also where older readers look for it how many pages an entry has.

    go-criu 7, with which checkpointctl 1.3 reads command lines, knows the older field alone.

    Raises:
        ObjectCorrupt, OsRefused: it cannot be read or written.
    """
    head, *entries = read_entries(path, "PAGEMAP", "pagemap_entry", first="pagemap_head")
    for entry in entries:
        if not entry.compat_nr_pages:
            entry.compat_nr_pages = min(entry.nr_pages, _UINT32_MAX)
    write_entries(path, "PAGEMAP", [head, *entries])


def _flags(options: DumpOptions) -> list[str]:
    flags = {
        "--tcp-established": options.tcp_established,
        "--file-locks": options.file_locks,
        "--ext-unix-sk": options.external_unix,
        "--shell-job": options.shell_job,
    }
    return [flag for flag, is_needed in flags.items() if is_needed]


def _substitute(file: OutsideFile) -> int:
    """Which descriptor of the one who calls criu takes the place of what the workload shared."""
    return 1 if file.kind is OutsideKind.PIPE and file.writes else 0


def _microseconds(duration: Nanoseconds) -> int:
    return min(max(0, duration // 1000), _UINT32_MAX)
