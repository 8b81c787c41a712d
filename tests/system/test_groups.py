"""Jobs of a group: two programs that count to each other over TCP never see that they were dumped and restored."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.cgroups import Cgroup
from harness.command import Ckpt
from harness.processes import is_dead
from harness.traces import Traces
from harness.waiting import await_condition

from ckpt.host.jobs import JobRegistry
from ckpt.host.supervision import supervisor_of

pytestmark = pytest.mark.system

#: Sends numbers and checks those that come; writes how far both are. Once there is a file END both say so, and end.
PEER = r"""
import os, select, socket, sys, time
role, port, out, end = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "a", buffering=1), sys.argv[4]
LAST = 1 << 63
if role == "server":
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(1)
    other, _ = listening.accept()
else:
    while True:
        try:
            other = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            time.sleep(0.02)
other.setblocking(False)
sent = seen = 0
came = pending = b""
is_last = is_over = False
told = 0.0
try:
    while not (is_over and is_last and not pending):
        writes = [other] if pending or not is_last else []
        may_read, may_write, _ = select.select([other], writes, [], 0.2)
        if may_read and not is_over:
            chunk = other.recv(1 << 16)
            assert chunk, "the end of the stream"
            came += chunk
            while len(came) >= 8:
                number = int.from_bytes(came[:8], "big")
                assert number in (seen, LAST), (number, seen)
                came, seen, is_over = came[8:], seen + 1, number == LAST
        if may_write:
            if not pending:
                is_last = is_over or os.path.exists(end)
                numbers = [LAST] if is_last else range(sent, sent + 100)
                pending = b"".join(number.to_bytes(8, "big") for number in numbers)
                sent += 100
            try:
                pending = pending[other.send(pending):]
            except BlockingIOError:
                pass
            time.sleep(0.005)
        if time.monotonic() > told + 0.02:
            told = time.monotonic()
            out.write(f"{sent} {seen}\n")
    out.write("done\n")
except BaseException as error:
    out.write(f"ERROR {error!r}\n")
    raise
"""


@dataclass
class Pair:
    """Two jobs of a group, and what they write."""

    ckpt: Ckpt
    folder: Path
    group: str
    names: tuple[str, str]
    port: int

    def command(self, member: int) -> list[object]:
        role = ("server", "client")[member]
        return ["--", sys.executable, "-I", "-S", "-c", PEER, role, self.port, self.out(member), self.end]

    @property
    def end(self) -> Path:
        """Once this file is there both come to their end."""
        return self.folder / "end"

    def out(self, member: int) -> Path:
        return self.folder / f"out-{member}"

    def start(self) -> None:
        for member, name in enumerate(self.names):
            self.ckpt("run", "--detach", "--group", self.group, "--name", name, *self.command(member))
        self.await_progress()

    def seen(self, member: int) -> int:
        """How many numbers of the other one it has seen; a failure where one of them was wrong."""
        lines = self.out(member).read_text().splitlines() if self.out(member).exists() else []
        assert not any(line.startswith("ERROR") for line in lines), lines[-1]
        numbers = [line.split() for line in lines if line[:1].isdigit()]
        return int(numbers[-1][1]) if numbers and len(numbers[-1]) == 2 else 0

    def await_progress(self) -> None:
        """Wait until each has seen many more of the other's numbers."""
        for member in (0, 1):
            before = self.seen(member)
            await_condition(
                lambda member=member, before=before: self.seen(member) > before + 500,  # type: ignore[misc]
                lambda member=member, before=before: f"job {member} to see more than {before}",  # type: ignore[misc]
            )

    def forget_output(self) -> None:
        """What it wrote after a checkpoint, before it is taken back to that."""
        for member in (0, 1):
            os.truncate(self.out(member), 0)

    def jobs(self) -> list[dict[str, Any]]:
        found = {job["name"]: job for job in self.ckpt("ps")["jobs"]}
        return [found[name] for name in self.names if name in found]

    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs()]

    def kill(self) -> None:
        """End both at once."""
        cgroups = [Cgroup(Path(job["cgroup"])) for job in self.jobs()]
        pids = [pid for cgroup in cgroups for pid in cgroup.pids()]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # no FIN of one may be seen by the other
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        await_condition(lambda: all(map(is_dead, pids)), "both jobs to end")


@pytest.fixture
def pair(ckpt: Ckpt, traces: Traces) -> Pair:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    names = (ckpt.new_job_name(), ckpt.new_job_name())
    return Pair(ckpt, traces.folder, f"{traces.mark}-group", names, port)


def dump(pair: Pair, *options: str, exit_code: int = 0, **environ: str) -> dict[str, Any]:
    return pair.ckpt(
        "dump", "--group", pair.group, "--tcp-established", *options, exit_code=exit_code, **environ
    )


def stopped_members(pair: Pair, parent: int) -> list[int]:
    """The children of the command that have stopped themselves."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    pids = [int(word) for word in children.read_text().split()] if children.exists() else []
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"]


def kill_coordinator_at(pair: Pair, phase: str, *arguments: object) -> None:
    """Run a command on the group, and kill it when both its processes have come to the phase; these then go on."""
    command = pair.ckpt.start(*arguments, CKPT_FAILPOINT=f"{phase}:SIGSTOP")
    await_condition(
        lambda: len(stopped_members(pair, command.pid)) == 2, f"both processes to come to {phase}"
    )
    members = stopped_members(pair, command.pid)
    command.kill()
    command.wait()
    for pid in members:
        os.kill(pid, signal.SIGCONT)
    await_condition(lambda: all(map(is_dead, members)), "them to give up")


def test_a_connection_between_two_jobs_lives_through_a_dump_an_end_and_a_restore(pair: Pair) -> None:
    pair.start()
    assert {job["group"] for job in pair.jobs()} == {pair.group}
    running = dump(pair)
    assert [each["job"] for each in running["checkpoints"]] == sorted(pair.names)
    assert 0 <= running["skew_ms"] < running["frozen_ms"]
    pair.await_progress()
    dump(pair, "--stop")
    assert pair.states() == ["stopped", "stopped"]
    restored = pair.ckpt("restore", "--group", pair.group)
    assert {each["job"] for each in restored["restored"]} == set(pair.names)
    pair.await_progress()
    refused = pair.ckpt("restore", "--group", pair.group, exit_code=62)
    assert pair.names[0] in refused["error"]["message"]
    # An older instant, by one of its checkpoints; nobody has locked the connections now.
    pair.kill()
    pair.forget_output()
    pair.ckpt("restore", "--group", pair.group, running["checkpoints"][1]["id"])
    pair.await_progress()


def test_an_instant_that_lacks_a_member_is_passed_over_and_a_prune_keeps_the_complete_one(pair: Pair) -> None:
    pair.start()
    whole, broken = dump(pair), dump(pair, "--stop")
    pair.ckpt("rm", broken["checkpoints"][0]["id"])
    pruned = pair.ckpt("prune", "--keep-last", 1)
    assert {each["id"] for each in whole["checkpoints"]} <= {each["id"] for each in pruned["kept"]}
    pair.forget_output()
    assert pair.ckpt("restore", "--group", pair.group)["instant"] == whole["instant"]
    pair.await_progress()
    alone = pair.ckpt("restore", "--group", pair.group, broken["checkpoints"][1]["id"], exit_code=41)
    assert pair.group in alone["error"]["message"]


def test_a_member_that_cannot_be_dumped_leaves_all_running_and_nothing_behind(pair: Pair) -> None:
    pair.start()
    refused = pair.ckpt("dump", "--group", pair.group, exit_code=65)["error"]
    assert refused["slug"] == "group-failed"
    assert "run on" in refused["message"]
    assert pair.ckpt("list")["checkpoints"] == []
    dump(pair, exit_code=65, CKPT_FAILPOINT="durable")  # their processes die when their checkpoints are there
    assert pair.ckpt("list")["checkpoints"] == []
    pair.await_progress()
    assert pair.ckpt("dump", "--group", "nobody", exit_code=63)["error"]["slug"] == "no-such-target"
    # Where it is too late to go back, all end: their processes die between the end of their jobs and its being noted.
    ended = dump(pair, "--stop", exit_code=65, CKPT_FAILPOINT="killed")["error"]
    assert "all of them were ended" in ended["message"]
    assert pair.states() == ["stopped", "stopped"]
    pair.ckpt("restore", "--group", pair.group)
    pair.await_progress()


def test_who_dumps_or_restores_a_group_may_be_killed_before_the_last_point(pair: Pair) -> None:
    pair.start()
    taken = dump(pair)
    kill_coordinator_at(pair, "written", "dump", "--group", pair.group, "--tcp-established", "--stop")
    pair.await_progress()
    assert len(pair.ckpt("list")["checkpoints"]) == 2
    pair.kill()
    pair.forget_output()
    kill_coordinator_at(pair, "filed", "restore", "--group", pair.group)
    await_condition(lambda: not {"running", "frozen"} & set(pair.states()), "nothing of it to be there")
    assert pair.seen(0) == pair.seen(1) == 0
    assert pair.ckpt("restore", "--group", pair.group)["instant"] == taken["instant"]
    pair.await_progress()


def supervise(pair: Pair, *, first: int = 0) -> list[subprocess.Popen[bytes]]:
    """A supervisor for each job, of which the one of `first` is started first."""
    options = ("--group", pair.group, "--every", "400ms", "--max-frozen", "90%", "--tcp-established")
    how = ("--resume", "--on-term", "checkpoint")
    started = {
        member: pair.ckpt.start("run", *options, *how, "--name", pair.names[member], *pair.command(member))
        for member in (first, 1 - first)
    }
    return [started[0], started[1]]


def instants(pair: Pair) -> set[str]:
    return {each["group"]["instant"] for each in pair.ckpt("list")["checkpoints"]}


def codes(pair: Pair, runs: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """How the supervisors end; None for one that does not, and what they said is shown by pytest then."""
    for process in runs:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
    print((pair.folder / "ckpt.err").read_text())
    return [process.poll() for process in runs]


def end_well(pair: Pair) -> None:
    """Let both go on to their end, and see that they heard all of each other, and that nothing is kept."""
    runs = supervise(pair)
    pair.end.touch()
    assert codes(pair, runs) == [0, 0]
    for member in (0, 1):
        pair.seen(member)
        assert pair.out(member).read_text().endswith("done\n")
    assert pair.ckpt("list")["checkpoints"] == []


def test_supervisors_take_the_checkpoints_in_turn_and_all_go_on_from_one_instant(pair: Pair) -> None:
    runs = supervise(pair)
    await_condition(lambda: len(instants(pair)) >= 2, "two instants")
    runs[0].kill()  # whoever it was that took them: the other one goes on with that
    before = instants(pair)
    await_condition(lambda: len(instants(pair) - before) >= 2, "more instants")
    runs[1].kill()
    pair.kill()
    runs = supervise(pair)
    said = pair.folder / "ckpt.err"
    for word in ("goes on from", "is supervised from now on"):
        await_condition(lambda word=word: word in said.read_text(), lambda word=word: f"one to say {word!r}")  # type: ignore[misc]
    pair.forget_output()
    await_condition(lambda: pair.seen(0) > 0 and pair.seen(1) > 0, "them to count on")
    os.kill(runs[1].pid, signal.SIGTERM)
    assert codes(pair, runs) == [75, 75]
    assert pair.states() == ["stopped", "stopped"]
    end_well(pair)


@pytest.mark.parametrize("moment", ["before any of them has looked", "while they are brought back"])
def test_a_supervisor_that_is_asked_to_end_early_ends_those_of_the_whole_group(
    moment: str, pair: Pair
) -> None:
    registry = JobRegistry(str(pair.ckpt.state))
    runs = supervise(pair)
    await_condition(lambda: len(instants(pair)) >= 1, "an instant")
    for process in runs:
        process.kill()
        process.wait()
    pair.kill()

    runs = supervise(pair, first=1)

    def has_come() -> bool:
        if moment.startswith("before"):
            return all(supervisor_of(registry, name) is not None for name in pair.names)
        return all(registry.look(name).is_alive for name in pair.names)

    await_condition(has_come, moment)
    os.kill(runs[1].pid, signal.SIGTERM)
    assert codes(pair, runs) == [75, 75]
    assert all(not registry.look(name).is_alive for name in pair.names)
    end_well(pair)
