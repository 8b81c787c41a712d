"""Digests: taken only of the file that was frozen, remembered only when that is safe."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.host.inspection import digests
from ckpt.host.inspection.digests import DigestCache, Wanted
from ckpt.model.inodes import DigestState
from ckpt.units import ByteCount

LIMIT = ByteCount(1 << 20)


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(str(tmp_path / "state" / "digests.sqlite"))


def wanted(path: Path) -> Wanted:
    status = path.stat()
    return Wanted(
        path=str(path),
        device=status.st_dev,
        inode=status.st_ino,
        generation=7,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def one(cache: DigestCache, file: Wanted, limit: ByteCount = LIMIT) -> tuple[str | None, DigestState]:
    (result,) = cache.take([file], limit)
    return result


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if files had been changed long ago."""
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**18))


def test_an_unchanged_file_has_its_digest(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert one(cache, wanted(path)) == (sha256(b"content"), DigestState.STABLE)


def test_a_file_of_proc_that_has_no_end_is_as_empty_as_it_says(cache: DigestCache) -> None:
    pagemap = Path(f"/proc/{os.getpid()}/pagemap")
    assert one(cache, wanted(pagemap)) == (sha256(b""), DigestState.STABLE)


def test_many_files_keep_their_order(cache: DigestCache, tmp_path: Path) -> None:
    files = []
    for number in range(50):
        path = tmp_path / str(number)
        path.write_bytes(str(number).encode())
        files.append(wanted(path))
    found = [digest for digest, _ in cache.take(files, LIMIT)]
    assert found == [sha256(str(number).encode()) for number in range(50)]


def test_a_file_that_is_another_by_now_is_changed(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = wanted(path)
    for other in (
        replace(file, size=8),
        replace(file, mtime_ns=1),
        replace(file, ctime_ns=1),
        replace(file, inode=1),
        replace(file, device=1),
        replace(file, path=str(tmp_path / "gone")),
    ):
        assert one(cache, other) == (None, DigestState.CHANGED)


def test_a_file_above_the_limit_is_not_read(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert one(cache, wanted(path), ByteCount(6)) == (None, DigestState.OVER_LIMIT)
    assert one(cache, wanted(path), ByteCount(7))[1] is DigestState.STABLE


def test_a_symbolic_link_in_its_place_is_not_followed(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = wanted(path)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert one(cache, file)[0] is None


@pytest.mark.usefixtures("settled")
def test_a_remembered_file_is_not_read_again(
    cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    first = one(cache, wanted(path))
    monkeypatch.setattr(digests, "digest_of", None)  # reading it would fail
    later = DigestCache(str(tmp_path / "state" / "digests.sqlite"))
    assert one(later, wanted(path)) == first


@pytest.mark.usefixtures("settled")
def test_a_remembered_digest_does_not_hide_a_change(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = wanted(path)
    one(cache, file)
    path.write_bytes(b"CONTENT")
    assert one(cache, file) == (None, DigestState.CHANGED)
    assert one(cache, wanted(path)) == (sha256(b"CONTENT"), DigestState.STABLE)


@pytest.mark.usefixtures("settled")
def test_the_same_number_of_another_generation_is_another_file(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    file = wanted(path)
    one(cache, file)
    forged = replace(file, generation=8)
    assert cache._recall([forged]) == {}


def test_a_file_that_was_just_changed_is_not_remembered(cache: DigestCache, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert time.time_ns() - path.stat().st_ctime_ns < 2 * 10**9
    one(cache, wanted(path))
    assert cache._recall([wanted(path)]) == {}


@pytest.mark.usefixtures("settled")
def test_the_memory_is_bounded(cache: DigestCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_ENTRIES_MAX", 10)
    files = []
    for number in range(40):
        path = tmp_path / str(number)
        path.write_bytes(b"x")
        files.append(wanted(path))
        cache.take([files[-1]], LIMIT)
    assert len(cache._recall(files)) <= 11


def test_a_damaged_memory_costs_time_only(cache: DigestCache, tmp_path: Path) -> None:
    place = tmp_path / "state" / "digests.sqlite"
    place.parent.mkdir()
    place.write_bytes(b"this is no database" * 1000)
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert one(cache, wanted(path)) == (sha256(b"content"), DigestState.STABLE)


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"a file where the directory belongs")
    path = tmp_path / "file"
    path.write_bytes(b"content")
    cache = DigestCache(str(tmp_path / "state" / "digests.sqlite"))
    assert one(cache, wanted(path)) == (sha256(b"content"), DigestState.STABLE)
