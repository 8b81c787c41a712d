"""A workload whose processes, files and connections come and go while it is read: nothing is made up of two moments."""

from __future__ import annotations

import os

import pytest
from real.checking import findings
from real.holding import holding

from ckpt.host import cgroups
from ckpt.host.preflight.rule import When
from ckpt.host.preflight.table import RULES
from ckpt.model.findings import Severity

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="reading other processes needs root"),
    pytest.mark.skipif(cgroups.unified() is None, reason="no cgroup version 2 is mounted"),
]

LOOKS = 60
PASSING = ("uninterruptible",)
"""Whose moments a second look cannot always tell from what lasts."""

ASKED = [rule for rule in RULES if rule.when is not When.MOMENT and rule.name not in PASSING]

LOOP = """
def loop(step):
    if not os.fork():
        while True:
            step()
            time.sleep(0.002)
"""

THREADS_END = """
def step():
    child = os.fork()
    if not child:
        memory = bytearray(48 << 20)
        for _ in range(8): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
        os._exit(0)
    os.waitpid(child, 0)
loop(step)
"""

VFORK = """
actions = [(os.POSIX_SPAWN_CLOSE, fd) for fd in range(9, 1000)]
def step():
    os.waitpid(os.posix_spawn('/bin/true', ['true'], {}, file_actions=actions), 0)
for _ in range(4): loop(step)
"""

DELETED = """
import tempfile
def step():
    with tempfile.NamedTemporaryFile() as file: file.write(b'x')
for _ in range(3): loop(step)
"""

PIPES = """
def step():
    reading, writing = os.pipe()
    if not os.fork():
        os.close(reading)
        time.sleep(0.01)
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    os.wait()
for _ in range(4): loop(step)
"""

CONNECTIONS = """
listener = socket.socket(socket.AF_UNIX)
listener.bind(f'\\0ckpt-test-{os.getpid()}')
listener.listen(16)
def serve():
    with listener.accept()[0] as end: end.send(end.recv(9))
def ask():
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(listener.getsockname())
        end.send(b'x')
        end.recv(9)
for _ in range(2):
    loop(serve)
    loop(ask)
"""


@pytest.mark.parametrize(
    "program",
    [THREADS_END, VFORK, DELETED, PIPES, CONNECTIONS],
    ids=["threads that end", "vfork", "deleted files", "pipes", "connections"],
)
def test_what_comes_and_goes_is_no_finding(program: str) -> None:
    with holding() as holder:
        # What it answers by is the test's.
        ours = {finding.subject for finding in findings(holder.cgroup, ASKED)}
        holder.do(LOOP + program)
        for _ in range(LOOKS):
            found = findings(holder.cgroup, ASKED)
            grave = [each for each in found if each.severity is not Severity.INFO]
            assert not [each.message for each in grave if each.subject not in ours]
