"""Loop devices with numbers of our own: the device number of a volume is the same on every host.

Rules:
- Minor numbers from 2^19 on are ours: the kernel and losetup(8) count from 0 and do not come that far. Which
  one a volume gets follows from the job's name and the place alone.
- A device is free when the kernel gives it to us: what is attached there already answers EBUSY.
- A device goes with its mount (LO_FLAGS_AUTOCLEAR): whatever crashes, nothing stays attached.
Source: loop(4); linux/loop.h; drivers/block/loop.c. The numbers are the same on every architecture.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from ckpt.errors import FeatureMissing, OsRefused
from ckpt.units import SECOND, DeviceNumber, JobName, Nanoseconds

MAJOR: Final = 7
FIRST_NUMBER: Final = 1 << 19
NUMBERS: Final = 1 << 19
"""A minor number has 20 bits; the upper half is ours."""

TRIES: Final = 8
"""How many numbers after a taken one are tried, before the kernel is asked for any."""

RELEASE_PATIENCE: Final = Nanoseconds(5 * SECOND)
"""The last mount of a device goes with the last process of its namespace, which takes the kernel a moment."""

_CONTROL: Final = "/dev/loop-control"
_LOOP_CTL_ADD: Final = 0x4C80
_LOOP_CTL_REMOVE: Final = 0x4C81
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_AUTOCLEAR: Final = 4
_CONFIGURATION: Final = struct.Struct("=II5Q4I64s64s32s2Q64x")
"""struct loop_config: descriptor, block size, struct loop_info64, 64 bytes that are reserved."""

_LOOK_AGAIN_S: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """A loop device that shows an image: its node, and the number that stat(2) gives for files on it."""

    path: str
    device: DeviceNumber


def number_for(job: JobName, mountpoint: str) -> DeviceNumber:
    """The device number that a new volume of this job at this place should have."""
    digest = hashlib.sha256(f"{job}\0{mountpoint}".encode(errors="surrogateescape")).digest()
    return os_device(FIRST_NUMBER + int.from_bytes(digest[:4]) % NUMBERS)


def os_device(minor: int) -> DeviceNumber:
    """The number of the loop device with this minor number."""
    return DeviceNumber(os.makedev(MAJOR, minor))


def is_ours(device: DeviceNumber) -> bool:
    """Whether this is a loop device whose number we give."""
    return os.major(device) == MAJOR and os.minor(device) >= FIRST_NUMBER


@contextmanager
def attached(image: str, wanted: DeviceNumber) -> Iterator[LoopDevice]:
    """Attach the image for the time of the context, and as long as it is mounted then.

    Args:
        image: The path of a file with a file system.
        wanted: The number that it should have; if somebody has it, the image gets another one.

    Raises:
        FeatureMissing: this host has no loop devices.
        OsRefused: the image cannot be attached.
    """
    try:
        backing = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OsRefused(operation="open", subject=image, reason=error.strerror or str(error)) from error
    try:
        device, path = _attach(backing, image, wanted)
    finally:
        os.close(backing)
    try:
        yield LoopDevice(path=path, device=DeviceNumber(os.fstat(device).st_rdev))
    finally:
        os.close(device)


def backing_file(device: str) -> str:
    """The path of the file that is attached to the block device "major:minor"; "" if none is."""
    try:
        with open(f"/sys/dev/block/{device}/loop/backing_file", "rb") as stream:
            return os.fsdecode(stream.read().removesuffix(b"\n"))
    except OSError:
        return ""


def is_attached(device: DeviceNumber) -> bool:
    """Whether something is attached to the loop device."""
    return backing_file(f"{os.major(device)}:{os.minor(device)}") != ""


def release(device: DeviceNumber) -> None:
    """Wait until nothing is attached any more, and remove the device; one that stays in use stays."""
    patience_ends = time.monotonic_ns() + RELEASE_PATIENCE
    # Nothing tells when the kernel is done, so this looks again.
    while is_attached(device) and time.monotonic_ns() < patience_ends:
        time.sleep(_LOOK_AGAIN_S)
    if is_ours(device) and not is_attached(device):
        with suppress(OSError), _control() as control:
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, os.minor(device))
            # devtmpfs has done it; where /dev is none, the node was made by us.
            with suppress(FileNotFoundError):
                os.unlink(_node(os.minor(device)))


def _attach(backing: int, image: str, wanted: DeviceNumber) -> tuple[int, str]:
    """Attach to the wanted number or one that is free; gives the open device, and its path."""
    configuration = _CONFIGURATION.pack(
        backing, 0, *(0,) * 5, 0, 0, 0, _LO_FLAGS_AUTOCLEAR, os.fsencode(image)[-63:], b"", b"", 0, 0
    )
    try:
        with _control() as control:
            for number in _numbers(control, wanted):
                path = _make(control, number)
                device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, configuration)
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:
                        raise
                else:
                    return device, path
    except OSError as error:
        raise OsRefused(
            operation="attach to a loop device", subject=image, reason=error.strerror or str(error)
        ) from error
    raise OsRefused(operation="attach", subject=image, reason="no loop device is free")


def _numbers(control: int, wanted: DeviceNumber) -> Iterator[int]:
    """The wanted number, those after it, and then whatever the kernel has."""
    if is_ours(wanted):
        start = os.minor(wanted) - FIRST_NUMBER
        for step in range(TRIES):
            yield FIRST_NUMBER + (start + step) % NUMBERS
    for _ in range(TRIES):
        yield fcntl.ioctl(control, _LOOP_CTL_GET_FREE)


def _make(control: int, number: int) -> str:
    """Make the loop device of this number, if there is none, and its node; gives the node's path."""
    try:
        fcntl.ioctl(control, _LOOP_CTL_ADD, number)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
    path = _node(number)
    # Not os_device(number): with the module's option max_part the kernel counts otherwise.
    with open(f"/sys/block/loop{number}/dev", encoding="ascii") as stream:
        major, minor = map(int, stream.read().split(":"))
    with suppress(FileNotFoundError):
        if os.stat(path, follow_symlinks=False).st_rdev == os.makedev(major, minor):
            return path
        os.unlink(path)
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    return path


def _node(number: int) -> str:
    return f"/dev/loop{number}"


@contextmanager
def _control() -> Iterator[int]:
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FeatureMissing(
            feature=f"loop devices ({_CONTROL}: {error.strerror})",
            remedy="Load the kernel module: modprobe loop.",
        ) from error
    try:
        yield control
    finally:
        os.close(control)
