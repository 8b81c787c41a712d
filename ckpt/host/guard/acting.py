"""What a guard does to a victim, but for checkpoints: tell somebody, signal, kill.

Rules:
- A command is bounded in time, and is ended with all that it started.
- It is told what happened by its environment: CKPT_GUARD_CGROUP, _JOB, _EVENT, _USAGE_BYTES, _LIMIT_BYTES.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import Final

from ckpt.errors import CommandFailed, NoSuchTarget, OsRefused
from ckpt.host import cgroups, launch
from ckpt.host.freezer_control import control_of
from ckpt.host.guard.memory import read_memory
from ckpt.host.jobs import JobRegistry
from ckpt.model.guard_steps import (
    Notify,
)
from ckpt.model.guarding import (
    Event,
    Victim,
    Watched,
)
from ckpt.units import Pid

PREFIX: Final = "CKPT_GUARD_"
_KILL_ROUNDS: Final = 100
_KILL_PAUSE_MS: Final = 100


class HostActs:
    """Acts on this host; those of the port `Acts` but migrate()."""

    def __init__(self, registry: JobRegistry) -> None:
        self._registry = registry

    def notify(self, step: Notify, watched: Watched, victim: Victim, event: Event) -> None:
        """Run the command; what it prints goes to our standard error.

        Raises:
            CommandFailed: it failed, could not be started, or took too long and was killed.
        """
        reading = read_memory(watched.cgroup)
        told = {
            "CGROUP": watched.cgroup,
            "JOB": victim.job or "",
            "EVENT": event.value,
            "USAGE_BYTES": str(reading.usage if reading else 0),
            "LIMIT_BYTES": str(reading.limit if reading else 0),
        }
        shown = " ".join(step.command)
        environment = {**os.environ, **{PREFIX + name: value for name, value in told.items()}}
        try:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(command=shown, status=127, output=error.strerror or str(error)) from error
        try:
            status = process.wait(step.timeout_ns / 1e9)
        except subprocess.TimeoutExpired:
            raise CommandFailed(
                command=shown, status=-signal.SIGKILL, output=f"killed after {step.timeout_ns / 1e9:g} s"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status:
            raise CommandFailed(command=shown, status=status, output="see what it wrote")

    def signal(self, victim: Victim, number: int) -> None:
        """Send the victim's main process the signal; of a cgroup all processes.

        Raises:
            NoSuchTarget: it has ended.
        """
        if victim.job is not None:
            reached = launch.send_signal(self._registry.load(victim.job).root, number)
        else:
            reached = sum(_send(pid, number) for pid in cgroups.processes_below(victim.cgroup)) > 0
        if not reached:
            raise NoSuchTarget(kind="running process of", name=victim.label)

    def kill(self, victim: Victim) -> None:
        """Kill all of it.

        Raises:
            OsRefused: a task cannot be killed.
        """
        place = self._registry.load(victim.job).cgroup if victim.job is not None else victim.cgroup
        control = control_of(place)
        if control is not None:
            control.kill()
            return
        for _ in range(_KILL_ROUNDS):
            pids = cgroups.processes_below(place)
            if not pids:
                return
            _kill_and_wait(pids)
        raise OsRefused(
            operation="kill", subject=f"every task of {place}", reason="they fork faster than they are killed"
        )


def _send(pid: Pid, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def _kill_and_wait(pids: list[Pid]) -> None:
    with contextlib.ExitStack() as opened:
        pidfds = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                opened.callback(os.close, fd)
                pidfds.append(fd)
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        ending = select.poll()
        for fd in pidfds:
            ending.register(fd, select.POLLIN)
        ending.poll(_KILL_PAUSE_MS)
