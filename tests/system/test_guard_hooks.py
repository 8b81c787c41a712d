"""The guard as a hook of other programs: systemd-oomd before it kills a cgroup, nohang instead of a signal."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import Cgroup
from harness.command import PROGRAM, Ckpt
from harness.subjects import Program, Workload
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.host import cgroups

pytestmark = pytest.mark.system

TOP = Path(__file__).parents[2]
UNITS = TOP / "scripts/systemd"
DOCUMENT = TOP / "docs/guard-hooks.md"
NOTIFY = "io.systemd.oom.Prekill.Notify"

# A datagram that is held back by UDP_CORK is no state that CRIU can save.
NOT_TO_BE_DUMPED = """
import socket, sys, time
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
held.bind(("127.0.0.1", 0))
held.connect(held.getsockname())
held.setsockopt(17, 1, 1)
held.send(b"x")
open(sys.argv[1], "w").close()
while True:
    time.sleep(0.02)
"""


def start(ckpt: Ckpt, workload: Workload) -> tuple[str, Program, Path]:
    """A job that makes progress: its name, its program and its cgroup."""
    name = ckpt.new_job_name()
    program = workload.new("tree")
    document = ckpt("run", "--detach", "--name", name, "--", *program.command())
    program.pid = document["pid"]
    program.await_ready()
    return name, program, Path(document["cgroup"])


def state(ckpt: Ckpt, name: str) -> str:
    return next(str(job["state"]) for job in ckpt("ps")["jobs"] if job["name"] == name)


def path_of(cgroup: Path) -> str:
    """As systemd-oomd would call it."""
    mount = cgroups.unified()
    assert mount is not None
    return mount.relative(str(cgroup))


@contextmanager
def activated(ckpt: Ckpt, folder: Path) -> Iterator[Path]:
    """The hook, started as systemd does it, with the listening socket as descriptor 3; gives the socket's path."""
    path = folder / "hook"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        words = ckpt.command_line("guard-hook", "--prekill", "--json")
        # exec keeps the pid, which LISTEN_PID must be.
        script = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        with open(folder / "hook.out", "wb") as out, open(folder / "hook.err", "wb") as err:
            process = subprocess.Popen(
                ["/bin/bash", "-c", script, "hook", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=(listener.fileno(),),
                env=ckpt.environ({}),
                cwd=folder,
            )
    try:
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (folder / "hook.err").read_text()
    finally:
        process.kill()
        process.wait()


def call(path: Path, method: str, **parameters: object) -> dict[str, Any]:
    """Call as systemd-oomd does, and wait for the answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        said = json.dumps({"method": method, "parameters": parameters}, separators=(",", ":"))
        connection.sendall(said.encode() + b"\0")
        answer = b""
        while not answer.endswith(b"\0"):
            content = connection.recv(4096)
            assert content, "the hook closed the connection without an answer"
            answer += content
    found: dict[str, Any] = json.loads(answer[:-1])
    return found


def test_what_systemd_oomd_is_about_to_kill_is_checkpointed_first_and_goes_on_later(
    workload: Workload, ckpt: Ckpt, tmp_path: Path
) -> None:
    name, program, cgroup = start(ckpt, workload)
    program.remember()
    with activated(ckpt, tmp_path) as hook:
        assert call(hook, NOTIFY, cgroup=path_of(cgroup)) == {"parameters": {}}
        assert state(ckpt, name) == "stopped"
        # What is there when the notification is answered is what is killed: nothing of the job.
        assert not cgroup.exists() or not cgroups.processes_below(str(cgroup))
        # With nothing left in it, there is nothing to be done; nor if it is gone by now.
        again = call(hook, NOTIFY, cgroup=path_of(cgroup))
        assert again.get("error") in (None, "org.varlink.service.InvalidParameter")
    told = [json.loads(line) for line in (tmp_path / "hook.out").read_text().splitlines()]
    (kept,) = ckpt("list", "--job", name)["checkpoints"]
    assert told[0] == {"cgroup": str(cgroup), "jobs": [{"job": name, "id": kept["id"], "error": None}]}
    ckpt("restore", name)
    program.await_progress()
    program.check()
    ckpt("stop", name)


def test_a_job_that_cannot_be_checkpointed_is_told_and_left_as_it_was(ckpt: Ckpt, tmp_path: Path) -> None:
    name, ready = ckpt.new_job_name(), tmp_path / "ready"
    words = [sys.executable, "-I", "-S", "-c", NOT_TO_BE_DUMPED, str(ready)]
    document = ckpt("run", "--detach", "--name", name, "--", *words)
    await_condition(ready.exists, "the job to be ready")
    with activated(ckpt, tmp_path) as hook:
        answer = call(hook, NOTIFY, cgroup=path_of(Path(document["cgroup"])))
    assert answer == {"error": "ckpt.guard.CheckpointFailed", "parameters": {"jobs": [name]}}
    assert state(ckpt, name) == "running"
    (told,) = ckpt("guard-hook", "--pid", document["pid"], exit_code=3)["jobs"]
    assert told["error"]["slug"] == "not-now"
    assert state(ckpt, name) == "running"
    ckpt("stop", name)


def test_the_command_that_is_documented_for_nohang_brings_the_victim_away(
    workload: Workload, ckpt: Ckpt
) -> None:
    name, program, cgroup = start(ckpt, workload)
    line = re.search(r"^@SOFT_ACTION_RE_CGROUP_V2 +(\S+) +/// (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    assert line is not None
    assert re.search(line[1], path_of(cgroup)), "the pattern does not match a job's cgroup"
    # A victim is whichever process is largest: a child of the job's will do.
    victim = cgroups.processes_below(str(cgroup))[-1]
    # nohang: shlex.split(command.replace("$PID", pid)), no shell.
    words = shlex.split(line[2].replace("$PID", str(victim)))
    assert words[0] == "/usr/local/bin/ckpt"
    done = subprocess.run(
        [PROGRAM, *words[1:]], check=False, capture_output=True, text=True, env=ckpt.environ({}), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert state(ckpt, name) == "stopped"
    ckpt("restore", name)
    program.await_progress()
    ckpt("stop", name)


def test_a_victim_that_is_no_job_is_left_alone_and_told(ckpt: Ckpt, traces: Traces) -> None:
    error = ckpt("guard-hook", "--pid", os.getpid(), exit_code=63)["error"]
    assert error["message"] == f"There is no running job with process {os.getpid()}."
    mount = cgroups.unified()
    assert mount is not None
    empty = Cgroup(Path(mount.mountpoint) / f"{traces.mark}-empty").create()
    traces.adopt(empty)
    error = ckpt("guard-hook", "--cgroup", empty, exit_code=63)["error"]
    assert error["message"] == f"There is no running job in cgroup {empty}."


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    units = [shutil.copy(UNITS / f"ckpt-guard-prekill.{kind}", tmp_path) for kind in ("socket", "service")]
    service = Path(units[1])
    text = service.read_text()
    assert "ExecStart=/usr/local/bin/ckpt " in text
    service.write_text(text.replace("/usr/local/bin/ckpt", str(PROGRAM)))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], check=False, capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "ckpt" in line]
    assert (done.returncode, ours) == (0, [])
