"""Another host is asked over a real SSH connection, and says what is in the way there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.command import PROGRAM, Ckpt
from harness.lab import Host
from harness.sshd import SERVER, SshServer
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.codec.messages import MARK, Hello, encode

pytestmark = pytest.mark.system

# On the hosts' own mounts, so that each has its own.
HOME = "/var/lib/checked"
PORT = 7199

SERVICE = """
import socket, sys, time
data = open(sys.argv[1] + "/data", "r+b")
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", int(sys.argv[2])))
listener.listen()
open(sys.argv[3], "w").close()
while True:
    time.sleep(0.05)
"""

TAKER = """
import socket, sys, time
listener = socket.socket()
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
open(sys.argv[2], "w").close()
time.sleep(1000)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Two hosts, of which `here` asks `there` by SSH."""

    here: Host
    there: Host
    ssh: SshServer
    ckpt: Ckpt
    folder: Path

    def ask(
        self, command: str, *words: object, exit_code: int = 0, known_hosts: Path | None = None
    ) -> dict[str, Any]:
        options = list(self.ssh.options)
        if known_hosts is not None:
            options[options.index("--known-hosts") + 1] = str(known_hosts)
        return self.here.ckpt(self.ckpt, command, *words, *options, exit_code=exit_code)

    def check(self, ref: str, exit_code: int = 0, *words: object) -> dict[str, Any]:
        program = ("--remote-ckpt", self.agent()) if "--remote-ckpt" not in words else ()
        return self.ask("check", ref, "--host", f"root@{SERVER}", *program, *words, exit_code=exit_code)

    def agent(self) -> Path:
        """The ckpt there, with a state of its own: SSH brings no environment along."""
        environ = self.ckpt.environ({"CKPT_STATE": str(self.folder / f"state-{self.there.name}")})
        kept = {name: value for name, value in environ.items() if name.startswith(("CKPT_", "PYTHONPATH"))}
        assigned = " ".join(f"{name}={shlex.quote(value)}" for name, value in kept.items())
        return self.ssh.program(f'exec env {assigned} {PROGRAM} "$@"')


@pytest.fixture
def lab(traces: Traces, ckpt: Ckpt) -> Lab:
    here, there = Host(traces, "here"), Host(traces, "there", monotonic_s=100_000, boottime_s=200_000)
    for host in (here, there):
        host.run("mkdir", HOME)
        host.run("sh", "-c", f"printf data > {HOME}/data")
    ssh = SshServer(traces, here, there)
    return Lab(here=here, there=there, ssh=ssh, ckpt=ckpt, folder=traces.folder)


def start_service(lab: Lab) -> str:
    job = lab.ckpt.new_job_name()
    ready = lab.folder / "ready"
    (lab.folder / "service.py").write_text(SERVICE)
    program = (sys.executable, "-I", "-S", lab.folder / "service.py", HOME, PORT, ready)
    lab.here.ckpt(lab.ckpt, "run", "--detach", "--name", job, "--log", lab.folder / "log", "--", *program)
    await_condition(ready.exists, "the service")
    return job


def blockers(document: dict[str, Any]) -> list[str]:
    return sorted({each["rule"] for each in document["findings"] if each["severity"] == "blocker"})


def test_another_host_names_all_that_is_in_the_way_there(lab: Lab) -> None:
    job = start_service(lab)
    # The workload itself, before any dump.
    assert blockers(lab.check(job)) == []
    dumped = lab.here.ckpt(lab.ckpt, "dump", job, "--stop")["id"]
    assert blockers(lab.check(dumped, 30)) == ["untrusted"]
    lab.there.trust(lab.here, lab.ckpt)
    fine = lab.check(dumped)
    assert fine["ok"], fine
    # Another host: its copies of files have numbers of their own.
    assert "file-identity" in {each["rule"] for each in fine["findings"]}

    lab.there.run("sh", "-c", f"printf DATA > {HOME}/data")
    assert blockers(lab.check(dumped, 30)) == ["file-content"]
    taken = lab.folder / "taken"
    program = shlex.join((sys.executable, "-I", "-S", "-c", TAKER, str(PORT), str(taken)))
    lab.there.run("sh", "-c", f"rm {HOME}/data; ({program}) >/dev/null 2>&1 &")
    await_condition(taken.exists, "the port is taken")
    found = lab.check(dumped, 30)
    assert blockers(found) == ["file-missing", "port-taken"]
    by_rule = {each["rule"]: each for each in found["findings"]}
    assert by_rule["file-missing"]["subject"] == f"{HOME}/data"
    assert f":{PORT} is taken by python" in by_rule["port-taken"]["message"]
    # Here nothing of that is so.
    assert lab.here.ckpt(lab.ckpt, "check", dumped)["ok"]


def test_the_doctor_sees_another_host(lab: Lab) -> None:
    found = lab.ask("doctor", f"root@{SERVER}:22", "--remote-ckpt", lab.agent())
    assert found["host"]["hostname"] == "there"
    assert {"criu", "cgroups", "store"} <= {each["name"] for each in found["checks"]}


def test_what_goes_wrong_on_the_way_has_its_own_exit_code_and_a_remedy(lab: Lab) -> None:
    def fails(
        exit_code: int, *words: object, known_hosts: Path | None = None, host: str = SERVER
    ) -> dict[str, Any]:
        error: dict[str, Any] = lab.ask(
            "doctor", f"root@{host}", *words, exit_code=exit_code, known_hosts=known_hosts
        )["error"]
        assert error["hint"], error
        return error

    assert "Connection refused" in fails(51, host=f"{SERVER}:2222")["message"]
    changed = fails(52, known_hosts=lab.ssh.know_another_key())
    assert "SHA256:" in changed["message"]
    unknown = fails(52, known_hosts=lab.ssh.know_nothing())
    assert "ssh-ed25519" in unknown["hint"]
    assert lab.ssh.know_nothing().read_text() == ""
    assert "--remote-ckpt" in fails(53, "--remote-ckpt", "/no/such/ckpt")["hint"]
    silent = lab.ssh.program("echo 'it broke' >&2; exit 7", "broken")
    assert "it broke" in fails(53, "--remote-ckpt", silent)["message"]
    greeting = lab.folder / "greeting"
    greeting.write_bytes(b"Welcome!\n" + MARK + encode(Hello(protocols=(99,), version="9.0", host="there")))
    newer = lab.ssh.program(f"exec cat {greeting}", "newer")
    assert "the protocols 1, 2, and ckpt 9.0 there 99" in fails(54, "--remote-ckpt", newer)["message"]
    stranger = lab.ssh.strangers_key()
    refused = lab.here.ckpt(
        lab.ckpt,
        *("doctor", f"root@{SERVER}", "--identity", stranger, "--known-hosts", lab.ssh.known_hosts),
        exit_code=51,
    )
    assert refused["error"]["slug"] == "login-refused"


def test_the_agent_greets_and_ends_with_its_input(ckpt: Ckpt) -> None:
    done = subprocess.run(
        ckpt.command_line("agent"),
        check=True,
        capture_output=True,
        input=b"",
        env=ckpt.environ({}),
        timeout=60,
    )
    assert done.stdout.startswith(MARK)
    assert done.stderr == b""


def test_the_agent_talks_to_no_person(ckpt: Ckpt) -> None:
    master, terminal = os.openpty()
    try:
        done = subprocess.run(
            ckpt.command_line("agent"), check=False, capture_output=True, stdin=terminal, timeout=60
        )
    finally:
        os.close(master)
        os.close(terminal)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"ckpt check --host" in done.stderr
