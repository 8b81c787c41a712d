"""Checkpoints that leave ckpt and come back: as its own archives, as CRIU's directories, as podman's archives."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.bare_criu import BareCriu
from harness.command import Ckpt
from harness.processes import await_gone, is_dead, namespace_of
from harness.subjects import Workload
from harness.waiting import await_condition

pytestmark = pytest.mark.system

COUNTING = ("/bin/sh", "-c", "i=0; while :; do i=$((i + 1)); echo $i; sleep 0.02; done")


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """The environment of another host: its own store, state and keys."""
    return {name: str(tmp_path / f"elsewhere-{name}") for name in ("CKPT_STORE", "CKPT_STATE", "CKPT_KEYS")}


@pytest.fixture
def checkpointctl() -> Path:
    """The real one."""
    found = Path(os.environ.get("CKPT_PREFIX", "/opt/ckpt")) / "checkpointctl/bin/checkpointctl"
    if not found.exists():
        missing = f"there is no {found}: run scripts/setup --dev"
        if os.environ.get("CKPT_REQUIRE_SYSTEM") == "1":
            pytest.fail(f"system tests are required, but {missing}")
        pytest.skip(f"{missing} (CKPT_REQUIRE_SYSTEM=1 makes this a failure)")
    return found


def trust_of(ckpt: Ckpt, **environ: str) -> str:
    """What other hosts are told to trust this one's checkpoints."""
    return str(ckpt("trust", "show", **environ)["key"])


def checkpoints(ckpt: Ckpt, **environ: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ckpt("list", **environ)["checkpoints"]
    return found


def stopped(ckpt: Ckpt, workload: Workload) -> dict[str, Any]:
    """The dump of a workload that was stopped, and whose pids are free again."""
    pids = workload.pids()
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--stop")
    await_gone(pids)
    return dumped


def run_commands(commands: list[list[str]], criu: Path) -> None:
    """Do what an export says, with this CRIU."""
    for words in commands:
        command = [str(criu) if word == "criu" else word for word in words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd="/")
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"


# ------------------------------------------------------------------------------------------- our own archive


def test_a_checkpoint_goes_through_a_pipe_to_another_host_and_runs_on_there(
    workload: Workload, ckpt: Ckpt, elsewhere: dict[str, str]
) -> None:
    program = workload.start("tree")
    dumped = stopped(ckpt, workload)
    ckpt("trust", "add", trust_of(ckpt), **elsewhere)
    with subprocess.Popen(
        ckpt.command_line("export", dumped["id"], "-", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ckpt.environ({}),
    ) as sending:
        receiving = subprocess.run(
            ckpt.command_line("import", "-", "--json", "--tag", "gold"),
            check=False,
            stdin=sending.stdout,
            capture_output=True,
            env=ckpt.environ(elsewhere),
        )
        assert sending.stderr is not None
        told = json.loads(sending.stderr.read())
    assert (sending.returncode, receiving.returncode) == (0, 0), receiving
    assert (told["id"], told["file"], told["format"]) == (dumped["id"], "-", "tar")
    assert 0 < told["archive_bytes"] < told["image_bytes"] == dumped["image_bytes"]
    report = json.loads(receiving.stdout)
    assert report["id"] == dumped["id"]
    assert not report["was_there"]
    assert report["image_bytes"] == dumped["image_bytes"]
    assert report["new_bytes"] > 0

    [found] = checkpoints(ckpt, **elsewhere)
    assert (found["id"], found["job"], found["tags"]) == (dumped["id"], dumped["job"], ["gold"])
    assert ckpt("verify", **elsewhere)["ok"]
    restored = ckpt("restore", "gold", **elsewhere)
    assert restored["pid"] == program.pid
    workload.check()


def test_an_archive_of_a_host_that_is_not_trusted_is_refused_until_it_is(
    workload: Workload, ckpt: Ckpt, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    archive = tmp_path / "it.ckpt"
    assert ckpt("export", dumped["id"], archive)["file"] == str(archive)
    error = ckpt("import", archive, exit_code=44, **elsewhere)["error"]
    assert error["slug"] == "untrusted"
    assert "ckpt trust add" in error["hint"]
    assert not Path(elsewhere["CKPT_STORE"]).exists()
    ckpt("trust", "add", trust_of(ckpt), **elsewhere)
    assert ckpt("import", archive, **elsewhere)["id"] == dumped["id"]
    assert ckpt("import", archive, **elsewhere)["was_there"]


def test_who_vouches_for_an_archive_signs_it(
    workload: Workload, ckpt: Ckpt, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    workload.start("clocks")
    dumped = stopped(ckpt, workload)
    archive = tmp_path / "it.ckpt"
    ckpt("export", dumped["id"], archive)
    assert ckpt("import", archive, "--unsigned", **elsewhere)["id"] == dumped["id"]
    ckpt("restore", dumped["id"], **elsewhere)
    workload.check()


def test_a_damaged_archive_leaves_nothing(
    workload: Workload, ckpt: Ckpt, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    archive = tmp_path / "it.ckpt"
    ckpt("export", dumped["id"], archive)
    ckpt("trust", "add", trust_of(ckpt), **elsewhere)
    content = archive.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    for damaged in (content[:half], content[:-1], content + b"\0", flipped):
        archive.write_bytes(damaged)
        error = ckpt("import", archive, exit_code=42, **elsewhere)["error"]
        assert str(archive) in error["message"]
    assert checkpoints(ckpt, **elsewhere) == []
    # What was written before the damage was seen is gone.
    left = [path for path in Path(elsewhere["CKPT_STORE"]).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in left) < 64 << 10, left
    archive.write_bytes(b"a text\n")
    ckpt("import", archive, exit_code=43, **elsewhere)
    ckpt("import", tmp_path / "nothing", exit_code=10, **elsewhere)


def test_an_archive_replaces_a_file_only_when_it_is_whole(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    archive = tmp_path / "it.ckpt"
    archive.write_text("of value")
    files = [path for path in ckpt.store.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    ckpt("export", dumped["id"], archive, exit_code=42)
    assert archive.read_text() == "of value"
    assert list(tmp_path.glob("it.ckpt*")) == [archive]


def test_no_archive_goes_to_a_terminal(workload: Workload, ckpt: Ckpt) -> None:
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    ours, theirs = pty.openpty()
    try:
        for words in (["export", dumped["id"], "-"], ["import", "-"]):
            done = subprocess.run(
                ckpt.command_line(*words),
                check=False,
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
                env=ckpt.environ({}),
            )
            assert done.returncode == 2
            assert b"terminal" in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_goes_wrong_on_the_way_to_a_pipe_is_told_beside_it(ckpt: Ckpt) -> None:
    ckpt("list")
    done = ckpt.run("export", "--json", "nothing", "-")
    assert (done.returncode, done.stdout) == (41, "")
    assert json.loads(done.stderr)["error"]["exit_code"] == 41


def test_an_export_whose_reader_is_gone_ends_in_silence(workload: Workload, ckpt: Ckpt) -> None:
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        ckpt.command_line("export", dumped["id"], "-"),
        check=False,
        stdout=writing,
        stderr=subprocess.PIPE,
        env=ckpt.environ({}),
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_calls_that_make_no_sense_are_refused(ckpt: Ckpt, tmp_path: Path) -> None:
    ckpt("import", tmp_path / "x.ckpt", "--job", "web", exit_code=2)
    ckpt("export", "web", "-", "--format", "criu", exit_code=2)
    ckpt("export", "web", tmp_path / "x.ckpt", "--format", "zip", exit_code=2)


# ------------------------------------------------------------------------------------------- CRIU's directories


@pytest.fixture
def mounted_root() -> Iterator[None]:
    """What the printed commands mount is unmounted."""
    yield
    subprocess.run(["umount", "--lazy", "/run/ckpt-root"], check=False, capture_output=True)
    Path("/run/ckpt-root").rmdir()


def test_criu_itself_restores_an_exported_directory(
    workload: Workload, ckpt: Ckpt, criu: Path, tmp_path: Path
) -> None:
    program = workload.start("shell")
    dumped = stopped(ckpt, workload)
    exported = ckpt("export", dumped["id"], tmp_path / "images", "--format", "criu")
    assert (tmp_path / "images/inventory.img").exists()
    assert exported["warnings"] == []
    run_commands(exported["commands"], criu)
    workload.check()
    assert not is_dead(program.pid)


def test_criu_itself_restores_each_of_several_trees(
    workload: Workload, ckpt: Ckpt, criu: Path, tmp_path: Path
) -> None:
    first, second = workload.start("clocks"), workload.start("events")
    dumped = stopped(ckpt, workload)
    exported = ckpt("export", dumped["id"], tmp_path / "images", "--format", "criu")
    assert {path.name for path in (tmp_path / "images").iterdir()} == {str(first.pid), str(second.pid)}
    run_commands(exported["commands"], criu)
    workload.check()


@pytest.mark.usefixtures("mounted_root")
def test_criu_itself_restores_a_job_with_namespaces_of_its_own(
    ckpt: Ckpt, criu: Path, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    log = tmp_path / "count"
    started = ckpt("run", "--detach", "--name", name, "--log", log, "--", *COUNTING)

    def counted() -> list[int]:
        return [int(line) for line in log.read_text().splitlines()]

    await_condition(lambda: len(counted()) > 5, "the job to count")
    ckpt("dump", name, "--stop")
    await_gone([started["pid"], started["command_pid"]])
    before = len(counted())
    exported = ckpt("export", name, tmp_path / "images", "--format", "criu")
    run_commands(exported["commands"], criu)
    await_condition(lambda: len(counted()) > before + 5, "the restored job to count on")
    assert counted() == list(range(1, len(counted()) + 1))


def test_files_that_criu_does_not_keep_are_exported_beside_the_images(
    workload: Workload, ckpt: Ckpt, criu: Path, tmp_path: Path
) -> None:
    workload.start("tree")
    dumped = stopped(ckpt, workload)
    carried = ckpt("show", dumped["id"])["carried_files"]
    exported = ckpt("export", dumped["id"], tmp_path / "images", "--format", "criu")
    assert len(exported["warnings"]) == len(carried)
    for number, file in enumerate(carried):
        assert (tmp_path / f"images/carried/{number}").stat().st_size == file["size_bytes"]
        assert file["path"] in exported["warnings"][number]
        shutil.copyfile(tmp_path / f"images/carried/{number}", file["path"])
    assert carried
    run_commands(exported["commands"], criu)
    workload.check()


def test_only_an_empty_directory_is_exported_into(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine").touch()
    ckpt("export", dumped["id"], tmp_path / "images", "--format", "criu", exit_code=62)
    (tmp_path / "images/mine").unlink()
    ckpt("export", dumped["id"], tmp_path / "images", "--format", "criu")
    ckpt("export", dumped["id"], tmp_path / "no/images", "--format", "criu", exit_code=10)


def test_a_dump_of_bare_criu_is_taken_in_and_restored(
    workload: Workload, ckpt: Ckpt, bare: BareCriu, tmp_path: Path
) -> None:
    program = workload.start("shell")
    pids = workload.pids()
    bare.dump(program.pid, tmp_path / "images", leave_running=False)
    await_gone(pids)
    job = ckpt.new_job_name()

    error = ckpt("import", tmp_path / "images", exit_code=44)["error"]
    assert "--unsigned" in error["hint"]
    assert not ckpt.store.exists()

    taken = ckpt("import", tmp_path / "images", "--unsigned", "--job", job, "--tag", "bare")
    shown = ckpt("show", "bare")
    assert (shown["id"], shown["job"]) == (taken["id"], job)
    assert shown["trees"][0]["pid"] == program.pid
    assert shown["trees"][0]["processes"][0]["command_line"][-1] == str(program.log.path)
    assert shown["image_sets"][0]["statistics"]["frozen_ns"] > 0

    ckpt("store", "set", "--signatures", "required")
    restored = ckpt("restore", job)
    assert restored["pid"] == program.pid
    workload.check()


def test_a_job_goes_out_as_crius_images_and_comes_back(
    ckpt: Ckpt, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    log = tmp_path / "count"
    started = ckpt("run", "--detach", "--name", name, "--log", log, "--", *COUNTING)

    def counted() -> int:
        return len(log.read_text().splitlines())

    await_condition(lambda: counted() > 5, "the job to count")
    ckpt("dump", name, "--stop")
    await_gone([started["pid"], started["command_pid"]])
    before = counted()
    ckpt("export", name, tmp_path / "images", "--format", "criu")
    ckpt("import", tmp_path / "images", "--unsigned", "--job", name, **elsewhere)
    restored = ckpt("restore", name, **elsewhere)
    await_condition(lambda: counted() > before + 5, "the restored job to count on")
    assert namespace_of(restored["pid"], "pid") != namespace_of(os.getpid(), "pid")


def test_what_is_no_image_directory_is_refused(ckpt: Ckpt, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    ckpt("import", tmp_path / "images", "--unsigned", exit_code=43)
    assert not ckpt.store.exists()


# ------------------------------------------------------------------------------------------- podman's archives


def test_checkpointctl_shows_what_is_in_an_archive_for_it(
    workload: Workload, ckpt: Ckpt, checkpointctl: Path, tmp_path: Path
) -> None:
    program = workload.start("tree")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name(), "--message", "for it")
    archive = tmp_path / "it.tar.zst"
    ckpt("export", dumped["id"], archive, "--format", "podman")

    shown = subprocess.run([checkpointctl, "show", archive], check=True, capture_output=True, text=True)
    assert dumped["job"] in shown.stdout
    assert dumped["id"][:12] in shown.stdout
    assert "Podman" in shown.stdout

    inspected = subprocess.run(
        [checkpointctl, "inspect", "--all", "--format", "json", archive],
        check=True,
        capture_output=True,
        text=True,
    )
    [document] = json.loads(inspected.stdout)
    assert (document["container_name"], document["id"]) == (dumped["job"], dumped["id"])
    assert document["statistics"]["pages_written"] > 0
    assert document["process_tree"]["pid"] == program.pid
    assert str(program.log.path) in document["process_tree"]["cmdline"]
    assert len(document["process_tree"]["children"]) >= 1
    assert document["process_tree"]["environment_variables"]["CKPT_TEST_MARK"] in str(workload.cgroup)
    files = json.dumps(document["file_descriptors"])
    assert str(program.log.path) in files
    tree = subprocess.run(
        [checkpointctl, "inspect", "--all", archive], check=True, capture_output=True, text=True
    )
    assert "ckpt.message: for it" in tree.stdout


def test_several_trees_do_not_fit_into_podmans_layout(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> None:
    workload.start("clocks")
    workload.start("clocks")
    dumped = ckpt("dump", "--cgroup", workload.cgroup, "--name", ckpt.new_job_name())
    error = ckpt("export", dumped["id"], tmp_path / "x", "--format", "podman", exit_code=2)["error"]
    assert "2 process trees" in error["message"]
    assert not (tmp_path / "x").exists()
