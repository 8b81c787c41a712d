"""`ckpt run --tty`: real interactive programs on a terminal of their own, also when it is dumped, killed and resumed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from harness.command import Ckpt
from harness.processes import kill
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.cli.terminal import OwnTerminal

pytestmark = pytest.mark.system

SIZE = (31, 97)
PROMPT = "ready> "
SHELL = ["--norc", "--noprofile", "-i"]


class Person:
    """Somebody at a terminal, in which one ckpt command runs in front."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self.pid, self._here = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))
            more = {"TERM": "xterm", "PS1": PROMPT}
            os.execve(command[0], command, environ | more)  # noqa: S606 - no shell is wanted
        self.seen = ""
        self._at = 0

    def types(self, text: str) -> None:
        os.write(self._here, text.encode())

    def sees(self, pattern: str, timeout_s: float = 60) -> re.Match[str]:
        """Wait until that was shown after what was seen before."""
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self.seen[self._at :])) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.seen[self._at :]!r}"
            if select.select([self._here], [], [], left)[0]:
                self.seen += os.read(self._here, 1 << 16).decode(errors="replace")
        self._at += found.end()
        return found

    def presses(self, key: str, until: str) -> None:
        """Press a key until it shows an effect: a shell tells of a command before it has put it in front."""

        for timeout_s in (1.5, 1.5, 60):
            self.types(key)
            with suppress(AssertionError):
                self.sees(until, timeout_s)
                return
        raise AssertionError(f"no {until!r} in {self.seen[self._at :]!r}")

    def resizes(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._here, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._here)[3] & termios.ICANON

    def leaves(self) -> int:
        """The exit code of the command, which must end."""
        deadline = time.monotonic() + 60
        while True:
            if select.select([self._here], [], [], 0.02)[0]:
                with suppress(OSError):  # EIO: nobody holds the program's side any more
                    self.seen += os.read(self._here, 1 << 16).decode(errors="replace")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"still there: {self.seen[-400:]!r}"

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._here)


class Desk:
    """Makes persons, and ends them."""

    def __init__(self, ckpt: Ckpt) -> None:
        self._ckpt = ckpt
        self._persons: list[Person] = []

    def person(self, *arguments: str) -> Person:
        person = Person(self._ckpt.command_line("run", *arguments), self._ckpt.environ({}))
        self._persons.append(person)
        return person

    def close(self) -> None:
        for person in self._persons:
            person.close()


@pytest.fixture
def desk(ckpt: Ckpt) -> Iterator[Desk]:
    desk = Desk(ckpt)
    yield desk
    desk.close()


def installed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def supervised(name: str) -> list[str]:
    options = ["--every", "200ms", "--max-frozen", "50%", "--resume", "--at-end", "delete"]
    return ["--tty", "--name", name, *options, "--"]


def await_checkpoint(ckpt: Ckpt, name: str) -> None:
    """One that began after now: the second from now on."""
    before = {each["id"] for each in ckpt("list", "--job", name)["checkpoints"]}
    await_condition(
        lambda: len({each["id"] for each in ckpt("list", "--job", name)["checkpoints"]} - before) > 1,
        "two more checkpoints",
    )


def kill_all(person: Person, traces: Traces) -> None:
    os.kill(person.pid, signal.SIGKILL)
    kill(traces.processes())
    await_condition(lambda: not traces.processes(), "the end of all")


def test_a_shell_has_job_control_and_all_that_it_had_when_it_is_killed_and_resumed(
    desk: Desk, ckpt: Ckpt, traces: Traces
) -> None:
    name = ckpt.new_job_name()
    command = [*supervised(name), installed("bash"), *SHELL]
    first = desk.person(*command)
    first.sees(PROMPT)
    assert first.is_raw
    first.types("stty size; x=kept\n")
    first.sees(f"{SIZE[0]} {SIZE[1]}\r")
    # Before it the terminal is not the shell's, and Ctrl-Z throws away what was typed.
    first.sees(PROMPT)
    first.types("sleep 1000\n")
    first.sees("sleep 1000\r")
    first.presses("\x1a", r"Stopped +sleep 1000")
    first.types("stty -echo\n")
    first.sees(PROMPT)
    await_checkpoint(ckpt, name)
    kill_all(first, traces)

    second = desk.person(*command)
    second.sees("goes on from")
    second.types("echo $x; jobs; stty -a | tr -s ' ;' '\\n\\n' | grep -x -e -echo\n")
    second.sees("kept\r")
    second.sees(r"Stopped +sleep 1000")
    second.sees("-echo\r")
    second.types("stty echo; fg\n")
    second.sees("sleep 1000\r")
    second.presses("\x03", PROMPT)
    second.types("echo code=$?\n")
    second.sees("code=130")
    second.resizes(12, 44)
    second.types("stty size\n")
    second.sees("12 44\r")
    second.types("exit 7\n")
    assert second.leaves() == 7
    assert not second.is_raw


@pytest.mark.parametrize("program", ["less", "vi"])
def test_what_fills_a_screen_shows_itself_again_after_a_resume(
    program: str, desk: Desk, ckpt: Ckpt, traces: Traces
) -> None:
    name = ckpt.new_job_name()
    shows, ends = "beginning of the text", {"less": "q", "vi": ":q!\r"}[program]
    text = traces.folder / "text"
    text.write_text(f"{shows}\n" * 200)
    # vi's swap file grows after the checkpoint.
    options = ["-n"] if program == "vi" else []
    command = [*supervised(name), installed(program), *options, str(text)]
    first = desk.person(*command)
    first.sees(shows)
    await_checkpoint(ckpt, name)
    kill_all(first, traces)
    second = desk.person(*command)
    second.sees("goes on from")
    second.sees(shows)
    second.types(ends)
    assert second.leaves() == 0


#: Makes its standard input the terminal that it is in front of, as a job's process does; says what it reads.
READER = """
import fcntl, os, signal, sys, termios, tty
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
tty.setraw(0)
signal.signal(signal.SIGWINCH, lambda *_: print("told", flush=True))
print("ready", flush=True)
print(os.read(0, 1), flush=True)
"""


def test_a_job_that_is_brought_back_is_told_of_its_size_before_the_first_key_comes() -> None:
    """less loses a key that it reads at the moment at which the signal comes."""
    terminal = OwnTerminal()
    given = terminal.given
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=given.slave, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        reader.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, reader.pid, os.WSTOPPED)
        goes_on = threading.Timer(0.2, reader.send_signal, [signal.SIGCONT])
        goes_on.start()
        began = time.monotonic()
        terminal.join("", anew=True, reads=False)
        assert time.monotonic() - began > 0.1
        os.write(given.master, b"q")
        said = reader.stdout.read().splitlines()
        goes_on.join()
    terminal.close()
    assert said[0] == "told"
    assert said[-1] == "b'q'"


def test_who_comes_back_after_the_supervisor_died_alone_has_the_same_terminal(desk: Desk, ckpt: Ckpt) -> None:
    name = ckpt.new_job_name()
    command = [*supervised(name), installed("bash"), *SHELL]
    first = desk.person(*command)
    first.sees(PROMPT)
    first.types("x=same\n")
    first.sees(PROMPT)
    os.kill(first.pid, signal.SIGKILL)
    second = desk.person(*command)
    second.sees("is supervised from now on")
    second.types("echo $x; exit\n")
    second.sees("same\r")
    assert second.leaves() == 0


def test_our_terminal_is_as_it_was_when_a_signal_ends_the_job(desk: Desk, ckpt: Ckpt) -> None:
    person = desk.person("--tty", "--name", ckpt.new_job_name(), "--", "sh", "-c", "echo there; sleep 1000")
    person.sees("there")
    assert person.is_raw
    os.kill(person.pid, signal.SIGTERM)
    assert person.leaves() == 128 + signal.SIGTERM
    assert not person.is_raw


def test_without_a_terminal_of_ours_the_job_has_one_and_its_input_ends(ckpt: Ckpt) -> None:
    script = 'test -t 0 && test -t 1 && test -t 2 && echo "a terminal"; cat'
    done = subprocess.run(
        ckpt.command_line("run", "--tty", "--", "sh", "-c", script),
        input=b"some\nwords",
        capture_output=True,
        timeout=30,
        env=ckpt.environ({}),
        check=True,
    )
    assert b"a terminal\r\n" in done.stdout
    assert done.stdout.decode().count("words") == 2  # echoed, and written

    name = ckpt.new_job_name()
    script = "test -t 0 && echo terminal; exit 3"
    assert ckpt.run("run", "--tty", "--detach", "--name", name, "--", "sh", "-c", script).returncode == 0
    ckpt("wait", name, exit_code=3)
    assert ckpt.run("logs", name).stdout == "terminal\n"
