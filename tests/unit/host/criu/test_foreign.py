"""Images that ckpt did not make: described by what they say, and refused where they are not whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckpt.codec.objects import MANIFEST
from ckpt.errors import FormatUnknown, ObjectCorrupt, OsRefused
from ckpt.host.criu.by_hand import count_pages_as_before, restore_commands, stats_dump
from ckpt.host.criu.foreign import describe, image_names
from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.pb import image
from ckpt.host.criu.statistics import read_dump_statistics
from ckpt.model.checkpoint import DumpOptions, DumpStatistics
from ckpt.model.clocks import TimeOffsets
from ckpt.model.workload import ExternalMount
from ckpt.units import PAGE_BYTES, Nanoseconds

SECOND = 1_000_000_000
WRITTEN_NS = 1_700_000_000 * SECOND
KINDS = ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")
COMMAND = b"/bin/server\0--port\x00080\0"
STACK = 0x7000

STATISTICS = DumpStatistics(
    freezing_ns=Nanoseconds(1_000_000),
    frozen_ns=Nanoseconds(28_000_000),
    memory_dump_ns=Nanoseconds(3_000_000),
    memory_write_ns=Nanoseconds(4_000_000),
    pages_scanned=5,
    pages_written=6,
)


def ids(**changes: int) -> Any:
    numbers = {f"{kind}_ns_id": number for number, kind in enumerate(KINDS, 1)}
    return image.task_kobj_ids_entry(vm_id=1, files_id=1, fs_id=1, sighand_id=1, **{**numbers, **changes})


def filled(message: Any) -> Any:
    """The message, zero in every field that must be there and is not."""
    for path in message.FindInitializationErrors():
        *parents, name = path.split(".")
        owner = message
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, 0)
    return message


def core(name: str, *, state: int = 1) -> Any:
    entry = image.core_entry(mtype=1)
    entry.tc.task_state, entry.tc.comm = state, name
    creds = entry.thread_core.creds
    creds.uid, creds.gid = 33, 34
    creds.cap_eff.extend([1, 2])
    return filled(entry)


def make_memory(images: Path, pid: int, *, flags: int = 4) -> None:
    """Two pages, the command line lying across them."""
    start = STACK + PAGE_BYTES - 5
    mm = filled(image.mm_entry(mm_arg_start=start, mm_arg_end=start + len(COMMAND)))
    write_entries(images / f"mm-{pid}.img", "MM", [mm])
    head = image.pagemap_head(pages_id=1)
    pages = image.pagemap_entry(vaddr=STACK, compat_nr_pages=0, nr_pages=2, flags=flags)
    write_entries(images / f"pagemap-{pid}.img", "PAGEMAP", [head, pages])
    content = bytes(PAGE_BYTES - 5) + COMMAND
    (images / "pages-1.img").write_bytes(content.ljust(2 * PAGE_BYTES, b"\0"))


def make_images(images: Path, *, root: int = 70, monotonic_s: int = 5, own: tuple[str, ...] = ()) -> Path:
    images.mkdir(parents=True)
    changes = {f"{kind}_ns_id": 90 + number for number, kind in enumerate(own)}
    write_entries(
        images / "inventory.img", "INVENTORY", [image.inventory_entry(img_version=2, root_ids=ids())]
    )
    write_entries(
        images / "pstree.img",
        "PSTREE",
        [
            image.pstree_entry(pid=root, ppid=0, pgid=root, sid=root, threads=[root, root + 1]),
            image.pstree_entry(pid=root + 2, ppid=root, pgid=root, sid=root, threads=[root + 2]),
        ],
    )
    write_entries(images / f"core-{root}.img", "CORE", [core("server")])
    write_entries(images / f"core-{root + 2}.img", "CORE", [core("gone", state=2)])
    write_entries(images / f"ids-{root}.img", "IDS", [ids(**changes)])
    timens = image.timens_entry()
    timens.monotonic.tv_sec, timens.monotonic.tv_nsec = monotonic_s, 7
    timens.boottime.tv_sec, timens.boottime.tv_nsec = monotonic_s + 1, 8
    write_entries(images / "timens-0.img", "TIMENS", [timens])
    write_entries(images / "files.img", "FILES", [])
    make_memory(images, root)
    (images / "stats-dump").write_bytes(stats_dump(STATISTICS))
    (images / "dump.log").write_text("(00.000001) hello\n")
    os.utime(images / "inventory.img", ns=(WRITTEN_NS, WRITTEN_NS))
    return images


def test_images_are_described_by_what_they_say(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    found = describe(images, job=None, message="from elsewhere")
    checkpoint = found.checkpoint
    assert found.directories == (images,)
    assert (checkpoint.created_ns, checkpoint.clocks.realtime_ns) == (WRITTEN_NS, WRITTEN_NS)
    assert (checkpoint.clocks.monotonic_ns, checkpoint.clocks.boottime_ns) == (5 * SECOND + 7, 6 * SECOND + 8)
    assert checkpoint.image_sets[0].statistics == STATISTICS
    assert checkpoint.frozen_ns == STATISTICS.frozen_ns
    assert (checkpoint.host.architecture, checkpoint.host.hostname) == ("x86_64", "")
    [tree] = checkpoint.workload.trees
    assert (tree.root, tree.time_offsets) == (70, TimeOffsets())
    first, second = tree.processes
    assert (first.pid, first.pid_inside, first.parent, first.threads) == (70, 70, 0, (70, 71))
    assert (first.name, first.state, first.uid, first.gid) == ("server", "S", 33, 34)
    assert first.capabilities == 1 | 2 << 32
    assert first.command_line == ("/bin/server", "--port", "080")
    assert (second.parent, second.state, second.command_line) == (70, "Z", ())
    assert not any(namespace.own for namespace in tree.namespaces)
    # What is described can be written down.
    MANIFEST.encode(checkpoint)


def test_only_image_files_belong_to_the_set(tmp_path: Path) -> None:
    names = image_names(make_images(tmp_path / "images"))
    assert {"inventory.img", "pages-1.img"} <= set(names)
    assert not {"stats-dump", "dump.log"} & set(names)


def test_each_namespace_of_its_own_is_known(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", own=("mnt", "pid"))
    [tree] = describe(images, job=None, message="").checkpoint.workload.trees
    assert {namespace.kind for namespace in tree.namespaces if namespace.own} == {"mnt", "pid"}


def test_what_restore_must_be_told_is_found_in_the_images(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    assert describe(images, job=None, message="").checkpoint.options == DumpOptions(file_locks=False)
    lock = image.file_lock_entry(flag=1, type=1, pid=70, fd=4, start=0, len=0)
    write_entries(images / "filelocks.img", "FILE_LOCKS", [lock])
    (images / "tcp-stream-9.img").touch()
    root = image.pstree_entry(pid=70, ppid=0, pgid=70, sid=3, threads=[70])
    write_entries(images / "pstree.img", "PSTREE", [root])
    assert describe(images, job=None, message="").checkpoint.options == DumpOptions(
        file_locks=True, tcp_established=True, shell_job=True
    )


def test_external_mounts_are_found_in_the_images(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", own=("mnt",))
    common = {
        "fstype": 0,
        "mnt_id": 1,
        "root_dev": 1,
        "parent_mnt_id": 0,
        "flags": 0,
        "root": "/",
        "options": "",
    }
    write_entries(
        images / "mountpoints-12.img",
        "MNTS",
        [
            image.mnt_entry(**common, mountpoint="/", source="/dev/vda"),
            image.mnt_entry(**common, mountpoint="/dev/shm", source="tmpfs", fsname="tmpfs", ext_key="/dev/shm"),
            image.mnt_entry(**common, mountpoint="/data", source="/dev/vdb", fsname="ext4", ext_key="DATA"),
        ],
    )  # fmt: skip
    workload = describe(images, job=None, message="").checkpoint.workload
    assert workload.external_mounts == (
        ExternalMount(key="/dev/shm", mountpoint="/dev/shm", filesystem="tmpfs", source="tmpfs", root="/"),
        ExternalMount(key="DATA", mountpoint="/data", filesystem="ext4", source="/dev/vdb", root="/"),
    )


def test_several_trees_share_the_clocks_of_the_first(tmp_path: Path) -> None:
    make_images(tmp_path / "dump/100", root=1, monotonic_s=5, own=("pid",))
    make_images(tmp_path / "dump/200", root=1, monotonic_s=8, own=("pid",))
    found = describe(tmp_path / "dump", job=None, message="")
    first, second = found.checkpoint.workload.trees
    assert (first.root, second.root) == (100, 200)
    assert [images.root for images in found.checkpoint.image_sets] == [100, 200]
    assert (first.processes[0].pid_inside, first.processes[1].parent) == (1, 100)
    assert second.time_offsets == TimeOffsets(
        monotonic_ns=Nanoseconds(3 * SECOND), boottime_ns=Nanoseconds(3 * SECOND)
    )


def test_two_trees_with_one_root_are_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "dump/a")
    make_images(tmp_path / "dump/b")
    with pytest.raises(FormatUnknown, match="same root"):
        describe(tmp_path / "dump", job=None, message="")


def test_images_without_clocks_go_on_from_now(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    (images / "timens-0.img").unlink()
    assert describe(images, job=None, message="").checkpoint.clocks.monotonic_ns > 0


def test_a_command_line_that_is_not_in_the_images_is_left_out(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    make_memory(images, 70, flags=0)
    [tree] = describe(images, job=None, message="").checkpoint.workload.trees
    assert tree.processes[0].command_line == ()


@pytest.mark.parametrize("flags", [1, 2])
def test_images_whose_pages_are_elsewhere_are_refused(flags: int, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    make_memory(images, 70, flags=flags)
    with pytest.raises(FormatUnknown, match=r"pagemap-70\.img"):
        describe(images, job=None, message="")


def test_a_directory_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with pytest.raises(FormatUnknown, match=r"inventory\.img"):
        describe(tmp_path, job=None, message="")
    with pytest.raises(OsRefused):
        describe(tmp_path / "nowhere", job=None, message="")


@pytest.mark.parametrize("name", ["pstree.img", "pages-1.img", "core-70.img"])
def test_a_set_that_lacks_a_file_is_refused(name: str, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    (images / name).unlink()
    with pytest.raises((ObjectCorrupt, OsRefused), match=name.replace(".", r"\.")):
        describe(images, job=None, message="")


@pytest.mark.parametrize("name", ["inventory.img", "pstree.img", "core-70.img", "mm-70.img", "timens-0.img"])
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    content = (images / name).read_bytes()
    for damaged in (b"", content[:-1], b"\0" * len(content)):
        (images / name).write_bytes(damaged)
        with pytest.raises(ObjectCorrupt):
            describe(images, job=None, message="")


def test_the_figures_of_a_dump_are_written_as_criu_writes_them(tmp_path: Path) -> None:
    (tmp_path / "stats-dump").write_bytes(stats_dump(STATISTICS))
    assert read_dump_statistics(tmp_path / "stats-dump") == STATISTICS


def test_page_counts_are_said_in_both_fields(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    count_pages_as_before(images / "pagemap-70.img")
    _, entry = read_entries(images / "pagemap-70.img", "PAGEMAP", "pagemap_entry", first="pagemap_head")
    assert (entry.nr_pages, entry.compat_nr_pages) == (2, 2)


def test_the_commands_say_what_criu_must_be_told(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", own=("mnt",))
    (images / "tcp-stream-9.img").touch()
    checkpoint = describe(images, job=None, message="").checkpoint
    *mounting, restoring = restore_commands(checkpoint, checkpoint.workload.trees[0], "/a b")
    assert restoring[:4] == ("criu", "restore", "--images-dir", "/a b")
    assert "--tcp-established" in restoring
    assert "--file-locks" not in restoring
    assert restoring[restoring.index("--root") + 1] == mounting[0][-1]
    assert ("mount", "--make-private", mounting[0][-1]) in mounting
