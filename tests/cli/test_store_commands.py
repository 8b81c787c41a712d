"""`ckpt store init`, `stats`, `set` and `rekey`, on real stores on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint

from ckpt.cli.keys import new_secret
from ckpt.cli.main import main
from ckpt.cli.store_stats import document_of
from ckpt.errors import NoSpace, WrongState
from ckpt.model.reports import StoreStatistics
from ckpt.store.opening import Keys, open_local
from ckpt.units import ByteCount, CheckpointId

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))
    for name in ("CKPT_KEY_FILE", "CKPT_KEY_COMMAND", "CKPT_KEYS"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document that the call prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def kept(
    tmp_path: Path, number: int, job: str | None, own_bytes: int, key_file: Path | None = None
) -> CheckpointId:
    """A checkpoint of 1 MiB that cannot be compressed, of which the last `own_bytes` are its own."""
    content = random.Random(0).randbytes(MIB - own_bytes) + random.Random(number).randbytes(own_bytes)
    (tmp_path / "pages-1.img").write_bytes(content)
    keys = Keys(secret=lambda: None if key_file is None else key_file.read_bytes().rstrip())
    with open_local(str(tmp_path / "store"), keys=keys).writer() as writer:
        file = writer.add_file(str(tmp_path / "pages-1.img"), "pages-1.img")
        return writer.commit(a_checkpoint(file, created_ns=number, job=job))


def test_init_makes_a_plain_store_that_needs_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "store", "init") == {
        "store": str(tmp_path / "store"),
        "encrypted": False,
        "signatures_required": True,
        "made_key_file": None,
    }
    assert run(capsys, "list") == {"checkpoints": []}
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


def test_init_refuses_a_store_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = kept(tmp_path, 1, "web", 0)
    assert run(capsys, "store", "init", code=62)["error"]["slug"] == "wrong-state"
    key = tmp_path / "key"
    run(capsys, "store", "init", "--encrypt", "--key-file", str(key), code=62)
    # A key file that is the key of nothing would mislead.
    assert not key.exists()
    assert [each["id"] for each in run(capsys, "list")["checkpoints"]] == [checkpoint]


def test_init_refuses_a_place_with_other_things_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "letter").write_text("dear")
    assert run(capsys, "store", "init", code=40)["error"]["slug"] == "store-unusable"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["letter"]


def test_an_encrypted_store_opens_with_its_key_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    document = run(capsys, "store", "init", "--encrypt", "--key-file", str(key))
    assert (document["encrypted"], document["made_key_file"]) == (True, str(key))
    assert key.stat().st_mode & 0o777 == 0o600
    checkpoint = kept(tmp_path, 1, "web", 0, key)
    assert run(capsys, "list", code=40)["error"]["slug"] == "wrong-key"
    other.touch(mode=0o600)
    other.write_text("guess\n")
    assert run(capsys, "list", "--key-file", str(other), code=40)["error"]["slug"] == "wrong-key"
    assert [each["id"] for each in run(capsys, "list", "--key-file", str(key))["checkpoints"]] == [checkpoint]
    monkeypatch.setenv("CKPT_KEY_FILE", str(key))
    assert run(capsys, "store", "stats")["encrypted"]
    # The content is nowhere on the disk.
    piece = (tmp_path / "pages-1.img").read_bytes()[:64]
    assert all(piece not in path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_init_uses_a_key_file_that_is_there_and_leaves_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("my own words\n")
    document = run(capsys, "store", "init", "--encrypt", "--key-file", str(key))
    assert document["made_key_file"] is None
    assert key.read_text() == "my own words\n"
    assert run(capsys, "list", "--key-command", "echo my own words") == {"checkpoints": []}


def test_init_takes_the_secret_from_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "store", "init", "--encrypt", "--key-command", "echo secret")
    assert run(capsys, "list", "--key-command", "echo secret") == {"checkpoints": []}
    assert run(capsys, "list", "--key-command", "echo wrong", code=40)["error"]["slug"] == "wrong-key"
    assert run(capsys, "store", "stats", "--key-command", "exit 4", code=11)


@pytest.mark.parametrize(
    "words",
    [
        ["init", "--encrypt"],
        ["init", "--key-file", "key"],
        ["init", "--signatures", "maybe"],
        ["set"],
        ["rekey"],
        ["rekey", "--new-key-file", "a", "--new-key-command", "b"],
        ["rekey", "--key-file", "a", "--new-key-file", "./a"],
        [],
        ["turn"],
    ],
)
def test_wrong_usage_is_2_and_makes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "store", *words, code=2)["error"]["exit_code"] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["stats"], ["set", "--signatures", "required"], ["rekey", "--new-key-file", "key"]]
)
def test_a_store_that_is_not_there_is_not_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "store", *words, code=40)["error"]["slug"] == "store-unusable"
    assert list(tmp_path.iterdir()) == []


def test_whether_signatures_are_required_can_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "store", "init")["signatures_required"]
    assert run(capsys, "store", "stats")["signatures_required"]
    document = run(capsys, "store", "set", "--signatures", "optional")
    assert document == {"store": str(tmp_path / "store"), "signatures_required": False}
    assert not run(capsys, "store", "stats")["signatures_required"]
    assert run(capsys, "store", "set", "--signatures", "required")["signatures_required"]
    assert main(["store", "stats"]) == 0
    assert "not encrypted, signatures required" in capsys.readouterr().out


def test_rekey_changes_the_secret_and_writes_nothing_else_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run(capsys, "store", "init", "--encrypt", "--key-file", str(old))
    checkpoint = kept(tmp_path, 1, "web", 0, old)
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    document = run(capsys, "store", "rekey", "--key-file", str(old), "--new-key-file", str(new))
    assert document == {"store": str(tmp_path / "store"), "made_key_file": str(new)}
    after = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert {path.name for path in before if after.get(path) != before[path]} == {"config"}
    assert run(capsys, "list", "--key-file", str(old), code=40)["error"]["slug"] == "wrong-key"
    assert run(capsys, "verify", checkpoint, "--key-file", str(new))["ok"]
    run(capsys, "store", "rekey", "--key-file", str(new), "--new-key-command", "echo third")
    assert run(capsys, "verify", "--key-command", "echo third")["ok"]


def test_rekey_refuses_a_store_that_is_not_encrypted_and_leaves_no_key_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "store", "init")
    new = tmp_path / "new"
    assert (
        run(capsys, "store", "rekey", "--new-key-file", str(new), code=62)["error"]["slug"] == "wrong-state"
    )
    assert not new.exists()


def test_rekey_with_the_wrong_key_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "store", "init", "--encrypt", "--key-command", "echo right")
    new = tmp_path / "new"
    words = ["store", "rekey", "--key-command", "echo wrong", "--new-key-file", str(new)]
    assert run(capsys, *words, code=40)["error"]["slug"] == "wrong-key"
    assert not new.exists()
    assert run(capsys, "list", "--key-command", "echo right") == {"checkpoints": []}


def test_a_key_file_that_was_made_stays_whatever_fails_but_a_refusal(tmp_path: Path) -> None:
    key = tmp_path / "key"
    # The store's config may be written with it already: to remove the file now could lose everything.
    with pytest.raises(NoSpace), new_secret(str(key), None) as secret:
        raise NoSpace(place="x", available_bytes=0, needed_bytes=1)
    assert secret.made_file == str(key)
    assert secret.value == key.read_bytes().rstrip()
    refusal = WrongState(subject="x", state="there", operation="init", needed="missing")
    with pytest.raises(WrongState), new_secret(str(key), None):
        raise refusal
    assert key.exists()  # it was there before
    with pytest.raises(WrongState), new_secret(str(tmp_path / "another"), None):
        raise refusal
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_stats_tell_what_each_job_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(tmp_path, 1, "web", 0)
    kept(tmp_path, 2, "web", 65536)
    kept(tmp_path, 3, "db", 131072)
    document = run(capsys, "store", "stats")
    assert document["store"] == str(tmp_path / "store")
    assert (document["checkpoints"], document["plain_bytes"]) == (3, 3 * MIB)
    # What the file system rounds up may count as such.
    assert document["garbage_bytes"] < 4096 * document["packs"]
    assert document["unique_bytes"] == MIB + 65536 + 131072
    web, db = sorted(document["jobs"], key=lambda job: -job["checkpoints"])
    assert (web["job"], web["checkpoints"], web["plain_bytes"], web["unique_bytes"]) == (
        "web",
        2,
        2 * MIB,
        MIB + 65536,
    )
    assert (db["job"], db["checkpoints"], db["plain_bytes"], db["unique_bytes"]) == ("db", 1, MIB, MIB)
    assert db["exclusive_bytes"] == 131072
    assert web["exclusive_bytes"] == 131072 + 65536
    on_disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert 0 < document["stored_bytes"] <= on_disk
    assert document["ratio"] == round(3 * MIB / document["stored_bytes"], 2)


def test_stats_for_people_have_a_row_a_job_and_one_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, 1, "web", 0)
    kept(tmp_path, 2, None, 65536)
    assert main(["store", "stats"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{tmp_path}/store: not encrypted, signatures required"
    assert shown[1].split() == ["JOB", "CHECKPOINTS", "PLAIN", "UNIQUE", "ITS", "OWN", "STORED", "RATIO"]
    assert sorted(line.split()[0] for line in shown[2:4]) == ["-", "web"]
    assert shown[4].startswith("in all")
    assert shown[5].endswith(" is needed by nothing")


def test_the_ratio_of_nothing_is_none() -> None:
    nothing = StoreStatistics(
        checkpoints=0,
        plain_bytes=ByteCount(0),
        unique_bytes=ByteCount(0),
        stored_bytes=ByteCount(0),
        garbage_bytes=ByteCount(0),
        packs=0,
        encrypted=False,
        signatures_required=False,
        jobs=(),
    )
    document = document_of(nothing)
    assert (document["ratio"], document["jobs"]) == (None, [])
