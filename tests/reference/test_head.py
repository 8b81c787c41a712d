"""images/head must be readable as images/head.json says, by this ckpt and by all that follow."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from ckpt.codec.objects import digest_of
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.store.opening import open_local
from ckpt.store.store import Store

IMAGES = Path(__file__).parents[2] / "images"
EXPECTED = json.loads((IMAGES / "head.json").read_text())


@pytest.fixture
def head(tmp_path: Path) -> Store:
    shutil.copytree(IMAGES / "head", tmp_path / "head")
    return open_local(str(tmp_path / "head"), create=False)


def files_of(checkpoint: Checkpoint) -> list[StoredFile]:
    carried = [carried.content for carried in checkpoint.carried_files]
    return [file for images in checkpoint.image_sets for file in images.files] + carried


def test_every_field_is_read_as_it_was_written(head: Store) -> None:
    found = [
        {"id": kept.id, "tags": kept.tags, "checkpoint": dataclasses.asdict(kept.checkpoint)}
        for kept in head.list()
    ]
    assert json.loads(json.dumps(found)) == EXPECTED["checkpoints"]


def test_every_file_comes_back_byte_for_byte(head: Store, tmp_path: Path) -> None:
    for kept in head.list():
        for file in files_of(kept.checkpoint):
            head.fetch(file, str(tmp_path / "file"))
            assert digest_of((tmp_path / "file").read_bytes()) == EXPECTED["digests"][file.name]


def test_nothing_is_wrong_with_it_and_nothing_is_garbage(head: Store) -> None:
    assert head.verify(None).problems == ()
    assert head.remove(()).removed_objects == 0


def test_reading_it_writes_nothing(head: Store) -> None:
    before = sorted(Path(head.place).rglob("*"))
    head.verify(None)
    head.resolve("web")
    assert sorted(Path(head.place).rglob("*")) == before


def test_its_refs_name_what_they_named(head: Store) -> None:
    older, newest = (kept["id"] for kept in EXPECTED["checkpoints"])
    refs = {"web": newest, "web~1": older, "before-upgrade": older, "stable": newest, older[:6]: older}
    assert {ref: head.resolve(ref) for ref in refs} == refs


def test_it_holds_what_is_special_about_the_format(head: Store) -> None:
    older = head.list()[0].checkpoint
    assert any(len(file.chunks) > 1 for file in files_of(older))
    digests = {chunk.digest for file in files_of(older) for chunk in file.chunks}
    present = {path.name for path in Path(head.place).glob("chunks/*/*")}
    assert digests - present == {digest_of(bytes(64 << 10))}  # the chunk of zeros has no object
