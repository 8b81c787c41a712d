"""Two hosts, a wire and one migration, small enough to visit every state that faults can lead to.

Rules:
- What is decided is decided by ckpt.model.migration and migration_moves: here is only what the world does to it.
- A save has two steps, visible (the rename) and durable (the sync): a power cut between them leaves either.
- A wire is FIFO; when it breaks, what was on its way arrives up to some point. One agent at a time works on a
  migration (its lock); an orphan reads what reached it, and a new connection waits until it has ended. An offer
  whose agent has not come to take the lock may be read at any later time.
- What a dead controller or agent left is first undone by its guardian, before anybody else works on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckpt.errors import WrongState
from ckpt.model import migration as rules
from ckpt.model import migration_moves as moves
from ckpt.model.migration import AloneSource, AloneTarget, Resolution, SourceCopy, SourceState, TargetState
from ckpt.model.migration_moves import Choice, Word

S = SourceState
T = TargetState
OFFERS_MAX: Final = 3

_ANSWERS: Final = {
    "ask?": "state",
    "offer?": "accepted",
    "prepare?": "held",
    "commit?": "running",
    "forget?": "gone",
    "abort?": "gone",
}


class SourceFile(NamedTuple):
    state: SourceState
    attempt: int


class TargetFile(NamedTuple):
    state: TargetState
    attempt: int


class World(NamedTuple):
    """Everything at one instant; `…_seen` is the visible record, `…_disk` the durable one."""

    source_disk: SourceFile | None = None
    source_seen: SourceFile | None = None
    source_tasks: str = "run"  # frozen, killed, lost
    ran_on: bool = False  # since the last freeze
    controller: str = "begin"  # "" is none
    resuming: bool = True
    up: bool = False
    out: tuple[tuple[str, int], ...] = ()
    back: tuple[tuple[str, TargetState | None], ...] = ()
    agent: str = ""  # "" is none
    late_offer: int = 0
    target_disk: TargetFile | None = None
    target_seen: TargetFile | None = None
    target_tasks: str = ""  # held, run, over
    images: str = ""  # fresh: as the source was when it last ran; stale
    starts: int = 0
    by_operator: bool = False
    excused: bool = False  # a host took the only copy with it, as hosts do
    crashes: int = 0
    breaks: int = 0
    refusals: int = 0


class Violation(AssertionError):
    """A state, or a step, that must not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How the programs behave; each False is a mistake that somebody could make."""

    syncs_what_it_reads: bool = True
    guardian_asks_the_record: bool = True
    running_before_the_first_step: bool = True
    commit_is_durable_before_it_is_said: bool = True
    skips_answers_to_former_words: bool = True


Step = tuple[str, World]


def steps(world: World, law: Law) -> Iterator[Step]:
    """What can happen next without a fault; names begin with who does it."""
    if world.controller:
        yield from _controller(world, law)
    elif world.source_tasks == "frozen":
        yield "source guardian", _undo_source(world, law)
    elif world.source_seen is not None:
        disk = world.source_seen if law.syncs_what_it_reads else world.source_disk
        begun = world._replace(source_disk=disk, controller="connect")
        yield "source recover", begun._replace(resuming=False)
        if world.source_seen.attempt < OFFERS_MAX:
            yield "source resume", begun._replace(resuming=True)
    elif world.source_disk is not None:
        yield "the kernel writes out", world._replace(source_disk=None)
    if world.agent:
        yield from _agent(world, law)
    elif world.target_tasks == "held":
        yield "target guardian", _undo_target(world, law)
    else:
        if world.target_seen is not None and not world.up:
            yield "target recover", _recover_target(world, law)
        if world.late_offer and not world.up:
            late = ((Word.OFFER.value, world.late_offer),)
            yield "late offer", world._replace(agent="idle", out=late, late_offer=0)
        if world.target_seen is None and world.target_disk is not None:
            yield "the kernel writes out", world._replace(target_disk=None)
    yield from _operator(world)


def faults(world: World) -> Iterator[Step]:
    """What can go wrong next, within the bounds."""
    if world.crashes:
        hit = world._replace(crashes=world.crashes - 1)
        if world.controller:
            for cut in _broken(hit):
                yield "controller killed", cut._replace(controller="", back=())
        if world.agent:
            for cut in _broken(hit._replace(out=())):
                yield "agent killed", cut._replace(agent="")
        for seen in {world.source_seen, world.source_disk}:
            for cut in _broken(hit):
                yield (
                    "source power cut",
                    _source_dies(cut._replace(controller="", back=(), source_seen=seen, source_disk=seen)),
                )
        for record in {world.target_seen, world.target_disk}:
            for cut in _broken(hit._replace(out=())):
                yield (
                    "target power cut",
                    _target_dies(cut._replace(agent="", target_seen=record, target_disk=record)),
                )
    if world.breaks:
        hit = world._replace(breaks=world.breaks - 1)
        if world.up:
            for cut in _broken(hit):
                yield "link down", cut
        if world.controller == "connect":
            yield "unreachable", _alone(hit)
        if world.out and world.out[0][0] == Word.OFFER and world.agent == "idle" and not world.late_offer:
            gone = hit._replace(late_offer=world.out[0][1], out=(), back=(), agent="", up=False)
            yield "link down, offer late", gone
    if world.refusals and world.controller in ("moving", "prepare?"):
        yield "interrupted", world._replace(refusals=world.refusals - 1, controller="abort")


def check(world: World) -> None:
    """Raise what is wrong with this state."""
    source = world.source_seen.state if world.source_seen else None
    target = world.target_seen.state if world.target_seen else None
    if world.source_tasks == "run" and world.target_tasks == "run":
        raise Violation("two copies run")
    if world.source_disk and world.source_disk.state.has_committed and world.source_tasks == "run":
        raise Violation("the source runs after its COMMITTED is durable")
    if world.starts > 1:
        raise Violation("the target's copy was started twice")
    is_here = world.source_tasks == "run" or (
        world.source_tasks == "frozen" and not (source and source.has_committed)
    )
    is_there = (
        world.target_tasks == "run"
        or (world.target_tasks == "held" and target is T.RUNNING)
        or (world.images == "fresh" and target in (T.HELD, T.COMMITTED))
    )
    if not (is_here or is_there or world.excused):
        raise Violation("no copy is left that runs or could be brought back")


def is_settled(world: World) -> bool:
    """Whether all is over: one copy, and nothing left on either side."""
    idle = not (world.controller or world.agent or world.late_offer)
    records = (world.source_seen, world.source_disk, world.target_seen, world.target_disk)
    copies = (world.source_tasks == "run") + (world.target_tasks == "run")
    return idle and records == (None,) * 4 and (copies == 1 or (world.excused and not copies))


def _controller(world: World, law: Law) -> Iterator[Step]:
    at = world.controller
    name = f"controller {at}"
    match at:
        case "begin":
            yield name, _save_source(world, S.PREPARING, "begin!")
        case "begin!":
            yield name, _sync_source(world, "connect")
        case "connect":
            if not world.agent and world.target_tasks != "held":
                disk = world.target_seen if law.syncs_what_it_reads else world.target_disk
                after = "ask" if _source(world) is not S.PREPARING or not world.resuming else "offer"
                yield (
                    name,
                    world._replace(
                        controller=after, agent="idle", up=True, out=(), back=(), target_disk=disk
                    ),
                )
        case "ask":
            yield name, _say(world, "ask", "ask?")
        case "ask?":
            yield from _hear(world, law, name, lambda heard: _resolved(world, heard))
        case "again":
            record = world.source_seen
            assert record is not None
            offered = SourceFile(S.TRANSFERRING, record.attempt + 1)
            yield name, world._replace(source_seen=offered, controller="again!")
        case "again!":
            yield name, _sync_source(world, "offer")
        case "offer":
            record = world.source_seen
            assert record is not None
            yield name, _say(world, Word.OFFER, "offer?", record.attempt)
        case "offer?":
            yield from _hear(world, law, name, lambda _: _save_source(world, S.TRANSFERRING, "accepted!"))
        case "accepted!":
            yield name, _sync_source(world, "moving")
        case "moving":
            yield name, _save_source(world, S.FROZEN, "freeze!")
        case "freeze!":
            yield name, _sync_source(world, "prepare")._replace(source_tasks="frozen", ran_on=False)
        case "prepare":
            yield name, _say(world, Word.PREPARE, "prepare?")
        case "prepare?":
            yield from _hear(world, law, name, lambda _: _save_source(world, S.COMMITTED, "commit!"))
        case "commit!":
            if law.commit_is_durable_before_it_is_said:
                yield name, _sync_source(world, "kill")
            else:
                yield name, world._replace(controller="kill")
        case "kill":
            yield name, world._replace(source_tasks="killed", controller="commit")
        case "commit":
            yield name, _say(world, Word.COMMIT, "commit?")
        case "commit?":
            then = "finish" if _has_committed(world) else "forget"
            yield from _hear(world, law, name, lambda _: world._replace(controller=then))
        case "finish":
            yield name, _save_source(world, S.FINISHED, "finish!")
        case "finish!":
            yield name, _sync_source(world, "forget")
        case "forget":
            yield name, _say(world, Word.FORGET, "forget?")
        case "forget?" | "abort?":
            yield from _hear(
                world, law, name, lambda _: world._replace(source_seen=None, controller="remove!")
            )
        case "remove!":
            yield name, _end(_sync_source(world, ""))
        case "abort":
            thawed = _thaw_source(world)
            yield name, _save_source(thawed, S.ABORTED, "abort!")
        case "abort!":
            yield name, _sync_source(world, "say abort")
        case "say abort":
            yield name, _say(world, Word.ABORT, "abort?") if world.up else _end(world)
        case "pause":
            thawed = _thaw_source(world)
            is_frozen = _source(world) is S.FROZEN
            yield name, _save_source(thawed, S.TRANSFERRING, "pause!") if is_frozen else _end(thawed)
        case "pause!":
            yield name, _end(_sync_source(world, ""))
        case _:
            raise AssertionError(at)


def _hear(world: World, law: Law, name: str, then: Callable[[TargetState | None], World]) -> Iterator[Step]:
    """Wait for the answer: it comes, it is a refusal, or the connection is gone."""
    if world.back:
        (kind, state), rest = world.back[0], world.back[1:]
        if law.skips_answers_to_former_words and kind not in (_ANSWERS[world.controller], "refused"):
            after = world
        elif kind == "refused":
            may_abort = world.controller in ("offer?", "prepare?")
            after = world._replace(controller="abort") if may_abort else _end(world)
        else:
            after = then(state)
        # What was built from the world before the answer was taken has it still.
        yield f"{name} {kind}", after._replace(back=rest if after.controller else ())
    elif not world.up:
        yield from ((f"{name} broken", each) for each in _given_up(world))


def _given_up(world: World) -> tuple[World, ...]:
    """What a controller does whose connection is gone: it stops, or it takes all back."""
    if _has_committed(world) or _source(world) is S.ABORTED:
        return (_end(world),)
    if world.source_tasks == "lost":
        return (_end(world),)
    return (world._replace(controller="pause"), world._replace(controller="abort"))


def _alone(world: World) -> World:
    if _has_committed(world) or world.resuming or _source(world) is S.ABORTED:
        return _end(world)
    return world._replace(controller="abort")


def _resolved(world: World, target: TargetState | None) -> World:
    copy = SourceCopy.LOST if world.source_tasks == "lost" else SourceCopy.RUNS
    found = rules.resolve(_source(world), target, copy=copy, resuming=world.resuming)
    match found:
        case Resolution.ABORT:
            if _has_committed(world):
                raise Violation("the source takes back what it has committed")
            return world._replace(controller="abort")
        case Resolution.CONTINUE:
            return world._replace(controller="again")
        case Resolution.DELIVER_COMMIT:
            return world._replace(controller="kill" if _has_committed(world) else "commit")
        case Resolution.FINISH:
            return world._replace(controller="finish" if _source(world) is S.COMMITTED else "forget")
        case Resolution.LAST_COPY:
            return _end(world)
        case Resolution.CONFLICT:
            raise Violation(f"conflict: {_source(world)} and {target}")


def _agent(world: World, law: Law) -> Iterator[Step]:
    at = world.agent
    name = f"agent {at}"
    match at:
        case "idle":
            if world.out:
                word, attempt = world.out[0]
                yield from _heard(world._replace(out=world.out[1:]), word, attempt)
            elif not world.up:
                tasks = "" if world.target_tasks == "held" else world.target_tasks
                yield "agent ends", world._replace(agent="", target_tasks=tasks)
        case "offer!":
            tasks = "" if world.target_tasks == "held" else world.target_tasks
            yield name, _answer(_sync_target(world)._replace(images="", target_tasks=tasks), "accepted")
        case "held!":
            yield name, _answer(_sync_target(world), "held")
        case "committed!":
            yield name, _sync_target(world)._replace(agent="let go")
        case "let go":
            if world.target_tasks != "held":
                if world.refusals:
                    failed = world._replace(refusals=world.refusals - 1)
                    yield "restore failed", _answer(failed, "refused")
                world = world._replace(target_tasks="held")
            if law.running_before_the_first_step:
                yield name, _save_target(world, T.RUNNING, "running!")
            else:
                yield name, _start(world)._replace(agent="running")
        case "running":
            yield name, _save_target(world, T.RUNNING, "running!")
        case "running!":
            done = _sync_target(world)
            yield name, _answer(done if done.target_tasks == "run" else _start(done), "running")
        case "abort!":
            tasks = "" if world.target_tasks == "held" else world.target_tasks
            yield name, _sync_target(world)._replace(images="", target_tasks=tasks, agent="remove")
        case "remove":
            yield name, world._replace(target_seen=None, images="", agent="remove!")
        case "remove!":
            yield name, _answer(_sync_target(world), "gone")
        case _:
            raise AssertionError(at)


def _heard(world: World, word: str, attempt: int) -> Iterator[Step]:
    record = world.target_seen
    state = record.state if record else None
    known = record.attempt if record else 0
    name = f"agent hears {word}"
    if word == "ask":
        yield name, world._replace(back=(*world.back, ("state", state))) if world.up else world
        return
    try:
        after = moves.heard(state, Word(word), attempt=attempt, known_attempt=known)
    except WrongState:
        yield name, _answer(world, "refused")
        return
    match Word(word):
        case Word.OFFER:
            assert after is not None
            yield name, world._replace(target_seen=TargetFile(after, attempt), agent="offer!")
        case Word.PREPARE:
            assert after is not None
            images = "stale" if world.ran_on else "fresh"
            held = world._replace(target_tasks="held", images=images)
            yield name, _save_target(held, after, "held!")
            if world.refusals:
                yield "prepare failed", _answer(world._replace(refusals=world.refusals - 1), "refused")
        case Word.COMMIT:
            if state is T.RUNNING:
                yield name, _answer(world, "running")
            elif state is T.COMMITTED or world.target_tasks == "held":
                yield name, world._replace(agent="let go")
            if state is T.HELD:
                yield f"{name} first", _save_target(world, T.COMMITTED, "committed!")
        case Word.ABORT:
            if after is None:
                yield name, _answer(world, "gone")
            else:
                yield name, _save_target(world, after, "abort!")
        case Word.FORGET:
            yield name, world._replace(agent="remove") if state else _answer(world, "gone")


def _recover_target(world: World, law: Law) -> World:
    record = world.target_seen
    assert record is not None
    world = world._replace(target_disk=record if law.syncs_what_it_reads else world.target_disk)
    match rules.alone_target(record.state):
        case AloneTarget.DROP:
            if record.state in (T.RECEIVING, T.ABORTED):
                return _save_target(world, T.ABORTED, "abort!")
            return world._replace(agent="remove")
        case AloneTarget.KEEP:
            return world
        case AloneTarget.RESTORE:
            return world._replace(agent="let go")
        case AloneTarget.TIDY:
            return world._replace(images="")


def _operator(world: World) -> Iterator[Step]:
    """Told that the target has the last copy, or that the source is gone for ever."""
    record = world.target_seen
    if world.source_tasks != "lost" or _has_committed(world) or world.controller or world.agent:
        return
    if record is not None and record.state is T.HELD and world.target_tasks != "held":
        for choice in Choice:
            file = TargetFile(moves.decide_target(record.state, choice), record.attempt)
            decided = world._replace(target_seen=file, target_disk=file)
            is_commit = choice is Choice.COMMIT
            yield (
                f"operator decides {choice}",
                decided._replace(by_operator=is_commit, excused=decided.excused or not is_commit),
            )


def _start(world: World) -> World:
    """The first step of the target's copy."""
    committed = world.source_disk is not None and world.source_disk.state.has_committed
    if not (committed or world.by_operator):
        raise Violation("the target runs without a durable COMMITTED of the source")
    if world.images != "fresh" and not world.by_operator:
        raise Violation("the target runs a copy that the source's has outrun")
    return world._replace(target_tasks="run", starts=world.starts + 1)


def _undo_source(world: World, law: Law) -> World:
    alone = rules.alone_source(_source(world)) if law.guardian_asks_the_record else AloneSource.RUN_ON
    if law.syncs_what_it_reads:
        world = world._replace(source_disk=world.source_seen)
    if alone is AloneSource.KILL_REST:
        return world._replace(source_tasks="killed")
    return _thaw_source(world)


def _undo_target(world: World, law: Law) -> World:
    record = world.target_seen
    if law.syncs_what_it_reads:
        world = _sync_target(world)
    if law.guardian_asks_the_record and record is not None and record.state is T.RUNNING:
        return _start(world)
    return world._replace(target_tasks="")


def _thaw_source(world: World) -> World:
    if world.source_tasks != "frozen":
        return world
    return world._replace(source_tasks="run", ran_on=True, images="stale" if world.images else "")


def _source_dies(world: World) -> World:
    """A power cut takes the tasks; that is the host's fault where the target has not promised a whole copy."""
    if world.source_tasks not in ("run", "frozen"):
        return world
    durable = world.target_disk.state if world.target_disk else None
    promised = world.images == "fresh" and durable in (T.HELD, T.COMMITTED)
    return world._replace(
        source_tasks="lost", excused=world.excused or world.source_tasks == "run" or not promised
    )


def _target_dies(world: World) -> World:
    was_let_go = world.target_seen is not None and world.target_seen.state is T.RUNNING
    if world.target_tasks == "run" or (world.target_tasks == "held" and was_let_go):
        return world._replace(target_tasks="over", excused=True)
    return world._replace(target_tasks="over" if world.target_tasks == "over" else "")


def _broken(world: World) -> Iterator[World]:
    """The connection is gone, and what was on its way arrives up to some point."""
    for out in {(), world.out}:
        for back in {(), world.back}:
            yield world._replace(up=False, out=out, back=back)


def _say(world: World, word: str, then: str, attempt: int = 0) -> World:
    out = (*world.out, (str(word), attempt)) if world.up else world.out
    return world._replace(out=out, controller=then)


def _answer(world: World, kind: str) -> World:
    back = (*world.back, (kind, None)) if world.up else world.back
    return world._replace(back=back, agent="idle")


def _source(world: World) -> SourceState | None:
    return world.source_seen.state if world.source_seen else None


def _has_committed(world: World) -> bool:
    state = _source(world)
    return state is not None and state.has_committed


def _save_source(world: World, state: SourceState, then: str) -> World:
    moves.check_source_move(_source(world), state)
    attempt = world.source_seen.attempt if world.source_seen else 1
    return world._replace(source_seen=SourceFile(state, attempt), controller=then)


def _sync_source(world: World, then: str) -> World:
    return world._replace(source_disk=world.source_seen, controller=then)


def _save_target(world: World, state: TargetState, then: str) -> World:
    record = world.target_seen
    moves.check_target_move(record.state if record else None, state)
    return world._replace(target_seen=TargetFile(state, record.attempt if record else 1), agent=then)


def _sync_target(world: World) -> World:
    return world._replace(target_disk=world.target_seen)


def _end(world: World) -> World:
    return world._replace(controller="", up=False, back=())
