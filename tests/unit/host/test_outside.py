"""Which pipes lead out of a workload that goes on forking while it is looked at."""

from __future__ import annotations

import subprocess
import sys

from ckpt.host.outside import outside_files
from ckpt.units import Pid

FORKING = """
import os, sys
ours, theirs = os.pipe()
child = os.fork()
if child == 0:
    os.close(ours)
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os.close(theirs)
os.waitpid(child, 0)
"""


def test_a_pipe_to_a_child_that_was_forked_after_the_workload_was_counted_is_the_workloads_own() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "forked\n"
        assert [file for file in outside_files([Pid(process.pid)]) if file.fd > 2] == []
    finally:
        process.communicate("")
