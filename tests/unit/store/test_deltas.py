"""Changed pages as deltas to those before: bounded in depth, readable for ever, never made of what is damaged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import read, write
from fakes.values import a_page, a_plain_page, touched

from ckpt.codec.frame import HEADER_BYTES, SALT_BYTES
from ckpt.codec.limits import DELTAS_MAX
from ckpt.codec.objects import digest_of
from ckpt.codec.pack import BlobKind
from ckpt.codec.placement import Placement
from ckpt.codec.records import StoreConfig
from ckpt.store.packs import Packs
from ckpt.store.store import Store
from ckpt.store.vault import Vault
from ckpt.units import CHUNK_BYTES, CheckpointId

CONFIG = StoreConfig(id=digest_of(b""), signatures_required=False, encryption=None)
PACK_START = HEADER_BYTES + SALT_BYTES


@pytest.fixture
def disk() -> Disk:
    return Disk()


def opened(disk: Disk) -> Store:
    """The store as another process sees it: it remembers nothing."""
    return Store(MemoryBackend(disk), CONFIG, config_version=2)


def placement(disk: Disk, checkpoint: CheckpointId) -> Placement:
    return opened(disk)._objects.placement_of(checkpoint)


def delta_count(disk: Disk, found: Placement) -> int:
    packs = Packs(MemoryBackend(disk), Vault())
    return sum(
        blob.chunks for ref in found.packs for blob in packs.list_of(ref).blobs if blob.kind is BlobKind.DELTA
    )


def pack_names(disk: Disk) -> list[str]:
    return sorted(name for name in disk.objects if name.startswith("packs/"))


def forget_indexes(disk: Disk) -> None:
    for name in [name for name in disk.objects if name.startswith("indexes/")]:
        del disk.objects[name]


def a_chain(disk: Disk, length: int) -> list[tuple[CheckpointId, bytes]]:
    """Checkpoints of six pages, of which each changes others than the one before it: the first always."""
    content = [a_page(number) for number in range(6)]
    made: list[tuple[CheckpointId, bytes]] = []
    for number in range(length):
        for page in range(6):
            if number and number % (page + 1) == 0:
                content[page] = touched(content[page], number)
        parent = made[-1][0] if made else None
        plain = b"".join(content)
        checkpoint, _ = write(opened(disk), {"pages-1.img": plain}, parent=parent, created_ns=number)
        made.append((checkpoint, plain))
    return made


def test_a_chain_of_any_length_has_a_bounded_depth_and_every_checkpoint_is_whole(disk: Disk) -> None:
    made = a_chain(disk, 24)
    depths = [len(placement(disk, checkpoint).files[0].layers) for checkpoint, _ in made]
    assert depths[:2] == [1, 2]
    assert max(depths) == DELTAS_MAX + 1
    for checkpoint, plain in made:
        assert read(opened(disk), checkpoint) == {"pages-1.img": plain}
    assert opened(disk).verify(None).problems == ()


def test_a_page_that_changed_a_little_takes_little(disk: Disk) -> None:
    plain = b"".join(map(a_page, range(100)))
    parent, _ = write(opened(disk), {"x": plain})
    before = sum(len(disk.objects[name]) for name in pack_names(disk))
    changed = b"".join(touched(a_page(number), number) for number in range(100))
    write(opened(disk), {"x": changed}, parent=parent, created_ns=2)
    after = sum(len(disk.objects[name]) for name in pack_names(disk))
    assert after - before < 100 * CHUNK_BYTES // 20


def test_a_page_that_changed_altogether_is_no_delta(disk: Disk) -> None:
    parent, _ = write(opened(disk), {"x": a_page(1) + bytes(CHUNK_BYTES)})
    child, _ = write(opened(disk), {"x": a_page(2) + a_page(3)}, parent=parent, created_ns=2)
    assert len(placement(disk, child).files[0].layers) == 1
    assert delta_count(disk, placement(disk, child)) == 0


def test_a_page_that_changes_more_and_more_is_whole_again_at_some_time(disk: Disk) -> None:
    """However long a chain is, a delta never costs more than the page."""
    page = bytearray(a_page(1))
    parent, _ = write(opened(disk), {"x": bytes(page)})
    deltas = []
    for number in range(16):
        page[number * 250 : (number + 1) * 250] = a_page(100 + number)[:250]
        parent, _ = write(opened(disk), {"x": bytes(page)}, parent=parent, created_ns=2 + number)
        assert read(opened(disk), parent) == {"x": bytes(page)}
        deltas.append(delta_count(disk, placement(disk, parent)))
    assert deltas[0] == 1
    assert 0 in deltas


def test_a_page_that_comes_back_is_the_page_that_was_there(disk: Disk) -> None:
    first, _ = write(opened(disk), {"x": a_page(1)})
    second, _ = write(opened(disk), {"x": touched(a_page(1), 1)}, parent=first, created_ns=2)
    third, new = write(opened(disk), {"x": a_page(1)}, parent=second, created_ns=3)
    assert new == 0
    assert len(placement(disk, third).files[0].layers) == 1
    assert read(opened(disk), third) == {"x": a_page(1)}


@pytest.mark.parametrize("order", ["oldest first", "newest but one first", "all at once", "every second"])
def test_removing_what_a_delta_is_based_on_keeps_it_readable(disk: Disk, order: str) -> None:
    made = a_chain(disk, 12)
    ids = [checkpoint for checkpoint, _ in made]
    steps: dict[str, list[list[CheckpointId]]] = {
        "oldest first": [[checkpoint] for checkpoint in ids[:-1]],
        "newest but one first": [[checkpoint] for checkpoint in ids[-2::-1]],
        "all at once": [ids[:-1]],
        "every second": [ids[0:-1:2], ids[1:-1:2]],
    }
    left = dict(made)
    for step in steps[order]:
        opened(disk).remove(tuple(step))
        left = {checkpoint: plain for checkpoint, plain in left.items() if checkpoint not in step}
        assert opened(disk).verify(None).problems == ()
        for checkpoint, plain in left.items():
            assert read(opened(disk), checkpoint) == {"pages-1.img": plain}
        assert opened(disk).remove(()).removed_objects == 0
    assert list(left) == ids[-1:]
    # And what is left is a parent as good as any other.
    plain = b"".join(touched(a_page(number), 99) for number in range(6))
    child, _ = write(opened(disk), {"pages-1.img": plain}, parent=ids[-1], created_ns=99)
    assert read(opened(disk), child) == {"pages-1.img": plain}


# --------------------------------------------------------------------------------------- damaged parents


def gone(disk: Disk, name: str) -> None:
    del disk.objects[name]


def cut(disk: Disk, name: str) -> None:
    disk.objects[name] = disk.objects[name][:-10]


def empty(disk: Disk, name: str) -> None:
    disk.objects[name] = b""


def flipped_at(place: int) -> Callable[[Disk, str], None]:
    def flip(disk: Disk, name: str) -> None:
        content = bytearray(disk.objects[name])
        content[place] ^= 0x10
        disk.objects[name] = bytes(content)

    return flip


DAMAGE: dict[str, Callable[[Disk, str], None]] = {
    "gone": gone,
    "cut": cut,
    "empty": empty,
    "header flipped": flipped_at(20),
    "salt flipped": flipped_at(HEADER_BYTES + 3),
    "blob flipped": flipped_at(PACK_START + 30),
    "digest flipped": flipped_at(-40),
    "length of its list flipped": flipped_at(-1),
}


@pytest.mark.parametrize("make", [a_page, a_plain_page], ids=["dense pages", "plain pages"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("with_index", [True, False])
def test_what_is_damaged_in_the_parent_is_stored_anew(
    disk: Disk, damage: str, make: Callable[[int], bytes], *, with_index: bool
) -> None:
    same = [make(number) for number in range(20)]
    parent, _ = write(opened(disk), {"pages-1.img": b"".join(same)})
    if not with_index:
        forget_indexes(disk)
    [pack] = pack_names(disk)
    DAMAGE[damage](disk, pack)
    files = {"pages-1.img": b"".join([*same[:10], *(touched(page, 1) for page in same[10:])])}
    child, _ = write(opened(disk), files, parent=parent, created_ns=2)
    assert opened(disk).verify((child,)).problems == ()
    assert read(opened(disk), child) == files


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "blob flipped"])
def test_what_is_damaged_among_others_is_stored_anew(disk: Disk, damage: str) -> None:
    """A flipped bit in a blob is seen by who reads it, and whoever looks up a digest reads lists alone."""
    plain = b"".join(map(a_page, range(20)))
    write(opened(disk), {"pages-1.img": plain})
    [pack] = pack_names(disk)
    DAMAGE[damage](disk, pack)
    other, _ = write(opened(disk), {"pages-1.img": plain}, created_ns=2)
    assert read(opened(disk), other) == {"pages-1.img": plain}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_delta_below_is_no_base(disk: Disk, damage: str, which: int) -> None:
    """A chain of three; any one of its packs is damaged, and a fourth is made of it."""
    content = [a_page(number) for number in range(20)]
    parent, packs = None, []
    for number in range(3):
        content = [touched(page, number) for page in content]
        parent, _ = write(opened(disk), {"x": b"".join(content)}, parent=parent, created_ns=number)
        packs += [name for name in pack_names(disk) if name not in packs]
    DAMAGE[damage](disk, packs[which])
    files = {"x": b"".join([*content[:10], *(touched(page, 9) for page in content[10:])])}
    child, _ = write(opened(disk), files, parent=parent, created_ns=9)
    assert opened(disk).verify((child,)).problems == ()
    assert read(opened(disk), child) == files


@pytest.mark.parametrize("damage", [gone, cut, empty, flipped_at(40), flipped_at(10)])
@pytest.mark.parametrize("folder", ["placements", "manifests", "receipts", "indexes"])
def test_a_damaged_document_of_the_parent_costs_space_and_nothing_else(
    disk: Disk, folder: str, damage: Callable[[Disk, str], None]
) -> None:
    plain = b"".join(map(a_page, range(5)))
    parent, _ = write(opened(disk), {"x": plain})
    [name] = [name for name in disk.objects if name.startswith(folder)]
    damage(disk, name)
    files = {"x": plain + touched(a_page(4), 1)}
    child, _ = write(opened(disk), files, parent=parent, created_ns=2)
    assert opened(disk).verify((child,)).problems == ()
    assert read(opened(disk), child) == files


def test_verify_reads_what_is_on_the_disk_and_not_what_it_remembers(disk: Disk) -> None:
    store = opened(disk)
    checkpoint, _ = write(store, {"x": a_plain_page(1)})
    read(store, checkpoint)
    [pack] = pack_names(disk)
    DAMAGE["blob flipped"](disk, pack)
    assert [problem.slug for problem in store.verify(None).problems] == ["corrupt"]


def test_a_name_of_a_file_is_compared_where_there_are_no_addresses(disk: Disk) -> None:
    parent, _ = write(opened(disk), {"a": a_page(1), "b": a_page(2)})
    files = {"b": touched(a_page(2), 1), "c": touched(a_page(1), 1)}
    child, _ = write(opened(disk), files, parent=parent, created_ns=2)
    by_root = {file.root: len(file.layers) for file in placement(disk, child).files}
    layers = {
        file.name: by_root[file.root] for file in opened(disk).load(child).checkpoint.image_sets[0].files
    }
    assert layers == {"b": 2, "c": 1}
