"""Jobs on volumes: files that come back with the memory, as the same files; and what is left when it goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.identity import Victim, compile_static
from harness.lab import Host
from harness.subjects import Workload
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.host.mounts import mounts_of
from ckpt.host.volumes import image, loop
from ckpt.units import ByteCount, DeviceNumber

pytestmark = pytest.mark.system

#: Counts into a file on the volume, which it holds.
COUNTING = 'exec 3>>"$0/count"; n=0; while :; do n=$((n + 1)); echo $n >&3; sleep 0.02; done'


class Job:
    """A job that counts into a file on its volume."""

    def __init__(self, ckpt: Ckpt, name: str, place: Path) -> None:
        self.ckpt = ckpt
        self.name = name
        self.place = place
        self.pid = 0
        self.file = place / "count"

    def start(self) -> None:
        # The log is not on the volume, and not to go with the job.
        options = ("--log", self.place.with_name("log"), "--volume", f"{self.place}:32M")
        command = ("/bin/sh", "-c", COUNTING, self.place)
        self.pid = self.ckpt("run", "--detach", "--name", self.name, *options, "--", *command)["pid"]
        self.await_more(3)

    def count(self) -> int:
        return len(self.file.read_text().splitlines())

    def await_more(self, more: int) -> None:
        wanted = (self.count() if self.file.exists() else 0) + more
        await_condition(lambda: self.file.exists() and self.count() >= wanted, "the job to count")

    def assert_counted_without_gap(self) -> None:
        lines = self.file.read_text().splitlines()
        assert lines == [str(number + 1) for number in range(len(lines))]

    def device(self) -> DeviceNumber:
        return DeviceNumber(self.place.stat().st_dev)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a volume is mounted; the directory is made by ckpt."""
    return tmp_path / "volume"


@pytest.fixture
def name(ckpt: Ckpt) -> Iterator[str]:
    """The name of a job, which is removed with its volumes."""
    name = ckpt.new_job_name()
    yield name
    ckpt.run("rm-job", "--force", name)


@pytest.fixture
def job(ckpt: Ckpt, name: str, place: Path) -> Job:
    return Job(ckpt, name, place)


def test_a_check_does_not_ask_to_keep_the_files_of_a_volume(ckpt: Ckpt, name: str, place: Path) -> None:
    options = ("--log", place.with_name("log"), "--volume", f"{place}:32M")
    outside = place.with_name("outside")
    writing = f'exec 3>"$0/count" 4>{outside}; : >"$0/ready"; sleep 600'
    ckpt("run", "--detach", "--name", name, *options, "--", "/bin/sh", "-c", writing, place)
    await_condition((place / "ready").exists, "the job to write")
    written = [each for each in ckpt("check", name)["findings"] if each["rule"] == "files-written"]
    assert [each["subject"] for each in written] == [str(outside)]
    ckpt("stop", name)


def numbers_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The identity of everything in the folder."""
    return {str(path): (path.lstat().st_dev, path.lstat().st_ino) for path in [folder, *folder.rglob("*")]}


def is_mounted(place: Path) -> bool:
    return any(mount.mountpoint == str(place) for mount in mounts_of("self"))


def taken(device: DeviceNumber, folder: Path) -> ExitStack:
    """Somebody who has attached something to the loop device of this number."""
    picture = folder / "other.img"
    image.make(str(picture), ByteCount(16 << 20), uid=0, gid=0)
    stack = ExitStack()
    stack.callback(loop.release, device)
    assert stack.enter_context(loop.attached(str(picture), device)).device == device
    return stack


def test_a_program_that_lives_by_its_files_goes_on_as_at_the_dump(
    ckpt: Ckpt, workload: Workload, name: str, compiled: Path, place: Path
) -> None:
    compile_static(compiled)
    victim = Victim(place / "files", place.with_name("control"), compiled)
    options = ("--log", place.with_name("log"), "--volume", f"{place}:64M")
    command = ("/bin/sh", "-c", 'mkdir "$0" && exec "$@"', victim.files, *victim.command())
    started = ckpt("run", "--detach", "--name", name, *options, "--", *command)
    workload.cgroup = Cgroup(Path(started["cgroup"]))
    victim.await_ready()
    assert victim.wrong() == {}
    before = numbers_of(place)

    # What comes after the dump never happened.
    rows = victim.ask("check")["rows"]
    first = ckpt("dump", name, "--stop")
    (place / "later").touch()
    (victim.files / "notes").write_text("other words")
    for file in victim.files.glob("wal.db*"):
        file.unlink()
    ckpt("restore", first["id"])
    assert numbers_of(place) == before
    assert victim.wrong() == {}
    assert victim.ask("check")["rows"] == {of: count + 2 for of, count in rows.items()}

    # On another host nothing of it is there.
    second = ckpt("dump", name, "--stop")
    ckpt("rm-job", name)
    assert not place.exists()
    ckpt("restore", second["id"])
    assert numbers_of(place) == before
    # A wrong number shows as lost rows only after a second connection.
    for order in ("second", "write", "exec"):
        victim.ask(order)
    assert victim.wrong() == {}
    committed = victim.ask("check")["rows"]
    ckpt("stop", name)
    assert victim.rows() == {of: (count, "ok") for of, count in committed.items()}


def test_files_go_back_with_the_memory(ckpt: Ckpt, job: Job) -> None:
    job.start()
    # The volume is the job's, however that is named.
    dumped = ckpt("dump", "--pid", job.pid, "--name", job.name)
    job.await_more(10)
    ckpt("stop", job.name)
    ahead = job.count()
    ckpt("restore", dumped["id"])
    assert job.count() < ahead
    job.await_more(3)
    job.assert_counted_without_gap()


def test_a_job_moves_between_hosts_with_its_files(ckpt: Ckpt, traces: Traces) -> None:
    hosts = [Host(traces, "one"), Host(traces, "two", monotonic_s=1000)]
    for host, other in (hosts, hosts[::-1]):
        host.trust(other, ckpt)
    name, place = ckpt.new_job_name(), "/srv/ckpt-test/volume"
    options = ("--log", traces.folder / "log", "--volume", f"{place}:16M")
    hosts[0].ckpt(ckpt, "run", "--detach", "--name", name, *options, "--", "/bin/sh", "-c", COUNTING, place)

    def identity(host: Host) -> str:
        return host.run("stat", "--format=%d %i %W", place, f"{place}/count").stdout

    await_condition(lambda: identity(hosts[0]).count("\n") == 2, "the job to count")
    first = identity(hosts[0])
    for source, target in (hosts, hosts[::-1]):
        dumped = source.ckpt(ckpt, "dump", name, "--stop")
        source.ckpt(ckpt, "rm-job", name)
        assert source.run("ls", place).returncode != 0
        restored = target.ckpt(ckpt, "restore", dumped["id"])
        assert {outcome["method"] for outcome in restored["inodes"] if place in outcome["path"]} == {"same"}
        assert identity(target) == first
    hosts[0].ckpt(ckpt, "stop", name)
    lines = hosts[0].run("cat", f"{place}/count").stdout.splitlines()
    assert lines == [str(number + 1) for number in range(len(lines))]
    hosts[0].ckpt(ckpt, "rm-job", name)


def test_a_volume_gets_its_number_or_the_job_sees_it_all_the_same(
    ckpt: Ckpt, job: Job, tmp_path: Path
) -> None:
    job.start()
    number = job.device()
    assert loop.is_ours(number)
    dumped = ckpt("dump", job.name, "--stop")
    shown = ckpt("show", dumped["id"])["volumes"]
    assert shown == [
        {"mountpoint": str(job.place), "filesystem": "ext4", "device": number, "size_bytes": 32 << 20}
    ]
    ckpt("rm-job", job.name)

    with taken(number, tmp_path):
        error = ckpt("restore", dumped["id"], "--inodes", "verify", exit_code=32)["error"]
        assert f"{job.place}: device" in error["message"]
        assert not job.place.exists()
        outcomes = ckpt("restore", dumped["id"])["inodes"]
        assert job.device() != number
        (counted,) = (outcome for outcome in outcomes if outcome["path"] == str(job.file))
        assert counted["recorded"] == counted["seen"]
        assert counted["found"]["device"] == job.device()
        ckpt("stop", job.name)

    ckpt("restore", dumped["id"], "--inodes", "verify")
    assert job.device() == number
    job.await_more(3)
    job.assert_counted_without_gap()


def test_a_volume_outlives_its_job_until_that_is_removed(ckpt: Ckpt, job: Job) -> None:
    job.start()
    other = ckpt.new_job_name()
    ckpt("run", "--detach", "--name", other, "--", "/bin/sh", "-c", f"ls {job.place}; echo; sleep 1000")
    await_condition(lambda: ckpt.run("logs", other).stdout, "the other job to look")
    assert ckpt.run("logs", other).stdout == "\n", "it sees the volume of another job"

    assert ckpt("rm-job", job.name, exit_code=62)["error"]["slug"] == "wrong-state"
    ckpt("stop", job.name)
    (entry,) = (each for each in ckpt("ps")["jobs"] if each["name"] == job.name)
    assert entry["volumes"] == [str(job.place)]
    job.assert_counted_without_gap()
    with job.file.open():
        assert "in use" in ckpt("rm-job", job.name, exit_code=62)["error"]["message"]
    # It is found again as it was left, also after a reboot, and with no other size.
    subprocess.run(["umount", job.place], check=True)
    command = ("--", "/bin/sh", "-c", f"wc -l < {job.file}")
    sized = ("run", "--detach", "--name", job.name, "--volume", f"{job.place}:64M", *command)
    assert ckpt(*sized, exit_code=62)["error"]["slug"] == "wrong-state"
    found = ckpt.run("run", "--name", job.name, "--volume", job.place, *command)
    assert int(found.stdout) == job.count()

    ckpt("rm-job", job.name)
    assert not job.place.exists()
    assert os.listdir(ckpt.state / "volumes") == []
    ckpt("rm-job", "--force", other)


def test_a_volume_goes_over_nothing_and_a_start_that_fails_leaves_none(
    ckpt: Ckpt, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for wrong in ("/etc/ckpt-test", "/", tmp_path / "full", f"{job.place}:1M", "relative"):
        run = ("run", "--detach", "--name", job.name, "--volume", wrong, "--", "true")
        assert ckpt(*run, exit_code=2)["error"]["slug"] == "usage"
    run = ("run", "--detach", "--name", job.name, "--volume", job.place, "--")
    ckpt(*run, "/nonexistent", exit_code=11)
    killed = ckpt.run(*run, "true", CKPT_FAILPOINT="mounted")
    assert killed.returncode == -signal.SIGKILL
    await_condition(lambda: os.listdir(ckpt.state / "operations") == [], "the guardian to be done")
    assert not job.place.exists()
    assert os.listdir(ckpt.state / "volumes") == []


@pytest.mark.parametrize("failpoint", ["copying", "copying:SIGTERM"])
def test_a_dump_that_ends_while_it_copies_lets_the_file_system_go_on(
    failpoint: str, ckpt: Ckpt, job: Job
) -> None:
    job.start()
    assert ckpt.run("dump", job.name, CKPT_FAILPOINT=failpoint).returncode != 0
    job.await_more(3)
    (job.place / "from outside").touch()
    await_condition(lambda: os.listdir(ckpt.state / "operations") == [], "the guardian to be done")


@pytest.mark.parametrize("failpoint", ["fetched:SIGTERM", "restored"])
def test_a_restore_that_fails_leaves_the_volume_as_it_was_found(failpoint: str, ckpt: Ckpt, job: Job) -> None:
    job.start()
    dumped = ckpt("dump", job.name, "--stop")
    (job.place / "later").write_text("kept")
    before = numbers_of(job.place)
    assert ckpt.run("restore", dumped["id"], CKPT_FAILPOINT=failpoint).returncode != 0
    await_condition(lambda: os.listdir(ckpt.state / "operations") == [], "the guardian to be done")
    assert numbers_of(job.place) == before
    assert (job.place / "later").read_text() == "kept"
    assert os.listdir(ckpt.state / "volumes") == [job.name]

    ckpt("restore", dumped["id"])
    assert not (job.place / "later").exists()
    job.await_more(3)


def test_what_is_in_the_way_is_told_and_left_alone(ckpt: Ckpt, job: Job, tmp_path: Path) -> None:
    job.start()
    dumped = ckpt("dump", job.name, "--stop")
    ckpt("rm-job", job.name)
    job.place.mkdir()
    (job.place / "file").touch()
    error = ckpt("restore", dumped["id"], exit_code=31)["error"]
    assert f"there are files in {job.place}" in error["message"]
    shutil.rmtree(job.place)

    other = Job(ckpt, ckpt.new_job_name(), job.place)
    other.start()
    error = ckpt("restore", dumped["id"], exit_code=31)["error"]
    assert f"another volume is at {job.place} already" in error["message"]
    other.await_more(1)
    ckpt("rm-job", "--force", other.name)
    ckpt("restore", dumped["id"])
    job.await_more(3)
    job.assert_counted_without_gap()
