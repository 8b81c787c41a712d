"""The kernel's tables of sockets: real sockets of this process, and bytes that are none."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness.waiting import await_condition

from ckpt.host import diag_messages, sock_diag
from ckpt.host.diag_messages import State
from ckpt.host.sock_diag import Sockets, sockets_of
from ckpt.units import InodeNumber, Pid

INET_HEAD = struct.Struct("=BBxx2s2s16s16s12xIIIII")
ULP_INFO, ULP_NAME = 19, 1


@pytest.fixture
def keep() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def inode(of: socket.socket) -> InodeNumber:
    return InodeNumber(os.fstat(of.fileno()).st_ino)


def own() -> Sockets:
    return sockets_of(Pid(os.getpid()))


def attribute(kind: int, content: bytes) -> bytes:
    padded = content + bytes(-len(content) % 4)
    return struct.pack("=HH", 4 + len(content), kind) + padded


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_tcp_sockets_are_told_with_their_addresses_and_queues(
    family: socket.AddressFamily, address: str, keep: ExitStack
) -> None:
    server = keep.enter_context(socket.create_server((address, 0), family=family))
    port = server.getsockname()[1]
    client = keep.enter_context(socket.create_connection((address, port)))
    told = own()
    listening = told.inet(inode(server))
    assert listening is not None
    assert (listening.state, listening.local, listening.local_port) == (State.LISTEN, address, port)
    assert listening.received == 1, "the connection that is not accepted"
    accepted, _ = server.accept()
    keep.enter_context(accepted)
    client.send(b"four")
    told = own()
    end, other = told.inet(inode(client)), told.inet(inode(accepted))
    assert end is not None
    assert other is not None
    assert (end.state, end.remote, end.remote_port) == (State.ESTABLISHED, address, port)
    assert other.received == 4
    assert str(port) in end.shown_remote
    assert not end.protocol_above
    assert not end.signs_md5


def test_unix_sockets_are_told_with_their_names_and_peers(keep: ExitStack) -> None:
    here, there = (keep.enter_context(end) for end in socket.socketpair())
    listener = keep.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(f"\0ckpt-test-{os.getpid()}")
    listener.listen()
    client = keep.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(listener.getsockname())
    told = own()
    end, waiting, asking = told.unix(inode(here)), told.unix(inode(listener)), told.unix(inode(client))
    assert end is not None
    assert waiting is not None
    assert asking is not None
    assert end.peer == inode(there)
    assert waiting.pending == (inode(client),)
    assert waiting.shown_name == f"@ckpt-test-{os.getpid()}"
    assert asking.peer == 0
    assert told.listener_of(inode(client)) == waiting
    assert told.listener_of(inode(here)) is None


def test_netlink_groups_above_32_are_told(keep: ExitStack) -> None:
    kernel = keep.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    kernel.bind((0, 1 | 1 << 6))
    kernel.setsockopt(270, 1, 33)
    told = own().netlink(inode(kernel))
    assert told is not None
    assert told.groups == (1, 7, 33)
    assert told.port == kernel.getsockname()[0]
    assert told.received_bytes == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root")
def test_memberships_of_packet_sockets_are_counted(keep: ExitStack) -> None:
    packets = keep.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
    for _ in range(2):
        packets.setsockopt(263, 1, struct.pack("=iHH8s", 1, 0, 6, bytes((1, 0, 94, 0, 0, 1))))
    told = own().packet(inode(packets))
    assert told is not None
    assert told.memberships == (2,)


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_another_network_namespace_is_looked_at_from_a_thread(keep: ExitStack) -> None:
    server = keep.enter_context(socket.create_server(("127.0.0.1", 0)))
    unshare = shutil.which("unshare")
    assert unshare is not None
    process = keep.enter_context(subprocess.Popen([unshare, "--net", "sleep", "600"]))
    keep.callback(process.kill)
    namespace = os.readlink("/proc/self/ns/net")
    await_condition(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != namespace, "another namespace")
    told = sockets_of(Pid(process.pid))
    assert told.inet(inode(server)) is None
    assert told.netlink(InodeNumber(0)) is None
    assert os.readlink("/proc/thread-self/ns/net") == namespace
    assert own().inet(inode(server)) is not None


def test_a_family_that_the_kernel_does_not_know_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock_diag, "_requests", lambda _family: iter([struct.pack("=BBHI", 99, 0, 0, 0)]))
    told = sockets_of(Pid(os.getpid()), ("unix",))
    assert told.missing == frozenset({"unix"})
    assert told.unix(InodeNumber(1)) is None


def test_a_host_with_too_many_sockets_is_refused(monkeypatch: pytest.MonkeyPatch, keep: ExitStack) -> None:
    for _ in range(2):
        keep.enter_context(socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(sock_diag, "MESSAGES_MAX", 1)
    with pytest.raises(OSError, match="too many sockets"):
        sockets_of(Pid(os.getpid()), ("inet",))


def test_a_protocol_above_tcp_is_told() -> None:
    head = INET_HEAD.pack(2, 1, b"\0\1", b"\0\2", bytes(16), bytes(16), 0, 0, 0, 0, 7)
    info = attribute(ULP_INFO | 0x8000, attribute(ULP_NAME, b"tls\0"))
    found = diag_messages.parse_inet(head + attribute(200, b"unknown") + info)
    assert found.protocol_above == "tls"
    assert (found.local_port, found.remote_port, found.inode) == (1, 2, 7)


@pytest.mark.parametrize(
    "damaged",
    [b"\0", struct.pack("=IHHII", 15, 20, 0, 0, 0), struct.pack("=IHHII", 17, 20, 0, 0, 0)],
    ids=["cut off", "shorter than its head", "longer than the answer"],
)
def test_bytes_that_are_no_messages_are_refused(damaged: bytes) -> None:
    with pytest.raises(OSError, match="netlink message"):
        list(sock_diag.messages(damaged))


@pytest.mark.parametrize("family", ["unix", "inet", "packet", "netlink"])
@pytest.mark.parametrize("size", range(0, 96, 5))
def test_any_bytes_are_a_socket_or_are_refused(family: str, size: int) -> None:
    parse = getattr(diag_messages, f"parse_{family}")
    for content in (bytes(size), b"\xff" * size, bytes(range(size))):
        try:
            parse(content)
        except OSError:
            continue


def test_an_attribute_that_is_longer_than_its_message_is_refused() -> None:
    head = INET_HEAD.pack(2, 1, b"", b"", bytes(16), bytes(16), 0, 0, 0, 0, 7)
    with pytest.raises(OSError, match="attribute"):
        diag_messages.parse_inet(head + struct.pack("=HH", 9, 4))
