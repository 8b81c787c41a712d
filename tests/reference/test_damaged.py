"""Every damaged set gives exactly its error, under every use: the damage matrix of images/FORMAT.md."""

from __future__ import annotations

import base64
import json
import random
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint
from reference.stores import BASES, IMAGES, expected_of, fetched, objects_in, opened

from ckpt.codec.objects import digest_of
from ckpt.errors import CkptError
from ckpt.store.store import Store
from ckpt.units import CheckpointId

SETS: dict[str, dict[str, Any]] = {
    name: recipe
    for path in sorted((IMAGES / "damaged").glob("*.json"))
    for name, recipe in json.loads(path.read_text()).items()
}

# Nobody may be made to allocate what a header claims: the sets claim up to 16 EiB.
MEMORY_BYTES_MAX = 32 << 20

# A store whose config is damaged cannot be opened, which has a test of its own.
OPENED = pytest.mark.parametrize(
    "recipe", [name for name, recipe in SETS.items() if not recipe["expect"]["open"]], indirect=True
)


@pytest.fixture(params=SETS)
def recipe(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SETS[request.param]


@pytest.fixture
def place(recipe: dict[str, Any], tmp_path: Path) -> Path:
    place = tmp_path / "store"
    shutil.copytree(IMAGES / recipe["base"], place)
    for change in recipe["change"]:
        damage(place / change["object"], place, change)
    return place


def damage(target: Path, place: Path, change: dict[str, Any]) -> None:
    match change["do"]:
        case "delete":
            target.unlink()
        case "cut":
            target.write_bytes(target.read_bytes()[: change["bytes"]])
        case "flip":
            content = bytearray(target.read_bytes())
            content[change["offset"]] ^= 1 << change["bit"]
            target.write_bytes(content)
        case "swap":
            other = place / change["with"]
            one, two = target.read_bytes(), other.read_bytes()
            target.write_bytes(two)
            other.write_bytes(one)
        case "put":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(zlib.decompress(base64.b64decode(change["content"])))
        case "directory":
            target.mkdir()
        case "link":
            target.symlink_to(change["to"])
        case unknown:
            raise AssertionError(unknown)


def outcome(use: Callable[[], object]) -> tuple[dict[str, Any] | None, str]:
    """The error of a use, if it has one, which is never anything but one of ours."""
    tracemalloc.start()
    try:
        use()
    except CkptError as error:
        return {"exit": error.exit_code, "slug": error.slug}, error.message
    else:
        return None, ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_BYTES_MAX


def assert_expected(recipe: dict[str, Any], use: str, call: Callable[[], object]) -> None:
    expected = recipe["expect"][use]
    found, message = outcome(call)
    if expected is None:
        assert (found, message) == (None, "")
    else:
        assert found == {"exit": expected["exit"], "slug": expected["slug"]}, message
        assert expected["says"] in message


def what_is_there(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in objects_in(place)}


def restored(store: Store, ref: str, directory: Path | None = None) -> dict[str, str]:
    """What a restore does first: whom it means, whom it trusts, and every file; into a directory, or not."""
    found = store.resolve(ref)
    stored = store.load(found)
    store.check_trust(found)
    digests = {}
    for file in stored.checkpoint.files:
        content = fetched(store, found, file, directory) if directory else b"".join(store.stream(found, file))
        digests[file.name] = digest_of(content)
    return digests


def restorable(place: Path, base: str) -> dict[CheckpointId, dict[str, str]]:
    """What of a store can be restored."""
    store = opened(place, base)
    found: dict[CheckpointId, dict[str, str]] = {}
    for stored in store.list(lambda _: None):
        outcome(lambda ref=stored.id: found.update({ref: restored(store, ref)}))
    return found


@cache
def undamaged(base: str) -> dict[str, bytes]:
    """The files of the newest checkpoint of a reference store."""
    store = opened(IMAGES / base, base)
    newest = store.list()[-1]
    return {
        file.name: b"".join(store.stream(newest.id, file)) for file in newest.checkpoint.image_sets[0].files
    }


def test_opening(recipe: dict[str, Any], place: Path) -> None:
    assert_expected(recipe, "open", lambda: opened(place, recipe["base"], create=True))


@OPENED
def test_listing(recipe: dict[str, Any], place: Path) -> None:
    before = what_is_there(place)
    store = opened(place, recipe["base"])
    assert_expected(recipe, "list", store.list)
    problems: list[object] = []
    store.list(problems.append)
    assert bool(problems) == bool(recipe["expect"]["list"])
    assert what_is_there(place) == before


@OPENED
def test_restoring(recipe: dict[str, Any], place: Path, tmp_path: Path) -> None:
    before = what_is_there(place)
    store = opened(place, recipe["base"])
    found: dict[str, str] = {}
    assert_expected(recipe, "restore", lambda: found.update(restored(store, recipe["restore"], tmp_path)))
    digests = expected_of(recipe["base"])["digests"]
    if not recipe["expect"]["restore"] and (known := digests.get(store.resolve(recipe["restore"]))):
        assert found == known
    assert what_is_there(place) == before


@OPENED
def test_verifying(recipe: dict[str, Any], place: Path) -> None:
    before = what_is_there(place)
    store = opened(place, recipe["base"])
    # What is kept in memory of earlier reads must not hide what is wrong.
    for _ in range(2):
        found = store.verify(None).problems
        assert {(problem.slug, problem.subject) for problem in found} == {
            (wanted["slug"], wanted["subject"]) for wanted in recipe["verify"]
        }, found
        for wanted in recipe["verify"]:
            said = [problem.message for problem in found if problem.subject == wanted["subject"]]
            assert any(wanted["says"] in message for message in said), said
    assert what_is_there(place) == before


@OPENED
def test_measuring_and_planning(recipe: dict[str, Any], place: Path) -> None:
    """They change nothing, and give a value or an error of ours."""
    before = what_is_there(place)
    store = opened(place, recipe["base"])
    outcome(store.statistics)
    found, _ = outcome(lambda: store.preview(()))
    expected = recipe["expect"]["sweep"]
    if found is None:  # planning takes no lock: what is wrong with that, it does not meet
        assert expected is None or expected["slug"] == "store-unusable"
    else:
        assert found == {"exit": expected["exit"], "slug": expected["slug"]}
    assert what_is_there(place) == before


@OPENED
def test_writing(recipe: dict[str, Any], place: Path, tmp_path: Path) -> None:
    store = opened(place, recipe["base"])
    files = undamaged(recipe["base"])
    written: list[CheckpointId] = []

    def write() -> None:
        parent = CheckpointId(expected_of(recipe["base"])["checkpoints"][-1]["id"])
        with store.writer(parent) as writer:
            stored = []
            for name, content in files.items():
                (tmp_path / "file").write_bytes(content)
                stored.append(writer.add_file(str(tmp_path / "file"), name))
            written.append(writer.commit(a_checkpoint(*stored)))

    assert_expected(recipe, "write", write)
    for checkpoint in written:
        found = restorable(place, recipe["base"])
        assert (checkpoint not in found) == recipe["spoils"]
        expected = {name: digest_of(content) for name, content in files.items()}
        assert recipe["spoils"] or found[checkpoint] == expected


@OPENED
def test_sweeping(recipe: dict[str, Any], place: Path) -> None:
    whole = restorable(place, recipe["base"])
    store = opened(place, recipe["base"])
    before = set(objects_in(place)) - {place / "lock"}
    assert_expected(recipe, "sweep", lambda: store.remove(()))
    assert restorable(place, recipe["base"]) == whole  # it takes nothing that could be restored
    expected = recipe["expect"]["sweep"]
    if expected:
        assert set(objects_in(place)) - {place / "lock"} == before
    if expected and expected["slug"] != "store-unusable":
        store.remove(tuple(map(CheckpointId, recipe["cure"])))  # what is damaged can always be removed
        assert [problem for problem in store.verify(None).problems if problem.slug != "stray"] == []


@OPENED
def test_sweeping_after_everything_was_read_once(recipe: dict[str, Any], place: Path) -> None:
    """What is kept in memory of earlier reads must not let a lie pass."""
    store = opened(place, recipe["base"])
    store.verify(None)
    assert_expected(recipe, "sweep", lambda: store.remove(()))


@pytest.mark.parametrize("base", BASES)
def test_a_bit_flipped_anywhere_gives_the_right_bytes_or_an_error_of_ours(base: str, tmp_path: Path) -> None:
    chosen = random.Random(base)
    place = tmp_path / "store"
    shutil.copytree(IMAGES / base, place)
    digests = expected_of(base)["digests"]
    for path in objects_in(place):
        whole = path.read_bytes()
        for offset in sorted({chosen.randrange(len(whole)) for _ in range(6)} if whole else ()):
            content = bytearray(whole)
            content[offset] ^= 1 << chosen.randrange(8)
            path.write_bytes(content)
            for checkpoint, expected in digests.items():

                def read(checkpoint: str = checkpoint, expected: dict[str, str] = expected) -> None:
                    assert restored(opened(place, base), checkpoint) == expected

                outcome(read)
        path.write_bytes(whole)


def test_there_are_sets_for_every_object_and_kind_of_damage() -> None:
    kinds = ("config", "manifest", "placement", "pack", "index", "receipt", "signature", "tag", "v1-chunk")
    for kind in kinds:
        for damage_ in ("gone", "cut", "flipped", "swapped", "newer"):
            assert any(name.startswith(kind) and damage_ in name for name in SETS), (kind, damage_)
    for kind in ("manifest", "placement", "receipt", "signature", "tag", "pack"):
        for damage_ in ("plain", "flipped", "swapped"):
            assert any(name.startswith(f"sealed-{kind}") and damage_ in name for name in SETS), (
                kind,
                damage_,
            )
    assert {name for name in SETS if name.startswith("lock")} >= {"lock-gone", "lock-filled", "lock-swapped"}
