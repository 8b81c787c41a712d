"""A machine that is switched off and on again, as far as that can be had in namespaces.

Each boot is a host of the lab on the machine's own disk: with a boot id of its own, CLOCK_MONOTONIC and CLOCK_BOOTTIME
that begin near zero, an empty /run and /dev/shm, no cgroup of a job, and no process of the boot before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from harness.command import Ckpt
from harness.lab import Host
from harness.traces import Traces
from harness.waiting import await_condition

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UPTIME_S = 5


class Machine:
    """It is on since it was made; cut_power() switches it off."""

    def __init__(self, traces: Traces, ckpt: Ckpt) -> None:
        self._traces = traces
        self._ckpt = ckpt
        self._boots = 0
        self._started: list[subprocess.Popen[bytes]] = []
        self.host = self._boot()

    @property
    def boot_id(self) -> str:
        """Of this boot."""
        return self.host.must_run("cat", _BOOT_ID).strip()

    def ckpt(self, command: str, *arguments: object, exit_code: int = 0, **how: Any) -> dict[str, Any]:
        """Run `ckpt COMMAND --json ARGUMENTS…` on the machine."""
        return self.host.ckpt(self._ckpt, command, *arguments, exit_code=exit_code, **how)

    def start_ckpt(self, *arguments: object, output: str) -> subprocess.Popen[bytes]:
        """Start `ckpt ARGUMENTS…` on the machine and leave it running, as harness.lab.Host.start() does."""
        environ = self.host.environ(self._ckpt)
        process = self.host.start(*self._ckpt.command_line(*arguments), environ=environ, output=output)
        self._started.append(process)
        return process

    def cut_power(self) -> None:
        """Everything ends at once."""
        os.kill(self.host.init, signal.SIGKILL)
        cgroup = self.host.cgroup
        await_condition(lambda: not cgroup.pids(), "the machine to be off")
        cgroup.remove()
        for process in self._started:
            process.wait()
        self._started.clear()

    def reboot(self) -> None:
        """Switch it off, however that is, and on again."""
        self.cut_power()
        self.host = self._boot()

    def _boot(self) -> Host:
        self._boots += 1
        ahead = {
            clock: _UPTIME_S - int(time.clock_gettime(clock))
            for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
        }
        host = Host(
            self._traces,
            f"boot{self._boots}",
            monotonic_s=ahead[time.CLOCK_MONOTONIC],
            boottime_s=ahead[time.CLOCK_BOOTTIME],
            own_root=False,
        )
        host.state = self._ckpt.state
        own_id = self._traces.folder / f"boot-id-{self._boots}"
        own_id.write_text(f"{uuid.uuid4()}\n")
        host.must_run("mount", "--bind", own_id, _BOOT_ID)
        return host
