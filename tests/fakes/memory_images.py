"""Image sets made by hand: what CRIU would have written about a little process, and a store that has it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakes.checkpoints import a_checkpoint
from fakes.values import a_process, a_tree

from ckpt.flow.memory import StoredMemory
from ckpt.host.criu.imagefile import write_entries
from ckpt.host.criu.pb import image
from ckpt.host.memory_layouts import ImageLayouts
from ckpt.store.store import Store
from ckpt.units import PAGE_BYTES, Pid

REGULAR, VDSO, HEAP = 1 << 0, 1 << 3, 1 << 5
FILE_PRIVATE, FILE_SHARED, ANON_SHARED, ANON_PRIVATE = 1 << 6, 1 << 7, 1 << 8, 1 << 9
SYSV, VVAR, MEMFD, GUARD = 1 << 10, 1 << 12, 1 << 14, 1 << 16
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_HUGETLB = 1, 2, 0x20, 0x100, 0x40000
PARENT, LAZY, PRESENT = 1, 2, 4

# fmt: off
_ADDRESSES = (
    "start_code", "end_code", "start_data", "end_data", "start_stack", "start_brk", "brk",
    "arg_start", "arg_end", "env_start", "env_end",
)
# fmt: on

HOST_PID = Pid(4242)
INSIDE = Pid(7)


@dataclass
class Images:
    """An image set in a directory."""

    folder: Path
    vmas: dict[int, list[Any]] = field(default_factory=dict)
    files: list[Any] = field(default_factory=list)
    memfds: list[Any] = field(default_factory=list)
    vm_ids: dict[int, int] = field(default_factory=dict)

    def vma(self, page: int, pages: int, status: int, *, pid: int = INSIDE, **fields: int) -> None:
        """A mapping of so many pages."""
        values = {"pgoff": 0, "shmid": 0, "prot": 3, "flags": MAP_PRIVATE, "fd": -1} | fields
        self.vmas.setdefault(pid, []).append(
            image.vma_entry(
                start=page * PAGE_BYTES, end=(page + pages) * PAGE_BYTES, status=REGULAR | status, **values
            )
        )

    def regular(self, number: int, name: str) -> None:
        """A mapped file."""
        entry = image.file_entry(type=1, id=number)
        entry.reg.id, entry.reg.flags, entry.reg.pos, entry.reg.name = number, 0, 0, name
        _own(entry.reg.fown)
        self.files.append(entry)

    def memfd(self, number: int, name: str, shmid: int) -> None:
        """Shared memory that is mapped by this number."""
        entry = image.file_entry(type=18, id=number)
        entry.memfd.id, entry.memfd.flags, entry.memfd.pos = number, 0, 0
        entry.memfd.inode_id = number + 100
        _own(entry.memfd.fown)
        self.files.append(entry)
        self.memfds.append(
            image.memfd_inode_entry(
                name=name, uid=0, gid=0, size=0, shmid=shmid, seals=0, inode_id=number + 100
            )
        )

    def page_map(self, name: str, pages_id: int, *entries: tuple[int, int, int]) -> None:
        """Entries of a first page, a number of pages and flags."""
        write_entries(
            self.folder / f"pagemap-{name}.img",
            "PAGEMAP",
            [
                image.pagemap_head(pages_id=pages_id),
                *(
                    image.pagemap_entry(
                        vaddr=page * PAGE_BYTES,
                        compat_nr_pages=min(count, 1 << 31),
                        nr_pages=count,
                        flags=flags,
                    )
                    for page, count, flags in entries
                ),
            ],
        )

    def pages(self, pages_id: int, content: bytes) -> None:
        """A pages file."""
        (self.folder / f"pages-{pages_id}.img").write_bytes(content)

    def write(self, *, zombies: tuple[int, ...] = ()) -> Path:
        """All but page maps and pages."""
        pids = [*self.vmas, *zombies]
        write_entries(
            self.folder / "pstree.img",
            "PSTREE",
            [image.pstree_entry(pid=pid, ppid=0, pgid=pid, sid=pid, threads=[pid]) for pid in pids],
        )
        for pid in pids:
            ids = image.task_kobj_ids_entry(
                vm_id=self.vm_ids.get(pid, pid), files_id=1, fs_id=1, sighand_id=1
            )
            write_entries(self.folder / f"ids-{pid}.img", "IDS", [ids])
        for pid, vmas in self.vmas.items():
            memory = image.mm_entry(exe_file_id=1, vmas=vmas, **{f"mm_{name}": 0 for name in _ADDRESSES})
            write_entries(self.folder / f"mm-{pid}.img", "MM", [memory])
        write_entries(self.folder / "files.img", "FILES", self.files)
        write_entries(self.folder / "memfd.img", "MEMFD_INODE", self.memfds)
        return self.folder


def stored(store: Store, folder: Path, ring: Path | None = None) -> StoredMemory:
    """The memory of a checkpoint that has the image set of `folder`, and carries this file as /dev/shm/ring."""
    with store.writer() as writer:
        files = [writer.add_file(str(path), path.name) for path in sorted(folder.iterdir())]
        carried = None if ring is None else writer.add_file(str(ring), "carried-0")
        plain = a_checkpoint(*files, carried=carried)
        process = replace(a_process(HOST_PID), pid_inside=INSIDE)
        tree = replace(a_tree(HOST_PID, children=0), processes=(process,))
        found = writer.commit(replace(plain, workload=replace(plain.workload, trees=(tree,))))
    return StoredMemory(store, ImageLayouts(), found)


def _own(owner: Any) -> None:
    owner.uid = owner.euid = owner.signum = owner.pid_type = owner.pid = 0
