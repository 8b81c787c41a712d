"""A job's logs and files go back with its memory, however often, and whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from harness.waiting import await_condition
from real.crashing import Scene
from real.saving import Saving

from ckpt.host.jobs import JobRegistry
from ckpt.units import JobName

pytestmark = pytest.mark.system

CYCLES = 20

# Each step appends to the log, writes a file anew in place, replaces another one, and makes and removes files.
PROGRAM = """
import os, sys, time
folder, last = sys.argv[1], int(sys.argv[2])
place = open(folder + "/place", "w+b")
for number in range(last):
    place.seek(0)
    place.write(b"%08d" % number * (number % 7 + 1))
    place.truncate()
    place.flush()
    with open(folder + "/new", "w") as file:
        file.write(f"replaced {number}")
    os.rename(folder + "/new", folder + "/replaced")
    open(f"{folder}/made-{number}", "w").close()
    if number > 5:
        os.remove(f"{folder}/made-{number - 5}")
    os.write(1, b"step %d\\n" % number)
    while not os.path.exists(sys.argv[3] + f"/{number}"):
        time.sleep(0.002)
os.write(1, b"done\\n")
time.sleep(1000)
"""


class Job:
    """A job of this program, which makes a step whenever it may; and whoever kills and resumes it."""

    def __init__(self, ckpt: Ckpt, place: Path) -> None:
        self.ckpt = ckpt
        self.saving = Saving(ckpt)
        self.name = JobName(ckpt.new_job_name())
        self._registry = JobRegistry(str(ckpt.state))
        self.folder = place / self.name / "files"
        self.folder.mkdir(parents=True)
        self._allowed = place / self.name / "allowed"
        self._allowed.mkdir()
        self.log = ckpt.state / "jobs" / self.name / "log"
        words = ("-c", PROGRAM, self.folder, CYCLES, self._allowed)
        ran = ckpt.run("run", "--detach", "--name", self.name, "--", sys.executable, "-I", "-S", *words)
        assert ran.returncode == 0, ran.stderr
        self.await_step(0)

    def step(self, number: int) -> None:
        """Let it go on from this step, and wait until it has made the next one."""
        (self._allowed / str(number)).touch()
        self.await_step(number + 1)

    def await_step(self, number: int) -> None:
        line = f"step {number}\n" if number < CYCLES else "done\n"
        await_condition(lambda: self.log.read_text().endswith(line), f"{line!r} in the log")

    def undo_permission(self, number: int) -> None:
        """It may not go on from this step, nor from a later one, until it may again."""
        for path in self._allowed.iterdir():
            if int(path.name) >= number:
                path.unlink()

    def dump(self) -> str:
        answer = self.saving("dump", self.name, self.log, self.folder)
        assert "error" not in answer, answer
        return str(answer["id"])

    def kill(self) -> None:
        os.kill(self._registry.load(self.name).root.pid, signal.SIGKILL)
        await_condition(lambda: self._registry.look(self.name).exit is not None, "its end to be written down")

    def contents(self) -> dict[str, bytes]:
        found = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        return {**found, "the log": self.log.read_bytes()}


@pytest.fixture
def job(ckpt: Ckpt, tmp_path: Path) -> Iterator[Job]:
    job = Job(ckpt, tmp_path)
    yield job
    ckpt.run("stop", job.name)
    ckpt.run("rm-job", job.name)


def undisturbed(ckpt: Ckpt, place: Path) -> dict[str, bytes]:
    job = Job(ckpt, place)
    for number in range(CYCLES):
        job.step(number)
    found = job.contents()
    ckpt("stop", job.name)
    ckpt("rm-job", job.name)
    return found


@pytest.mark.timeout(240)
def test_after_twenty_rounds_of_dump_kill_and_resume_all_is_as_if_nothing_had_been(
    ckpt: Ckpt, job: Job, tmp_path: Path
) -> None:
    expected = undisturbed(ckpt, tmp_path)
    for number in range(CYCLES):
        checkpoint = job.dump()
        if number < CYCLES - 1:
            job.step(number)  # what it does after the checkpoint is undone
            job.undo_permission(number)
        job.kill()
        answer = job.saving("resume", job.name)
        assert answer.get("id") == checkpoint, answer
        assert job.log.read_text().endswith(f"step {number}\n")
        job.step(number)
    assert job.contents() == expected
    assert len(list(job.folder.parent.glob("*.aside-*"))) <= 3


@pytest.mark.parametrize("phase", ["rewriting", "rewritten", "restored"])
def test_kill_9_of_a_resume_leaves_log_and_files_as_they_were_and_the_next_one_succeeds(
    phase: str, job: Job, ckpt: Ckpt, traces: Traces
) -> None:
    scene = Scene(ckpt, traces)
    job.dump()
    at_dump = job.contents()
    job.step(0)
    job.undo_permission(0)
    job.kill()
    before = job.contents()
    scene.remember()
    assert job.saving("resume", job.name, CKPT_FAILPOINT=phase) == {}, "it was killed"
    scene.await_nothing_left(alive=())
    assert job.contents() == before
    assert "error" not in job.saving("resume", job.name)
    assert job.contents() == at_dump


def test_a_damaged_checkpoint_is_told_and_an_older_one_taken_and_never_the_job_begun_anew(
    job: Job, ckpt: Ckpt
) -> None:
    assert job.saving("resume", "never-seen") == {"id": None}
    older = job.dump()
    job.step(0)
    job.undo_permission(0)
    newer = job.dump()
    job.kill()
    flip(ckpt.store, f"manifests/**/*{newer}*")
    answer = job.saving("resume", job.name)
    assert answer["id"] == older, answer
    (damaged,) = answer["damaged"]
    assert newer[:12] in damaged
    assert job.log.read_text() == "step 0\n"

    job.kill()
    flip(ckpt.store, "packs/**/*")
    answer = job.saving("resume", job.name)
    assert answer["exit_code"] == 42, answer
    assert "2 checkpoint(s)" in answer["error"]
    assert "without --resume" in answer["hint"]

    for receipt in ckpt.store.glob("receipts/**/*"):
        if receipt.is_file():
            receipt.unlink()
    flip(ckpt.store, f"manifests/**/*{older}*")
    assert job.saving("resume", job.name)["exit_code"] == 42


def flip(store: Path, pattern: str) -> None:
    """Damage every file of the store that the pattern names."""
    files = [path for path in store.glob(pattern) if path.is_file()]
    assert files
    for path in files:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(raw)


def test_on_another_machine_the_log_is_made_anew(job: Job, ckpt: Ckpt) -> None:
    job.dump()
    job.kill()
    ckpt("rm-job", job.name)
    for path in job.folder.iterdir():
        path.unlink()
    assert not job.log.exists()
    answer = job.saving("resume", job.name)
    assert "error" not in answer, answer
    assert job.log.read_text() == "step 0\n"
    job.step(0)
    assert job.log.read_text() == "step 0\nstep 1\n"
