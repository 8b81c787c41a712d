"""What is told when CRIU itself fails: the cause, the remedy, its lines, and where its whole log is."""

from __future__ import annotations

import sys

import pytest
from harness.command import Ckpt
from harness.subjects import Workload
from harness.waiting import await_condition

pytestmark = pytest.mark.system

DELETED = """
import os, time
held = open("deleted", "wb")
held.write(os.urandom(1 << 20))
held.flush()
os.unlink("deleted")
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_dump_that_fails_in_criu_is_explained_and_its_log_is_kept(ckpt: Ckpt, workload: Workload) -> None:
    folder = ckpt.state.parent / "deleted"
    folder.mkdir()
    workload.spawn([sys.executable, "-c", DELETED], folder)
    out = folder / "out"
    await_condition(lambda: "ready" in out.read_text(), out.read_text)

    # What ckpt finds beforehand is left to CRIU.
    words = ("dump", "--force", "--ghost-limit", "64K", "--cgroup", workload.cgroup)
    error = ckpt(*words, exit_code=21)["error"]
    assert "still open, has 1048576 bytes: more than the limit" in error["message"]
    assert error["hint"] == "Raise the limit for deleted files (--ghost-limit)."
    assert any("Can't dump ghost file" in line for line in error["log_lines"])
    with open(error["log_path"]) as log:
        assert "Can't dump ghost file" in log.read()

    told = ckpt.run(*words)
    assert told.returncode == 21
    assert "The whole log: " in told.stderr
    assert f"{ckpt.state}/logs/failed-dump-" in told.stderr
    with open(error["log_path"]) as log:
        assert "Can't dump ghost file" in log.read(), "the next failure must not take the log of this one"
