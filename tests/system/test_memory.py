"""The memory of a real program in a stored image: what it wrote is found at the addresses that it tells, and gdb sees it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.subjects import Workload, installed
from harness.waiting import await_condition

pytestmark = pytest.mark.system

SOURCE = Path(__file__).parents[1] / "harness/known_memory.c"
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A dumped program with known bytes: where it wrote them, and the checkpoint."""

    program: Path
    pid: int
    child: int
    at: dict[str, int]
    file: Path
    checkpoint: str


@pytest.fixture
def known(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> Known:
    program, folder = tmp_path / "known", tmp_path / "program"
    folder.mkdir()
    command = ["gcc", "-g", "-O0", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file = folder / "mapped"
    # The mark in its name has it removed at the end.
    ring = f"/dev/shm/{ckpt.new_job_name()}"
    pid = workload.spawn([str(program), str(file), ring], folder)
    out = folder / "out"
    await_condition(lambda: out.read_text().endswith("\n"), "the program to be ready")

    def children() -> list[int]:
        return [other for other in workload.pids() if other != pid]

    def is_named() -> bool:
        return Path(f"/proc/{children()[0]}/comm").read_text().strip() == "child"

    await_condition(is_named, "the child to have its name")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    return Known(
        program=program,
        pid=pid,
        child=children()[0],
        at=json.loads(out.read_text()),
        file=file,
        checkpoint=dumped["id"],
    )


def test_what_the_program_wrote_is_found_where_it_says(known: Known, ckpt: Ckpt) -> None:
    found = ckpt("memory", known.checkpoint, "--search", "needle:")["matches"]
    ours = {
        bytes.fromhex(match["after_hex"]).split(b"\0")[0].decode(): (match["address"], match["kind"])
        for match in found
        if match["pid"] == known.pid
    }
    kinds = {
        "heap": "heap",
        "data": "file",
        "mmap": "anonymous",
        "shared": "shared memory",
        "memfd": "shared memory",
        # The checkpoint brings along what is in /dev/shm.
        "ring": "shared file",
    }
    at = known.at
    for name, kind in kinds.items():
        assert ours[name] == (at[name], kind)
    # A mapped file is no part of the images: what is in it is not found.
    assert "file" not in ours
    theirs = {
        (match["address"], bytes.fromhex(match["after_hex"]).split(b"\0")[0])
        for match in found
        if match["pid"] == known.child
    }
    assert {(at["heap"], b"child"), (at["mmap"], b"mmap"), (at["shared"], b"shared")} <= theirs
    # The same with a pid, as bytes, and as an expression.
    own = ckpt(
        "memory", known.checkpoint, "--pid", known.child, "--search", "6e 65 65 64 6c 65 3a 63", "--hex"
    )
    assert [(match["pid"], match["address"]) for match in own["matches"]] == [(known.child, at["heap"])]
    named = ckpt("memory", known.checkpoint, "--search", "needle:m(map|emfd)", "--regex", "--pid", known.pid)
    assert {match["text"]: match["address"] for match in named["matches"]} == {
        "needle:mmap": at["mmap"],
        "needle:memfd": at["memfd"],
    }
    few = ckpt("memory", known.checkpoint, "--search", "needle:", "--limit", "2")
    assert (len(few["matches"]), few["truncated"]) == (2, True)


def test_all_text_is_printed_with_its_addresses(known: Known, ckpt: Ckpt) -> None:
    done = ckpt.run("memory", known.checkpoint, "--pid", known.pid, "--strings", "--min", "8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("heap", "mmap", "shared", "memfd", "ring"):
        assert f"{known.pid}  {known.at[name]:#x}  needle:{name}" in lines
    first = ckpt("memory", known.checkpoint, "--strings", "--limit", "3")
    assert (len(first["strings"]), first["truncated"]) == (3, True)


def test_a_range_shows_bytes_and_tells_what_is_not_stored(known: Known, ckpt: Ckpt) -> None:
    def shown(address: int, size: int) -> str:
        done = ckpt.run("memory", known.checkpoint, "--pid", known.pid, "--range", f"{address:#x}+{size}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    at = known.at
    assert shown(at["mmap"], 12) == (
        f"{at['mmap']:016x}  6e 65 65 64 6c 65 3a 6d  6d 61 70 00              |needle:mmap.|\n"
        f"{at['mmap'] + 12:016x}\n"
    )
    assert f"8192 bytes that are not stored: they are in {known.file} from byte 0 on" in shown(
        at["file"] - 4096, 8192
    )
    assert f"{1 << 40} bytes that were never written" in shown(at["untouched"], 1 << 40)
    assert "256 bytes where nothing was mapped" in shown(4096, 256)
    [part] = ckpt("memory", known.checkpoint, "--pid", known.pid, "--range", f"{at['memfd']}+12")["parts"]
    assert (bytes.fromhex(part["hex"]), part["backing"]) == (b"needle:memfd", "stored")


def test_raw_bytes_go_to_a_file_or_through_a_pipe_and_never_with_guesses(
    known: Known, ckpt: Ckpt, tmp_path: Path
) -> None:
    start = known.at["mmap"] - 8192 + 9
    named = ["memory", known.checkpoint, "--pid", known.pid, "--range", f"{start}+{MIB}"]
    expected = bytes(8192 - 9) + b"needle:mmap"
    piped = subprocess.run(
        ckpt.command_line(*named, "--raw"), check=False, capture_output=True, env=ckpt.environ({})
    )
    assert piped.stdout == expected.ljust(MIB, b"\0")
    ckpt(*map(str, named), "-o", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == piped.stdout
    refused = ckpt(
        "memory",
        known.checkpoint,
        "--pid",
        known.pid,
        "--range",
        f"{known.at['file']}+1",
        "-o",
        tmp_path / "none",
        exit_code=2,
    )
    assert str(known.file) in refused["error"]["message"]
    assert not (tmp_path / "none").exists()


def test_without_options_each_process_has_a_table_of_its_memory(known: Known, ckpt: Ckpt) -> None:
    tasks = {task["pid"]: task for task in ckpt("memory", known.checkpoint)["tasks"]}
    assert tasks.keys() == {known.pid, known.child}
    assert tasks[known.child]["name"] == "child"
    areas = {
        name: next(area for area in tasks[known.pid]["areas"] if area["start"] <= at < area["end"])
        for name, at in known.at.items()
    }
    assert {name: area["kind"] for name, area in areas.items()} == {
        "heap": "heap",
        "data": "file",
        "mmap": "anonymous",
        "untouched": "anonymous",
        "shared": "shared memory",
        "memfd": "shared memory",
        "file": "shared file",
        "ring": "shared file",
    }
    assert (areas["file"]["path"], areas["file"]["stored_bytes"]) == (str(known.file), 0)
    assert areas["ring"]["stored_bytes"] == 8192
    assert areas["untouched"]["stored_bytes"] < 1 << 20
    done = ckpt.run("memory", known.checkpoint, "--pid", known.pid)
    assert f"{areas['file']['start']:#x}" in done.stdout


def test_gdb_opens_the_core_file_of_a_process(known: Known, ckpt: Ckpt, tmp_path: Path) -> None:
    core = tmp_path / "core"
    several = ckpt("export", known.checkpoint, core, "--format", "core", exit_code=2)
    assert str(known.child) in several["error"]["hint"]
    exported = ckpt("export", known.checkpoint, core, "--format", "core", "--pid", known.pid)
    assert {thread["name"] for thread in exported["threads"]} == {"known", "worker-one", "worker-two"}
    assert exported["disk_bytes"] < 4 * MIB < exported["core_bytes"] < 1 << 30
    said = gdb(
        known.program,
        core,
        "info threads",
        "bt",
        "thread apply all bt",
        "x/s known_heap",
        "x/s known_data",
        "print known_number * 2",
        f"x/s {known.at['mmap']}",
        f"x/s {known.at['shared']}",
        f"x/s {known.at['memfd']}",
        f"x/s {known.at['file']}",
        f"x/s {known.at['ring']}",
        f"x/4xb {known.at['mmap'] + 65536}",
        "print $mxcsr",
        "info auxv",
    )
    for thread in exported["threads"]:
        assert f"LWP {thread['tid']}" in said
    assert said.count("in wait_for_ever (depth=") >= 3
    assert "in main (argc=3, argv=" in said
    assert said.count("in sleeper (name=") == 2
    for name in ("heap", "data", "mmap", "shared", "memfd", "file", "ring"):
        assert f'"needle:{name}"' in said
    assert "$1 = 1\n" in said
    assert "0x00\t0x00\t0x00\t0x00" in said
    assert "AT_EXECFN            File name of executable" in said
    assert "warning" not in said.lower()
    ckpt("export", known.checkpoint, core, "--format", "core", "--pid", known.child)
    assert '"needle:child"' in gdb(known.program, core, "x/s known_heap")


def gdb(program: Path, core: Path, *commands: str) -> str:
    """What gdb says of the core file, both streams."""
    words = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        [installed("gdb"), "-nx", "-batch", *words, program, core],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/", "DEBUGINFOD_URLS": ""},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
