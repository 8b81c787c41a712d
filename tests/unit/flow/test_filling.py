"""A migration's target begins with a checkpoint: each page is where the workload has it, and is there but once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import cast

import pytest
from fakes.backends import MemoryBackend
from fakes.memory_images import ANON_PRIVATE, PRESENT, Images, stored
from fakes.needs import NO_NEEDS

from ckpt.codec.migration_messages import Offer
from ckpt.errors import ObjectCorrupt, ObjectMissing, WrongState
from ckpt.flow.filling import find_filling
from ckpt.flow.receive import PortsFor, Reception, TargetSides
from ckpt.host.memory_layouts import ImageLayouts
from ckpt.host.received.workload import ReceivedWorkload
from ckpt.model.migration import TargetState
from ckpt.model.pages import PageRun
from ckpt.store.opening import open_store
from ckpt.store.store import Store
from ckpt.units import PAGE_BYTES, Pid

ROOT = Pid(99)
OFFER = Offer(
    migration="0123456789abcdef",
    job="web",
    source_host="here",
    needs=NO_NEEDS,
    time="suspend",
    inodes="keep",
    pids="same",
    cgroup="",
    resume=False,
    base="web@latest",
    roots=(ROOT,),
)


def page(number: int) -> bytes:
    return f"page {number} of then".encode().ljust(PAGE_BYTES, b".")


@pytest.fixture
def store() -> Store:
    return open_store(MemoryBackend(), create=True)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """A process with pages in two places, one of them longer than what is read at once, and shared memory."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = Images(folder)
    images.vma(10, 2000, ANON_PRIVATE)
    images.page_map("7", 1, (10, 3, PRESENT), (20, 2, 0), (40, 700, PRESENT), (1000, 1, PRESENT))
    images.pages(1, b"".join(map(page, [*range(10, 13), *range(40, 740), 1000])))
    images.page_map("shmem-5", 2, (0, 2, PRESENT))
    images.pages(2, page(0) + page(1))
    images.write()
    return images


EXPECTED = {
    (f"{ROOT}/{name}", number): sha256(page(number)).digest()
    for name, numbers in (("pagemap-7", [*range(10, 13), *range(40, 740), 1000]), ("pagemap-shmem-5", [0, 1]))
    for number in numbers
}


@dataclass
class Side:
    """One migration on a target, of which only what an offer needs is there. Fits TargetSides too."""

    folder: Path
    id: str = OFFER.migration
    state: TargetState | None = None
    attempt: int = 0
    journal: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, _migration: str) -> Iterator[Side]:
        yield self

    def accept(self, offer: Offer) -> None:
        self.journal.append("accept")
        self.state, self.attempt = TargetState.RECEIVING, offer.attempt

    def received(self) -> ReceivedWorkload:
        return ReceivedWorkload(str(self.folder))


def reception(side: Side, store: Store) -> Reception:
    return Reception(
        cast("TargetSides", side),
        cast("PortsFor", None),
        lambda ref, roots: find_filling(ref, roots, store, ImageLayouts()),
    )


def here(target: Reception) -> dict[tuple[str, int], bytes]:
    """The digest of each page that the target says it has."""
    found: dict[tuple[str, int], bytes] = {}
    for space, runs, digests in target.known():
        numbers = [number for first, count in runs for number in range(first, first + count)]
        found |= {(space, number): digests[32 * at : 32 * at + 32] for at, number in enumerate(numbers)}
    return found


def test_every_page_of_the_checkpoint_is_where_the_workload_has_it(
    store: Store, images: Images, tmp_path: Path
) -> None:
    stored(store, images.folder)
    target = reception(Side(tmp_path), store)
    assert target.offer(OFFER).has_pages
    assert here(target) == EXPECTED


def test_what_came_since_is_not_filled_over_by_a_later_attempt(
    store: Store, images: Images, tmp_path: Path
) -> None:
    stored(store, images.folder)
    side = Side(tmp_path)
    target = reception(side, store)
    target.offer(OFFER)
    now = b"now".ljust(PAGE_BYTES)
    target.pages(f"{ROOT}/pagemap-7", [PageRun(11, 1)], memoryview(now))
    target.close()
    # Meanwhile it may be gone.
    store.remove((store.resolve("web@latest"),))
    assert target.offer(replace(OFFER, attempt=2, resume=True)).has_pages
    assert here(target) == EXPECTED | {(f"{ROOT}/pagemap-7", 11): sha256(now).digest()}


@pytest.mark.parametrize(
    ("offer", "refusal"),
    [
        (replace(OFFER, base="db@latest"), (ObjectMissing, "no checkpoint db@latest")),
        (replace(OFFER, roots=(ROOT, Pid(100))), (WrongState, r"of 1 process tree.* of 2 tree")),
    ],
)
def test_a_checkpoint_that_is_none_for_it_is_refused_before_anything_is_written_down(
    offer: Offer, refusal: tuple[type[Exception], str], store: Store, images: Images, tmp_path: Path
) -> None:
    stored(store, images.folder)
    side = Side(tmp_path)
    error, words = refusal
    with pytest.raises(error, match=words):
        reception(side, store).offer(offer)
    assert side.journal == []


def test_a_page_map_that_names_pages_which_are_not_there_is_damaged(
    store: Store, images: Images, tmp_path: Path
) -> None:
    images.page_map("7", 1, (10, 704, PRESENT), (2000, 1, PRESENT))
    stored(store, images.folder)
    side = Side(tmp_path)
    with pytest.raises(ObjectCorrupt, match=r"pages-1\.img has not the 705 pages"):
        reception(side, store).offer(OFFER)
    assert side.journal == []
