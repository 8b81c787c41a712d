"""`ckpt sign`: this host vouches for a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint

from ckpt.cli.main import main
from ckpt.store.keyring import KeyRing
from ckpt.store.opening import open_local
from ckpt.units import CheckpointId


@pytest.fixture(autouse=True)
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("CKPT_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("CKPT_KEYS", raising=False)


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointId:
    """One that nobody has signed."""
    (tmp_path / "core-1.img").write_bytes(b"core")
    with open_local(str(tmp_path / "store")).writer() as writer:
        file = writer.add_file(str(tmp_path / "core-1.img"), "core-1.img")
        return writer.commit(a_checkpoint(file, created_ns=1, job="web"))


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """The JSON document that the call prints."""
    assert main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_checkpoint_is_signed_with_this_hosts_key(
    tmp_path: Path, checkpoint: CheckpointId, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_local(str(tmp_path / "store"))
    assert store.signatures(checkpoint) == ()
    document = run(capsys, "sign", "web@latest")
    own = KeyRing(str(tmp_path / "state/keys"), own_comment="").own_key()
    assert (document["id"], document["fingerprint"]) == (checkpoint, own.fingerprint)
    [signature] = store.signatures(checkpoint)
    assert signature.public_key == own.public.hex()


def test_signing_again_leaves_one_signature(
    tmp_path: Path, checkpoint: CheckpointId, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [run(capsys, "sign", ref) for ref in ("web", checkpoint[:12])]
    assert len({(document["id"], document["fingerprint"]) for document in documents}) == 1
    assert len(open_local(str(tmp_path / "store")).signatures(checkpoint)) == 1


def test_what_is_not_there_cannot_be_signed(
    checkpoint: CheckpointId, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "sign", "db@latest", code=41)["error"]["slug"] == "missing"


def test_signing_makes_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "sign", "web", code=40)["error"]["slug"] == "store-unusable"
    assert not (tmp_path / "store").exists()
