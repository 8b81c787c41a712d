"""A controller in a process of its own, so that it can be killed where a dump would be, and its state."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt.units import Pid

ROOT = Path(__file__).resolve().parents[2]

# What a dump does with the freezer, phase by phase; each phase is a place where it can be made to die.
PROGRAM = """
import os, subprocess, sys
from ckpt.host.operations import JournaledOperations
from ckpt.host.targets import HostTargets
from ckpt.model.target import TargetRef
from ckpt.model.workload import TargetKind
from ckpt.units import SECOND, Nanoseconds
state, kind, name = sys.argv[1:4]
targets = HostTargets(state, lambda job: None)
target = targets.resolve(TargetRef(kind=TargetKind(kind), name=name))
with targets.lock(target):
    operation = JournaledOperations(state).begin("a test")
    operation.note_phase("begun")
    operation.guard()
    operation.await_guardian()
    print("guardian", operation._guardian.pid, flush=True)
    freezer = targets.freezer(target, operation)
    open(operation.staging + "/image", "w").close()
    if "criu" in sys.argv:
        criu = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        operation.note_criu(criu.pid)
        print("criu", criu.pid, flush=True)
    operation.note_phase("guarded")
    freezer.gather()
    operation.note_phase("gathered")
    freezer.freeze(Nanoseconds(5 * SECOND))
    print("cgroup", freezer.cgroup, flush=True)
    operation.note_phase("frozen")
    if "hold" in sys.argv:
        sys.stdin.read()
    if "kill" in sys.argv:
        freezer.kill()
        operation.note_phase("killed")
    freezer.thaw()
    operation.note_phase("thawed")
    freezer.release()
    operation.note_phase("released")
    operation.end()
print("ended", flush=True)
"""


@contextmanager
def controller(
    state: Path, kind: str, name: str, *words: str, failpoint: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A controller that works on the target; it is ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(state), kind, name, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CKPT_FAILPOINT": failpoint},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def said(process: subprocess.Popen[str], word: str) -> str:
    """What the controller says after this word, when it says it."""
    assert process.stdout is not None
    for line in process.stdout:
        first, _, rest = line.strip().partition(" ")
        if first == word:
            return rest
    raise AssertionError(f"the controller ended without saying {word}")


def said_pid(process: subprocess.Popen[str], word: str) -> Pid:
    return Pid(int(said(process, word)))
