"""What has come of a migration: rounds, what a broken one left, image sets with parents, and hostile senders."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pytest

from ckpt.errors import NoSpace, ObjectCorrupt, OsRefused
from ckpt.host.criu.page_maps import MapEntry, Where, write_map
from ckpt.host.received import space as space_module
from ckpt.host.received.images import ReceivedImages
from ckpt.model.pages import PageRun
from ckpt.units import PAGE_BYTES, Pid

from .chain import Reader

ROOT = Pid(4711)
SPACE = f"{ROOT}/pagemap-7"
MAP = "pagemap-7.img"


def page(number: int, version: int = 0) -> bytes:
    return f"page {number} version {version} ".encode().ljust(PAGE_BYTES, b".")


def send(images: ReceivedImages, numbers: Iterable[int], version: int = 0, space: str = SPACE) -> None:
    ordered = sorted(numbers)
    content = b"".join(page(number, version) for number in ordered)
    images.pages(space, [PageRun(number, 1) for number in ordered], content)


def send_map(images: ReceivedImages, numbers: Iterable[int], folder: Path, name: str = MAP) -> None:
    """The page map that CRIU would have written of these pages."""
    path = folder / f"sent-{name}"
    write_map(path, 3 if name == MAP else 4, (MapEntry(number, 1, Where.HERE) for number in sorted(numbers)))
    images.write_file(ROOT, name, 0o600, 0, path.read_bytes())


def laid_out(images: ReceivedImages, folder: Path, *names: str) -> Path:
    directory = folder / f"image-set-{len(list(folder.iterdir()))}"
    directory.mkdir()
    images.lay_out(ROOT, str(directory), names or (MAP,))
    return directory


def here(images: ReceivedImages) -> dict[tuple[str, int], bytes]:
    """The digest of each page that is said to be here."""
    found: dict[tuple[str, int], bytes] = {}
    for space, runs, digests in images.known():
        numbers = [number for first, count in runs for number in range(first, first + count)]
        assert len(digests) == 32 * len(numbers)
        for at, number in enumerate(numbers):
            assert (space, number) not in found
            found[space, number] = digests[32 * at : 32 * at + 32]
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "received"


@pytest.fixture
def images(place: Path) -> ReceivedImages:
    return ReceivedImages(str(place))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels_max", [2, 24])
def test_an_image_set_has_the_last_content_of_every_page_whenever_it_came(
    seed: int, levels_max: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space_module, "LEVELS_MAX", levels_max)
    draw = random.Random(seed)
    images = ReceivedImages(str(place))
    now: dict[int, int] = {}
    for version in range(6):
        for _ in range(3):
            # Not in order within a round: two processes that share memory.
            low = draw.randrange(300)
            some = draw.sample(range(low, low + 100), 40)
            send(images, some, version)
            now |= dict.fromkeys(some, version)
        images.end_round()
        if draw.random() < 0.4:
            images = ReceivedImages(str(place))
    wanted = draw.sample(sorted(now), 100)
    send_map(images, wanted, tmp_path)
    images.settle()
    directory = laid_out(ReceivedImages(str(place)), tmp_path)
    assert Reader(directory, MAP).read_all() == {number: page(number, now[number]) for number in wanted}
    assert here(images) == {(SPACE, n): sha256(page(n, v)).digest() for n, v in now.items()}


def test_an_image_set_is_laid_out_as_often_as_it_is_wanted(
    images: ReceivedImages, tmp_path: Path, place: Path
) -> None:
    send(images, range(4))
    images.end_round()
    send(images, range(2, 9), 1)
    send_map(images, (1, 2, 8), tmp_path)
    images.write_file(ROOT, "core-7.img", 0o640, 0, b"abc")
    images.write_file(ROOT, "core-7.img", 0o640, 3, b"def")
    images.settle()
    for opened in (images, ReceivedImages(str(place))):
        directory = laid_out(opened, tmp_path, "core-7.img", MAP)
        assert (directory / "core-7.img").read_bytes() == b"abcdef"
        assert (directory / "core-7.img").stat().st_mode & 0o777 == 0o640
        assert not os.path.isabs(os.readlink(directory / "parent"))
        assert Reader(directory, MAP).read_all() == {1: page(1), 2: page(2, 1), 8: page(8, 1)}


def test_a_space_goes_down_only_as_far_as_it_has_levels(images: ReceivedImages, tmp_path: Path) -> None:
    other = f"{ROOT}/pagemap-shmem-5"
    send(images, range(8))
    send(images, range(4), space=other)
    for number in (20, 30):
        images.end_round()
        send(images, [number])
    send_map(images, (1, 20, 30), tmp_path)
    send_map(images, (2, 3), tmp_path, "pagemap-shmem-5.img")
    directory = laid_out(images, tmp_path, MAP, "pagemap-shmem-5.img")
    assert Reader(directory, "pagemap-shmem-5.img").read_all() == {2: page(2), 3: page(3)}
    assert Reader(directory, MAP).read_all() == {1: page(1), 20: page(20), 30: page(30)}
    assert (directory / "parent/pagemap-shmem-5.img").exists()
    assert not (directory / "parent/parent/pagemap-shmem-5.img").exists()
    assert (directory / "parent/parent/parent" / MAP).exists()


def test_a_page_map_without_pages_needs_no_parent(images: ReceivedImages, tmp_path: Path) -> None:
    send_map(images, (), tmp_path)
    directory = laid_out(images, tmp_path)
    assert Reader(directory, MAP).read_all() == {}
    assert (directory / "pages-3.img").stat().st_size == 0
    assert not (directory / "parent").exists()


@pytest.mark.parametrize("sent", [(), (5, 7)])
def test_pages_that_never_came_are_named(
    sent: tuple[int, ...], images: ReceivedImages, tmp_path: Path
) -> None:
    if sent:
        send(images, sent)
    send_map(images, (5, 6, 7, 8), tmp_path)
    first = 6 if sent else 5
    with pytest.raises(ObjectCorrupt, match=f"{4 - len(sent)} of its 4 pages .* page {first:#x}"):
        laid_out(images, tmp_path)


def test_a_file_that_never_came_is_named(images: ReceivedImages, tmp_path: Path) -> None:
    with pytest.raises(ObjectCorrupt, match=r"core-7\.img has not come"):
        laid_out(images, tmp_path, "core-7.img")


@pytest.mark.parametrize(
    "entries",
    [
        [MapEntry(1, 1, Where.PARENT)],
        [MapEntry(1, 1, Where(0))],
        [MapEntry(1, 0, Where.HERE)],
        [MapEntry(1, 2, Where.HERE), MapEntry(2, 1, Where.HERE)],
        [MapEntry(5, 1, Where.HERE), MapEntry(2, 1, Where.HERE)],
        [MapEntry(1 << 51, 1, Where.HERE)],
    ],
)
def test_a_page_map_that_misleads_criu_is_refused(
    entries: list[MapEntry], images: ReceivedImages, tmp_path: Path
) -> None:
    send(images, range(8))
    write_map(tmp_path / "sent", 3, entries)
    images.write_file(ROOT, MAP, 0o600, 0, (tmp_path / "sent").read_bytes())
    with pytest.raises(ObjectCorrupt):
        laid_out(images, tmp_path)


def test_a_process_that_is_killed_in_a_round_loses_nothing_that_it_had_taken(place: Path) -> None:
    program = (
        "import sys, os\n"
        "from ckpt.host.received.images import ReceivedImages\n"
        "images = ReceivedImages(sys.argv[1])\n"
        "images.pages(sys.argv[2], [(10, 2)], bytes(8192))\n"
        "images.end_round()\n"
        "images.pages(sys.argv[2], [(4, 1), (11, 2)], b'a' * 12288)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(place), SPACE], check=False)
    assert done.returncode == -signal.SIGKILL
    images = ReceivedImages(str(place))
    zero, full = sha256(bytes(4096)).digest(), sha256(b"a" * 4096).digest()
    assert here(images) == {(SPACE, 10): zero, (SPACE, 4): full, (SPACE, 11): full, (SPACE, 12): full}
    send(images, [3, 12, 13], 1)
    assert here(images)[SPACE, 12] == sha256(page(12, 1)).digest()
    assert len(here(images)) == 6


@pytest.mark.parametrize("tail", [b"\1" * 7, bytes(64), b"\xff" * 32])
def test_what_a_crash_of_the_host_left_half_written_is_as_if_it_had_not_come(
    tail: bytes, images: ReceivedImages, place: Path, tmp_path: Path
) -> None:
    send(images, range(4))
    (runs,) = place.rglob("*.runs")
    with runs.open("ab") as file:
        file.write(tail)
    # The disk never had the last pages: they are there, with another content.
    (pages,) = place.rglob("*.pages")
    os.truncate(pages, 3 * PAGE_BYTES)
    images = ReceivedImages(str(place))
    assert here(images)[SPACE, 3] == sha256(bytes(PAGE_BYTES)).digest()
    send(images, (3, 4), 1)
    send_map(images, range(5), tmp_path)
    found = Reader(laid_out(images, tmp_path), MAP).read_all()
    assert found == {0: page(0), 1: page(1), 2: page(2), 3: page(3, 1), 4: page(4, 1)}


@pytest.mark.parametrize(
    "space",
    [
        "pagemap-7",
        "../pagemap-7",
        "1/../pagemap-7",
        "1/pagemap-7\n",
        "1/pagemap-",
        "0/pagemap-1",
        "1/pagemap-shmem-",
        "1/pagemap-x",
        f"1/pagemap-{'9' * 21}",
        f"{'9' * 11}/pagemap-1",
        "1/pagemap-٣",
    ],
)
def test_a_space_that_cannot_be_is_refused(space: str, images: ReceivedImages, place: Path) -> None:
    with pytest.raises(ObjectCorrupt):
        images.pages(space, [PageRun(1, 1)], page(1))
    assert not list((place / "spaces").iterdir())


@pytest.mark.parametrize(
    ("runs", "size"),
    [
        ([(1, 1)], PAGE_BYTES - 1),
        ([(1, 1)], 2 * PAGE_BYTES),
        ([(1, 3)], 2 * PAGE_BYTES),
        ([], PAGE_BYTES),
        ([(1 << 44, 1)], PAGE_BYTES),
        ([(-5, 1)], PAGE_BYTES),
        ([(2, 1), (1, 1)], 2 * PAGE_BYTES),
        ([(2, 1), (2, 1)], 2 * PAGE_BYTES),
    ],
)
def test_pages_that_cannot_be_are_refused(
    runs: list[PageRun], size: int, images: ReceivedImages, place: Path
) -> None:
    with pytest.raises(ObjectCorrupt):
        images.pages(SPACE, runs, bytes(size))
    assert not list((place / "spaces").iterdir())


@pytest.mark.parametrize(
    "sent",
    [
        (1, "../inventory.img", 0o600, 0),
        (1, "", 0o600, 0),
        (1, "..", 0o600, 0),
        (1, "a\0b", 0o600, 0),
        (1, "x" * 256, 0o600, 0),
        (1, "parent", 0o600, 0),
        (1, "pages-1.img", 0o600, 0),
        (-1, "core-1.img", 0o600, 0),
        (1 << 31, "core-1.img", 0o600, 0),
        (1, "core-1.img", 0o100600, 0),
        (1, "core-1.img", -1, 0),
        (1, "core-1.img", 0o600, -1),
        (1, "core-1.img", 0o600, 1 << 40),
    ],
)
def test_a_file_that_cannot_be_is_refused(
    sent: tuple[Pid, str, int, int], images: ReceivedImages, place: Path
) -> None:
    with pytest.raises(ObjectCorrupt):
        images.write_file(*sent, b"x")
    assert not list((place / "files").iterdir())


def test_names_of_an_image_set_that_are_paths_are_refused(images: ReceivedImages, tmp_path: Path) -> None:
    for names in (("../0/carried-0",), ("parent",), ("core-7.img", "core-7.img")):
        images.write_file(ROOT, "core-7.img", 0o600, 0, b"x")
        with pytest.raises(ObjectCorrupt):
            laid_out(images, tmp_path, *names)


def test_a_file_that_comes_again_is_begun_anew_and_what_was_laid_out_stays(
    images: ReceivedImages, tmp_path: Path, place: Path
) -> None:
    images.write_file(ROOT, "core-7.img", 0o600, 0, b"longer")
    directory = laid_out(images, tmp_path, "core-7.img")
    images.write_file(ROOT, "core-7.img", 0o600, 0, b"new")
    images.write_file(Pid(0), "carried-0", 0o600, 0, b"")
    assert (place / f"files/{ROOT}/core-7.img").read_bytes() == b"new"
    assert (directory / "core-7.img").read_bytes() == b"longer"
    assert images.received_bytes == 9


def test_a_full_disk_is_said_and_what_had_come_stays(
    images: ReceivedImages, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(images, range(4))
    real = os.pwritev

    def full(fd: int, sources: list[memoryview], offset: int) -> int:
        if offset >= 5 * PAGE_BYTES:
            raise OSError(28, "No space left on device")
        return real(fd, [sources[0][:PAGE_BYTES]], offset)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(NoSpace):
        images.pages(SPACE, [PageRun(2, 6)], bytes(6 * PAGE_BYTES))
    monkeypatch.undo()
    for opened in (images, ReceivedImages(str(place))):
        assert sorted(number for _, number in here(opened)) == [0, 1, 2, 3]
        send(opened, range(8), 1)
        assert here(opened)[SPACE, 7] == sha256(page(7, 1)).digest()


def test_what_could_not_be_written_out_in_the_thread_is_said_at_the_end(
    images: ReceivedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    send(images, range(4))
    monkeypatch.setattr(os, "fsync", broken)
    images.end_round()
    for _ in range(2):
        with pytest.raises(OsRefused):
            images.settle()
        # The kernel would say it only once.
        monkeypatch.undo()


def test_removing_leaves_nothing_and_is_safe_to_repeat(images: ReceivedImages, place: Path) -> None:
    send(images, range(4))
    images.end_round()
    images.write_file(ROOT, "core-7.img", 0o600, 0, b"x")
    images.remove()
    assert not place.exists()
    images.remove()
