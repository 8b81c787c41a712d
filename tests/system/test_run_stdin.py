"""What a foreground job reads: files, pipes and terminals as the bare command would, also over a kill -9 and a resume."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.processes import kill
from harness.traces import Traces
from harness.waiting import await_condition

pytestmark = pytest.mark.system

NUMBERS = 20000
#: Sums what it reads, and stops at file B until there is a file C; reads small pieces, so that the pipe is always full.
SUMMING = """
import os, sys, time
total = count = 0
rest = b""
while block := os.read(0, 512):
    *lines, rest = (rest + block).split(b"\\n")
    for line in lines:
        total += int(line)
        count += 1
    if count > 5000 and not os.path.exists(sys.argv[2]):
        open(sys.argv[1], "w").close()
        time.sleep(0.1)
print(count, total, flush=True)
"""


def run_with(ckpt: Ckpt, stdin: int, *command: str) -> str:
    """The output of a foreground job that has this as its standard input."""
    done = subprocess.run(
        ckpt.command_line("run", "--", *command),
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=ckpt.environ({}),
    )
    return done.stdout


def supervised(ckpt: Ckpt, name: str, folder: Path, every: str = "200ms") -> list[str]:
    program = [sys.executable, "-I", "-S", "-c", SUMMING, str(folder / "far"), str(folder / "go")]
    options = ["--name", name, "--every", every, "--max-frozen", "50%", "--resume", "--at-end", "delete"]
    return ckpt.command_line("run", *options, "--", *program)


def numbers(folder: Path) -> Path:
    path = folder / "numbers"
    path.write_text("".join(f"{number}\n" for number in range(1, NUMBERS + 1)))
    return path


def begin(ckpt: Ckpt, command: list[str], stdin: int, folder: Path) -> subprocess.Popen[bytes]:
    with open(folder / "out", "ab") as out, open(folder / "err", "ab") as err:
        return subprocess.Popen(command, stdin=stdin, stdout=out, stderr=err, env=ckpt.environ({}))


def begin_fed(
    ckpt: Ckpt, command: list[str], folder: Path, *writer: str | Path
) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """The two processes of `writer | command`."""
    feeder = subprocess.Popen(writer, stdout=subprocess.PIPE)
    assert feeder.stdout is not None
    with feeder.stdout:
        return feeder, begin(ckpt, command, feeder.stdout.fileno(), folder)


def state(ckpt: Ckpt, name: str) -> str:
    return next(str(each["state"]) for each in ckpt("ps")["jobs"] if each["name"] == name)


def ids(ckpt: Ckpt, name: str) -> set[str]:
    return {each["id"] for each in ckpt("list", "--job", name)["checkpoints"]}


def kill_all(ckpt: Ckpt, process: subprocess.Popen[bytes], name: str, traces: Traces) -> None:
    """kill -9 of the supervisor and of everything of the job, once a checkpoint of a job that is far is there."""
    before = ids(ckpt, name)
    await_condition(lambda: ids(ckpt, name) - before, "another checkpoint")
    process.kill()
    process.wait()
    kill(traces.processes())
    await_condition(lambda: not traces.processes(), "the end of all")


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_input_is_neither_lost_nor_doubled_when_everything_is_killed_and_the_job_resumed(
    kind: str, ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    command = supervised(ckpt, name, tmp_path)
    source = numbers(tmp_path)

    def start() -> subprocess.Popen[bytes]:
        if kind == "file":
            with open(source, "rb") as stream:
                return begin(ckpt, command, stream.fileno(), tmp_path)
        # As a user's pipe: the writer may die of SIGPIPE, and is started anew with the same command line.
        feeder, process = begin_fed(ckpt, command, tmp_path, "cat", source)
        feeders.append(feeder)
        return process

    feeders: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(2):
            process = start()
            await_condition((tmp_path / "far").exists, "the job to be far")
            kill_all(ckpt, process, name, traces)
            (tmp_path / "far").unlink()
        process = start()
        await_condition((tmp_path / "far").exists, "the job to be back")
        (tmp_path / "go").touch()
        assert process.wait(30) == 0, (tmp_path / "err").read_text()
    finally:
        for feeder in feeders:
            feeder.kill()
            feeder.wait()
    assert (tmp_path / "out").read_text() == f"{NUMBERS} {NUMBERS * (NUMBERS + 1) // 2}\n"


@pytest.mark.parametrize(
    ("every", "ends"),
    [("200ms", False), ("200ms", True), ("1h", False)],
    ids=["it runs", "it has ended", "it has no checkpoint"],
)
def test_what_a_job_did_after_its_feeder_alone_was_killed_does_not_count(
    every: str, *, ends: bool, ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    command = supervised(ckpt, name, tmp_path, every)
    feeder, supervisor = begin_fed(ckpt, command, tmp_path, "cat", numbers(tmp_path))
    await_condition((tmp_path / "far").exists, "the job to be far")
    if every != "1h":
        before = ids(ckpt, name)
        await_condition(lambda: ids(ckpt, name) - before, "another checkpoint")
    supervisor.kill()
    supervisor.wait()
    feeder.wait(20)
    if ends:
        (tmp_path / "go").touch()
        await_condition(lambda: state(ckpt, name) == "exited", "its end, with a wrong result")
    feeder, supervisor = begin_fed(ckpt, command, tmp_path, "cat", numbers(tmp_path))
    await_condition(lambda: "does not count" in (tmp_path / "err").read_text(), "a word about it")
    (tmp_path / "go").touch()
    assert supervisor.wait(30) == 0, (tmp_path / "err").read_text()
    feeder.wait(20)
    assert (tmp_path / "out").read_text().splitlines()[-1] == f"{NUMBERS} {NUMBERS * (NUMBERS + 1) // 2}"
    assert (f"{name} goes on from " in (tmp_path / "err").read_text()) == (every != "1h")


def test_a_job_that_has_got_all_of_its_input_is_taken_over(
    ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    script = 'wc -c; while [ ! -e "$0" ]; do sleep 0.02; done; echo done'
    options = ["--name", name, "--every", "1h", "--resume"]
    command = ckpt.command_line("run", *options, "--", "sh", "-c", script, str(tmp_path / "go"))
    feeder, supervisor = begin_fed(ckpt, command, tmp_path, "echo", "hello")
    feeder.wait(20)
    await_condition((tmp_path / "out").read_text, "the job to have read all")
    supervisor.kill()
    supervisor.wait()
    feeder, supervisor = begin_fed(ckpt, command, tmp_path, "echo", "hello")
    feeder.wait(20)
    await_condition(lambda: "supervised from now on" in (tmp_path / "err").read_text(), "a supervisor")
    (tmp_path / "go").touch()
    assert supervisor.wait(30) == 0
    assert (tmp_path / "out").read_text() == "6\ndone\n"


def test_a_shorter_input_at_the_resume_is_told_with_both_numbers(
    ckpt: Ckpt, traces: Traces, tmp_path: Path
) -> None:
    name = ckpt.new_job_name()
    command = supervised(ckpt, name, tmp_path)
    feeder, process = begin_fed(ckpt, command, tmp_path, "cat", numbers(tmp_path))
    await_condition((tmp_path / "far").exists, "the job to be far")
    kill_all(ckpt, process, name, traces)
    feeder.wait()
    (tmp_path / "go").touch()
    again = subprocess.run(
        command, input=b"7\n8\n", capture_output=True, timeout=30, env=ckpt.environ({}), check=True
    )
    assert "the standard input ended after 4 bytes, of which the job had read" in again.stderr.decode()
    assert int(again.stdout.split()[0]) > 5000


def test_a_file_is_read_on_from_where_we_stand_in_it(ckpt: Ckpt, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntwo\nthree\n")
    with open(path, "rb", buffering=0) as stream:
        assert stream.read(4) == b"one\n"
        assert run_with(ckpt, stream.fileno(), "cat") == "two\nthree\n"
        path.unlink()
        stream.seek(4)
        assert run_with(ckpt, stream.fileno(), "cat") == "two\nthree\n"
    assert run_with(ckpt, subprocess.DEVNULL, "wc", "-c").strip() == "0"


def test_who_writes_to_a_job_that_has_closed_its_input_gets_a_sigpipe(ckpt: Ckpt, tmp_path: Path) -> None:
    writer = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    ends = tmp_path / "ends"
    script = 'head -c 4; exec </dev/null; while [ ! -e "$0" ]; do sleep 0.02; done'
    job = begin(
        ckpt, ckpt.command_line("run", "--", "sh", "-c", script, str(ends)), writer.stdout.fileno(), tmp_path
    )
    writer.stdout.close()
    assert writer.wait(20) == -signal.SIGPIPE
    ends.touch()
    assert job.wait(20) == 0
    assert (tmp_path / "out").read_text() == "y\ny\n"


def test_a_terminal_is_read_by_lines_and_its_interrupt_comes_once(ckpt: Ckpt, tmp_path: Path) -> None:
    script = 'trap "echo interrupted" INT; echo ready; while ! read line; do :; done; echo "read $line"'
    pid, master = pty.fork()
    if pid == 0:
        os.execve(  # noqa: S606 - no shell is wanted
            ckpt.command_line()[0], ckpt.command_line("run", "--", "bash", "-c", script), ckpt.environ({})
        )
    try:
        written = b""

        def shows(text: bytes) -> bool:
            nonlocal written
            written += os.read(master, 4096)
            return text in written

        await_condition(lambda: shows(b"ready"), lambda: f"ready in {written!r}")
        os.write(master, b"\x03")
        await_condition(lambda: shows(b"interrupted"), lambda: f"interrupted in {written!r}")
        os.write(master, b"hello\n")
        await_condition(lambda: shows(b"read hello"), lambda: f"read in {written!r}")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert written.count(b"interrupted") == 1
    finally:
        os.close(master)
