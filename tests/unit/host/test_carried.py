"""What is put back before a restore, what is refused, and that nothing of it stays when the restore fails."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.errors import ObjectCorrupt, OsRefused
from ckpt.host import sparse_copy
from ckpt.host.carried import put_back
from ckpt.host.inspection import syscalls
from ckpt.model.checkpoint import CarriedFile, StoredFile
from ckpt.units import ByteCount, Digest, Nanoseconds

MEGABYTE = 1 << 20


@pytest.fixture
def shared() -> Iterator[Path]:
    """A name in the shared memory that nobody has."""
    path = Path("/dev/shm") / f"ckpt-test-inspect-{secrets.token_hex(4)}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def carried(
    path: Path | str, *, size: int = 5, temporary: bool = False, handle: str | None = None, mode: int = 0o640
) -> CarriedFile:
    return CarriedFile(
        path=str(path),
        temporary=temporary,
        handle=handle,
        uid=os.getuid(),
        gid=os.getgid(),
        mtime_ns=Nanoseconds(10**18),
        content=StoredFile(name="carried", size_bytes=ByteCount(size), mode=mode, root=Digest("ab" * 32)),
    )


def staged(tmp_path: Path, content: bytes = b"saved") -> str:
    copy = tmp_path / f"carried-{secrets.token_hex(2)}"
    copy.write_bytes(content)
    return str(copy)


def handle_of(path: Path) -> str:
    kind, content = syscalls.file_handle(str(path))
    return f"{kind}:{content.hex()}"


def test_shared_memory_that_is_gone_is_made_anew(shared: Path, tmp_path: Path) -> None:
    done = put_back(((carried(shared), staged(tmp_path)),))
    done.tidy()
    assert shared.read_bytes() == b"saved"
    assert shared.stat().st_mode & 0o7777 == 0o640
    done.undo()
    assert not shared.exists()


def test_shared_memory_with_newer_content_is_rolled_back_in_its_inode(shared: Path, tmp_path: Path) -> None:
    shared.write_bytes(b"newer and longer")
    inode = shared.stat().st_ino
    done = put_back(((carried(shared), staged(tmp_path)),))
    assert shared.read_bytes() == b"saved"
    done.undo()
    assert shared.read_bytes() == b"newer and longer"
    assert shared.stat().st_ino == inode


def test_a_failure_takes_back_what_was_put_before_it(shared: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "link_remap.1"
    blocked.mkdir()
    with pytest.raises(OsRefused, match=r"link_remap\.1"):
        put_back(
            (
                (carried(shared), staged(tmp_path)),
                (carried(blocked, temporary=True), staged(tmp_path)),
            )
        )
    assert not shared.exists()


def test_what_cannot_be_taken_back_does_not_keep_the_rest_from_it(shared: Path, tmp_path: Path) -> None:
    other = shared.with_name(shared.name + "-other")
    try:
        shared.write_bytes(b"first")
        other.write_bytes(b"second")
        done = put_back(((carried(shared), staged(tmp_path)), (carried(other), staged(tmp_path))))
        other.unlink()
        with pytest.raises(OsRefused, match="other"):
            done.undo()
        assert shared.read_bytes() == b"first"
    finally:
        other.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("path", "temporary"),
    [
        ("/etc/cron.d/job", False),
        ("/etc/cron.d/job", True),
        ("/dev/shm/../../etc/passwd", False),
        ("/dev/shm/sub/file", False),
        ("/dev/shm", False),
        ("/dev/shm/", False),
        ("//dev/shm/x", False),
        ("dev/shm/x", False),
        ("/etc/link_remap.1/passwd", True),
        ("/etc/link_remap.1.sh", True),
        ("/etc/../root/link_remap.1", True),
        ("link_remap.1", True),
    ],
)
def test_a_hostile_checkpoint_writes_no_other_file(
    path: str, *, temporary: bool, shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ObjectCorrupt, match="neither shared memory"):
        put_back(
            ((carried(shared), staged(tmp_path)), (carried(path, temporary=temporary), staged(tmp_path)))
        )
    assert not shared.exists()


def test_no_symbolic_link_is_followed(shared: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    shared.symlink_to(victim)
    with pytest.raises(OsRefused):
        put_back(((carried(shared), staged(tmp_path)),))
    assert victim.read_bytes() == b"untouched"
    assert shared.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_the_memory_is_not_given_to_a_file_of_somebody_else(shared: Path, tmp_path: Path) -> None:
    shared.write_bytes(b"theirs")
    os.chown(shared, 65534, 65534)
    with pytest.raises(OsRefused, match="belongs to uid 65534"):
        put_back(((carried(shared), staged(tmp_path)),))
    assert shared.read_bytes() == b"theirs"


def test_a_fifo_in_the_way_does_not_make_it_wait(shared: Path, tmp_path: Path) -> None:
    os.mkfifo(shared)
    with pytest.raises(OsRefused, match="no file"):
        put_back(((carried(shared), staged(tmp_path)),))


@pytest.mark.skipif(os.geteuid() != 0, reason="handles can be opened by root alone")
def test_a_link_is_made_to_the_very_file_and_removed_again(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"saved")
    link = tmp_path / "link_remap.12"
    done = put_back(((carried(link, temporary=True, handle=handle_of(other)), staged(tmp_path)),))
    assert link.samefile(other)
    done.tidy()
    assert not link.exists()
    assert other.stat().st_nlink == 1


def test_a_link_to_a_file_that_is_gone_becomes_a_copy(tmp_path: Path) -> None:
    link = tmp_path / "link_remap.12"
    done = put_back(((carried(link, temporary=True, mode=0o4755), staged(tmp_path)),))
    assert link.read_bytes() == b"saved"
    assert link.stat().st_mode & 0o7777 == 0o755, "set-uid comes from no checkpoint"
    done.tidy()
    assert not link.exists()


def test_another_file_of_a_links_name_is_not_taken_for_it(tmp_path: Path) -> None:
    link = tmp_path / "link_remap.12"
    link.write_bytes(b"wrong")
    with pytest.raises(OsRefused, match="in the way"):
        put_back(((carried(link, temporary=True), staged(tmp_path)),))
    assert link.read_bytes() == b"wrong"


def test_holes_stay_holes_in_both_directions(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as stream:
        stream.seek(16 * MEGABYTE)
        stream.write(b"in the middle")
        stream.truncate(64 * MEGABYTE)
    copy, filled = tmp_path / "copy", tmp_path / "filled"
    with sparse.open("rb") as stream:
        sparse_copy.copy_frozen(stream.fileno(), 64 * MEGABYTE, str(copy))
    with filled.open("wb") as stream:
        sparse_copy.fill(stream.fileno(), str(copy))
    for each in (copy, filled):
        assert each.stat().st_size == 64 * MEGABYTE
        assert each.stat().st_blocks * 512 < MEGABYTE
        with each.open("rb") as stream:
            stream.seek(16 * MEGABYTE)
            assert stream.read(13) == b"in the middle"


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(4096), b"\1" * (3 * MEGABYTE + 5), bytes(70000) + b"end"]
)
def test_a_copy_is_exact(content: bytes, tmp_path: Path) -> None:
    source, copy, filled = tmp_path / "source", tmp_path / "copy", tmp_path / "filled"
    source.write_bytes(content)
    with source.open("rb") as stream:
        sparse_copy.copy_frozen(stream.fileno(), len(content), str(copy))
    with filled.open("wb") as stream:
        sparse_copy.fill(stream.fileno(), str(copy))
    assert copy.read_bytes() == content
    assert filled.read_bytes() == content
