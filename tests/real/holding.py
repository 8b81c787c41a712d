"""A real process that does what it is told, line by line, and holds what it opened; and its frozen cgroup."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real.ticking import await_true

from ckpt.host import cgroups
from ckpt.model.target import Target, TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import Pid

# Each line is a program in JSON; all share one set of globals. The answer is the value of `answer`.
PROGRAM = """
import ctypes, fcntl, json, mmap, os, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
held, answer = {}, None
for line in sys.stdin:
    answer = None
    exec(json.loads(line), globals())
    print(json.dumps(answer), flush=True)
"""

# Into the cgroup first: what the command forks must be born in it.
ENTER = ("/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')


class Holder:
    """The process; `cgroup` holds it and what it starts, and nothing else."""

    def __init__(self, cgroup: str, command: tuple[str, ...]) -> None:
        self.cgroup = cgroup
        self._process = subprocess.Popen(
            [*ENTER, cgroup, *command, sys.executable, "-I", "-S", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            self.pid = Pid(int(self.do("answer = int(os.readlink('/proc/self').split('/')[-1])")))
        except BaseException:
            self.end()
            raise

    @property
    def target(self) -> Target:
        return Target(
            ref=TargetRef(kind=TargetKind.CGROUP, name=self.cgroup),
            cgroup=self.cgroup,
            roots=(self.pid,),
            job=None,
        )

    def do(self, program: str) -> str:
        """Let it run the program, and give what it left in `answer`, as text."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(program) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        assert said, f"it died of: {program}"
        return str(json.loads(said))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it, and let it go on."""
        control = Path(self.cgroup, "cgroup.freeze")
        control.write_text("1")
        try:
            events = Path(self.cgroup, "cgroup.events")
            await_true(lambda: "frozen 1" in events.read_text(), "frozen")
            yield
        finally:
            control.write_text("0")

    def end(self) -> None:
        Path(self.cgroup, "cgroup.kill").write_text("1")
        self._process.kill()
        self._process.communicate()
        await_true(lambda: not cgroups.processes_below(self.cgroup), "the processes end")


@contextmanager
def holding(*command: str) -> Iterator[Holder]:
    """A process in a cgroup of its own, started by `command` if one is given; all of it ends at the end."""
    hierarchy = cgroups.unified()
    assert hierarchy is not None
    path = f"{hierarchy.mountpoint}/ckpt-test-inspect-{secrets.token_hex(4)}"
    os.mkdir(path)
    try:
        holder = Holder(path, command)
        try:
            yield holder
        finally:
            holder.end()
    finally:
        await_true(lambda: cgroups.remove(path), f"{path} can be removed")
