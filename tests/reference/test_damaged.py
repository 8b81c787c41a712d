"""Every damaged set gives exactly its error, under every use: the damage matrix of images/FORMAT.md."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import a_checkpoint

from ckpt.errors import CkptError
from ckpt.model.checkpoint import Checkpoint, StoredFile
from ckpt.store.opening import open_local

IMAGES = Path(__file__).parents[2] / "images"
NAMES = sorted(path.stem for path in (IMAGES / "damaged").glob("*.json"))
# Nobody may be made to allocate what a header claims: the sets claim up to 1 TiB.
MEMORY_BYTES_MAX = 32 << 20


# A config that is damaged ends everything at the opening, which has a test of its own.
OPENED = pytest.mark.parametrize("recipe", [name for name in NAMES if "config" not in name], indirect=True)


@pytest.fixture(params=NAMES)
def recipe(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads((IMAGES / "damaged" / f"{request.param}.json").read_text())


@pytest.fixture
def place(recipe: dict[str, Any], tmp_path: Path) -> Path:
    place = tmp_path / "store"
    shutil.copytree(IMAGES / "head", place)
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
            shutil.copy(IMAGES / "damaged" / change["content"], target)
        case unknown:
            raise AssertionError(unknown)


def outcome(use: Callable[[], object]) -> tuple[dict[str, Any] | None, str]:
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


def files_of(checkpoint: Checkpoint) -> list[StoredFile]:
    carried = [carried.content for carried in checkpoint.carried_files]
    return [file for images in checkpoint.image_sets for file in images.files] + carried


def undamaged_files(directory: Path) -> list[Path]:
    store = open_local(str(IMAGES / "head"), create=False)
    paths = []
    for file in store.list()[0].checkpoint.image_sets[0].files:
        store.fetch(file, str(directory / file.name))
        paths.append(directory / file.name)
    return paths


def test_opening(recipe: dict[str, Any], place: Path) -> None:
    assert_expected(recipe, "open", lambda: open_local(str(place)))


@OPENED
def test_listing(recipe: dict[str, Any], place: Path) -> None:
    store = open_local(str(place))
    assert_expected(recipe, "list", store.list)
    problems: list[object] = []
    store.list(problems.append)
    assert bool(problems) == bool(recipe["expect"]["list"])


@OPENED
def test_restoring(recipe: dict[str, Any], place: Path, tmp_path: Path) -> None:
    store = open_local(str(place))

    def restore() -> None:
        for file in files_of(store.load(store.resolve(recipe["restore"])).checkpoint):
            store.fetch(file, str(tmp_path / "file"))

    assert_expected(recipe, "restore", restore)


@OPENED
def test_verifying(recipe: dict[str, Any], place: Path) -> None:
    report = open_local(str(place)).verify(None)
    told = sorted(report.problems, key=lambda problem: problem.subject)
    expected = sorted(recipe["verify"], key=lambda problem: problem["subject"])
    assert [(found.slug, found.subject) for found in told] == [(e["slug"], e["subject"]) for e in expected]
    for found, wanted in zip(told, expected, strict=True):
        assert wanted["says"] in found.message


@OPENED
def test_writing(recipe: dict[str, Any], place: Path, tmp_path: Path) -> None:
    store = open_local(str(place))
    paths = undamaged_files(tmp_path)

    def write() -> None:
        with store.writer() as writer:
            writer.commit(a_checkpoint(*(writer.add_file(str(path), path.name) for path in paths)))

    assert_expected(recipe, "write", write)
    if recipe["healed_by_write"]:
        assert store.verify(None).problems == ()


@OPENED
def test_sweeping(recipe: dict[str, Any], place: Path) -> None:
    store = open_local(str(place))
    before = {path for path in place.rglob("*") if path.is_file()}
    assert_expected(recipe, "sweep", lambda: store.remove(()))
    if recipe["expect"]["sweep"]:
        assert {path for path in place.rglob("*") if path.is_file()} - {place / "lock"} == before
        damaged = [problem["subject"] for problem in recipe["verify"] if len(problem["subject"]) == 64]
        store.remove(tuple(damaged))  # what is damaged can always be removed
        assert [problem for problem in store.verify(None).problems if problem.slug != "stray"] == []


def test_there_are_sets_for_every_object_and_kind_of_damage() -> None:
    for kind in ("config", "manifest", "chunk", "receipt", "tag"):
        for damage_ in ("gone", "cut", "flipped", "swapped", "newer"):
            assert any(name.startswith(kind) and damage_ in name for name in NAMES), (kind, damage_)
