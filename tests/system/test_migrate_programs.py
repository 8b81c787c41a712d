"""Real programs go to another host and back, with what they hold; and what users are told before, during and after."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.lab import Host
from harness.subjects import installed
from harness.waiting import await_condition
from real.asked import PROGRAM, Asked
from real.migrating import MigrationBed
from real.moved_programs import Moved, command_of, start_outside
from real.shared_bed import SharedBed

pytestmark = pytest.mark.system

HOME = "/var/lib/moved"
"""On the hosts' own mounts: what is here on one is not on the other, or is another file."""

REFUSED, SAYS_NO, USAGE, WRONG_STATE, NO_TARGET = 31, 30, 2, 62, 63

WRITER = """
import sqlite3, threading, time
os.makedirs({home!r}, exist_ok=True)
def write():
    database = held["database"] = sqlite3.connect({home!r} + "/facts.db", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode={mode}")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, filling TEXT)")
    held["rows"] = 0
    try:
        while not held.get("enough"):
            database.execute("INSERT INTO facts VALUES (?, ?)", (held["rows"], "x" * 500))
            held["rows"] += 1
            time.sleep(0.0005)  # in which others find it unlocked
    except sqlite3.Error as error:
        held["error"] = repr(error) + error.sqlite_errorname
held["thread"] = threading.Thread(target=write)
held["thread"].start()
"""
SECOND = """
before = held["rows"]
while held["rows"] < before + 50 and "error" not in held: time.sleep(0.001)
second = sqlite3.connect({home!r} + "/facts.db", timeout=30)
(seen,) = second.execute("SELECT count(*) FROM facts").fetchone()
second.close()
answer = [before, seen, held.get("error")]
"""
STOP = """
held["enough"] = True
held["thread"].join()
(rows,) = held["database"].execute("SELECT count(*) FROM facts").fetchone()
(verdict,) = held["database"].execute("PRAGMA integrity_check").fetchone()
answer = [held["rows"], rows, verdict]
"""


@pytest.fixture(scope="module")
def shared(criu: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBed]:
    shared = SharedBed(lambda: tmp_path_factory.mktemp("bed"))
    yield shared
    shared.close()


class Scene:
    """The bed for one test; what the test starts ends with it."""

    def __init__(self, bed: MigrationBed, folder: Path) -> None:
        self.bed = bed
        self.folder = folder
        folder.mkdir()

    def run_job(self, *command: object, options: tuple[object, ...] = ()) -> str:
        """A job on the source; gives its name."""
        job = self.bed.ckpt.new_job_name()
        self.bed.source.ckpt(self.bed.ckpt, "run", "--detach", "--name", job, *options, "--", *command)
        return job

    def program(self, name: str) -> Moved:
        return Moved(log=self.folder / f"{name}.log")

    def refuse(self, exit_code: int, *words: object, command: str = "migrate") -> dict[str, Any]:
        """A command on the source that must end so; gives the error that it printed."""
        document = self.bed.source.ckpt(self.bed.ckpt, command, *words, exit_code=exit_code)
        error: dict[str, Any] = document["error"]
        return error

    def to(self, host: Host, *words: object) -> tuple[object, ...]:
        """The words of a migration to this host."""
        return (*words, self.bed.address_of(host), *self.bed.options(host))

    def states(self, host: Host) -> dict[str, str]:
        return {each["name"]: each["state"] for each in host.ckpt(self.bed.ckpt, "ps")["jobs"]}

    def end(self) -> None:
        for host in self.bed.hosts:
            for job, state in self.states(host).items():
                if state in ("running", "frozen"):
                    host.ckpt(self.bed.ckpt, "stop", job, "--grace", "0s")
                host.ckpt(self.bed.ckpt, "rm-job", job)
            host.run("rm", "-rf", HOME)


@pytest.fixture
def scene(shared: SharedBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    bed = shared.take()
    scene = Scene(bed, bed.ssh.folder.parent / f"scene-{len(list(bed.ssh.folder.parent.iterdir()))}")
    yield scene
    scene.end()
    shared.give_back()


@pytest.fixture
def both_ways(scene: Scene) -> Callable[..., None]:
    """Move a job there and back, and look after each of the ways."""

    def move(job: str, look: Callable[[], None], *options: object) -> None:
        for source in scene.bed.hosts:
            moved = scene.bed.migrate(job, *options, source=source)
            assert moved["warnings"] == []
            look()
            assert scene.states(source)[job] == "migrated"
            assert scene.states(scene.bed.other(source))[job] == "running"

    return move


# --------------------------------------------------------------------------------------- programs that move


def test_programs_of_all_kinds_go_there_and_back_and_miss_no_step(
    scene: Scene, both_ways: Callable[..., None]
) -> None:
    """Sockets and timers, pipes and children, memory of each sort, threads that share it, a server: in one job."""
    programs = {kind: scene.program(kind) for kind in ("sockets", "pipes", "memory", "threads", "server")}
    lines = [
        f"{shlex.join(command_of(kind, scene.folder, program.log))} &" for kind, program in programs.items()
    ]
    job = scene.run_job("/bin/sh", "-c", "\n".join((*lines, "wait")))

    def look() -> None:
        for program in programs.values():
            program.await_more()

    look()
    both_ways(job, look)


class AskedJob(Asked):
    """A job that does what a file asks of it; the files are in a folder that all hosts share."""

    def __init__(self, scene: Scene) -> None:
        self._folder = scene.folder / "asked"
        self._folder.mkdir()
        self.job = scene.run_job(sys.executable, "-I", "-S", "-c", PROGRAM, self._folder)
        await_condition((self._folder / "ready").exists, "the program to be ready")


@pytest.mark.parametrize(("mode", "ship", "is_there"), [("wal", "open", False), ("delete", HOME, True)])
def test_a_database_goes_on_on_a_host_that_has_none_or_an_older_one(
    mode: str, ship: str, *, is_there: bool, scene: Scene
) -> None:
    program = AskedJob(scene)
    program.do(WRITER.format(home=HOME, mode=mode))
    await_condition(lambda: program.do("answer = held.get('rows', 0)") > 200, "rows")
    program.do(SECOND.format(home=HOME))
    identity = f"s = os.stat({HOME!r} + '/facts.db'); answer = [s.st_dev, s.st_ino]"
    old = program.do(identity)
    if is_there:
        # A journal of then would roll the database back.
        stale = "".join(f"echo old >{HOME}/facts.db{suffix}; " for suffix in ("", "-journal", "-wal"))
        scene.bed.target.must_run("sh", "-c", f"mkdir {HOME}; {stale}")

    moved = scene.bed.migrate(program.job, "--ship", ship)

    assert moved["rounds"][-1]["sent_bytes"] < moved["sent_bytes"] / 2
    assert program.do(identity) == old
    for _ in range(2):
        before, seen, error = program.do(SECOND.format(home=HOME))
        assert error is None
        assert seen >= before + 50
    thought, rows, verdict = program.do(STOP)
    assert (rows, verdict) == (thought, "ok")


def test_a_directory_comes_whole_with_what_is_empty_in_it(scene: Scene) -> None:
    """A redis: its log of changes, a directory that is empty but for a socket, and another one for nobody else."""
    bed = scene.bed
    bed.source.must_run("sh", "-c", f"mkdir -p {HOME}/run {HOME}/private; chmod 700 {HOME}/private")
    options = {"port": 7342, "dir": HOME, "unixsocket": f"{HOME}/run/s", "appendonly": "yes", "save": ""}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    job = scene.run_job(installed("redis-server"), *words)

    def ask(host: Host, *command: str) -> str:
        return host.must_run(installed("redis-cli"), "-s", f"{HOME}/run/s", *command).strip()

    await_condition(
        lambda: bed.source.run(installed("redis-cli"), "-p", 7342, "ping").stdout == "PONG\n", "redis"
    )
    assert ask(bed.source, "SET", "key", "value") == "OK"

    bed.migrate(job, "--ship", HOME)

    assert ask(bed.target, "GET", "key") == "value"
    assert ask(bed.target, "SET", "key", "other") == "OK"
    assert "aof_last_write_status:ok" in ask(bed.target, "INFO", "persistence")
    assert "other" in bed.target.must_run("sh", "-c", f"cat {HOME}/appendonlydir/*.incr.aof")
    assert bed.target.must_run("stat", "-c", "%a", f"{HOME}/private", f"{HOME}/run") == "700\n755\n"


def test_a_log_that_is_followed_by_name_is_followed_there(scene: Scene) -> None:
    bed, program = scene.bed, scene.program("tail")
    bed.source.must_run("sh", "-c", f"mkdir {HOME}; echo 1 >{HOME}/log")
    job = scene.run_job("/bin/sh", "-c", f"exec tail -n +1 -F {HOME}/log >>{program.log}")
    program.await_lines(1)
    bed.migrate(job, "--ship", HOME)
    bed.target.must_run("sh", "-c", f"echo 2 >>{HOME}/log")
    program.await_lines(2)
    bed.target.must_run("sh", "-c", f"mv {HOME}/log {HOME}/log.1; echo 3 >{HOME}/log")
    program.await_lines(3)


def test_a_volume_travels_and_its_holes_do_not(scene: Scene, both_ways: Callable[..., None]) -> None:
    bed, log = scene.bed, Path(HOME, "log")
    command = command_of("ticks", scene.folder, log)
    job = scene.run_job(*command, options=("--volume", f"{HOME}:300M"))
    Moved(log=bed.source.path(log)).await_more(5)

    def look() -> None:
        where = next(host for host in bed.hosts if scene.states(host)[job] == "running")
        Moved(log=where.path(log)).await_more()

    both_ways(job, look, "--ship", "open")
    moved = bed.migrate(job)
    assert moved["rounds"][-1]["sent_bytes"] < 20 << 20, "holes were sent"
    look()


@pytest.mark.alone
@pytest.mark.parametrize("policy", ["suspend", "elapsed"])
def test_what_waits_across_the_move_wakes_when_it_is_due(policy: str, scene: Scene) -> None:
    """On a target whose clocks are behind: by the program's own clocks, nothing is early or late, or comes twice."""
    program = scene.program("clocks")
    job = scene.run_job(*command_of("clocks", scene.folder, program.log))
    moved = scene.bed.migrate(job, "--time", policy)
    pause_s = moved["downtime_ms"] / 1000
    await_condition(
        lambda: len([line for line in program.lines() if not line.startswith("jump")]) == 6,
        lambda: f"all to wake: {program.lines()}",
    )
    jumps = {words[1]: float(words[2]) for line in program.lines() if (words := line.split())[0] == "jump"}
    expected = {"suspend": {"7"}, "elapsed": {"1", "7"}}[policy]
    # A busy machine keeps it waiting, too, if not for as long.
    assert all(clock in expected or jump < pause_s / 2 for clock, jump in jumps.items()), (jumps, pause_s)
    assert all(0 < jump < pause_s + 0.2 for jump in jumps.values()), (jumps, pause_s)
    for line in program.lines():
        name, clock, waited = line.split()
        # poll(2) has its timeout in what is left of it, which passes only while it runs.
        late = jumps.get(clock, 0) if name == "poll" else 0
        if name != "jump":
            assert 3 <= float(waited) < 3.25 + late, program.lines()


# ---------------------------------------------------------------------------------------- what is no job


def test_several_trees_of_a_cgroup_and_one_by_its_pid_move_and_are_jobs_there(scene: Scene) -> None:
    bed = scene.bed
    programs = [scene.program(f"ticks-{number}") for number in range(3)]
    pids = [
        start_outside(bed.source, cgroup, *command_of("ticks", scene.folder, program.log))
        for cgroup, program in zip(("moved", "moved", "moved-one"), programs, strict=True)
    ]
    try:
        for program in programs:
            program.await_more(5)
        several = bed.source.ckpt(bed.ckpt, "migrate", *scene.to(bed.target, "--cgroup", "moved"))
        assert several["pids"] == pids[:2]
        assert several["warnings"] == []
        one = bed.source.ckpt(bed.ckpt, "migrate", *scene.to(bed.target, "--pid", pids[2]))
        assert scene.states(bed.target) == {several["job"]: "running", one["job"]: "running"}
        for program in programs:
            program.await_more()
        # There it is a job, also where it is named by its process.
        bed.target.ckpt(bed.ckpt, "migrate", *scene.to(bed.source, "--pid", one["pid"]))
        assert scene.states(bed.target)[one["job"]] == "migrated"
        assert scene.states(bed.source) == {one["job"]: "running"}
        programs[2].await_more()
    finally:
        scene.end()
        for host in bed.hosts:
            host.run("rmdir", "/sys/fs/cgroup/moved", "/sys/fs/cgroup/moved-one")


def test_where_its_pid_is_taken_it_gets_pids_of_its_own(scene: Scene) -> None:
    bed, program = scene.bed, scene.program("ticks")
    pid = start_outside(bed.source, "moved", *command_of("ticks", scene.folder, program.log))
    taker = f"echo {pid - 1} >/proc/sys/kernel/ns_last_pid; exec sleep 1000 >/dev/null 2>&1 & echo $!"
    taken = int(bed.target.must_run("sh", "-c", taker))
    try:
        assert taken == pid
        program.await_more(5)
        error = scene.refuse(REFUSED, *scene.to(bed.target, "--pid", pid))
        assert "--pids new" in error["reasons"][0]
        assert "[pid-taken]" in error["reasons"][0]
        moved = bed.source.ckpt(bed.ckpt, "migrate", *scene.to(bed.target, "--pid", pid, "--pids", "new"))
        assert moved["pid"] != pid
        program.await_more()
        assert program.lines()[-1].split()[1] == str(pid)
    finally:
        bed.target.run("kill", taken)
        bed.source.run("kill", pid)
        scene.end()
        bed.source.run("rmdir", "/sys/fs/cgroup/moved")


# ------------------------------------------------------------------------------------ what people are told

HOLDER = """
import socket, sys, time
held = [open({home!r} + "/" + name) for name in ("missing", "other", "mode")]
port = socket.create_server(("127.0.0.1", 7343))
name = socket.socket(socket.AF_UNIX)
name.bind({home!r} + "/run/s")
open(sys.argv[1], "w").close()
time.sleep(1000)
"""
TAKER = "import socket, time; s = socket.create_server(('127.0.0.1', 7343)); time.sleep(1000)"


def test_all_that_is_in_the_way_is_told_at_once_and_nothing_is_touched(scene: Scene) -> None:
    bed = scene.bed
    here = "for name in missing other mode; do echo here >$name; done; mkdir run"
    bed.source.must_run("sh", "-c", f"mkdir {HOME}; cd {HOME}; {here}")
    bed.target.must_run(
        "sh", "-c", f"mkdir {HOME}; cd {HOME}; echo ther >other; echo here >mode; chmod 600 mode"
    )
    job = scene.run_job(sys.executable, "-I", "-S", "-c", HOLDER.format(home=HOME), scene.folder / "ready")
    await_condition((scene.folder / "ready").exists, "the program to be ready")
    bed.target.ckpt(bed.ckpt, "run", "--detach", "--name", job, "--", sys.executable, "-c", TAKER)
    await_condition(lambda: ":1CAF" in bed.target.must_run("cat", "/proc/net/tcp"), "the port to be taken")
    rules = {"job-runs", "file-missing", "file-content", "file-mode", "port-taken", "unix-directory"}

    error = scene.refuse(REFUSED, *scene.to(bed.target, job))
    assert error["slug"] == "cannot-migrate"
    assert {reason.rpartition("[")[2].rstrip("]") for reason in error["reasons"]} == rules
    assert all(reason.startswith(f"{bed.address_of(bed.target)}: ") for reason in error["reasons"])
    dry = bed.source.ckpt(bed.ckpt, "migrate", *scene.to(bed.target, "--dry-run", job), exit_code=SAYS_NO)
    blockers = [each for each in dry["findings"] if each["severity"] == "blocker"]
    assert not dry["ok"]
    assert {each["rule"] for each in blockers} == rules
    assert all(each["remedy"] for each in blockers)

    # What is sent along is in nobody's way, nor is what the user allows.
    shipped = scene.to(bed.target, "--dry-run", "--ship", HOME, "--allow", "job-runs", job)
    dry = bed.source.ckpt(bed.ckpt, "migrate", *shipped, exit_code=SAYS_NO)
    assert [each["rule"] for each in dry["findings"] if each["severity"] == "blocker"] == [
        "job-runs",
        "port-taken",
    ]
    assert bed.source.ckpt(bed.ckpt, "migrate", *shipped, "--allow", "port-taken")["ok"]

    assert scene.states(bed.source) == {job: "running"}
    assert [bed.migrations(host) for host in bed.hosts] == [[], []]
    assert all("cgroup" in each for each in bed.leftovers())


def test_a_wrong_call_is_told_before_anything_is_asked(scene: Scene) -> None:
    job = scene.run_job("/bin/sleep", "1000")
    for words, says in (
        (("--allow", "no-rule"), "no rule no-rule"),
        (("--ship", "/no/such"), "/no/such"),
        (("--pid", "1"), "exactly one target"),
        (("--lazy", "--pre-copy", "1"), "choose one"),
    ):
        assert says in scene.refuse(USAGE, *scene.to(scene.bed.target, *words, job))["message"]


def test_a_job_that_has_moved_is_told_of_as_one_and_ends_where_it_is(scene: Scene) -> None:
    bed = scene.bed
    ending = (
        f"number=0; while [ ! -e {HOME} ]; do number=$((number + 1)); echo $number; sleep 0.02; done; exit 7"
    )
    job = scene.run_job("/bin/sh", "-c", ending)
    bed.source.ckpt(bed.ckpt, "dump", job)
    waiting = bed.start(bed.source, "wait", job)
    await_condition(waiting.controller.__bool__, "the wait to begin")

    bed.migrate(job)

    ended = waiting.wait()
    assert ended.exit_code == WRONG_STATE, ended
    where = bed.address_of(bed.target)
    assert where in ended.document["error"]["message"]
    assert where in scene.refuse(WRONG_STATE, job, command="stop")["hint"]
    assert where in scene.refuse(NO_TARGET, job, command="dump")["hint"]
    assert where in scene.refuse(NO_TARGET, *scene.to(bed.target, job))["hint"]
    assert bed.target.ckpt(bed.ckpt, "dump", job)["job"] == job
    # Somebody may want it, and must be told that there may be two of it.
    [warning] = bed.source.ckpt(bed.ckpt, "restore", job)["warnings"]
    assert where in warning
    assert scene.states(bed.source) == scene.states(bed.target) == {job: "running"}

    bed.target.must_run("mkdir", HOME)
    assert bed.target.ckpt(bed.ckpt, "wait", job, exit_code=7)["exit_code"] == 7
    assert scene.states(bed.target) == {job: "exited"}
    logged = bed.target.run(*bed.ckpt.command_line("logs", job), environ=bed.target.environ(bed.ckpt)).stdout
    numbers = [int(line) for line in logged.split()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_events_of_a_migration_tell_its_steps_and_rounds(scene: Scene) -> None:
    job = scene.run_job("/bin/sleep", "1000")
    line = scene.bed.ckpt.command_line("migrate", "--json-progress", *scene.to(scene.bed.target, job))
    done = scene.bed.source.run(*line, environ=scene.bed.source.environ(scene.bed.ckpt))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [each["round"] for each in events if each["event"] == "round"] == [0, 1]
    phases = [each["phase"] for each in events if each["event"] == "phase"]
    assert phases.index("checking both hosts") < phases.index("freezing") < phases.index("restoring there")
    assert done.stdout.startswith(f"{job} runs on {scene.bed.address_of(scene.bed.target)}: pid ")
