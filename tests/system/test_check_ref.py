"""`ckpt check REF` says what a restore then does: each obstacle is named, and the restore fails of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.processes import MARK
from harness.subjects import Workload
from harness.waiting import await_condition

from ckpt.flow.check_ref import CheckRefCall, CheckRefPorts, check_ref
from ckpt.host.preflight.needs_host import CriuImageNeeds
from ckpt.host.preflight.needs_of_target import needs_of_target
from ckpt.host.targets import HostTargets
from ckpt.model.findings import Finding
from ckpt.model.needs import Needs
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.store.opening import open_local

pytestmark = pytest.mark.system

PROGRAM = """
import os, socket, sys, time
folder, port = sys.argv[1:]
os.chdir(folder)
data = open("data", "r+b")
tcp = socket.socket(socket.AF_INET)
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
tcp.bind(("127.0.0.1", int(port)))
tcp.listen()
named = socket.socket(socket.AF_UNIX)
named.bind("named.sock")
named.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(("\\0" + folder)[:100])
abstract.listen()
open("ready", "w").close()
while True:
    time.sleep(0.05)
"""


class Noting:
    """A judge that finds nothing, and knows what was needed."""

    def __init__(self) -> None:
        self.needs: list[Needs] = []

    def judge(self, needs: Needs) -> tuple[Finding, ...]:
        self.needs.append(needs)
        return ()


class Service:
    """A program with a file, a port and names, dumped and ended; `live` is what it needed while it ran."""

    def __init__(self, workload: Workload, ckpt: Ckpt, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "data").write_bytes(b"as it was")
        self.port = free_port()
        self.pid = workload.spawn(
            [sys.executable, "-I", "-S", "-c", PROGRAM, str(folder), str(self.port)], folder
        )
        await_condition((folder / "ready").exists, "the service")
        target = HostTargets(str(ckpt.state), lambda _job: None).resolve(
            TargetRef(kind=TargetKind.CGROUP, name=str(workload.cgroup))
        )
        self.live = needs_of_target(target, str(ckpt.state))
        self.id = ckpt("dump", "--cgroup", workload.cgroup, "--stop", "--name", ckpt.new_job_name())["id"]
        workload.await_empty()

    @property
    def abstract(self) -> str:
        return ("\0" + str(self.folder))[:100]


@pytest.fixture
def service(workload: Workload, ckpt: Ckpt, tmp_path: Path) -> Service:
    return Service(workload, ckpt, tmp_path / "service")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rules(document: dict[str, Any], severity: str = "blocker") -> dict[str, dict[str, Any]]:
    return {each["rule"]: each for each in document["findings"] if each["severity"] == severity}


def test_a_workload_needs_what_its_checkpoint_will(ckpt: Ckpt, service: Service) -> None:
    noting = Noting()
    ports = CheckRefPorts(
        store=open_local(str(ckpt.store), create=False),
        images=CriuImageNeeds(),
        judge=noting,
        signers=lambda _checkpoint: None,
    )
    check_ref(CheckRefCall(ref=service.id, elsewhere=True), ports)
    [dumped] = noting.needs
    live = service.live
    assert (live.pids, live.ports, live.names) == (dumped.pids, dumped.ports, dumped.names)
    assert [port.port for port in live.ports] == [service.port]
    assert len(live.names) == 2
    assert set(live.features) == set(dumped.features)
    assert live.descriptor_max == dumped.descriptor_max
    assert (live.architecture, live.cpu_features) == (dumped.architecture, dumped.cpu_features)
    # The directories above are recorded by a dump alone; what is written to is not digested while it runs.
    mine = {record.path: record.digest for record in live.files}
    theirs = {record.path: record.digest for record in dumped.files if record.path in mine}
    assert theirs.keys() == mine.keys()
    written = {str(service.folder / name): None for name in ("data", "out")}
    assert mine == theirs | written
    assert live.memory_bytes == pytest.approx(dumped.memory_bytes, rel=0.3)


def test_nothing_speaks_against_a_restore_that_works(
    ckpt: Ckpt, service: Service, workload: Workload
) -> None:
    found = ckpt("check", service.id)
    assert found["ok"], found
    restored = ckpt("restore", service.id)
    assert restored["pid"] == service.pid
    again = ckpt("check", service.id, exit_code=30)
    assert rules(again).keys() == {"pid-taken", "unix-name-taken", "job-runs"}, again
    # What CRIU has restored would let another one of its kind listen, too.
    assert f"process {service.pid}" in rules(again, "warning")["port-taken"]["message"]
    assert rules(again)["pid-taken"]["pid"] == service.pid
    assert ckpt("check", "--checkpoint", service.id, "--pids", "new", exit_code=30)["ok"] is False
    os.kill(service.pid, signal.SIGKILL)


OBSTACLES: dict[str, tuple[str, int]] = {
    "pid-taken": ("pid", 31),
    "file-missing": ("missing", 32),
    "file-size": ("size", 32),
    "file-content": ("content", 32),
    "file-mode": ("mode", 32),
    "port-taken": ("port", 22),
    "unix-name-taken": ("abstract", 22),
}


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=pytest.mark.alone if rule == "pid-taken" else ()) for rule in OBSTACLES]
)
def test_what_the_check_names_is_what_the_restore_fails_of(rule: str, ckpt: Ckpt, service: Service) -> None:
    kind, exit_code = OBSTACLES[rule]
    with obstacle(kind, service) as subject:
        found = ckpt("check", service.id, exit_code=30)
        assert list(rules(found)) == [rule], found
        finding = rules(found)[rule]
        assert subject in finding["subject"] + finding["message"]
        assert finding["remedy"]
        ckpt("restore", service.id, exit_code=exit_code)
    assert ckpt("check", service.id)["ok"]


@contextmanager
def obstacle(kind: str, service: Service) -> Iterator[str]:
    """Something in the way; gives a word that the finding must have, and takes it away again."""
    data = service.folder / "data"
    status = data.stat()
    match kind:
        case "pid":
            with holding_pid(service.pid):
                yield f"pid {service.pid}"
        case "missing":
            data.rename(service.folder / "aside")
            yield str(data)
            (service.folder / "aside").rename(data)
        case "size":
            data.write_bytes(b"as it was not")
            yield str(data)
            data.write_bytes(b"as it was")
        case "content":
            data.write_bytes(b"as it WAS")
            yield str(data)
            data.write_bytes(b"as it was")
        case "mode":
            data.chmod(0o600 if status.st_mode & 0o077 else 0o644)
            yield str(data)
            data.chmod(status.st_mode & 0o7777)
        case "port":
            with socket.socket() as taken:
                taken.bind(("", service.port))
                taken.listen()
                yield f"process {os.getpid()}"
        case "abstract":
            with socket.socket(socket.AF_UNIX) as taken:
                taken.bind(service.abstract)
                yield f"process {os.getpid()}"


@contextmanager
def holding_pid(pid: int) -> Iterator[None]:
    """A process that has this pid."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    # Others may be quicker: then it is asked for again.
    sleeper = subprocess.Popen(["sleep", "infinity"], env=os.environ | {MARK: "none"})
    try:
        for _ in range(50):
            if sleeper.pid == pid:
                break
            sleeper.kill()
            sleeper.wait()
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
            sleeper = subprocess.Popen(["sleep", "infinity"])
        assert sleeper.pid == pid
        yield
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_name_of_a_socket_that_another_one_has_is_a_warning(ckpt: Ckpt, service: Service) -> None:
    """CRIU takes it: the restore works, and the other loses its name."""
    path = service.folder / "named.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        found = ckpt("check", service.id)
        assert f"process {os.getpid()}" in rules(found, "warning")["unix-name-taken"]["message"]
        ckpt("restore", service.id)
        os.kill(service.pid, signal.SIGKILL)


def test_a_file_where_a_socket_belongs_is_a_blocker(ckpt: Ckpt, service: Service) -> None:
    path = service.folder / "named.sock"
    path.unlink(missing_ok=True)
    path.write_text("a file")
    assert list(rules(ckpt("check", service.id, exit_code=30))) == ["unix-name-taken"]
    ckpt("restore", service.id, exit_code=22)


def test_whom_nobody_trusts_is_a_blocker(ckpt: Ckpt, service: Service) -> None:
    found = ckpt("check", service.id, exit_code=30, CKPT_KEYS=str(service.folder / "other-keys"))
    assert list(rules(found)) == ["untrusted"]


def test_a_checkpoint_that_is_not_there_is_missing(ckpt: Ckpt, service: Service) -> None:
    assert ckpt("check", "--checkpoint", "no-such", exit_code=41)["error"]["slug"] == "missing"
    assert ckpt("check", "--pid", service.pid, "--pids", "new", exit_code=2)["error"]["slug"] == "usage"


@pytest.mark.alone
def test_new_pids_need_no_free_ones(
    ckpt: Ckpt, service: Service, new_workload: Callable[[], Workload]
) -> None:
    with holding_pid(service.pid):
        assert ckpt("check", service.id, "--pids", "new")["ok"]


def test_a_name_that_is_neither_a_job_nor_a_checkpoint_is_63(ckpt: Ckpt) -> None:
    error = ckpt("check", "nosuch", exit_code=63)["error"]
    assert (error["slug"], error["message"]) == (
        "no-such-target",
        "There is no job that runs, and no checkpoint, nosuch.",
    )
