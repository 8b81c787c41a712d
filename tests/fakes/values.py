"""Small values of the model for tests."""

from __future__ import annotations

from random import Random

from ckpt.model.checkpoint import HostFacts, SavedFile, StoredFile
from ckpt.model.clocks import Clocks, TimeOffsets
from ckpt.model.workload import Namespace, Process, Tree
from ckpt.units import CHUNK_BYTES, SECOND, ByteCount, Digest, Nanoseconds, Pid

CLOCKS = Clocks(
    realtime_ns=Nanoseconds(1_800_000_000 * SECOND),
    monotonic_ns=Nanoseconds(5000 * SECOND),
    boottime_ns=Nanoseconds(6000 * SECOND),
    boot_id="5b4b1c3a-0000-4000-8000-000000000000",
    time_zone="Etc/UTC",
    clocksource="tsc",
)

HOST = HostFacts(
    hostname="here",
    kernel="6.18.0",
    architecture="x86_64",
    distribution="Debian 13",
    cpu_model="a CPU",
    cpu_flags=("sse2", "avx"),
    libc="glibc 2.41",
    criu_version="4.2.1",
    ckpt_version="0.1.0",
)


def a_process(pid: int, parent: int = 1) -> Process:
    return Process(
        pid=Pid(pid),
        pid_inside=Pid(pid),
        parent=Pid(parent),
        name="worker",
        state="S",
        threads=(Pid(pid),),
        command_line=("worker", "--fast"),
        uid=0,
        gid=0,
        capabilities=0,
        seccomp=0,
        cgroup="",
    )


def a_tree(root: int, children: int = 1) -> Tree:
    return Tree(
        root=Pid(root),
        processes=(a_process(root), *(a_process(root + 1 + number, root) for number in range(children))),
        namespaces=(Namespace(kind="pid", inode=4026531836, own=False),),
        time_offsets=TimeOffsets(monotonic_ns=Nanoseconds(0), boottime_ns=Nanoseconds(0)),
    )


def an_image_file(name: str, size: int = 10) -> StoredFile:
    return StoredFile(
        name=name,
        size_bytes=ByteCount(size),
        mode=0o600,
        root=Digest("ab" * 32),
    )


def a_saved_file(path: str, name: str = "saved-1") -> SavedFile:
    return SavedFile(
        path=path, mode=0o100640, uid=0, gid=0, mtime_ns=Nanoseconds(1), content=an_image_file(name)
    )


def a_page(number: int) -> bytes:
    """A page that is another for each number, and does not compress."""
    return Random(number).randbytes(CHUNK_BYTES)


def a_plain_page(number: int) -> bytes:
    """A page that is another for each number, and compresses well."""
    return f"page {number:08} of a program's memory. ".encode().ljust(64, b".") * (CHUNK_BYTES // 64)


def touched(page: bytes, mark: int) -> bytes:
    """The page with a few bytes changed, for each mark in another way."""
    return page[:100] + mark.to_bytes(8, "big") + page[108:]
