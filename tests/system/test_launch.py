"""Jobs and hosted restores, with real processes, real namespaces and real CRIU.

Every job lives in a cgroup of its own, ckpt-test-launch-*, which is emptied and removed whatever happens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckpt.errors import CommandFailed, CriuMissing, OsRefused, RestoreFailed
from ckpt.host import launch, linux, mounts, outside
from ckpt.host.criu import engine
from ckpt.host.criu.locate import find_criu
from ckpt.host.criu.request import DumpRequest, InheritFd, RestoreRequest
from ckpt.host.criu.worker import Worker
from ckpt.host.launch import JobSpec, RestoreHost, StartedJob, Stdio
from ckpt.host.outside import NOTHING_JOINED
from ckpt.host.process_table import ProcessRef, process_ref
from ckpt.model.workload import OutsideFile, OutsideKind
from ckpt.units import Pid

UNIFIED = next(
    (p for p in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()),
    None,
)
SPAN_S = 60.0

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and CRIU need root"),
    pytest.mark.skipif(UNIFIED is None, reason="no cgroup version 2 is mounted"),
    pytest.mark.skipif(not os.path.exists(launch.INIT_PLACE), reason="scripts/setup builds ckpt-init"),
]

FAMILY = """
import json, os, sys, time, mmap, signal
place = sys.argv[1]
# Appended to, and open all the time: what is open at the dump must be there at the restore.
state = open(f"{place}/state", "a")
usr1 = open(f"{place}/usr1", "a")
def say(stream, value):
    stream.write(json.dumps(value) + "\\n")
    stream.flush()
r, w = os.pipe()
shm = open(f"/dev/shm/{os.path.basename(os.path.dirname(place))}-{os.getppid()}-{os.getpid()}", "w+b")
shm.truncate(4096)
memory = mmap.mmap(shm.fileno(), 4096)
null = open("/dev/null", "r+b", buffering=0)
master, slave = os.openpty()
signal.signal(signal.SIGUSR1, lambda *_: say(usr1, os.getpid()))
def on_term(*_):
    os.unlink(shm.name)
    sys.exit(42)
signal.signal(signal.SIGTERM, on_term)
if os.fork() == 0:
    count = 0
    while True:
        count += 1
        os.write(w, b"%d\\n" % count)
        time.sleep(0.005)
if os.fork() == 0:
    for line in os.fdopen(r):
        memory[0:8] = int(line).to_bytes(8, "big")
while True:
    null.write(b"x")
    os.write(slave, b"y")
    assert os.read(master, 1) == b"y"
    inside = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    say(state, {"count": int.from_bytes(memory[0:8], "big"), "pid": os.getpid(), "seen": inside,
                  "shm": shm.name})
    print(os.getpid(), flush=True)
    time.sleep(0.005)
"""


def await_that(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SPAN_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause.wait(0.002)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cgroup and a directory for one job."""

    cgroup: Path
    directory: Path

    @property
    def procs(self) -> tuple[str, ...]:
        return (str(self.cgroup / "cgroup.procs"),)

    @property
    def exit_path(self) -> Path:
        return self.directory / "exit.json"

    def spec(self, *argv: str, **changes: Any) -> JobSpec:
        wanted: dict[str, Any] = {
            "name": "test",
            "argv": argv,
            "cwd": str(self.directory),
            "environment": dict(os.environ),
            "exit_path": str(self.exit_path),
            "cgroup_procs": self.procs,
            "stdout": Stdio.log(str(self.directory / "out")),
            "stderr": Stdio.log(str(self.directory / "err")),
        }
        return JobSpec(**(wanted | changes))

    def start(self, *argv: str, **changes: Any) -> StartedJob:
        return launch.start_job(self.spec(*argv, **changes), register=lambda _: None)

    def members(self) -> list[int]:
        return [int(pid) for pid in (self.cgroup / "cgroup.procs").read_text().split()]

    def kill(self) -> None:
        (self.cgroup / "cgroup.kill").write_text("1")
        await_that(lambda: "populated 0" in (self.cgroup / "cgroup.events").read_text(), "an empty cgroup")

    def exit(self) -> dict[str, Any]:
        await_that(self.exit_path.exists, "exit.json")
        record: dict[str, Any] = json.loads(self.exit_path.read_text())
        return record

    def out(self) -> str:
        return (self.directory / "out").read_text()

    def state(self) -> dict[str, Any]:
        path = self.directory / "state"
        await_that(lambda: path.exists() and "\n" in path.read_text(), "the family's first word")
        state: dict[str, Any] = json.loads(path.read_text().rpartition("\n")[0].rpartition("\n")[2])
        return state

    def await_progress(self) -> None:
        before = self.state()["count"]
        await_that(lambda: self.state()["count"] > before + 3, "the family counts on")


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    assert UNIFIED is not None
    cgroup = UNIFIED / f"ckpt-test-launch-{os.getpid()}-{abs(hash(request.node.name)) % 10**6}"
    cgroup.mkdir()
    place = Place(cgroup=cgroup, directory=tmp_path)
    try:
        yield place
    finally:
        place.kill()
        if (tmp_path / "state").exists():
            with suppress(FileNotFoundError):
                os.unlink(place.state()["shm"])
        cgroup.rmdir()


@pytest.fixture(scope="module")
def criu() -> Path:
    try:
        return find_criu()
    except CriuMissing as error:
        pytest.skip(f"{error} Set CKPT_CRIU to force these tests.")


def start_family(place: Place, **changes: Any) -> StartedJob:
    job = place.start(sys.executable, "-c", FAMILY, str(place.directory), **changes)
    place.await_progress()
    return job


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumped:
    """Images, and the mounts that are not in them."""

    images: Path
    external: tuple[mounts.ExternalMount, ...]


def dump(criu: Path, place: Place, root: Pid, name: str = "images") -> Dumped:
    images = place.directory / name
    images.mkdir()
    external = mounts.external_mounts(root)
    terminals = outside.dump_externals(outside.outside_files([Pid(pid) for pid in place.members()]))
    with Worker.start(criu) as worker:
        engine.dump(
            worker,
            DumpRequest(pid=root, images=images, externals=mounts.dump_externals(external) + terminals),
        )
    return Dumped(images=images, external=external)


def start_subject(place: Place) -> subprocess.Popen[bytes]:
    """The family in the host's namespaces, but in the place's cgroup."""
    subject = subprocess.Popen(
        [sys.executable, "-c", f"open({place.procs[0]!r}, 'w').write('0')\n{FAMILY}", str(place.directory)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    place.await_progress()
    return subject


@contextmanager
def begun(
    criu: Path, host: RestoreHost, place: Place, dumped: Dumped, replaced: tuple[OutsideFile, ...] = ()
) -> Iterator[engine.HeldRestore]:
    root = place.directory / "root" if dumped.external else None
    if root:
        root.mkdir(exist_ok=True)
    launcher = host.launcher(private_root=str(root) if root else "")
    inherit = tuple(
        InheritFd(
            key=file.key,
            fd=host.substitutes([file], log=str(place.directory / "out"), joined=NOTHING_JOINED)[0],
        )
        for file in replaced
    )
    try:
        worker = Worker.start(criu, launcher=launcher, kept_fds=tuple(each.fd for each in inherit))
    finally:
        for each in inherit:
            os.close(each.fd)
    request = RestoreRequest(
        images=dumped.images,
        root=root,
        externals=mounts.restore_externals(dumped.external),
        inherit_fds=inherit,
    )
    with worker, engine.begin_restore(worker, request) as held:
        yield held


def restore(criu: Path, place: Place, dumped: Dumped, replaced: tuple[OutsideFile, ...] = ()) -> ProcessRef:
    with RestoreHost(name="test", exit_path=str(place.exit_path), cgroup_procs=place.procs) as host:
        with begun(criu, host, place, dumped, replaced) as held:
            held.finish()
        return host.commit(held.pid)


# ------------------------------------------------------------------------------------------------- starting


def test_a_job_runs_in_its_cgroup_and_namespaces_and_its_exit_code_is_kept(place: Place) -> None:
    job = place.start(
        "sh", "-c", "cat /proc/self/cgroup; echo $$; ls /proc | grep -c '^[0-9]'; umask; exit 7"
    )
    record = place.exit()
    assert (record["code"], record["signal"], record["pid"]) == (7, None, job.root.pid)
    lines = place.out().splitlines()
    assert f"0::/{place.cgroup.name}" in lines
    # Its pid inside is 2; init, the shell, ls and grep are all that there is to see.
    assert lines[-3:] == ["2", "4", "0022"]
    assert launch.wait_ended(job.shim, SPAN_S)


def test_a_command_killed_by_a_signal_gives_128_and_its_number(place: Place) -> None:
    place.start("sh", "-c", "kill -9 $$")
    assert place.exit()["code"] == 128 + 9


def test_a_job_whose_init_is_killed_is_recorded_with_the_signal(place: Place) -> None:
    job = place.start("sleep", "1000")
    launch.send_signal(job.root, signal.SIGKILL)
    assert place.exit()["signal"] == 9


@pytest.mark.parametrize(("command", "status"), [("/does/not/exist", 127), ("/etc", 126)])
def test_a_command_that_cannot_be_executed_is_an_error_and_leaves_nothing(
    place: Place, command: str, status: int
) -> None:
    with pytest.raises(CommandFailed) as caught:
        place.start(command)
    assert caught.value.status == status
    assert place.members() == []
    assert not place.exit_path.exists()


def test_a_directory_that_does_not_exist_is_named(place: Place) -> None:
    with pytest.raises(OsRefused, match="/does/not/exist"):
        place.start("true", cwd="/does/not/exist")
    assert place.members() == []


def test_orphans_are_reaped_by_the_init(place: Place) -> None:
    place.start("sh", "-c", "(sh -c 'sleep 0.01 & echo $!' &) ; exec sleep 1000")
    await_that(lambda: place.out().strip(), "the orphan's pid")
    await_that(lambda: len(place.members()) == 2, "init and the command are all that is left")


def test_signals_reach_the_command_and_the_terminals_ones_its_group(place: Place) -> None:
    script = "trap 'echo term; exit 3' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.01; done"
    job = place.start(
        "sh", "-c", f"(trap 'echo child' HUP; echo ready; while :; do sleep 0.01; done) & {script}"
    )
    await_that(lambda: place.out().count("ready") == 2, "both are ready")
    launch.send_signal(job.root, signal.SIGHUP)
    await_that(lambda: "child" in place.out() and "hup" in place.out(), "both have heard of it")
    launch.send_signal(job.root, signal.SIGTERM)
    assert place.exit()["code"] == 3


def test_a_job_that_is_not_registered_is_killed(place: Place) -> None:
    def fail(_job: StartedJob) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        launch.start_job(place.spec("sleep", "1000"), register=fail)
    assert place.members() == []
    assert not place.exit_path.exists()


def test_a_job_whose_starter_is_killed_before_it_is_registered_goes_with_it(place: Place) -> None:
    starter = in_a_process(
        f"launch.start_job(launch.{place.spec('sleep', '1000')!r}, register=lambda _: (print('up', flush=True), "
        "sys.stdin.read()))"
    )
    assert starter.stdout
    assert starter.stdout.readline() == "up\n"
    assert len(place.members()) == 2
    starter.kill()
    finish(starter)
    await_that(lambda: place.members() == [], "the job is gone")
    assert not place.exit_path.exists()


def test_a_job_outlives_its_starter_and_signals_to_the_shim(place: Place) -> None:
    starter = in_a_process(
        f"job = launch.start_job(launch.{place.spec('sleep', '1000')!r}, register=lambda _: None)\n"
        "print(job.shim.pid, job.root.pid, flush=True)\nsys.stdin.read()"
    )
    assert starter.stdout
    shim, root = map(int, starter.stdout.readline().split())
    starter.kill()
    finish(starter)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(shim, number)
    os.kill(root, signal.SIGTERM)
    assert place.exit()["code"] == 128 + signal.SIGTERM


def test_stop_asks_first_and_then_kills(place: Place) -> None:
    job = place.start("sh", "-c", "trap 'echo no' TERM; echo ready; while :; do sleep 0.01; done")
    await_that(lambda: "ready" in place.out(), "ready")
    assert not launch.stop(job.root, grace_s=0.2, kill=place.kill)
    assert "no" in place.out()
    assert place.exit()["signal"] == signal.SIGKILL


def test_standard_input_from_a_pipe_and_output_to_one(place: Place) -> None:
    read_in, write_in = os.pipe()
    read_out, write_out = os.pipe()
    place.start("tr", "a-z", "A-Z", stdin=Stdio.inherit(read_in), stdout=Stdio.inherit(write_out))
    os.close(read_in)
    os.close(write_out)
    with os.fdopen(write_in, "w") as stream:
        stream.write("hello")
    with os.fdopen(read_out) as stream:
        assert stream.read() == "HELLO"
    assert place.exit()["code"] == 0


# ------------------------------------------------------------------------------------------------- restoring


def test_a_job_is_dumped_killed_and_restored_with_all_that_it_holds(criu: Path, place: Place) -> None:
    job = start_family(place)
    dumped = dump(criu, place, job.root.pid)
    place.await_progress()
    launch.send_signal(job.root, signal.SIGKILL)
    assert place.exit()["signal"] == 9
    before = place.state()

    root = restore(criu, place, dumped)

    place.await_progress()
    after = place.state()
    assert after["pid"] == before["pid"] == 2
    assert after["seen"] == [1, 2, 3, 4]
    assert len(place.members()) == 4
    assert not place.exit_path.exists(), "the end of the first life is no longer the job's"
    launch.send_signal(root, signal.SIGUSR1)
    await_that((place.directory / "usr1").read_text, "the restored init hands signals on")
    ps = subprocess.run(
        ["nsenter", "-t", str(root.pid), "-p", "-m", "ps", "-e"], capture_output=True, text=True, check=True
    )
    assert "ckpt-init" in ps.stdout
    launch.send_signal(root, signal.SIGTERM)
    assert place.exit()["code"] == 42
    assert subprocess.run(["findmnt", place.directory / "root"], check=False).returncode == 1


def test_a_restored_job_is_dumped_and_restored_again(criu: Path, place: Place) -> None:
    root: ProcessRef = start_family(place).root
    for name in ("first", "second"):
        dumped = dump(criu, place, root.pid, name)
        place.kill()
        root = restore(criu, place, dumped)
        place.await_progress()


def test_two_copies_of_a_job_run_at_once(criu: Path, place: Place) -> None:
    dumped = dump(criu, place, start_family(place).root.pid)
    place.kill()
    for _copy in range(2):
        restore(criu, place, dumped)
    assert len(place.members()) == 8
    place.await_progress()
    assert place.state()["seen"] == [1, 2, 3, 4], "each sees itself alone"


def test_a_job_that_ends_before_the_commit_is_recorded_after_it(criu: Path, place: Place) -> None:
    job = place.start("bash", "-c", "read line; exit 9", stdin=fifo_of(place))
    await_that(lambda: len(place.members()) == 2, "the job")
    dumped = dump(criu, place, job.root.pid)
    place.kill()
    place.exit()
    with RestoreHost(name="test", exit_path=str(place.exit_path), cgroup_procs=place.procs) as host:
        with begun(criu, host, place, dumped) as held:
            held.finish()
        with open(place.directory / "fifo", "w") as stream:
            stream.write("go on\n")
        await_that(lambda: place.members() == [], "the end")
        assert place.exit()["signal"] == 9, "nothing of this life is known before the commit"
        host.commit(held.pid)
    await_that(lambda: place.exit()["code"] == 9, "the end of this life")


def test_mounts_of_the_host_and_of_the_job_come_back(criu: Path, place: Place) -> None:
    outer, inner = place.directory / "a b", place.directory / "a b" / "in"
    file = place.directory / "file"
    file.write_text("hidden")
    with mounted("tmpfs", outer), mounted("tmpfs", inner):
        (inner / "source").write_text("bound")
        with bound(inner / "source", file):
            own = place.directory / "own"
            own.mkdir()
            script = (
                f"mount -t tmpfs own '{own}' && echo kept >'{own}/file' && exec 3>>'{inner}/log' && echo ready && "
                f"read line && cat '{own}/file' '{file}' && echo written >&3"
            )
            job = place.start("bash", "-c", script, stdin=fifo_of(place))
            await_that(lambda: "ready" in place.out(), "its mount")
            dumped = dump(criu, place, job.root.pid)
            places = {each.mountpoint for each in dumped.external}
            assert {str(outer), str(inner), str(file)} <= places
            assert str(own) not in places
            place.kill()
            restore(criu, place, dumped)
            with open(place.directory / "fifo", "w") as stream:
                stream.write("go on\n")
            assert place.exit()["code"] == 0, (place.directory / "err").read_text()
            assert place.out().split() == ["ready", "kept", "bound"]
            assert (inner / "log").read_text() == "written\n"
            assert mounts.mount_problems(dumped.external) == ()
    problems = mounts.mount_problems(dumped.external, [f"{inner}/log"])
    assert f"{inner} does not exist, where tmpfs (test) was mounted" in problems


def fifo_of(place: Place) -> Stdio:
    """Open in both directions, so that neither side waits for the other; CRIU keeps what is in it."""
    os.mkfifo(place.directory / "fifo")
    return Stdio(path=str(place.directory / "fifo"), flags=os.O_RDWR)


@contextmanager
def mounted(filesystem: str, directory: Path) -> Iterator[None]:
    directory.mkdir()
    linux.mount("test", str(directory), filesystem)
    try:
        yield
    finally:
        linux.umount(str(directory), flags=linux.MNT_DETACH)


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    linux.mount(str(source), str(target), flags=linux.MS_BIND)
    try:
        yield
    finally:
        linux.umount(str(target), flags=linux.MNT_DETACH)


def test_an_aborted_restore_leaves_nothing(criu: Path, place: Place) -> None:
    job = start_family(place)
    dumped = dump(criu, place, job.root.pid)
    place.kill()
    place.exit()
    ended = place.state()["count"]
    with RestoreHost(name="test", exit_path=str(place.exit_path), cgroup_procs=place.procs) as host:
        shim = host.shim
        with begun(criu, host, place, dumped):
            assert len(place.members()) >= 4
            host.abort()
    assert place.members() == []
    assert launch.wait_ended(shim, SPAN_S)
    assert place.exit()["signal"] == 9, "what was recorded before stays"
    assert place.state()["count"] == ended


def test_a_restore_whose_starter_is_killed_leaves_nothing(criu: Path, place: Place) -> None:
    job = start_family(place)
    dumped = dump(criu, place, job.root.pid)
    place.kill()
    (place.directory / "root").mkdir()
    starter = in_a_process(
        "from pathlib import Path, PosixPath\n"
        "from ckpt.host.criu import engine\n"
        "from ckpt.host.criu.worker import Worker\n"
        "from ckpt.host.criu.request import RestoreRequest\n"
        f"host = launch.RestoreHost(name='test', exit_path={str(place.exit_path)!r}, "
        f"cgroup_procs={place.procs!r})\n"
        f"root = {str(place.directory / 'root')!r}\n"
        f"worker = Worker.start({criu!r}, launcher=host.launcher(private_root=root))\n"
        f"held = engine.begin_restore(worker, RestoreRequest(images={dumped.images!r}, root=Path(root), "
        f"externals={mounts.restore_externals(dumped.external)!r}))\n"
        "print(host.shim.pid, flush=True)\nsys.stdin.read()"
    )
    assert starter.stdout
    shim = process_ref(int(starter.stdout.readline()))
    assert shim
    assert len(place.members()) >= 4
    ended = place.state()["count"]
    starter.kill()
    finish(starter)
    assert launch.wait_ended(shim, SPAN_S)
    assert place.members() == []
    assert place.state()["count"] == ended


def test_a_tree_of_the_hosts_namespace_is_restored_twice_at_once_with_new_pids(
    criu: Path, place: Place
) -> None:
    subject = start_subject(place)
    dumped = dump(criu, place, Pid(subject.pid))
    assert dumped.external == ()
    place.kill()
    subject.wait()
    roots = []
    for number in range(2):
        exit_path = place.directory / f"exit{number}.json"
        with RestoreHost(
            name="test",
            exit_path=str(exit_path),
            cgroup_procs=place.procs,
            new_pids=True,
            first_pid=3_000_000,
        ) as host:
            with begun(criu, host, place, dumped) as held:
                assert held.pid == subject.pid, "inside, the pid is the recorded one"
                main = host.pid_on_host(held.pid)
                assert main
                assert main != subject.pid
                held.finish()
            roots.append(host.commit(main))
    assert len(place.members()) == 8
    place.await_progress()
    assert place.state()["pid"] == subject.pid
    assert len(place.state()["seen"]) == 4
    for number, root in enumerate(roots):
        launch.send_signal(root, signal.SIGTERM)
        exit_path = place.directory / f"exit{number}.json"
        await_that(exit_path.exists, "the exit of a copy")
        assert json.loads(exit_path.read_text())["code"] in (42, 1), "1: the other one has unlinked its file"


def test_a_restored_tree_whose_pid_is_taken_fails_and_leaves_nothing(criu: Path, place: Place) -> None:
    subject = start_subject(place)
    dumped = dump(criu, place, Pid(subject.pid))
    with (
        RestoreHost(name="test", exit_path=str(place.exit_path), cgroup_procs=place.procs) as host,
        pytest.raises(RestoreFailed),
        begun(criu, host, place, dumped),
    ):
        pass
    assert len(place.members()) == 3
    place.kill()
    subject.wait()


def test_output_to_a_pipe_goes_on_to_a_log_after_the_restore(criu: Path, place: Place) -> None:
    reader, writer = os.pipe()
    job = start_family(place, stdout=Stdio.inherit(writer))
    os.close(writer)
    found = outside.outside_files([Pid(pid) for pid in place.members()])
    assert [(file.kind, file.writes) for file in found] == [(OutsideKind.PIPE, True)]
    dumped = dump(criu, place, job.root.pid)
    place.kill()
    os.close(reader)
    restore(criu, place, dumped, found)
    place.await_progress()
    assert set(place.out().split()) == {"2"}


def test_output_to_a_terminal_goes_on_to_a_log_after_the_restore(criu: Path, place: Place) -> None:
    master, slave = os.openpty()
    job = start_family(place, stdout=Stdio.inherit(slave))
    os.close(slave)
    assert os.read(master, 1) == b"2"
    found = outside.outside_files([Pid(pid) for pid in place.members()])
    assert [file.kind for file in found] == [OutsideKind.TTY]
    dumped = dump(criu, place, job.root.pid)
    place.kill()
    os.close(master)
    root = restore(criu, place, dumped, found)
    place.await_progress()
    await_that((place.directory / "out").exists, "the log")
    launch.send_signal(root, signal.SIGTERM)
    assert place.exit()["code"] == 42
    assert set(place.out().split()) == {"2"}


def in_a_process(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom ckpt.host import launch\nfrom ckpt.host.launch import *\n" + program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(starter: subprocess.Popen[str]) -> None:
    starter.wait()
    for stream in (starter.stdin, starter.stdout):
        assert stream
        stream.close()
