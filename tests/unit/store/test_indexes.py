"""Indexes are hints: what they lack costs space, what they say wrong costs nothing else."""

from __future__ import annotations

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import add, read, write
from fakes.values import a_page

from ckpt.codec.frame import Compression, Kind, frame
from ckpt.codec.hooks import encode_index
from ckpt.codec.objects import digest_of
from ckpt.codec.records import StoreConfig
from ckpt.store import layout, similar
from ckpt.store.indexing import read_index
from ckpt.store.similar import open_indexes
from ckpt.store.store import Store
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, CheckpointId, Digest

CONFIG = StoreConfig(id=digest_of(b""), signatures_required=False, encryption=None)
PAGES = [a_page(number) for number in range(30)]
FILES = {"x": b"".join(PAGES)}


@pytest.fixture
def disk() -> Disk:
    return Disk()


def opened(disk: Disk) -> Store:
    return Store(MemoryBackend(disk), CONFIG, config_version=2)


def names(disk: Disk, folder: str = "indexes") -> list[str]:
    return sorted(name for name in disk.objects if name.startswith(f"{folder}/"))


def put_index(disk: Disk, entries: dict[int, Digest]) -> str:
    packs = tuple(sorted(set(entries.values())))
    plain = encode_index({mark: packs.index(name) for mark, name in entries.items()}, packs)
    name = layout.index(digest_of(plain))
    disk.objects[name] = frame(Kind.INDEX, Compression.NONE, len(plain), plain)
    return name


def marks() -> list[int]:
    return [Vault().mark(bytes.fromhex(digest_of(page))) for page in PAGES]


def test_an_index_names_every_whole_chunk_of_a_small_checkpoint_and_its_pack(disk: Disk) -> None:
    write(opened(disk), FILES)
    [name], [pack] = names(disk), names(disk, "packs")
    found = read_index(MemoryBackend(disk), name)
    assert set(found) == set(marks())
    assert {layout.pack(where) for where in found.values()} == {pack}


@pytest.mark.parametrize("damage", ["gone", "flipped head", "flipped mark", "flipped place", "cut", "empty"])
def test_a_damaged_index_costs_space_and_nothing_else(disk: Disk, damage: str) -> None:
    first, _ = write(opened(disk), FILES)
    [name] = names(disk)
    content = bytearray(disk.objects[name])
    match damage:
        case "gone":
            del disk.objects[name]
        case "cut":
            disk.objects[name] = bytes(content[:-3])
        case "empty":
            disk.objects[name] = b""
        case _:
            content[{"flipped head": 33, "flipped mark": 32 + 8 + 32 + 9, "flipped place": -2}[damage]] ^= 1
            disk.objects[name] = bytes(content)
    problems = opened(disk).verify(None).problems
    assert [problem.subject for problem in problems] == ([] if damage == "gone" else [name])
    second, _ = write(opened(disk), FILES | {"y": PAGES[0]}, created_ns=2)
    for checkpoint in (first, second):
        assert read(opened(disk), checkpoint)["x"] == FILES["x"]
    opened(disk).remove((first,))
    opened(disk).remove((second,))
    assert names(disk, "packs") == []


def test_an_index_that_lies_costs_space_and_nothing_else(disk: Disk) -> None:
    """It names a pack that is not there, one that has other chunks, and one that is another object."""
    other, _ = write(opened(disk), {"z": a_page(99)})
    [pack] = names(disk, "packs")
    wrong = [Digest("ab" * 32), Digest(pack[-64:]), Digest(other)]
    for target in wrong:
        put_index(disk, dict.fromkeys(marks(), target))
    checkpoint, new = write(opened(disk), FILES, created_ns=2)
    assert new == len(FILES["x"])
    assert read(opened(disk), checkpoint) == FILES


def test_an_index_whose_content_is_not_that_of_its_name_is_told_of(disk: Disk) -> None:
    write(opened(disk), FILES)
    [name] = names(disk)
    other = put_index(disk, {5: Digest("ab" * 32)})
    disk.objects[name] = disk.objects.pop(other)
    [problem] = opened(disk).verify(None).problems
    assert problem.message.endswith("the digest of its content is another than its name.")


def test_hints_of_packs_that_are_gone_go_with_them(disk: Disk) -> None:
    first, _ = write(opened(disk), FILES)
    second, _ = write(opened(disk), {"y": a_page(50)}, created_ns=2)
    opened(disk).remove((first,))
    packs = set(names(disk, "packs"))
    for name in names(disk):
        assert {layout.pack(pack) for pack in read_index(MemoryBackend(disk), name).values()} <= packs
    opened(disk).remove((second,))
    assert names(disk) == []


def test_hints_that_a_crash_left_of_packs_that_are_gone_hide_nothing_for_ever(disk: Disk) -> None:
    """After the next sweep what is stored again is found again."""
    for number in range(5):  # whichever is read first
        put_index(disk, dict.fromkeys(marks(), Digest(f"{number:064x}")))
    write(opened(disk), FILES)
    opened(disk).remove(())
    packs = set(names(disk, "packs"))
    for name in names(disk):
        assert {layout.pack(pack) for pack in read_index(MemoryBackend(disk), name).values()} <= packs
    _, new = write(opened(disk), FILES, created_ns=2, job="other")
    assert new == 0


@pytest.mark.parametrize("count", [1, 3, 700, 5000])
def test_a_mark_is_found_on_disk_as_in_memory(
    disk: Disk, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marks that are evenly spread, and some that are not at all."""
    spread = [Vault().mark(bytes.fromhex(digest_of(str(number).encode()))) for number in range(count)]
    packs = [Digest(f"{number:064x}") for number in range(7)]
    for all_marks in (spread, list(range(count)), [(1 << 64) - 1 - number for number in range(count)]):
        fresh = Disk()
        expected = {mark: packs[mark % 7] for mark in all_marks}
        put_index(fresh, expected)
        monkeypatch.setattr(similar, "_INDEX_IN_MEMORY", 0)
        [index] = open_indexes(MemoryBackend(fresh))
        assert all(index.find(mark) == pack for mark, pack in list(expected.items())[:300])
        for absent in (0, 1, (1 << 64) - 1, 1 << 63, all_marks[0] ^ 3):
            assert index.find(absent) == expected.get(absent)


def test_chunks_of_a_writer_that_gave_up_are_not_found(disk: Disk) -> None:
    with opened(disk).writer() as writer:
        add(writer, FILES)
        writer._builder.finish()
    checkpoint, new = write(opened(disk), FILES)
    assert new == 30 * CHUNK_BYTES
    assert read(opened(disk), CheckpointId(checkpoint)) == FILES
