"""Files and memory from one instant: saved with a dump, written back or left alone by a restore."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.filesystems import mounted
from harness.subjects import Workload
from harness.traces import Traces
from harness.waiting import await_condition
from real.asked import Asked
from real.crashing import Scene

pytestmark = pytest.mark.system

WRITER = """
import sqlite3, threading
def write():
    database = held["database"] = sqlite3.connect({path!r}, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode={mode}")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, filling TEXT)")
    held["rows"] = 0
    while not held.get("enough"):
        database.execute("INSERT INTO facts VALUES (?, ?)", (held["rows"], "x" * 500))
        held["rows"] += 1
held["thread"] = threading.Thread(target=write)
held["thread"].start()
"""
STOP = """
held["enough"] = True
held["thread"].join()
second = sqlite3.connect({path!r})
second.execute("SELECT count(*) FROM facts").fetchone()
second.close()
held["database"].execute("INSERT INTO facts VALUES (?, 'last')", (held["rows"],))
held["rows"] += 1
(rows,) = held["database"].execute("SELECT count(*) FROM facts").fetchone()
(verdict,) = held["database"].execute("PRAGMA integrity_check").fetchone()
answer = [held["rows"], rows, verdict]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def program(workload: Workload, tmp_path: Path) -> Asked:
    return Asked(workload, tmp_path)


def dump(ckpt: Ckpt, workload: Workload, *paths: Path, stop: bool = True) -> str:
    files = [word for path in paths for word in ("--with-files", path)]
    dumped = ckpt("dump", "--cgroup", workload.cgroup, *files, *(["--stop"] if stop else []))
    if stop:
        workload.await_empty()
    return str(dumped["id"])


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below the folder, with its inode number."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def held(program: Asked, *paths: Path) -> None:
    for path in paths:
        program.do(f"held[{str(path)!r}] = open({str(path)!r}, 'r+')")


@pytest.mark.parametrize(("mode", "is_gone"), [("delete", False), ("wal", False), ("wal", True)])
def test_a_database_and_its_writer_are_of_one_instant_again(
    mode: str, *, is_gone: bool, program: Asked, workload: Workload, ckpt: Ckpt, folder: Path
) -> None:
    path = folder / "facts.db"
    program.do(WRITER.format(path=str(path), mode=mode))
    await_condition(lambda: program.do("answer = held.get('rows', 0)") > 20, "rows")

    checkpoint = dump(ckpt, workload, folder, stop=False)
    at_dump = int(program.do("answer = held['rows']"))
    await_condition(lambda: program.do("answer = held['rows']") > at_dump + 20, "more rows")
    workload.kill()
    identity = (path.stat().st_dev, path.stat().st_ino)
    if is_gone:
        for file in folder.iterdir():
            file.unlink()

    ckpt("restore", checkpoint)

    if not is_gone:
        assert (path.stat().st_dev, path.stat().st_ino) == identity
    assert tuple(program.do(f"s = os.stat({str(path)!r}); answer = [s.st_dev, s.st_ino]")) == identity
    thought, rows, verdict = program.do(STOP.format(path=str(path)))
    assert (rows, verdict) == (thought, "ok")
    workload.kill()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*), max(number) FROM facts").fetchone() == (rows, rows - 1)


def test_a_signal_that_comes_as_it_goes_on_takes_no_file_back_under_it(
    program: Asked, workload: Workload, ckpt: Ckpt, folder: Path
) -> None:
    path = folder / "data"
    path.write_bytes(b"then")
    held(program, path)
    checkpoint = dump(ckpt, workload, folder)
    path.write_bytes(b"much later")

    ckpt("restore", checkpoint, CKPT_FAILPOINT="let-go:SIGINT")

    assert list(contents(folder)) == ["data"]
    assert path.read_bytes() == b"then"
    assert program.do(f"answer = held[{str(path)!r}].read()") == "then"


def test_all_of_a_directory_is_as_it_was_and_what_came_later_is_beside_it(
    program: Asked, workload: Workload, ckpt: Ckpt, folder: Path
) -> None:
    changed, gone, other, later = (folder / name for name in ("changed", "deep/gone", "other-name", "later"))
    gone.parent.mkdir()
    changed.write_bytes(b"then")
    gone.write_bytes(b"\0" * (1 << 20) + b"end")
    gone.chmod(0o640)
    os.utime(gone, ns=(5, 1_234_567_890_123_456_789))
    os.link(gone, other)
    (folder / "link").symlink_to("changed")
    held(program, changed)
    checkpoint = dump(ckpt, workload, folder)
    inode = changed.stat().st_ino
    changed.write_bytes(b"much later")
    shutil.rmtree(gone.parent)
    other.unlink()
    later.write_bytes(b"new")

    shown = ckpt("show", checkpoint)
    restored = ckpt("restore", checkpoint)

    assert {file["path"] for file in shown["saved_files"]} == {str(path) for path in (changed, gone, other)}
    assert shown["saved_directories"] == [str(folder)]
    assert (changed.read_bytes(), changed.stat().st_ino) == (b"then", inode)
    assert gone.read_bytes() == b"\0" * (1 << 20) + b"end"
    assert gone.stat().st_blocks * 512 < 1 << 20, "holes were filled"
    assert (gone.stat().st_mode, gone.stat().st_mtime_ns) == (0o100640, 1_234_567_890_123_456_789)
    assert gone.samefile(other)
    assert not later.exists()
    (aside,) = folder.parent.glob("files.aside-*")
    assert (aside / "later").read_bytes() == b"new"
    assert any(str(aside) in warning for warning in restored["warnings"])
    assert program.do(f"answer = held[{str(changed)!r}].read()") == "then"
    assert sorted(path.name for path in folder.iterdir()) == ["changed", "deep", "link", "other-name"]


def test_newest_leaves_the_files_as_they_are(
    program: Asked, workload: Workload, ckpt: Ckpt, folder: Path
) -> None:
    saved, other = folder / "saved", folder / "other"
    for path in (saved, other):
        path.write_bytes(b"then")
    held(program, saved, other)
    checkpoint = dump(ckpt, workload, saved)
    for path in (saved, other):
        path.write_bytes(b"much later")
        path.chmod(0o600)

    refused = ckpt("restore", checkpoint, exit_code=32)["error"]["message"]
    assert f"{other}: size" in refused
    assert str(saved) not in refused
    restored = ckpt("restore", checkpoint, "--files", "newest")

    for path in (saved, other):
        assert program.do(f"answer = held[{str(path)!r}].read()") == "much later"
        assert any(str(path) in warning for warning in restored["warnings"])


def test_saved_files_are_refused_where_the_checkpoint_has_none(
    program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    checkpoint = dump(ckpt, workload)
    error = ckpt("restore", checkpoint, "--files", "saved", exit_code=62)["error"]
    assert "without saved files" in error["message"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/proc/self/status", "which the kernel makes up"),
        ("/nowhere/at/all", "there is no such file"),
        ("/dev/null", "neither a regular file"),
        ("/", "is in it"),
    ],
)
def test_paths_that_cannot_be_saved_are_refused_before_anything_is_touched(
    path: str, reason: str, program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    error = ckpt("dump", "--cgroup", workload.cgroup, "--with-files", path, exit_code=2)["error"]
    assert reason in error["message"]
    assert program.do("answer = 1") == 1


class OnXfs:
    """A file on a file system that can clone, and is not the state directory's."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.file = place / "file"
        self.file.write_bytes(os.urandom(8 << 20))

    def clones(self) -> list[Path]:
        return list(self.place.glob(".ckpt-*/saved-*"))


@pytest.fixture
def on_xfs(tmp_path: Path, workload: Workload) -> Iterator[OnXfs]:
    with mounted("xfs", tmp_path) as place:
        yield OnXfs(place)
        workload.kill()


def test_where_the_file_system_can_files_are_cloned_and_the_clones_go_even_after_a_crash(
    on_xfs: OnXfs, program: Asked, workload: Workload, ckpt: Ckpt, traces: Traces
) -> None:
    held(program, on_xfs.file)
    scene = Scene(ckpt, traces)
    scene.remember()
    with scene.stopped_at("written", "dump", "--cgroup", workload.cgroup, "--with-files", on_xfs.file) as run:
        (clone,) = on_xfs.clones()
        assert clone.read_bytes() == on_xfs.file.read_bytes()
        shared = subprocess.run(["filefrag", "-v", clone], check=True, capture_output=True, text=True).stdout
        assert "shared" in shared
        run.send_signal(signal.SIGKILL)
    scene.await_end(run)
    scene.await_nothing_left()
    assert list(on_xfs.place.glob(".ckpt-*")) == []

    checkpoint = dump(ckpt, workload, on_xfs.file)
    then = contents(on_xfs.place)
    on_xfs.file.write_bytes(b"later")
    ckpt("restore", checkpoint)
    assert contents(on_xfs.place) == then


@pytest.fixture
def small(tmp_path: Path, workload: Workload) -> Iterator[Path]:
    """A file system of 64 MiB."""
    with mounted("tmpfs", tmp_path) as place:
        yield place
        workload.kill()


def make_read_only(place: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)


def make_full(place: Path) -> None:
    with (place / "filling").open("wb") as filling:
        space = os.statvfs(place)
        os.posix_fallocate(filling.fileno(), 0, space.f_bavail * space.f_frsize - (1 << 20))


@pytest.mark.parametrize("spoiled", ["read-only", "full"])
def test_a_target_that_is_read_only_or_full_is_refused_before_anything_is_changed(
    spoiled: str, small: Path, program: Asked, workload: Workload, ckpt: Ckpt
) -> None:
    folder = small.with_name("files")
    folder.mkdir()
    elsewhere, big = folder / "elsewhere", small / "big"
    elsewhere.write_bytes(b"then")
    big.write_bytes(os.urandom(4 << 20))
    held(program, elsewhere, big)
    checkpoint = dump(ckpt, workload, folder, big)
    elsewhere.write_bytes(b"later")
    big.write_bytes(os.urandom(4 << 20))
    (folder / "new").write_bytes(b"new")
    (make_full if spoiled == "full" else make_read_only)(small)
    before = contents(folder), contents(small)

    error = ckpt("restore", checkpoint, exit_code=14 if spoiled == "full" else 31)["error"]

    assert ("bytes free" if spoiled == "full" else "Read-only file system") in error["message"]
    assert (contents(folder), contents(small)) == before
    assert workload.pids() == []


@pytest.fixture
def scene(ckpt: Ckpt, traces: Traces) -> Scene:
    return Scene(ckpt, traces)


@pytest.fixture
def changed(program: Asked, workload: Workload, ckpt: Ckpt, folder: Path) -> str:
    """A checkpoint whose saved files are all others now: one that is held, one is gone, one is new."""
    one, two = folder / "a", folder / "b"
    one.write_bytes(b"then a")
    two.write_bytes(b"then b")
    (folder / "c").mkdir()
    (folder / "c/d").write_bytes(b"then d")
    held(program, one)
    checkpoint = dump(ckpt, workload, folder)
    one.write_bytes(b"later a")
    two.unlink()
    shutil.rmtree(folder / "c")
    (folder / "new").write_bytes(b"new")
    return checkpoint


def is_undone(folder: Path, before: dict[str, tuple[int, bytes]]) -> bool:
    return (
        contents(folder) == before
        and not list(folder.parent.glob("files.aside-*"))
        and not (folder / "c").exists()
    )


@pytest.mark.parametrize("phase", ["rewriting", "rewritten", "restored"])
def test_kill_9_while_files_are_written_back_is_undone_at_once(
    phase: str, changed: str, folder: Path, scene: Scene
) -> None:
    before = contents(folder)
    crash = scene.crash("restore", changed, CKPT_FAILPOINT=phase)
    assert crash.status == -signal.SIGKILL, crash.err
    scene.await_nothing_left(alive=())
    assert is_undone(folder, before)
    scene.ckpt("restore", changed)
    assert (folder / "a").read_bytes() == b"then a"


def test_without_a_guardian_recover_takes_the_files_back(changed: str, folder: Path, scene: Scene) -> None:
    before = contents(folder)
    scene.die_without_guardian("rewritten", "restore", changed)
    assert (folder / "a").read_bytes() == b"then a"
    document = scene.ckpt("recover")
    assert document["problems"] == []
    assert is_undone(folder, before)


def test_a_restore_that_fails_takes_the_files_back(
    changed: str, folder: Path, scene: Scene, workload: Workload
) -> None:
    before = contents(folder)
    crash = scene.crash("restore", changed, CKPT_FAILPOINT="restored:SIGTERM")
    assert crash.status == 130, crash.err
    assert is_undone(folder, before)
    assert workload.pids() == []


def test_files_that_a_running_program_writes_to_are_not_written_under_it(
    program: Asked, workload: Workload, ckpt: Ckpt, folder: Path
) -> None:
    path = folder / "file"
    path.write_bytes(b"then")
    held(program, path)
    checkpoint = dump(ckpt, workload, path, stop=False)
    path.write_bytes(b"later")
    error = ckpt("restore", checkpoint, "--pids", "new", exit_code=31)["error"]
    assert f"{path}: another process has it open for writing" in error["message"]
    assert path.read_bytes() == b"later"


def test_a_job_that_runs_keeps_its_files(ckpt: Ckpt, folder: Path) -> None:
    name, path = ckpt.new_job_name(), folder / "file"
    path.write_bytes(b"then")
    ckpt("run", "--detach", "--name", name, "--", "sleep", "1000")
    checkpoint = ckpt("dump", name, "--with-files", folder)["id"]
    path.write_bytes(b"later")
    changed_ns = path.stat().st_ctime_ns
    ckpt("restore", checkpoint, exit_code=62)
    assert (path.read_bytes(), path.stat().st_ctime_ns) == (b"later", changed_ns)
    ckpt("stop", name)
