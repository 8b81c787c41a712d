"""What little workloads share with the world outside: peers, pipes, terminals, mounts. Each is there for one context."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def unix_peer(folder: Path, kind: int = socket.SOCK_STREAM) -> Iterator[None]:
    """A server outside; what connects is accepted and kept."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(folder / "outside"))
        if kind == socket.SOCK_DGRAM:
            yield
            return
        server.listen()
        with _accepting(server):
            yield


@contextmanager
def tcp_peer(folder: Path) -> Iterator[None]:
    """A server outside, its port in a file; what connects is accepted, kept, and answered byte by byte."""
    with socket.create_server(("127.0.0.1", 0)) as server, _accepting(server):
        (folder / "port").write_text(str(server.getsockname()[1]))
        yield


@contextmanager
def fifo_reader(folder: Path) -> Iterator[None]:
    """A named pipe that is read outside."""
    os.mkfifo(folder / "fifo")
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        os.close(reader)


@contextmanager
def mapped_outside(folder: Path) -> Iterator[None]:
    """A file of shared memory that a process outside maps, too."""
    path = folder / "shared"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        yield


@contextmanager
def outside_pipe() -> Iterator[int]:
    """A pipe that is written outside."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def outside_terminal() -> Iterator[int]:
    """A terminal whose other side is outside."""
    master, slave = os.openpty()
    try:
        yield slave
    finally:
        os.close(master)
        os.close(slave)


@contextmanager
def loop_mount(folder: Path) -> Iterator[None]:
    """A tmpfs of its own below the workload's folder."""
    place = folder / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "bench", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


@contextmanager
def _accepting(server: socket.socket) -> Iterator[None]:
    kept: list[socket.socket] = []
    threading.Thread(target=_accept, args=(server, kept), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        for each in kept:
            each.close()


def _accept(server: socket.socket, kept: list[socket.socket]) -> None:
    with suppress(OSError):  # shut down
        while True:
            each, _ = server.accept()
            kept.append(each)
            if server.family == socket.AF_INET:
                threading.Thread(target=_echo, args=(each,), daemon=True).start()


def _echo(each: socket.socket) -> None:
    with suppress(OSError):  # closed by _accepting()
        while content := each.recv(1):
            each.sendall(content)
