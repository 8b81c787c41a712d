"""Decode stats-dump and stats-restore.

Rule: CRIU's durations are microseconds in 32 bits; ours are nanoseconds.
Source: images/stats.proto, criu/stats.c.
"""

from __future__ import annotations

from pathlib import Path

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import read_entry
from ckpt.host.criu.outcome import RestoreStatistics
from ckpt.model.checkpoint import DumpStatistics
from ckpt.units import Nanoseconds


def read_dump_statistics(path: Path) -> DumpStatistics:
    """The figures of a finished dump; `path` is its stats-dump.

    Raises:
        ObjectCorrupt, OsRefused: it cannot be read.
    """
    stats = read_entry(path, "STATS", "stats_entry")
    if not stats.HasField("dump"):
        raise ObjectCorrupt(kind="image file", name=path.name, reason="it has no figures of a dump")
    said = stats.dump
    return DumpStatistics(
        freezing_ns=_nanoseconds(said.freezing_time),
        frozen_ns=_nanoseconds(said.frozen_time),
        memory_dump_ns=_nanoseconds(said.memdump_time),
        memory_write_ns=_nanoseconds(said.memwrite_time),
        pages_scanned=said.pages_scanned + said.shpages_scanned,
        pages_written=said.pages_written + said.shpages_written,
    )


def read_restore_statistics(path: Path) -> RestoreStatistics:
    """The figures of a finished restore; `path` is its stats-restore.

    Raises:
        ObjectCorrupt, OsRefused: it cannot be read.
    """
    stats = read_entry(path, "STATS", "stats_entry")
    if not stats.HasField("restore"):
        raise ObjectCorrupt(kind="image file", name=path.name, reason="it has no figures of a restore")
    said = stats.restore
    return RestoreStatistics(
        forking_ns=_nanoseconds(said.forking_time),
        restore_ns=_nanoseconds(said.restore_time),
        pages_compared=said.pages_compared,
        pages_skipped_cow=said.pages_skipped_cow,
        pages_restored=said.pages_restored,
    )


def _nanoseconds(microseconds: int) -> Nanoseconds:
    return Nanoseconds(microseconds * 1000)
