"""Who is who in two checkpoints, and what changed: of values made by hand."""

from __future__ import annotations

from dataclasses import replace

from fakes.checkpoints import a_checkpoint
from fakes.values import an_image_file

from ckpt.flow.diff import diff
from ckpt.flow.matching import pair_areas, pair_sockets, pair_spaces, pair_tasks, pair_trees
from ckpt.model.changes import Change, FieldChange, ItemChange
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.model.contents import Holder, Socket, SocketFamily, Task, TaskState, TreeContents
from ckpt.model.memory import AddressSpace, Area, AreaKind
from ckpt.model.reports import StoredCheckpoint
from ckpt.model.workload import CgroupSetting
from ckpt.units import ByteCount, CheckpointId, Nanoseconds, Pid


def a_task(pid: int, inside: int, name: str = "web") -> Task:
    return Task(
        pid=Pid(pid),
        pid_inside=Pid(inside),
        parent=Pid(0),
        group=Pid(1),
        session=Pid(1),
        name=name,
        state=TaskState.ALIVE,
        uid=0,
        gid=0,
        executable="/usr/bin/web",
        cwd="/",
        root="/",
        umask=0o22,
        oom_score_adj=0,
        threads=(),
        pending_signals=(),
        limits=(),
        namespaces=(),
    )


def a_tree(
    root: int, *tasks: Task, sockets: tuple[Socket, ...] = (), memory: tuple[AddressSpace, ...] = ()
) -> TreeContents:
    return TreeContents(root=Pid(root), tasks=tasks, descriptors=(), sockets=sockets, pipes=(), memory=memory)


def a_socket(number: int, pid: int, fd: int) -> Socket:
    return Socket(
        number=number,
        family=SocketFamily.INET,
        type="stream",
        protocol="tcp",
        state="listening",
        local="0.0.0.0:80",
        remote="",
        peer=0,
        outside=False,
        receive_bytes=ByteCount(0),
        send_bytes=ByteCount(0),
        holders=(Holder(pid=Pid(pid), fd=fd, access="rw"),),
    )


def an_area(start: int, pages: int, path: str = "", shared: int | None = None) -> Area:
    kind = AreaKind.FILE if path else AreaKind.ANONYMOUS if shared is None else AreaKind.SHARED_MEMORY
    return Area(
        start=start,
        end=start + pages * 4096,
        permissions="rw-p",
        kind=kind,
        path=path,
        offset=0,
        shared=shared,
    )


def a_space(name: str, *pids: int, areas: tuple[Area, ...] = ()) -> AddressSpace:
    return AddressSpace(name=name, pids=tuple(map(Pid, pids)), pages_file="", areas=areas, runs=())


def test_trees_are_paired_by_their_roots_and_else_in_their_order() -> None:
    one, two, three = a_tree(1), a_tree(2), a_tree(3)
    assert pair_trees((one, two), (two, three)) == [(two, two), (None, three), (one, None)]
    assert pair_trees((one,), (two, three)) == [(one, two), (None, three)]


def test_tasks_are_paired_by_their_pids_inside_and_else_in_their_order() -> None:
    one, two = a_task(100, 1), a_task(101, 2)
    again, new = a_task(200, 1), a_task(201, 3)
    assert pair_tasks(a_tree(100, one, two), a_tree(200, again, new)) == [
        (one, again),
        (None, new),
        (two, None),
    ]
    other = a_task(300, 300)
    assert pair_tasks(a_tree(100, one, two), a_tree(300, other)) == [(one, other), (two, None)]


def test_a_socket_is_the_same_after_a_restore_that_gave_it_another_number() -> None:
    was, now = a_socket(10, 100, 3), a_socket(77, 200, 3)
    before, after = a_tree(100, sockets=(was,)), a_tree(200, sockets=(now,))
    assert pair_sockets(before, after, {Pid(100): Pid(200)}) == [(was, now)]
    assert pair_sockets(before, after, {}) == [(None, now), (was, None)]
    # One that was made anew at the same number of a descriptor, while the first lives on at another.
    moved = replace(was, holders=(Holder(pid=Pid(100), fd=9, access="rw"),))
    new = a_socket(11, 100, 3)
    assert pair_sockets(before, a_tree(100, sockets=(new, moved)), {}) == [(None, new), (was, moved)]


def test_mappings_are_paired_by_place_and_content() -> None:
    heap, library, went = an_area(0x1000, 2), an_area(0x9000, 1, "/lib/a.so"), an_area(0xF0000, 1)
    grown, moved, came = an_area(0x1000, 4), an_area(0x20000, 1, "/lib/a.so"), an_area(0xFF000, 3)
    assert pair_areas((heap, library, went), (grown, moved, came)) == [
        (heap, grown),
        (library, moved),
        (None, came),
        (went, None),
    ]


def test_shared_memory_is_paired_by_where_it_is_mapped() -> None:
    was = a_tree(
        1,
        memory=(a_space("pagemap-1", 100, areas=(an_area(0x1000, 1, shared=5),)), a_space("pagemap-shmem-5")),
    )
    now = a_tree(
        1,
        memory=(a_space("pagemap-1", 200, areas=(an_area(0x1000, 1, shared=9),)), a_space("pagemap-shmem-9")),
    )
    pairs = pair_spaces(was, now, {Pid(100): Pid(200)})
    assert [(one and one.name, other and other.name) for one, other in pairs] == [
        ("pagemap-1", "pagemap-1"),
        ("pagemap-shmem-5", "pagemap-shmem-9"),
    ]


class Images:
    """A store, and a reader of image sets: the tree of each checkpoint."""

    def __init__(self, **trees: TreeContents) -> None:
        self._trees = trees
        self._last = ""

    def fetch(self, checkpoint: CheckpointId, file: StoredFile, path: str) -> None:
        self._last = checkpoint

    def page_digests(self, checkpoint: CheckpointId, file: StoredFile) -> bytes:
        raise AssertionError("no page is stored")

    def wanted(self, names: object) -> tuple[str, ...]:
        return ("core-1.img",)

    def read(self, fill: object, root: Pid, pids: object) -> TreeContents:
        assert callable(fill)
        fill("/nowhere")
        return self._trees[self._last]


def stored(name: str, checkpoint: Checkpoint) -> StoredCheckpoint:
    return StoredCheckpoint(id=CheckpointId(name), checkpoint=checkpoint, tags=(), stored_bytes=ByteCount(0))


def test_manifests_and_images_are_compared() -> None:
    before = a_checkpoint(an_image_file("core-1.img"))
    inode = replace(before.inodes[0], size_bytes=ByteCount(1))
    cgroup = replace(
        before.workload.cgroups[0],
        path="/renamed",
        settings=(CgroupSetting(name="memory.max", value="4096"), CgroupSetting(name="pids.max", value="9")),
    )
    after = replace(
        before,
        inodes=(inode, *before.inodes[1:]),
        clocks=before.clocks.later(Nanoseconds(5)),
        workload=replace(before.workload, cgroups=(cgroup,)),
    )
    images = Images(
        a=a_tree(4242, a_task(4242, 1)), b=a_tree(4242, a_task(4242, 1, "api"), a_task(4300, 2, "helper"))
    )
    changes = diff(images, images, stored("a", before), stored("b", after))  # type: ignore[arg-type]
    assert changes.tasks == (
        ItemChange(
            change=Change.CHANGED,
            pid=Pid(4242),
            subject="api",
            fields=(FieldChange(name="name", before="web", after="api"),),
        ),
        ItemChange(change=Change.CAME, pid=Pid(4300), subject="helper", fields=()),
    )
    [file] = changes.files
    assert file.fields == (FieldChange(name="size_bytes", before=before.inodes[0].size_bytes, after=1),)
    assert [(each.change, each.subject) for each in changes.limits] == [
        (Change.CHANGED, "unified:/ memory.max"),
        (Change.CAME, "unified:/ pids.max"),
    ]
    assert (changes.passed.realtime_ns, changes.passed.boottime_ns, changes.warnings) == (5, 5, ())
