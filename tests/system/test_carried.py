"""Files that CRIU leaves out of its images, through a dump and a restore by the command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.traces import Traces
from real.asked import Asked

pytestmark = pytest.mark.system


@pytest.fixture
def program(workload: Workload, tmp_path: Path) -> Asked:
    return Asked(workload, tmp_path)


def stop(ckpt: Ckpt, workload: Workload) -> str:
    checkpoint = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop")["id"])
    workload.await_empty()
    return checkpoint


def test_a_file_that_lost_its_name_and_has_another_is_one_file_still(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    name, other = tmp_path / "name", tmp_path / "other"
    name.write_bytes(b"content")
    os.link(name, other)
    program.do(f"held['f'] = open({str(name)!r}, 'r+'); os.unlink({str(name)!r})")
    inode = other.stat().st_ino

    ckpt("restore", stop(ckpt, workload))

    assert program.do("answer = os.fstat(held['f'].fileno()).st_ino") == inode
    program.do("held['f'].write('CON'); held['f'].flush()")
    assert other.read_bytes() == b"CONtent"
    assert other.stat().st_nlink == 1
    assert not list(tmp_path.glob("link_remap*"))


def test_a_file_whose_last_name_went_after_the_dump_comes_back_from_the_checkpoint(
    program: Asked, workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    name, other = tmp_path / "name", tmp_path / "other"
    name.write_bytes(b"content")
    os.link(name, other)
    program.do(f"held['f'] = open({str(name)!r}); os.unlink({str(name)!r})")
    checkpoint = stop(ckpt, workload)
    other.unlink()

    ckpt("restore", checkpoint)

    assert program.do("answer = held['f'].read()") == "content"
    assert not list(tmp_path.glob("link_remap*"))


SHARE = (
    "f = open({path!r}, 'w+b'); f.truncate(64 << 20); held['m'] = mmap.mmap(f.fileno(), 64 << 20); f.close()\n"
    "held['m'][4096:4100] = b'then'"
)


@pytest.mark.parametrize("meanwhile", ["as it was", "changed", "gone"])
def test_shared_memory_by_name_is_as_it_was_at_the_dump(
    meanwhile: str, program: Asked, workload: Workload, ckpt: Ckpt, traces: Traces
) -> None:
    path = Path(f"/dev/shm/{traces.mark}")
    program.do(SHARE.format(path=str(path)))
    checkpoint = stop(ckpt, workload)
    match meanwhile:
        case "changed":
            with path.open("r+b") as stream:
                stream.seek(4096)
                stream.write(b"now!")
        case "gone":
            path.unlink()

    ckpt("restore", checkpoint)

    assert program.do("answer = held['m'][4096:4100].decode()") == "then"
    program.do("held['m'][4096:4100] = b'more'")
    with path.open("rb") as stream:
        stream.seek(4096)
        assert stream.read(4) == b"more", "the memory and the name have come apart"
    assert path.stat().st_blocks * 512 < 1 << 20, "holes were filled"


def test_two_trees_share_their_memory_again(
    program: Asked, workload: Workload, ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    other = Asked(workload, tmp_path)
    path = f"/dev/shm/{traces.mark}"
    program.do(SHARE.format(path=path))
    other.do(f"f = open({path!r}, 'r+b'); held['m'] = mmap.mmap(f.fileno(), 64 << 20); f.close()")
    checkpoint = stop(ckpt, workload)
    os.unlink(path)

    ckpt("restore", checkpoint)

    program.do("held['m'][4096:4100] = b'talk'")
    assert other.do("answer = held['m'][4096:4100].decode()") == "talk"


def test_a_restore_that_fails_takes_the_memory_back(
    program: Asked, workload: Workload, ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    path, needed = Path(f"/dev/shm/{traces.mark}"), tmp_path / "needed"
    program.do(SHARE.format(path=str(path)))
    needed.write_bytes(b"12")
    program.do(f"held['f'] = open({str(needed)!r}, 'r+')")
    checkpoint = stop(ckpt, workload)
    needed.write_bytes(b"1")
    path.write_bytes(b"newer")

    # CRIU finds out, as the policy leaves it to it.
    ckpt("restore", "--inodes", "ignore", checkpoint, exit_code=22)

    assert path.read_bytes() == b"newer"
    assert workload.pids() == []
