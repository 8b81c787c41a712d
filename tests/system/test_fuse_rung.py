"""Files shown under their inode numbers by a file system of ours, to tasks that live in a mount namespace for it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.filesystems import mounted
from harness.moved import replace_by_copy
from harness.pauses import Pauses
from harness.processes import all_pids, is_dead, kill
from harness.subjects import Workload
from harness.waiting import await_condition
from real.asked import Asked

from ckpt.errors import OsRefused
from ckpt.host.inodes.fuse.server_process import NAME, FileToShow
from ckpt.host.inodes.fuse.view import FileView

pytestmark = pytest.mark.system

BY_FUSE = {"CKPT_INODE_METHODS": "fuse"}
NUMBER = 77_000_000_001
KILLS = 20

USE = """
import errno, fcntl, json, mmap, os, sys
said, place = {}, sys.argv[1]

def errno_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

fd = os.open(place, os.O_RDWR)
said["numbers"] = [os.stat(place).st_ino, os.fstat(fd).st_ino]
said["devices"] = [os.stat(place).st_dev == os.fstat(fd).st_dev, os.stat(place).st_dev == os.stat("/").st_dev]
said["content"] = os.read(fd, 100).decode()
with mmap.mmap(fd, 7) as area:
    area[0:1] = b"C"
with open(place, "a") as file:
    file.write(" and more")
    os.fsync(file.fileno())
said["size"] = os.stat(place).st_size
os.chmod(place, 0o640)
os.utime(place, ns=(5, 7_000_000_008))
said["mtime_ns"] = os.stat(place).st_mtime_ns
fcntl.flock(fd, fcntl.LOCK_EX)
other = os.open(place, os.O_RDONLY)
said["second lock"] = errno_of(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB)
fcntl.lockf(fd, fcntl.LOCK_EX)
open(place + ".new", "w").close()
said["replaced"] = errno_of(os.rename, place + ".new", place)
said["renamed"] = errno_of(os.rename, place, place + ".old")
said["removed"] = errno_of(os.unlink, place)
os.posix_fallocate(fd, 0, 100)
os.ftruncate(fd, 11)
print(json.dumps(said))
"""

GO_ROUND = """
import os, sys, time
place, longest, rounds = sys.argv[1], 0, 0
fd = os.open(place, os.O_RDWR)
written = b"%032d"
while not os.path.exists(sys.argv[2]):
    began = time.monotonic()
    rounds += 1
    with open(place, "r+b") as other:
        assert os.fstat(other.fileno()).st_ino == os.stat(place).st_ino == int(sys.argv[3])
        os.pwrite(fd, written % rounds, 0)
        if not rounds % 50:
            os.fsync(fd)
        assert other.read() == written % rounds
    longest = max(longest, time.monotonic() - began)
print(rounds, longest)
"""


class Shown:
    """A namespace in which one file has another inode number."""

    def __init__(self, file: Path, folder: Path, stack: ExitStack) -> None:
        self.file = file
        status = file.stat()
        entry = FileToShow(device=status.st_dev, inode=status.st_ino, number=NUMBER, paths=[str(file)])
        folder.mkdir()
        self._folder = folder
        self._view = FileView.start([entry], place=str(folder))
        stack.callback(self.close)
        # As after a restore: no command of the test holds the directory that it was mounted at.
        folder.rmdir()

    def start(self, program: str, *arguments: object) -> subprocess.Popen[str]:
        fd = self._view.descriptor
        command = ["nsenter", f"--mount=/proc/self/fd/{fd}", "--", sys.executable, "-I", "-S", "-c", program]
        return subprocess.Popen(
            [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, pass_fds=(fd,)
        )

    def servers(self) -> list[int]:
        return servers_at(self._folder)

    def close(self) -> None:
        servers = self.servers()
        self._view.close()
        try:
            await_condition(lambda: all(map(is_dead, servers)), "the server to end with the namespace")
        finally:
            kill(servers)


def servers_at(folder: Path) -> list[int]:
    """The processes of the file system that was mounted in this folder, or in one below."""
    found = []
    for pid in all_pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        if name == NAME and str(folder).encode() in command:
            found.append(pid)
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "overlay"])
def test_all_but_the_numbers_is_that_of_the_file(kind: str, tmp_path: Path, stack: ExitStack) -> None:
    file = stack.enter_context(mounted(kind, tmp_path)) / "file"
    file.write_text("content")
    inode = file.stat().st_ino
    shown = Shown(file, tmp_path / "place", stack)

    process = shown.start(USE, file)
    said = json.loads(process.communicate(timeout=30)[0])

    assert said == {
        "numbers": [NUMBER, NUMBER],
        "devices": [True, False],
        "content": "content",
        "size": 16,
        "mtime_ns": 7_000_000_008,
        "second lock": "EAGAIN",
        # It is a mount: as little as any other can it be renamed or removed.
        "replaced": "EBUSY",
        "renamed": "EBUSY",
        "removed": "EBUSY",
    }
    assert file.read_text() == "Content and"
    assert file.stat().st_ino == inode
    assert file.stat().st_mode & 0o7777 == 0o640


def test_a_killed_server_is_not_missed(tmp_path: Path, stack: ExitStack, pauses: Pauses) -> None:
    began = time.monotonic()
    file, stop = tmp_path / "file", tmp_path / "stop"
    file.write_bytes(b"0" * 32)
    shown = Shown(file, tmp_path / "place", stack)
    user = shown.start(GO_ROUND, file, stop, NUMBER)
    stack.callback(user.kill)

    for number in range(KILLS):
        servers = await_condition(lambda: both(shown), "two servers")
        kill([servers[number % 2]])
    stop.touch()

    rounds, longest_s = user.communicate(timeout=30)[0].split()
    assert user.returncode == 0
    assert int(rounds) > KILLS
    assert float(longest_s) - pauses.since(began) < 1


def both(shown: Shown) -> list[int]:
    servers = shown.servers()
    return servers if len(servers) == 2 else []


def test_what_cannot_be_shown_is_said_and_leaves_nothing(tmp_path: Path, stack: ExitStack) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    status = file.stat()
    replace_by_copy(file)
    entry = FileToShow(device=status.st_dev, inode=status.st_ino, number=NUMBER, paths=[str(file)])

    with pytest.raises(OsRefused, match=f"Stale file handle.*{file}"):
        FileView.start([entry], place=str(tmp_path))

    await_condition(lambda: all(map(is_dead, servers_at(tmp_path))), "the server to end")


class Held:
    """A program that holds files by descriptors and mappings, and is dumped and restored by `ckpt`."""

    def __init__(self, workload: Workload, folder: Path, ckpt: Ckpt) -> None:
        self._workload = workload
        self._folder = folder
        self.ckpt = ckpt
        self._program = Asked(workload, folder)

    def hold(self, name: str, content: bytes = b"content") -> Path:
        path = self._folder / name
        path.write_bytes(content)
        self.do(f"held[{name!r}] = os.open({str(path)!r}, os.O_RDWR)")
        return path

    def map(self, name: str) -> None:
        self.do(f"held['map of ' + {name!r}] = mmap.mmap(held[{name!r}], 7)")

    def do(self, program: str) -> Any:
        return self._program.do(program)

    def numbers(self, *paths: Path) -> list[int]:
        """The inode numbers that it sees: of each path, and of each descriptor."""
        return list(
            self.do(
                f"answer = [os.stat(path).st_ino for path in {list(map(str, paths))}]"
                f" + [os.fstat(held[name]).st_ino for name in {[path.name for path in paths]}]"
            )
        )

    def dump(self) -> str:
        dumped = str(self.ckpt("dump", "--cgroup", self._workload.cgroup, "--stop")["id"])
        self._workload.await_empty()
        return dumped

    def restore(self, checkpoint: str, **environ: str) -> dict[str, Any]:
        restored = self.ckpt("restore", checkpoint, **environ)
        self._workload.cgroup = Cgroup(Path(restored["cgroup"]))
        return restored


@pytest.fixture
def held(workload: Workload, tmp_path: Path, ckpt: Ckpt) -> Held:
    return Held(workload, tmp_path, ckpt)


def test_a_workload_sees_the_same_numbers_on_another_device_over_three_rounds(held: Held) -> None:
    paths = [held.hold("one"), held.hold("two"), held.hold("kept")]
    replaced = paths[:2]
    held.map("one")
    held.do("import fcntl; fcntl.flock(held['two'], fcntl.LOCK_EX)")
    numbers = held.numbers(*paths)

    for turn, methods in enumerate(["fuse", "fuse", "virtual"]):
        checkpoint = held.dump()
        for path in replaced:
            # What takes its place must not get the number of one that was there before.
            os.link(path, f"{path}.{turn}")
            replace_by_copy(path)
        restored = held.restore(checkpoint, CKPT_INODE_METHODS=methods)

        outcomes = {outcome["path"]: outcome for outcome in restored["inodes"]}
        assert {outcomes[str(path)]["method"] for path in replaced} == {methods}
        assert outcomes[str(paths[2])]["method"] == "same"
        for path in replaced:
            assert outcomes[str(path)]["seen"]["inode"] == outcomes[str(path)]["recorded"]["inode"]
        if turn == 0:
            assert outcomes[str(paths[0])]["seen"]["device"] != outcomes[str(paths[0])]["recorded"]["device"]
            assert "the inode number is the same, the device is not" in " ".join(restored["warnings"])
        assert held.numbers(*paths) == numbers

        held.do(f"held['map of one'][0:1] = b'{turn}'; os.pwrite(held['two'], b'{turn}', 0)")
        assert [path.read_bytes() for path in replaced] == [b"%dontent" % turn] * 2

    with open(replaced[1]) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_database_in_wal_mode_is_refused_for_the_device_matters_to_it(
    held: Held, workload: Workload, tmp_path: Path
) -> None:
    database, shm = held.hold("rows.db"), held.hold("rows.db-shm")
    held.map("rows.db-shm")
    checkpoint = held.dump()
    replace_by_copy(database)

    error = held.ckpt("restore", checkpoint, exit_code=31, **BY_FUSE)["error"]

    assert error["slug"] == "host-mismatch"
    assert str(shm) in error["message"]
    assert workload.pids() == []


@pytest.mark.parametrize("phase", ["restored", "restored:SIGTERM"])
def test_a_restore_that_does_not_come_to_its_end_leaves_nothing(
    phase: str, held: Held, workload: Workload, tmp_path: Path
) -> None:
    path = held.hold("one")
    numbers = held.numbers(path)
    checkpoint = held.dump()
    replace_by_copy(path)

    failed = held.ckpt.run("restore", checkpoint, CKPT_FAILPOINT=phase, **BY_FUSE)

    assert failed.returncode != 0
    workload.await_empty()
    await_condition(lambda: all(map(is_dead, servers_at(tmp_path))), "the server to end")
    held.restore(checkpoint, **BY_FUSE)
    assert held.numbers(path) == numbers
