"""Open files of every kind, as files.img has them, and who has a descriptor of them.

Source: images/fdinfo.proto and the messages that it names, images/memfd.proto, images/tty.proto,
images/remap-file-path.proto; criu/files.c, criu/files-reg.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.host.criu.clock_names import CLOCKS
from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.reading.values import (
    access,
    flag_names,
    name_of,
    path,
    seconds,
    signals_of,
    text,
)
from ckpt.model.contents import DescriptorKind, OpenFile
from ckpt.units import SECOND, ByteCount

_KINDS: Final = {
    "reg": DescriptorKind.FILE,
    "isk": DescriptorKind.INET_SOCKET,
    "nsf": DescriptorKind.NAMESPACE,
    "psk": DescriptorKind.PACKET_SOCKET,
    "nlsk": DescriptorKind.NETLINK_SOCKET,
    "efd": DescriptorKind.EVENTFD,
    "epfd": DescriptorKind.EPOLL,
    "sgfd": DescriptorKind.SIGNALFD,
    "tunf": DescriptorKind.TUN,
    "tfd": DescriptorKind.TIMERFD,
    "ify": DescriptorKind.INOTIFY,
    "ffy": DescriptorKind.FANOTIFY,
    "ext": DescriptorKind.EXTERNAL,
    "usk": DescriptorKind.UNIX_SOCKET,
    "fifo": DescriptorKind.FIFO,
    "pipe": DescriptorKind.PIPE,
    "tty": DescriptorKind.TTY,
    "memfd": DescriptorKind.MEMFD,
    "bpf": DescriptorKind.BPF_MAP,
    "pidfd": DescriptorKind.PIDFD,
}
"""From the field of file_entry that is set to what it means."""

_NAMESPACES: Final = {
    0x00000080: "time",
    0x00020000: "mnt",
    0x02000000: "cgroup",
    0x04000000: "uts",
    0x08000000: "ipc",
    0x10000000: "user",
    0x20000000: "pid",
    0x40000000: "net",
}
"""CLONE_NEW* of include/uapi/linux/sched.h."""

_REMAP_PROCFS: Final = 2
_FD_CLOEXEC: Final = 1


class OpenFiles:
    """The open files of an image set, read once."""

    def __init__(self, images: Path) -> None:
        """Read them.

        Raises:
            ObjectCorrupt, OsRefused: an image cannot be read.
        """
        self._images = images
        self.entries: dict[int, Any] = {
            entry.id: entry for entry in _optional(images / "files.img", "FILES", "file_entry")
        }
        self._deleted = {
            entry.orig_id
            for entry in _optional(images / "remap-fpath.img", "REMAP_FPATH", "remap_file_path_entry")
            if entry.remap_type != _REMAP_PROCFS
        }
        self._memfds = {
            entry.inode_id: entry
            for entry in _optional(images / "memfd.img", "MEMFD_INODE", "memfd_inode_entry")
        }
        self._ttys = {
            entry.id: entry for entry in _optional(images / "tty-info.img", "TTY_INFO", "tty_info_entry")
        }
        self._read: dict[int, OpenFile] = {}

    def of_kind(self, field: str) -> Iterator[tuple[int, Any]]:
        """The number and the message of each file with this field of file_entry."""
        return (
            (number, getattr(entry, field)) for number, entry in self.entries.items() if entry.HasField(field)
        )

    def path_of(self, number: int) -> str:
        """The path of a regular file or directory; "" if it is none."""
        entry = self.entries.get(number)
        return path(entry.reg.name) if entry is not None and entry.HasField("reg") else ""

    def file(self, number: int) -> OpenFile:
        """The file of this number; of unknown kind if the images do not have it."""
        found = self._read.get(number)
        if found is None:
            found = self._read[number] = self._file(number)
        return found

    def table(self, files_id: int) -> tuple[tuple[int, bool, int], ...]:
        """The descriptors of a table: number, close-on-exec, and the number of the file.

        Raises:
            ObjectCorrupt, OsRefused: its image cannot be read.
        """
        entries = _optional(self._images / f"fdinfo-{files_id}.img", "FDINFO", "fdinfo_entry")
        return tuple(sorted((entry.fd, bool(entry.flags & _FD_CLOEXEC), entry.id) for entry in entries))

    def _file(self, number: int) -> OpenFile:
        entry = self.entries.get(number)
        field = next((field for field in _KINDS if entry is not None and entry.HasField(field)), "")
        message = getattr(entry, field) if field else None
        flags = getattr(message, "flags", 0)
        detail = _DETAILS.get(field)
        return OpenFile(
            number=number,
            kind=_KINDS.get(field, DescriptorKind.UNKNOWN),
            # Those whose entries have no flags can be used for both.
            access=access(getattr(message, "flags", 2)) if field else "",
            flags=flag_names(flags),
            path=self._path(field, message),
            position=message.pos if message is not None and field in {"reg", "memfd"} else None,
            size_bytes=self._size(field, message),
            deleted=number in self._deleted,
            object=_object(field, message),
            detail=detail(message) if detail is not None else "",
        )

    def _path(self, field: str, message: Any) -> str:
        if field == "reg":
            return path(message.name)
        if field == "fifo":
            return self.path_of(message.regf_id)
        if field == "memfd":
            inode = self._memfds.get(message.inode_id)
            return f"memfd:{text(inode.name)}" if inode is not None else "memfd:"
        if field == "tty":
            terminal = self._ttys.get(message.tty_info_id)
            index = (
                f"/dev/pts/{terminal.pty.index}" if terminal is not None and terminal.HasField("pty") else ""
            )
            return self.path_of(message.regf_id) or index
        return ""

    def _size(self, field: str, message: Any) -> ByteCount | None:
        if field == "reg" and message.HasField("size"):
            return ByteCount(message.size)
        if field == "memfd" and message.inode_id in self._memfds:
            return ByteCount(self._memfds[message.inode_id].size)
        return None


def _object(field: str, message: Any) -> int:
    if field in {"pipe", "fifo"}:
        return int(message.pipe_id)
    return int(message.ino) if field in {"isk", "usk", "nlsk"} else 0


def _timerfd(message: Any) -> str:
    left_ns, interval_ns = (
        message.vsec * SECOND + message.vnsec,
        message.isec * SECOND + message.insec,
    )
    said = [name_of(message.clockid, CLOCKS, "clock")]
    said.append(f"fires in {seconds(left_ns)}" if left_ns else "not armed")
    if interval_ns:
        said.append(f"then every {seconds(interval_ns)}")
    if message.ticks:
        said.append(f"{message.ticks} not read")
    return ", ".join(said)


def _watches(message: Any) -> str:
    paths = [text(watch.f_handle.path) for watch in message.wd if watch.f_handle.path]
    return f"{len(message.wd)} watches" + (f": {', '.join(paths)}" if paths else "")


_DETAILS: Final[dict[str, Callable[[Any], str]]] = {
    "efd": lambda message: f"counter {message.counter}",
    "epfd": lambda message: f"watches {', '.join(str(target.tfd) for target in message.tfd) or 'nothing'}",
    "sgfd": lambda message: f"signals {', '.join(map(str, signals_of(message.sigmask))) or 'none'}",
    "tfd": _timerfd,
    "ify": _watches,
    "ffy": lambda message: f"{len(message.mark)} marks",
    "nsf": lambda message: name_of(message.ns_cflag, _NAMESPACES, "kind"),
    "pidfd": lambda message: f"of process {message.nspid} inside",
    "tunf": lambda message: text(message.netdev),
    "bpf": lambda message: text(message.map_name),
}


def _optional(image: Path, kind: str, message: str) -> list[Any]:
    """The entries of an image that is written only where there is something to say."""
    return read_entries(image, kind, message) if image.is_file() else []
