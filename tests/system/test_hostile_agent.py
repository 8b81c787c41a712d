"""A source that lies to a real agent: it gets refusals, leaves nothing, and harms nobody else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.command import Ckpt
from harness.traces import Traces
from real.hostile import Heard, HostileSource, Said
from real.migrating import MigrationBed

from ckpt.codec.migration_messages import Commit, Held, ImageFile, Offer, Prepare
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.shipping import content_name
from ckpt.units import Pid

pytestmark = pytest.mark.system

SHIPPED = Path("/srv/data")
PEER_FAILED = 53
MUTATIONS = 30
ID = "{:016x}"
PROLOGUE = f"import os; keep = os.open('{SHIPPED}', os.O_RDWR)"


class Lying:
    """A source whose workload was migrated once; what it said then is said again, changed."""

    def __init__(self, bed: MigrationBed) -> None:
        self.bed = bed
        bed.source.path(SHIPPED).write_bytes(b"x" * 200_000)
        self.counter = bed.start_counter(bed.source, prologue=PROLOGUE)
        self.source = HostileSource(bed)
        self.tape = self.source.record(self.counter, "--ship", SHIPPED)
        bed.end(self.counter)
        self._said = 0

    def new_tape(self) -> list[Said]:
        """The tape of another migration."""
        self._said += 1
        return [_of(each, ID.format(self._said)) for each in self.tape]

    def say(self, tape: list[Said], change: Callable[[Any], object] = lambda each: each) -> Heard:
        """Say it with every message changed so."""
        heard = self.source.say(*(replace(each, message=change(each.message)) for each in tape))
        assert "Traceback" not in heard.errors, heard.errors
        return heard

    def must_leave_nothing(self) -> None:
        """All but the promise that only an operator can take back."""
        bed, target = self.bed, self.bed.target
        bed.await_no_agent(target)
        bed.end(self.counter)
        in_doubt = "held" in self._states().values()
        for problem in bed.recover(target, exit_code=3 if in_doubt else 0)["problems"]:
            assert problem["slug"] == "wrong-state", problem
        for migration, state in self._states().items():
            bed.recover(target, "--decide", f"{migration}={'abort' if state == 'held' else 'commit'}")
        bed.await_nothing_left(self.counter)

    def _states(self) -> dict[str, str]:
        """What the target has written down of each migration."""
        records = self.bed.target.path(self.bed.target.state).glob("migrations/*/target.json")
        return {each.parent.name: json.loads(each.read_text())["state"] for each in records}


def _of(said: Said, migration: str) -> Said:
    message: Any = said.message
    if hasattr(message, "migration"):
        return replace(said, message=replace(message, migration=migration))
    return said


@pytest.fixture
def lying(traces: Traces, ckpt: Ckpt) -> Iterator[Lying]:
    lying = Lying(MigrationBed(traces, ckpt))
    yield lying
    lying.must_leave_nothing()


def in_checkpoint(change: Callable[[Checkpoint], Checkpoint]) -> Callable[[Any], object]:
    def changed(message: Any) -> object:
        if isinstance(message, Prepare):
            return replace(message, checkpoint=change(message.checkpoint))
        return message

    return changed


def without_trees(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, workload=replace(checkpoint.workload, trees=()), image_sets=())


def of_another_tree(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, image_sets=(replace(checkpoint.image_sets[0], root=Pid(1)),))


def with_a_content_of_nobody(checkpoint: Checkpoint) -> Checkpoint:
    (images,) = checkpoint.image_sets
    first = replace(images.files[0], name=content_name(7))
    return replace(checkpoint, image_sets=(replace(images, files=(first, *images.files[1:])),))


def with_a_link_for_an_image(checkpoint: Checkpoint) -> Checkpoint:
    (images,) = checkpoint.image_sets
    first = replace(images.files[0], name="parent")
    return replace(checkpoint, image_sets=(replace(images, files=(first, *images.files[1:])),))


def with_another_content(checkpoint: Checkpoint) -> Checkpoint:
    (file,) = checkpoint.saved_files
    content = replace(file.content, size_bytes=file.content.size_bytes + 1)
    return replace(checkpoint, saved_files=(replace(file, content=content),))


@pytest.mark.timeout(300)
def test_a_checkpoint_that_lies_is_refused_and_its_source_goes_on_or_gives_up(lying: Lying) -> None:
    for lie in (
        without_trees,
        of_another_tree,
        with_a_content_of_nobody,
        with_a_link_for_an_image,
        with_another_content,
    ):
        heard = lying.say(lying.new_tape(), in_checkpoint(lie))
        assert heard.exit_code == 0, (lie, heard)
        # The Commit that follows is refused, too, and the Forget drops what came.
        assert heard.refusals == ["corrupt", "wrong-state"], (lie, heard)
        assert lying.bed.migrations(lying.bed.target) == []

    policy = lying.say(
        lying.new_tape(), lambda each: replace(each, time="never") if _is_offer(each) else each
    )
    assert policy.exit_code == PEER_FAILED, policy
    assert lying.bed.migrations(lying.bed.target) == []

    # A name that is no UTF-8 is a name; and it is not that of the file that was recorded.
    renamed = [_renamed(each) for each in lying.new_tape()]
    assert lying.say(renamed).exit_code == 0

    tape = [each for each in lying.new_tape() if not isinstance(each.message, Commit)][:-1]
    other = lying.say([*tape, Said(message=Commit(migration="f" * 16))])
    assert any(isinstance(each, Held) for each in other.answers), other
    assert other.refusals == ["wrong-state"], other


@pytest.mark.timeout(300)
def test_a_tape_that_was_cut_flipped_and_put_in_another_order_ends_no_agent_with_a_traceback(
    lying: Lying,
) -> None:
    draw = random.Random(6)
    for _ in range(MUTATIONS):
        heard = lying.source.say(*_mutated(lying.new_tape(), draw))
        assert "Traceback" not in heard.errors, heard.errors
        assert heard.exit_code in (0, PEER_FAILED), heard
        lying.bed.end(lying.counter)


def _is_offer(message: object) -> bool:
    return isinstance(message, Offer)


def _renamed(said: Said) -> Said:
    """With the name of the shipped file changed in CRIU's own list, byte for byte as long."""
    message = said.message
    if isinstance(message, ImageFile) and message.name == "files.img":
        name = str(SHIPPED).encode()
        assert name in said.payload
        return replace(said, payload=said.payload.replace(name, name[:-1] + b"\xff"))
    return said


def _mutated(tape: list[Said], draw: random.Random) -> list[Said | bytes]:
    place, other = draw.randrange(len(tape)), draw.randrange(len(tape))
    match draw.randrange(5):
        case 0:
            return [*tape[:place], *tape[place + 1 :]]
        case 1:
            return [*tape[:place], tape[other], *tape[place:]]
        case 2:
            tape[place], tape[other] = tape[other], tape[place]
            return list(tape)
        case 3:
            whole = tape[place].encoded
            return [*tape[:place], whole[: draw.randrange(len(whole))]]
        case _:
            whole = bytearray(tape[place].encoded)
            # In the frame: what may be in an image is CRIU's affair, and differs from tape to tape.
            frame_bytes = len(whole) - len(tape[place].payload)
            whole[draw.randrange(min(frame_bytes, 200))] ^= 1 << draw.randrange(8)
            return [*tape[:place], bytes(whole), *tape[place + 1 :]]
