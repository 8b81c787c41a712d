"""Files of real programs that go to another host: consistent with the freeze, and used there as if nothing had been."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.lab import Host
from harness.traces import Traces
from harness.waiting import await_condition
from real.asked import PROGRAM, Asked
from real.holding import Holder, holding

from ckpt.host.preflight.needs_of_target import needs_of_target
from ckpt.host.shipping.blocks import FileDigests
from ckpt.host.shipping.open_files import open_files, written_now
from ckpt.host.shipping.received import ReceivedFiles
from ckpt.host.shipping.shipped import ShippedFiles

pytestmark = pytest.mark.system

HOME = "/var/lib/shipped"
"""On the hosts' own mounts: there a copy has another device and another number."""

WRITER = """
import sqlite3, threading, time
def write():
    database = held["database"] = sqlite3.connect({path!r}, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode={mode}")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, filling TEXT)")
    held["rows"] = 0
    try:
        while not held.get("enough"):
            database.execute("INSERT INTO facts VALUES (?, ?)", (held["rows"], "x" * 500))
            held["rows"] += 1
            time.sleep(0.0005)  # in which others find it unlocked
    except sqlite3.Error as error:
        held["error"] = repr(error) + error.sqlite_errorname
held["thread"] = threading.Thread(target=write)
held["thread"].start()
"""
MORE = """
before = held["rows"]
while held["rows"] < before + 50 and "error" not in held: time.sleep(0.001)
second = sqlite3.connect({path!r}, timeout=30)
(seen,) = second.execute("SELECT count(*) FROM facts").fetchone()
second.close()
while held["rows"] < before + 100 and "error" not in held: time.sleep(0.001)
answer = [before, seen, held.get("error")]
"""
STOP = """
held["enough"] = True
held["thread"].join()
(rows,) = held["database"].execute("SELECT count(*) FROM facts").fetchone()
(verdict,) = held["database"].execute("PRAGMA integrity_check").fetchone()
answer = [held["rows"], rows, verdict]
"""
COUNT = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
print(*database.execute("SELECT count(*), max(number) FROM facts").fetchone())
"""


# ------------------------------------------------------------------------------------------ the transfer


class Target:
    """A target on the same machine, which has the source's files in another directory."""

    def __init__(self, here: Path, there: Path, directory: Path) -> None:
        self._here, self._there = str(here), str(there)
        self.files = ReceivedFiles(str(directory))
        self.sent_bytes = 0

    def ask(self, files: Sequence[tuple[int, str]]) -> Iterator[FileDigests | None]:
        for number, path in files:
            yield self.files.offer(number, path.replace(self._here, self._there, 1))

    def blocks(self, number: int, path: str, size: int, first_block: int, content: memoryview) -> None:
        self.sent_bytes += len(content)
        self.files.blocks(number, path.replace(self._here, self._there, 1), size, first_block, content)


@pytest.fixture
def holder() -> Iterator[Holder]:
    with holding() as started:
        yield started


@pytest.mark.skipif(os.geteuid() != 0, reason="freezing a cgroup needs root")
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_the_open_files_of_a_busy_database_arrive_as_they_are_at_the_freeze(
    mode: str, holder: Holder, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    path = here / "facts.db"
    holder.do(f"held = {{}}\n{WRITER.format(path=str(path), mode=mode)}\nanswer = 1")
    await_condition(lambda: int(str(holder.do("answer = held.get('rows', 0)"))) > 1000, "rows")
    shutil.copytree(here, there)
    target = Target(here, there, tmp_path / "received")

    needs = needs_of_target(holder.target, str(tmp_path / "state"))
    paths = open_files(needs.files, ())
    assert str(path) in paths
    assert all(other.startswith(str(here)) for other in paths)
    assert str(path) in written_now(holder.target.roots)
    files = ShippedFiles([str(path)], "/var/lib/ckpt")
    files.add(paths)
    for _ in range(2):
        files.first_pass(target, target.ask, holder.target.roots)
    before = target.sent_bytes
    with holder.frozen():
        files.add(written_now(holder.target.roots))
        shipment = files.last_pass(target)
        found = target.files.contents(shipment.files)
        assert {file.path for file, _ in found} == {str(each) for each in here.iterdir()}
        for file, place in found:
            assert Path(place).read_bytes() == Path(file.path).read_bytes(), file.path
        rows = {file.path: place for file, place in found}
    assert shipment.warnings == ()
    assert {*shipment.absent} == {f"{path}-{suffix}" for suffix in ("journal", "wal", "shm")} - rows.keys()
    assert target.sent_bytes - before < path.stat().st_size, "what did not change was sent again"

    copied = tmp_path / "copied"
    copied.mkdir()
    for name, place in rows.items():
        shutil.copy(place, copied / Path(name).name)
    holder.do("held['enough'] = True\nheld['thread'].join()\nanswer = 1")
    with closing(sqlite3.connect(copied / path.name)) as database:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
        count, last = database.execute("SELECT count(*), max(number) FROM facts").fetchone()
    assert (verdict, count) == ("ok", last + 1)
    assert count > 1000


# ------------------------------------------------------------------------------------- the other host


class AskedJob(Asked):
    """The program as a job of a host, asked through a folder that all hosts share."""

    def __init__(self, host: Host, ckpt: Ckpt, name: str, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir()
        program = (sys.executable, "-I", "-S", "-c", PROGRAM, folder)
        host.ckpt(ckpt, "run", "--detach", "--name", name, "--log", folder / "log", "--", *program)
        await_condition((folder / "ready").exists, "the program to be ready")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_writer_goes_on_on_a_host_where_its_files_have_other_inodes(
    mode: str, traces: Traces, ckpt: Ckpt
) -> None:
    source, target = (Host(traces, name, monotonic_s=1000, boottime_s=2000) for name in ("one", "two"))
    target.trust(source, ckpt)
    path = f"{HOME}/facts.db"
    for host in (source, target):
        host.run("mkdir", HOME)
    # What is there is old, and a journal of then would roll the database back.
    stale = ("sh", "-c", f"echo old >{path}; echo old >{path}-journal; echo old >{path}-wal")
    target.run(*stale)
    job = ckpt.new_job_name()
    program = AskedJob(source, ckpt, job, traces.folder / "asked")
    program.do(WRITER.format(path=path, mode=mode))
    await_condition(lambda: program.do("answer = held.get('rows', 0)") > 200, "rows")
    program.do(MORE.format(path=path))
    old = program.do(identities(path))

    dumped = source.ckpt(ckpt, "dump", job, "--stop", "--with-files", HOME)
    restored = target.ckpt(ckpt, "restore", dumped["id"], "--files", "saved", "--inodes", "keep")

    assert "old" not in target.run("cat", f"{path}-journal").stdout
    assert program.do(identities(path)) == old
    methods = {each["path"]: each for each in restored["inodes"]}
    assert methods[path]["seen"] == methods[path]["recorded"] != methods[path]["found"]
    for _ in range(3):
        before, seen, error = program.do(MORE.format(path=path))
        assert error is None
        assert seen >= before + 50
    thought, rows, verdict = program.do(STOP.format(path=path))
    assert (rows, verdict) == (thought, "ok")
    target.ckpt(ckpt, "stop", job)
    counted = target.run(sys.executable, "-I", "-c", COUNT, path)
    assert counted.stdout.split() == [str(rows), str(rows - 1)], counted.stderr


def identities(path: str) -> str:
    return f"s = os.stat({path!r}); answer = [s.st_dev, s.st_ino]"


def test_attributes_links_and_times_of_files_come_to_the_other_host(traces: Traces, ckpt: Ckpt) -> None:
    source, target = (Host(traces, name) for name in ("one", "two"))
    target.trust(source, ckpt)
    job = ckpt.new_job_name()
    program = AskedJob(source, ckpt, job, traces.folder / "asked")
    program.do(MAKE.format(home=HOME))
    told: dict[str, Any] = program.do(TELL.format(home=HOME))
    dumped = source.ckpt(ckpt, "dump", job, "--stop", "--with-files", HOME)
    target.ckpt(ckpt, "restore", dumped["id"])
    assert program.do(TELL.format(home=HOME)) == told
    assert told["attributes"] == {"user.origin": "lab"}
    assert told["links"] == 2


MAKE = """
os.mkdir({home!r})
held["file"] = open({home!r} + "/file", "w")
held["file"].write("content")
held["file"].flush()
os.setxattr({home!r} + "/file", "user.origin", b"lab")
os.link({home!r} + "/file", {home!r} + "/link")
os.chown({home!r} + "/file", 12, 34)
os.chmod({home!r} + "/file", 0o640)
os.utime({home!r} + "/file", ns=(1, 1_234_567_890_123_456_789))
"""
TELL = """
s, t = os.fstat(held["file"].fileno()), os.stat({home!r} + "/link")
answer = dict(
    mode=s.st_mode, owner=[s.st_uid, s.st_gid], time=s.st_mtime_ns, links=t.st_nlink, same=os.path.samestat(s, t),
    attributes={{n: os.getxattr(held["file"].fileno(), n).decode() for n in os.listxattr(held["file"].fileno())}},
)
"""
