"""Bad input through the command: one sentence, a hint and the exit code for people; one document for programs."""

from __future__ import annotations

import base64
import glob
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.backends import MemoryBackend
from fakes.checkpoints import a_checkpoint
from harness.cgroups import Cgroup, unified_mount
from harness.command import PROGRAM, Ckpt
from harness.subjects import PYTHON, Workload
from harness.traces import Traces
from harness.waiting import await_condition
from real.crashing import BigCounting, Counting, Scene, Subject

from ckpt.store.opening import open_local, open_store
from ckpt.store.store import Store

pytestmark = pytest.mark.system

IMAGES = Path(__file__).parents[2] / "images"
NOBODY = 65534

IO_URING = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(425, 8, (ctypes.c_char * 120)())
kind = "io_uring"
if fd < 0:
    fd, kind = libc.syscall(323, 1), "userfaultfd"
open(sys.argv[1], "w").write(f"{fd} {kind}")
time.sleep(1000)
"""


@pytest.fixture
def scene(ckpt: Ckpt, traces: Traces) -> Scene:
    return Scene(ckpt, traces)


def refused(ckpt: Ckpt, exit_code: int, slug: str, *words: object, **environ: str) -> dict[str, Any]:
    """The call is refused, for people and for programs; gives the error's document."""
    text = ckpt.run(*words, **environ)
    assert text.returncode == exit_code, text.stderr
    assert text.stdout == ""
    assert text.stderr.startswith("ckpt: ")
    document: dict[str, Any] = ckpt(str(words[0]), *words[1:], exit_code=exit_code, **environ)
    error: dict[str, Any] = document["error"]
    assert list(document) == ["error"]
    assert (error["slug"], error["exit_code"]) == (slug, exit_code)
    assert error["message"].rstrip().endswith((".", "?"))
    # pids of the commands themselves differ; nothing else does
    assert "Traceback" not in text.stderr
    assert text.stderr.splitlines()[0].removeprefix("ckpt: ")[:20] == error["message"][:20]
    return error


# ------------------------------------------------------------------------------------------- the call


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        (["dump"], "usage"),
        (["dump", "--pid", "1", "web"], "usage"),
        (["dump", "--pid", "1", "--cgroup", "/x"], "usage"),
        (["dump", "--pid", "0"], "usage"),
        (["dump", "--pid", "many"], "usage"),
        (["dump", "a/b"], "bad-name"),
        (["dump", "--pid", "1", "--name", "../x"], "bad-name"),
        (["dump", "--pid", "1", "--tag", "a b"], "bad-name"),
        (["dump", "--pid", "1", "--freeze-timeout", "10"], "bad-duration"),
        (["dump", "--pid", "1", "--freeze-timeout", "0s"], "usage"),
        (["dump", "--pid", "1", "--no-such-option"], "usage"),
        (["restore"], "usage"),
        (["restore", "web", "--time", "yesterday"], "usage"),
        (["restore", "web", "--name", "a/b"], "bad-name"),
        (["tag", "web", "a@b"], "bad-name"),
        (["rm"], "usage"),
        (["run", "--name", ".hidden", "--", "true"], "bad-name"),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_2(ckpt: Ckpt, words: list[str], slug: str) -> None:
    refused(ckpt, 2, slug, *words)


@pytest.mark.parametrize(
    "command", [["dump", "--pid", "1"], ["restore", "web"], ["recover"], ["run", "true"]]
)
def test_who_is_not_root_is_told_so(ckpt: Ckpt, command: list[str]) -> None:
    done = subprocess.run(
        [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            # The checkout may lie where only root can read.
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            PROGRAM,
            "--json",
            *command,
        ],
        capture_output=True,
        text=True,
        env=ckpt.environ({}),
        cwd="/",
        check=False,
    )
    assert done.returncode == 10, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["message"] == f"'ckpt {command[0]}' needs root, and this is uid {NOBODY}."
    assert error["hint"] == "Run it with sudo."


# ----------------------------------------------------------------------------------------- the target


def test_what_is_not_there_is_63_or_41(ckpt: Ckpt) -> None:
    gone = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    assert "process" in refused(ckpt, 63, "no-such-target", "dump", "--pid", gone)["message"]
    for cgroup in ("/no/such", "/etc", "../../etc", ""):
        assert "no cgroup" in refused(ckpt, 63, "no-such-target", "dump", "--cgroup", cgroup)["message"]
    for words in (["dump", "web"], ["stop", "web"], ["wait", "web"], ["logs", "web"], ["rm-job", "web"]):
        assert "no job web" in refused(ckpt, 63, "no-such-target", *words)["message"]
    for ref in ("web", "web~1", "web@latest", "0123456789", "../../etc/passwd"):
        assert ref in refused(ckpt, 41, "missing", "restore", ref)["message"]


def test_a_reference_that_several_checkpoints_share_names_them(ckpt: Ckpt, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    in_memory, seen = open_store(MemoryBackend(), create=True), dict[str, int]()
    for number in range(3000):
        found = _commit(in_memory, tmp_path / "empty", number)[:4]
        if found in seen:
            break
        seen[found] = number
    local = open_local(str(ckpt.store))
    ids = [_commit(local, tmp_path / "empty", each) for each in (seen[found], number)]
    for words in (["restore", found], ["show", found], ["tag", found, "x"], ["rm", found]):
        error = refused(ckpt, 2, "ambiguous-ref", *words)
        assert error["message"].startswith(f"'{found}' could be any of 2 checkpoints: ")
        assert all(each[:12] in error["message"] for each in ids)


def _commit(store: Store, file: Path, number: int) -> str:
    with store.writer() as writer:
        return writer.commit(a_checkpoint(writer.add_file(str(file), file.name), created_ns=number))


def test_ckpt_itself_its_ancestors_the_init_and_kernel_threads_are_30(ckpt: Ckpt) -> None:
    reason = refused(ckpt, 30, "cannot-checkpoint", "dump", "--pid", os.getpid())["message"]
    assert f"process {os.getpid()}" in reason
    assert "is an ancestor of this ckpt" in reason
    assert "init of this host" in refused(ckpt, 30, "cannot-checkpoint", "dump", "--pid", 1)["message"]
    assert "thread of the kernel" in refused(ckpt, 30, "cannot-checkpoint", "dump", "--pid", 2)["message"]
    script = f'exec "{PROGRAM}" dump --json --pid $$'
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, env=ckpt.environ({}), check=False
    )
    assert done.returncode == 30
    assert "is this very ckpt" in json.loads(done.stdout)["error"]["message"]


def test_a_thread_is_no_process_and_its_process_is_named(ckpt: Ckpt) -> None:
    waiting, ids = threading.Event(), []
    thread = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), waiting.wait()))
    thread.start()
    try:
        await_condition(lambda: ids, "the thread")
        hint = refused(ckpt, 63, "no-such-target", "dump", "--pid", ids[0])["hint"]
    finally:
        waiting.set()
        thread.join()
    assert f"is a thread of process {os.getpid()} (" in hint


def test_an_empty_cgroup_and_the_root_one_are_refused(ckpt: Ckpt, traces: Traces) -> None:
    empty = traces.cgroup("-empty")
    message = refused(ckpt, 63, "no-such-target", "dump", "--cgroup", empty)["message"]
    assert message == f"There is no process in the cgroup {empty}."
    for root in (str(unified_mount()), "/"):
        error = refused(ckpt, 30, "cannot-checkpoint", "dump", "--cgroup", root)
        assert "the whole host lives" in error["message"]


def test_a_workload_with_io_uring_is_30_and_the_descriptor_is_named(
    ckpt: Ckpt, workload: Workload, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    pid = workload.spawn([PYTHON, "-c", IO_URING, str(told)], tmp_path)
    fd, kind = await_condition(lambda: told.exists() and told.read_text().split(), "the descriptor")
    assert int(fd) > 0, "neither io_uring nor userfaultfd can be had here"
    error = refused(ckpt, 30, "cannot-checkpoint", "dump", "--pid", pid)
    assert f"holds fd {fd} → anon_inode:[{kind}]" in error["message"]
    os.kill(pid, signal.SIGKILL)


# -------------------------------------------------------------------------- what ends during the dump


def test_a_process_that_ends_at_the_freeze_is_63(workload: Workload, scene: Scene) -> None:
    """Alone in its cgroup, and gathered from one that it shares."""
    stays = workload.start(Counting)
    for others in (True, False):
        goes = workload.start(Counting)
        if not others:
            os.kill(stays.pid, signal.SIGKILL)
        scene.remember(alive=[stays.pid] if others else [])
        with scene.stopped_at("freezing", "dump", "--json", "--pid", goes.pid) as process:
            os.kill(goes.pid, signal.SIGKILL)
            scene.await_zombie(goes.pid)
        crash = scene.await_end(process)
        assert crash.status == 63, crash.err
        assert json.loads(crash.out.splitlines()[-1])["error"]["slug"] == "no-such-target"
        scene.await_nothing_left()


def test_a_tree_that_ends_at_the_freeze_is_left_out_and_the_other_is_dumped(
    workload: Workload, scene: Scene
) -> None:
    first, second = (workload.start(Counting) for _ in range(2))
    with scene.stopped_at("freezing", "dump", "--json", "--cgroup", str(workload.cgroup)) as process:
        os.kill(min(first.pid, second.pid), signal.SIGKILL)
        scene.await_zombie(min(first.pid, second.pid))
    with scene.going_on(process, "freezing"):
        pass
    crash = scene.await_end(process)
    assert crash.status == 0, crash.out + crash.err
    assert [tree["pid"] for tree in json.loads(crash.out)["trees"]] == [max(first.pid, second.pid)]


@pytest.mark.parametrize("phase", ["frozen", "written", "thawed", "durable"])
def test_a_process_that_is_killed_while_it_is_dumped_breaks_nothing(
    phase: str, workload: Workload, scene: Scene
) -> None:
    goes = workload.start(Counting)
    scene.remember(alive=[])
    with scene.stopped_at(phase, "dump", "--json", "--pid", goes.pid) as process:
        os.kill(goes.pid, signal.SIGKILL)
    crash = scene.await_end(process)
    scene.await_nothing_left()
    assert crash.err == ""
    if phase == "frozen":
        assert crash.status in {21, 24, 63}, crash.out
    else:
        assert crash.status == 0, crash.out
        assert scene.ckpt("restore", json.loads(crash.out)["id"])["pid"] == goes.pid
        goes.await_progress(3)


def test_processes_that_end_all_the_time_give_a_sentence_or_a_checkpoint(
    workload: Workload, scene: Scene
) -> None:
    shell = "while :; do sh -c 'sleep 0.01'; done"
    pid = workload.spawn(["sh", "-c", shell], scene.traces.folder)
    await_condition(lambda: len(workload.pids()) > 1, "its children")
    for _ in range(4):
        done = scene.ckpt.run("dump", "--json", "--cgroup", str(workload.cgroup))
        assert done.returncode == 0, done.stdout
        # The one that is named comes and goes.
        child = next((each for each in workload.pids() if each != pid), pid)
        done = scene.ckpt.run("dump", "--json", "--pid", str(child))
        assert done.returncode in {0, 21, 24, 30, 63}, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        json.loads(done.stdout)


# ------------------------------------------------------------------------------------------- no space


@pytest.mark.parametrize("size", ["16k", "300k", "16m"])
def test_no_space_in_the_staging_area_is_14_and_the_workload_runs_on(
    size: str, workload: Workload, scene: Scene
) -> None:
    program = workload.start(BigCounting)
    subject = Subject(("--pid", str(program.pid)), [program])
    scene.remember()
    with small_disk(scene.traces.folder / "small", size) as disk:
        error = refused(scene.ckpt, 14, "no-space", "dump", *subject.target, CKPT_STATE=f"{disk}/state")
        assert str(disk) in error["message"]
        assert "CKPT_STATE" in error["hint"]
        left = [path for path in disk.rglob("*") if path.is_file() and path.parent.name != "keys"]
        assert left == []
    subject.assert_runs()
    scene.await_nothing_left()
    assert scene.ckpt("list")["checkpoints"] == []


@pytest.mark.parametrize("size", ["16k", "1m", "16m"])
def test_no_space_in_the_store_is_14_and_nothing_half_written_remains(
    size: str, workload: Workload, scene: Scene
) -> None:
    program = workload.start(BigCounting)
    subject = Subject(("--pid", str(program.pid)), [program])
    scene.remember()
    with small_disk(scene.traces.folder / "small", size) as disk:
        store = {"CKPT_STORE": f"{disk}/store"}
        error = refused(scene.ckpt, 14, "no-space", "dump", *subject.target, "--stop", **store)
        assert str(disk) in error["message"]
        subject.assert_runs()
        scene.await_nothing_left()
        left = [path.name for path in disk.rglob("*") if path.is_file()]
        assert set(left) <= {"config", "lock"}
        if "config" in left:
            assert scene.ckpt("verify", **store)["ok"]


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of this size."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "ckpt-test-crash", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


# ------------------------------------------------------------------------------------------ the store


def test_what_is_no_store_is_40(ckpt: Ckpt, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary").write_text("dear diary")
    for words in (["list"], ["dump", "--pid", "1"], ["verify"]):
        error = refused(ckpt, 40, "store-unusable", *words, CKPT_STORE=str(other))
        assert "there are other things in it (diary)" in error["message"]
    refused(ckpt, 40, "store-unusable", "list", CKPT_STORE=str(other / "diary"))
    refused(ckpt, 40, "store-unusable", "list", CKPT_STORE="s3://bucket")
    assert [path.name for path in other.iterdir()] == ["diary"]


def test_a_store_of_a_newer_format_is_43(ckpt: Ckpt) -> None:
    shutil.copytree(IMAGES / "head", ckpt.store)
    sets = json.loads((IMAGES / "damaged/config.json").read_text())
    (change,) = sets["config-newer"]["change"]
    (ckpt.store / change["object"]).write_bytes(base64.b64decode(change["content"]))
    for words in (["list"], ["dump", "--pid", "1"], ["restore", "web"]):
        assert "newer" in str(refused(ckpt, 43, "format", *words))


def test_a_store_that_is_read_only_is_40_to_who_writes_and_open_to_who_reads(
    workload: Workload, scene: Scene
) -> None:
    program = workload.start(Counting)
    subject = Subject(("--pid", str(program.pid)), [program])
    checkpoint = scene.ckpt("dump", *subject.target)["id"]
    scene.remember()
    place = str(scene.ckpt.store)
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        error = refused(scene.ckpt, 40, "store-unusable", "dump", *subject.target, "--stop")
        assert "Read-only file system" in error["message"]
        refused(scene.ckpt, 40, "store-unusable", "tag", checkpoint, "x")
        assert scene.ckpt("list")["checkpoints"][0]["id"] == checkpoint
        assert scene.ckpt("verify")["ok"]
    finally:
        subprocess.run(["umount", place], check=True)
    subject.assert_runs()
    scene.await_nothing_left()


def test_damage_in_the_store_is_42_before_anything_is_started_and_verify_lists_it(
    workload: Workload, scene: Scene
) -> None:
    program = workload.start(Counting)
    checkpoint = scene.ckpt("dump", "--stop", "--pid", program.pid)["id"]
    scene.remember(alive=[])
    manifest = scene.ckpt.store / "manifests" / checkpoint
    packs = [path for path in (scene.ckpt.store / "packs").rglob("*") if path.is_file()]
    biggest = max(packs, key=lambda path: path.stat().st_size)
    damages: list[tuple[Path, Callable[[bytes], bytes], int, str]] = [
        (biggest, _flipped, 42, "corrupt"),
        (biggest, lambda content: content[: len(content) // 2], 42, "corrupt"),
        (biggest, lambda _: b"", 42, "corrupt"),
        (manifest, _flipped, 42, "corrupt"),
        (manifest, lambda content: content[:-1], 42, "corrupt"),
    ]
    for path, damage, exit_code, slug in damages:
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        message = refused(scene.ckpt, exit_code, slug, "restore", checkpoint)["message"]
        assert path.name[:12] in message
        report = scene.ckpt("verify", exit_code=3)
        assert not report["ok"]
        assert any(path.name in problem["subject"] for problem in report["problems"])
        path.write_bytes(whole)
        scene.await_nothing_left()
    biggest.rename(biggest.with_suffix(".away"))
    refused(scene.ckpt, 41, "missing", "restore", checkpoint)
    biggest.with_suffix(".away").rename(biggest)
    scene.await_nothing_left()
    assert scene.jobs() == []
    scene.ckpt("restore", checkpoint)
    program.await_progress(3)


def _flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


# ---------------------------------------------------------------------------------------------- CRIU


def test_a_criu_that_is_not_there_is_13(ckpt: Ckpt, workload: Workload) -> None:
    program = workload.start(Counting)
    error = refused(ckpt, 13, "criu-missing", "dump", "--pid", program.pid, CKPT_CRIU="/nonexistent")
    assert "/nonexistent ($CKPT_CRIU)" in error["message"]
    assert "scripts/setup" in error["hint"]


def test_a_criu_that_does_not_work_is_told_and_the_workload_runs_on(
    workload: Workload, scene: Scene, tmp_path: Path
) -> None:
    program = workload.start(Counting)
    subject = Subject(("--pid", str(program.pid)), [program])
    scene.remember()
    error = refused(scene.ckpt, 24, "criu-died", "dump", *subject.target, CKPT_CRIU="/bin/false")
    assert "exit status 1" in error["message"]
    assert "ckpt doctor" in error["hint"]
    assert error["log_path"] == ""
    hanging = tmp_path / "criu"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    error = scene.ckpt("dump", *subject.target, exit_code=23, CKPT_CRIU=str(hanging))["error"]
    assert error["slug"] == "criu-stuck"
    subject.assert_runs()
    scene.await_nothing_left()


def test_the_log_of_a_dump_that_failed_can_be_read_afterwards(workload: Workload, scene: Scene) -> None:
    program = workload.start(BigCounting)
    process = scene.ckpt.start("dump", "--json", "--pid", program.pid)
    await_condition(
        # The one of pathlib cannot bear that a directory goes away meanwhile.
        lambda: glob.glob(f"{scene.ckpt.state}/operations/*/staging/*/pages-*.img"),
        "CRIU to be at work",
    )
    criu = next(step["pid"] for step in scene.entry()["steps"] if step["kind"] == "CriuStarted")
    os.kill(criu, signal.SIGKILL)
    crash = scene.await_end(process)
    assert crash.status == 24, crash.err
    log = Path(json.loads(crash.out)["error"]["log_path"])
    assert "CRIU run id" in log.read_text()
    program.await_progress(3)


# ------------------------------------------------------------------------------------------ conflicts


def test_two_dumps_at_once_of_one_workload_are_61_and_the_first_is_named(
    workload: Workload, scene: Scene
) -> None:
    program = workload.start(Counting)
    subject = Subject(("--pid", str(program.pid)), [program])
    with scene.stopped_at("frozen", "dump", *subject.target) as first:
        for target in (subject.target, ("--cgroup", str(workload.cgroup))):
            error = refused(scene.ckpt, 61, "locked", "dump", *target)
            assert f"process {first.pid}" in error["message"]
    assert scene.await_end(first).status == 0
    subject.assert_runs()


def test_a_job_that_runs_is_not_restored_over(workload: Workload, scene: Scene) -> None:
    program, name = workload.new(Counting), scene.ckpt.new_job_name()
    scene.ckpt("run", "--detach", "--name", name, "--", *program.command())
    program.await_ready()
    scene.ckpt("dump", name)
    scene.remember()
    message = refused(scene.ckpt, 62, "wrong-state", "restore", name)["message"]
    assert message.startswith(f"Job {name} is running (process ")
    program.await_progress(3)
    program.check()
    scene.await_nothing_left()


def test_a_pid_that_is_taken_is_31_and_its_owner_is_named(workload: Workload, scene: Scene) -> None:
    program = workload.start(Counting)
    checkpoint = scene.ckpt("dump", "--pid", program.pid)["id"]
    scene.remember()
    error = refused(scene.ckpt, 31, "host-mismatch", "restore", checkpoint)
    name = Path(f"/proc/{program.pid}/comm").read_text().strip()
    assert f"pid {program.pid} belongs to {name}" in error["message"]
    assert "--pids new" in error["hint"]
    scene.await_nothing_left()


def test_a_cgroup_that_its_operator_froze_is_dumped_and_left_frozen(workload: Workload, scene: Scene) -> None:
    program = workload.start(Counting)
    freezer = workload.cgroup.path / "cgroup.freeze"
    freezer.write_text("1")
    await_condition(workload.cgroup.is_frozen, "the freeze")
    scene.ckpt("dump", "--cgroup", str(workload.cgroup))
    crash = scene.crash("dump", "--cgroup", str(workload.cgroup), CKPT_FAILPOINT="dumped")
    assert crash.status == -signal.SIGKILL
    scene.await_settled()
    assert workload.cgroup.is_frozen()
    freezer.write_text("0")
    program.await_progress(3)
    program.check()


def test_a_freeze_from_above_is_62(scene: Scene, traces: Traces, compiled: Path) -> None:
    workload = Workload(traces, compiled)
    inner = Cgroup(workload.cgroup.path / "inner").create()
    pid = workload.spawn(["sleep", "1000"], traces.folder)
    # Its shell enters the cgroup by itself: moved too early, it would come back.
    await_condition(lambda: pid in workload.pids(), lambda: "the process to enter its cgroup")
    (inner.path / "cgroup.procs").write_text(str(pid))
    (workload.cgroup.path / "cgroup.freeze").write_text("1")
    error = refused(scene.ckpt, 62, "wrong-state", "dump", "--cgroup", str(inner))
    assert error["message"].startswith(f"The cgroup {workload.cgroup} is frozen")
