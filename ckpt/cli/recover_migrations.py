"""The part of `ckpt recover` that finishes or undoes migrations.

Rules: what a living process works on is left alone. A source asks its target, if that can be reached; a target does
what it may do alone. What stays in doubt is a problem, and says who can resolve it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ckpt.cli import wiring_moves
from ckpt.cli.call import Call, usage
from ckpt.cli.documents import problem_of
from ckpt.cli.hosts import connected
from ckpt.cli.parameters import target_ref
from ckpt.errors import CkptError, Interrupted, Locked
from ckpt.model.migration import Resolution, alone_source
from ckpt.model.migration_moves import Choice

if TYPE_CHECKING:
    from ckpt.host.migrating.source_side import SourceSide

Told = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Actions and problems, as `ckpt recover` tells them."""


def recover_migrations(call: Call) -> Told:
    """Finish or undo every migration of this host that nobody works on."""
    actions: list[dict[str, Any]] = []
    problems = [_problem("migrations", error) for error in wiring_moves.damaged_migrations()]
    todo: list[tuple[str, Callable[[], str]]] = [
        (f"migration {source.id} to {source.record.host}", partial(_settle_source, call, source))
        for source in wiring_moves.known_sources()
    ]
    todo += [
        (f"migration {each} to this host", partial(wiring_moves.settle_target, each, call.store))
        for each in wiring_moves.known_targets()
    ]
    for subject, settle in todo:
        try:
            done = settle()
        except Locked:
            continue
        except Interrupted:
            raise
        except CkptError as error:
            problems.append(_problem(subject, error))
        else:
            if done:
                actions.append({"subject": subject, "done": done})
    return actions, problems


def decide(call: Call, word: str) -> Told:
    """Do what an operator decides about a migration whose other host is gone for ever: "ID=commit" or "ID=abort".

    Raises:
        UsageError: it is none of these.
        NoSuchTarget: there is no such migration here.
        WrongState: it cannot be decided so.
    """
    migration, _, choice = word.partition("=")
    if choice not in [each.value for each in Choice]:
        raise usage("--decide takes ID=commit or ID=abort.")
    done = wiring_moves.decide_migration(migration, Choice(choice), call.store)
    return [{"subject": f"migration {migration}", "done": done}], []


def outcome(resolution: Resolution, *, is_lazy: bool, runs: bool) -> str:
    """What has become of a migration, for people; `runs` is whether the target has processes of it."""
    if is_lazy and resolution is Resolution.FINISH and not runs:
        return (
            "It was moved with --lazy, and nothing of it runs at the target: unless it has ended by itself, it is lost, "
            "as not all of its memory could follow. Both sides remove what is left of the migration."
        )
    return resolution.sentence


def _problem(subject: str, error: CkptError) -> dict[str, Any]:
    """With what can be done: most of them wait for somebody."""
    return problem_of(subject, error) | {"hint": error.advice}


def _settle_source(call: Call, source: SourceSide) -> str:
    from ckpt.remote.far_side import FarSide  # noqa: PLC0415

    record = source.record
    there = {
        "identity": record.identity,
        "known_hosts": record.known_hosts,
        "remote_ckpt": record.remote_ckpt or None,
    }
    kept = json.loads(record.options)
    ref = target_ref(kept["pid"], kept["cgroup"], kept["name"])
    # Nobody is asked about what a living process works on.
    with source.lock():
        pass
    try:
        with connected(call, record.host, there) as peer:
            far = FarSide(peer, wiring_moves.wire_compressor(), source.id)
            runs = bool(far.state().pid)
            resolution = wiring_moves.settle_source(source, far, ref, resuming=False)
            return outcome(resolution, is_lazy=bool(kept.get("lazy")), runs=runs)
    except Locked:
        raise
    except CkptError:
        call.output.warn(alone_source(source.state).sentence)
        raise
