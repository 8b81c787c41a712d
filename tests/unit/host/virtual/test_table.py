from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.errors import ObjectCorrupt
from ckpt.host.virtual.table import ENTRIES_MAX, IdentityTable
from ckpt.model.inodes import Identity
from ckpt.units import DeviceNumber, InodeNumber


def number(inode: int, device: int = 0xFE00) -> Identity:
    return Identity(device=DeviceNumber(device), inode=InodeNumber(inode))


def pairs(*numbers: tuple[int, int]) -> list[tuple[Identity, Identity]]:
    return [(number(real), number(seen)) for real, seen in numbers]


def test_what_really_has_a_shown_number_is_shown_with_the_one_that_became_free() -> None:
    table = IdentityTable.from_pairs(pairs((1, 2), (2, 3), (10, 11)))
    assert [(real.inode, seen.inode) for real, seen in table.items()] == [
        *((1, 2), (2, 3), (3, 1)),
        *((10, 11), (11, 10)),
    ]
    assert table.shown(number(99)) == number(99)
    assert table.shown(number(1, device=1)) == number(1, device=1)


def test_files_that_show_what_they_are_need_no_entry_but_keep_their_number() -> None:
    assert not IdentityTable.from_pairs(pairs((1, 1), (2, 2)))
    with pytest.raises(ValueError, match="would be shown for"):
        IdentityTable.from_pairs(pairs((1, 1), (2, 1)))


@pytest.mark.parametrize("contradiction", [[(1, 2), (1, 3)], [(1, 3), (2, 3)]])
def test_a_table_never_makes_one_file_of_two_or_two_of_one(contradiction: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="inode"):
        IdentityTable.from_pairs(pairs(*contradiction))


@pytest.mark.parametrize(
    "impossible", [number(-1), number(1 << 64), number(1, device=1 << 32), number(1, device=-1)]
)
def test_numbers_that_no_kernel_shows_are_refused(impossible: Identity) -> None:
    with pytest.raises(ValueError, match="no identity"):
        IdentityTable.from_pairs([(number(1), impossible)])


def test_a_table_is_bounded() -> None:
    swapped = ((2 * each, 2 * each + 1) for each in range(ENTRIES_MAX // 2 + 1))
    with pytest.raises(ValueError, match="the most"):
        IdentityTable.from_pairs(pairs(*swapped))


@given(st.dictionaries(st.integers(0, 30), st.integers(0, 30)))
def test_every_table_is_a_permutation_and_is_read_as_it_was_written(wanted: dict[int, int]) -> None:
    try:
        table = IdentityTable.from_pairs(pairs(*wanted.items()))
    except ValueError:
        assert len(set(wanted.values())) < len(wanted)
        return
    shown = [table.shown(number(each)) for each in range(31)]
    assert sorted(each.inode for each in shown) == list(range(31))
    assert all(table.shown(number(real)) == number(seen) for real, seen in wanted.items())
    assert IdentityTable.decode(table.encode()) == table


@given(st.binary(max_size=200), st.integers(0, 100))
def test_damaged_bytes_are_refused_or_are_a_table(noise: bytes, place: int) -> None:
    good = IdentityTable.from_pairs(pairs((1, 2), (3, 4))).encode()
    for content in (noise, good[:place] + noise + good[place + len(noise) :]):
        with suppress(ObjectCorrupt):
            assert IdentityTable.decode(content).encode() == content or content != good
