"""`ckpt prune`: what it tells, what it removes, and what it leaves alone; the store is a real one on disk."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint

from ckpt.cli.main import main
from ckpt.store.opening import open_local
from ckpt.units import SECOND, CheckpointId

HOUR = 3600 * SECOND
NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()) * SECOND


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document that the call prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def kept(tmp_path: Path, created_ns: int, job: str | None = "web", size: int = 100) -> CheckpointId:
    """A checkpoint with as many bytes that are in no other one and cannot be compressed."""
    (tmp_path / "core-1.img").write_bytes(random.Random(f"{created_ns} {job}").randbytes(size))
    store = open_local(str(tmp_path / "store"))
    with store.writer() as writer:
        file = writer.add_file(str(tmp_path / "core-1.img"), "core-1.img")
        return writer.commit(a_checkpoint(file, created_ns=created_ns, job=job))


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [each["id"] for each in run(capsys, "list")["checkpoints"]]


def on_disk(tmp_path: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_what_no_rule_keeps_goes_and_every_other_one_is_told_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yesterday, morning, first, last = (kept(tmp_path, NOON + offset * HOUR) for offset in (-24, -3, 0, 1))
    other = kept(tmp_path, NOON - 48 * HOUR, job=None)
    document = run(capsys, "prune", "--keep-last", "1", "--keep-hourly", "2", "--keep-daily", "2")
    assert not document["dry_run"]
    assert [each["id"] for each in document["removed"]] == [morning]
    assert document["removed"][0] == {
        "id": morning,
        "job": "web",
        "created": "2026-11-25T09:00:00.000000Z",
        "reasons": [],
    }
    assert {each["id"]: each["reasons"] for each in document["kept"]} == {
        other: ["last 1", "hourly 2026-11-23T12", "daily 2026-11-23"],
        yesterday: ["daily 2026-11-24"],
        first: ["hourly 2026-11-25T12"],
        last: ["last 1", "hourly 2026-11-25T13", "daily 2026-11-25"],
    }
    assert listed(capsys) == [other, yesterday, first, last]


def test_the_space_that_it_frees_is_really_freed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for hour in range(3):
        kept(tmp_path, NOON + hour * HOUR, size=1 << 20)
    before = on_disk(tmp_path)
    document = run(capsys, "prune", "--keep-last", "1")
    assert document["freed_bytes"] >= 2 << 20
    assert before - on_disk(tmp_path) >= 2 << 20
    assert document["removed_objects"] >= 2


def test_a_dry_run_tells_the_same_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [kept(tmp_path, NOON + hour * HOUR, size=1 << 20) for hour in range(3)]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    planned = run(capsys, "prune", "--keep-last", "1", "--dry-run")
    assert planned["dry_run"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before
    assert listed(capsys) == ids
    done = run(capsys, "prune", "--keep-last", "1")
    assert (done["kept"], done["removed"]) == (planned["kept"], planned["removed"])
    assert planned["freed_bytes"] == pytest.approx(done["freed_bytes"], abs=64 << 10)


def test_people_see_a_table_and_how_much_is_freed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = kept(tmp_path, NOON - HOUR), kept(tmp_path, NOON)
    assert main(["prune", "--keep-last", "1", "-n"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:4] == ["remove", first[:12], "web", "2026-11-25T11:00:00Z"]
    assert shown[2].split()[:4] == ["keep", last[:12], "web", "2026-11-25T12:00:00Z"]
    assert shown[2].endswith("last 1")
    assert shown[3].startswith("would remove 1 of 2 checkpoint(s) and free about ")
    assert main(["prune", "--keep-last", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed 1 of 2 checkpoint(s); freed ")
    assert main(["prune", "--keep-last", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed 0 of 1 checkpoint(s); freed ")


def test_quietly_only_the_ids_that_went_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = kept(tmp_path, NOON - HOUR), kept(tmp_path, NOON)
    assert main(["-q", "prune", "--keep-last", "1"]) == 0
    assert capsys.readouterr().out == f"{first}\n"
    assert main(["-q", "prune", "--keep-last", "1"]) == 0
    assert capsys.readouterr().out == ""


def test_a_tagged_checkpoint_stays_and_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned, going, staying = (kept(tmp_path, NOON + hour * HOUR) for hour in (-2, -1, 0))
    run(capsys, "tag", pinned, "stable")
    document = run(capsys, "prune", "--keep-last", "1")
    assert [each["id"] for each in document["removed"]] == [going]
    assert {each["id"]: each["reasons"] for each in document["kept"]} == {
        pinned: ["tagged stable"],
        staying: ["last 1"],
    }
    assert run(capsys, "show", "stable")["id"] == pinned


def test_only_the_named_job_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web = [kept(tmp_path, NOON + hour * HOUR) for hour in range(2)]
    shop = [kept(tmp_path, NOON + hour * HOUR, job="shop") for hour in range(2)]
    document = run(capsys, "prune", "--keep-last", "1", "--job", "shop")
    assert [each["id"] for each in document["removed"]] == shop[:1]
    assert sorted(listed(capsys)) == sorted([*web, shop[1]])


def test_a_clock_that_was_set_back_costs_no_job_its_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ahead = kept(tmp_path, NOON + 10**6 * HOUR)
    kept(tmp_path, NOON)
    newest = run(capsys, "show", "web@latest")["id"]
    run(capsys, "prune", "--keep-daily", "1")
    assert newest == ahead
    assert listed(capsys) == [ahead]


def test_nothing_is_left_out_of_a_store_without_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    document = run(capsys, "prune", "--keep-last", "1")
    assert (document["kept"], document["removed"], document["freed_bytes"]) == ([], [], 0)


@pytest.mark.parametrize(
    "words", [[], ["--keep-last", "0"], ["--keep-last", "-1"], ["--keep-daily", "x"], ["--job", "web"]]
)
def test_without_a_policy_it_is_wrong_usage_and_nothing_goes(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = kept(tmp_path, NOON)
    assert run(capsys, "prune", *words, code=2)["error"]["exit_code"] == 2
    assert listed(capsys) == [checkpoint]


def test_a_missing_policy_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune"]) == 2
    shown = capsys.readouterr().err
    assert "--keep-last N, --keep-hourly N, --keep-daily N or --keep-weekly N" in shown


def test_a_checkpoint_that_cannot_be_read_is_named_and_not_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, *whole = (kept(tmp_path, NOON + hour * HOUR) for hour in range(3))
    path = tmp_path / "store" / "manifests" / damaged
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-3])
    assert main(["prune", "--keep-last", "1", "--dry-run", "--json"]) == 3
    shown = capsys.readouterr()
    assert [each["subject"] for each in json.loads(shown.out)["problems"]] == [damaged]
    assert f"{damaged[:12]} is not judged: " in shown.err
    document = run(capsys, "prune", "--keep-last", "1", code=3)
    assert [each["id"] for each in document["kept"]] == whole[1:]
    assert path.exists()


def test_a_store_is_brought_below_a_size_by_removing_the_oldest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [kept(tmp_path, NOON + hour * HOUR, size=1 << 20) for hour in range(5)]
    other = kept(tmp_path, NOON - HOUR, job="old", size=1 << 20)
    run(capsys, "tag", ids[0], "pinned")
    dry = run(capsys, "prune", "--max-size", "4M", "--dry-run")
    assert sorted(listed(capsys)) == sorted([*ids, other])
    document = run(capsys, "prune", "--max-size", "4M")
    # The tagged one and the newest of each job stay; of the rest the oldest go, and no more than must.
    assert [each["id"] for each in document["removed"]] == ids[1:4][: len(document["removed"])]
    assert [each["id"] for each in dry["removed"]] == [each["id"] for each in document["removed"]]
    assert len(document["removed"]) == 3
    assert on_disk(tmp_path) <= 4 << 20
    again = run(capsys, "prune", "--max-size", "4M")
    assert again["removed"] == []


def test_a_store_that_cannot_be_so_small_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, NOON, size=1 << 20)
    newest = kept(tmp_path, NOON + HOUR, size=1 << 20)
    assert main(["prune", "--max-size", "1K"]) == 0
    printed = capsys.readouterr()
    assert "more than 1.0 KiB" in printed.err
    assert listed(capsys) == [newest]
    assert main(["prune", "--max-size", "1K", "--job", "web"]) == 2
