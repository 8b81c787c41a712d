"""What the flows expect of a store; run over the directory and over memory."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.backends import MemoryBackend
from fakes.checkpoints import a_checkpoint
from fakes.old_store import an_old_store

from ckpt.codec.placement import PackRef
from ckpt.errors import AmbiguousRef, BadName, ObjectCorrupt, ObjectMissing, OsRefused
from ckpt.flow import ports
from ckpt.store.contents import PlacedContents
from ckpt.store.opening import open_local, open_store
from ckpt.store.store import Store
from ckpt.units import CHUNK_BYTES, CheckpointId, Digest, Tag

MIB = 1 << 20
BIG = os.urandom(MIB) + bytes(MIB) + b"the end" * 1000
THE_END = 2 * CHUNK_BYTES  # what 7,000 bytes take


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return open_store(MemoryBackend(), create=True)
    return open_local(str(tmp_path / "store"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {"pages-1.img": BIG, "core-1.img": b"a small one", "empty.img": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o640)
    return {name: tmp_path / name for name in contents}


def put(
    store: ports.Store, files: dict[str, Path], created_ns: int = 1, job: str | None = "web"
) -> CheckpointId:
    with store.writer(None) as writer:
        stored = [writer.add_file(str(path), name) for name, path in files.items()]
        return writer.commit(a_checkpoint(*stored, created_ns=created_ns, job=job))


def a_chain(store: Store, files: dict[str, Path], job: str = "web", count: int = 3) -> list[CheckpointId]:
    return [put(store, files, created_ns=number, job=job) for number in range(count)]


def test_what_was_committed_is_loaded_and_fetched_as_it_was(
    store: Store, files: dict[str, Path], tmp_path: Path
) -> None:
    with store.writer() as writer:
        stored = [writer.add_file(str(path), name) for name, path in files.items()]
        carried = writer.add_file(str(files["core-1.img"]), "carried-0")
        written = a_checkpoint(*stored, carried=carried)
        found = writer.commit(written)
    loaded = store.load(found)
    assert (loaded.id, loaded.checkpoint, loaded.tags) == (found, written, ())
    target = tmp_path / "fetched"
    for file in loaded.checkpoint.image_sets[0].files:
        store.fetch(found, file, str(target))
        assert target.read_bytes() == files[file.name].read_bytes()
        assert target.stat().st_mode & 0o777 == 0o640


def test_the_same_checkpoint_has_the_same_id_and_costs_nothing_the_second_time(
    store: Store, files: dict[str, Path]
) -> None:
    first = put(store, files)
    with store.writer() as writer:
        stored = [writer.add_file(str(path), name) for name, path in files.items()]
        assert writer.commit(a_checkpoint(*stored, created_ns=1)) == first
        assert (writer.new_bytes, writer.stored_bytes) == (0, 0)
    assert [kept.id for kept in store.list()] == [first]


def test_new_bytes_are_plain_bytes_counted_once_and_zeros_are_never_new(
    store: Store, files: dict[str, Path]
) -> None:
    with store.writer() as writer:
        one = writer.add_file(str(files["pages-1.img"]), "pages-1.img")
        two = writer.add_file(str(files["pages-1.img"]), "pages-2.img")
        checkpoint = writer.commit(a_checkpoint(one, two))
        assert writer.new_bytes == MIB + THE_END
        assert writer.stored_bytes >= MIB
        assert store.load(checkpoint).stored_bytes == writer.stored_bytes


def test_a_file_with_a_hole_comes_back_with_a_hole(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(8 * MIB)
    checkpoint = put(store, {"pages-1.img": source})
    store.fetch(checkpoint, store.load(checkpoint).checkpoint.image_sets[0].files[0], str(target))
    assert target.stat().st_size == 8 * MIB
    assert target.stat().st_blocks == 0


def test_what_was_not_committed_is_gone(store: Store, files: dict[str, Path]) -> None:
    kept = put(store, {"core-1.img": files["core-1.img"]})
    with store.writer() as writer:
        writer.add_file(str(files["pages-1.img"]), "pages-1.img")
    assert [found.id for found in store.list()] == [kept]
    assert store.verify(None).checked_chunks == 1
    assert store.remove(()).removed_objects == 0


def test_a_checkpoint_with_a_file_that_nobody_added_is_refused(store: Store, files: dict[str, Path]) -> None:
    with store.writer() as writer:
        stored = writer.add_file(str(files["core-1.img"]), "core-1.img")
        with pytest.raises(ObjectMissing):
            writer.commit(a_checkpoint(replace(stored, root=Digest("ab" * 32))))
    assert store.list() == ()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "x" * 256])
def test_a_file_is_not_stored_under_a_name_that_could_climb_out(
    store: Store, files: dict[str, Path], name: str
) -> None:
    with store.writer() as writer, pytest.raises(OsRefused):
        writer.add_file(str(files["core-1.img"]), name)


def test_a_source_that_is_no_regular_file_is_refused_without_waiting(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing"):
        with store.writer() as writer, pytest.raises(OsRefused):
            writer.add_file(str(path), "x")


def test_a_ref_is_an_id_a_beginning_a_tag_or_a_job(store: Store, files: dict[str, Path]) -> None:
    oldest, middle, newest = a_chain(store, files)
    store.tag(middle, Tag("before-upgrade"))
    for ref, expected in {
        oldest: oldest,
        oldest[:8]: oldest,
        oldest[:8].upper(): oldest,
        "before-upgrade": middle,
        "web": newest,
        "web@latest": newest,
        "web~0": newest,
        "web~2": oldest,
    }.items():
        assert store.resolve(ref) == expected


def test_a_tag_wins_over_a_job_and_a_job_over_the_beginning_of_an_id(
    store: Store, files: dict[str, Path]
) -> None:
    first = put(store, files, created_ns=1, job=None)
    second = put(store, files, created_ns=2, job=first[:5])
    assert store.resolve(first[:5]) == second
    store.tag(first, Tag(first[:5]))
    assert store.resolve(first[:5]) == first
    assert store.resolve(f"{first[:5]}@latest") == second


@pytest.mark.parametrize(
    ("ref", "remedy"),
    [
        ("api", "at least 4 digits"),
        ("api@latest", "No checkpoint is filed under the job api"),
        ("web~3", "The oldest of its 3 is web~2"),
        ("abcdef", "No id begins so"),
        ("ab", "at least 4 digits"),
        ("0" * 64, "ckpt list"),
        ("", "at least 4 digits"),
        ("../config", "at least 4 digits"),
        ("web~", "at least 4 digits"),
        ("web~-1", "at least 4 digits"),
    ],
)
def test_a_ref_to_nothing_says_what_would_be_there(
    store: Store, files: dict[str, Path], ref: str, remedy: str
) -> None:
    a_chain(store, files)
    with pytest.raises(ObjectMissing) as caught:
        store.resolve(ref)
    assert remedy in caught.value.advice


def test_a_beginning_that_several_ids_share_is_ambiguous(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    seen: dict[str, CheckpointId] = {}
    for number in range(3000):
        with store.writer() as writer:
            file = writer.add_file(str(tmp_path / "empty"), "empty")
            found = writer.commit(a_checkpoint(file, created_ns=number))
        if found[:4] in seen:
            break
        seen[found[:4]] = found
    with pytest.raises(AmbiguousRef) as caught:
        store.resolve(found[:4])
    assert sorted(caught.value.candidates) == sorted({found[:12], seen[found[:4]][:12]})


def test_checkpoints_are_listed_oldest_first_with_their_tags(store: Store, files: dict[str, Path]) -> None:
    oldest, middle, newest = a_chain(store, files)
    store.tag(newest, Tag("b"))
    store.tag(newest, Tag("a"))
    assert [(kept.id, kept.tags) for kept in store.list()] == [
        (oldest, ()),
        (middle, ()),
        (newest, ("a", "b")),
    ]


def test_a_tag_moves_and_can_be_taken_away(store: Store, files: dict[str, Path]) -> None:
    first, second, _ = a_chain(store, files)
    for checkpoint in (first, second, second, first):
        store.tag(checkpoint, Tag("stable"))
        assert store.resolve("stable") == checkpoint
    assert store.load(second).tags == ()
    store.untag(Tag("stable"))
    with pytest.raises(ObjectMissing):
        store.resolve("stable")
    with pytest.raises(ObjectMissing):
        store.untag(Tag("stable"))
    store.tag(second, Tag("stable"))
    assert store.load(second).tags == ("stable",)


def test_a_tag_needs_a_checkpoint_and_a_proper_name(store: Store, files: dict[str, Path]) -> None:
    checkpoint = put(store, files)
    with pytest.raises(ObjectMissing):
        store.tag(CheckpointId("ab" * 32), Tag("stable"))
    for name in ("", "a b", "-x", "../x", "a@b", "x" * 65):
        with pytest.raises(BadName):
            store.tag(checkpoint, Tag(name))


def test_removing_frees_what_nothing_else_needs(store: Store, files: dict[str, Path]) -> None:
    shared = put(store, {"core-1.img": files["core-1.img"]}, created_ns=1)
    both = put(store, files, created_ns=2)
    store.tag(both, Tag("t"))
    report = store.remove((both,))
    assert report.freed_bytes >= MIB
    assert [kept.id for kept in store.list()] == [shared]
    assert store.verify(None).checked_chunks == 1
    with pytest.raises(ObjectMissing):
        store.resolve("t")
    assert store.remove(()).removed_objects == 0


def test_removing_what_is_not_there_removes_nothing(store: Store, files: dict[str, Path]) -> None:
    kept = put(store, files)
    with pytest.raises(ObjectMissing):
        store.remove((kept, CheckpointId("ab" * 32)))
    assert store.load(kept).id == kept


def test_two_writers_at_once_do_not_disturb_each_other(store: Store, files: dict[str, Path]) -> None:
    with store.writer() as one, store.writer() as two:
        stored = [writer.add_file(str(files["pages-1.img"]), "pages-1.img") for writer in (one, two)]
        first = one.commit(a_checkpoint(stored[0], created_ns=1))
        second = two.commit(a_checkpoint(stored[1], created_ns=2))
    store.remove((first,))
    assert store.verify(None).problems == ()
    assert [kept.id for kept in store.list()] == [second]


def test_a_sweep_beside_a_writer_spares_what_it_needs(store: Store, files: dict[str, Path]) -> None:
    parent = put(store, files, created_ns=1)
    (files["core-1.img"]).write_bytes(b"another one")
    with store.writer(parent) as writer:
        stored = [writer.add_file(str(path), name) for name, path in files.items()]
        assert writer.new_bytes == CHUNK_BYTES  # the rest lies in the parent's packs
        store.remove((parent,))
        found = writer.commit(a_checkpoint(*stored, created_ns=2))
    assert store.verify(None).problems == ()
    assert [kept.id for kept in store.list()] == [found]
    store.remove(())
    assert store.verify(None).problems == ()


def test_verify_reads_every_chunk_once(store: Store, files: dict[str, Path]) -> None:
    first, *_ = a_chain(store, files)
    for report in (store.verify(None), store.verify((first,))):
        assert report.problems == ()
    assert store.verify((first,)).checked_bytes == MIB + THE_END + CHUNK_BYTES


def test_a_failed_fetch_leaves_no_file(store: Store, tmp_path: Path, files: dict[str, Path]) -> None:
    checkpoint = put(store, files)
    file = store.load(checkpoint).checkpoint.image_sets[0].files[0]
    for name in list(store._backend.list("packs")):
        store._backend.delete(name)
    with pytest.raises(ObjectMissing):
        store.fetch(checkpoint, file, str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_a_stream_gives_the_bytes_in_order_and_takes_them(store: Store, files: dict[str, Path]) -> None:
    checkpoint = put(store, files)
    for file in store.load(checkpoint).checkpoint.image_sets[0].files:
        content = files[file.name].read_bytes()
        assert b"".join(store.stream(checkpoint, file)) == content
        with files[file.name].open("rb") as source, store.writer() as writer:
            again = writer.add_stream(source.read, name=file.name, size_bytes=file.size_bytes, mode=file.mode)
            assert again == file


def test_a_stream_that_ends_early_is_refused(store: Store) -> None:
    with store.writer() as writer, pytest.raises(OsRefused, match="3 bytes before its end"):
        writer.add_stream(io.BytesIO(b"abc").read, name="x", size_bytes=6, mode=0o600)


def test_any_range_of_a_file_is_read_without_the_rest(store: Store, files: dict[str, Path]) -> None:
    checkpoint = put(store, files)
    file = next(
        file for file in store.load(checkpoint).checkpoint.image_sets[0].files if file.name == "pages-1.img"
    )
    ranges = ((0, 1), (4095, 2), (MIB - 10, 20), (8192, 0), (5000, MIB + 9000), (len(BIG) - 3, 3))
    for offset, size in ranges:
        assert store.read_range(checkpoint, file, offset, size) == BIG[offset : offset + size]
    for offset, size in ((len(BIG) - 3, 4), (len(BIG) + 1, 0), (-1, 1)):
        with pytest.raises(ObjectCorrupt, match=f"{len(BIG)} bytes"):
            store.read_range(checkpoint, file, offset, size)


def test_the_digests_of_pages_are_those_of_their_bytes(store: Store, files: dict[str, Path]) -> None:
    checkpoint = put(store, files)
    for file in store.load(checkpoint).checkpoint.image_sets[0].files:
        content = files[file.name].read_bytes()
        pages = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        expected = [hashlib.sha256(page.ljust(CHUNK_BYTES, b"\0")).digest() for page in pages]
        assert store.page_digests(checkpoint, file) == b"".join(expected)


def test_a_range_and_the_digests_of_a_file_of_version_1_are_read_too() -> None:
    disk, checkpoints = an_old_store()
    store = open_store(MemoryBackend(disk), create=False)
    for checkpoint, contents in checkpoints.items():
        for file in store.load(checkpoint).checkpoint.image_sets[0].files:
            content = contents[file.name]
            assert store.read_range(checkpoint, file, 0, len(content)) == content
            assert (
                store.read_range(checkpoint, file, len(content) // 3, len(content) // 2)
                == (content[len(content) // 3 :][: len(content) // 2])
            )
            pages = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
            assert store.page_digests(checkpoint, file) == b"".join(
                hashlib.sha256(page.ljust(CHUNK_BYTES, b"\0")).digest() for page in pages
            )


def test_a_range_of_damaged_pages_is_refused(store: Store, files: dict[str, Path]) -> None:
    checkpoint = put(store, files)
    file = next(
        file for file in store.load(checkpoint).checkpoint.image_sets[0].files if file.name == "pages-1.img"
    )
    contents = store.contents(checkpoint)
    assert isinstance(contents, PlacedContents)
    read_blob = contents._packs.blob

    def damaged(pack: PackRef, number: int) -> bytes:
        blob = read_blob(pack, number)
        return bytes([blob[0] ^ 1]) + blob[1:]

    contents._packs.blob = damaged  # type: ignore[method-assign]
    with pytest.raises(ObjectCorrupt):
        store.read_range(checkpoint, file, 0, 10)
