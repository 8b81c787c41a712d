from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.errors import CriuMissing
from ckpt.host.criu import locate
from ckpt.host.criu.locate import find_criu


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_order_is_the_environment_then_the_private_one_then_the_path(tmp_path: Path) -> None:
    ordered, private, system = (
        program(tmp_path / name / "criu") for name in ("ordered", "private", "system")
    )
    path = str(system.parent)
    assert find_criu({"CKPT_CRIU": str(ordered), "PATH": path}, private) == ordered
    assert find_criu({"PATH": path}, private) == private
    assert find_criu({"PATH": path}, tmp_path / "none") == system


def test_an_order_that_cannot_be_followed_is_an_error(tmp_path: Path) -> None:
    private = program(tmp_path / "private" / "criu")
    with pytest.raises(CriuMissing, match=r"CKPT_CRIU"):
        find_criu({"CKPT_CRIU": str(tmp_path / "none")}, private)


def test_a_file_that_cannot_be_executed_is_none(tmp_path: Path) -> None:
    private = program(tmp_path / "private" / "criu")
    private.chmod(0o644)
    with pytest.raises(CriuMissing) as missing:
        find_criu({"PATH": str(tmp_path)}, private)
    assert str(private) in missing.value.message
    assert "scripts/setup" in missing.value.advice


def test_a_release_has_its_own_before_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, private = program(tmp_path / "release/criu/bin/criu"), program(tmp_path / "private/criu")
    manifest = tmp_path / "release/lib/setup.json"
    monkeypatch.setattr(locate, "BESIDE", beside)
    monkeypatch.setattr(locate, "_MANIFEST", manifest)
    # A checkout is none, whatever lies beside it.
    assert find_criu({}, private) == private
    manifest.parent.mkdir()
    manifest.touch()
    assert find_criu({}, private) == beside
    assert find_criu({"CKPT_CRIU": str(private)}, private) == private
