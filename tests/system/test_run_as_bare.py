"""A foreground `ckpt run` ends, and is ended, as the bare command is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.waiting import await_condition

pytestmark = pytest.mark.system

EXITS = [["sh", "-c", f"exit {code}"] for code in (0, 1, 7, 255)]
KILLED = [["sh", "-c", f"kill -{number} $$"] for number in ("KILL", "SEGV", "TERM")]
NOT_RUN = [["/nonexistent"], ["no-such-program-anywhere"], ["/etc/passwd"]]


def as_a_shell_says(code: int) -> int:
    return 128 - code if code < 0 else code


@pytest.mark.parametrize("command", [*EXITS, *KILLED, *NOT_RUN], ids=" ".join)
def test_the_exit_code_is_the_commands(command: list[str], ckpt: Ckpt) -> None:
    words = ["sh", "-c", '"$@"', "sh", *command]
    bare = as_a_shell_says(subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode)
    done = ckpt.run("run", "--", *command)
    assert done.returncode == bare, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_comes_to_the_command_once(number: int, ckpt: Ckpt, tmp_path: Path) -> None:
    # Waits in small pieces: it may come between any two steps.
    caught = (
        "import signal, sys, time\n"
        "came = []\n"
        "signal.signal(int(sys.argv[1]), lambda *_: came.append(1))\n"
        "print('ready', flush=True)\nwhile not came:\n    time.sleep(0.01)\n"
        "time.sleep(0.2)\nprint('caught\\n' * len(came), end='', flush=True)\n"
    )
    process = ckpt.start("run", "--", sys.executable, "-I", "-S", "-c", caught, str(int(number)))
    out = tmp_path / "ckpt.out"
    await_condition(lambda: "ready" in out.read_text(), "the handler")
    process.send_signal(number)
    assert process.wait(20) == 0
    assert out.read_text() == "ready\ncaught\n"


def test_a_reader_that_goes_away_ends_the_writer(ckpt: Ckpt) -> None:
    job = subprocess.Popen(
        ckpt.command_line("run", "--", "yes"), stdout=subprocess.PIPE, env=ckpt.environ({})
    )
    assert job.stdout is not None
    assert job.stdout.readline() == b"y\n"
    job.stdout.close()
    assert job.wait(20) == 128 + signal.SIGPIPE


def test_a_full_disk_behind_the_output_is_told_once_and_costs_the_output_alone(
    ckpt: Ckpt, tmp_path: Path
) -> None:
    script = 'echo one; sleep 0.3; echo two; : >"$0"'
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            ckpt.command_line(
                "run", "--name", ckpt.new_job_name(), "--", "sh", "-c", script, tmp_path / "end"
            ),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
            env=ckpt.environ({}),
        )
    assert (tmp_path / "end").exists()
    assert done.returncode not in (0, 70)
    assert done.stderr.count("No space left on device") == 1
    assert "Traceback" not in done.stderr
    [log] = ckpt.state.glob("jobs/*/log")
    assert log.read_text() == "one\ntwo\n"
