"""`ckpt push` and `ckpt pull` between two real stores on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint

from ckpt.cli import wiring
from ckpt.cli.main import main
from ckpt.units import CheckpointId

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "here"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))
    for name in ("CKPT_KEY_FILE", "CKPT_KEY_COMMAND", "CKPT_KEYS"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document that the call prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def kept(tmp_path: Path, number: int = 1, store: str = "here", changed: int = 0) -> CheckpointId:
    """A checkpoint of 1 MiB that cannot be compressed, of which `changed` bytes are its own."""
    content = random.Random(0).randbytes(MIB - changed) + random.Random(number).randbytes(changed)
    (tmp_path / "pages-1.img").write_bytes(content)
    with wiring.open_store(str(tmp_path / store)).writer() as writer:
        file = writer.add_file(str(tmp_path / "pages-1.img"), "pages-1.img")
        return writer.commit(a_checkpoint(file, created_ns=number))


def fetched(tmp_path: Path, store: str, checkpoint: CheckpointId) -> bytes:
    opened = wiring.open_store(str(tmp_path / store), create=False)
    [file] = opened.load(checkpoint).checkpoint.files
    opened.fetch(checkpoint, file, str(tmp_path / "fetched"))
    return (tmp_path / "fetched").read_bytes()


def ids(capsys: pytest.CaptureFixture[str], store: Path) -> list[str]:
    return [each["id"] for each in run(capsys, "list", "--store", str(store))["checkpoints"]]


def everything_in(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_push_makes_the_other_store_and_copies_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = kept(tmp_path)
    content = (tmp_path / "pages-1.img").read_bytes()
    there = tmp_path / "there"
    document = run(capsys, "push", "web@latest", str(there))
    assert document.keys() == {"id", "image_bytes", "new_bytes", "stored_bytes", "was_there"}
    assert (document["id"], document["image_bytes"], document["was_there"]) == (checkpoint, MIB, False)
    assert document["new_bytes"] >= MIB
    assert document["stored_bytes"] >= MIB
    assert ids(capsys, there) == [checkpoint]
    assert fetched(tmp_path, "there", checkpoint) == content
    assert run(capsys, "verify", "--store", str(there))["ok"]
    assert there.stat().st_mode & 0o777 == 0o700


def test_only_what_the_other_store_lacks_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = str(tmp_path / "there")
    kept(tmp_path, 1)
    run(capsys, "push", "web", there)
    second = kept(tmp_path, 2, changed=8192)
    document = run(capsys, "push", "web", there)
    assert document["id"] == second
    assert 8192 <= document["new_bytes"] < MIB // 4
    assert document["stored_bytes"] < MIB // 4


def test_what_is_there_already_is_not_copied_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = kept(tmp_path)
    there = tmp_path / "there"
    run(capsys, "push", "web", str(there))
    before = everything_in(there)
    document = run(capsys, "push", "web", str(there))
    assert document == {
        "id": checkpoint,
        "image_bytes": MIB,
        "new_bytes": 0,
        "stored_bytes": 0,
        "was_there": True,
    }
    assert everything_in(there) == before
    assert main(["push", "web", str(there)]) == 0
    assert capsys.readouterr().out == f"{checkpoint[:12]} is in {there} already\n"


def test_a_pull_brings_a_pushed_checkpoint_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = kept(tmp_path)
    content = (tmp_path / "pages-1.img").read_bytes()
    there = str(tmp_path / "there")
    run(capsys, "push", "web", there)
    run(capsys, "rm", checkpoint)
    document = run(capsys, "pull", checkpoint[:10], there)
    assert (document["id"], document["was_there"]) == (checkpoint, False)
    assert fetched(tmp_path, "here", checkpoint) == content
    assert run(capsys, "verify")["ok"]


def test_tags_are_not_taken_along_but_given_where_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = kept(tmp_path)
    there = str(tmp_path / "there")
    run(capsys, "tag", checkpoint, "gold")
    run(capsys, "push", "gold", there)
    assert run(capsys, "show", checkpoint, "--store", there)["tags"] == []
    # What is there already is tagged all the same.
    run(capsys, "push", "gold", there, "--tag", "nightly", "--tag", "nightly", "--tag", "kept")
    assert run(capsys, "show", checkpoint, "--store", there)["tags"] == ["kept", "nightly"]
    run(capsys, "rm", checkpoint)
    run(capsys, "pull", "nightly", there, "--tag", "back")
    assert run(capsys, "show", checkpoint)["tags"] == ["back"]


def test_people_are_told_how_much_was_new(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = kept(tmp_path)
    there = str(tmp_path / "there")
    assert main(["push", "web", there]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{checkpoint[:12]} is now in {there}"
    assert second.startswith("  images 1.0 MiB, new 1.0 MiB, stored 1.")
    run(capsys, "rm", checkpoint)
    assert main(["-q", "pull", "web", there]) == 0
    assert capsys.readouterr().out == f"{checkpoint}\n"


def test_a_checkpoint_that_is_not_trusted_is_not_pulled_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state-of-somebody-else"))
    kept(tmp_path, store="there")
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))
    error = run(capsys, "pull", "web", str(tmp_path / "there"), code=44)["error"]
    assert error["slug"] == "untrusted"
    assert "ckpt trust" in error["hint"]
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_missing_source_is_one_sentence_and_makes_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, command, "web", str(tmp_path / "there"), code=40)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_checkpoint_makes_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(tmp_path)
    there = tmp_path / "there"
    assert run(capsys, "push", "nothing", str(there), code=41)["error"]["slug"] == "missing"
    assert not there.exists()


def test_a_place_that_cannot_be_a_store_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    assert run(capsys, "push", "web", str(tmp_path / "home"), code=40)["error"]["slug"] == "store-unusable"
    assert run(capsys, "push", "web", str(tmp_path / "home" / "letter"), code=40)
    assert run(capsys, "push", "web", "s3://bucket/x", code=40)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter"]


def test_a_damaged_source_is_refused_and_leaves_no_checkpoint_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path)
    largest = max((tmp_path / "here").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    largest.chmod(0o600)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    there = tmp_path / "there"
    assert run(capsys, "push", "web", str(there), code=42)["error"]["slug"] == "corrupt"
    assert ids(capsys, there) == []


def test_stores_may_be_encrypted_with_secrets_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs, there = str(tmp_path / "ours"), str(tmp_path / "theirs"), str(tmp_path / "there")
    checkpoint = kept(tmp_path)
    content = (tmp_path / "pages-1.img").read_bytes()
    run(capsys, "store", "init", "--store", there, "--encrypt", "--key-file", theirs)
    assert run(capsys, "push", "web", there, code=40)["error"]["slug"] == "wrong-key"
    assert run(capsys, "push", "web", there, "--key-file", theirs)["id"] == checkpoint
    sealed = str(tmp_path / "sealed")
    run(capsys, "store", "init", "--store", sealed, "--encrypt", "--key-file", ours)
    words = ["pull", "web", there, "--store", sealed, "--key-file", ours]
    assert run(capsys, *words, code=40)["error"]["slug"] == "wrong-key"
    both = ["--other-key-file", theirs, "--other-key-command", f"cat {theirs}"]
    assert run(capsys, *words, *both, code=2)["error"]["slug"] == "usage"
    assert run(capsys, *words, *both[2:])["id"] == checkpoint
    assert run(capsys, "verify", "--store", sealed, "--key-file", ours)["ok"]
    run(capsys, "rm", checkpoint)
    run(capsys, "pull", "web", sealed, "--other-key-file", ours)
    assert fetched(tmp_path, "here", checkpoint) == content


def test_a_pull_asks_for_a_signature_though_the_other_store_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state-of-somebody-else"))
    run(capsys, "store", "init", "--signatures", "optional", "--store", str(tmp_path / "there"))
    kept(tmp_path, store="there")
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))
    assert run(capsys, "pull", "web", str(tmp_path / "there"), code=44)["error"]["slug"] == "untrusted"
