"""The image file of a volume: an ext4 that any kernel can mount.

Rules: the features are named here, so that the defaults of the host that makes it do not count. All are older
than Linux 4.x. The image is sparse: what was never written, or was deleted, takes no space (option `discard`).
Source: mke2fs(8); ext4(5).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from ckpt.errors import CommandFailed, FeatureMissing, NoSpace, OsRefused
from ckpt.units import ByteCount

FILESYSTEM: Final = "ext4"
SIZE_DEFAULT: Final = ByteCount(1 << 30)
SIZE_MIN: Final = ByteCount(16 << 20)
SIZE_MAX: Final = ByteCount(16 << 40)
"""What ext4 can have with blocks of 4 KiB."""

_FEATURES: Final = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,"
    "extra_isize,metadata_csum,64bit"
)
_SYSTEM_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_OUTPUT_CHARS_MAX: Final = 300
_JOURNAL_MIB: Final = ((1 << 28, 4), (1 << 32, 8), (SIZE_MAX + 1, 32))
"""Below which size of the file system, how large its journal is: it is copied with every dump."""


def make(path: str, size: ByteCount, *, uid: int, gid: int) -> None:
    """Make a new image file with an empty file system, whose root belongs to this user and group.

    Raises:
        FeatureMissing: there is no mke2fs.
        NoSpace: no room for it.
        OsRefused, CommandFailed: it could not be made.
    """
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if program is None:
        raise FeatureMissing(feature="mkfs.ext4, which volumes need", remedy="Install the package e2fsprogs.")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise OsRefused(operation="make", subject=path, reason=error.strerror or str(error)) from error
    journal_mib = next(mib for below, mib in _JOURNAL_MIB if size < below)
    done = subprocess.run(
        [
            *(program, "-q", "-F", "-t", FILESYSTEM, "-L", "ckpt-volume", "-O", _FEATURES),
            *("-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-J", f"size={journal_mib}"),
            *("-E", f"assume_storage_prezeroed=1,lazy_itable_init=0,root_owner={uid}:{gid}", path),
        ],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        # The host's own defaults are not asked.
        env={"PATH": _SYSTEM_PATH, "MKE2FS_CONFIG": os.devnull, "LC_ALL": "C"},
    )
    if done.returncode == 0:
        return
    space = os.statvfs(os.path.dirname(path))
    if "No space left" in done.stderr:
        raise NoSpace(
            place=os.path.dirname(path),
            available_bytes=space.f_bavail * space.f_frsize,
            needed_bytes=journal_mib << 20,
            option="CKPT_STATE",
        )
    raise CommandFailed(
        command="mkfs.ext4",
        status=done.returncode,
        output=" ".join(done.stderr.split())[:_OUTPUT_CHARS_MAX],
    )
