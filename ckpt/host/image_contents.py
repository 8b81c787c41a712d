"""Reads what an image set holds, from image files that are put into a directory for that time; fits ContentsReader."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from ckpt.errors import OsRefused
from ckpt.model.contents import TreeContents
from ckpt.units import Pid

_PREFIX: Final = "ckpt-contents-"

# What is large, or only for CRIU: memory, contents of files, tar archives, rules of the network.
_UNWANTED: Final = (
    "pages-",
    "ghost-file-",
    "ipcns-",
    "tmpfs-",
    "iptables-",
    "ip6tables-",
    "nftables-",
    "netns-",
    "ifaddr-",
    "route",
    "rule-",
    "seccomp",
    "cgroup",
    "bpfmap-data",
    "tty-data",
)


class ImageContents:
    """What image sets hold, but for their memory's pages."""

    def wanted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Which of the files of an image set are read."""
        return tuple(name for name in names if name.endswith(".img") and not name.startswith(_UNWANTED))

    def read(self, fill: Callable[[str], None], root: Pid, pids: Mapping[Pid, Pid]) -> TreeContents:
        """What the image set holds whose wanted files `fill` puts into the directory that it is given.

        Raises:
            ObjectCorrupt: the images are not what they should be.
            OsRefused: the directory cannot be made.
        """
        # protobuf is imported where images are read, not before.
        from ckpt.host.criu.reading import read_contents  # noqa: PLC0415

        try:
            with tempfile.TemporaryDirectory(prefix=_PREFIX) as directory:
                fill(directory)
                return read_contents(Path(directory), root, pids)
        except OSError as error:
            raise OsRefused(
                operation="write", subject=tempfile.gettempdir(), reason=error.strerror or str(error)
            ) from error
