"""The engine against real CRIU and real processes: hooks, rollback, deadline, cancellation, statistics.

Every subject lives in a session and a cgroup of its own, and is removed by its pid whatever happens.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ckpt.errors import CkptError, CriuMissing, CriuStuck, DumpFailed, Interrupted, RestoreFailed
from ckpt.host.criu import engine
from ckpt.host.criu.imagefile import read_entries, write_entries
from ckpt.host.criu.kdat import KernelCache, is_useful, restore_join
from ckpt.host.criu.launch import launch_child
from ckpt.host.criu.locate import find_criu
from ckpt.host.criu.netlock import list_tables, remove_table, run_id_in, table_of
from ckpt.host.criu.pstree import read_inventory, read_tasks
from ckpt.host.criu.request import DumpRequest, RestoreRequest
from ckpt.host.criu.timens import read_instant
from ckpt.host.criu.worker import Notice, Worker
from ckpt.units import SECOND, Nanoseconds, Pid

UNIFIED = next(
    (p for p in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()),
    None,
)
SPAN_S = 60.0

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="CRIU needs root"),
    pytest.mark.skipif(UNIFIED is None, reason="no cgroup version 2 is mounted"),
]

COUNTER = """
import sys, time
count = 0
while True:
    count += 1
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(count))
    import os; os.replace(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def criu() -> Path:
    try:
        return find_criu()
    except CriuMissing as error:
        pytest.skip(f"{error} Set CKPT_CRIU to force these tests.")


def await_that(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SPAN_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause.wait(0.002)


def is_gone(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    return True


class Subject:
    """A counting process in its own session and cgroup; its count stands in a file."""

    def __init__(self, directory: Path, cgroup: Path) -> None:
        self.count_file = directory / "count"
        self.cgroup = cgroup
        self.process = subprocess.Popen(
            [sys.executable, "-c", COUNTER, str(self.count_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = Pid(self.process.pid)
        (cgroup / "cgroup.procs").write_text(str(self.pid))
        await_that(self.count_file.exists, "the first count")

    def count(self) -> int:
        return int(self.count_file.read_text())

    def assert_counts_on(self) -> None:
        before = self.count()
        await_that(lambda: self.count() > before + 2, "the subject counts on")

    def freeze(self) -> None:
        (self.cgroup / "cgroup.freeze").write_text("1")
        await_that(lambda: "frozen 1" in (self.cgroup / "cgroup.events").read_text(), "frozen")

    def thaw(self) -> None:
        (self.cgroup / "cgroup.freeze").write_text("0")

    def reaped(self) -> bool:
        return self.process.poll() is not None


@contextmanager
def own_cgroup(name: str) -> Iterator[Path]:
    assert UNIFIED is not None
    cgroup = UNIFIED / f"ckpt-test-engine-{os.getpid()}-{name}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        (cgroup / "cgroup.kill").write_text("1")
        (cgroup / "cgroup.freeze").write_text("0")
        await_that(lambda: "populated 0" in (cgroup / "cgroup.events").read_text(), "the cgroup is empty")
        cgroup.rmdir()


@pytest.fixture
def subject(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Subject]:
    with own_cgroup(str(abs(hash(request.node.name)) % 100000)) as cgroup:
        subject = Subject(tmp_path, cgroup)
        try:
            yield subject
        finally:
            subject.process.kill()
            subject.process.wait()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    (tmp_path / "work").mkdir()
    return directory


def dump_request(subject: Subject, images: Path, **changes: object) -> DumpRequest:
    options: dict[str, object] = {"pid": subject.pid, "images": images, "work": images.parent / "work"}
    return DumpRequest(**(options | changes))  # type: ignore[arg-type]


def restore_request(images: Path, **changes: object) -> RestoreRequest:
    return RestoreRequest(images=images, work=images.parent / "work", **changes)  # type: ignore[arg-type]


def dumped(criu: Path, subject: Subject, images: Path) -> None:
    with Worker.start(criu) as worker:
        engine.dump(worker, dump_request(subject, images, leave_running=False))
    subject.process.wait(SPAN_S)


@contextmanager
def killed_after(pid: Pid) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await_that(lambda: is_gone(pid), "the restored process is gone")


def test_a_process_is_dumped_and_restored_with_the_hooks_called_in_order(
    criu: Path, subject: Subject, images: Path
) -> None:
    seen: list[str] = []
    pids: list[Pid | None] = []

    def note(notice: Notice) -> None:
        seen.append(notice.phase)
        pids.append(notice.pid)

    phases = (
        "pre-dump", "network-lock", "query-ext-files", "post-dump", "pre-restore", "post-restore",
        "network-unlock", "pre-resume", "post-resume",
    )  # fmt: skip
    hooks = dict.fromkeys(phases, note)

    with Worker.start(criu) as worker:
        dump = engine.dump(worker, dump_request(subject, images, leave_running=False), hooks)
    subject.process.wait(SPAN_S)
    at_dump = subject.count()
    with Worker.start(criu) as worker:
        outcome = engine.restore(worker, restore_request(images), hooks)
    with killed_after(outcome.pid):
        assert outcome.pid == subject.pid
        assert seen == [
            "pre-dump", "query-ext-files", "post-dump", "pre-restore", "post-restore", "pre-resume", "post-resume",
        ]  # fmt: skip
        assert pids[seen.index("post-restore")] == subject.pid
        await_that(lambda: subject.count() > at_dump + 2, "the restored process counts on")
        assert dump.log.exists()
        assert outcome.log.exists()


def test_the_statistics_of_dump_and_restore_are_decoded(criu: Path, subject: Subject, images: Path) -> None:
    with Worker.start(criu) as worker:
        dump = engine.dump(worker, dump_request(subject, images, leave_running=False)).statistics
    subject.process.wait(SPAN_S)
    assert 0 < dump.frozen_ns < 60 * SECOND
    assert dump.pages_scanned >= dump.pages_written > 100
    assert dump.pages_written * 4096 == (images / "pages-1.img").stat().st_size
    with Worker.start(criu) as worker:
        outcome = engine.restore(worker, restore_request(images))
    with killed_after(outcome.pid):
        assert outcome.statistics.pages_restored == dump.pages_written
        assert 0 < outcome.statistics.restore_ns < 60 * SECOND


def test_a_failing_post_dump_hook_leaves_the_task_running_and_its_error_is_raised(
    criu: Path, subject: Subject, images: Path
) -> None:
    def refuse(_: Notice) -> None:
        raise LookupError("the target said no")

    with Worker.start(criu) as worker, pytest.raises(LookupError, match="the target said no"):
        engine.dump(worker, dump_request(subject, images, leave_running=False), {"post-dump": refuse})
    subject.assert_counts_on()


def test_a_failing_pre_dump_hook_touches_nothing(criu: Path, subject: Subject, images: Path) -> None:
    def refuse(_: Notice) -> None:
        raise DumpFailed(cause="not now")

    with Worker.start(criu) as worker, pytest.raises(DumpFailed, match="not now"):
        engine.dump(worker, dump_request(subject, images), {"pre-dump": refuse})
    subject.assert_counts_on()
    assert not list(images.glob("pages-*"))


def test_a_failing_post_restore_hook_leaves_nothing(criu: Path, subject: Subject, images: Path) -> None:
    dumped(criu, subject, images)
    at_dump = subject.count()

    def refuse(notice: Notice) -> None:
        assert notice.pid == subject.pid
        raise LookupError("the cgroup is gone")

    with Worker.start(criu) as worker, pytest.raises(LookupError):
        engine.restore(worker, restore_request(images), {"post-restore": refuse})
    await_that(lambda: is_gone(subject.pid), "nothing is left")
    assert subject.count() == at_dump


def test_a_held_restore_runs_nothing_until_it_is_finished(criu: Path, subject: Subject, images: Path) -> None:
    dumped(criu, subject, images)
    at_dump = subject.count()
    with Worker.start(criu) as worker, engine.begin_restore(worker, restore_request(images)) as held:
        assert held.pid == subject.pid
        assert not is_gone(held.pid)
        assert subject.count() == at_dump
        outcome = held.finish()
        with killed_after(outcome.pid):
            await_that(lambda: subject.count() > at_dump, "it counts on")


def test_a_held_restore_that_is_aborted_leaves_nothing(criu: Path, subject: Subject, images: Path) -> None:
    dumped(criu, subject, images)
    at_dump = subject.count()
    with Worker.start(criu) as worker:
        held = engine.begin_restore(worker, restore_request(images))
        held.abort()
        held.abort()
    await_that(lambda: is_gone(subject.pid), "nothing is left")
    assert subject.count() == at_dump


def test_the_freeze_in_the_pre_dump_hook_is_kept_through_the_dump(
    criu: Path, subject: Subject, images: Path
) -> None:
    counts: list[int] = []

    def freeze(_: Notice) -> None:
        subject.freeze()
        counts.append(subject.count())

    with Worker.start(criu) as worker:
        engine.dump(worker, dump_request(subject, images, freeze_cgroup=subject.cgroup), {"pre-dump": freeze})
    assert "frozen 1" in (subject.cgroup / "cgroup.events").read_text()
    assert [subject.count()] == counts
    subject.thaw()
    subject.assert_counts_on()


def test_the_deadline_ends_a_criu_that_hangs(criu: Path, subject: Subject, images: Path) -> None:
    # The known hang: a cgroup that others froze, and CRIU was not told. Ending CRIU there destroys the task.
    subject.freeze()
    began = time.monotonic()
    with Worker.start(criu) as worker, pytest.raises(CriuStuck) as stuck:
        engine.dump(worker, dump_request(subject, images, timeout=Nanoseconds(SECOND)))
    assert time.monotonic() - began < 10
    assert stuck.value.operation == "the dump"
    assert stuck.value.log_lines
    assert is_gone(worker.pid)


def test_time_spent_in_hooks_does_not_count(criu: Path, subject: Subject, images: Path) -> None:
    def dawdle(_: Notice) -> None:
        threading.Event().wait(1.2)

    with Worker.start(criu) as worker:
        worker.version()
        engine.dump(worker, dump_request(subject, images, timeout=Nanoseconds(SECOND)), {"pre-dump": dawdle})
    subject.assert_counts_on()


def test_cancel_from_another_thread_ends_a_dump_that_hangs(
    criu: Path, subject: Subject, images: Path
) -> None:
    subject.freeze()
    with Worker.start(criu) as worker:
        hooks = {"pre-dump": lambda _: threading.Timer(0.3, worker.cancel).start()}
        with pytest.raises(Interrupted):
            engine.dump(worker, dump_request(subject, images), hooks)
    assert is_gone(worker.pid)


def test_a_dump_that_is_cancelled_in_a_hook_leaves_the_task_running(
    criu: Path, subject: Subject, images: Path
) -> None:
    with Worker.start(criu) as worker, pytest.raises(Interrupted):
        engine.dump(
            worker,
            dump_request(subject, images, freeze_cgroup=subject.cgroup, leave_running=False),
            {"pre-dump": lambda _: subject.freeze(), "post-dump": lambda _: worker.cancel()},
        )
    assert is_gone(worker.pid)
    subject.thaw()
    subject.assert_counts_on()


@pytest.mark.parametrize("phase", ["pre-dump", "query-ext-files", "post-dump"])
def test_criu_killed_in_the_middle_of_a_dump_leaves_the_task_running(
    criu: Path, subject: Subject, images: Path, phase: str
) -> None:
    with Worker.start(criu) as worker:

        def hook(notice: Notice) -> None:
            if notice.phase == "pre-dump":
                subject.freeze()
            if notice.phase == phase:
                os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(CkptError, match="SIGKILL"):
            engine.dump(
                worker,
                dump_request(subject, images, freeze_cgroup=subject.cgroup, leave_running=False),
                {"pre-dump": hook, phase: hook},
            )
    subject.thaw()
    subject.assert_counts_on()


def test_a_cancel_after_the_commit_point_changes_nothing(criu: Path, subject: Subject, images: Path) -> None:
    with Worker.start(criu) as worker:
        engine.dump(worker, dump_request(subject, images, leave_running=False))
    subject.process.wait(SPAN_S)
    with Worker.start(criu) as worker:
        hooks = {"pre-resume": lambda _: worker.cancel()}
        outcome = engine.restore(worker, restore_request(images), hooks)
    with killed_after(outcome.pid):
        subject.assert_counts_on()


def test_a_restore_that_is_cancelled_in_a_hook_leaves_nothing(
    criu: Path, subject: Subject, images: Path
) -> None:
    dumped(criu, subject, images)
    with Worker.start(criu) as worker, pytest.raises(Interrupted):
        engine.restore(worker, restore_request(images), {"post-restore": lambda _: worker.cancel()})
    await_that(lambda: is_gone(subject.pid), "nothing is left")


def test_a_cut_off_pages_file_is_refused_before_the_restore(
    criu: Path, subject: Subject, images: Path
) -> None:
    dumped(criu, subject, images)
    pages = images / "pages-1.img"
    os.truncate(pages, pages.stat().st_size - 4096)
    with Worker.start(criu) as worker, pytest.raises(RestoreFailed, match=r"pages-1\.img has \d+ bytes"):
        engine.restore(worker, restore_request(images))
    assert is_gone(subject.pid)


def test_a_failure_says_why(criu: Path, subject: Subject, images: Path) -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    with Worker.start(criu) as worker, pytest.raises(CkptError) as failure:
        engine.dump(worker, DumpRequest(pid=Pid(gone.pid), images=images, work=images.parent / "work"))
    assert failure.value.log_lines  # type: ignore[attr-defined]
    assert failure.value.log_path == str(images.parent / "work" / "dump.log")  # type: ignore[attr-defined]


def test_the_pid_in_use_is_named(criu: Path, subject: Subject, images: Path) -> None:
    with Worker.start(criu) as worker:
        engine.dump(worker, dump_request(subject, images))
    with Worker.start(criu) as worker, pytest.raises(RestoreFailed) as failure:
        engine.restore(worker, restore_request(images))
    assert f"pid {subject.pid} is taken" in failure.value.cause
    assert "--pids new" in failure.value.remedy
    subject.assert_counts_on()


def test_an_image_set_tells_its_tasks_its_instant_and_its_namespaces(
    criu: Path, subject: Subject, images: Path
) -> None:
    with Worker.start(criu) as worker:
        engine.dump(worker, dump_request(subject, images))
    (task,) = read_tasks(images)
    assert (task.pid, task.session, task.threads) == (subject.pid, subject.pid, (subject.pid,))
    inventory = read_inventory(images)
    assert inventory.own_namespaces == frozenset()
    assert len(inventory.run_id) == 36
    assert table_of(inventory.run_id) not in list_tables()
    assert 0 < read_instant(images).monotonic_ns <= time.monotonic_ns()


def test_a_version_and_the_features_are_told(criu: Path) -> None:
    assert engine.version(criu).major >= 3
    features = engine.features(criu)
    assert features.timens
    assert features.network_lock_nftables


def test_the_cpu_can_be_recorded_and_checked(criu: Path, images: Path) -> None:
    with Worker.start(criu) as worker:
        engine.write_cpuinfo(worker, images)
    assert (images / "cpuinfo.img").stat().st_size > 8
    with Worker.start(criu) as worker:
        engine.check_cpuinfo(worker, images)


def test_a_program_that_is_no_criu_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="exit status 0"):
        engine.version(Path(shutil.which("true") or "/bin/true"))


def test_every_descriptor_and_process_is_given_back(criu: Path) -> None:
    engine.version(criu)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        engine.version(criu)
    assert len(os.listdir("/proc/self/fd")) == before


CONNECTED = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
count = 0
while True:
    client.sendall(b"x")
    assert peer.recv(1) == b"x"
    count += 1
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(count))
    import os; os.replace(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.005)
"""


def test_the_table_of_a_dump_that_was_killed_is_removed_by_its_name(
    criu: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "COUNTER", CONNECTED)
    with own_cgroup("tcp") as cgroup:
        subject = Subject(tmp_path, cgroup)
        try:
            with Worker.start(criu) as worker, pytest.raises(CkptError, match="SIGKILL"):
                engine.dump(
                    worker,
                    dump_request(subject, images, tcp_established=True),
                    {"post-dump": lambda _: os.kill(worker.pid, signal.SIGKILL)},
                )
            ours = table_of(run_id_in(images.parent / "work" / "dump.log"))
            assert ours == table_of(read_inventory(images).run_id)
            assert ours in list_tables()
            assert remove_table(ours)
            assert not remove_table(ours)
            assert ours not in list_tables()
        finally:
            subject.process.kill()
            subject.process.wait()


def test_an_established_connection_goes_on_after_the_dump_and_its_table_is_gone(
    criu: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "COUNTER", CONNECTED)
    with own_cgroup("tcp-ok") as cgroup:
        subject = Subject(tmp_path, cgroup)
        try:
            with Worker.start(criu) as worker, pytest.raises(DumpFailed, match="established TCP"):
                engine.dump(worker, dump_request(subject, images))
            shutil.rmtree(images)
            images.mkdir()
            with Worker.start(criu) as worker:
                engine.dump(worker, dump_request(subject, images, tcp_established=True))
            subject.assert_counts_on()
            assert table_of(read_inventory(images).run_id) not in list_tables()
        finally:
            subject.process.kill()
            subject.process.wait()


@pytest.mark.alone
@pytest.mark.skipif(not is_useful(), reason="CRIU keeps its cache here by itself, or / is shared")
def test_a_restore_with_the_kernel_cache_is_in_the_hosts_mount_namespace(
    criu: Path, subject: Subject, images: Path, tmp_path: Path
) -> None:
    dumped(criu, subject, images)
    at_dump = subject.count()
    run_before = sorted(os.listdir("/run"))
    mounts_before = Path("/proc/self/mountinfo").read_text()
    launcher = KernelCache(directory=tmp_path).launcher(criu, launch_child)
    with Worker.start(criu, launcher=launcher) as worker:
        assert sorted(os.listdir(f"/proc/{worker.pid}/root/run")) == sorted(
            {*(name for name in run_before if not name.startswith("criu.kdat")), "criu.kdat"}
        )
        outcome = engine.restore(worker, restore_request(images, join_namespaces=(restore_join(),)))
    with killed_after(outcome.pid):
        assert os.readlink(f"/proc/{outcome.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
        await_that(lambda: subject.count() > at_dump, "it counts on")
    assert "Loaded kdat cache" in outcome.log.read_text()
    assert sorted(os.listdir("/run")) == run_before
    assert Path("/proc/self/mountinfo").read_text() == mounts_before


@pytest.mark.parametrize("phase", ["pre-restore", "post-restore"])
def test_a_restore_that_hangs_is_ended_with_every_task_that_it_made(
    criu: Path, subject: Subject, images: Path, phase: str
) -> None:
    dumped(criu, subject, images)
    at_dump = subject.count()
    with Worker.start(criu) as worker, pytest.raises(CriuStuck):
        engine.restore(
            worker,
            restore_request(images, timeout=Nanoseconds(SECOND)),
            {phase: lambda _: os.kill(worker.pid, signal.SIGSTOP)},
        )
    assert is_gone(worker.pid)
    await_that(lambda: is_gone(subject.pid), "nothing is left")
    assert subject.count() == at_dump


def test_an_image_set_is_read_and_written_back_byte_for_byte(
    criu: Path, subject: Subject, images: Path
) -> None:
    with Worker.start(criu) as worker:
        engine.dump(worker, dump_request(subject, images))
    kinds = {
        "inventory.img": ("INVENTORY", "inventory_entry"),
        "pstree.img": ("PSTREE", "pstree_entry"),
        "files.img": ("FILES", "file_entry"),
        "timens-0.img": ("TIMENS", "timens_entry"),
        f"core-{subject.pid}.img": ("CORE", "core_entry"),
        f"mm-{subject.pid}.img": ("MM", "mm_entry"),
    }
    for name, (kind, message) in kinds.items():
        before = (images / name).read_bytes()
        write_entries(images / name, kind, read_entries(images / name, kind, message))
        assert (images / name).read_bytes() == before, name
