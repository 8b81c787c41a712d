"""A store of version 1: read as it is, raised by the first write, and refused from then on by who knows it alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import read, write
from fakes.old_store import an_old_store
from fakes.trust import OwnKey
from fakes.values import a_page, touched

from ckpt.codec.frame import Kind
from ckpt.codec.objects import CONFIG
from ckpt.errors import FormatUnknown, ObjectCorrupt, ObjectMissing, Untrusted
from ckpt.store.compress import from_object, to_object
from ckpt.store.opening import Keys, open_local, open_store
from ckpt.store.store import Store
from ckpt.store.transferring import transfer
from ckpt.units import CheckpointId

Contents = dict[CheckpointId, dict[str, bytes]]


@pytest.fixture
def old() -> tuple[Disk, Contents]:
    return an_old_store()


def opened(disk: Disk, trust: OwnKey | None = None) -> Store:
    return open_store(MemoryBackend(disk), create=False, keys=Keys(trust=trust))


def version(disk: Disk) -> int:
    return CONFIG.decode_any(from_object(Kind.CONFIG, "x", disk.objects["config"]), "x")[0]


def test_reading_changes_nothing(old: tuple[Disk, Contents], tmp_path: Path) -> None:
    disk, contents = old
    before = dict(disk.objects)
    store = opened(disk)
    for checkpoint, files in contents.items():
        assert read(store, checkpoint) == files
        for file in store.load(checkpoint).checkpoint.files:
            store.fetch(checkpoint, file, str(tmp_path / "target"))
            assert (tmp_path / "target").read_bytes() == files[file.name]
    assert [kept.id for kept in store.list()] == list(contents)
    assert store.resolve("old") == list(contents)[1]
    report = store.verify(None)
    assert report.problems == ()
    assert report.checked_chunks == 6
    assert store.statistics().checkpoints == 2
    store.preview((next(iter(contents)),))
    assert disk.objects == before


@pytest.mark.parametrize("how", ["write", "remove", "sign", "upgrade"])
def test_the_first_write_raises_it_and_keeps_what_is_there(old: tuple[Disk, Contents], how: str) -> None:
    disk, contents = old
    [first, second] = contents
    identity = opened(disk)._config.id
    store = opened(disk, OwnKey())
    match how:
        case "write":
            write(store, {"x": a_page(1)}, parent=first, created_ns=9)
        case "remove":
            store.remove((first,))
        case "sign":
            store.sign(second)
        case _:
            store.upgrade()
    assert version(disk) == 2
    assert opened(disk)._config.id == identity
    assert opened(disk).verify(None).problems == ()
    assert read(opened(disk), second) == contents[second]


def test_what_was_written_before_is_unsigned_until_somebody_vouches_for_it(
    old: tuple[Disk, Contents],
) -> None:
    disk, contents = old
    [first, _] = contents
    trust = OwnKey()
    with pytest.raises(Untrusted, match="nobody has signed it"):
        opened(disk, trust).check_signed(first)
    opened(disk, trust).sign(first)
    opened(disk, trust).check_signed(first)


def test_old_and_new_checkpoints_live_side_by_side_and_share_nothing(old: tuple[Disk, Contents]) -> None:
    disk, contents = old
    [first, second] = contents
    files = {"pages-1.img": contents[first]["pages-1.img"]}
    child, new = write(opened(disk), files, parent=first, created_ns=9)
    assert new == 3 * 4096
    grandchild, _ = write(opened(disk), {"pages-1.img": touched(a_page(50), 1)}, parent=child, created_ns=10)
    opened(disk).remove((first,))
    assert read(opened(disk), second) == contents[second]
    assert read(opened(disk), child) == files
    opened(disk).remove((second, child))
    assert [name for name in disk.objects if name.startswith("chunks/")] == []
    assert read(opened(disk), grandchild) == {"pages-1.img": touched(a_page(50), 1)}
    assert opened(disk).remove(()).removed_objects == 0


def test_a_removal_takes_only_the_chunks_that_no_other_needs(old: tuple[Disk, Contents]) -> None:
    disk, contents = old
    [first, second] = contents
    opened(disk).remove((first,))
    assert read(opened(disk), second) == contents[second]
    assert opened(disk).verify(None).problems == ()
    assert len([name for name in disk.objects if name.startswith("chunks/")]) == 2


@pytest.mark.parametrize("damage", ["gone", "flipped", "cut", "swapped"])
def test_damage_to_an_old_chunk_is_found_at_every_read(old: tuple[Disk, Contents], damage: str) -> None:
    disk, contents = old
    [first, _] = contents
    [one, two, *_] = sorted(name for name in disk.objects if name.startswith("chunks/"))
    match damage:
        case "gone":
            del disk.objects[one]
        case "cut":
            disk.objects[one] = disk.objects[one][:-1]
        case "swapped":
            disk.objects[one] = disk.objects[two]
        case _:
            content = bytearray(disk.objects[one])
            content[-1] ^= 1
            disk.objects[one] = bytes(content)
    problems = opened(disk).verify(None).problems
    assert one[-64:] in {problem.subject for problem in problems}
    whole = 0
    for checkpoint, files in contents.items():
        try:
            assert read(opened(disk), checkpoint) == files
            whole += 1
        except (ObjectCorrupt, ObjectMissing):
            continue
    assert whole < len(contents)
    assert first in {kept.id for kept in opened(disk).list()}


def test_an_old_checkpoint_cannot_be_pushed_and_says_what_to_do(old: tuple[Disk, Contents]) -> None:
    disk, contents = old
    [first, _] = contents
    target = open_store(MemoryBackend(), create=True)
    with pytest.raises(FormatUnknown) as caught:
        transfer(opened(disk), target, first)
    assert "version 1" in caught.value.message
    assert "dump it again" in caught.value.advice
    assert target.list() == ()


def test_a_store_of_a_newer_version_is_refused(old: tuple[Disk, Contents]) -> None:
    disk, _ = old
    plain = from_object(Kind.CONFIG, "x", disk.objects["config"]).replace(b"version\x01", b"version\x03")
    disk.objects["config"] = to_object(Kind.CONFIG, plain)
    with pytest.raises(FormatUnknown, match="version 3, and this ckpt reads version 2"):
        opened(disk)


def test_the_reference_store_of_version_1_is_raised_and_kept(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[3] / "images/v1/head", tmp_path / "store")
    os.chmod(tmp_path / "store", 0o700)
    store = open_local(str(tmp_path / "store"))
    before = {kept.id: read(store, kept.id) for kept in store.list()}
    assert before
    new, _ = write(store, {"x": a_page(1)}, parent=next(iter(before)), created_ns=1)
    again = open_local(str(tmp_path / "store"))
    assert {kept.id: read(again, kept.id) for kept in again.list()} == before | {new: {"x": a_page(1)}}
    assert again.verify(None).problems == ()
