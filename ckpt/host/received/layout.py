"""An image set that CRIU restores from, laid out of what has come: without copying a page.

    DIRECTORY/pagemap-7.img     as CRIU wrote it at the source, but every page is its parent's
                                but for those that were left there: they are LAZY
    DIRECTORY/pages-1.img       empty
    DIRECTORY/parent ->         CHAIN/1
    CHAIN/1/pagemap-7.img       of the newest level of that space; its pages file beside it
    CHAIN/1/parent -> ../2      the level before, and so on

Rules:
- Every space has its newest level in CHAIN/1, the one before in CHAIN/2: CRIU goes down for a space only as far as
  there are page maps of it. Nothing but page maps and pages files is looked for there (no inventory.img).
- Links are relative: a task opens them when it is in its own mount namespace already (criu/cr-restore.c,
  restore_task_mnt_ns), from the directory's descriptor. So both places must be below one mount.
- CRIU restores shared memory without a word when a page of it is missing (criu/shmem.c, do_restore_shmem_content),
  and reads a pages file that is too short for ever: all pages are looked for here.
Source: criu/pagemap.c (open_page_read_at, try_open_parent, read_parent_page).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host.criu.page_maps import MapEntry, Where, read_lazy_map, write_map
from ckpt.host.received.durable import writing
from ckpt.host.received.space import ReceivedSpace
from ckpt.host.received.table import pieces_of
from ckpt.model.pages import PageRun

SpaceOf: TypeAlias = Callable[[str], ReceivedSpace | None]
"""From the name of a page map ("pagemap-7") to what has come of its space."""

_PAGE_MAP: Final = re.compile(r"(pagemap-(?:shmem-)?[0-9]+)\.img", re.ASCII)
_REMEDY: Final = "Nothing was restored here: start the migration again."


def lay_out(files: str, names: Iterable[str], space_of: SpaceOf, *, chain: str, directory: str) -> None:
    """Fill a directory so that CRIU can restore from it.

    Args:
        files: Where the image files are that have come.
        names: Which of them make the image set.
        space_of: The pages that have come; the round is over.
        chain: Where the parents are put; what is there is replaced.
        directory: An empty directory below the same mount.

    Raises:
        ObjectCorrupt: a file or a page has not come, or a page map is damaged; says which.
        OsRefused, NoSpace: it cannot be written.
    """
    spaces: list[tuple[str, ReceivedSpace]] = []
    for name in names:
        if not os.path.isfile(f"{files}/{name}"):
            raise ObjectCorrupt(kind="image set", name=files, reason=f"{name} has not come", remedy=_REMEDY)
        if (match := _PAGE_MAP.fullmatch(name)) is None:
            with writing(directory):
                _place(f"{files}/{name}", f"{directory}/{name}")
            continue
        space = space_of(match[1])
        _write_top(Path(files) / name, space, directory)
        if space is not None:
            spaces.append((name, space))
    if os.path.lexists(chain):
        _remove(chain)
    depth = max((len(space.levels) for _, space in spaces), default=0)
    if depth:
        _make_chain(spaces, depth, chain)
        with writing(directory):
            os.symlink(
                os.path.relpath(os.path.realpath(f"{chain}/1"), os.path.realpath(directory)),
                f"{directory}/parent",
            )


def _write_top(page_map: Path, space: ReceivedSpace | None, directory: str) -> None:
    pages_id, runs, lazy = read_lazy_map(page_map)
    _refuse_missing(page_map.name, runs, space)
    entries = [MapEntry(*run, Where.PARENT) for run in runs] + [MapEntry(*run, Where.LAZY) for run in lazy]
    write_map(Path(directory) / page_map.name, pages_id, sorted(entries))
    with writing(directory):
        # Where it is missing, CRIU takes it for an image set without pages.
        os.close(
            os.open(
                f"{directory}/pages-{pages_id}.img",
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
            )
        )


def _refuse_missing(name: str, runs: Sequence[PageRun], space: ReceivedSpace | None) -> None:
    total = sum(count for _, count in runs)
    try:
        pieces = pieces_of(runs, total)
    except ValueError as error:
        raise ObjectCorrupt(kind="image file", name=name, reason=str(error), remedy=_REMEDY) from error
    missing = pieces if space is None else space.missing(pieces)
    if len(missing.first):
        raise ObjectCorrupt(
            kind="image set",
            name=name,
            reason=f"{int(missing.counts.sum())} of its {total} pages have not come; "
            f"the first is page {int(missing.first[0]):#x}",
            remedy=_REMEDY,
        )


def _make_chain(spaces: Sequence[tuple[str, ReceivedSpace]], depth: int, chain: str) -> None:
    with writing(os.path.dirname(chain)):
        for number in range(1, depth + 1):
            os.makedirs(f"{chain}/{number}", 0o700)
            if number > 1:
                os.symlink(f"../{number}", f"{chain}/{number - 1}/parent")
        for name, space in spaces:
            for number, level in enumerate(reversed(space.levels), 1):
                os.link(level.map_path, f"{chain}/{number}/{name}")
                os.link(level.pages_path, f"{chain}/{number}/pages-{space.pages_id}.img")


def _place(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
        shutil.copymode(source, target)


def _remove(chain: str) -> None:
    try:
        shutil.rmtree(chain)
    except OSError as error:
        raise OsRefused(operation="remove", subject=chain, reason=error.strerror or str(error)) from error
