"""scripts/slurm/ckpt-job.sh without a Slurm: what it hands on to ckpt and to the command, and what it refuses."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import pytest
from harness.waiting import await_condition

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).parents[2] / "scripts/slurm/ckpt-job.sh"

#: Stands in for ckpt: writes down what it was given, and ends as a command that has failed.
CKPT = """#!/bin/bash
printf '%s\\0' "$@" >"$SEEN/words"
env -0 >"$SEEN/environ"
exit 7
"""

SCONTROL = """#!/bin/sh
echo "JobId=$SLURM_JOB_ID JobState=RUNNING"
"""


class Batch:
    """A batch job in a folder of its own, with programs that stand in for Slurm's and for ckpt."""

    def __init__(self, folder: Path) -> None:
        self.shared = folder / "a shared folder"
        self.shared.mkdir()
        self.seen = folder
        self.job = f"script{secrets.token_hex(4)}"
        for name, text in (("ckpt", CKPT), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        environ = {
            **os.environ,
            "PATH": f"{self.seen}:{os.environ['PATH']}",
            "SEEN": str(self.seen),
            "SLURM_JOB_ID": self.job,
            "SLURMD_NODENAME": "here",
        }
        command = [str(SCRIPT), *map(str, words)]
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=environ,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )

    def told(self, name: str) -> list[str]:
        return (self.seen / name).read_text().split("\0")[:-1]


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return Batch(tmp_path)


def test_words_reach_the_command_as_they_are_and_nothing_of_the_script_does(batch: Batch) -> None:
    words = ("--", "./solve", "a  b", "", "*", "--lease=1")
    done = batch.run(f"--shared={batch.shared}", "--grace=2m", "--with-files", "c d", *words)
    assert done.returncode == 7, done.stderr
    assert batch.told("words") == [
        *("run", "--name", f"slurm-{batch.job}", "--resume", "--every", "10m", "--on-term", "checkpoint"),
        *("--grace", "120s", "--with-files", "c d", *words),
    ]
    names = {line.partition("=")[0] for line in batch.told("environ")}
    assert not [name for name in names if name.startswith("BASH_FUNC_")]
    assert not names & {"lease", "mine", "job", "batch", "local_folder"}
    # The guard gives the lease back, and leaves nothing.
    lease = batch.shared / "leases" / f"slurm-{batch.job}" / "1"
    await_condition(lambda: lease.read_text() == "released\n", "the lease to be given back")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "x", "--", "true"), "--name is this script's own"),
        (("--on-term=forward", "--", "true"), "--on-term is this script's own"),
        (("--lease=9", "--", "true"), "10 or more"),
        (("--grace=soon", "--", "true"), "seconds or minutes"),
        (("--every", "1m"), "no command"),
    ],
)
def test_what_would_break_its_promises_is_refused(batch: Batch, words: tuple[str, ...], said: str) -> None:
    done = batch.run("--shared", batch.shared, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (batch.shared / "leases").exists()
