"""What image sets hold, read from hand-made ones: every kind of file, queues, zombies, and what nobody knows yet."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.core_notes import core_images
from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.pb import image
from ckpt.host.criu.reading import contents, read_contents
from ckpt.host.image_contents import ImageContents
from ckpt.model.contents import DescriptorKind, Holder, SocketFamily, TaskState, TreeContents
from ckpt.units import Pid

ROOT, HOST = Pid(7), Pid(4007)
OWNER = {"fown": {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}}
OPTIONS = {
    "opts": dict.fromkeys(
        ("so_sndbuf", "so_rcvbuf", "so_snd_tmo_sec", "so_snd_tmo_usec", "so_rcv_tmo_sec", "so_rcv_tmo_usec"),
        0,
    )
}
LOOPBACK = struct.unpack("<I", bytes((127, 0, 0, 1)))[0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A set of a process with a thread, and its zombie child."""
    namespaces = {f"{kind}_ns_id": number for number, kind in enumerate(("pid", "net", "mnt", "user"), 1)}
    ids = {"vm_id": 1, "files_id": 3, "fs_id": 1, "sighand_id": 1}
    write_entries(
        tmp_path / "inventory.img",
        "INVENTORY",
        [image.inventory_entry(img_version=2, root_ids=ids | namespaces | {"pid_ns_id": 9})],
    )
    write_entries(
        tmp_path / "pstree.img",
        "PSTREE",
        [
            image.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7, 8]),
            image.pstree_entry(pid=9, ppid=7, pgid=7, sid=7, threads=[9]),
        ],
    )
    limits = {"rlimits": [{"cur": 5, "max": (1 << 64) - 1}]}
    task = {"personality": 0, "exit_code": 0, "flags": 0, "blk_sigset": 0}
    thread = {"futex_rla": 0, "futex_rla_len": 0, "sched_nice": 0, "sched_policy": 0, "sched_prio": 0}
    creds = dict.fromkeys(("uid", "gid", "euid", "egid", "suid", "sgid", "fsuid", "fsgid"), 33) | {
        "secbits": 0
    }
    signals = {"signals": [{"siginfo": struct.pack("<i124x", 12)}, {"siginfo": b"x"}]}
    write_entries(
        tmp_path / "core-7.img",
        "CORE",
        [
            image.core_entry(
                mtype=1,
                tc=task | {"task_state": 1, "comm": "web", "rlimits": limits, "signals_s": signals},
                ids=ids | namespaces,
                thread_core=thread | {"creds": creds},
            )
        ],
    )
    write_entries(
        tmp_path / "core-8.img",
        "CORE",
        [
            image.core_entry(
                mtype=1,
                thread_core=thread | {"comm": "io", "sched_policy": 2, "sched_prio": 9, "sched_nice": -5},
            )
        ],
    )
    write_entries(
        tmp_path / "core-9.img",
        "CORE",
        [image.core_entry(mtype=1, tc=task | {"task_state": 6, "comm": "done"})],
    )
    write_entries(tmp_path / "fs-7.img", "FS", [image.fs_entry(cwd_id=2, root_id=3, umask=0o22)])
    registers = {field.name: 0 for field in image.mm_entry.DESCRIPTOR.fields if field.name.startswith("mm_")}
    del registers["mm_saved_auxv"]
    write_entries(tmp_path / "mm-7.img", "MM", [image.mm_entry(**registers, exe_file_id=1)])
    regular(tmp_path)
    return tmp_path


def regular(images: Path, *more: Any) -> None:
    """Write files.img: the program, two directories, and more."""
    names = {1: "/usr/bin/web", 2: "/srv", 3: "/"}
    files = [
        image.file_entry(type=1, id=number, reg={"id": number, "flags": 0, "pos": 0, "name": name} | OWNER)
        for number, name in names.items()
    ]
    write_entries(images / "files.img", "FILES", [*files, *more])


def table(images: Path, *numbers: int) -> None:
    """Write the descriptors: 0, 1 …, each of the open file with this number; odd ones close on exec."""
    write_entries(
        images / "fdinfo-3.img",
        "FDINFO",
        [image.fdinfo_entry(id=number, flags=fd % 2, type=1, fd=fd) for fd, number in enumerate(numbers)],
    )


def read(images: Path) -> TreeContents:
    return read_contents(images, HOST, {ROOT: HOST, Pid(9): Pid(4009)})


def with_bytes(path: Path, kind: str, *entries: tuple[Any, bytes]) -> None:
    """Write an image whose entries have bytes behind them."""
    write_entries(path, kind, [])
    parts = [path.read_bytes()]
    for message, behind in entries:
        payload = message.SerializeToString()
        parts += (struct.pack("<I", len(payload)), payload, behind)
    path.write_bytes(b"".join(parts))


def test_tasks_are_told_by_the_hosts_pids_with_all_that_is_theirs(images: Path) -> None:
    web, done = read(images).tasks
    assert (web.pid, web.pid_inside, web.name, web.state, web.uid) == (HOST, ROOT, "web", TaskState.ALIVE, 33)
    assert (web.executable, web.cwd, web.root, web.umask) == ("/usr/bin/web", "/srv", "/", 0o22)
    assert web.pending_signals == (12,)
    assert [(limit.name, limit.soft, limit.hard) for limit in web.limits] == [("RLIMIT_CPU", 5, None)]
    assert [(each.tid_inside, each.name, each.policy, each.priority, each.nice) for each in web.threads] == [
        (7, "web", "SCHED_OTHER", 0, 0),
        (8, "io", "SCHED_RR", 9, -5),
    ]
    assert {each.kind for each in web.namespaces if each.own} == {"pid"}
    assert (done.pid, done.parent, done.state, done.executable) == (4009, HOST, TaskState.ZOMBIE, "")


def test_every_kind_of_file_is_named_and_one_that_is_not_known_too(images: Path) -> None:
    regular(
        images,
        image.file_entry(
            type=1,
            id=20,
            reg={"id": 20, "flags": 0o2001, "pos": 12, "name": "/var/log/web", "size": 30} | OWNER,
        ),
        image.file_entry(type=6, id=21, efd={"id": 21, "flags": 2, "counter": 3} | OWNER),
        image.file_entry(
            type=17,
            id=22,
            tfd={
                "id": 22, "flags": 2, "clockid": 7, "ticks": 1, "settime_flags": 0,
                "vsec": 1, "vnsec": 500_000_000, "isec": 2, "insec": 0,
            } | OWNER,
        ),
        image.file_entry(type=9, id=23, sgfd={"id": 23, "flags": 2, "sigmask": 0b1000000001} | OWNER),
        image.file_entry(type=18, id=24, memfd={"id": 24, "flags": 2, "pos": 4, "inode_id": 5} | OWNER),
        image.file_entry(type=14, id=25, nsf={"id": 25, "ns_id": 1, "ns_cflag": 0x40000000, "flags": 0}),
        image.file_entry(type=16, id=26),
    )  # fmt: skip
    write_entries(
        images / "memfd.img",
        "MEMFD_INODE",
        [image.memfd_inode_entry(name="mine", uid=0, gid=0, size=99, shmid=4, seals=0, inode_id=5)],
    )
    write_entries(
        images / "remap-fpath.img",
        "REMAP_FPATH",
        [image.remap_file_path_entry(orig_id=20, remap_id=1, remap_type=1)],
    )
    table(images, 20, 21, 22, 23, 24, 25, 26, 77)
    descriptors = read(images).descriptors
    assert {each.pid for each in descriptors} == {HOST}
    assert [each.close_on_exec for each in descriptors] == [False, True] * 4
    log, event, timer, signals, memfd, namespace, new, missing = (each.file for each in descriptors)
    assert (log.path, log.access, log.flags, log.position, log.size_bytes, log.deleted) == (
        "/var/log/web",
        "w",
        ("O_APPEND",),
        12,
        30,
        True,
    )
    assert (event.kind, event.detail) == (DescriptorKind.EVENTFD, "counter 3")
    assert timer.detail == "CLOCK_BOOTTIME, fires in 1.5 s, then every 2 s, 1 not read"
    assert signals.detail == "signals 1, 10"
    assert (memfd.path, memfd.position, memfd.size_bytes) == ("memfd:mine", 4, 99)
    assert namespace.detail == "net"
    assert (new.kind, missing.kind) == (DescriptorKind.UNKNOWN, DescriptorKind.UNKNOWN)


def test_sockets_tell_their_ends_and_their_queues(images: Path) -> None:
    inet = {"family": 2, "type": 1, "proto": 6, "flags": 2, "backlog": 0} | OWNER | OPTIONS
    unix = {"type": 1, "state": 1, "flags": 2, "backlog": 0} | OWNER | OPTIONS
    regular(
        images,
        image.file_entry(
            type=4,
            id=20,
            isk={
                "id": 20, "ino": 0x1F, "state": 1, "src_port": 80, "dst_port": 999,
                "src_addr": [LOOPBACK], "dst_addr": [LOOPBACK],
            } | inet,
        ),
        image.file_entry(
            type=4,
            id=21,
            isk=inet
            | {
                "id": 21, "ino": 22, "family": 10, "type": 2, "proto": 17, "state": 7, "src_port": 53, "dst_port": 0,
                "src_addr": [0, 0, 0, 1 << 24], "dst_addr": [0, 0, 0, 0],
            },
        ),
        image.file_entry(
            type=5, id=22, usk={"id": 22, "ino": 50, "uflags": 0, "peer": 51, "name": b"\0abs"} | unix
        ),
        image.file_entry(
            type=5,
            id=23,
            usk={"id": 23, "ino": 51, "uflags": 1, "peer": 50, "name": b"log\0", "name_dir": "/dev"} | unix,
        ),
    )  # fmt: skip
    stream = dict.fromkeys(("inq_seq", "outq_seq", "opt_mask", "snd_wscale", "mss_clamp"), 0)
    with_bytes(
        images / "tcp-stream-1f.img",
        "TCP_STREAM",
        (image.tcp_stream_entry(inq_len=3, outq_len=2, **stream), b"abcde"),
    )
    with_bytes(
        images / "sk-queues.img",
        "SK_QUEUES",
        (image.sk_packet_entry(id_for=22, length=4), b"abcd"),
        (image.sk_packet_entry(id_for=22, length=1), b"e"),
    )
    table(images, 20, 21, 22)
    tcp, udp, one, other = read(images).sockets
    assert (tcp.state, tcp.local, tcp.remote) == ("established", "127.0.0.1:80", "127.0.0.1:999")
    assert (tcp.receive_bytes, tcp.send_bytes) == (3, 2)
    assert tcp.holders == (Holder(pid=HOST, fd=0, access="rw"),)
    assert (udp.family, udp.state, udp.local, udp.remote) == (
        SocketFamily.INET6,
        "unconnected",
        "[::1]:53",
        "",
    )
    assert (one.local, one.peer, one.receive_bytes, one.outside) == ("@abs", 51, 5, False)
    assert (other.local, other.outside, other.holders) == ("/dev/log", True, ())


def test_pipes_tell_what_is_in_them_and_who_has_their_ends(images: Path) -> None:
    regular(
        images,
        image.file_entry(type=2, id=20, pipe={"id": 20, "pipe_id": 6, "flags": 0} | OWNER),
        image.file_entry(type=2, id=21, pipe={"id": 21, "pipe_id": 6, "flags": 1} | OWNER),
        image.file_entry(type=3, id=22, fifo={"id": 22, "pipe_id": 8, "regf_id": 2}),
    )
    with_bytes(
        images / "pipes-data.img",
        "PIPES_DATA",
        (image.pipe_data_entry(pipe_id=6, bytes=5, size=65536), b"12345"),
    )
    table(images, 20, 21, 22)
    pipe, fifo = read(images).pipes
    assert (pipe.number, pipe.queued_bytes, pipe.capacity_bytes) == (6, 5, 65536)
    assert [(each.fd, each.access) for each in pipe.holders] == [(0, "r"), (1, "w")]
    assert (fifo.number, fifo.path, fifo.capacity_bytes) == (8, "/srv", None)


def test_a_queue_that_is_longer_than_its_image_is_damage(images: Path) -> None:
    with_bytes(
        images / "pipes-data.img", "PIPES_DATA", (image.pipe_data_entry(pipe_id=6, bytes=1 << 31), b"123")
    )
    with pytest.raises(ObjectCorrupt, match=r"pipes-data\.img"):
        read(images)


def test_a_thread_without_an_image_is_an_error(images: Path) -> None:
    write_entries(images / "core-8.img", "CORE", [])
    with pytest.raises(ObjectCorrupt, match=r"core-8\.img"):
        read(images)


def test_neither_pages_nor_contents_of_files_are_wanted() -> None:
    names = (
        "core-7.img",
        "pages-1.img",
        "ghost-file-3.img",
        "pagemap-7.img",
        "stats-dump",
        "tmpfs-dev-2.tar.gz.img",
    )
    assert ImageContents().wanted(names) == ("core-7.img", "pagemap-7.img")


@pytest.mark.parametrize(
    "tasks",
    [
        ((7, 0, [7]), (8, 7, [8]), (7, 8, [7])),
        ((7, 8, [7]), (8, 7, [8])),
        ((7, 7, [7]),),
        ((7, 0, [7, 8, 8]),),
    ],
    ids=("twice", "cycle", "its-own-parent", "thread-twice"),
)
def test_processes_that_are_no_tree_are_refused(
    images: Path, tasks: tuple[tuple[int, int, list[int]], ...]
) -> None:
    write_entries(
        images / "pstree.img",
        "PSTREE",
        [
            image.pstree_entry(pid=pid, ppid=parent, pgid=7, sid=7, threads=threads)
            for pid, parent, threads in tasks
        ],
    )
    with pytest.raises(ObjectCorrupt, match=r"pstree\.img"):
        read(images)


def test_more_descriptors_than_any_workload_has_are_refused(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(images, 1, 1)
    monkeypatch.setattr(contents, "DESCRIPTORS_MAX", 2)
    assert len(read(images).descriptors) == 2
    monkeypatch.setattr(contents, "DESCRIPTORS_MAX", 1)
    with pytest.raises(ObjectCorrupt, match="descriptors"):
        read(images)


def test_a_core_file_of_numbers_that_no_process_has_is_refused(images: Path) -> None:
    assert core_images(images, ROOT)
    task = image.pstree_entry(pid=7, ppid=0, pgid=(1 << 32) - 1, sid=7, threads=[7])
    write_entries(images / "pstree.img", "PSTREE", [task])
    with pytest.raises(ObjectCorrupt, match="numbers"):
        core_images(images, ROOT)
