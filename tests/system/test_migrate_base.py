"""A workload moves to a host that has a checkpoint of it: only what is otherwise than in that goes over the wire."""

from __future__ import annotations

import shutil

import pytest
from harness.command import Ckpt
from harness.lab import STORE
from harness.traces import Traces
from harness.waiting import await_condition
from real.counting import Counter
from real.migrating import MigrationBed

pytestmark = pytest.mark.system

MIB = 64
CHANGED_MIB = 2
# No compressor makes it smaller. It does what files beside its log ask for, and answers by files.
BALLAST = f"""
import hashlib, os, sys, threading, time
ballast = bytearray(os.urandom({MIB} << 20))
def asked(word):
    while not os.path.exists(sys.argv[1] + "." + word):
        time.sleep(0.01)
def answer(word):
    open(sys.argv[1] + "." + word, "w").close()
def live():
    asked("change")
    ballast[:{CHANGED_MIB} << 20] = os.urandom({CHANGED_MIB} << 20)
    digest = hashlib.sha256(ballast).digest()
    answer("change.done")
    for word in ("there", "back"):
        asked(word)
        answer(word + (".right" if hashlib.sha256(ballast).digest() == digest else ".wrong"))
threading.Thread(target=live, daemon=True).start()
"""


@pytest.fixture
def bed(traces: Traces, ckpt: Ckpt) -> MigrationBed:
    return MigrationBed(traces, ckpt, state_bytes=0)


def ask(counter: Counter, word: str) -> str:
    """Ask the ballast for something, and wait for its answer."""
    place = counter.log.parent
    (place / f"{counter.log.name}.{word}").touch()
    (answer,) = await_condition(lambda: [*place.glob(f"{counter.log.name}.{word}.*")], f"an answer to {word}")
    return str(answer.suffix)


def start_known(bed: MigrationBed, ckpt: Ckpt) -> Counter:
    """A job on the source that the target's store has a checkpoint of, and that has changed since."""
    counter = bed.start_counter(bed.source, prologue=BALLAST)
    bed.source.ckpt(ckpt, "dump", counter.job)
    shutil.copytree(bed.source.path(STORE), bed.target.path(STORE), dirs_exist_ok=True)
    ask(counter, "change")
    return counter


def test_only_what_changed_since_the_checkpoint_is_sent(bed: MigrationBed, ckpt: Ckpt) -> None:
    counter = start_known(bed, ckpt)
    moved = bed.migrate(counter.job, "--base", f"{counter.job}@latest")
    # The counter has 4 MiB of its own, which it writes to all the time.
    assert CHANGED_MIB << 20 < moved["sent_bytes"] < (CHANGED_MIB + 16) << 20
    assert ask(counter, "there") == ".right"
    bed.assert_one_copy(counter, bed.target)
    bed.await_nothing_left(counter)
    back = bed.migrate(counter.job, source=bed.target)
    assert back["sent_bytes"] > MIB << 20
    assert ask(counter, "back") == ".right"
    bed.assert_one_copy(counter, bed.source)
    bed.await_nothing_left(counter)


def test_a_transfer_that_broke_off_goes_on_without_the_checkpoint(bed: MigrationBed, ckpt: Ckpt) -> None:
    counter = start_known(bed, ckpt)
    bed.start_migration(counter.job, "--base", counter.job, failpoint="round-0:SIGKILL").wait()
    (migration,) = bed.migrations(bed.source)
    bed.target.ckpt(ckpt, "rm", counter.job)
    moved = bed.resume(migration)
    assert moved["sent_bytes"] < 16 << 20
    assert ask(counter, "there") == ".right"
    bed.assert_one_copy(counter, bed.target)
    bed.await_nothing_left(counter)


def test_without_such_a_checkpoint_there_nothing_is_touched(bed: MigrationBed, ckpt: Ckpt) -> None:
    counter = bed.start_counter(bed.source)
    bed.source.ckpt(ckpt, "dump", counter.job)
    # It is the target's store that counts.
    refused = bed.migrate(counter.job, "--base", f"{counter.job}@latest", exit_code=53)
    assert refused["error"]["slug"] == "peer-refused"
    assert str(STORE) in refused["error"]["message"]
    bed.assert_one_copy(counter, bed.source)
    bed.await_nothing_left(counter)
