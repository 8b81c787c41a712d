from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt.errors import CannotCheckpoint
from ckpt.host.mounts import (
    Mount,
    choose_external,
    dump_externals,
    external_mounts,
    has_own_mounts,
    mount_problems,
    mounts_of,
    parse_mountinfo,
    restore_externals,
    stand_ins,
)
from ckpt.model.workload import ExternalMount
from ckpt.units import Pid


def mount(place: str, device: str = "0:1", *, root: str = "/", filesystem: str = "tmpfs") -> Mount:
    return Mount(
        mount_id=1,
        parent_id=0,
        device=device,
        root=root,
        mountpoint=place,
        filesystem=filesystem,
        source="none",
    )


def external(place: str, filesystem: str = "tmpfs") -> ExternalMount:
    return ExternalMount(key=place, mountpoint=place, filesystem=filesystem, source="none", root="/")


def test_a_line_of_mountinfo_becomes_a_value_with_its_escapes_undone() -> None:
    line = rb"36 35 98:0 /a\040b /mnt/c\134d\012e rw,noatime master:1 shared:2 - ext4 /dev/x\040y rw" + b"\n"
    assert parse_mountinfo(line) == Mount(
        mount_id=36,
        parent_id=35,
        device="98:0",
        root="/a b",
        mountpoint="/mnt/c\\d\ne",
        filesystem="ext4",
        source="/dev/x y",
    )


def test_bytes_that_are_no_text_survive() -> None:
    assert os.fsencode(parse_mountinfo(b"1 0 0:1 / /\xff rw - tmpfs none rw\n").mountpoint) == b"/\xff"


def test_the_mounts_of_this_process_can_be_read() -> None:
    assert "/" in [each.mountpoint for each in mounts_of("self")]


def test_a_process_in_our_own_mount_namespace_has_no_external_mounts() -> None:
    assert not has_own_mounts(Pid(os.getpid()))
    assert external_mounts(Pid(os.getpid())) == ()


def test_what_the_host_has_too_is_external_and_the_rest_is_the_jobs_own() -> None:
    host = [mount("/", "8:1"), mount("/proc", "0:5"), mount("/dev", "0:6"), mount("/data", "8:2")]
    inside = [
        mount("/", "8:1"),
        mount("/dev", "0:6"),
        mount("/data", "8:2"),
        mount("/proc", "0:99"),
        mount("/own"),
    ]
    assert [each.mountpoint for each in choose_external("job", inside, host)] == ["/dev", "/data"]


def test_another_part_of_the_same_file_system_is_the_jobs_own() -> None:
    assert choose_external("job", [mount("/a", root="/x")], [mount("/a", root="/y")]) == ()


def test_a_place_mounted_over_twice_is_named_once_by_what_is_seen() -> None:
    stack = [mount("/dev/shm", "0:1", filesystem="lower"), mount("/dev/shm", "0:2", filesystem="upper")]
    assert [each.filesystem for each in choose_external("job", stack, stack)] == ["upper"]


def test_an_own_mount_over_one_of_the_hosts_is_refused_by_name() -> None:
    host = [mount("/data", "8:2")]
    with pytest.raises(CannotCheckpoint, match="its own tmpfs over the host's mount at /data"):
        choose_external("job x", [*host, mount("/data", "0:77")], host)


def test_criu_is_told_the_place_at_the_dump_and_the_key_at_the_restore() -> None:
    mounts = [external("/dev"), external("/a:b")]
    assert dump_externals(mounts) == ("mnt[/dev]:/dev", "mnt[/a:b]:/a:b")
    assert restore_externals(mounts) == ("mnt[/dev]:/dev", "mnt[/a:b]:/a:b")


def test_mounts_that_are_there_are_no_problem(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert mount_problems([external(place)], [place + "/file"], [mount(place)]) == ()


def test_a_place_that_does_not_exist_is_a_problem_only_if_something_is_held_there() -> None:
    gone = external("/does/not/exist")
    assert mount_problems([gone], ["/does/not/existing"], []) == ()
    assert mount_problems([gone], ["/does/not/exist/file"], []) == (
        "/does/not/exist does not exist, where tmpfs (none) was mounted",
    )


def test_a_place_that_is_gone_is_there_during_the_restore_and_one_in_memory_stays(tmp_path: Path) -> None:
    place, other = tmp_path / "user/0", tmp_path / "user/1"
    in_memory = [mount("/", filesystem="ext4"), mount(str(tmp_path), filesystem="tmpfs")]
    with stand_ins([external(str(place)), external(str(other))], [mount("/", filesystem="ext4")]):
        assert place.is_dir()
        assert other.is_dir()
    assert list(tmp_path.iterdir()) == []
    with stand_ins([external(str(place))], in_memory):
        assert place.is_dir()
    assert place.is_dir()


def test_a_mount_that_is_gone_is_a_problem_if_the_workload_holds_a_file_in_it(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert mount_problems([external(place)], [place + "x/file"], []) == ()
    assert mount_problems([external(place)], [place + "/file"], []) == (
        f"nothing is mounted at {place}, where tmpfs (none) was",
    )


def test_a_kernel_file_system_must_be_there_and_of_its_kind(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert mount_problems([external(place, "sysfs")], [], []) == (
        f"nothing is mounted at {place}, where sysfs (none) was",
    )
    assert mount_problems([external(place, "cgroup2")], [], [mount(place, filesystem="cgroup")]) == (
        f"{place} is cgroup (none) now, and was cgroup2 (none)",
    )
