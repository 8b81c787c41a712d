"""Take the virtual layer's seccomp filters out of an image set.

A filter that notifies a supervisor cannot be restored: CRIU would install it without its listener, and every stat
call would give ENOSYS. The layer is put over the restored tasks anew; what the workload had of its own stays.
seccomp.img holds all filters; each names the one before it (`prev`), and each thread's core image the end of its
chain.
Source: images/seccomp.proto, images/core.proto; criu/seccomp.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.pstree import read_tasks
from ckpt.host.virtual.filter import is_ours, number_of

_IMAGE: Final = "seccomp.img"
_MODE_DISABLED: Final = 0


def strip_filters(images: Path) -> int:
    """Take our filters out; gives how many there were. A task that had no other one is without seccomp then.

    Raises:
        ObjectCorrupt: the images contradict themselves.
        OsRefused: one cannot be read or written.
    """
    path = images / _IMAGE
    entries = _read(path)
    filters = [each for entry in entries for each in entry.seccomp_filters]
    ours = [is_ours(each.filter) for each in filters]
    if not any(ours):
        return 0
    places = _places(ours)

    def foreign(place: int) -> int | None:
        """Where the first filter that is none of ours, from this one on, will be."""
        for _ in filters:
            if place >= len(filters):
                break
            if not ours[place]:
                return places[place]
            if not filters[place].HasField("prev"):
                return None
            place = filters[place].prev
        raise ObjectCorrupt(kind="image file", name=_IMAGE, reason="its filters are linked wrongly")

    for core in _cores(images):
        _relink(core, foreign)
    kept = [each for each, is_one in zip(filters, ours, strict=True) if not is_one]
    before = [foreign(each.prev) if each.HasField("prev") else None for each in kept]
    for each, place in zip(kept, before, strict=True):
        each.ClearField("prev")
        if place is not None:
            each.prev = place
    # Without a filter there is no entry: so it is in the images of tasks that never had one.
    entry = entries[0]
    remaining = [type(each).FromString(each.SerializeToString()) for each in kept]
    del entry.seccomp_filters[:]
    entry.seccomp_filters.extend(remaining)
    write_entries(path, "SECCOMP", [entry] if remaining else [])
    return sum(ours)


def layers_in(images: Path) -> frozenset[int]:
    """The numbers of the virtual layers whose filters are in an image set. Raises as strip_filters()."""
    numbers = (number_of(each.filter) for entry in _read(images / _IMAGE) for each in entry.seccomp_filters)
    return frozenset(number for number in numbers if number is not None)


def _read(path: Path) -> Sequence[Any]:
    if not path.exists():
        return ()
    entries = read_entries(path, "SECCOMP", "seccomp_entry")
    if len(entries) > 1:
        raise ObjectCorrupt(kind="image file", name=_IMAGE, reason="it has more than one entry")
    return entries


def _places(ours: Sequence[bool]) -> list[int]:
    """The place that each filter has once ours are gone."""
    places: list[int] = []
    kept = 0
    for is_one in ours:
        places.append(kept)
        kept += not is_one
    return places


def _cores(images: Path) -> Iterator[Path]:
    for task in read_tasks(images):
        for thread in {task.pid, *task.threads}:
            path = images / f"core-{thread}.img"
            if path.exists():  # a zombie's threads have none
                yield path


def _relink(path: Path, foreign: Callable[[int], int | None]) -> None:
    entries = read_entries(path, "CORE", "core_entry")
    changed = False
    for core in entries:
        # Before CRIU 3.13 it stood with the task's fields.
        for part, prefix in ((core.thread_core, ""), (core.tc, "old_")):
            if not part.HasField(f"{prefix}seccomp_filter"):
                continue
            before = getattr(part, f"{prefix}seccomp_filter")
            place = foreign(before)
            if place is None:
                part.ClearField(f"{prefix}seccomp_filter")
                setattr(part, f"{prefix}seccomp_mode", _MODE_DISABLED)
            else:
                setattr(part, f"{prefix}seccomp_filter", place)
            changed |= place != before
    if changed:
        write_entries(path, "CORE", entries)
