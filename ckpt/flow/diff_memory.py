"""What changed of memory: mappings, and their pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from ckpt.flow.diff_items import change_of, field_changes
from ckpt.flow.matching import pair_areas, pair_spaces
from ckpt.flow.pages import StoredSpace, compare_pages
from ckpt.model.changes import AreaChange, PageCounts, SpaceChange
from ckpt.model.contents import TreeContents
from ckpt.model.memory import AddressSpace, Area
from ckpt.units import Pid

_FIELDS: Final = ("start", "end", "permissions", "offset")
_NOWHERE: Final = AddressSpace(name="", pids=(), pages_file="", areas=(), runs=())


def space_changes(
    before: TreeContents | None,
    after: TreeContents | None,
    pids: Mapping[Pid, Pid],
    before_digests: Callable[[AddressSpace], bytes],
    after_digests: Callable[[AddressSpace], bytes],
) -> tuple[SpaceChange, ...]:
    """The memory of a tree, all of it: how many pages are the same is worth telling, too.

    Args:
        before: The tree before.
        after: The tree after.
        pids: From a pid before to the same task's after.
        before_digests: The digests of the pages of a space before.
        after_digests: The digests of the pages of a space after.

    Raises:
        ObjectCorrupt: a page map names pages that its pages file does not have.
    """
    return tuple(
        _space_change(
            StoredSpace(space=was, digests=before_digests(was)) if was else None,
            StoredSpace(space=now, digests=after_digests(now)) if now else None,
        )
        for was, now in pair_spaces(before, after, pids)
    )


def _space_change(was: StoredSpace | None, now: StoredSpace | None) -> SpaceChange:
    shown = (now or was or StoredSpace(space=_NOWHERE, digests=b"")).space
    pages = compare_pages(now or StoredSpace(space=_NOWHERE, digests=b""), was)
    change = change_of(was, now)
    counts: dict[Area, PageCounts] = {each.area: each.counts for each in pages.areas}
    gone = dict(zip(was.space.areas, pages.gone, strict=True)) if was and was.space.areas else {}
    pairs = pair_areas(was.space.areas if was else (), now.space.areas if now else ())
    return SpaceChange(
        change=change,
        name=shown.name,
        pids=shown.pids,
        areas=tuple(
            sorted(
                (found for one, other in pairs if (found := _area_change(one, other, counts, gone))),
                key=lambda area: area.start,
            )
        ),
        pages=pages.counts,
    )


def _area_change(
    was: Area | None, now: Area | None, counts: Mapping[Area, PageCounts], gone: Mapping[Area, int]
) -> AreaChange | None:
    """None if nothing changed."""
    pages = counts.get(now, PageCounts()) if now else PageCounts()
    pages = replace(pages, gone=gone.get(was, 0) if was else 0)
    fields = tuple(field_changes(was, now, _FIELDS)) if was and now else ()
    shown = now or was
    if shown is None or (was and now and not fields and pages.is_quiet):
        return None
    return AreaChange(
        change=change_of(was, now),
        start=shown.start,
        end=shown.end,
        permissions=shown.permissions,
        kind=shown.kind,
        path=shown.path,
        fields=fields,
        pages=pages,
    )
