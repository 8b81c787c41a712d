"""Files that changed between dump and restore, and what each policy of --inodes makes of them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.pauses import Pauses
from harness.subjects import Workload
from harness.waiting import await_condition
from real.asked import Asked

pytestmark = pytest.mark.system


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two files that were last changed before they are dumped, as most are."""
    both = (tmp_path / "one", tmp_path / "two")
    for path in both:
        path.write_bytes(b"content")
    return both


@pytest.fixture
def program(workload: Workload, tmp_path: Path, files: tuple[Path, Path]) -> Asked:
    program = Asked(workload, tmp_path)
    for path in files:
        program.do(f"held[{str(path)!r}] = open({str(path)!r}, 'r')")
    return program


@pytest.fixture
def checkpoint(program: Asked, workload: Workload, ckpt: Ckpt) -> str:
    dumped = str(ckpt("dump", "--cgroup", workload.cgroup, "--stop")["id"])
    workload.await_empty()
    return dumped


def replace(path: Path, content: bytes) -> None:
    """Put another file in its place, with the same times."""
    status = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


def read_by(program: Asked, path: Path) -> str:
    return str(program.do(f"answer = held[{str(path)!r}].read()"))


@pytest.mark.parametrize("policy", ["keep", "verify", "ignore"])
def test_unchanged_files_are_fine_with_every_policy(
    policy: str, checkpoint: str, program: Asked, files: tuple[Path, Path], ckpt: Ckpt
) -> None:
    ckpt("restore", "--inodes", policy, checkpoint)
    assert read_by(program, files[0]) == "content"


@pytest.mark.parametrize("policy", ["keep", "verify"])
def test_changed_content_is_refused_and_each_file_is_named(
    policy: str, checkpoint: str, workload: Workload, files: tuple[Path, Path], ckpt: Ckpt
) -> None:
    one, two = files
    status = one.stat()
    one.write_bytes(b"CONTENT")
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    two.write_bytes(b"longer than before")

    error = ckpt("restore", "--inodes", policy, checkpoint, exit_code=32)["error"]

    assert error["slug"] == "files-changed"
    assert f"{one}: content" in error["message"]
    assert f"{two}: size" in error["message"]
    assert workload.pids() == []


def test_missing_files_are_named_too(checkpoint: str, files: tuple[Path, Path], ckpt: Ckpt) -> None:
    files[0].unlink()
    error = ckpt("restore", checkpoint, exit_code=32)["error"]
    assert f"{files[0]} is missing" in error["message"]
    assert str(files[1]) not in error["message"]


def test_a_log_that_is_gone_is_made_anew(
    workload: Workload, program: Asked, tmp_path: Path, ckpt: Ckpt
) -> None:
    log = tmp_path / "log"
    program.do(f"held['log'] = open({str(log)!r}, 'a'); held['log'].write('before'); held['log'].flush()")
    log.chmod(0o640)
    before = log.stat().st_ino
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--stop")["id"]
    workload.await_empty()
    log.unlink()

    error = ckpt("restore", "--inodes", "verify", dumped, exit_code=32)["error"]
    assert f"{log} is missing" in error["message"]
    assert not log.exists()

    ckpt("restore", dumped)
    program.do("held['log'].write('after'); held['log'].flush()")
    assert log.read_text() == "after"
    assert log.stat().st_mode & 0o7777 == 0o640
    seen = program.do("answer = os.fstat(held['log'].fileno()).st_ino")
    assert seen == before


def test_ignore_leaves_the_content_to_criu(
    checkpoint: str, program: Asked, files: tuple[Path, Path], ckpt: Ckpt
) -> None:
    files[0].write_bytes(b"CONTENT")
    ckpt("restore", "--inodes", "ignore", checkpoint)
    assert read_by(program, files[0]) == "CONTENT"


def test_an_equal_file_with_another_inode_is_refused_by_verify_and_kept_by_keep(
    checkpoint: str, program: Asked, workload: Workload, files: tuple[Path, Path], ckpt: Ckpt
) -> None:
    before = files[0].stat().st_ino
    replace(files[0], b"content")

    error = ckpt("restore", "--inodes", "verify", checkpoint, exit_code=32)["error"]
    assert f"{files[0]}: inode" in error["message"]
    assert str(files[1]) not in error["message"]
    assert workload.pids() == []

    restored = ckpt("restore", "--inodes", "keep", checkpoint)
    [kept] = [outcome for outcome in restored["inodes"] if outcome["path"] == str(files[0])]
    assert kept["recorded"]["inode"] == kept["found"]["inode"] == kept["seen"]["inode"] == before
    assert kept["method"] == "pinned"
    assert files[0].stat().st_ino == before
    assert read_by(program, files[0]) == "content"


def test_a_refused_workload_is_never_stopped(
    workload: Workload, tmp_path: Path, ckpt: Ckpt, pauses: Pauses
) -> None:
    began = time.monotonic()
    program = Asked(workload, tmp_path)
    if program.do("import ctypes; answer = ctypes.CDLL(None).syscall(323, 0)") < 0:
        pytest.skip("this kernel has no userfaultfd")
    program.do(
        "import threading\n"
        "def watch():\n"
        "    last = time.monotonic()\n"
        "    while True:\n"
        "        time.sleep(0.001); now = time.monotonic(); held['gap'] = max(held['gap'], now - last); last = now\n"
        "held['gap'] = 0; threading.Thread(target=watch, daemon=True).start()"
    )
    error = ckpt("dump", "--cgroup", workload.cgroup, "--stop", exit_code=30)["error"]
    assert error["slug"] == "cannot-checkpoint"
    assert "userfaultfd" in error["message"]
    assert not workload.cgroup.is_frozen()
    assert program.do("answer = held['gap']") - pauses.since(began) < 0.5


SANDBOXED = """
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int ends[2];
    FILE *log = fopen(argv[argc - 1], "a");
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_newfstatat, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    fprintf(log, "begins\\n");
    fflush(log);
    if (pipe(ends) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &program))
        return 1;
    for (;; usleep(5000)) {
        fprintf(log, "lives\\n");
        fflush(log);
    }
}
"""


def test_a_program_whose_own_filters_would_kill_it_for_a_stat_call_is_not_asked_and_lives(
    workload: Workload, tmp_path: Path, ckpt: Ckpt
) -> None:
    source, program, log = tmp_path / "sandboxed.c", tmp_path / "sandboxed", tmp_path / "log"
    source.write_text(SANDBOXED)
    subprocess.run(["gcc", "-o", program, source], check=True)
    workload.spawn([str(program), str(log)], tmp_path)
    await_condition(lambda: log.exists() and "lives" in log.read_text(), "the program to live")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--stop")["id"]
    workload.await_empty()

    restored = ckpt("restore", dumped)
    assert any("could not be asked" in warning for warning in restored["warnings"])
    before = log.stat().st_size
    await_condition(lambda: log.stat().st_size > before, "it to go on")
