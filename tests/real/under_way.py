"""A command of ckpt that was started on a host of the lab, and how it is stopped, killed and waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.waiting import await_condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it ended: its exit code, 128 + N for signal N, and what it wrote; no document if that is not JSON."""

    exit_code: int
    document: dict[str, Any]
    errors: str


class UnderWay:
    """The command."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """Take over what Host.start() gave, with the path of its output."""
        self._nsenter = process
        self._output = output

    @property
    def controller(self) -> int:
        """The pid of ckpt itself, for the machine."""
        return await_condition(self._children, "ckpt to start")[0]

    def runs(self) -> bool:
        return self._nsenter.poll() is None

    def await_stopped(self) -> None:
        """Wait until it has stopped itself at its failpoint, "PHASE:SIGSTOP"."""
        controller = self.controller
        await_condition(lambda: is_stopped(controller), lambda: f"ckpt to stop: {self._said()}")

    def go_on(self) -> None:
        """Let it go on from its failpoint."""
        self._await_nsenter()
        self._nsenter.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 the controller, whether it is stopped or not."""
        self._await_nsenter()
        os.kill(self.controller, signal.SIGKILL)
        self._nsenter.send_signal(signal.SIGCONT)

    def interrupt(self) -> None:
        """Ctrl-C."""
        os.kill(self.controller, signal.SIGINT)

    def wait(self, *, timeout_s: float = 60) -> Ended:
        """Wait for its end."""
        status = self._nsenter.wait(timeout_s)
        document: dict[str, Any] = {}
        out, err = self._said()
        with suppress(ValueError):
            document = json.loads(out)
        return Ended(exit_code=status if status >= 0 else 128 - status, document=document, errors=err)

    def _await_nsenter(self) -> None:
        """nsenter stops as its child does, a moment later, and lets it go on when it is let go on itself.

        What is sent to it before that is lost, and both would stand still for ever.
        """
        if is_stopped(self.controller):
            await_condition(lambda: is_stopped(self._nsenter.pid), "nsenter to stop")

    def _said(self) -> tuple[str, str]:
        out, err = (self._output.with_name(f"{self._output.name}.{kind}") for kind in ("out", "err"))
        return out.read_text(errors="replace"), err.read_text(errors="replace")

    def _children(self) -> list[int]:
        assert self.runs(), self._said()
        pid = self._nsenter.pid
        with suppress(OSError):
            return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it; also if it is gone, it is not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False
