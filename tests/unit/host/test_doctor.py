"""What the doctor makes of what it finds."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ckpt.errors import CriuMissing, OsRefused
from ckpt.host import doctor
from ckpt.host.criu.locate import PRIVATE
from ckpt.host.criu.outcome import Features
from ckpt.model.checks import State

ALL = Features(**{field.name: True for field in fields(Features)})


def test_all_features_are_well() -> None:
    [finding] = doctor.judge_features(ALL)
    assert finding.state is State.OK
    assert "timens" in finding.detail


def test_a_needed_feature_that_is_not_there_is_a_warning_with_its_loss() -> None:
    together, one = doctor.judge_features(replace(ALL, timens=False, mem_dirty_track=False))
    assert together.detail.endswith("not: mem_dirty_track, timens")
    assert (one.state, one.detail) == (State.WARNING, "no timens: restore only with --time host")
    assert one.remedy


def test_a_criu_without_any_feature_cannot_work() -> None:
    nothing = Features(**{field.name: False for field in fields(Features)})
    assert doctor.judge_features(nothing)[0].state is State.MISSING


@pytest.mark.parametrize(
    ("path", "environment", "how"),
    [
        (Path("/x/criu"), {"CKPT_CRIU": "/x/criu"}, "named by $CKPT_CRIU"),
        (PRIVATE, {}, "installed by scripts/setup"),
        (Path("/usr/sbin/criu"), {}, "found in PATH"),
    ],
)
def test_it_tells_how_criu_was_found(path: Path, environment: dict[str, str], how: str) -> None:
    assert doctor.how_found(path, environment) == how


def test_no_criu_is_missing_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none() -> Path:
        raise CriuMissing(places=("PATH",))

    monkeypatch.setattr("ckpt.host.criu.locate.find_criu", find_none)
    [finding] = [each for each in doctor.examine("/nowhere") if each.name == "criu"]
    assert finding.state is State.MISSING
    assert "scripts/setup" in finding.remedy


def test_no_init_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none() -> str:
        raise OsRefused(operation="execute", subject="x", reason="it is missing", remedy="Run scripts/setup.")

    monkeypatch.setattr(doctor, "init_path", find_none)
    [finding] = [each for each in doctor.examine("/nowhere") if each.name == "init of jobs"]
    assert (finding.state, finding.remedy) == (State.MISSING, "Run scripts/setup.")


def test_a_directory_is_judged_by_the_nearest_one_that_exists(tmp_path: Path) -> None:
    finding = doctor.directory_finding("store", str(tmp_path / "not" / "yet"), "--store")
    assert finding.state in {State.OK, State.WARNING}
    assert "free" in finding.detail


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 100, 1, 1, 10, 10, 10, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda _path: full)
    finding = doctor.directory_finding("store", str(tmp_path), "--store")
    assert (finding.state, "Free some space" in finding.remedy) == (State.WARNING, True)


def test_without_root_it_says_what_was_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    found = {finding.name: finding for finding in doctor.examine("/nowhere")}
    assert found["root"].state is State.WARNING
    assert "not probed" in found["nftables"].detail


def test_every_finding_but_a_good_one_has_a_remedy() -> None:
    for finding in doctor.examine("/nowhere"):
        assert finding.detail
        assert finding.state is State.OK or finding.remedy


def test_the_file_system_of_a_mount_point() -> None:
    assert doctor.filesystem_of("/proc") == "proc"
    assert doctor.filesystem_of("/no/such/mount") == ""
