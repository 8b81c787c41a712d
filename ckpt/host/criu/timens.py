"""The instant in an image set: what the clocks of the restored tasks go on from.

CRIU samples the clocks at the end of each dump, and writes timens-0.img also for tasks of the host's own time
namespace; at restore it makes a time namespace in which the clocks read these values.
Source: criu/timens.c (dump_time_ns, prepare_timens), images/timens.proto.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import read_entry, write_entries
from ckpt.model.clocks import ClockTarget
from ckpt.units import Nanoseconds

_SECOND: Final = 1_000_000_000


def read_instant(images: Path) -> ClockTarget:
    """What the clocks of this image set go on from.

    Raises:
        ObjectCorrupt, OsRefused: it has none, or it cannot be read.
    """
    entry = read_entry(instant_path(images), "TIMENS", "timens_entry")
    return ClockTarget(
        monotonic_ns=Nanoseconds(entry.monotonic.tv_sec * _SECOND + entry.monotonic.tv_nsec),
        boottime_ns=Nanoseconds(entry.boottime.tv_sec * _SECOND + entry.boottime.tv_nsec),
    )


def write_instant(images: Path, instant: ClockTarget) -> None:
    """Let the clocks of this image set go on from `instant`.

    Raises:
        ValueError: an instant before zero cannot be written.
        ObjectCorrupt, OsRefused: there is none to replace, or it cannot be read or written.
    """
    if instant.monotonic_ns < 0 or instant.boottime_ns < 0:
        raise ValueError(instant)
    for path in _paths(images):
        entry = read_entry(path, "TIMENS", "timens_entry")
        entry.monotonic.tv_sec, entry.monotonic.tv_nsec = divmod(instant.monotonic_ns, _SECOND)
        entry.boottime.tv_sec, entry.boottime.tv_nsec = divmod(instant.boottime_ns, _SECOND)
        write_entries(path, "TIMENS", [entry])


def instant_path(images: Path) -> Path:
    """The image file that read_instant() reads.

    Raises:
        ObjectCorrupt: there is none.
    """
    return _paths(images)[0]


def _paths(images: Path) -> list[Path]:
    # The dump of a task that was restored before has timens-9.img, say, and no timens-0.img.
    paths = sorted(images.glob("timens-*.img"))
    if not paths:
        raise ObjectCorrupt(kind="image set", name=str(images), reason="it has no timens image")
    return paths
