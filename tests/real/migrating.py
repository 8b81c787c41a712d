"""The hosts of migrations, what moves between them, and what is found of it on either side.

Two hosts whose clocks differ (CLOCK_MONOTONIC of the target is behind the source's), each with a store and a state of
its own, and with sshd, so that there is a way there and a way back; both have a bridge that a third host, the client,
is joined to.

Rule: what is said of copies and of things left is read from the kernel and from files, never from ckpt.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cables import BRIDGE, add_bridge, in_network, join_bridges
from harness.cgroups import Cgroup
from harness.command import PROGRAM, Ckpt
from harness.lab import Host
from harness.processes import all_pids, cgroup_of, is_dead
from harness.sshd import CLIENT, SERVER, SshServer
from harness.traces import Traces
from harness.waiting import await_condition
from real.counting import Counter
from real.leftovers import is_agent, left_on, words_of
from real.under_way import UnderWay, is_stopped

STATE_BYTES = 256 << 20
ADDRESSES = {"source": "10.88.0.1", "target": "10.88.0.2", "client": "10.88.0.9"}
JOB_ADDRESS = "10.88.0.5"
NETWORK = f"bridge={BRIDGE},address={JOB_ADDRESS}/24"
"""For `ckpt run --net`: an address that the client reaches on whichever host the job is."""

_FILLING = ".filling"
_REACH = "import socket, sys; socket.create_connection((sys.argv[1], 22), 1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The living copies of a workload's process, wherever they are, as the machine numbers them."""

    running: tuple[int, ...]
    frozen: tuple[int, ...]


class MigrationBed:
    """The hosts; the test's traces take them down."""

    def __init__(self, traces: Traces, ckpt: Ckpt, *, state_bytes: int = STATE_BYTES) -> None:
        """Bring them up.

        Args:
            traces: The test that they belong to.
            ckpt: The command, and the mark of its jobs.
            state_bytes: The size of the file system of each host's state, which is in memory; 0: it is on the disk.
        """
        self.ckpt = ckpt
        self._traces = traces
        self.source = self._host("source", 100_000, state_bytes)
        self.target = self._host("target", 1_000, state_bytes)
        self.client = Host(traces, "client")
        self.ssh = SshServer(traces, self.source, self.target)
        self.ssh.serve(self.source, CLIENT, "host-key-back")
        for host in (self.source, self.target, self.client):
            add_bridge(host, f"{ADDRESSES[host.name]}/24")
        # The client is the switch: the end of either host cuts only that one off.
        for host in (self.source, self.target):
            join_bridges(host, self.client)
        self._started = 0

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.source, self.target

    def other(self, host: Host) -> Host:
        """The host that one migrates to from this one."""
        return self.target if host is self.source else self.source

    def address_of(self, host: Host) -> str:
        """What the host is called on the command line of the other one."""
        return f"root@{SERVER if host is self.target else CLIENT}"

    def start_counter(self, host: Host, *options: object, name: str = "", prologue: str = "") -> Counter:
        """A job that counts on this host, started with these options of `ckpt run`; it has begun.

        Its program runs `prologue` first.
        """
        name = name or self.ckpt.new_job_name()
        counter = Counter(job=name, log=self._traces.folder / f"{name}.log")
        counter.write_program()
        program = counter.log.with_suffix(".py")
        program.write_text(f"{prologue}\n{program.read_text()}")
        output = self._traces.folder / f"{name}.out"
        host.ckpt(
            self.ckpt, "run", "--detach", "--name", name, "--log", output, *options, "--", *counter.command
        )
        counter.await_more()
        return counter

    def options(self, to: Host, *, agent_failpoint: str = "", silence_s: float = 0) -> tuple[str, ...]:
        """How ckpt on the other host comes to this one, and what it starts there."""
        program = self.agent(to, failpoint=agent_failpoint, silence_s=silence_s)
        return (*self.ssh.options, "--remote-ckpt", str(program))

    def agent(self, host: Host, *, failpoint: str = "", silence_s: float = 0) -> Path:
        """The ckpt of this host as SSH must start it: with its places, which SSH does not bring along.

        With a failpoint ("PHASE" or "PHASE:SIGNAL") the agent meets that there, and it gives up after `silence_s` of
        silence: the first one that is started so. What is started to mend it is as it should be.
        """
        environ = self.ckpt.environ({}) | host.environ(self.ckpt)
        kept = {name: value for name, value in environ.items() if name.startswith(("CKPT_", "PYTHONPATH"))}
        script = f'exec env {_assigned(kept)} {PROGRAM} "$@"'
        name = f"ckpt-{host.name}"
        if once := faults(failpoint, silence_s):
            self._started += 1
            name += f"-{self._started}"
            used = self.ssh.folder / f"{name}-used"
            script = f"mkdir {used} 2>/dev/null && export {_assigned(once)}\n{script}"
        return self.ssh.program(script, name)

    def start_migration(
        self,
        job: str,
        *options: object,
        source: Host | None = None,
        failpoint: str = "",
        agent_failpoint: str = "",
        silence_s: float = 0,
    ) -> UnderWay:
        """Start `ckpt migrate` on the source, to the other host; both give up after `silence_s` of silence."""
        source = source or self.source
        target = self.other(source)
        way = self.options(target, agent_failpoint=agent_failpoint, silence_s=silence_s)
        words = (job, self.address_of(target), *options, *way)
        return self.start(source, "migrate", *words, failpoint=failpoint, silence_s=silence_s)

    def start(
        self, host: Host, command: str, *arguments: object, failpoint: str = "", silence_s: float = 0
    ) -> UnderWay:
        """Start `ckpt COMMAND --json ARGUMENTS…` on the host; with a failpoint it meets that."""
        self._started += 1
        output = f"{command}-{self._started}"
        process = host.start(
            *self.ckpt.command_line(command, "--json", *arguments),
            environ=host.environ(self.ckpt, **faults(failpoint, silence_s)),
            output=output,
        )
        return UnderWay(process, self._traces.folder / output)

    def migrate(
        self,
        job: str,
        *options: object,
        source: Host | None = None,
        exit_code: int = 0,
        timeout_s: float = 60,
    ) -> dict[str, Any]:
        """Run `ckpt migrate` on the source, to its end; returns what it printed.

        Raises:
            AssertionError: another exit code.
        """
        ended = self.start_migration(job, *options, source=source).wait(timeout_s=timeout_s)
        assert ended.exit_code == exit_code, ended
        return ended.document

    def agents(self, host: Host) -> list[int]:
        """The agents that run on this host, for the machine."""
        return [pid for pid in host.own.pids() if is_agent(pid)]

    def kill_agent(self, host: Host) -> None:
        """kill -9 the only agent of this host."""
        (pid,) = self.agents(host)
        os.kill(pid, signal.SIGKILL)
        self.await_no_agent(host)

    def await_agent_stopped(self, host: Host) -> int:
        """Wait until the agent has stopped itself at its failpoint, "PHASE:SIGSTOP"; returns its pid."""
        return await_condition(
            lambda: next(filter(is_stopped, self.agents(host)), None), "the agent to stop itself"
        )

    def await_no_agent(self, host: Host) -> None:
        """Wait until no agent runs on this host: what it worked on is free."""
        await_condition(lambda: not self.agents(host), "the agent's end")

    def migrations(self, host: Host) -> list[str]:
        """The ids of the migrations that this host has something of."""
        place = host.path(host.state) / "migrations"
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []

    def copies_alive(self, counter: Counter) -> Copies:
        """Every living copy of the counter on this machine, whatever made it."""
        command = [word.encode() for word in counter.command]
        alive = [pid for pid in all_pids() if words_of(pid) == command and not is_dead(pid)]
        frozen = tuple(pid for pid in alive if _stands_still(pid))
        return Copies(running=tuple(pid for pid in alive if pid not in frozen), frozen=frozen)

    def await_no_copy_runs(self, counter: Counter, on: Host) -> None:
        """Wait until none runs there: one whose CRIU was killed does for a moment, until it stands still in its cgroup."""
        await_condition(
            lambda: not any(self.host_of(pid) is on for pid in self.copies_alive(counter).running),
            lambda: f"the copies to stand still: {self.copies_alive(counter)}",
        )

    def host_of(self, pid: int) -> Host | None:
        """The host that a process is on."""
        place = cgroup_of(pid)
        return next((host for host in self.hosts if place.is_relative_to(host.cgroup.path)), None)

    def assert_one_copy(self, counter: Counter, on: Host | None = None) -> None:
        """It lives exactly once, on this host if one is named, counts on there, and has never lost a count."""
        copies = self.copies_alive(counter)
        assert len(copies.running) == 1, copies
        assert not copies.frozen, copies
        host = self.host_of(copies.running[0])
        assert host is not None
        assert on is None or host is on, f"it runs on {host.name}"
        counter.await_more()
        counter.check()

    def link_down(self) -> None:
        """Pull out the cable that SSH goes over; the bridges' stay."""
        self.ssh.cable.down()

    @property
    def is_link_up(self) -> bool:
        """Whether the cable that SSH goes over is plugged in."""
        return "UP" in in_network(self.target, "-br", "link", "show", "out").split()[1:2]

    def link_up(self) -> None:
        """Plug it in again, and wait until the hosts reach each other."""
        self.ssh.cable.up()
        # That nobody answered is remembered for seconds.
        for host in self.hosts:
            in_network(host, "neigh", "flush", "dev", "out")
        await_condition(
            lambda: self.source.run("python3", "-I", "-S", "-c", _REACH, SERVER).returncode == 0,
            "the source to reach the target",
        )

    def fill_state(self, host: Host, *, leave_bytes: int = 0) -> None:
        """Let the file system of the host's state have only so much space left."""
        state = host.path(host.state)
        space = os.statvfs(state)
        with open(state / _FILLING, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - leave_bytes)

    def free_state(self, host: Host) -> None:
        """Take back what fill_state() did."""
        (host.path(host.state) / _FILLING).unlink()

    @contextmanager
    def full_state(self, host: Host) -> Iterator[None]:
        """The host's state has no space as long as the context lasts."""
        self.fill_state(host)
        try:
            yield
        finally:
            self.free_state(host)

    def job_state(self, host: Host, job: str) -> str:
        """What `ckpt ps` on the host says of the job."""
        (found,) = [each for each in host.ckpt(self.ckpt, "ps")["jobs"] if each["name"] == job]
        return str(found["state"])

    def recover(self, host: Host, *options: object, exit_code: int = 0) -> dict[str, Any]:
        """Run `ckpt recover` on the host."""
        return host.ckpt(self.ckpt, "recover", *options, exit_code=exit_code)

    def resume(self, migration: str, *, source: Host | None = None, exit_code: int = 0) -> dict[str, Any]:
        """Run `ckpt migrate --resume` on the source; returns what it printed."""
        source = source or self.source
        words = ("--resume", migration, *self.options(self.other(source)))
        return source.ckpt(self.ckpt, "migrate", *words, exit_code=exit_code)

    def end(self, counter: Counter) -> None:
        """End every copy of the counter, and remove the cgroups where they were."""
        copies = self.copies_alive(counter)
        for cgroup in {cgroup_of(pid) for pid in copies.running + copies.frozen}:
            self._traces.adopt(Cgroup(cgroup)).remove()

    def leftovers(self, *counters: Counter) -> list[str]:
        """What migrations have left on either side, each in a few words; where the counters live is not left over."""
        found = [self.copies_alive(counter) for counter in counters]
        living = [cgroup_of(pid) for copies in found for pid in copies.running + copies.frozen]
        return [f"{host.name}: {words}" for host in self.hosts for words in left_on(host, living)]

    def await_nothing_left(self, *counters: Counter) -> None:
        """Wait until nothing is left; guardians and agents take a moment to end."""
        await_condition(
            lambda: not self.leftovers(*counters),
            lambda: f"this to go: {self.leftovers(*counters)}",
        )

    def _host(self, name: str, ahead_s: int, state_bytes: int) -> Host:
        return Host(
            self._traces,
            name,
            monotonic_s=ahead_s,
            boottime_s=2 * ahead_s,
            own_places=True,
            state_bytes=state_bytes,
        )


def faults(failpoint: str, silence_s: float) -> dict[str, str]:
    """The environment in which ckpt fails at this point, and gives up after so much silence."""
    found = {"CKPT_FAILPOINT": failpoint, "CKPT_SILENCE_S": f"{silence_s:g}" if silence_s else ""}
    return {name: value for name, value in found.items() if value}


def _assigned(environ: Mapping[str, str]) -> str:
    """The variables as a shell takes them."""
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())


def _stands_still(pid: int) -> bool:
    """Whether the freezer, a tracer or a signal holds it."""
    with suppress(OSError, AssertionError):
        if "frozen 1" in (cgroup_of(pid) / "cgroup.events").read_text():
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    return False
