"""Mount the volumes of a job where they belong, and take them away again.

Rules:
- A volume is mounted if its very image is on top at its place: nothing that was remembered is believed.
- Mounted without set-uid bits and device files: the image may come from another host.
- What is in the way of a mount is looked for before (places.py); what came in between makes it fail.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Final

from ckpt.errors import OsRefused, WrongState
from ckpt.host import linux
from ckpt.host.mounts import mounts_of
from ckpt.host.volumes import loop
from ckpt.host.volumes.book import VolumeRecord
from ckpt.units import DeviceNumber

_FLAGS: Final = linux.MS_NOSUID | linux.MS_NODEV
# `discard` gives the image the space of deleted files back, so that no dump copies it.
_OPTIONS: Final = {"ext4": "discard,errors=remount-ro"}
FILESYSTEMS: Final = frozenset(_OPTIONS)
"""What a volume of ours may hold."""


def mount(directory: str, record: VolumeRecord) -> DeviceNumber:
    """Mount the volume, whose image is in `directory`; gives the device number that its files have.

    Nothing happens to one that is mounted. Directories that are missing are made.

    Raises:
        OsRefused, FeatureMissing: this host cannot.
    """
    if (device := device_of(directory, record)) is not None:
        return device
    place = record.mountpoint
    try:
        os.makedirs(place, mode=0o755, exist_ok=True)
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Whoever may write to a directory above could have led the path elsewhere by now.
            if os.readlink(f"/proc/self/fd/{fd}") != place:
                raise OSError(errno.ELOOP, "a symbolic link is on the way")
            with loop.attached(f"{directory}/{record.image}", record.device) as attached:
                linux.mount(
                    attached.path,
                    f"/proc/self/fd/{fd}",
                    record.filesystem,
                    flags=_FLAGS,
                    options=_OPTIONS[record.filesystem],
                )
                return attached.device
        finally:
            os.close(fd)
    except OSError as error:
        raise OsRefused(
            operation="mount the volume", subject=place, reason=error.strerror or str(error)
        ) from error


def device_of(directory: str, record: VolumeRecord) -> DeviceNumber | None:
    """The device number of the mounted volume; None if it is not mounted."""
    on_top = None
    for each in mounts_of("self"):
        if each.mountpoint == record.mountpoint:
            on_top = each
    if on_top is None or loop.backing_file(on_top.device) != f"{directory}/{record.image}":
        return None
    major, minor = map(int, on_top.device.split(":"))
    return DeviceNumber(os.makedev(major, minor))


def unmount(directory: str, record: VolumeRecord) -> None:
    """Take the mount away, if it is there, and wait until its loop device is free.

    Raises:
        WrongState: something uses it.
        OsRefused: the kernel refuses for another reason.
    """
    device = device_of(directory, record)
    if device is None:
        return
    try:
        linux.umount(record.mountpoint)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise WrongState(
                subject=f"The volume {record.mountpoint}",
                state="in use",
                operation="taking it away",
                needed="to be left alone",
                remedy=f"End what uses it; 'fuser -vm {record.mountpoint}' shows that.",
            ) from error
        raise OsRefused(
            operation="unmount", subject=record.mountpoint, reason=error.strerror or str(error)
        ) from error
    loop.release(device)


def remove_place(record: VolumeRecord) -> None:
    """Remove the directories that were made for the mount, as far as they are empty."""
    for directory in reversed(record.made):
        with suppress(OSError):
            os.rmdir(directory)


def strange_mounts(own: tuple[str, ...]) -> tuple[str, ...]:
    """Where the volumes of all others are mounted, whoever made them, the newest first."""
    found = []
    for each in mounts_of("self"):
        major, minor = map(int, each.device.split(":"))
        if loop.is_ours(DeviceNumber(os.makedev(major, minor))) and each.mountpoint not in own:
            found.append(each.mountpoint)
    return tuple(reversed(found))
