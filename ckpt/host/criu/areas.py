"""The memory that an image set holds: the mappings of its processes, and where the pages of each are.

Rules: only metadata is read; the pages files need not be there. Pages that are in another image set are refused:
to take them for untouched ones would be a lie.
Source: images/{mm,vma,pagemap,memfd,regfile}.proto; criu/include/image.h (VMA_*), criu/proc_parse.c (handle_vma),
criu/memfd.c (dump_memfd_inode), criu/pstree.c (an equal vm_id is the same memory), uapi/linux/mman.h.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ckpt.errors import ObjectCorrupt
from ckpt.host.criu.addresses import is_elsewhere, page_map, page_maps, present_pages
from ckpt.host.criu.imagefile import read_entries
from ckpt.host.criu.pstree import read_tasks, task_ids
from ckpt.model.memory import AddressSpace, Area, AreaKind, PageRun
from ckpt.units import PAGE_BYTES, Pid

_SUFFIX: Final = ".img"
_SHARED_PREFIX: Final = "pagemap-shmem-"

_VSYSCALL: Final = 1 << 2
_VDSO: Final = 1 << 3
_HEAP: Final = 1 << 5
_FILE_PRIVATE: Final = 1 << 6
_FILE_SHARED: Final = 1 << 7
_ANONYMOUS_SHARED: Final = 1 << 8
_SOCKET: Final = 1 << 11
_VVAR: Final = 1 << 12
_AIO_RING: Final = 1 << 13
_MEMFD: Final = 1 << 14
_SHADOW_STACK: Final = 1 << 15
_GUARD: Final = 1 << 16
_UPROBES: Final = 1 << 17
_PLUGIN: Final = 1 << 27

_MAP_SHARED: Final = 0x1
_MAP_GROWSDOWN: Final = 0x100
_MAP_HUGETLB: Final = 0x40000
_PROTECTIONS: Final = ((1, "r"), (2, "w"), (4, "x"))

# What CRIU calls the memory of mmap(MAP_SHARED | MAP_ANONYMOUS), as /proc/PID/maps does.
_NAMELESS: Final = "/dev/zero"

_PAGES_MAX: Final = 1 << 52
"""As many as 64 bits can address."""


def address_spaces(images: Path) -> tuple[AddressSpace, ...]:
    """The memory of all processes of an image set in the order of its tasks, and after it what they share.

    Processes without memory (zombies) have none here.

    Raises:
        ObjectCorrupt: the images are not what they should be, or their pages are in another image set.
        OsRefused: they cannot be read.
    """
    files = _MappedFiles(images)
    members: dict[int, list[Pid]] = {}
    for task in read_tasks(images):
        if (images / f"mm-{task.pid}{_SUFFIX}").is_file():
            # Old images have no such ids: then each has its own.
            members.setdefault(task_ids(images, task.pid).vm_id or -task.pid, []).append(task.pid)
    found = [_process_space(images, tuple(pids), files) for pids in members.values()]
    found += [
        _space(path, pids=(), areas=()) for path in page_maps(images) if path.name.startswith(_SHARED_PREFIX)
    ]
    return tuple(found)


def _process_space(images: Path, pids: tuple[Pid, ...], files: _MappedFiles) -> AddressSpace:
    path = images / f"mm-{pids[0]}{_SUFFIX}"
    entries = read_entries(path, "MM", "mm_entry")
    if len(entries) != 1:
        raise ObjectCorrupt(kind="image file", name=path.name, reason=f"it has {len(entries)} entries")
    areas = tuple(_areas(path, entries[0], files))
    pages = images / f"pagemap-{pids[0]}{_SUFFIX}"
    if not pages.is_file():
        return AddressSpace(name=pages.stem, pids=pids, pages_file="", areas=areas, runs=())
    return _space(pages, pids=pids, areas=areas)


def _areas(path: Path, memory: Any, files: _MappedFiles) -> Iterator[Area]:
    end = 0
    for vma in memory.vmas:
        # A guard is no mapping: it names pages of one that must stay without content.
        if vma.status & _GUARD:
            continue
        if not end <= vma.start < vma.end or (vma.start | vma.end) % PAGE_BYTES:
            raise ObjectCorrupt(
                kind="image file", name=path.name, reason=f"its mapping at {vma.start:#x} cannot be"
            )
        end = vma.end
        yield _area(vma, files, stack=memory.mm_start_stack)


def _area(vma: Any, files: _MappedFiles, *, stack: int) -> Area:
    status, is_shared = vma.status, bool(vma.flags & _MAP_SHARED)
    name, shared = "", None
    if status & _MEMFD:
        name, shared = files.shared(vma.shmid)
    elif status & (_FILE_PRIVATE | _FILE_SHARED):
        name = files.path(vma.shmid)
    elif status & _ANONYMOUS_SHARED:
        shared = vma.shmid
    return Area(
        start=vma.start,
        end=vma.end,
        permissions="".join(letter if vma.prot & bit else "-" for bit, letter in _PROTECTIONS)
        + ("s" if is_shared else "p"),
        kind=_kind(vma, stack=stack, is_shared=is_shared),
        path=name,
        offset=vma.pgoff if name or shared is not None else 0,
        shared=shared,
    )


def _kind(vma: Any, *, stack: int, is_shared: bool) -> AreaKind:
    status = vma.status
    if status & (_VSYSCALL | _VDSO | _VVAR | _AIO_RING | _UPROBES):
        return AreaKind.KERNEL
    if status & (_SOCKET | _PLUGIN):
        return AreaKind.DEVICE
    if vma.flags & _MAP_HUGETLB:
        return AreaKind.HUGE_PAGES
    if status & _ANONYMOUS_SHARED or (status & _MEMFD and is_shared):
        return AreaKind.SHARED_MEMORY
    if status & _FILE_SHARED:
        return AreaKind.SHARED_FILE
    if status & _FILE_PRIVATE:
        return AreaKind.FILE
    if status & _HEAP:
        return AreaKind.HEAP
    if status & _SHADOW_STACK or vma.flags & _MAP_GROWSDOWN or vma.start <= stack < vma.end:
        return AreaKind.STACK
    return AreaKind.ANONYMOUS


class _MappedFiles:
    """The files of an image set, by the ids that mappings name them with."""

    def __init__(self, images: Path) -> None:
        self._paths: dict[int, str] = {}
        self._shared: dict[int, tuple[str, int]] = {}
        memfds = {
            entry.inode_id: entry for entry in _read(images / "memfd.img", "MEMFD_INODE", "memfd_inode_entry")
        }
        for entry in _read(images / "files.img", "FILES", "file_entry"):
            if entry.HasField("reg"):
                self._paths[entry.id] = "/" + _text(entry.reg.name).lstrip("/")
            elif entry.HasField("memfd") and (inode := memfds.get(entry.memfd.inode_id)):
                name = "" if inode.name == _NAMELESS else f"/memfd:{_text(inode.name)}"
                self._shared[entry.id] = name, inode.shmid

    def path(self, file: int) -> str:
        """The path of a mapped file, "" if the images do not say."""
        return self._paths.get(file, "")

    def shared(self, file: int) -> tuple[str, int | None]:
        """The name of shared memory, "" for none, and its id; None if the images do not say."""
        return self._shared.get(file, ("", None))


def _text(value: str | bytes) -> str:
    # What is not UTF-8 comes as bytes or not, as the version of protobuf has it.
    return os.fsdecode(value)


def _read(path: Path, kind: str, message: str) -> list[Any]:
    return read_entries(path, kind, message) if path.is_file() else []


def _space(path: Path, *, pids: tuple[Pid, ...], areas: tuple[Area, ...]) -> AddressSpace:
    pages_file, entries = page_map(path)
    runs = tuple(_runs(path, entries))
    return AddressSpace(
        name=path.name.removesuffix(_SUFFIX),
        pids=pids,
        pages_file=pages_file if any(run.chunk is not None for run in runs) else "",
        areas=areas,
        runs=runs,
    )


def _runs(path: Path, entries: Iterable[Any]) -> Iterator[PageRun]:
    """The pages that are there, as few runs as can be."""
    page = count = place = 0
    chunk: int | None = None
    for entry in entries:
        first, present = entry.vaddr // PAGE_BYTES, present_pages(entry)
        length = present or _page_count(entry)
        if first < page + count or first + length > _PAGES_MAX:
            raise _corrupt(path, f"its pages at {entry.vaddr:#x} cannot be")
        if is_elsewhere(entry):
            raise _corrupt(path, "it refers to the pages of another image set")
        begin = place if present else None
        is_next = count > 0 and first == page + count and (begin is None) == (chunk is None)
        if not is_next:
            if count:
                yield PageRun(page=page, count=count, chunk=chunk)
            page, count, chunk = first, 0, begin
        count += length
        place += present
    if count:
        yield PageRun(page=page, count=count, chunk=chunk)


def _page_count(entry: Any) -> int:
    return int(entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)


def _corrupt(path: Path, reason: str) -> ObjectCorrupt:
    return ObjectCorrupt(kind="image file", name=path.name, reason=reason)
