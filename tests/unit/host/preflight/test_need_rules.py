"""The rules over needs, each provoked by a need that this host has not, or just has."""

from __future__ import annotations

import os
import resource
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import INODE
from fakes.needs import needs

from ckpt.host.preflight import needs_kernel, needs_places, needs_room
from ckpt.host.preflight.needs_cpu import missing_features
from ckpt.host.preflight.needs_rule import Here
from ckpt.host.preflight.needs_table import NEED_RULES, judge
from ckpt.model.findings import Finding, Severity
from ckpt.model.inodes import DigestState
from ckpt.model.needs import (
    KernelFeature,
    NeededHugePages,
    NeededName,
    NeededPid,
    NeededPort,
    NeededVolume,
    Protocol,
)
from ckpt.model.workload import CgroupRecord, CgroupSetting, ExternalMount
from ckpt.units import ByteCount, DeviceNumber, Pid

GIB = 1 << 30


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(state=str(tmp_path / "state"), store=str(tmp_path / "store"))


def found(here: Here, rule: str, **wanted: Any) -> list[Finding]:
    """What one rule finds, and that no other finds anything."""
    findings = [each for each in judge(needs(**wanted), replace(here, _made={})) if each.rule != "criu"]
    assert {each.rule for each in findings} <= {rule}
    return findings


def test_names_are_unique_and_every_rule_but_an_information_has_a_remedy() -> None:
    names = [rule.name for rule in NEED_RULES]
    assert len(names) == len(set(names))
    assert all(rule.remedy or rule.severity is Severity.INFO for rule in NEED_RULES)


def test_every_rule_is_in_the_document() -> None:
    document = (Path(__file__).parents[4] / "docs/check-host.md").read_text()
    for rule in NEED_RULES:
        row = f"| `{rule.name}` | {rule.severity.value} | {rule.title} | {rule.effect} |"
        assert row in document


def test_nothing_is_needed_and_nothing_found(here: Here) -> None:
    assert found(here, "none") == []


def test_a_taken_pid_names_its_holder(here: Here) -> None:
    [finding] = found(here, "pid-taken", pids=(NeededPid(pid=Pid(os.getpid()), name="web"),))
    assert (finding.pid, finding.severity) == (os.getpid(), Severity.BLOCKER)
    assert f"pid {os.getpid()} belongs to" in finding.message


def test_what_only_the_kernel_uses_of_a_cpu_does_not_count_and_all_else_is_named() -> None:
    needed = ("sse2", "avx512f", "amx_tile", "vmx", "pti", "constant_tsc", "a_feature_of_tomorrow")
    assert missing_features(needed, frozenset(("sse2",))) == ("a_feature_of_tomorrow", "amx_tile", "avx512f")
    assert missing_features(needed, frozenset()) == ()


def test_a_cpu_feature_that_is_missing_is_a_finding_of_its_own(here: Here) -> None:
    findings = found(here, "cpu-feature", cpu_features=("amx_of_tomorrow", "avx_of_tomorrow"))
    assert [each.subject for each in findings] == ["amx_of_tomorrow", "avx_of_tomorrow"]


def test_another_architecture_is_one_blocker_however_many_features_differ(here: Here) -> None:
    [finding] = found(here, "cpu-architecture", architecture="s390x", cpu_features=("vx",))
    assert finding.severity is Severity.BLOCKER


@pytest.mark.parametrize("feature", KernelFeature)
def test_a_kernel_feature_is_probed(
    feature: KernelFeature, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(needs_kernel._PROBES[feature](), bool)
    monkeypatch.setattr(needs_kernel, "_PROBES", {feature: lambda: False})
    [finding] = found(here, "kernel-feature", features=(feature,))
    assert feature.value in finding.message


@pytest.mark.parametrize(
    ("older", "newer"), [("4.1.1", "4.2"), ("4.2", "4.2.1"), ("3.17.1", "4.0"), ("4.9", "4.10")]
)
def test_versions_of_criu_are_compared_as_numbers(older: str, newer: str) -> None:
    assert needs_kernel._numbers(older) < needs_kernel._numbers(newer)
    assert not needs_kernel._numbers(newer) < needs_kernel._numbers(older)
    assert not needs_kernel._numbers(older) < needs_kernel._numbers("")


def test_an_older_criu_than_the_images_is_a_warning(here: Here) -> None:
    if not [each for each in judge(needs(), here) if each.rule == "criu"]:
        [finding] = [each for each in judge(needs(criu_version="99.1"), here) if each.rule == "criu"]
        assert finding.severity is Severity.WARNING
        assert "99.1" in finding.message


def test_a_controller_that_is_not_offered_is_a_warning_with_the_lost_settings(here: Here) -> None:
    record = CgroupRecord(
        hierarchy="perf_of_tomorrow",
        path="/x",
        settings=(CgroupSetting(name="memory.max", value="1"),),
        members=(),
    )
    [finding] = found(here, "cgroup-controller", cgroups=(record,))
    assert (finding.severity, "memory.max = 1" in finding.message) == (Severity.WARNING, True)
    assert found(here, "cgroup-controller", cgroups=(replace(record, settings=()),)) == []


def test_a_descriptor_above_the_limit_is_a_blocker(here: Here) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found(here, "descriptor-limit", descriptor_max=hard + 1)
    assert found(here, "descriptor-limit", descriptor_max=100) == []


@pytest.mark.parametrize(
    ("needed", "severity"), [(GIB, None), (15 * GIB, Severity.WARNING), (17 * GIB, Severity.BLOCKER)]
)
def test_memory_is_compared_with_what_is_available(
    needed: int, severity: Severity | None, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs_room, "_meminfo", lambda: {"MemAvailable": 12 * GIB, "SwapFree": 4 * GIB})
    findings = found(here, "memory", memory_bytes=ByteCount(needed))
    assert [each.severity for each in findings] == ([severity] if severity else [])


def test_staging_and_store_on_one_disk_are_added(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "os.statvfs", lambda _path: os.statvfs_result((4096, 4096, 100, 1, GIB // 4096, 10, 10, 10, 0, 255))
    )
    assert found(here, "space", staging_bytes=ByteCount(600 << 20)) == []
    [finding] = found(here, "space", staging_bytes=ByteCount(600 << 20), store_bytes=ByteCount(600 << 20))
    assert (finding.severity, "the store needs" in finding.message) == (Severity.BLOCKER, True)


def test_huge_pages_that_are_not_there_are_a_blocker(here: Here) -> None:
    size = ByteCount(1 << 21)
    [finding] = found(here, "huge-pages", huge_pages=(NeededHugePages(page_bytes=size, count=1 << 30),))
    assert "2.0 MiB" in finding.message


def test_a_mount_that_is_missing_is_named(here: Here, tmp_path: Path) -> None:
    place = str(tmp_path / "mounted")
    mount = ExternalMount(key=place, mountpoint=place, filesystem="sysfs", source="sysfs", root="/")
    [finding] = found(here, "mount-missing", mounts=(mount,))
    assert finding.subject == place


def test_a_volume_needs_its_place_for_itself(here: Here, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    volume = NeededVolume(mountpoint=str(tmp_path / "used"), filesystem="ext4", device=DeviceNumber(1))
    [finding] = found(here, "volume-place", volumes=(volume,))
    assert finding.subject == str(tmp_path / "used")


@pytest.mark.parametrize(
    ("taken", "needed"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "::")],  # noqa: S104
)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_taken_port_names_its_holder(taken: str, needed: str, protocol: Protocol, here: Here) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind((taken, 0))
        if protocol is Protocol.TCP:
            other.listen()
        port = NeededPort(
            protocol=protocol,
            address=needed,
            port=other.getsockname()[1],
            only_v6=False,
            foreign_address=":" in needed,
        )
        [finding] = found(here, "port-taken", ports=(port,))
        assert (finding.pid, finding.severity) == (os.getpid(), Severity.BLOCKER)
        # Only for IPv6 alone, or at another address, it is free.
        if needed == "::":
            assert found(here, "port-taken", ports=(replace(port, only_v6=True),)) == []
        if taken == needed:
            assert found(here, "port-taken", ports=(replace(port, address="127.0.0.2"),)) == []
    assert found(here, "port-taken", ports=(port,)) == []


def test_an_address_that_the_host_lacks_is_named_unless_the_socket_may_have_it(here: Here) -> None:
    port = NeededPort(
        protocol=Protocol.TCP, address="192.0.2.1", port=80, only_v6=False, foreign_address=False
    )
    [finding] = found(here, "port-taken", ports=(port,))
    assert "192.0.2.1" in finding.message
    assert found(here, "port-taken", ports=(replace(port, foreign_address=True),)) == []


def test_a_port_of_an_address_that_is_none_is_told(here: Here) -> None:
    port = NeededPort(
        protocol=Protocol.TCP, address="no:address", port=80, only_v6=False, foreign_address=True
    )
    assert needs_places._refusal(port)


def test_a_name_in_a_directory_that_is_missing_is_a_blocker(here: Here, tmp_path: Path) -> None:
    [finding] = found(here, "unix-directory", names=(NeededName(name=str(tmp_path / "no/x.sock")),))
    assert str(tmp_path / "no") in finding.message
    assert found(here, "unix-directory", names=(NeededName(name=str(tmp_path / "x.sock")),)) == []


def test_another_build_of_a_program_without_a_digest_is_a_blocker(here: Here) -> None:
    program = os.path.realpath("/bin/sh")
    status = os.stat(program)
    record = replace(
        INODE,
        path=program,
        size_bytes=ByteCount(status.st_size),
        mode=status.st_mode,
        digest=None,
        digest_state=DigestState.OVER_LIMIT,
        build_id="00" * 20,
    )
    rules = {each.rule: each for each in judge(needs(files=(record,)), here)}
    assert rules["file-build-id"].severity is Severity.BLOCKER
    assert rules["file-identity"].severity is Severity.INFO


def test_a_device_is_not_opened_for_a_build_id(here: Here) -> None:
    record = replace(INODE, path="/dev/zero", digest=None, digest_state=DigestState.OVER_LIMIT)
    assert record.build_id
    assert [each.rule for each in judge(needs(files=(record,)), here) if each.rule != "criu"] == ["file-kind"]
