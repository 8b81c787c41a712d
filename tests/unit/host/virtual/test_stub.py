"""The stub's bytes: as its source assembles, and as the processor reads its table."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.host.virtual import stub
from ckpt.host.virtual.callsites import find_call_sites
from ckpt.host.virtual.mappings import Mapping, rooms
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber

SOURCE = Path(stub.__file__).with_name("stub.S")
BASE = 0x7F00_0000_0000


def identity(inode: int, device: int = os.makedev(254, 0)) -> Identity:
    return Identity(device=DeviceNumber(device), inode=InodeNumber(inode))


def site(address: int, number: int = stub.STAT, *, has_moved: bool = False) -> stub.Site:
    return stub.Site(address=address, number=number, has_moved=has_moved)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no assembler")
def test_the_code_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    code = tmp_path / "stub.bin"
    subprocess.run(["gcc", "-c", SOURCE, "-o", tmp_path / "stub.o"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "stub.o", code], check=True)
    blocks = [stub.BLOCKS[number] for number in (stub.STAT, stub.NEWFSTATAT, stub.STATX)]
    assert code.read_bytes() == b"".join(block.ljust(128, b"\xcc") for block in blocks)


def searched(table: stub.StubTable, wanted: Identity) -> bytes | None:
    """The entry that the code of stub.S finds for a file."""
    entries = [table.content[at : at + 64] for at in range(0, len(table.content), 64)]
    at = (wanted.inode * 0x61C88647 % (1 << 64) >> 16) & table.hash_mask
    while entries[at][48]:
        if entries[at][:8] == wanted.inode.to_bytes(8, "little") and entries[at][
            8:16
        ] == wanted.device.to_bytes(8, "little"):
            return entries[at]
        at += 1
    return None


devices = st.builds(os.makedev, st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
identities = st.builds(identity, st.integers(0, 40) | st.integers(0, (1 << 64) - 1), devices)


@given(st.dictionaries(identities, identities, max_size=60), identities)
def test_every_file_of_the_table_is_found_and_no_other(
    shown: dict[Identity, Identity], other: Identity
) -> None:
    table = stub.StubTable.of(shown.items())
    content = bytes(stub.PAGE) + table.content
    assert dict(stub.decode_pairs(content)) == shown
    for real, seen in shown.items():
        entry = searched(table, real)
        assert entry is not None
        assert int.from_bytes(entry[24:32], "little") == seen.inode
        assert int.from_bytes(entry[40:44], "little") == os.major(seen.device)
        assert int.from_bytes(entry[44:48], "little") == os.minor(seen.device)
    assert (searched(table, other) is None) == (other not in shown)


def test_a_table_that_the_kernel_could_not_show_is_refused() -> None:
    for wrong in (identity(1 << 64), identity(-1), identity(1, 1 << 32), identity(1, -1)):
        with pytest.raises(ValueError, match="no file has"):
            stub.StubTable.of([(identity(1), wrong)])
    with pytest.raises(ValueError, match="two files"):
        stub.StubTable.of([(identity(1), identity(2)), (identity(1), identity(3))])
    with pytest.raises(ValueError, match="more than"):
        stub.StubTable.of((identity(n), identity(n + 1)) for n in range(stub.ENTRIES_MAX + 1))


def test_a_stub_is_read_back_from_its_bytes() -> None:
    table = stub.StubTable.of([(identity(1), identity(2))])
    sites = (site(BASE - 0x1000), site(BASE - 0x2000, stub.STATX), site(BASE - 0x3000, has_moved=True))
    content = stub.encode_stub(table, address=BASE, sites=sites, retired=(BASE + 0x8000,))
    found = stub.decode_stub(content[: stub.PAGE], BASE)
    assert found is not None
    assert (found.sites, found.retired, found.size_bytes) == (sites, (BASE + 0x8000,), len(content))
    start, end = found.code
    assert content[start - BASE : end - BASE].count(b"\x0f\x05") == len(sites)


def test_a_site_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match="out of the reach"):
        stub.encode_stub(stub.StubTable.of([]), address=BASE, sites=(site(BASE - (1 << 31) - 1),), retired=())


@given(st.binary(max_size=200))
def test_a_header_that_lies_gives_no_stub_or_one_within_bounds(noise: bytes) -> None:
    table = stub.StubTable.of([])
    page = stub.encode_stub(table, address=BASE, sites=(site(BASE - 0x1000),), retired=())[: stub.PAGE]
    found = stub.decode_stub(page[:20] + noise + page[20 + len(noise) :], BASE)
    if found is not None:
        assert len(found.sites) <= stub.SITES_MAX
        assert len(found.retired) <= stub.RETIRED_MAX
        assert all(one.number in stub.BLOCKS for one in found.sites)


CALL = bytes.fromhex("b8 04000000 0f05 483d00f0ffff 7704")
LOOK_ALIKES = {
    "loads r8d": b"\x41" + CALL,
    "another call": bytes.fromhex("b8 07000000 0f05 483d00f0ffff 7704"),
    "something between": bytes.fromhex("b8 04000000 90 0f05 483d00f0ffff 7704"),
    "no check of the result": bytes.fromhex("b8 04000000 0f05 c3 9090909090 9090"),
}


def sites_in(text: bytes) -> tuple[stub.Site, ...]:
    mapping = Mapping(
        start=BASE, end=BASE + len(text), permissions="r-xp", offset=0, file="00:01 2", name="libc.so.6"
    )
    return find_call_sites([mapping], lambda address, size: text[address - BASE :][:size]).sites


def test_only_what_looks_exactly_like_a_call_is_a_site() -> None:
    moved = bytes.fromhex("b8 05000000 4889d6 0f05 483d00f0ffff 0f87")
    text = b"\x90" * 16 + CALL + b"\xc3" * 16 + moved + b"\xc3" * 16
    assert sites_in(text) == (
        site(BASE + 16, stub.STAT),
        site(BASE + 32 + len(CALL), stub.FSTAT, has_moved=True),
    )
    for name, look_alike in LOOK_ALIKES.items():
        assert sites_in(b"\x90" * 16 + look_alike + b"\xc3" * 16) == (), name


def test_a_jump_of_somebody_else_is_no_site() -> None:
    assert sites_in(bytes.fromhex("e9 00100000 0f05 483d00f0ffff 7704")) == ()


def test_room_is_found_beside_the_library_and_away_from_where_the_stack_and_the_heap_grow() -> None:
    def mapping(start: int, end: int, name: str = "") -> Mapping:
        return Mapping(start=start, end=end, permissions="r-xp", offset=0, file="", name=name)

    gib = 1 << 30
    mappings = [
        mapping(1 * gib, 2 * gib, "[heap]"),
        mapping(4 * gib, 5 * gib),
        mapping(6 * gib, 7 * gib),
        mapping(9 * gib, 10 * gib, "[stack]"),
    ]
    found = rooms(mappings, 0x10000, 6 * gib)
    assert 5 * gib < found[0] < 6 * gib - 0x10000
    assert not any(2 * gib <= address < 3 * gib or 8 * gib <= address < 9 * gib for address in found)
    assert all(address % stub.PAGE == 0 for address in found)
