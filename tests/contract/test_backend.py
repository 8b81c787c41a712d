"""What every backend promises; run against the directory and against the one in memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fakes.backends import MemoryBackend

from ckpt.errors import Locked, ObjectCorrupt
from ckpt.store.backend import Backend
from ckpt.store.local import LocalBackend

HOSTILE_NAMES = [
    "",
    "/etc/passwd",
    "../x",
    "chunks/../../x",
    "a//b",
    ".hidden",
    "chunks/.x",
    "a\0b",
    "a b",
    "é",
    "x/" * 9 + "x",
]


@pytest.fixture(params=["local", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    (tmp_path / "store").mkdir()
    return LocalBackend(str(tmp_path / "store"))


def test_what_was_created_is_read_back_and_listed(backend: Backend) -> None:
    assert backend.create("chunks/ab/one", b"content") is not None
    assert backend.create("chunks/cd/two", b"") is not None
    assert backend.read("chunks/ab/one", 100) == b"content"
    assert backend.read("chunks/cd/two", 100) == b""
    assert list(backend.list("chunks")) == ["chunks/ab/one", "chunks/cd/two"]


def test_a_name_is_created_only_once_and_keeps_its_first_content(backend: Backend) -> None:
    assert backend.create("config", b"first") is not None
    assert backend.create("config", b"second") is None
    assert backend.read("config", 100) == b"first"


def test_of_many_that_create_one_name_at_once_exactly_one_wins(backend: Backend) -> None:
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        barrier.wait()
        if backend.create("tags/t@1", str(number).encode()) is not None:
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [backend.read("tags/t@1", 10)] == [str(number).encode() for number in won]


def test_a_damaged_object_can_be_replaced_by_what_its_name_promises(backend: Backend) -> None:
    backend.create("chunks/ab/one", b"cont")
    backend.replace("chunks/ab/one", b"content")
    backend.replace("chunks/ab/two", b"new")
    assert backend.read("chunks/ab/one", 100) == b"content"
    assert backend.read("chunks/ab/two", 100) == b"new"


def test_what_is_not_there_is_none_and_nothing(backend: Backend) -> None:
    assert backend.read("chunks/ab/one", 100) is None
    assert backend.read_part("config", 0, 10) is None
    assert backend.stat("config") is None
    assert backend.delete("config") == 0
    assert list(backend.list("chunks")) == []


def test_a_part_of_an_object_is_cut_at_its_end(backend: Backend) -> None:
    backend.create("config", b"0123456789")
    assert backend.read_part("config", 2, 3) == b"234"
    assert backend.read_part("config", 8, 30) == b"89"
    assert backend.read_part("config", 80, 30) == b""


def test_an_object_longer_than_the_limit_is_refused(backend: Backend) -> None:
    backend.create("config", b"0123456789")
    assert backend.read("config", 10) == b"0123456789"
    with pytest.raises(ObjectCorrupt):
        backend.read("config", 9)


def test_space_is_what_creating_took_and_deleting_frees(backend: Backend) -> None:
    content = b"x" * 100_000
    space = backend.create("config", content)
    found = backend.stat("config")
    assert found is not None
    assert (found.size_bytes, found.space_bytes) == (100_000, space)
    assert backend.delete("config") == space
    assert backend.stat("config") is None


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_could_climb_out_or_confuse_are_refused(backend: Backend, name: str) -> None:
    for call in (
        lambda: backend.create(name, b""),
        lambda: backend.replace(name, b""),
        lambda: backend.read(name, 1),
        lambda: backend.read_part(name, 0, 1),
        lambda: backend.stat(name),
        lambda: backend.delete(name),
        lambda: list(backend.list(name)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - the message is the name
            call()


def test_writers_share_the_lock_and_hold_off_a_sweep(backend: Backend) -> None:
    with backend.writing(), backend.writing(), pytest.raises(Locked), backend.sweeping(patient=False):
        pass
    with backend.sweeping(patient=False), pytest.raises(Locked), backend.sweeping(patient=False):
        pass
    with backend.sweeping(patient=False):
        pass


def test_a_clean_backend_has_no_leftovers(backend: Backend) -> None:
    backend.create("config", b"x")
    backend.create("config", b"x")
    backend.replace("config", b"x")
    assert backend.clear_leftovers() == (0, 0)


def test_an_object_may_be_created_of_several_pieces(backend: Backend) -> None:
    space = backend.create("packs/ab/one", (b"head", b"", b"x" * 100_000, b"end"))
    found = backend.stat("packs/ab/one")
    assert found is not None
    assert (found.size_bytes, found.space_bytes) == (100_007, space)
    assert backend.read("packs/ab/one", 1 << 20) == b"head" + b"x" * 100_000 + b"end"
    assert backend.create("packs/ab/one", (b"another",)) is None


def test_what_a_lease_pins_is_told_until_it_ends(backend: Backend) -> None:
    with backend.lease() as one, backend.lease() as two:
        one.pin(["packs/ab/one", "packs/ab/two"])
        one.pin(())
        two.pin(iter(["packs/ab/two", "packs/cd/three"]))
        with backend.sweeping(patient=False):
            assert backend.pinned() == {"packs/ab/one", "packs/ab/two", "packs/cd/three"}
    with backend.sweeping(patient=False):
        assert backend.pinned() == frozenset()


def test_a_lease_alone_does_not_hold_off_a_sweep_and_is_no_leftover(backend: Backend) -> None:
    with backend.lease() as lease:
        lease.pin(["packs/ab/one"])
        with backend.sweeping(patient=False):
            assert backend.clear_leftovers() == (0, 0)
            assert backend.pinned() == {"packs/ab/one"}
        # And it goes on being one.
        lease.pin(["packs/ab/two"])
        assert backend.pinned() == {"packs/ab/one", "packs/ab/two"}
    assert backend.clear_leftovers() == (0, 0)


def test_a_lease_that_ends_by_an_error_is_gone(backend: Backend) -> None:
    def fail() -> None:
        with backend.lease() as lease:
            lease.pin(["packs/ab/one"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert backend.pinned() == frozenset()


def test_many_names_are_pinned_from_several_threads(backend: Backend) -> None:
    names = {f"packs/ab/{number:064}" for number in range(4000)}
    with backend.lease() as lease:
        parts = [sorted(names)[start::4] for start in range(4)]
        threads = [threading.Thread(target=lease.pin, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert backend.pinned() == names
