"""A host that has no ckpt gets one over SSH, with all that it needs, and then dumps and restores."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.lab import CHECKOUT, Host
from harness.sshd import SERVER, SshServer
from harness.traces import Traces
from harness.waiting import await_condition

pytestmark = pytest.mark.system

COMMAND = "/usr/local/bin/ckpt"
PREFIX = "/opt/ckpt"

# Hidden is what the lab's hosts have of ckpt, as they are the machine itself.
HIDE = f"""
set -e
mount -t tmpfs tmpfs {CHECKOUT}
mount -t tmpfs tmpfs {PREFIX}
rm -f {COMMAND}
"""

# Somebody may edit the checkout while a test runs: then it is another build.
KEEP = f"""
set -e
cp -a {CHECKOUT}/ckpt /run/kept
mount --bind /run/kept {CHECKOUT}/ckpt
"""

COUNTER = """
import sys, time
for number in range(1 << 30):
    with open(sys.argv[1], "a") as log:
        print(number, file=log)
    time.sleep(0.01)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """`here` has ckpt, `there` has none of it."""

    here: Host
    there: Host
    ssh: SshServer
    ckpt: Ckpt
    folder: Path

    def setup(self, *words: object, exit_code: int = 0) -> dict[str, Any]:
        return self.here.ckpt(
            self.ckpt, "host", "setup", f"root@{SERVER}", *self.ssh.options, *words, exit_code=exit_code
        )

    def there_ckpt(self, command: str, *words: object, exit_code: int = 0) -> dict[str, Any]:
        kept = self.ckpt.environ({"CKPT_STATE": str(self.folder / "state-there")})
        environ = {name: value for name, value in kept.items() if name not in {"CKPT_CRIU", "CKPT_PREFIX"}}
        done = self.there.run(COMMAND, command, "--json", *words, environ=environ)
        assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def releases(self) -> list[str]:
        return self.there.run("ls", f"{PREFIX}/versions").stdout.split()

    def current(self) -> str:
        return self.there.run("readlink", f"{PREFIX}/current").stdout.strip()


@pytest.fixture
def lab(traces: Traces, ckpt: Ckpt) -> Lab:
    here, there = Host(traces, "here"), Host(traces, "there")
    for host, script in ((here, KEEP), (there, HIDE)):
        done = host.run("sh", "-c", script)
        assert done.returncode == 0, done.stderr
    return Lab(here=here, there=there, ssh=SshServer(traces, here, there), ckpt=ckpt, folder=traces.folder)


def test_a_host_without_ckpt_gets_one_that_dumps_and_restores(lab: Lab) -> None:
    looked = lab.there.run("sh", "-c", f"command -v ckpt criu; ls {CHECKOUT} {PREFIX}/criu")
    assert looked.stdout == f"{CHECKOUT}:\n"
    planned = lab.setup("--dry-run")
    assert planned["files"] > 500
    assert (planned["was"], planned["installed"], lab.releases()) == (None, False, [])

    done = lab.setup()
    assert (done["host"], done["prefix"], done["was"]) == (f"root@{SERVER}", PREFIX, None)
    assert done["bytes"] > done["sent_bytes"] > 1 << 20
    by_name = {check["name"]: check for check in done["checks"]}
    assert by_name["self-test"]["state"] == "ok"
    assert "installed by ckpt host setup" in by_name["criu"]["detail"]

    # Not even --remote-ckpt is needed: it is where a login finds it.
    asked = lab.here.ckpt(lab.ckpt, "doctor", f"root@{SERVER}", *lab.ssh.options)
    assert asked["ok"], asked
    job, log = lab.ckpt.new_job_name(), lab.folder / "log"
    program = lab.folder / "counter.py"
    program.write_text(COUNTER)
    lab.there_ckpt("run", "--detach", "--name", job, "--", "/usr/bin/python3", "-IS", program, log)
    await_condition(lambda: log.exists() and len(log.read_text().splitlines()) > 5, "the counter")
    dumped = lab.there_ckpt("dump", job, "--stop")
    before = len(log.read_text().splitlines())
    lab.there_ckpt("restore", dumped["id"])
    await_condition(lambda: len(log.read_text().splitlines()) > before + 5, "the restored counter")
    counted = [int(line) for line in log.read_text().splitlines()]
    assert counted == list(range(len(counted)))

    again = lab.setup()
    assert (again["up_to_date"], again["installed"]) == (True, False)
    assert again["sent_bytes"] < 1 << 16
    first = lab.current()
    forced = lab.setup("--force")
    assert forced["installed"]
    assert forced["was"] == {"version": done["version"], "build": done["build"]}
    # The former one is kept: the job that was restored still runs from it.
    assert lab.current() != first
    assert {f"{PREFIX}/versions/{name}" for name in lab.releases()} == {first, lab.current()}
    lab.there_ckpt("stop", job)


def test_whatever_goes_wrong_the_former_ckpt_still_works(lab: Lab) -> None:
    lab.setup()
    first = lab.current()
    # Too little room for a second one.
    room = lab.there.run(
        "sh", "-c", f"mount -o remount,size=$(($(du -sk {PREFIX} | cut -f 1) + 20000))k {PREFIX}"
    )
    assert room.returncode == 0, room.stderr
    failed = lab.setup("--force", exit_code=55)["error"]
    assert (failed["slug"], "No space left on device" in failed["message"]) == ("setup-failed", True)
    lab.there.run("mount", "-o", "remount,size=1g", PREFIX)
    assert (lab.current(), lab.releases()) == (first, [os.path.basename(first)])

    # The new one does not work there.
    lab.there.run("mount", "-o", "remount,noexec", PREFIX)
    failed = lab.setup("--force", exit_code=55)["error"]
    assert "Permission denied" in failed["message"]
    lab.there.run("mount", "-o", "remount,exec", PREFIX)
    assert (lab.current(), lab.releases()) == (first, [os.path.basename(first)])

    # Who sends is killed while it sends.
    interrupt(lab, lambda: len(lab.releases()) == 2)
    await_condition(lambda: lab.releases() == [os.path.basename(first)], "the far side to tidy up")
    assert lab.current() == first
    assert lab.there_ckpt("doctor")["ok"]

    # A command of somebody else is not replaced.
    lab.there.run("sh", "-c", f"rm {COMMAND}; echo mine >{COMMAND}")
    failed = lab.setup("--force", exit_code=55)["error"]
    assert (COMMAND in failed["message"], failed["hint"]) == (True, "Move it away.")


def interrupt(lab: Lab, moment: Callable[[], bool]) -> None:
    """Kill a set-up at this moment."""
    pid_file = lab.folder / "setup.pid"
    command = lab.ckpt.command_line("host", "setup", "--force", f"root@{SERVER}", *lab.ssh.options)
    lab.here.run(
        *("sh", "-c", f'("$@" >/dev/null 2>&1 & echo $! >{pid_file})', "sh", *command),
        environ=lab.ckpt.environ({}),
    )
    await_condition(moment, "the set-up to begin")
    lab.here.run("kill", f"-{signal.SIGKILL.value}", pid_file.read_text().strip())
