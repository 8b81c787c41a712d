"""The reference stores must be readable as their JSON files say, by this ckpt and by all that follow."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from fakes.checkpoints import CREATED, a_checkpoint
from reference.stores import BASES, IMAGES, expected_of, fetched, keys_of, objects_in, opened

from ckpt.codec.document import DocumentType
from ckpt.codec.frame import Kind
from ckpt.codec.objects import digest_of
from ckpt.codec.pack import BlobKind
from ckpt.codec.records import StoreConfigV1
from ckpt.errors import FormatUnknown, Untrusted, WrongKey
from ckpt.store.compress import from_object
from ckpt.store.contents import PlacedContents
from ckpt.store.opening import Keys, open_local
from ckpt.store.store import Store
from ckpt.store.transferring import transfer
from ckpt.units import CheckpointId

OLD = "v1/head"
NEW = ("head", "sealed")


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(base: str, tmp_path: Path) -> Store:
    return a_copy(base, tmp_path)


def a_copy(base: str, tmp_path: Path) -> Store:
    place = tmp_path / base.replace("/", "-")
    shutil.copytree(IMAGES / base, place)
    return opened(place, base)


def placed(store: Store, checkpoint: CheckpointId) -> PlacedContents:
    contents = store.contents(checkpoint)
    assert isinstance(contents, PlacedContents)
    return contents


def written(store: Store, tmp_path: Path, parent: CheckpointId | None = None) -> CheckpointId:
    (tmp_path / "pages-1.img").write_bytes(b"something new")
    with store.writer(parent) as writer:
        file = writer.add_file(str(tmp_path / "pages-1.img"), "pages-1.img")
        return writer.commit(a_checkpoint(file, created_ns=CREATED + 1))


def assert_restores(store: Store, base: str, tmp_path: Path) -> None:
    for checkpoint, digests in expected_of(base)["digests"].items():
        for file in store.load(checkpoint).checkpoint.files:
            assert digest_of(fetched(store, checkpoint, file, tmp_path)) == digests[file.name]


def test_every_field_is_read_as_it_was_written(base: str, store: Store) -> None:
    found = [
        {
            "id": kept.id,
            "tags": sorted(kept.tags),
            "checkpoint": dataclasses.asdict(store._objects.read_manifest_as_written(kept.id)),
            "signatures": [dataclasses.asdict(signature) for signature in store.signatures(kept.id)],
        }
        for kept in store.list()
    ]
    assert json.loads(json.dumps(found)) == [
        {"signatures": []} | wanted for wanted in expected_of(base)["checkpoints"]
    ]


def test_every_file_comes_back_byte_for_byte(base: str, store: Store, tmp_path: Path) -> None:
    assert_restores(store, base, tmp_path)


def test_what_is_signed_is_trusted_by_who_has_the_key_and_by_nobody_else(base: str, store: Store) -> None:
    secret = keys_of(base).secret
    stranger = open_local(store.place, create=False, keys=Keys(secret=secret))
    for kept in expected_of(base)["checkpoints"]:
        store.check_trust(kept["id"])
        if base in NEW:
            with pytest.raises(Untrusted):
                stranger.check_trust(kept["id"])


def test_nothing_is_wrong_with_it_and_nothing_is_garbage(store: Store) -> None:
    assert store.verify(None).problems == ()
    assert store.preview(()).removed_objects == 0
    assert store.remove(()).removed_objects == 0


def test_reading_it_writes_nothing(store: Store) -> None:
    place = Path(store.place)
    before = {path: path.read_bytes() for path in objects_in(place)}
    store.verify(None)
    store.resolve("web")
    store.statistics()
    store.preview(())
    assert {path: path.read_bytes() for path in objects_in(place)} == before


def test_its_refs_name_what_they_named(base: str, store: Store) -> None:
    older, newest = (kept["id"] for kept in expected_of(base)["checkpoints"])
    refs = {"web": newest, "web~1": older, "before-upgrade": older, "stable": newest, older[:6]: older}
    assert {ref: store.resolve(ref) for ref in refs} == refs


@pytest.mark.parametrize("base", NEW)
def test_it_holds_what_is_special_about_the_format(store: Store, base: str) -> None:
    older, newest = (kept["id"] for kept in expected_of(base)["checkpoints"])
    before, after = placed(store, older).placement, placed(store, newest).placement
    assert set(before.packs) < set(after.packs)
    assert max(len(file.layers) for file in after.files) > 1
    kinds = {blob.kind for ref in after.packs for blob in store._packs.list_of(ref).blobs}
    assert kinds == {BlobKind.WHOLE, BlobKind.DELTA}
    assert any(file.addresses for file in after.files)
    carried = store.load(older).checkpoint.carried_files[0].content
    layers = next(file.layers for file in before.files if file.root == carried.root)
    assert list(layers[0].starts) == [1]  # the chunk of zeros is nowhere
    folders = {path.name for path in Path(store.place).iterdir() if path.is_dir()}
    assert folders == {"packs", "manifests", "placements", "receipts", "signatures", "indexes", "tags"}


def test_both_stores_hold_the_same_checkpoints_under_the_same_ids() -> None:
    plain, sealed = (expected_of(base) for base in NEW)
    assert plain["checkpoints"] == sealed["checkpoints"]
    assert plain["digests"] == sealed["digests"]
    names = [{path.name for path in (IMAGES / base / "packs").rglob("*") if path.is_file()} for base in NEW]
    assert not names[0] & names[1]


@pytest.mark.parametrize("secret", [b"another secret", b"", None])
def test_the_sealed_store_opens_with_its_secret_alone(secret: bytes | None) -> None:
    with pytest.raises(WrongKey):
        open_local(str(IMAGES / "sealed"), create=False, keys=Keys(secret=lambda: secret))


def test_nothing_in_the_sealed_store_shows_what_it_holds() -> None:
    older = expected_of("sealed")["checkpoints"][0]["checkpoint"]
    secrets = [b"a ring buffer", older["message"].encode(), older["host"]["kernel"].encode(), b"pages-1.img"]
    for path in objects_in(IMAGES / "sealed"):
        assert not any(secret in path.read_bytes() for secret in secrets), path.name


def test_a_removed_base_leaves_its_descendants_readable(base: str, store: Store, tmp_path: Path) -> None:
    older, newest = (kept["id"] for kept in expected_of(base)["checkpoints"])
    store.remove((older,))
    for file in store.load(newest).checkpoint.files:
        content = fetched(store, newest, file, tmp_path)
        assert digest_of(content) == expected_of(base)["digests"][newest][file.name]
    assert store.verify(None).problems == ()


def test_what_is_written_to_it_is_read_back_beside_the_old(base: str, store: Store, tmp_path: Path) -> None:
    parent = expected_of(base)["checkpoints"][-1]["id"]
    found = written(store, tmp_path, parent)
    again = opened(Path(store.place), base)
    [file] = again.load(found).checkpoint.files
    assert fetched(again, found, file, tmp_path) == b"something new"
    assert_restores(again, base, tmp_path)
    assert again.verify(None).problems == ()
    again.remove((found,))
    assert_restores(again, base, tmp_path)


def test_a_checkpoint_moves_between_the_stores_with_its_id(tmp_path: Path) -> None:
    source, target = a_copy("head", tmp_path), a_copy("sealed", tmp_path)
    checkpoint = expected_of("sealed")["checkpoints"][0]["id"]
    target.remove((checkpoint,))
    transfer(source, target, checkpoint)
    assert_restores(target, "sealed", tmp_path)
    target.check_trust(checkpoint)


def test_a_first_write_upgrades_a_store_of_version_1_so_that_older_ones_refuse_it(tmp_path: Path) -> None:
    store = a_copy(OLD, tmp_path)
    config = Path(store.place, "config")
    as_before = DocumentType(kind=Kind.CONFIG, version=1, content=StoreConfigV1)

    def read() -> StoreConfigV1:
        return as_before.decode(from_object(Kind.CONFIG, "config", config.read_bytes()), "config")

    identity = read().id
    written(store, tmp_path)
    with pytest.raises(FormatUnknown, match="version 2, and this ckpt reads version 1"):
        read()
    again = opened(config.parent, OLD)
    assert again._config.id == identity
    assert not again.signatures_required
    assert_restores(again, OLD, tmp_path)


def test_a_store_of_version_1_that_is_only_read_stays_one(tmp_path: Path) -> None:
    store = a_copy(OLD, tmp_path)
    before = Path(store.place, "config").read_bytes()
    store.verify(None)
    assert_restores(store, OLD, tmp_path)
    assert Path(store.place, "config").read_bytes() == before


def test_the_store_of_version_1_holds_what_is_special_about_it(tmp_path: Path) -> None:
    store = a_copy(OLD, tmp_path)
    older = expected_of(OLD)["checkpoints"][0]["id"]
    manifest = store._objects.read_manifest_as_written(older)
    assert any(len(file.chunks) > 1 for file in manifest.files)
    digests = {chunk.digest for file in manifest.files for chunk in file.chunks}
    present = {path.name for path in Path(store.place).glob("chunks/*/*")}
    assert digests - present == {digest_of(bytes(64 << 10))}  # the chunk of zeros has no object
