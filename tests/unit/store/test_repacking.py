"""Space is really freed: packs of which little is needed are written anew, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.backends import CrowdedBackend, Disk, MemoryBackend
from fakes.checkpoints import a_checkpoint, add, read, write
from fakes.values import a_page, touched

from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.errors import CkptError
from ckpt.store.opening import open_local
from ckpt.store.store import Store
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, CheckpointId

CONFIG = StoreConfig(id=digest_of(b""), signatures_required=False, encryption=None)
PAGES = [a_page(number) for number in range(100)]


@pytest.fixture(params=["plain", "encrypted"])
def vault(request: pytest.FixtureRequest) -> Vault:
    return Vault(bytes(32)) if request.param == "encrypted" else Vault()


@pytest.fixture
def disk() -> Disk:
    return Disk()


def opened(disk: Disk, vault: Vault, backend: MemoryBackend | None = None) -> Store:
    return Store(backend or MemoryBackend(disk), CONFIG, config_version=2, vault=vault)


def packs(disk: Disk) -> dict[str, int]:
    return {name: len(content) for name, content in disk.objects.items() if name.startswith("packs/")}


def a_big_one_and_a_small_one(disk: Disk, vault: Vault, small: int = 10) -> tuple[CheckpointId, CheckpointId]:
    """A checkpoint of 100 pages, and one that needs the first few of them and nothing else."""
    big, _ = write(opened(disk, vault), {"pages-1.img": b"".join(PAGES)})
    files = {"pages-1.img": b"".join(PAGES[:small])}
    kept, new = write(opened(disk, vault), files, parent=big, created_ns=2)
    assert new == 0
    return big, kept


def test_a_pack_that_is_mostly_waste_is_written_anew_and_the_space_is_free(disk: Disk, vault: Vault) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault)
    before = packs(disk)
    whole = sum(map(len, disk.objects.values()))
    report = opened(disk, vault).remove((big,))
    assert packs(disk).keys().isdisjoint(before)
    assert sum(packs(disk).values()) < 12 * CHUNK_BYTES
    assert 10 * CHUNK_BYTES <= report.repacked_bytes < 12 * CHUNK_BYTES
    # The documents that were written for it are few bytes.
    assert report.freed_bytes == pytest.approx(whole - sum(map(len, disk.objects.values())), abs=1000)
    assert read(opened(disk, vault), small) == {"pages-1.img": b"".join(PAGES[:10])}
    assert opened(disk, vault).verify(None).problems == ()
    again = opened(disk, vault).remove(())
    assert (again.removed_objects, again.freed_bytes, again.repacked_bytes) == (0, 0, 0)


def test_a_pack_that_is_mostly_needed_stays_as_it_is(disk: Disk, vault: Vault) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault, small=60)
    before = packs(disk)
    report = opened(disk, vault).remove((big,))
    assert packs(disk) == before
    assert report.repacked_bytes == 0
    assert read(opened(disk, vault), small) == {"pages-1.img": b"".join(PAGES[:60])}


def test_a_preview_says_about_what_comes_and_changes_nothing(disk: Disk, vault: Vault) -> None:
    big, _ = a_big_one_and_a_small_one(disk, vault)
    before = dict(disk.objects)
    preview = opened(disk, vault).preview((big,))
    assert disk.objects == before
    report = opened(disk, vault).remove((big,))
    assert preview.freed_bytes == pytest.approx(report.freed_bytes, rel=0.05)
    assert preview.repacked_bytes == pytest.approx(report.repacked_bytes, rel=0.05)


def test_what_is_one_tiny_chunk_is_written_once_and_never_anew(disk: Disk, vault: Vault) -> None:
    """What compresses to less than the salt and the list's length beside it is no waste."""
    kept, _ = write(opened(disk, vault), {"x": b"\1" + bytes(CHUNK_BYTES - 1)})
    before = packs(disk)
    for _ in range(2):
        assert opened(disk, vault).remove(()).repacked_bytes == 0
    assert packs(disk) == before
    assert read(opened(disk, vault), kept) == {"x": b"\1" + bytes(CHUNK_BYTES - 1)}


def test_deltas_are_still_deltas_to_what_they_were(disk: Disk, vault: Vault) -> None:
    base, _ = write(opened(disk, vault), {"x": b"".join(PAGES[:50])})
    changed = [touched(page, 1) for page in PAGES[:50]]
    child, _ = write(opened(disk, vault), {"x": b"".join(changed)}, parent=base, created_ns=2)
    few = b"".join(changed[:6])
    last, new = write(opened(disk, vault), {"x": few}, parent=child, created_ns=3)
    assert new == 0
    report = opened(disk, vault).remove((base, child))
    assert 6 * CHUNK_BYTES < report.repacked_bytes < 8 * CHUNK_BYTES
    assert read(opened(disk, vault), last) == {"x": few}
    assert opened(disk, vault).verify(None).problems == ()
    again = b"".join([touched(changed[0], 2), *changed[1:6]])
    newest, new = write(opened(disk, vault), {"x": again}, parent=last, created_ns=4)
    assert new == CHUNK_BYTES
    assert read(opened(disk, vault), newest) == {"x": again}


def test_what_was_moved_is_found_again_by_the_next_checkpoint(disk: Disk, vault: Vault) -> None:
    big, _ = a_big_one_and_a_small_one(disk, vault)
    opened(disk, vault).remove((big,))
    _, new = write(opened(disk, vault), {"y": b"".join(reversed(PAGES[:10]))}, job="other", created_ns=3)
    assert new == 0


def test_a_damaged_pack_is_not_written_anew_and_stays_to_be_told_of(disk: Disk, vault: Vault) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault)
    [pack] = packs(disk)
    content = bytearray(disk.objects[pack])
    content[60] ^= 1
    disk.objects[pack] = bytes(content)
    report = opened(disk, vault).remove((big,))
    assert report.repacked_bytes == 0
    assert list(packs(disk)) == [pack]
    assert [problem.slug for problem in opened(disk, vault).verify((small,)).problems] == ["corrupt"]


def test_a_reader_that_began_before_finds_what_was_moved(disk: Disk, vault: Vault, tmp_path: Path) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault)
    reader = opened(disk, vault)
    [file] = reader.load(small).checkpoint.files
    reader.contents(small)
    opened(disk, vault).remove((big,))
    reader.fetch(small, file, str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == b"".join(PAGES[:10])


def test_a_stream_that_began_before_finds_what_was_moved(disk: Disk, vault: Vault) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault)
    reader = opened(disk, vault)
    [file] = reader.load(small).checkpoint.files
    reader.contents(small)
    opened(disk, vault).remove((big,))
    assert b"".join(reader.stream(small, file)) == b"".join(PAGES[:10])


def test_verify_tells_nothing_wrong_of_what_is_moved_meanwhile(disk: Disk, vault: Vault) -> None:
    big, _ = a_big_one_and_a_small_one(disk, vault)
    crowded = CrowdedBackend(disk, "packs/", lambda: opened(disk, vault).remove((big,)))
    assert opened(disk, vault, crowded).verify(None).problems == ()


def test_two_that_sweep_at_once_both_succeed(disk: Disk, vault: Vault) -> None:
    """The other one removes what this one was about to look at, or to move."""
    for beginning in ("placements/", "packs/", "manifests/"):
        big, small = a_big_one_and_a_small_one(disk, vault)
        other, _ = write(opened(disk, vault), {"z": PAGES[0]}, created_ns=9)
        crowded = CrowdedBackend(disk, beginning, lambda gone=(big, other): opened(disk, vault).remove(gone))
        opened(disk, vault, crowded).remove(())
        assert read(opened(disk, vault), small) == {"pages-1.img": b"".join(PAGES[:10])}
        assert opened(disk, vault).verify(None).problems == ()
        opened(disk, vault).remove(tuple(kept.id for kept in opened(disk, vault).list()))
        assert packs(disk) == {}


def test_a_writer_on_a_parent_whose_packs_are_moved_meanwhile_commits_what_can_be_read(
    disk: Disk, vault: Vault
) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault)
    content = b"".join([touched(PAGES[0], 1), *PAGES[1:10], PAGES[50]])
    with opened(disk, vault).writer(small) as writer:
        stored = add(writer, {"x": content})
        report = opened(disk, vault).remove((big,))
        assert report.repacked_bytes > 0
        found = writer.commit(a_checkpoint(*stored, created_ns=3))
    assert read(opened(disk, vault), found) == {"x": content}
    assert opened(disk, vault).verify(None).problems == ()
    opened(disk, vault).remove(())
    assert opened(disk, vault).remove(()).removed_objects == 0
    assert read(opened(disk, vault), found) == {"x": content}
    # The pages that both share may stand twice now: in what was moved, and in what the writer relied on.
    assert sum(packs(disk).values()) < 24 * CHUNK_BYTES


def test_a_checkpoint_that_cannot_be_read_holds_up_a_removal_of_others(disk: Disk, vault: Vault) -> None:
    big, small = a_big_one_and_a_small_one(disk, vault)
    name = next(name for name in disk.objects if name.startswith(f"placements/{small}"))
    disk.objects[name] = disk.objects[name][:-1]
    before = dict(disk.objects)
    with pytest.raises(CkptError) as caught:
        opened(disk, vault).remove((big,))
    assert small[:12] in caught.value.advice
    assert disk.objects == before
    opened(disk, vault).remove((big, small))
    assert packs(disk) == {}


def test_the_disk_really_has_more_room_afterwards(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    big, _ = write(store, {"pages-1.img": b"".join(map(a_page, range(3000)))})
    small, _ = write(store, {"pages-1.img": b"".join(PAGES)}, parent=big, created_ns=2)

    def space() -> int:
        return sum(path.lstat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())

    before = space()
    report = store.remove((big,))
    assert before - space() == pytest.approx(report.freed_bytes, abs=32_768)
    assert space() < 200 * CHUNK_BYTES
    assert read(open_local(str(tmp_path / "store")), small) == {"pages-1.img": b"".join(PAGES)}
