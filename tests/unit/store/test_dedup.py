"""What is new to a store is stored, and nothing else: in one checkpoint, against its parent, among all."""

from __future__ import annotations

import pytest
from fakes.backends import Disk, MemoryBackend
from fakes.checkpoints import a_checkpoint, add, read, write
from fakes.values import a_page, touched

from ckpt.model.checkpoint import AddressRun
from ckpt.store.opening import open_store
from ckpt.store.placing import _DENSE_CHUNKS
from ckpt.store.store import Store
from ckpt.units import CHUNK_BYTES

ZEROS = bytes(CHUNK_BYTES)
PAGES = [a_page(number) for number in range(40)]


@pytest.fixture
def disk() -> Disk:
    return Disk()


def opened(disk: Disk) -> Store:
    """The store as another process sees it: it remembers nothing."""
    return open_store(MemoryBackend(disk), create=True)


def pages(*numbers: int) -> bytes:
    return b"".join(PAGES[number] for number in numbers)


def pack_bytes(disk: Disk) -> int:
    return sum(len(content) for name, content in disk.objects.items() if name.startswith("packs/"))


def forget_indexes(disk: Disk) -> None:
    for name in [name for name in disk.objects if name.startswith("indexes/")]:
        del disk.objects[name]


def run(page: int, chunk: int, count: int, space: str = "mm-1") -> AddressRun:
    return AddressRun(space=space, page=page, chunk=chunk, count=count)


@pytest.mark.parametrize("with_index", [True, False])
def test_of_a_file_that_the_parent_has_only_the_changed_pages_are_new(
    disk: Disk, *, with_index: bool
) -> None:
    before = [*PAGES]
    parent, new = write(opened(disk), {"pages-1.img": b"".join(before)})
    assert new == 40 * CHUNK_BYTES
    after = [*before]
    for number in (0, 17, 39):
        after[number] = a_page(100 + number)
    if not with_index:
        forget_indexes(disk)
    files = {"pages-1.img": b"".join(after)}
    child, new = write(opened(disk), files, parent=parent, created_ns=2)
    assert new == 3 * CHUNK_BYTES
    assert read(opened(disk), child) == files


def test_pages_are_compared_with_those_at_their_address_wherever_they_stand_in_the_file(disk: Disk) -> None:
    """Two mappings that change places, and a new page before them: by the place in the file all is new."""
    parent, _ = write(
        opened(disk),
        {"pages-1.img": pages(*range(20))},
        addresses={"pages-1.img": (run(1000, 0, 10), run(5000, 10, 10))},
    )
    forget_indexes(disk)
    files = {"pages-7.img": PAGES[30] + pages(*range(10, 20)) + pages(*range(10))}
    now = (run(9000, 0, 1), run(5000, 1, 10), run(1000, 11, 10))
    child, new = write(opened(disk), files, parent=parent, created_ns=2, addresses={"pages-7.img": now})
    assert new == CHUNK_BYTES
    assert read(opened(disk), child) == files
    # And the addresses of the child are as good for the next one.
    forget_indexes(disk)
    again = {"pages-1.img": pages(*range(20))}
    third, new = write(
        opened(disk),
        again,
        parent=child,
        created_ns=3,
        addresses={"pages-1.img": (run(1000, 0, 10), run(5000, 10, 10))},
    )
    assert new == 0
    assert read(opened(disk), third) == again


def test_changed_pages_that_moved_in_the_file_are_deltas_to_their_address(disk: Disk) -> None:
    parent, _ = write(
        opened(disk), {"pages-1.img": pages(*range(30))}, addresses={"pages-1.img": (run(1000, 0, 30),)}
    )
    before = pack_bytes(disk)
    files = {"pages-1.img": PAGES[35] + b"".join(touched(page, 1) for page in PAGES[:30])}
    child, new = write(
        opened(disk), files, parent=parent, created_ns=2, addresses={"pages-1.img": (run(999, 0, 31),)}
    )
    assert new == 31 * CHUNK_BYTES
    assert pack_bytes(disk) - before < 4 * CHUNK_BYTES
    assert read(opened(disk), child) == files


def test_the_same_page_of_another_address_space_is_not_the_same_page(disk: Disk) -> None:
    parent, _ = write(
        opened(disk), {"pages-1.img": pages(0, 1)}, addresses={"pages-1.img": (run(1000, 0, 2),)}
    )
    before = pack_bytes(disk)
    files = {"pages-1.img": touched(PAGES[0], 1) + touched(PAGES[1], 1)}
    addresses = {"pages-1.img": (run(1000, 0, 2, space="mm-2"),)}
    child, _ = write(opened(disk), files, parent=parent, created_ns=2, addresses=addresses)
    assert pack_bytes(disk) - before > 2 * CHUNK_BYTES
    assert read(opened(disk), child) == files


def test_a_page_that_stands_several_times_in_a_checkpoint_is_stored_once(disk: Disk) -> None:
    files = {
        "pages-1.img": pages(1, 2, 1, 1, 3, 2),  # twins in what is examined at once
        "pages-2.img": pages(3, 4, 4),
        "core-1.img": PAGES[4] + b"the end",
        "core-2.img": b"the end",
    }
    checkpoint, new = write(opened(disk), files)
    assert new == 5 * CHUNK_BYTES
    assert read(opened(disk), checkpoint) == files


def test_twins_far_apart_in_a_big_file_are_found(disk: Disk) -> None:
    distinct = b"".join(a_page(number) for number in range(700))
    checkpoint, new = write(opened(disk), {"pages-1.img": distinct + distinct})
    assert new == 700 * CHUNK_BYTES
    assert read(opened(disk), checkpoint) == {"pages-1.img": distinct + distinct}


def test_what_another_job_has_stored_is_not_stored_again(disk: Disk) -> None:
    write(opened(disk), {"pages-1.img": pages(*range(30))}, job="web")
    files = {"pages-9.img": pages(*range(29, 9, -1)) + PAGES[31]}
    checkpoint, new = write(opened(disk), files, job="other", created_ns=2)
    assert new == CHUNK_BYTES
    assert read(opened(disk), checkpoint) == files


@pytest.mark.parametrize("count", [_DENSE_CHUNKS + 1, 4200])
def test_a_big_file_of_another_job_is_found_by_its_hooks(disk: Disk, count: int) -> None:
    """Above 1,024 chunks only one of 64 is looked up, and above 4,096 only so many are named by the index."""
    numbers = list(range(count))
    content = b"".join(map(a_page, numbers))
    write(opened(disk), {"pages-1.img": content}, job="web")
    files = {"pages-2.img": a_page(99_999) + content}
    checkpoint, new = write(opened(disk), files, job="other", created_ns=2)
    assert new == CHUNK_BYTES
    assert read(opened(disk), checkpoint) == files


def test_many_small_checkpoints_leave_few_indexes_which_still_know_all(disk: Disk) -> None:
    for number in range(30):
        write(opened(disk), {"x": PAGES[number]}, created_ns=number)
    assert len([name for name in disk.objects if name.startswith("indexes/")]) < 16
    for first in (0, 10, 20):  # as many packs as are looked into at once
        _, new = write(opened(disk), {"y": pages(*range(first, first + 10))}, created_ns=100 + first)
        assert new == 0


def test_zeros_cost_nothing(disk: Disk) -> None:
    files = {"pages-1.img": bytes(64 << 20), "pages-2.img": ZEROS + b"\0", "pages-3.img": b""}
    checkpoint, new = write(opened(disk), files)
    assert new == 0
    assert pack_bytes(disk) == 0
    assert read(opened(disk), checkpoint) == files
    assert sum(map(len, disk.objects.values())) < 8192


def test_zeros_among_others_and_in_their_place_cost_nothing(disk: Disk) -> None:
    before = [PAGES[0], ZEROS, PAGES[1], ZEROS, ZEROS, PAGES[2]]
    parent, new = write(opened(disk), {"x": b"".join(before)})
    assert new == 3 * CHUNK_BYTES
    after = [ZEROS, ZEROS, PAGES[1], PAGES[3], ZEROS, PAGES[2]]
    child, new = write(opened(disk), {"x": b"".join(after)}, parent=parent, created_ns=2)
    assert new == CHUNK_BYTES
    assert read(opened(disk), child) == {"x": b"".join(after)}
    # A sum of deltas that comes out as zeros is one of nothing but zeros, too.
    last, new = write(opened(disk), {"x": bytes(6 * CHUNK_BYTES)}, parent=child, created_ns=3)
    assert new == 0
    assert read(opened(disk), last) == {"x": bytes(6 * CHUNK_BYTES)}


def test_the_end_of_a_file_is_a_page_filled_up_with_zeros(disk: Disk) -> None:
    parent, _ = write(opened(disk), {"x": PAGES[0] + b"end", "y": b"end" + bytes(100)})
    for size in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 2, CHUNK_BYTES + 3, CHUNK_BYTES + 4):
        files = {"x": (PAGES[0] + b"end\0")[:size]}
        child, _ = write(opened(disk), files, parent=parent, created_ns=2 + size)
        assert read(opened(disk), child) == files


def test_a_parent_that_is_not_there_costs_space_and_nothing_else(disk: Disk) -> None:
    parent, _ = write(opened(disk), {"x": PAGES[0]})
    opened(disk).remove((parent,))
    child, new = write(opened(disk), {"x": PAGES[0]}, parent=parent, created_ns=2)
    assert new == CHUNK_BYTES
    assert read(opened(disk), child) == {"x": PAGES[0]}


def test_addresses_that_name_a_chunk_or_a_page_twice_do_not_spoil_it(disk: Disk) -> None:
    twice = {"x": (run(1000, 0, 3), run(1001, 1, 3)), "y": (run(1000, 0, 4),)}
    parent, _ = write(opened(disk), {"x": pages(0, 1, 2, 3), "y": pages(4, 5, 6, 7)}, addresses=twice)
    for number in range(3):
        files = {
            "x": b"".join(touched(page, 100 + number) for page in PAGES[:4]),
            "y": b"".join(touched(page, 200 + number) for page in PAGES[4:8]),
        }
        parent, _ = write(opened(disk), files, parent=parent, created_ns=2 + number, addresses=twice)
        assert read(opened(disk), parent) == files
    assert opened(disk).verify(None).problems == ()


@pytest.mark.parametrize(
    "wrong",
    [
        run(1000, 0, 9),
        run(1000, 2, 1),
        run(1 << 60, 0, 1),
        run(0, 0, 1, space=""),
        run(0, 0, 1, space="x" * 256),
    ],
)
def test_addresses_that_cannot_be_never_make_a_checkpoint_that_cannot_be_read(
    disk: Disk, wrong: AddressRun
) -> None:
    kept, _ = write(opened(disk), {"x": pages(0, 1)})
    with opened(disk).writer(kept) as writer:
        stored = add(writer, {"x": pages(2, 3)}, {"x": (wrong,)})
        made = writer.commit(a_checkpoint(*stored, created_ns=2))
    store = opened(disk)
    assert store.verify(None).problems == ()
    assert read(store, made) == {"x": pages(2, 3)}
