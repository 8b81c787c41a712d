"""Compare the pages of two address spaces, page by page, by their digests.

Rules: what lies at the same address is compared, whatever is mapped there. A page that is not stored says nothing:
it is compared with none. The time it takes goes with the pages that are stored, not with the size of the mappings.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from ckpt.errors import ObjectCorrupt
from ckpt.model.changes import AreaPages, PageCounts, PageExtent, SpacePages
from ckpt.model.memory import AddressSpace, Area, AreaKind, PageRun, PageState
from ckpt.units import PAGE_BYTES

DIGEST_BYTES: Final = 32
ZERO_DIGEST: Final = sha256(bytes(PAGE_BYTES)).digest()
_BLOCK_BYTES: Final = 1024 * DIGEST_BYTES
_FILES: Final = frozenset((AreaKind.FILE, AreaKind.SHARED_FILE))
_SAME: Final = bytes([PageState.UNCHANGED])
_CHANGED: Final = bytes([PageState.CHANGED])
_STORED: Final = bytes([PageState.STORED])
_ZERO: Final = bytes([PageState.ZERO])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSpace:
    """An address space, and the digests of the pages in its pages file, one after another."""

    space: AddressSpace
    digests: bytes


def compare_pages(after: StoredSpace, before: StoredSpace | None) -> SpacePages:
    """What became of each page of `after` since `before`; without that, which pages are stored.

    Raises:
        ObjectCorrupt: a page map names pages that its pages file does not have.
    """
    now, then = _Pages(after), _Pages(before) if before is not None else None
    areas = after.space.areas or _whole(after.space)
    gone: tuple[int, ...] = ()
    if before is not None and then is not None:
        gone = tuple(_gone(area, then, now) for area in before.space.areas or _whole(before.space))
    return SpacePages(space=after.space, areas=tuple(_compare(area, now, then) for area in areas), gone=gone)


class _Part(NamedTuple):
    """Pages that follow one another; `digests` is None where all are zeros. `there` is whether they are stored."""

    first: int
    length: int
    there: bool
    digests: bytes | None


class _Pages:
    """The stored pages of a space, by their numbers."""

    def __init__(self, stored: StoredSpace) -> None:
        self._runs = stored.space.runs
        self._firsts = [run.page for run in self._runs]
        self._digests = stored.digests
        self._name = stored.space.name

    def within(self, first: int, count: int) -> Iterator[tuple[int, int, PageRun]]:
        """The stored pages among these, in order: first, count, and the run that they are in."""
        place = max(0, bisect_right(self._firsts, first) - 1)
        for number in range(place, len(self._runs)):
            run = self._runs[number]
            if run.page >= first + count:
                return
            begin, end = max(first, run.page), min(first + count, run.page + run.count)
            if begin < end:
                yield begin, end - begin, run

    def parts(self, first: int, count: int) -> Iterator[_Part]:
        """These pages whole, stored or not, in order."""
        at = first
        for begin, length, run in self.within(first, count):
            if at < begin:
                yield _Part(at, begin - at, there=False, digests=None)
            yield _Part(begin, length, there=True, digests=self.digests(begin, length, run))
            at = begin + length
        if at < first + count:
            yield _Part(at, first + count - at, there=False, digests=None)

    def digests(self, first: int, count: int, run: PageRun) -> bytes | None:
        """The digests of pages of a run; None if they are all zeros."""
        if run.chunk is None:
            return None
        begin = (run.chunk + first - run.page) * DIGEST_BYTES
        found = self._digests[begin : begin + count * DIGEST_BYTES]
        if len(found) != count * DIGEST_BYTES:
            raise ObjectCorrupt(
                kind="page map",
                name=self._name,
                reason=f"it names {run.chunk + run.count} pages, and {len(self._digests) // DIGEST_BYTES} are stored",
            )
        return found


def _whole(space: AddressSpace) -> tuple[Area, ...]:
    """Shared memory as one area."""
    if not space.runs:
        return ()
    last = space.runs[-1]
    return (
        Area(
            start=0,
            end=(last.page + last.count) * PAGE_BYTES,
            permissions="rw-s",
            kind=AreaKind.SHARED_MEMORY,
            path="",
            offset=0,
            shared=None,
        ),
    )


def _compare(area: Area, now: _Pages, then: _Pages | None) -> AreaPages:
    start = area.start // PAGE_BYTES
    extents: list[PageExtent] = []
    total = same = new = 0
    for first, count, run in now.within(start, area.pages):
        digests = now.digests(first, count, run)
        states = bytearray()
        for part in then.parts(first, count) if then else (_Part(first, count, there=False, digests=None),):
            found, same_there = _judge(_slice(digests, part.first - first, part.length), part)
            states += found
            same += same_there
            new += 0 if part.there else part.length
        total += count
        extents.append(
            PageExtent(first - start, count, _ZERO if digests is None else _with_zeros(states, digests))
        )
    counts = PageCounts(same=same, changed=total - same - new, new=new)
    return AreaPages(area=area, rest=_rest(area), extents=tuple(extents), counts=counts)


def _judge(digests: bytes | None, before: _Part) -> tuple[bytes, int]:
    """The states of pages that are stored (nothing for zeros), and how many are the same as before."""
    if not before.there:
        return (b"" if digests is None else _STORED * before.length), 0
    if digests is None and before.digests is None:
        return b"", before.length
    zeros = b"" if digests and before.digests else ZERO_DIGEST * before.length
    states = _states(digests or zeros, before.digests or zeros)
    return (b"" if digests is None else states), states.count(_SAME)


def _states(after: bytes, before: bytes) -> bytes:
    """UNCHANGED or CHANGED for each digest; most are as they were, mostly many in a row."""
    states = bytearray()
    for start in range(0, len(after), _BLOCK_BYTES):
        ours, theirs = after[start : start + _BLOCK_BYTES], before[start : start + _BLOCK_BYTES]
        if ours == theirs:
            states += _SAME * (len(ours) // DIGEST_BYTES)
        else:
            states += b"".join(
                _SAME if ours[at : at + DIGEST_BYTES] == theirs[at : at + DIGEST_BYTES] else _CHANGED
                for at in range(0, len(ours), DIGEST_BYTES)
            )
    return bytes(states)


def _with_zeros(states: bytearray, digests: bytes) -> bytes:
    at = digests.find(ZERO_DIGEST)
    while at >= 0:
        if at % DIGEST_BYTES == 0:
            states[at // DIGEST_BYTES] = PageState.ZERO
        at = digests.find(ZERO_DIGEST, at + 1)
    return bytes(states)


def _gone(area: Area, then: _Pages, now: _Pages) -> int:
    """How many stored pages of an area before are not stored any more."""
    return sum(
        count - sum(length for _, length, _ in now.within(first, count))
        for first, count, _ in then.within(area.start // PAGE_BYTES, area.pages)
    )


def _rest(area: Area) -> PageState:
    """What the pages of an area are that its own space has not stored."""
    if area.shared is not None:
        return PageState.SHARED
    return PageState.FILE_BACKED if area.kind in _FILES else PageState.ABSENT


def _slice(digests: bytes | None, first: int, count: int) -> bytes | None:
    return None if digests is None else digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]
