"""The directory as a store: how it is made, what it refuses, and what it survives."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest
from fakes.checkpoints import a_checkpoint

from ckpt.errors import CkptError, Locked, ObjectMissing, OsRefused, StoreUnusable
from ckpt.store.opening import open_local
from ckpt.store.store import Store
from ckpt.units import CheckpointId

ROOT = Path(__file__).parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, or becomes another user")


def put(store: Store, path: Path, content: bytes, created_ns: int = 1) -> CheckpointId:
    path.write_bytes(content)
    with store.writer() as writer:
        return writer.commit(a_checkpoint(writer.add_file(str(path), "x.img"), created_ns=created_ns))


def child(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with a, b … as its arguments."""
    names = ", ".join("abcdef"[: len(arguments)]) or "_"
    setup = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n[{names}] = sys.argv[1:] or [0]\n"
    command = [*prefix, sys.executable, "-c", setup + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_new_store_is_private_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_local(str(tmp_path / "above/store"))
        put(store, tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "above/store").stat().st_mode) == 0o700
    files = [path for path in (tmp_path / "above/store").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_opening_again_finds_the_same_store(tmp_path: Path) -> None:
    config = open_local(str(tmp_path / "store"))._config
    assert open_local(str(tmp_path / "store"), create=False)._config == config


def test_many_that_make_a_store_at_once_make_one(tmp_path: Path) -> None:
    code = """
        from ckpt.store.opening import open_local
        print(open_local(a)._config.id)
    """
    command = f"import sys; sys.path.insert(0, {str(ROOT)!r}); a = sys.argv[1]\n" + textwrap.dedent(code)
    running = [
        subprocess.Popen([sys.executable, "-c", command, str(tmp_path / "store")], stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    assert len({process.communicate(timeout=30)[0] for process in running}) == 1


def test_an_empty_directory_becomes_a_store_and_one_with_other_things_does_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    open_local(str(tmp_path / "empty"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").touch()
    with pytest.raises(StoreUnusable) as caught:
        open_local(str(tmp_path / "photos"))
    assert "holiday.jpg" in caught.value.message
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["holiday.jpg"]


def test_a_store_that_was_begun_by_a_process_that_died_is_finished(tmp_path: Path) -> None:
    (tmp_path / "store/tmp").mkdir(parents=True)
    (tmp_path / "store/lock").touch()
    put(open_local(str(tmp_path / "store")), tmp_path / "file", b"content")


def test_a_store_that_lost_its_config_is_not_made_anew(tmp_path: Path) -> None:
    put(open_local(str(tmp_path / "store")), tmp_path / "file", b"content")
    (tmp_path / "store/config").unlink()
    for create in (True, False):
        with pytest.raises(ObjectMissing):
            open_local(str(tmp_path / "store"), create=create)


def test_what_is_no_directory_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnusable, match="Not a directory"):
        open_local(str(tmp_path / "file"))
    with pytest.raises(StoreUnusable, match="there is none"):
        open_local(str(tmp_path / "missing"), create=False)
    assert not (tmp_path / "missing").exists()


@needs_root
def test_a_full_disk_is_told_and_nothing_half_written_remains(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(60 << 20))
    (tmp_path / "mount").mkdir()
    outcome = child(
        """
        import os, subprocess
        from fakes.checkpoints import a_checkpoint
        from ckpt.errors import NoSpace
        from ckpt.store.opening import open_local
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=38m", "none", a], check=True)
        store = open_local(a + "/store")
        with store.writer() as writer:
            writer.commit(a_checkpoint())
        before = sorted(name for _, _, names in os.walk(a) for name in names)
        used = os.statvfs(a).f_bfree
        try:
            with store.writer() as writer:
                writer.commit(a_checkpoint(writer.add_file(b, "pages-1.img")))
        except NoSpace as error:
            print(error.exit_code, error.place == a + "/store", error.needed_bytes > 1 << 20)
        left = [name for _, _, names in os.walk(a) for name in names]
        print(sorted(left) == before, os.statvfs(a).f_bfree >= used - 300)
        """,
        tmp_path / "mount",
        tmp_path / "big",
        prefix=("unshare", "--mount"),
    )
    assert outcome.stdout.splitlines() == ["14 True True", "True True"], outcome.stderr


@needs_root
def test_a_read_only_store_can_be_read_and_says_so_when_written(tmp_path: Path) -> None:
    checkpoint = put(open_local(str(tmp_path / "store")), tmp_path / "file", b"content")
    outcome = child(
        """
        import subprocess
        from ckpt.errors import StoreUnusable
        from ckpt.store.opening import open_local
        subprocess.run(["mount", "--bind", a, a], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", a], check=True)
        store = open_local(a)
        [kept] = store.list()
        store.fetch(kept.id, kept.checkpoint.files[0], b + "/fetched")
        print(kept.id, store.verify(None).problems, open(b + "/fetched").read())
        for write in (lambda: store.writer().__enter__(), lambda: store.tag(kept.id, "t"), lambda: store.remove((kept.id,))):
            try:
                write()
            except StoreUnusable as error:
                print(error.exit_code, "Read-only" in error.message, "remount" in error.advice)
        """,
        tmp_path / "store",
        tmp_path,
        prefix=("unshare", "--mount"),
    )
    assert outcome.stdout.splitlines() == [f"{checkpoint} () content", *["40 True True"] * 3], outcome.stderr


@needs_root
def test_another_users_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    open_local(str(tmp_path / "store"))
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    outcome = child(
        """
        import os
        from ckpt.errors import StoreUnusable
        from ckpt.store.opening import open_local
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            open_local(a)
        except StoreUnusable as error:
            print(error.message, "|", error.advice)
        """,
        tmp_path / "store",
    )
    assert "Permission denied" in outcome.stdout, outcome.stderr
    assert "as root" in outcome.stdout


def test_a_locked_store_names_who_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt.store.lock._ALONE_ATTEMPTS", 2)
    store = open_local(str(tmp_path / "store"))
    code = "import sys; sys.path.insert(0, sys.argv[2])\nfrom ckpt.store.opening import open_local\nwith open_local(sys.argv[1])._backend.writing(): print(); sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, store.place, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        writer.stdout.readline()
        with pytest.raises(Locked, match=f"process {writer.pid}"):
            store.remove(())
        writer.kill()
        writer.wait()
        store.remove(())  # the lock ended with its holder


def test_a_sweep_does_not_wait_for_a_writer_that_has_nothing_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt.store.lock._ALONE_ATTEMPTS", 2)
    store = open_local(str(tmp_path / "store"))
    checkpoint = put(store, tmp_path / "file", b"content")
    with store.writer(checkpoint) as writer:
        stored = writer.add_file(str(tmp_path / "file"), "x.img")
        open_local(store.place).remove((checkpoint,))
        found = writer.commit(a_checkpoint(stored, created_ns=2))
    assert [kept.id for kept in store.list()] == [found]
    assert store.verify(None).problems == ()


def test_a_child_that_outlives_the_writer_does_not_keep_the_lock(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    with store.writer():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    try:
        store.remove(())
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(pid, 0)


WRITER = """
    import itertools, os, random
    from fakes.checkpoints import a_checkpoint
    from ckpt.store.opening import open_local
    store, number, parent = open_local(a), int(c) * 100_000, None
    content = bytearray(os.urandom(600 << 10))
    for number in itertools.count(number):
        for _ in range(5):
            place = random.randrange(0, len(content), 4096)
            content[place + 7 : place + 15] = os.urandom(8)
        content[:4096] = os.urandom(4096)
        with open(b, "wb") as file:
            file.write(content)
        with store.writer(parent) as writer:
            stored = writer.add_file(b, "pages-1.img")
            parent = writer.commit(a_checkpoint(stored, created_ns=number, job="j" + c))
        print(parent, flush=True)
"""
PRUNER = """
    from ckpt.errors import ObjectMissing
    from ckpt.store.opening import open_local
    # All but the newest three of each job, over and over.
    while True:
        store = open_local(a)
        jobs = {}
        for kept in store.list():
            jobs.setdefault(kept.checkpoint.job, []).append(kept.id)
        gone = tuple(found for ids in jobs.values() for found in ids[:-3])
        print("removing", *gone, flush=True)
        store.remove(gone)
        print("removed", *gone, flush=True)
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    names = ", ".join("abcdef"[: len(arguments)])
    setup = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n{names}, = sys.argv[1:]\n"
    return subprocess.Popen(
        [sys.executable, "-c", setup + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> list[list[str]]:
    """Kill it wherever it is; the words of each whole line that it said since it was read last."""
    process.send_signal(signal.SIGKILL)
    assert process.stdout
    # Not communicate(): that forgets what readline() has read ahead.
    with process.stdout as lines:
        out = lines.read()
    assert process.wait() == -signal.SIGKILL, "it ended by itself"
    return [line.split() for line in out.split("\n")[:-1]]


def test_kill_9_at_any_moment_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    """Two writers and one that prunes, all killed and started again, at moments that differ each time."""
    place, random = tmp_path / "store", Random(3)
    open_local(str(place))
    reported: set[str] = set()
    maybe_gone: set[str] = set()
    gone: set[str] = set()
    for round_ in range(6):
        writers = [
            started(WRITER, place, tmp_path / f"file-{number}", 10 * number + round_ + 1)
            for number in range(2)
        ]
        pruner = started(PRUNER, place)
        firsts = []
        for process in (*writers, pruner):
            assert process.stdout
            firsts.append(process.stdout.readline().split())
        with pytest.raises(subprocess.TimeoutExpired):
            pruner.wait(timeout=0.1 + random.random() / 2)
        lines = [ended(process) for process in (*writers, pruner)]
        said = [[first, *rest] for first, rest in zip(firsts, lines, strict=True)]
        reported |= {line[0] for writer in said[:2] for line in writer}
        for word, *ids in said[2]:
            maybe_gone |= set(ids)
            gone |= set(ids) if word == "removed" else set()
        store = open_local(str(place))
        there = {kept.id for kept in store.list()}
        assert reported - maybe_gone <= there
        assert not gone & there
        assert store.verify(None).problems == ()
    assert len(reported) > 12
    assert gone
    left = open_local(str(place))
    left.remove(())
    assert left.verify(None).problems == ()
    assert list((place / "tmp").iterdir()) == [], "leases and temporary files of the dead"
    assert left.remove(()).removed_objects == 0
    assert reported - maybe_gone <= {kept.id for kept in left.list()}
    placements = [name.split("@")[0] for name in os.listdir(place / "placements")]
    assert sorted(placements) == sorted(kept.id for kept in left.list())


def test_a_lease_of_the_living_is_no_leftover(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    with store.writer():
        [lease] = (tmp_path / "store/tmp").iterdir()
        open_local(store.place).remove(())
        assert lease.exists()
    assert not lease.exists()


def test_leftovers_of_the_dead_are_swept_with_their_space(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    (tmp_path / "store/tmp/123-dead").write_bytes(b"x" * 5000)
    report = store.remove(())
    assert (report.removed_objects, report.freed_bytes) == (1, 8192)
    assert list((tmp_path / "store/tmp").iterdir()) == []


def test_a_fifo_or_a_directory_in_the_place_of_an_object_is_damage(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    checkpoint = put(store, tmp_path / "file", b"content")
    manifest = tmp_path / "store/manifests" / checkpoint
    for make in (os.mkfifo, os.mkdir):
        manifest.unlink()
        make(manifest)
        with pytest.raises(CkptError):
            store.load(checkpoint)
        if make is os.mkfifo:
            assert [found.slug for found in store.verify(None).problems] == ["corrupt"]


@needs_root
def test_a_full_target_is_told_and_nothing_half_written_remains(tmp_path: Path) -> None:
    put(open_local(str(tmp_path / "store")), tmp_path / "file", os.urandom(3 << 20))
    (tmp_path / "mount").mkdir()
    outcome = child(
        """
        import os, subprocess
        from ckpt.errors import NoSpace
        from ckpt.store.opening import open_local
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", b], check=True)
        store = open_local(a)
        [kept] = store.list()
        try:
            store.fetch(kept.id, kept.checkpoint.files[0], b + "/target")
        except NoSpace as error:
            print(error.place == b, os.listdir(b))
        """,
        tmp_path / "store",
        tmp_path / "mount",
        prefix=("unshare", "--mount"),
    )
    assert outcome.stdout.split() == ["True", "[]"], outcome.stderr


def test_a_target_that_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    checkpoint = put(store, tmp_path / "file", b"content")
    file = store.load(checkpoint).checkpoint.image_sets[0].files[0]
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for target in ("fifo", "link", "."):
        with pytest.raises(OsRefused):
            store.fetch(checkpoint, file, str(tmp_path / target))
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    # With a reader the FIFO could be opened: it must still be there afterwards.
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OsRefused, match="not a regular file"):
        store.fetch(checkpoint, file, str(tmp_path / "fifo"))
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_a_fetch_replaces_the_whole_content_that_was_there(tmp_path: Path) -> None:
    store = open_local(str(tmp_path / "store"))
    checkpoint = put(store, tmp_path / "file", bytes(5000))
    (tmp_path / "target").write_bytes(b"x" * 9000)
    store.fetch(checkpoint, store.load(checkpoint).checkpoint.files[0], str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == bytes(5000)
