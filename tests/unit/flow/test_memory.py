"""Stored memory: each address has the bytes that it had, or says where they are; and what is sought is found."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from fakes.backends import MemoryBackend
from fakes.memory_images import (
    ANON_PRIVATE,
    FILE_PRIVATE,
    FILE_SHARED,
    HOST_PID,
    MAP_SHARED,
    MEMFD,
    PRESENT,
    VVAR,
    Images,
    stored,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.errors import ObjectCorrupt, Usage
from ckpt.flow import memory as memory_flow
from ckpt.flow import searching
from ckpt.flow.cores import core_parts
from ckpt.flow.memory import StoredMemory
from ckpt.flow.searching import expression, literal, search, text
from ckpt.model.memory import Backing
from ckpt.store.opening import open_store
from ckpt.store.store import Store
from ckpt.units import PAGE_BYTES

PAGE = PAGE_BYTES
TIB = 1 << 40


@pytest.fixture
def store() -> Store:
    return open_store(MemoryBackend(), create=True)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    (tmp_path / "images").mkdir()
    return Images(tmp_path / "images")


def parts(memory: StoredMemory, first: int, last: int) -> list[tuple[int, int, Backing]]:
    """What is from one page to another: first page, pages, backing."""
    return [
        (extent.start // PAGE, extent.size_bytes // PAGE, extent.backing)
        for extent in memory.extents(memory.tasks[0], first * PAGE, last * PAGE)
    ]


def plain(memory: StoredMemory, start: int, end: int) -> bytes:
    return b"".join(
        b"".join(memory.read(extent)) if extent.backing is Backing.STORED else b"?" * extent.size_bytes
        for extent in memory.extents(memory.tasks[0], start, end)
    )


def test_a_range_is_told_in_parts_without_gaps(store: Store, images: Images) -> None:
    images.regular(1, "/usr/bin/program")
    images.vma(10, 4, FILE_PRIVATE, shmid=1, pgoff=PAGE)
    images.vma(20, 4, ANON_PRIVATE)
    images.vma(24, 2, VVAR)
    images.page_map("7", 1, (12, 1, PRESENT), (21, 2, PRESENT))
    images.pages(1, b"".join(bytes([letter]) * PAGE for letter in b"abc"))
    memory = stored(store, images.write())
    assert memory.tasks[0].pids == (HOST_PID,)
    assert parts(memory, 9, 27) == [
        (9, 1, Backing.ABSENT),
        (10, 2, Backing.FILE),
        (12, 1, Backing.STORED),
        (13, 1, Backing.FILE),
        (14, 6, Backing.ABSENT),
        (20, 1, Backing.ZEROS),
        (21, 2, Backing.STORED),
        (23, 1, Backing.ZEROS),
        (24, 2, Backing.ABSENT),
        (26, 1, Backing.ABSENT),
    ]
    after = list(memory.extents(memory.tasks[0], 13 * PAGE + 5, 13 * PAGE + 6))
    assert [(extent.offset, extent.area and extent.area.path) for extent in after] == [
        (4 * PAGE + 5, "/usr/bin/program")
    ]
    assert plain(memory, 22 * PAGE - 2, 22 * PAGE + 2) == b"bbcc"
    areas = memory.tasks[0].space.areas
    assert [memory.stored_bytes(memory.tasks[0], area) for area in areas] == [PAGE, 2 * PAGE, 0]


def test_shared_memory_is_read_wherever_it_is_mapped(store: Store, images: Images) -> None:
    images.memfd(3, "frames", shmid=78)
    images.vma(10, 4, FILE_SHARED | MEMFD, shmid=3, flags=MAP_SHARED, pgoff=PAGE)
    images.vma(20, 2, FILE_PRIVATE | MEMFD, shmid=3, pgoff=2 * PAGE)
    images.page_map("7", 1, (21, 1, PRESENT))
    images.pages(1, b"own ".ljust(PAGE))
    images.page_map("shmem-78", 2, (0, 1, PRESENT), (2, 2, PRESENT))
    images.pages(2, b"".join(word.ljust(PAGE) for word in (b"zero", b"two ", b"three")))
    memory = stored(store, images.write())
    assert plain(memory, 10 * PAGE, 14 * PAGE).split() == [b"?" * PAGE + b"two", b"three", b"?" * PAGE]
    # What the process wrote itself into a private mapping of it covers the shared page.
    assert plain(memory, 20 * PAGE, 22 * PAGE).split() == [b"two", b"own"]


def test_a_mapped_file_that_the_checkpoint_brings_along_is_read(
    store: Store, images: Images, tmp_path: Path
) -> None:
    (tmp_path / "ring").write_bytes(b"r" * PAGE + b"end")
    images.regular(2, "/dev/shm/ring")
    images.vma(40, 4, FILE_SHARED, shmid=2, flags=MAP_SHARED)
    memory = stored(store, images.write(), tmp_path / "ring")
    found = list(memory.extents(memory.tasks[0], 40 * PAGE, 44 * PAGE))
    assert [(extent.size_bytes, extent.backing) for extent in found] == [
        (PAGE + 3, Backing.STORED),
        (PAGE - 3, Backing.ZEROS),
        (2 * PAGE, Backing.ABSENT),
    ]
    assert b"".join(memory.read(found[0])) == b"r" * PAGE + b"end"


def test_a_page_map_that_promises_more_than_the_pages_file_has_is_an_error(
    store: Store, images: Images
) -> None:
    images.vma(20, 4, ANON_PRIVATE)
    images.page_map("7", 1, (20, 3, PRESENT))
    images.pages(1, bytes(2 * PAGE))
    memory = stored(store, images.write())
    with pytest.raises(ObjectCorrupt, match=r"pages-1\.img"):
        plain(memory, 20 * PAGE, 23 * PAGE)


def test_a_pages_file_that_is_not_there_is_an_error(store: Store, images: Images) -> None:
    images.vma(20, 4, ANON_PRIVATE)
    images.page_map("7", 1, (20, 3, PRESENT))
    memory = stored(store, images.write())
    with pytest.raises(ObjectCorrupt, match=r"pages-1\.img"):
        parts(memory, 20, 24)


def test_a_process_is_chosen_by_the_pid_that_the_host_knew(store: Store, images: Images) -> None:
    images.vma(20, 4, ANON_PRIVATE)
    images.vma(20, 4, ANON_PRIVATE, pid=9)
    memory = stored(store, images.write())
    assert memory.task(HOST_PID) is memory.tasks[0]
    for pid in (None, 7):
        with pytest.raises(Usage) as caught:
            memory.task(pid)
        assert f"{HOST_PID} (" in caught.value.advice


def test_terabytes_that_were_never_touched_cost_nothing(store: Store, images: Images) -> None:
    images.vma(16, 64 * TIB // PAGE, ANON_PRIVATE)
    images.page_map("7", 1, (1000, 1, PRESENT))
    images.pages(1, b"needle".ljust(PAGE))
    memory = stored(store, images.write())
    assert [match.address for match in search(memory, memory.tasks, literal(b"needle"))] == [1000 * PAGE]
    found = [(part.start // PAGE, part.is_filled) for part in core_parts(memory, memory.tasks[0])]
    assert found == [(16, True), (1001, False)]


@pytest.mark.parametrize(
    ("word", "address"),
    [
        (b"in-a-page", 20 * PAGE + 100),
        (b"across-two-pages", 21 * PAGE - 5),
        (b"across-two-mappings", 24 * PAGE - 5),
        (b"across-two-windows", (20 + 256) * PAGE - 7),
        (b"at the very end", 2000 * PAGE - 15),
    ],
)
def test_what_is_sought_is_found_wherever_it_lies(
    store: Store, images: Images, word: bytes, address: int
) -> None:
    images.vma(20, 4, ANON_PRIVATE)
    images.vma(24, 1976, ANON_PRIVATE)
    images.page_map("7", 1, (20, 1980, PRESENT))
    content = bytearray(random.Random(1).randbytes(1980 * PAGE))
    content[address - 20 * PAGE : address - 20 * PAGE + len(word)] = word
    images.pages(1, bytes(content))
    memory = stored(store, images.write())
    for pattern in (literal(word), expression(re.compile(word[:-3] + b"...")), text(len(word) - 1)):
        [match] = [match for match in search(memory, memory.tasks, pattern) if word in match.content]
        at = match.content.index(word)
        assert match.address + at == address
        assert match.before == plain(memory, max(20 * PAGE, match.address - 32), match.address)
        end = match.address + len(match.content)
        assert match.after == plain(memory, end, min(end + 32, 2000 * PAGE))


def test_zeros_beside_what_is_stored_are_found_with_it(store: Store, images: Images) -> None:
    images.vma(20, 40, ANON_PRIVATE)
    images.page_map("7", 1, (30, 1, PRESENT))
    images.pages(1, b"a" * PAGE)
    memory = stored(store, images.write())
    found = [match.address for match in search(memory, memory.tasks, literal(b"\0\0a"))]
    found += [match.address for match in search(memory, memory.tasks, literal(b"a\0\0"))]
    assert found == [30 * PAGE - 2, 31 * PAGE - 1]


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_every_match_and_every_text_is_found_once_whatever_the_buffers_are(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    letters = data.draw(st.sampled_from([b"ab", b"a\0", "aé€\0".encode(), b"ab\xff\xc3\xa9"]))
    seed = data.draw(st.integers(0, 2**32))
    content = bytes(random.Random(seed).choices(letters, k=6 * PAGE))
    folder = tmp_path_factory.mktemp("images")
    images = Images(folder)
    images.vma(20, 6, ANON_PRIVATE)
    images.page_map("7", 1, (20, 6, PRESENT))
    images.pages(1, content)
    memory = stored(open_store(MemoryBackend(), create=True), images.write())
    word = bytes(random.Random(seed + 1).choices(letters, k=data.draw(st.integers(1, 6))))
    expected = [found.start() for found in re.finditer(re.escape(word), content)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "_BUFFER_BYTES", data.draw(st.sampled_from([1, PAGE, 2 * PAGE])))
        patch.setattr(searching, "MATCH_BYTES_MAX", data.draw(st.sampled_from([64, 5000])))
        patch.setattr(memory_flow, "WINDOW_BYTES", data.draw(st.sampled_from([PAGE, 2 * PAGE])))
        offset = 20 * PAGE
        found = [match.address - offset for match in search(memory, memory.tasks, literal(word))]
        assert found == expected
        by_expression = search(memory, memory.tasks, expression(re.compile(re.escape(word))))
        assert [match.address - offset for match in by_expression] == expected
        pattern = text(4)
        texts = [
            (match.address - offset, match.content.decode())
            for match in search(memory, memory.tasks, pattern)
        ]
        # One buffer, with all of it, leaves nothing to be joined.
        assert texts == [(start, content[start:end].decode()) for start, end in pattern.find(content, 0)]
        assert all(len(found) >= 4 for _, found in texts)


def test_text_is_ascii_and_utf_8_and_not_what_only_looks_so(store: Store, images: Images) -> None:
    lines = ["plain ascii", "Grüße", "naïve €uro", "短い文字列です", "😀😀😀😀", "abc"]
    content = b"\0".join(line.encode() for line in lines) + b"\0\xc3\x28\xff\xfe\xed\xa0\x80x\xc2\x80\xf5\0"
    images.vma(20, 1, ANON_PRIVATE)
    images.page_map("7", 1, (20, 1, PRESENT))
    images.pages(1, content.ljust(PAGE, b"\0"))
    memory = stored(store, images.write())
    found = [match.content.decode() for match in search(memory, memory.tasks, text(4))]
    assert found == lines[:-1]


def test_random_bytes_never_break_the_search_for_text(store: Store, images: Images) -> None:
    images.vma(20, 64, ANON_PRIVATE)
    images.page_map("7", 1, (20, 64, PRESENT))
    images.pages(1, os.urandom(64 * PAGE))
    memory = stored(store, images.write())
    assert all(match.content.decode() for match in search(memory, memory.tasks, text(4)))
