"""`ckpt show` and `ckpt diff` of checkpoints whose images nobody can read: what the manifests say is told all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import write

from ckpt.cli.main import main
from ckpt.store.opening import open_local

PARTS = ("tasks", "memory", "descriptors", "sockets", "pipes")


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two checkpoints with images of somebody else."""
    store = open_local(str(tmp_path / "store"), create=True)
    return [write(store, {"pstree.img": b"who knows"}, created_ns=created)[0] for created in (1, 2_000)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    assert main([*arguments, "--json"]) == code
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_what_cannot_be_read_is_null_and_a_warning(
    capsys: pytest.CaptureFixture[str], two: list[str]
) -> None:
    document, warnings = run(capsys, "show", two[0])
    assert document["id"] == two[0]
    assert [document[name] for name in PARTS] == [None] * len(PARTS)
    assert "pstree.img" in warnings


def test_the_portrait_is_shown_without_it(capsysbinary: pytest.CaptureFixture[bytes], two: list[str]) -> None:
    assert main(["show", two[0]]) == 0
    # A path in it is not UTF-8.
    assert b"Processes" in capsysbinary.readouterr().out


def test_asked_for_itself_it_is_an_error(capsys: pytest.CaptureFixture[str], two: list[str]) -> None:
    document, _ = run(capsys, "show", two[0], "--maps", code=42)
    assert "pstree.img" in document["error"]["message"]


def test_the_clocks_need_no_images(capsys: pytest.CaptureFixture[str], two: list[str]) -> None:
    document, warnings = run(capsys, "show", two[0], "--clocks")
    assert document.keys() == {"id", "clocks", "time_offsets", "timers", "waits"}
    assert document["time_offsets"][0]["monotonic_ns"] == -5
    assert not warnings
    assert main(["show", two[0], "--clocks"]) == 0
    assert "waits in clock_nanosleep on CLOCK_MONOTONIC, 0:00:01.250000 left" in capsys.readouterr().out


def test_quietly_only_the_id_is_told(capsys: pytest.CaptureFixture[str], two: list[str]) -> None:
    assert main(["show", two[0], "-q"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{two[0]}\n", "")


def test_a_diff_compares_the_manifests_and_warns(capsys: pytest.CaptureFixture[str], two: list[str]) -> None:
    document, told = run(capsys, "diff", *two)
    assert (document["before"], document["after"]) == tuple(two)
    assert len(document["warnings"]) == 2
    assert all(warning in told for warning in document["warnings"])
    assert document["memory"] == document["tasks"] == document["files"] == []
    assert document["pages"]["same"] == 0
    assert main(["diff", *two]) == 0
    assert "Nothing else changed." in capsys.readouterr().out
