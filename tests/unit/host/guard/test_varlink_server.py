"""A varlink service with real sockets and processes: who may call, what takes long, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from harness.waiting import await_condition

from ckpt.host import cgroups
from ckpt.host.guard.oomd import PrekillHook, directory_of
from ckpt.host.guard.varlink import VarlinkAnswer
from ckpt.host.guard.varlink_server import CONNECTIONS_MAX, serve

PREKILL = "io.systemd.oom.Prekill"
SERVICE = "org.varlink.service"


class Client:
    """What systemd-oomd is to the hook, byte for byte."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    def send(self, method: str, **parameters: object) -> None:
        said = json.dumps({"method": method, "parameters": parameters}, separators=(",", ":"))
        self.socket.sendall(said.encode() + b"\0")

    def answer(self) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            content = self.socket.recv(4096)
            if not content:
                return None
            self._rest += content
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def call(self, method: str, **parameters: object) -> dict[str, Any] | None:
        self.send(method, **parameters)
        return self.answer()


@contextmanager
def serving(
    folder: Path, relieve: Callable[[str], VarlinkAnswer], users: frozenset[int] | None = None
) -> Iterator[int]:
    """A hook at `folder`/hook in a process of its own, whose pid this gives; it must end by SIGTERM with 0."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "hook"))
    listener.listen()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            hook = PrekillHook(relieve)
            hook._users = frozenset({os.geteuid()}) if users is None else users
            with open(folder / "told", "a", encoding="utf-8") as told:
                serve(listener, hook, told=lambda sentence: print(sentence, file=told, flush=True))
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    listener.close()
    try:
        yield pid
        os.kill(pid, signal.SIGTERM)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def nothing(_directory: str) -> VarlinkAnswer:
    return VarlinkAnswer()


@pytest.fixture
def some_cgroup() -> str:
    """A cgroup below the root, as systemd-oomd would call it."""
    mount = cgroups.unified()
    if mount is None:
        pytest.skip("no cgroup version 2 is mounted")
    below = [each for each in cgroups.with_all_below(mount.mountpoint) if each != mount.mountpoint]
    if not below:
        pytest.skip("there is no cgroup below the root")
    return mount.relative(below[0])


def test_the_service_says_what_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, nothing), Client(tmp_path / "hook") as client:
        info = client.call(f"{SERVICE}.GetInfo")
        assert info is not None
        assert info["parameters"]["interfaces"] == [PREKILL, SERVICE]
        for name in (PREKILL, SERVICE):
            said = client.call(f"{SERVICE}.GetInterfaceDescription", interface=name)
            assert said is not None
            assert f"interface {name}\n" in said["parameters"]["description"]
        assert client.call(f"{SERVICE}.GetInterfaceDescription", interface="a.b") == {
            "error": f"{SERVICE}.InterfaceNotFound",
            "parameters": {"interface": "a.b"},
        }
        assert client.call(f"{PREKILL}.Kill") == {
            "error": f"{SERVICE}.MethodNotFound",
            "parameters": {"method": f"{PREKILL}.Kill"},
        }


def test_a_notification_is_answered_when_its_work_is_done_and_others_do_not_wait_for_it(
    tmp_path: Path, some_cgroup: str
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def slow(directory: str) -> VarlinkAnswer:
        gate.read_text()
        return VarlinkAnswer(error="ckpt.guard.CheckpointFailed", parameters={"jobs": [directory]})

    with serving(tmp_path, slow), Client(tmp_path / "hook") as first, Client(tmp_path / "hook") as second:
        first.send(f"{PREKILL}.Notify", cgroup=some_cgroup)
        first.send(f"{SERVICE}.GetInfo")
        info = second.call(f"{SERVICE}.GetInfo")
        assert info is not None
        gate.write_text("")
        answer = first.answer()
        assert answer is not None
        assert answer["error"] == "ckpt.guard.CheckpointFailed"
        assert answer["parameters"]["jobs"][0].endswith(some_cgroup)
        assert first.answer() == info, "the answers come in the order of the calls"


def test_work_goes_on_when_its_client_has_gone_and_a_server_that_is_told_to_stop_waits_for_it(
    tmp_path: Path, some_cgroup: str
) -> None:
    gate, done = tmp_path / "gate", tmp_path / "done"
    os.mkfifo(gate)

    def slow(_directory: str) -> VarlinkAnswer:
        gate.read_text()
        done.write_text("")
        return VarlinkAnswer()

    with serving(tmp_path, slow) as pid, Client(tmp_path / "hook") as client:
        client.send(f"{PREKILL}.Notify", cgroup=some_cgroup)
        # Opened for writing only when the work reads: so it has begun.
        with open(gate, "w", encoding="utf-8"):
            client.socket.close()
            os.kill(pid, signal.SIGTERM)
            assert not done.exists()
    assert done.exists()


def test_a_task_that_dies_is_an_error_and_not_the_end_of_the_service(
    tmp_path: Path, some_cgroup: str
) -> None:
    def dies(_directory: str) -> VarlinkAnswer:
        os.kill(os.getpid(), signal.SIGKILL)
        return VarlinkAnswer()

    with serving(tmp_path, dies), Client(tmp_path / "hook") as client:
        for _ in range(2):
            answer = client.call(f"{PREKILL}.Notify", cgroup=some_cgroup)
            assert answer == {"error": "ckpt.guard.TaskDied", "parameters": {}}


def test_other_users_may_not_call(tmp_path: Path) -> None:
    with (
        serving(tmp_path, nothing, users=frozenset({os.geteuid() + 1})),
        Client(tmp_path / "hook") as client,
    ):
        with suppress(BrokenPipeError, ConnectionResetError):
            assert client.call(f"{SERVICE}.GetInfo") is None
        told = tmp_path / "told"
        await_condition(lambda: f"Process {os.getpid()}" in told.read_text(), "the refusal to be told")


def test_garbage_ends_its_own_connection_and_idlers_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    with serving(tmp_path, nothing), ExitStack() as opened:
        garbled = opened.enter_context(Client(path))
        garbled.socket.sendall(b"GET / HTTP/1.1\r\n\r\n\0")
        with suppress(ConnectionResetError):
            assert garbled.answer() is None
        idlers = [opened.enter_context(Client(path)) for _ in range(CONNECTIONS_MAX)]
        assert idlers[-1].call(f"{SERVICE}.GetInfo") is not None
        refused = opened.enter_context(Client(path))
        with suppress(ConnectionResetError, BrokenPipeError):
            assert refused.call(f"{SERVICE}.GetInfo") is None
        assert idlers[0].call(f"{SERVICE}.GetInfo") is not None
        told = (tmp_path / "told").read_text()
        assert "A client sent a message that is no JSON" in told
        assert f"There are {CONNECTIONS_MAX} connections already" in told


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "relative",
        "/..",
        "/./x",
        "//",
        "/a//b",
        "/a/../..",
        "/a\0b",
        "/" + "x" * 5000,
        "/no/such",
        "/\ud800",
    ],
)
def test_a_path_that_is_none_of_a_cgroup_is_refused(path: str) -> None:
    assert directory_of(path) is None


def test_a_path_of_a_cgroup_is_its_directory(some_cgroup: str) -> None:
    directory = directory_of(some_cgroup)
    assert directory is not None
    assert directory.endswith(some_cgroup)
    assert os.path.exists(f"{directory}/cgroup.procs")
    assert directory_of(some_cgroup + "/") is None
    assert directory_of(None) is None
