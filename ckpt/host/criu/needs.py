"""What an image set says of the host that it can be restored on: ports, names of sockets, kernel features.

Rules: only metadata is read, so the pages files need not be there. What lives in a network namespace of its own takes
no port of the host.
Source: images/fdinfo.proto, images/sk-inet.proto, images/sk-unix.proto, images/core.proto, images/mm.proto,
images/mnt.proto; criu/sk-inet.c (inet_bind), criu/sk-unix.c (bind_unix_sk), criu/tcp_state in include/tcp_states.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.pstree import read_inventory
from ckpt.model.needs import (
    ImageNeeds,
    KernelFeature,
    NeededHugePages,
    NeededName,
    NeededPort,
    Protocol,
    add_huge_pages,
)
from ckpt.units import ByteCount

_PROTOCOLS: Final = {
    socket.IPPROTO_TCP: Protocol.TCP,
    socket.IPPROTO_UDP: Protocol.UDP,
    socket.IPPROTO_UDPLITE: Protocol.UDP_LITE,
}
_TCP_CLOSE: Final = 7
_TCP_LISTEN: Final = 10
_ESTABLISHED: Final = 1
_SECCOMP_FILTER: Final = 2
_EXTERNAL: Final = 1
"""USK_EXTERN: the socket was outside, and is not bound again (criu/include/sk-unix.h)."""

_MAP_HUGETLB: Final = 0x40000
_HUGE_SHIFT: Final = 26
_HUGE_SHIFT_MASK: Final = 0x3F
_HUGE_DEFAULT_LOG2: Final = 21


def read_needs(images: Path) -> ImageNeeds:
    """What the image set of one tree needs.

    Raises:
        ObjectCorrupt, OsRefused: an image cannot be read.
    """
    inventory = read_inventory(images)
    own = inventory.own_namespaces
    files = read_entries(images / "files.img", "FILES", "file_entry")
    inet = [
        entry.isk
        for entry in files
        if entry.HasField("isk") and not (inventory.closes_connections and _is_connection(entry.isk))
    ]
    unix = [entry.usk for entry in files if entry.HasField("usk")]
    names = sorted(os.listdir(images))
    cores = [
        core
        for name in names
        if name.startswith("core-")
        for core in read_entries(images / name, "CORE", "core_entry")
    ]
    own_places = _own_places(images, names) if "mnt" in own else ()
    return ImageNeeds(
        ports=() if "net" in own else _ports(inet),
        names=tuple(
            name
            for name in _names(unix)
            if not (name.is_abstract and "net" in own) and not _is_below(name.name, own_places)
        ),
        features=tuple(_features(inet, cores)),
        huge_pages=add_huge_pages(_huge_pages(images, names)),
        descriptor_max=max(
            (
                entry.fd
                for name in names
                if name.startswith("fdinfo-")
                for entry in read_entries(images / name, "FDINFO", "fdinfo_entry")
            ),
            default=-1,
        ),
    )


def _ports(sockets: Iterable[Any]) -> tuple[NeededPort, ...]:
    """The ports that are bound anew; of connections the addresses, as repair mode disregards who has the port."""
    return tuple(
        dict.fromkeys(
            NeededPort(
                protocol=_PROTOCOLS[entry.proto],
                address=_address(entry),
                port=0 if _is_connection(entry) else entry.src_port,
                only_v6=bool(entry.v6only),
                foreign_address=bool(entry.ip_opts.freebind)
                or (entry.family == socket.AF_INET6 and not _is_connection(entry)),
            )
            for entry in sockets
            if entry.proto in _PROTOCOLS and 0 < entry.src_port <= 0xFFFF
        )
    )


def _is_connection(entry: Any) -> bool:
    return entry.proto == socket.IPPROTO_TCP and entry.state not in (_TCP_CLOSE, _TCP_LISTEN)


def _address(entry: Any) -> str:
    if entry.family == socket.AF_INET6:
        words = (*entry.src_addr, 0, 0, 0, 0)[:4]
        return socket.inet_ntop(socket.AF_INET6, struct.pack("=4I", *words))
    return socket.inet_ntop(socket.AF_INET, struct.pack("=I", (*entry.src_addr, 0)[0]))


def _names(sockets: Iterable[Any]) -> Iterator[NeededName]:
    seen: set[str] = set()
    for entry in sockets:
        name = bytes(entry.name)
        accepted = entry.type != socket.SOCK_DGRAM and entry.state == _ESTABLISHED
        # An accepted connection shows its listener's name, and is not bound.
        if not name.rstrip(b"\0") or entry.uflags & _EXTERNAL or entry.deleted or accepted:
            continue
        text = _name(name, entry.name_dir)
        if text not in seen:
            seen.add(text)
            yield NeededName(name=text)


def _name(name: bytes, directory: str) -> str:
    if name.startswith(b"\0"):
        # /proc/net/unix shows each NUL of an abstract name so.
        return os.fsdecode(name.replace(b"\0", b"@"))
    return os.path.normpath(os.path.join("/", directory, os.fsdecode(name.rstrip(b"\0"))))


def _features(inet: Iterable[Any], cores: Iterable[Any]) -> Iterator[KernelFeature]:
    inet = list(inet)
    if any(entry.family == socket.AF_INET6 for entry in inet):
        yield KernelFeature.IPV6
    if any(_is_connection(entry) for entry in inet):
        yield KernelFeature.NFTABLES
    threads = [core.thread_core for core in cores if core.HasField("thread_core")]
    if any(thread.seccomp_mode == _SECCOMP_FILTER for thread in threads):
        yield KernelFeature.SECCOMP_FILTER
    if any(thread.HasField("rseq_entry") for thread in threads):
        yield KernelFeature.RSEQ


def _huge_pages(images: Path, names: Iterable[str]) -> Iterator[NeededHugePages]:
    shared: set[int] = set()
    for name in names:
        if not name.startswith("mm-"):
            continue
        for memory in read_entries(images / name, "MM", "mm_entry"):
            for area in memory.vmas:
                if not area.flags & _MAP_HUGETLB or (area.shmid and area.shmid in shared):
                    continue
                shared.add(area.shmid)
                shift = area.flags >> _HUGE_SHIFT & _HUGE_SHIFT_MASK or _HUGE_DEFAULT_LOG2
                # A mapping reserves all of its pages, filled or not.
                yield NeededHugePages(
                    page_bytes=ByteCount(1 << shift), count=max(0, area.end - area.start) >> shift
                )


def _own_places(images: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Where the tree has mounted file systems of its own: what is below is not the host's."""
    return tuple(
        os.path.normpath("/" + entry.mountpoint.removeprefix(".").lstrip("/"))
        for name in names
        if name.startswith("mountpoints-")
        for entry in read_entries(images / name, "MNTS", "mnt_entry")
        if not entry.ext_mount and not entry.ext_key and entry.mountpoint not in ("./", "/", ".")
    )


def _is_below(path: str, places: Iterable[str]) -> bool:
    return any((path + "/").startswith(place.rstrip("/") + "/") for place in places)
