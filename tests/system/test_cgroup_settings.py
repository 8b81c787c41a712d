"""The cgroups of a real workload, recorded, removed and made again with their limits."""

from __future__ import annotations

import os

import pytest
from real.ticking import await_true, scratch_cgroup, ticking

from ckpt.host import cgroups
from ckpt.host.cgroup_settings import create_cgroups, record_cgroups
from ckpt.host.cgroups import Hierarchy
from ckpt.model.workload import CgroupRecord, CgroupSetting

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="cgroups need root"),
]


def _with(controller: str) -> Hierarchy:
    found = next((each for each in cgroups.hierarchies() if controller in each.controllers), None)
    if found is None:
        pytest.skip(f"no version-1 {controller} controller is mounted")
    return found


@pytest.mark.parametrize(
    ("controller", "written", "expected"),
    [
        (
            "memory",
            {"memory.limit_in_bytes": "268435456", "memory.soft_limit_in_bytes": "134217728"},
            {"memory.limit_in_bytes": "268435456", "memory.soft_limit_in_bytes": "134217728"},
        ),
        (
            "cpu",
            {"cpu.shares": "512", "cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "25000"},
            {"cpu.shares": "512", "cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "25000"},
        ),
        ("pids", {"pids.max": "100"}, {"pids.max": "100"}),
        ("cpuset", {"cpuset.cpus": "0", "cpuset.mems": "0"}, {"cpuset.cpus": "0", "cpuset.mems": "0"}),
        ("devices", {"devices.deny": "a", "devices.allow": "c 1:3 rwm"}, {"devices.list": "c 1:3 rwm"}),
        ("freezer", {}, {}),
    ],
)
def test_a_version_1_cgroup_comes_back_with_its_limits_and_takes_processes(
    controller: str, written: dict[str, str], expected: dict[str, str]
) -> None:
    hierarchy = _with(controller)
    with ticking(1) as subject:
        with scratch_cgroup(hierarchy) as place:
            for name, value in written.items():
                cgroups.write(place, name, value)
            subject.move_into(place)
            records = [each for each in record_cgroups(subject.pids()) if each.hierarchy == hierarchy.name]
            cgroups.add_process(hierarchy.mountpoint, subject.root)
        (record,) = records
        assert hierarchy.mountpoint + record.path == place
        assert record.members == (subject.root,)
        for name, value in expected.items():
            assert CgroupSetting(name=name, value=value) in record.settings
        assert len(record.settings) <= len(expected) + 1  # memory.swappiness has no default
        try:
            outcome = create_cgroups(records, note=lambda _: None)
            assert outcome.made == (place,)
            assert outcome.problems == ()
            for name, value in expected.items():
                assert cgroups.read(place, name) == value
            subject.move_into(place)
            assert subject.runs()
            cgroups.add_process(hierarchy.mountpoint, subject.root)
        finally:
            await_true(lambda: cgroups.remove(place), "the cgroup can be removed")


def test_version_2_cgroups_come_back_nested_with_their_settings() -> None:
    hierarchy = cgroups.unified()
    if hierarchy is None:
        pytest.skip("no cgroup version 2 is mounted")
    with ticking(2) as subject:
        with scratch_cgroup(hierarchy) as place:
            cgroups.make(place + "/in")
            cgroups.write(place, "cgroup.max.depth", "3")
            cgroups.write(place + "/in", "cgroup.max.descendants", "7")
            first, second = subject.pids()
            cgroups.add_process(place, first)
            cgroups.add_process(place + "/in", second)
            records = tuple(
                each for each in record_cgroups(subject.pids()) if each.hierarchy == hierarchy.name
            )
            for pid in subject.pids():
                cgroups.add_process(hierarchy.mountpoint, pid)
        assert [(record.settings, record.members) for record in records] == [
            ((CgroupSetting(name="cgroup.max.depth", value="3"),), (first,)),
            ((CgroupSetting(name="cgroup.max.descendants", value="7"),), (second,)),
        ]
        try:
            outcome = create_cgroups(records, note=lambda _: None)
            assert outcome.made == (place, place + "/in")
            assert outcome.problems == ()
            assert cgroups.read(place, "cgroup.max.depth") == "3"
            assert cgroups.read(place + "/in", "cgroup.max.descendants") == "7"
        finally:
            await_true(lambda: cgroups.remove(place), "the cgroup can be removed")


def test_a_setting_that_is_none_is_told_and_not_written() -> None:
    hierarchy = cgroups.unified()
    if hierarchy is None:
        pytest.skip("no cgroup version 2 is mounted")
    with ticking(1) as subject, scratch_cgroup(hierarchy) as place:
        hostile = CgroupRecord(
            hierarchy=hierarchy.name,
            path=hierarchy.relative(place) + "/in",
            settings=(CgroupSetting(name="cgroup.procs", value=str(subject.root)),),
            members=(),
        )
        outcome = create_cgroups([hostile], note=lambda _: None)
        assert outcome.made == (place + "/in",)
        assert "not a setting" in outcome.problems[0]
        assert cgroups.processes_below(place) == []


def test_a_cgroup_that_is_shared_with_others_is_not_recorded() -> None:
    hierarchy = cgroups.unified()
    if hierarchy is None:
        pytest.skip("no cgroup version 2 is mounted")
    with scratch_cgroup(hierarchy) as place, ticking(1) as subject, ticking(1) as neighbour:
        subject.move_into(place)
        neighbour.move_into(place)
        assert not [each for each in record_cgroups(subject.pids()) if each.hierarchy == hierarchy.name]
