"""What an image set says of the host that it needs."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.needs import read_needs
from ckpt.host.criu.pb import image
from ckpt.model.needs import KernelFeature, NeededHugePages, NeededName, NeededPort, Protocol
from ckpt.units import ByteCount

ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
_KINDS = ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")


def ids(**changes: int) -> Any:
    numbers = {f"{kind}_ns_id": number for number, kind in enumerate(_KINDS, 1)} | changes
    return image.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1, **numbers)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The images of a task without sockets."""
    write_entries(
        tmp_path / "pstree.img", "PSTREE", [image.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7])]
    )
    write_entries(
        tmp_path / "inventory.img", "INVENTORY", [image.inventory_entry(img_version=2, root_ids=ids())]
    )
    own(tmp_path)
    write_entries(
        tmp_path / "fdinfo-2.img",
        "FDINFO",
        [image.fdinfo_entry(id=number, flags=0, type=4, fd=number) for number in (0, 900, 2)],
    )
    files(tmp_path)
    core(tmp_path)
    return tmp_path


def own(images: Path, **changes: int) -> None:
    """Let the task have these namespaces of its own."""
    write_entries(images / "ids-7.img", "IDS", [ids(**changes)])


def core(images: Path, **thread: Any) -> None:
    entry = image.core_entry(mtype=1)
    entry.thread_core.futex_rla = entry.thread_core.futex_rla_len = 0
    for name, value in thread.items():
        setattr(entry.thread_core, name, value)
    write_entries(images / "core-7.img", "CORE", [entry])


def files(images: Path, *entries: Any) -> None:
    write_entries(images / "files.img", "FILES", entries)


def inet(address: str, port: int, state: int, proto: int = socket.IPPROTO_TCP, **more: Any) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    entry = image.file_entry(type=4, id=1)
    entry.isk.id = entry.isk.ino = entry.isk.dst_port = entry.isk.flags = entry.isk.backlog = 0
    entry.isk.family, entry.isk.type, entry.isk.proto, entry.isk.state = family, 1, proto, state
    entry.isk.src_port = port
    entry.isk.src_addr.extend(struct.unpack(f"={len(raw) // 4}I", raw))
    fill(entry.isk)
    for name, value in more.items():
        setattr(entry.isk, name, value)
    return entry


def unix(name: bytes, state: int = LISTEN, directory: str = "", **more: Any) -> Any:
    entry = image.file_entry(type=5, id=1)
    entry.usk.id = entry.usk.ino = entry.usk.flags = entry.usk.uflags = entry.usk.backlog = entry.usk.peer = 0
    entry.usk.type, entry.usk.state, entry.usk.name, entry.usk.name_dir = 1, state, name, directory
    fill(entry.usk)
    for field, value in more.items():
        setattr(entry.usk, field, value)
    return entry


def fill(entry: Any) -> None:
    """What every socket must have."""
    for field in entry.fown.DESCRIPTOR.fields:
        setattr(entry.fown, field.name, 0)
    for name in (
        "so_sndbuf",
        "so_rcvbuf",
        "so_snd_tmo_sec",
        "so_snd_tmo_usec",
        "so_rcv_tmo_sec",
        "so_rcv_tmo_usec",
    ):
        setattr(entry.opts, name, 0)


def test_of_what_is_bound_the_port_is_needed_and_of_what_is_connected_the_address(images: Path) -> None:
    files(
        images,
        inet("127.0.0.1", 80, LISTEN),
        inet("127.0.0.1", 80, ESTABLISHED),
        inet("fd00::5", 4711, ESTABLISHED),
        inet("::", 53, CLOSE, socket.IPPROTO_UDP, v6only=True),
        inet("0.0.0.0", 0, CLOSE),  # noqa: S104
    )
    found = read_needs(images)
    assert found.ports == (
        NeededPort(protocol=Protocol.TCP, address="127.0.0.1", port=80, only_v6=False, foreign_address=False),
        NeededPort(protocol=Protocol.TCP, address="127.0.0.1", port=0, only_v6=False, foreign_address=False),
        NeededPort(protocol=Protocol.TCP, address="fd00::5", port=0, only_v6=False, foreign_address=False),
        NeededPort(protocol=Protocol.UDP, address="::", port=53, only_v6=True, foreign_address=True),
    )
    assert found.features == (KernelFeature.IPV6, KernelFeature.NFTABLES)
    assert found.descriptor_max == 900


def test_connections_that_come_back_closed_need_nothing(images: Path) -> None:
    files(images, inet("127.0.0.1", 80, LISTEN), inet("10.0.0.5", 80, ESTABLISHED))
    closing = image.inventory_entry(img_version=2, root_ids=ids(), tcp_close=True)
    write_entries(images / "inventory.img", "INVENTORY", [closing])
    found = read_needs(images)
    assert [port.port for port in found.ports] == [80]
    assert found.features == ()


def test_names_are_absolute_or_abstract_and_each_once(images: Path) -> None:
    files(
        images,
        unix(b"x.sock\0", directory="/srv/app"),
        unix(b"/run/y.sock"),
        unix(b"/run/y.sock", state=ESTABLISHED),
        unix(b"\0abs\0tract"),
        unix(b"/run/outside", uflags=1),
        unix(b"/run/gone", deleted=True),
        unix(b""),
    )
    assert read_needs(images).names == tuple(
        NeededName(name=name) for name in ("/srv/app/x.sock", "/run/y.sock", "@abs@tract")
    )


def test_a_network_of_its_own_takes_nothing_of_the_hosts(images: Path) -> None:
    files(images, inet("127.0.0.1", 80, LISTEN), unix(b"\0abstract"), unix(b"/run/y.sock"))
    own(images, net_ns_id=77)
    found = read_needs(images)
    assert (found.ports, found.names) == ((), (NeededName(name="/run/y.sock"),))


def test_a_name_on_a_mount_of_its_own_is_not_the_hosts(images: Path) -> None:
    files(images, unix(b"/run/y.sock"), unix(b"/srv/z.sock"))
    own(images, mnt_ns_id=77)
    mounts = [
        image.mnt_entry(
            fstype=5,
            mnt_id=1,
            root_dev=1,
            parent_mnt_id=0,
            flags=0,
            root="/",
            mountpoint=place,
            source="x",
            options="",
        )
        for place in ("./", "./run")
    ]
    write_entries(images / "mountpoints-5.img", "MNTS", mounts)
    assert read_needs(images).names == (NeededName(name="/srv/z.sock"),)


def test_filters_and_restartable_sequences_need_their_kernel(images: Path) -> None:
    core(images, seccomp_mode=2)
    assert read_needs(images).features == (KernelFeature.SECCOMP_FILTER,)


def test_huge_pages_are_counted_by_size_and_shared_ones_once(images: Path) -> None:
    memory = image.mm_entry()
    for field in memory.DESCRIPTOR.fields:
        if field.name.startswith("mm_") and field.name != "mm_saved_auxv":
            setattr(memory, field.name, 0)
    memory.exe_file_id = 1
    for flags, shmid in ((0x40022, 0), (0x40021, 5), (0x40021, 5), (0x40022 | 30 << 26, 0), (0x22, 0)):
        memory.vmas.add(
            start=1 << 30, end=2 << 30, pgoff=0, shmid=shmid, prot=3, flags=flags, status=1, fd=-1
        )
    write_entries(images / "mm-7.img", "MM", [memory])
    assert read_needs(images).huge_pages == (
        NeededHugePages(page_bytes=ByteCount(1 << 21), count=1024),
        NeededHugePages(page_bytes=ByteCount(1 << 30), count=1),
    )
