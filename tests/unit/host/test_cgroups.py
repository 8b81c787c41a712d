"""Cgroup paths, records and settings, on plain directories where no kernel is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt.host import cgroup_settings, cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.model.workload import CgroupRecord, CgroupSetting
from ckpt.units import Pid

V1 = Hierarchy(name="cpu,cpuacct", mountpoint="/sys/fs/cgroup/cpu,cpuacct", root="/")
V2 = Hierarchy(name=cgroups.UNIFIED, mountpoint="/sys/fs/cgroup", root="/")
CONTAINER = Hierarchy(name=cgroups.UNIFIED, mountpoint="/sys/fs/cgroup", root="/docker/1234")


def test_a_hierarchy_is_version_2_by_its_name_and_else_has_controllers() -> None:
    assert V2.version == 2
    assert not V2.controllers
    assert V1.version == 1
    assert V1.controllers == {"cpu", "cpuacct"}


def test_a_path_of_proc_becomes_a_directory_below_the_mount() -> None:
    assert V2.directory("/") == "/sys/fs/cgroup"
    assert V2.directory("/a/b") == "/sys/fs/cgroup/a/b"
    assert CONTAINER.directory("/docker/1234/a") == "/sys/fs/cgroup/a"
    assert CONTAINER.directory("/elsewhere") == "/sys/fs/cgroup"


@pytest.mark.parametrize("path", ["/", "/a", "/a/b c"])
def test_a_directory_becomes_the_path_again(path: str) -> None:
    assert V2.relative(V2.directory(path)) == path


def test_mounts_with_blanks_and_other_file_systems_in_between_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "21 20 0:5 / /proc rw - proc proc rw\n"
        "30 20 0:9 / /cg/mem rw shared:3 - cgroup cgroup rw,memory\n"
        "31 20 0:10 / /cg/frozen\\040things rw - cgroup cgroup rw,freezer\n"
        "32 20 0:11 / /cg/systemd rw - cgroup systemd rw,xattr,name=systemd,release_agent=/lib/agent\n"
        "33 20 0:12 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
        "34 20 0:12 / /cg/again rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    real_open = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *rest, **words: real_open(
            mountinfo if path == "/proc/self/mountinfo" else path, *rest, **words
        ),
    )
    found = cgroups.hierarchies()
    # The order in which a relative path is looked up.
    assert [(each.name, each.mountpoint) for each in found] == [
        ("unified", "/cg/unified"),
        ("freezer", "/cg/frozen things"),
        ("memory", "/cg/mem"),
        ("name=systemd", "/cg/systemd"),
    ]


def test_cgroups_below_come_after_those_above_and_can_be_removed_together(tmp_path: Path) -> None:
    top = str(tmp_path / "top")
    cgroups.make(top + "/a/b")
    cgroups.make(top + "/c")
    found = cgroups.with_all_below(top)
    assert set(found) == {top, top + "/a", top + "/a/b", top + "/c"}
    assert found.index(top) < found.index(top + "/a") < found.index(top + "/a/b")
    assert cgroups.remove(top)
    assert not os.path.exists(top)
    assert cgroups.remove(top)
    assert cgroups.with_all_below(top) == []


def test_a_file_or_cgroup_that_is_not_there_reads_as_empty(tmp_path: Path) -> None:
    assert cgroups.read_or_empty(str(tmp_path / "gone"), "cgroup.procs") == ""
    assert cgroups.processes_below(str(tmp_path / "gone")) == []


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hierarchy:
    """A directory that plays the unified hierarchy; its files are plain."""
    hierarchy = Hierarchy(name=cgroups.UNIFIED, mountpoint=str(tmp_path), root="/")
    monkeypatch.setattr(cgroups, "hierarchies", lambda: (hierarchy,))
    return hierarchy


def _fill(cgroup: Path, **files: str) -> None:
    cgroup.mkdir(parents=True, exist_ok=True)
    (cgroup / "cgroup.procs").write_text("")
    for name, text in files.items():
        (cgroup / name.replace("__", ".")).write_text(text)


def test_only_cgroups_of_the_workload_alone_are_recorded_with_what_is_not_the_default(
    plain: Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(tmp_path / "shared", cgroup__procs="7\n")
    _fill(tmp_path / "shared/web", cgroup__procs="", memory__max="1048576\n", cpu__weight="100\n")
    _fill(tmp_path / "shared/web/in", cgroup__procs="8\n9\n", cpu__max="5000 100000\n", pids__max="max\n")
    monkeypatch.setattr(cgroups, "cgroup_of", lambda _pid, _hierarchy: str(tmp_path / "shared/web/in"))
    assert cgroup_settings.record_cgroups([Pid(8), Pid(9)]) == (
        CgroupRecord(
            hierarchy="unified",
            path="/shared/web",
            settings=(CgroupSetting(name="memory.max", value="1048576"),),
            members=(),
        ),
        CgroupRecord(
            hierarchy="unified",
            path="/shared/web/in",
            settings=(CgroupSetting(name="cpu.max", value="5000 100000"),),
            members=(Pid(8), Pid(9)),
        ),
    )


def test_a_cgroup_that_ckpt_made_for_a_dump_is_not_recorded(
    plain: Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transient = tmp_path / "ckpt-0123456789ab-77-1234"
    _fill(transient, cgroup__procs="8\n", memory__max="1\n")
    monkeypatch.setattr(cgroups, "cgroup_of", lambda _pid, _hierarchy: str(transient))
    assert cgroup_settings.record_cgroups([Pid(8)]) == ()


def test_a_cgroup_that_exists_is_used_as_it_is_and_a_hierarchy_that_is_missing_is_told(
    plain: Hierarchy, tmp_path: Path
) -> None:
    _fill(tmp_path / "there", memory__max="1\n")
    noted: list[str] = []
    outcome = cgroup_settings.create_cgroups(
        [
            CgroupRecord(
                hierarchy="unified",
                path="/there",
                settings=(CgroupSetting(name="memory.max", value="2"),),
                members=(),
            ),
            CgroupRecord(hierarchy="memory", path="/x", settings=(), members=()),
        ],
        note=noted.append,
    )
    assert outcome.made == ()
    assert outcome.problems == ("this host has no cgroup hierarchy memory for /x",)
    assert not noted
    assert (tmp_path / "there/memory.max").read_text() == "1\n"


def test_a_cgroup_is_noted_before_it_is_made_and_a_refused_setting_is_told(
    plain: Hierarchy, tmp_path: Path
) -> None:
    noted: list[bool] = []
    outcome = cgroup_settings.create_cgroups(
        [
            CgroupRecord(
                hierarchy="unified",
                path="/new",
                settings=(CgroupSetting(name="memory.max", value="2"),),
                members=(),
            )
        ],
        note=lambda directory: noted.append(os.path.exists(directory)),
    )
    assert noted == [False]
    assert outcome.made == (str(tmp_path / "new"),)
    assert outcome.problems == (f"{tmp_path}/new: memory.max = '2': this host has no such setting",)


@pytest.mark.parametrize(
    ("name", "value", "writes"),
    [
        ("memory.max", "5", [("memory.max", "5")]),
        ("io.max", "8:0 rbps=1\n8:16 wbps=2", [("io.max", "8:0 rbps=1"), ("io.max", "8:16 wbps=2")]),
        ("cgroup.subtree_control", "cpu memory", [("cgroup.subtree_control", "+cpu +memory")]),
        ("devices.list", "c 1:3 rwm", [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")]),
    ],
)
def test_a_value_is_written_back_as_the_kernel_takes_it(
    name: str, value: str, writes: list[tuple[str, str]]
) -> None:
    assert cgroup_settings._writes(CgroupSetting(name=name, value=value)) == writes
