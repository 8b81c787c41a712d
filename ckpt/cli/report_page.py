"""A picture of checkpoints as one page of HTML that needs nothing else: no network, no other file.

Rules: what a checkpoint holds is text, never markup: it is in the page as JSON in which no tag can end, and is put
into it by textContent. The page says so to the browser as well (Content-Security-Policy).
Source: html.spec.whatwg.org, "Restrictions for contents of script elements".
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from importlib import resources
from typing import Any, Final

from ckpt.cli.documents import rfc3339
from ckpt.flow.report import Moment, Picture
from ckpt.model.changes import AreaPages, PageExtent, SpacePages
from ckpt.model.contents import TreeContents
from ckpt.model.inodes import RoleKind
from ckpt.model.memory import PageState
from ckpt.model.workload import Process
from ckpt.units import PAGE_BYTES, Pid, milliseconds

PAGES_DRAWN_MAX: Final = 1 << 20
"""Of an area with more pages only those that are stored are drawn."""

PAGES_DRAWN_IN_ALL_MAX: Final = 1 << 28
"""So is it of every area, once so many pages are drawn: mappings may be larger than any memory."""

HOLDERS_MAX: Final = 4


def page(picture: Picture) -> str:
    """The whole page."""
    data = document(picture)
    parts: dict[str, str] = {
        "@TITLE@": html.escape(data["title"]),
        "@STYLE@": _asset("report.css"),
        # JSON has these characters within strings alone.
        "@DATA@": json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "@SCRIPT@": _asset("report.js"),
    }
    # In one pass: what a checkpoint holds may look like a name.
    return re.sub("|".join(parts), lambda found: parts[found[0]], _asset("report.html"))


def document(picture: Picture) -> dict[str, Any]:
    """What the page's script draws."""
    newest = picture.newest.checkpoint
    drawing = _Drawing()
    return {
        "title": f"{newest.job or 'checkpoint'} · {picture.newest.id[:12]}",
        "subtitle": newest.message or picture.newest.id,
        "host": f"{newest.host.hostname}: Linux {newest.host.kernel}, CRIU {newest.host.criu_version}",
        "checkpoints": [_checkpoint(moment) for moment in picture.moments],
        "processes": [
            _process(process, picture) for tree in newest.workload.trees for process in tree.processes
        ],
        "spaces": [
            _space(root, pages, picture, drawing)
            for root, pages in sorted(picture.spaces, key=lambda found: -_stored_pages(found[1]))
        ],
        "descriptors": [row for tree in picture.contents for row in _descriptors(tree)],
        "sockets": [row for tree in picture.contents for row in _sockets(tree)],
        "files": [
            {
                "path": inode.path + (" (deleted)" if inode.deleted else ""),
                "kind": inode.kind.value,
                "size_bytes": inode.size_bytes,
                "inode": inode.inode,
                "holders": ", ".join(
                    dict.fromkeys(f"{role.pid} {role.kind.value}" for role in inode.roles[:HOLDERS_MAX])
                ),
            }
            for inode in newest.inodes
            if any(role.kind is not RoleKind.ABOVE for role in inode.roles)
        ],
    }


def _asset(name: str) -> str:
    return resources.files("ckpt.cli").joinpath("page", name).read_text(encoding="utf-8")


def _checkpoint(moment: Moment) -> dict[str, Any]:
    checkpoint = moment.stored.checkpoint
    return {
        "id": moment.stored.id,
        "created": rfc3339(checkpoint.created_ns),
        "frozen_ms": milliseconds(checkpoint.frozen_ns),
        "image_bytes": checkpoint.image_bytes,
        "changed_bytes": moment.changed_bytes,
        "stored_bytes": moment.stored.stored_bytes,
        "tags": list(moment.stored.tags),
        "message": checkpoint.message,
    }


def _process(process: Process, picture: Picture) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "parent": process.parent,
        "name": process.name,
        "state": process.state,
        "uid": process.uid,
        "threads": len(process.threads),
        "stored_bytes": sum(
            _stored_pages(pages) * PAGE_BYTES
            for _, pages in picture.spaces
            if pages.space.pids and pages.space.pids[0] == process.pid
        ),
        "command": " ".join(process.command_line),
    }


def _space(root: Pid, pages: SpacePages, picture: Picture, drawing: _Drawing) -> dict[str, Any]:
    areas = [_area(area, drawing) for area in pages.areas]
    return {
        "name": f"{root}/{pages.space.name}",
        "title": _title(root, pages, picture),
        "counts": [sum(area["counts"][state] for area in areas) for state in PageState],
        "stored_pages": _stored_pages(pages),
        "areas": areas,
    }


def _title(root: Pid, pages: SpacePages, picture: Picture) -> str:
    names = {
        process.pid: f"{process.pid} {process.name}"
        for tree in picture.newest.checkpoint.workload.trees
        if tree.root == root
        for process in tree.processes
    }
    if not pages.space.pids:
        return f"shared memory {pages.space.name.removeprefix('pagemap-shmem-')}"
    return "process " + ", ".join(names.get(pid, str(pid)) for pid in pages.space.pids)


class _Drawing:
    """The states of the pages that are drawn, as long as there is room for them."""

    def __init__(self) -> None:
        self._room = PAGES_DRAWN_IN_ALL_MAX

    def states(self, pages: AreaPages) -> tuple[bool, bytes]:
        """Whether the whole area is drawn, and the state of each page that is."""
        if pages.area.pages <= min(PAGES_DRAWN_MAX, self._room):
            self._room -= pages.area.pages
            return True, pages.states()
        return False, b"".join(map(self._stored, pages.extents))

    def _stored(self, extent: PageExtent) -> bytes:
        if len(extent.states) == extent.length:
            return extent.states
        # A page map names zeros of any length in a few bytes.
        drawn = min(extent.length, PAGES_DRAWN_MAX, self._room)
        self._room -= drawn
        return extent.states * drawn


def _counts(pages: AreaPages, *, whole: bool) -> list[int]:
    """How many pages there are of each state; of those that are not stored only if the whole area counts."""
    counts = [0] * len(PageState)
    for extent in pages.extents:
        if len(extent.states) == 1:
            counts[extent.states[0]] += extent.length
        else:
            for state in PageState:
                counts[state] += extent.states.count(bytes([state]))
    if whole:
        counts[pages.rest] += pages.area.pages - sum(extent.length for extent in pages.extents)
    return counts


def _area(pages: AreaPages, drawing: _Drawing) -> dict[str, Any]:
    area = pages.area
    whole, states = drawing.states(pages)
    return {
        "start": f"0x{area.start:x}",
        "end": f"0x{area.end:x}",
        "permissions": area.permissions,
        "kind": area.kind.value,
        "path": area.path,
        "pages": area.pages,
        "whole": whole,
        "stored_pages": sum(extent.length for extent in pages.extents),
        "counts": _counts(pages, whole=area.pages <= PAGES_DRAWN_MAX),
        "states": base64.b64encode(zlib.compress(states)).decode("ascii"),
    }


def _stored_pages(pages: SpacePages) -> int:
    return sum(extent.length for area in pages.areas for extent in area.extents)


def _descriptors(tree: TreeContents) -> list[dict[str, Any]]:
    return [
        {
            "pid": descriptor.pid,
            "fd": descriptor.fd,
            "kind": descriptor.file.kind.value,
            "subject": descriptor.file.path or descriptor.file.detail,
            "flags": " ".join((descriptor.file.access, *descriptor.file.flags)).strip(),
        }
        for descriptor in tree.descriptors
    ]


def _sockets(tree: TreeContents) -> list[dict[str, Any]]:
    return [
        {
            "family": each.family.value,
            "kind": each.type,
            "state": each.state,
            "local": each.local,
            "remote": each.remote,
        }
        for each in tree.sockets
    ]
