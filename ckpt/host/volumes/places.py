"""Where a volume may be mounted: nowhere that covers what is there already, or what the host lives of.

Rules: a place is an absolute path without symbolic links. It does not exist, or it is an empty directory that
nothing is mounted on. A checkpoint may come from anywhere, and a mount is a powerful thing: the system's own
trees are never a place, even where they are empty.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

PLACE_BYTES_MAX: Final = 1024

SYSTEM_TREES: Final = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run/systemd",
    "/run/udev",
    "/sbin",
    "/sys",
    "/usr",
)


def refuse_place(place: str, *, state: str, taken: Collection[str], own: Collection[str] = ()) -> str:
    """Why no volume can be mounted at `place`, in a few words; "" if one can.

    Args:
        place: The path, which need not exist.
        state: The state directory, which must stay in sight.
        taken: Where other volumes are mounted, or are to be.
        own: Where volumes are mounted now that will make room.
    """
    reason = _refuse_path(place, state)
    if reason:
        return reason
    for other in taken:
        if other == place:
            return f"another volume is at {place} already"
        if is_within(place, (other,)) or is_within(other, (place,)):
            return f"{place} and the volume at {other} would lie in one another"
    return "" if place in own else _refuse_directory(place)


def is_within(path: str, places: Collection[str]) -> bool:
    """Whether the path is one of the places, or below one."""
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def missing_directories(place: str) -> tuple[str, ...]:
    """What must be made for `place` to be a directory, the uppermost first."""
    missing: list[str] = []
    while not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    return tuple(reversed(missing))


def _refuse_path(place: str, state: str) -> str:
    if not place.startswith("/") or place.startswith("//") or os.path.normpath(place) != place:
        return f"{place} is not an absolute path without '.', '..' and doubled slashes"
    if len(os.fsencode(place)) > PLACE_BYTES_MAX:
        return f"the path has more than {PLACE_BYTES_MAX} bytes"
    if not place.isprintable():
        return f"{place!r} has characters that cannot be shown"
    if place == "/" or is_within(place, SYSTEM_TREES):
        return f"{place} belongs to the system"
    if (real := os.path.realpath(place)) != place:
        return f"{place} leads to {real} by a symbolic link"
    if is_within(place, (state,)) or is_within(state, (place,)):
        return f"{place} would cover ckpt's own files in {state}"
    return ""


def _refuse_directory(place: str) -> str:
    if not os.path.lexists(place):
        return ""
    if not os.path.isdir(place):
        return f"{place} is not a directory"
    if os.path.ismount(place):
        return f"something is mounted at {place}"
    try:
        if os.listdir(place):
            return f"there are files in {place}"
    except OSError as error:
        return f"{place} cannot be read ({error.strerror})"
    return ""
