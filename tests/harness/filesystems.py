"""File systems for tests: images in loop devices, memory, overlays; each is unmounted whatever happens."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_IMAGE_BYTES = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A new file system of this kind, mounted below `folder`; skips where it cannot be made here."""
    place = folder / kind
    place.mkdir()
    if kind == "overlay":
        with mounted("tmpfs", folder) as layers:
            for name in ("lower", "upper", "work"):
                (layers / name).mkdir()
            options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work"
            with _mounted(place, "-t", "overlay", "-o", options, "overlay"):
                yield place
        return
    if kind == "tmpfs":
        with _mounted(place, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
            yield place
        return
    if shutil.which(_MAKE[kind][0]) is None:
        _cannot(f"{_MAKE[kind][0]} is not installed")
    image = folder / f"{kind}.img"
    make_image(kind, image)
    try:
        with _mounted(place, "-o", "loop", str(image)):
            yield place
    finally:
        image.unlink()


def make_image(kind: str, image: Path) -> None:
    """Make a file that can be mounted as a file system of this kind."""
    with open(image, "wb") as stream:
        os.truncate(stream.fileno(), _IMAGE_BYTES[kind])
    subprocess.run([*_MAKE[kind], str(image)], check=True, capture_output=True)


@contextmanager
def _mounted(place: Path, *arguments: str) -> Iterator[None]:
    done = subprocess.run(["mount", *arguments, str(place)], check=False, capture_output=True, text=True)
    if done.returncode:
        _cannot(done.stderr.strip())
    try:
        yield
    finally:
        if subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        with suppress(OSError):
            place.rmdir()


def _cannot(why: str) -> None:
    if os.environ.get("CKPT_REQUIRE_SYSTEM") == "1":
        pytest.fail(f"system tests are required, but {why}")
    pytest.skip(why)
