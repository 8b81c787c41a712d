"""What the rules say of sessions and terminals is what CRIU, and ckpt, really do with them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.processes import MARK
from harness.traces import Traces
from harness.waiting import await_condition
from real.verdicts import BareVerdict, blocking, findings, forced, one, rules_of

from ckpt.host.preflight import terminal_rules
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity

pytestmark = pytest.mark.system

RULES = terminal_rules.RULES

# What the shell, the leader of the session, stays for: it gives its terminal to a job, as shells do.
SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
inside = lambda: open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
job = subprocess.Popen(sys.argv[3:], process_group=0, preexec_fn=inside)
if os.isatty(0):
    os.tcsetpgrp(0, job.pid)
open(sys.argv[2] + ".new", "w").write(str(job.pid)); os.rename(sys.argv[2] + ".new", sys.argv[2])
job.wait()
signal.pause()
"""
JOB = "import os, signal, sys\nexec(sys.argv[1])\nopen(sys.argv[2], 'w').close()\nsignal.pause()"


class Session:
    """A terminal of this process, and what runs under it; the job alone is in the cgroup."""

    def __init__(self, traces: Traces, folder: Path) -> None:
        self.cgroup: Cgroup = traces.cgroup()
        self.master, self.slave = os.openpty()
        self._folder = folder
        self._mark = traces.mark
        self._processes: list[subprocess.Popen[bytes]] = []

    def leader(self, code: str = "", *, terminal: bool = True, kept: int | None = None) -> int:
        """Start a job that leads its session, and has the descriptor `kept` as well."""
        self._forget_ready()
        command = [sys.executable, "-I", "-S", "-c", JOB, code, str(self._folder / "ready")]
        entered = ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(self.cgroup), *command]
        pid = self._start(entered, terminal=terminal, kept=kept)
        self._await_ready()
        return pid

    def job(self, code: str = "", *, terminal: bool = True) -> int:
        """Start a job of a shell, which leads the session and stays outside."""
        command = [sys.executable, "-I", "-S", "-c", JOB, code, str(self._folder / "ready")]
        told = self._folder / "pid"
        self._start(
            [sys.executable, "-I", "-S", "-c", SHELL, str(self.cgroup), str(told), *command],
            terminal=terminal,
        )
        await_condition(told.exists, "the job's pid")
        self._await_ready()
        return int(told.read_text())

    def outside(self, command: list[str]) -> None:
        """Start something in a session of its own that is not in the cgroup."""
        self._start(command, terminal=False)

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does."""
        for fd in (self.master, self.slave):
            with suppress(OSError):
                os.close(fd)

    def end_shell(self) -> None:
        """End what was started here and is not the job, or the job where it is its own shell."""
        for process in self._processes:
            process.kill()
            process.wait()

    def close(self) -> None:
        self.hang_up()
        self.cgroup.kill()
        self.end_shell()

    def _start(self, command: list[str], *, terminal: bool, kept: int | None = None) -> int:
        def take_terminal() -> None:
            os.setsid()
            if terminal:
                fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)

        stdio = self.slave if terminal else subprocess.DEVNULL
        process = subprocess.Popen(
            command,
            stdin=stdio,
            stdout=stdio,
            stderr=stdio,
            preexec_fn=take_terminal,  # noqa: PLW1509 - the tests have no threads
            pass_fds=() if kept is None else (kept,),
            env={MARK: self._mark, "PATH": os.environ["PATH"]},
        )
        self._processes.append(process)
        return process.pid

    def _forget_ready(self) -> None:
        (self._folder / "ready").unlink(missing_ok=True)

    def _await_ready(self) -> None:
        await_condition((self._folder / "ready").exists, "the job to be ready")


@pytest.fixture
def session(traces: Traces, tmp_path: Path) -> Iterator[Session]:
    made = Session(traces, tmp_path)
    yield made
    made.close()


@pytest.fixture
def bare(criu: Path, tmp_path: Path) -> BareVerdict:
    return BareVerdict(criu, tmp_path)


def look(session: Session, *, shell_job: bool = False) -> tuple[Finding, ...]:
    return findings(session.cgroup.pids(), RULES, DumpOptions(shell_job=shell_job), str(session.cgroup))


def dumped(ckpt: Ckpt, session: Session, *options: str) -> str:
    checkpoint = str(ckpt("dump", "--cgroup", session.cgroup, "--stop", *options)["id"])
    session.end_shell()
    await_condition(lambda: not session.cgroup.members(), "the end of the job")
    return checkpoint


def external(slave: int) -> tuple[str, ...]:
    """How ckpt names a terminal from outside to CRIU."""
    status = os.fstat(slave)
    return ("--external", f"tty[{status.st_rdev:x}:{status.st_dev:x}]")


def test_a_job_without_a_terminal_needs_the_option(session: Session, bare: BareVerdict, ckpt: Ckpt) -> None:
    pid = session.job(terminal=False)
    found = one(look(session), "session")
    assert found.severity is Severity.BLOCKER
    assert found.option == "--shell-job"
    assert "not a session leader" in bare.dump(pid)
    assert look(session, shell_job=True) == ()
    ckpt("restore", dumped(ckpt, session, "--shell-job"))


def test_a_shells_job_at_its_terminal_is_lost_with_the_option_too(
    session: Session, bare: BareVerdict, ckpt: Ckpt
) -> None:
    pid = session.job()
    assert blocking(look(session)) == ["session", "session-terminal"]
    assert "Found dangling tty" in bare.dump(pid, *external(session.slave))
    assert blocking(look(session, shell_job=True)) == ["session-terminal"]
    checkpoint = dumped(ckpt, session, "--shell-job", *forced(ckpt))
    assert "No task found with sid" in ckpt("restore", checkpoint, exit_code=22)["error"]["message"]


def test_a_job_that_let_go_of_the_terminal_needs_the_option_alone(session: Session, ckpt: Ckpt) -> None:
    session.job("n = os.open('/dev/null', os.O_RDWR)\nfor fd in range(3): os.dup2(n, fd)")
    assert blocking(look(session)) == ["session"]
    assert look(session, shell_job=True) == ()
    ckpt("restore", dumped(ckpt, session, "--shell-job"))


def test_a_leader_gets_another_terminal(session: Session, ckpt: Ckpt) -> None:
    session.leader()
    found = look(session)
    assert blocking(found) == []
    assert one(found, "terminal-outside").severity is Severity.WARNING
    restored = ckpt("restore", dumped(ckpt, session))
    now = os.readlink(f"/proc/{restored['pid']}/fd/1")
    assert now.startswith("/dev/pts/")
    assert now != os.ttyname(session.slave)


def test_a_terminal_that_was_hung_up_is_nobodys_and_comes_back_so(session: Session, ckpt: Ckpt) -> None:
    session.leader("signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    session.hang_up()
    await_condition(
        lambda: os.readlink(f"/proc/{session.cgroup.pids()[0]}/fd/0").endswith(" (deleted)"),
        "the terminal to be gone",
    )
    assert look(session) == ()
    restored = ckpt("restore", dumped(ckpt, session))
    assert os.readlink(f"/proc/{restored['pid']}/fd/0").endswith(" (deleted)")


def test_the_job_of_a_shell_that_hung_up_needs_the_option_alone(session: Session, ckpt: Ckpt) -> None:
    session.job("signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    session.end_shell()
    session.hang_up()
    await_condition(
        lambda: os.readlink(f"/proc/{session.cgroup.pids()[0]}/fd/0").endswith(" (deleted)"),
        "the terminal to be gone",
    )
    assert blocking(look(session)) == ["session"]
    assert look(session, shell_job=True) == ()
    ckpt("restore", dumped(ckpt, session, "--shell-job"))


def test_the_name_of_ones_own_terminal_is_a_blocker_where_that_is_inside(
    session: Session, bare: BareVerdict
) -> None:
    code = (
        "import pty\n"
        "r, w = os.pipe()\n"
        "if pty.fork()[0] == 0: t = os.open('/dev/tty', os.O_RDWR); os.write(w, b'.'); signal.pause()\n"
        "os.read(r, 1)"
    )
    pid = session.leader(code, terminal=False)
    assert blocking(look(session)) == ["dev-tty"]
    assert "ctty inheritance detected" in bare.dump(pid)


def test_the_name_of_ones_own_terminal_is_the_terminal_that_takes_its_place(
    session: Session, ckpt: Ckpt, bare: BareVerdict
) -> None:
    pid = session.leader("t = os.open('/dev/tty', os.O_RDWR)")
    assert blocking(look(session)) == []
    assert "ctty inheritance detected" in bare.dump(pid, *external(session.slave))
    restored = ckpt("restore", dumped(ckpt, session))
    of_it = [os.readlink(f"/proc/{restored['pid']}/fd/{fd}") for fd in (0, 3)]
    assert of_it[0] == of_it[1]


def test_a_terminal_inside_is_fine(session: Session, ckpt: Ckpt) -> None:
    session.leader("p = os.openpty(); os.write(p[0], b'line\\n')", terminal=False)
    assert look(session) == ()
    ckpt("restore", dumped(ckpt, session))


def test_a_console_comes_back_and_a_serial_line_does_not(session: Session, ckpt: Ckpt) -> None:
    lines = [path for path in ("/dev/console", "/dev/ttyS0", "/dev/tty1") if os.path.exists(path)]
    flags = "os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK"
    session.leader(f"held = [os.open(path, {flags}) for path in {lines!r}]", terminal=False)
    found = look(session)
    assert rules_of(found) == (["terminal-outside"] if len(lines) > ("/dev/console" in lines) else [])
    assert not any("/dev/console" in finding.subject for finding in found)
    restored = ckpt("restore", dumped(ckpt, session))
    now = [os.readlink(f"/proc/{restored['pid']}/fd/{3 + place}") for place in range(len(lines))]
    for path, target in zip(lines, now, strict=True):
        assert (target == path) == (path == "/dev/console")


def test_a_terminal_between_two_trees_is_a_blocker(session: Session, bare: BareVerdict) -> None:
    session.leader(terminal=False, kept=session.master)
    slave = session.leader()
    assert one(look(session), "terminal-between-trees").pid == slave
    assert blocking(look(session)) == ["terminal-between-trees"]
    assert "without correspond master peer" in bare.dump(slave)


def test_a_session_that_begins_outside_the_pid_namespace_is_a_blocker(
    session: Session, bare: BareVerdict
) -> None:
    enter = 'echo 0 >"$0/cgroup.procs"; exec "$@"'
    session.outside(
        [
            "unshare",
            "--pid",
            "--ipc",
            "--mount-proc",
            "--fork",
            "/bin/sh",
            "-c",
            enter,
            str(session.cgroup),
            "sleep",
            "60",
        ]
    )
    await_condition(session.cgroup.pids, "the init of the namespace")
    for shell_job in (False, True):
        found = one(look(session, shell_job=shell_job), "session")
        assert found.subject == "session 0"
        assert found.option == ""
    assert "is outside of its pid namespace" in bare.dump(session.cgroup.pids()[0], "--shell-job")
