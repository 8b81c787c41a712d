"""Files keep their identity without help from the kernel at run time: pinned, placed, or written into."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from harness.filesystems import mounted
from harness.moved import listing, moved, record_of, replace_by_copy
from harness.waiting import await_condition

from ckpt.errors import NoSpace, OsRefused
from ckpt.host.inodes import calls, ledger, swapping
from ckpt.host.inodes.contents import Attributes, SavedContents
from ckpt.host.inodes.goal import Goal, goal_path
from ckpt.host.inodes.ledger import Ledger, read_ledger
from ckpt.host.inodes.pinbook import Pins
from ckpt.host.inodes.pins import PinnedFiles
from ckpt.host.inodes.places import Place, Refused, held_alone
from ckpt.host.inodes.placing import PlacedFiles
from ckpt.host.inspection.digests import DigestCache, Wanted
from ckpt.model.inodes import Identity, InodeRecord
from ckpt.units import CheckpointId, DeviceNumber, InodeNumber, Nanoseconds

pytestmark = pytest.mark.system

FIRST: Final = CheckpointId("1" * 64)
SECOND: Final = CheckpointId("2" * 64)
# A version 2 access list: owner, user 1234, group, mask, others.
ACL: Final = struct.pack(
    "<I" + "HHI" * 5,
    2,
    1,
    6,
    0xFFFFFFFF,
    2,
    4,
    1234,
    4,
    4,
    0xFFFFFFFF,
    0x10,
    4,
    0xFFFFFFFF,
    0x20,
    0,
    0xFFFFFFFF,
)

NOISE: Final = """
import itertools, os, sys
for i in itertools.count():
    name = f"{sys.argv[1]}/noise-{i % 100}"
    os.close(os.open(name, os.O_CREAT))
    if i % 3:
        os.unlink(name)
"""


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with mounted("ext4", tmp_path) as place:
        (place / "data").mkdir()
        yield place / "data"


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger"))


@pytest.fixture
def state(tmp_path: Path) -> str:
    (tmp_path / "state").mkdir()
    return str(tmp_path / "state")


@pytest.fixture
def placed(state: str, book: Ledger) -> PlacedFiles:
    return PlacedFiles(state, book)


def make(*paths: Path, content: bytes = b"content\n") -> list[InodeRecord]:
    """Files, recorded, and then replaced by copies that were all made before the first was replaced."""
    for path in paths:
        path.write_bytes(content)
    records = [record_of(path) for path in paths]
    copies = [Path(shutil.copy2(path, f"{path}.copy")) for path in paths]
    for copy, path in zip(copies, paths, strict=True):
        copy.rename(path)
    return records


def goal_of(place: Path) -> int:
    with closing(Goal(goal_path(os.stat(place).st_dev))) as goal:
        return goal.read()


def is_as_recorded(record: InodeRecord) -> bool:
    status = os.lstat(record.path)
    return (status.st_dev, status.st_ino) == (record.device, record.inode)


# --------------------------------------------------------------------------------------------- placing


def test_placed_copies_have_the_recorded_numbers_and_all_that_the_files_had(
    ext4: Path, placed: PlacedFiles
) -> None:
    files = [ext4 / f"file-{number}" for number in range(50)]
    for number, file in enumerate(files):
        file.write_bytes(b"%d\n" % number)
    with open(files[0], "r+b") as stream:
        stream.seek(8 << 20)
        stream.write(b"after a hole")
    os.setxattr(files[1], "user.colour", b"blue")
    os.setxattr(files[1], "system.posix_acl_access", ACL)
    os.chown(files[2], 1234, 4321)
    files[2].chmod(0o4710)
    records = [record_of(file) for file in files]
    # All copies are made before a name changes: they take each other's numbers in no order.
    copies = [file.with_name(f"copy-{file.name}") for file in files]
    subprocess.run(["cp", "--archive", "--", *files, ext4.parent], check=True)
    for file in files:
        (ext4.parent / file.name).rename(file)
    assert not any(copy.exists() for copy in copies)
    before = listing(ext4)
    assert [placed.try_keep(moved(record)) for record in records] == [None] * len(records)
    assert all(map(is_as_recorded, records))
    placed.settle()
    after = listing(ext4)
    assert after.keys() == before.keys()
    assert all(after[name][1:] == before[name][1:] for name in after)
    assert os.stat(files[0]).st_blocks * 512 < 1 << 20
    assert goal_of(ext4) == 0


def test_undo_gives_every_name_its_former_file_and_another_process_can_do_it(
    ext4: Path, state: str, book: Ledger, placed: PlacedFiles
) -> None:
    records = make(ext4 / "a", ext4 / "b")
    before = listing(ext4)
    assert [placed.try_keep(moved(record)) for record in records] == [None, None]
    placed.undo()
    placed.undo()
    assert listing(ext4) == before
    again = PlacedFiles(state, book)
    assert [again.try_keep(moved(record)) for record in records] == [None, None]
    for _ in range(2):
        ledger.take_back(read_ledger(book.path))
        assert listing(ext4) == before


@pytest.mark.parametrize(
    "step", [(Place, "make_unnamed"), (swapping, "exchange_names"), (swapping, "compare_names")]
)
def test_what_a_process_did_that_was_killed_is_taken_back_by_another(
    ext4: Path, state: str, book: Ledger, step: tuple[object, str]
) -> None:
    (record,) = make(ext4 / "a")
    before = listing(ext4)
    child = os.fork()
    if child == 0:
        setattr(*step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        PlacedFiles(state, book).try_keep(moved(record))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    ledger.take_back(read_ledger(book.path))
    assert listing(ext4) == before
    assert goal_of(ext4) == 0


def test_beside_a_process_that_makes_files_nothing_is_claimed_that_is_not_so(
    ext4: Path, placed: PlacedFiles
) -> None:
    # Lower numbers for the other process: it takes the lowest that is free, but for the time of a try.
    lower = [ext4 / f"lower-{number}" for number in range(200)]
    for path in lower:
        path.touch()
    records = make(*(ext4 / f"file-{number}" for number in range(50)))
    for path in lower:
        path.unlink()
    noise = subprocess.Popen([sys.executable, "-c", NOISE, str(ext4.parent)])
    try:
        await_condition(lambda: list(ext4.parent.glob("noise-*")), "the noise to begin")
        reasons = [placed.try_keep(moved(record)) for record in records]
    finally:
        noise.kill()
        noise.wait()
    assert [reason is None for reason in reasons] == [is_as_recorded(record) for record in records]
    assert None in reasons
    assert all("number" in reason for reason in reasons if reason is not None)


@pytest.mark.parametrize("order", [1, -1])
def test_files_that_took_each_others_numbers_get_them_back(
    ext4: Path, placed: PlacedFiles, order: int
) -> None:
    files = [ext4 / name for name in ("a", "b", "c", "d")]
    for file in files:
        file.write_bytes(file.name.encode())
    records = [record_of(file) for file in files]
    for file in files:
        # Each copy takes the number that the one before it has set free.
        replace_by_copy(file, content=b"newer " + file.name.encode())
    assert {os.stat(file).st_ino for file in files} & {record.inode for record in records}
    before = listing(ext4)
    placed.prepare(map(moved, records))
    files_moved = [moved(record) for record in records]
    assert [placed.try_keep(file) for file in files_moved[::order]] == [None] * 4
    assert all(map(is_as_recorded, records))
    assert [file.read_bytes() for file in files] == [b"newer a", b"newer b", b"newer c", b"newer d"]
    placed.undo()
    assert listing(ext4) == before
    placed.prepare(map(moved, records))
    assert [placed.try_keep(moved(record)) for record in records] == [None] * 4
    placed.settle()
    assert listing(ext4).keys() == before.keys()
    assert all(map(is_as_recorded, records))


def test_hard_links_of_one_directory_stay_one_file(ext4: Path, placed: PlacedFiles) -> None:
    (ext4 / "a").write_bytes(b"x")
    record = record_of(ext4 / "a")
    replace_by_copy(ext4 / "a")
    os.link(ext4 / "a", ext4 / "b")
    before = listing(ext4)
    assert placed.try_keep(moved(record)) is None
    assert os.path.samefile(ext4 / "a", ext4 / "b")
    assert os.stat(ext4 / "b").st_ino == record.inode
    placed.undo()
    assert listing(ext4) == before


def test_an_empty_directory_is_placed_and_one_that_is_in_use_is_not(ext4: Path, placed: PlacedFiles) -> None:
    folder = ext4 / "folder"
    folder.mkdir(mode=0o750)
    record = record_of(folder)
    folder.rename(ext4 / "former")
    folder.mkdir(mode=0o705)
    (ext4 / "former").rmdir()
    (folder / "file").touch()
    assert placed.try_keep(moved(record)) == "a directory that holds files cannot be made anew"
    (folder / "file").unlink()
    with subprocess.Popen(["sleep", "60"], cwd=folder) as sleeper:
        assert placed.try_keep(moved(record)) == f"process {sleeper.pid} is in it"
        sleeper.kill()
    before = listing(ext4)
    assert placed.try_keep(moved(record)) is None
    assert is_as_recorded(record)
    assert folder.stat().st_mode & 0o7777 == 0o705
    placed.undo()
    assert listing(ext4) == before


def _with_number(record: InodeRecord, number: int) -> InodeRecord:
    return replace(record, inode=InodeNumber(number))


@contextmanager
def _open_elsewhere(path: Path) -> Iterator[None]:
    with open(path, "rb"), subprocess.Popen(["tail", "-f", path], stdout=subprocess.DEVNULL) as reader:
        await_condition(lambda: _has_open(reader.pid, path), "tail to open the file")
        yield
        reader.kill()


def _has_open(pid: int, path: Path) -> bool:
    links = (f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd"))
    return any(os.path.exists(link) and os.path.samefile(link, path) for link in links)


def test_what_cannot_be_placed_is_left_as_it_is_with_a_reason(ext4: Path, placed: PlacedFiles) -> None:
    (ext4 / "b").write_bytes(b"b")
    (ext4.parent / "link").symlink_to(ext4)
    os.mkfifo(ext4 / "fifo")
    (record,) = make(ext4 / "a")
    last = os.statvfs(ext4).f_files
    other = replace(record, device=DeviceNumber(os.makedev(7, 4711)))
    refused = {
        "belongs to another file": _with_number(record, os.stat(ext4 / "b").st_ino),
        "number 2 is not one of 12": _with_number(record, 2),
        "number 11 is not one of 12": _with_number(record, 11),
        f"number {last + 1} is not one": _with_number(record, last + 1),
        f"number {2**64 - 1} is not one": _with_number(record, 2**64 - 1),
        "on device 7:4711": other,
        "with another number, seen": replace(record, seen=Identity(device=other.device, inode=record.inode)),
        "not absolute and plain": replace(record, path=f"{ext4}/../data/a"),
        "through a symbolic link": replace(record, path=f"{ext4.parent}/link/a"),
        "a fifo is not placed": replace(record_of(ext4 / "fifo"), inode=record.inode),
    }
    before = listing(ext4.parent)
    for words, lie in refused.items():
        reason = placed.try_keep(moved(lie))
        assert reason is not None, words
        assert words in reason or "device 7:4711" in reason
        assert listing(ext4.parent) == before
    with _open_elsewhere(ext4 / "a"):
        assert placed.try_keep(moved(record)) == "another process has it open"
    os.link(ext4 / "a", ext4.parent / "elsewhere")
    reason = placed.try_keep(moved(record))
    assert reason is not None
    assert "1 more name" in reason
    os.unlink(ext4.parent / "elsewhere")
    stale = moved(record)
    (ext4 / "a").write_bytes(b"written since")
    assert placed.try_keep(stale) == "it has changed since it was compared"
    assert placed.try_keep(moved(record)) is None


def test_a_file_system_that_is_full_or_read_only_is_found_out_before_anything_changes(
    ext4: Path, placed: PlacedFiles
) -> None:
    filler = ext4 / "filler"
    with open(filler, "wb") as stream:
        (record,) = make(ext4 / "a", content=os.urandom(4 << 20))
        free = os.statvfs(ext4).f_bavail * os.statvfs(ext4).f_frsize
        os.posix_fallocate(stream.fileno(), 0, free - (1 << 20))
    before = listing(ext4)
    assert placed.try_keep(moved(record)) == os.strerror(errno.ENOSPC)
    assert listing(ext4) == before
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", ext4.parent], check=True)
    assert placed.try_keep(moved(record)) == os.strerror(errno.EROFS)
    subprocess.run(["mount", "-o", "remount,rw", ext4.parent], check=True)
    assert placed.try_keep(moved(record)) is None


def test_whoever_opens_a_file_while_it_changes_is_noticed_and_waits(ext4: Path) -> None:
    (ext4 / "a").write_bytes(b"x")
    opened = threading.Event()

    def open_it() -> None:
        with open(ext4 / "a", "rb"):
            opened.set()

    with open(ext4 / "a", "rb") as ours, ExitStack() as held:
        lease = held.enter_context(held_alone(ours.fileno()))
        lease.check()
        thread = threading.Thread(target=open_it)
        thread.start()
        await_condition(lambda: not _holds(lease.check), "the other one to come")
        assert not opened.is_set()
        held.close()
        thread.join()
        assert opened.is_set()


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except Refused:
        return False
    return True


# ------------------------------------------------------------------------------------------------ pins


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay"])
def test_a_pinned_inode_comes_back_with_what_the_newest_file_holds(
    kind: str, tmp_path: Path, state: str, book: Ledger
) -> None:
    with mounted(kind, tmp_path) as place:
        file = place / "file"
        file.write_bytes(b"as it was at the dump")
        record = record_of(file, filesystem=kind)
        pins = Pins(state)
        assert pins.pin(FIRST, [record]) == ()
        replace_by_copy(file, content=b"newer, and longer than what was there at the dump")
        file.chmod(0o640)
        os.utime(file, ns=(1, 1_700_000_000_123_456_789))
        before = listing(place)
        rung = PinnedFiles(state, book)
        assert rung.try_keep(moved(record)) is None
        assert is_as_recorded(record)
        assert listing(place)["file"][1:] == before["file"][1:]
        rung.undo()
        assert listing(place) == before
        assert rung.try_keep(moved(record)) is None
        ledger.take_back(read_ledger(book.path))
        assert listing(place) == before
        again = PinnedFiles(state, book)
        assert again.try_keep(moved(record)) is None
        again.settle()
        assert is_as_recorded(record)
        pins.release([FIRST])
        assert [path.name for path in place.iterdir() if path.name != "lost+found"] == ["file"]
        assert os.stat(file).st_nlink == 1


def test_pins_beside_the_state_directory_lie_in_it(tmp_path: Path, state: str, book: Ledger) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "file"
    file.write_bytes(b"x")
    record = record_of(file)
    pins = Pins(state)
    assert pins.pin(FIRST, [record]) == ()
    assert os.listdir(f"{state}/pins/files") == [str(record.inode)]
    replace_by_copy(file)
    rung = PinnedFiles(state, book)
    assert rung.try_keep(moved(record)) is None
    assert is_as_recorded(record)
    rung.settle()
    pins.release([FIRST])
    assert not os.path.exists(f"{state}/pins/files")
    assert os.listdir(tmp_path / "data") == ["file"]


def test_a_pinned_file_that_was_renamed_is_not_written_to(ext4: Path, state: str, book: Ledger) -> None:
    log = ext4 / "app.log"
    log.write_bytes(b"old lines\n")
    record = record_of(log)
    Pins(state).pin(FIRST, [record])
    log.rename(ext4 / "app.log.1")
    log.write_bytes(b"new lines\n")
    before = listing(ext4)
    reason = PinnedFiles(state, book).try_keep(moved(record))
    assert reason == "the file that had its number has another name now"
    assert listing(ext4) == before


def test_one_pin_serves_all_checkpoints_and_goes_with_the_last(ext4: Path, state: str) -> None:
    file = ext4 / "file"
    file.write_bytes(b"x")
    pins = Pins(state)
    for checkpoint in (FIRST, SECOND, FIRST):
        assert pins.pin(checkpoint, [record_of(file)], store="/one") == ()
        assert os.stat(file).st_nlink == 2
    pins.release([FIRST])
    pins.sweep("/another", [])
    pins.sweep("/one", [SECOND])
    assert os.stat(file).st_nlink == 2
    pins.sweep("/one", [])
    assert os.stat(file).st_nlink == 1
    assert not list(ext4.parent.glob(".ckpt-*"))


def test_the_pin_of_the_file_that_is_there_now_is_no_other_name_of_it(
    ext4: Path, state: str, book: Ledger
) -> None:
    file = ext4 / "file"
    file.write_bytes(b"x")
    first = record_of(file)
    pins = Pins(state)
    pins.pin(FIRST, [first])
    replace_by_copy(file)
    second = record_of(file)
    pins.pin(SECOND, [second])
    for record in (first, second, first):
        rung = PinnedFiles(state, book)
        assert rung.try_keep(moved(record)) is None
        rung.settle()
        assert is_as_recorded(record)
    pins.release([FIRST, SECOND])


def test_a_pin_is_made_only_where_nobody_else_can_get_at_it(ext4: Path, state: str) -> None:
    file = ext4 / "file"
    file.write_bytes(b"x")
    pins = Pins(state)
    pins.pin(FIRST, [record_of(file)])
    (directory,) = ext4.parent.glob(".ckpt-pins-*")
    directory.chmod(0o755)
    file.rename(ext4 / "other")
    (unpinned,) = pins.pin(FIRST, [record_of(ext4 / "other")])
    assert "not for us alone" in unpinned.reason
    directory.rename(ext4 / "real")
    directory.symlink_to(ext4 / "real")
    (unpinned,) = pins.pin(FIRST, [record_of(ext4 / "other")])
    assert unpinned.path == str(ext4 / "other")


def test_an_immutable_file_and_one_of_a_lower_layer_are_not_pinned(
    ext4: Path, tmp_path: Path, state: str
) -> None:
    file = ext4 / "file"
    file.write_bytes(b"x")
    record = record_of(file)
    with open(file, "rb") as stream:
        calls.set_inode_flags(stream.fileno(), 0x10)
        try:
            (unpinned,) = Pins(state).pin(FIRST, [record])
        finally:
            calls.set_inode_flags(stream.fileno(), 0)
    assert unpinned.reason == "no hard link may be made to it"
    with mounted("overlay", tmp_path) as place:
        lower = tmp_path / "tmpfs" / "lower" / "file"
        lower.write_bytes(b"x")
        subprocess.run(["mount", "-o", "remount", place], check=True)
        record = record_of(place / "file", filesystem="overlay", hold="3 O_RDONLY")
        (unpinned,) = Pins(state).pin(FIRST, [record])
        assert "copy it up" in unpinned.reason
        assert not (tmp_path / "tmpfs" / "upper" / "file").exists()


def test_a_pin_costs_no_second_reading_of_the_file(ext4: Path, state: str) -> None:
    file = ext4 / "file"
    file.write_bytes(b"x")
    os.utime(file, ns=(1, 1_700_000_000_000_000_000))
    record = record_of(file)
    Pins(state).pin(FIRST, [record])
    status = os.stat(file)
    assert status.st_ctime_ns != record.ctime_ns
    wanted = Wanted(
        path=str(file),
        device=status.st_dev,
        inode=status.st_ino,
        generation=record.generation or 0,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )
    cache = DigestCache(f"{state}/digests.sqlite")
    assert cache._recall([wanted]) == {wanted.identity: record.digest}
    # The mtime tells of a change that the same tick of the clock would hide in the ctime.
    assert cache._recall([replace(wanted, mtime_ns=status.st_ctime_ns)]) == {}


# -------------------------------------------------------------------------------------------- contents


def saved(path: Path) -> Attributes:
    status = os.stat(path)
    return Attributes(
        mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=Nanoseconds(status.st_mtime_ns)
    )


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_saved_content_is_written_into_the_file_that_is_there(
    kind: str, tmp_path: Path, book: Ledger
) -> None:
    with mounted(kind, tmp_path) as place:
        file = place / "file"
        file.write_bytes(os.urandom(1 << 20) + bytes(4 << 20) + b"the end")
        copy = tmp_path / "saved"
        copy.write_bytes(file.read_bytes())
        attributes = saved(file)
        inode = file.stat().st_ino
        file.write_bytes(os.urandom(6 << 20))
        before = listing(place)
        contents = SavedContents(book)
        with open(copy, "rb") as source:
            contents.write_into(str(file), source.fileno(), attributes)
            assert file.read_bytes() == copy.read_bytes()
            assert (file.stat().st_ino, file.stat().st_mtime_ns) == (inode, attributes.mtime_ns)
            contents.undo()
            contents.undo()
            assert listing(place) == before
            contents.write_into(str(file), source.fileno(), attributes)
            ledger.take_back(read_ledger(book.path))
            assert listing(place) == before
            contents.write_into(str(file), source.fileno(), attributes)
        contents.settle()
        assert listing(place).keys() == before.keys()
        assert file.read_bytes() == copy.read_bytes()
        assert file.stat().st_blocks * 512 < 3 << 20


def test_a_saved_file_that_is_gone_is_made_anew_and_the_undo_removes_it(
    ext4: Path, tmp_path: Path, book: Ledger
) -> None:
    (tmp_path / "saved").write_bytes(b"x")
    contents = SavedContents(book)
    attributes = Attributes(mode=0o104755, uid=1, gid=2, mtime_ns=Nanoseconds(5))
    with open(tmp_path / "saved", "rb") as source:
        contents.write_into(f"{ext4}/file", source.fileno(), attributes)
        status = os.stat(ext4 / "file")
        assert (status.st_mode, status.st_uid, status.st_gid) == (0o100755, 1, 2)
        contents.undo()
        assert listing(ext4) == {}
        (ext4.parent / "link").symlink_to(ext4)
        with pytest.raises(OsRefused, match="symbolic link"):
            contents.write_into(f"{ext4.parent}/link/file", source.fileno(), attributes)
        with pytest.raises(OsRefused, match="not absolute and plain"):
            contents.write_into(f"{ext4}/../file", source.fileno(), attributes)
    assert listing(ext4) == {}


def test_what_cannot_hold_a_saved_content_is_refused_before_anything_changes(
    ext4: Path, tmp_path: Path, book: Ledger
) -> None:
    file = ext4 / "file"
    file.write_bytes(os.urandom(1 << 20))
    (tmp_path / "saved").write_bytes(os.urandom(8 << 20))
    contents = SavedContents(book)
    attributes = saved(file)
    with open(tmp_path / "saved", "rb") as source:

        def refused(words: str, kind: type[Exception] = OsRefused, **changes: int) -> None:
            before = listing(ext4)
            with pytest.raises(kind, match=words):
                contents.write_into(str(file), source.fileno(), replace(attributes, **changes))
            assert listing(ext4) == before

        refused("belonged to uid 77", uid=77)
        with open(file, "ab"):
            refused("open for writing")
        with open(ext4 / "filler", "wb") as stream:
            free = os.statvfs(ext4).f_bavail * os.statvfs(ext4).f_frsize
            os.posix_fallocate(stream.fileno(), 0, free - (4 << 20))
        refused("No space left", NoSpace)
        (ext4 / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", ext4.parent], check=True)
        refused("Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", ext4.parent], check=True)
        file.unlink()
        os.mkfifo(file)
        refused("something that is no file")
