"""Files are put together on the target as the source has them, and only what differs is sent."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness.moved import listing

from ckpt.errors import HostMismatch, ObjectCorrupt, PeerFailed, Usage
from ckpt.host.operations import JournaledOperations
from ckpt.host.saved_files_back import HostFileWriter
from ckpt.host.shipping import blocks, shipped
from ckpt.host.shipping.blocks import BLOCK_BYTES, PIECE_BYTES, FileDigests, table_of
from ckpt.host.shipping.received import ReceivedFiles
from ckpt.host.shipping.shipped import ShippedFiles
from ckpt.model.checkpoint import SavedFile
from ckpt.model.shipping import Shipment
from ckpt.units import Pid

LONG_AGO_NS = 1_600_000_000 * 10**9


class Pair:
    """A source and a target on one machine: what is below `here` on the source is below `there` on the target."""

    def __init__(self, folder: Path) -> None:
        self.here, self.there = folder / "here", folder / "there"
        for place in (self.here, self.there):
            place.mkdir()
        self._directory = str(folder / "received")
        self.target = ReceivedFiles(self._directory)
        self.sent: list[tuple[str, int, int]] = []

    def ship(self, *paths: Path) -> ShippedFiles:
        return ShippedFiles([str(path) for path in paths or (self.here,)], "/var/lib/ckpt")

    def ask(self, files: Sequence[tuple[int, str]]) -> Iterator[FileDigests | None]:
        for number, path in files:
            yield self.target.offer(number, self._there(path))

    def blocks(self, number: int, path: str, size: int, first_block: int, content: memoryview) -> None:
        self.sent.append((os.path.basename(path), first_block, len(content)))
        self.target.blocks(number, self._there(path), size, first_block, bytes(content))

    def arrived(self, shipment: Shipment) -> dict[str, bytes]:
        """The files that the target has put together, by names."""
        return {
            os.path.basename(file.path): Path(place).read_bytes()
            for file, place in self.target.contents(shipment.files)
        }

    def reopen(self) -> None:
        self.target = ReceivedFiles(self._directory)

    def sent_bytes(self) -> int:
        count = sum(length for _, _, length in self.sent)
        self.sent.clear()
        return count

    def moved(self, file: SavedFile) -> SavedFile:
        """The file with the path that it has on the target."""
        return replace(file, path=self._there(file.path))

    def _there(self, path: str) -> str:
        return path.replace(str(self.here), str(self.there), 1)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files count as old enough that a change shows in their times."""
    monkeypatch.setattr("ckpt.host.shipping.shipped._SETTLED_NS", -1)
    monkeypatch.setattr("ckpt.host.shipping.received._SETTLED_NS", -1)


def change(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_only_the_blocks_that_the_target_lacks_are_sent_and_only_those_that_changed_under_the_freeze(
    pair: Pair,
) -> None:
    content = os.urandom(3 * PIECE_BYTES + 1000)
    (pair.here / "big").write_bytes(content)
    (pair.there / "big").write_bytes(content)
    change(pair.there / "big", 5 * BLOCK_BYTES + 7, b"other")
    before = (pair.there / "big").read_bytes()
    files = pair.ship()

    files.first_pass(pair, pair.ask, ())
    assert pair.sent_bytes() == BLOCK_BYTES
    change(pair.here / "big", PIECE_BYTES - 2, b"over two")
    shipment = files.last_pass(pair)

    assert pair.sent_bytes() == 2 * BLOCK_BYTES
    assert pair.arrived(shipment) == {"big": (pair.here / "big").read_bytes()}
    assert (pair.there / "big").read_bytes() == before


@pytest.mark.usefixtures("settled")
def test_what_has_not_changed_is_neither_read_again_nor_copied(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (pair.here, pair.there):
        (place / "same").write_bytes(b"content")
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    monkeypatch.setattr(shipped, "pieces_of", None)
    shipment = files.last_pass(pair)
    assert pair.sent == []
    ((_, place),) = pair.target.contents([pair.moved(file) for file in shipment.files])
    assert place == str(pair.there / "same")


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as area:
        yield area


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_written_through_memory_is_read_again_whatever_its_times_say(pair: Pair) -> None:
    path = pair.here / "mapped"
    path.write_bytes(b"then")
    files = pair.ship()
    with mapped(path) as area:
        area[0:1] = b"T"
        files.first_pass(pair, pair.ask, (Pid(os.getpid()),))
        times = path.stat().st_mtime_ns, path.stat().st_ctime_ns
        area[0:4] = b"late"
        assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == times
        assert pair.arrived(files.last_pass(pair)) == {"mapped": b"late"}


@pytest.mark.parametrize(("then", "now"), [(200_000, 70_000), (70_000, 200_000), (70_000, 0), (0, 70_000)])
def test_a_file_may_grow_and_shrink_between_passes(then: int, now: int, pair: Pair) -> None:
    path = pair.here / "file"
    path.write_bytes(os.urandom(then))
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    path.write_bytes(path.read_bytes()[:now].ljust(now, b"x"))
    shipment = files.last_pass(pair)
    assert pair.arrived(shipment) == {"file": path.read_bytes()}
    pair.reopen()
    assert pair.arrived(shipment) == {"file": path.read_bytes()}


def test_holes_stay_holes_and_cost_nothing(pair: Pair) -> None:
    path = pair.here / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"data")
    (pair.there / "sparse").write_bytes(b"x" * PIECE_BYTES)
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    pair.sent_bytes()
    began = time.monotonic()
    shipment = files.last_pass(pair)
    assert pair.sent_bytes() == 0
    ((_, place),) = pair.target.contents(shipment.files)
    assert time.monotonic() - began < 10
    assert os.stat(place).st_size == 1 << 34
    assert os.stat(place).st_blocks * 512 <= PIECE_BYTES


def test_names_of_one_file_are_sent_once_and_a_renamed_file_is_a_change_of_the_former(pair: Pair) -> None:
    (pair.here / "a").write_bytes(os.urandom(PIECE_BYTES))
    os.link(pair.here / "a", pair.here / "b")
    (pair.here / "log").write_bytes(b"old")
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    assert pair.sent_bytes() == PIECE_BYTES + 3
    content = bytearray((pair.here / "a").read_bytes())
    content[0] ^= 1
    (pair.here / "new").write_bytes(content)
    os.rename(pair.here / "new", pair.here / "a")
    os.unlink(pair.here / "b")
    os.rename(pair.here / "log", pair.here / "log.1")
    (pair.here / "log").write_bytes(b"new")
    shipment = files.last_pass(pair)
    assert pair.sent_bytes() == BLOCK_BYTES + 3
    assert pair.arrived(shipment) == {"a": bytes(content), "log": b"new", "log.1": b"old"}


@pytest.mark.usefixtures("settled")
def test_a_file_that_has_got_another_name_is_kept_from_what_takes_its_place(pair: Pair) -> None:
    for place in (pair.here, pair.there):
        (place / "log").write_bytes(b"old")
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    os.rename(pair.here / "log", pair.here / "log.1")
    (pair.here / "log").write_bytes(b"new")
    shipment = files.last_pass(pair)
    places = dict(pair.target.contents([pair.moved(file) for file in shipment.files]))
    assert {Path(file.path).name: Path(place).read_bytes() for file, place in places.items()} == {
        "log": b"new",
        "log.1": b"old",
    }
    assert str(pair.there / "log") not in places.values()


def test_what_was_put_together_is_written_back_also_where_the_file_itself_is_the_content(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (pair.here, pair.there):
        for name in ("same", "touched", "other"):
            (place / name).write_bytes(b"content")
            os.utime(place / name, ns=(LONG_AGO_NS, LONG_AGO_NS))
    (pair.here / "other").write_bytes(b"CONTENT")
    os.utime(pair.here / "touched", ns=(5, 5))
    monkeypatch.setattr("ckpt.host.shipping.received._SETTLED_NS", -1)
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    shipment = [pair.moved(file) for file in files.last_pass(pair).files]
    before = listing(pair.there)

    operation = JournaledOperations(str(tmp_path / "state")).begin("a test")
    written = HostFileWriter().begin(operation)
    written.write("web", pair.target.contents(shipment), ())
    now = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in pair.there.iterdir()}
    assert now["touched"] == (b"content", 5)
    assert now["same"] == (b"content", LONG_AGO_NS)
    assert now["other"][0] == b"CONTENT"
    written.undo()
    assert listing(pair.there) == before


def test_a_transfer_that_was_cut_off_goes_on_with_what_has_come(pair: Pair) -> None:
    path = pair.here / "big"
    path.write_bytes(os.urandom(3 * PIECE_BYTES))

    class CutError(Exception):
        pass

    class Cut(Pair):
        def blocks(self, number: int, path: str, size: int, first_block: int, content: memoryview) -> None:
            if first_block:
                raise CutError
            pair.blocks(number, path, size, first_block, content)

    cut = Cut.__new__(Cut)
    with pytest.raises(CutError):
        pair.ship().first_pass(cut, pair.ask, ())
    pair.sent_bytes()
    pair.reopen()
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    assert pair.sent_bytes() == 2 * PIECE_BYTES
    assert pair.arrived(files.last_pass(pair)) == {"big": path.read_bytes()}


@pytest.mark.usefixtures("settled")
def test_another_process_gets_the_same_contents_from_what_is_on_the_disk(pair: Pair) -> None:
    for place in (pair.here, pair.there):
        (place / "same").write_bytes(b"same")
        (place / "other").write_bytes(str(place).encode())
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    shipment = [pair.moved(file) for file in files.last_pass(pair).files]
    pair.target.settle()
    places = pair.target.contents(shipment)
    pair.reopen()
    assert pair.target.contents(shipment) == places
    (pair.there / "same").write_bytes(b"SAME")
    pair.reopen()
    with pytest.raises(PeerFailed, match="never sent"):
        pair.target.contents(shipment)
    pair.target.remove()
    assert [path.name for path in pair.there.parent.iterdir() if path.name == "received"] == []


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_on_the_target_is_noticed(pair: Pair) -> None:
    for place in (pair.here, pair.there):
        (place / "file").write_bytes(b"content")
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    shipment = [pair.moved(file) for file in files.last_pass(pair).files]
    os.utime(pair.there / "file", ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert len(pair.target.contents(shipment)) == 1
    (pair.there / "file").write_bytes(b"changed")
    with pytest.raises(HostMismatch, match="changed by another process"):
        pair.target.contents(shipment)
    (pair.here / "file").write_bytes(b"CONTENT")
    with pytest.raises(HostMismatch, match="changed by another process"):
        files.last_pass(pair)


def test_a_content_that_is_not_the_sources_is_refused(pair: Pair) -> None:
    (pair.here / "file").write_bytes(os.urandom(100_000))
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    shipment = files.last_pass(pair)
    pair.target.blocks(0, str(pair.there / "file"), 100_000, 0, bytes(BLOCK_BYTES))
    with pytest.raises(ObjectCorrupt, match="is not what the source has"):
        pair.target.contents(shipment.files)


@pytest.mark.parametrize(
    "sent",
    [
        (-1, "/a", 10, 0, 10),
        (1 << 18, "/a", 10, 0, 10),
        (0, "a", 10, 0, 10),
        (0, "/a/../b", 10, 0, 10),
        (0, "/a", 10, 0, 11),
        (0, "/a", -1, 0, 0),
        (0, "/a", (16 << 40) + 1, 0, 0),
        (0, "/a", 10, -1, 0),
        (0, "/a", 10, 1, 0),
        (0, "/a", 1 << 30, 0, 100),
        (0, "/a", 1 << 30, 0, PIECE_BYTES + BLOCK_BYTES),
    ],
)
def test_nonsense_from_the_wire_is_refused(sent: tuple[int, str, int, int, int], pair: Pair) -> None:
    number, path, size, first_block, length = sent
    with pytest.raises(PeerFailed, match="sent nonsense"):
        pair.target.blocks(number, path, size, first_block, bytes(length))


def test_what_the_target_says_of_its_files_is_checked(pair: Pair) -> None:
    (pair.here / "file").write_bytes(b"content")
    for answer in (FileDigests(1 << 50, b""), FileDigests(100, b"x"), FileDigests(-1, b"")):
        with pytest.raises(PeerFailed, match="bytes of digests"):
            pair.ship().first_pass(pair, lambda files, answer=answer: [answer] * len(files), ())


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path), os.mkdir])
def test_only_a_regular_file_at_its_very_path_is_taken_for_a_former_content(make: object, pair: Pair) -> None:
    make(pair.there / "x")  # type: ignore[operator]
    assert pair.target.offer(0, str(pair.there / "x")) is None
    assert pair.target.offer(1, str(pair.there / "x/y")) is None


def test_what_lies_beyond_the_offered_digests_is_sent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("shipped", "received"):
        monkeypatch.setattr(f"ckpt.host.shipping.{module}.OFFERED_BLOCKS_MAX", 2)
    content = os.urandom(5 * BLOCK_BYTES)
    (pair.here / "file").write_bytes(content)
    (pair.there / "file").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    files = pair.ship()
    files.first_pass(pair, pair.ask, ())
    assert pair.sent_bytes() == 3 * BLOCK_BYTES
    assert pair.arrived(files.last_pass(pair)) == {"file": content}


def test_a_database_takes_its_log_along_and_a_journal_that_is_gone_may_not_be_found(pair: Pair) -> None:
    database = pair.here / "facts.db"
    database.write_bytes(b"SQLite format 3\0" + bytes(100))
    (pair.here / "facts.db-wal").write_bytes(b"log")
    (pair.here / "unrelated").write_bytes(b"")
    files = pair.ship(database)
    files.first_pass(pair, pair.ask, ())
    shipment = files.last_pass(pair)
    assert pair.arrived(shipment).keys() == {"facts.db", "facts.db-wal"}
    assert shipment.absent == (f"{database}-journal", f"{database}-shm")


def test_paths_that_cannot_be_sent_are_refused_by_the_option_that_names_them() -> None:
    with pytest.raises(Usage, match="--ship /proc/version: it is on proc"):
        ShippedFiles(["/proc/version"], "/var/lib/ckpt")


def test_the_digests_of_a_file_are_those_of_all_its_bytes_also_where_holes_lie_between(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for at in (0, 9 * PIECE_BYTES - 3, 20 * PIECE_BYTES):
            file.seek(at)
            file.write(os.urandom(100_000))
    content = path.read_bytes()
    with path.open("rb") as file:
        found = table_of(file.fileno())
        pieces = b"".join(bytes(piece.content) for piece in blocks.pieces_of(file.fileno(), len(content)))
    assert pieces == content
    expected = blocks.block_digests(memoryview(content))
    assert found.get(0, blocks.blocks_of(len(content))) == expected
