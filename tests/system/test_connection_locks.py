"""Connections that stand still while a restore makes their ends again."""

from __future__ import annotations

import secrets
import select
import socket
import struct
from pathlib import Path

import pytest

from ckpt.host import connection_locks
from ckpt.host.criu import netlock
from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.pb import image

pytestmark = pytest.mark.system


def images_with(folder: Path, end: socket.socket, run_id: str) -> None:
    """What a dump of this end of a connection says of it."""
    addresses = [
        struct.unpack("<I", socket.inet_aton(name[0]))[0] for name in (end.getsockname(), end.getpeername())
    ]
    message = image.inet_sk_entry(
        id=1, ino=1, family=2, type=1, proto=6, state=1, flags=0, backlog=0,
        src_addr=addresses[:1], src_port=end.getsockname()[1],
        dst_addr=addresses[1:], dst_port=end.getpeername()[1],
        fown=image.fown_entry(uid=0, euid=0, signum=0, pid_type=0, pid=0), opts=image.sk_opts_entry(
            so_sndbuf=0, so_rcvbuf=0, so_snd_tmo_sec=0, so_snd_tmo_usec=0, so_rcv_tmo_sec=0, so_rcv_tmo_usec=0
        ),
    )  # fmt: skip
    image_set(folder, [image.file_entry(type=3, id=1, isk=message)], run_id)


def image_set(folder: Path, files: list[object], run_id: str) -> None:
    """As little of an image set as a lock needs."""
    kinds = ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")
    ids = image.task_kobj_ids_entry(
        vm_id=1, files_id=1, fs_id=1, sighand_id=1, **{f"{kind}_ns_id": 1 for kind in kinds}
    )
    tree = image.pstree_entry(pid=7, ppid=0, pgid=7, sid=7, threads=[7])
    inventory = image.inventory_entry(img_version=2, dump_criu_run_id=run_id, root_ids=ids)
    write_entries(folder / "files.img", "FILES", files)
    write_entries(folder / "pstree.img", "PSTREE", [tree])
    write_entries(folder / "ids-7.img", "IDS", [ids])
    write_entries(folder / "inventory.img", "INVENTORY", [inventory])


def test_nothing_passes_a_locked_connection_and_all_of_it_comes_later(tmp_path: Path) -> None:
    run_id = f"{secrets.token_hex(4)}-{secrets.token_hex(2)}-4000-8000-{secrets.token_hex(6)}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    with here, there:
        images_with(tmp_path, here, run_id)
        assert connection_locks.lock(str(tmp_path)) == run_id
        try:
            assert connection_locks.lock(str(tmp_path)) == ""  # as after a dump that has left its lock
            here.send(b"to there")
            there.send(b"to here")
            assert select.select([here, there], [], [], 0.3)[0] == []
        finally:
            connection_locks.unlock(run_id)
        assert netlock.table_of(run_id) not in netlock.list_tables()
        assert there.recv(16) == b"to there"
        assert here.recv(16) == b"to here"


def test_images_without_a_connection_lock_nothing(tmp_path: Path) -> None:
    image_set(tmp_path, [], "x" * 36)
    assert connection_locks.lock(str(tmp_path)) == ""
