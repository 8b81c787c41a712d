"""What a guard tells: one line for each thing that happens; with --json one document a line, at once.

Rule: a guard may run for months, so it has no single result; only with --once all it did is one document.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from ckpt.cli.output import Output, on_one_line
from ckpt.errors import CkptError
from ckpt.flow.guard import Teller
from ckpt.model.guard_steps import (
    MemoryReading,
)
from ckpt.model.guarding import (
    Event,
    Policy,
    Relief,
    Result,
    StepOutcome,
    Victim,
    Waiting,
    Watched,
    order_victims,
)
from ckpt.units import human_bytes

Plan = tuple[Watched, MemoryReading | None, tuple[Victim, ...]]


@dataclass(slots=True, kw_only=True)
class GuardTeller(Teller):
    """Tells on stdout; `collects` keeps the documents for one at the end."""

    output: Output
    collects: bool
    _documents: list[dict[str, Any]] = field(default_factory=list)

    def watches(self, watched: Watched, reading: MemoryReading | None) -> None:
        """This cgroup is watched from now on."""
        what = "it" if watched.job is None else watched.cgroup
        what += "" if watched.job is None or watched.is_own else ", which is above it"
        self._tell(
            {"event": "watch", **_subject(watched), **_memory(reading)},
            f"{watched.subject}: watching {what}, {_used(reading)}",
        )

    def pressure(self, watched: Watched, event: Event, reading: MemoryReading) -> None:
        """There is pressure that something can be done about."""
        self._tell(
            {"event": "pressure", **_subject(watched), "reason": event.value, **_memory(reading)},
            f"{watched.subject}: pressure ({event}), {_used(reading)}",
        )

    def relief(self, watched: Watched, relief: Relief) -> None:
        """Steps were taken."""
        for outcome in relief.outcomes:
            self._tell(
                {
                    "event": "step",
                    **_subject(watched),
                    "victim": relief.victim.label,
                    **_outcome(outcome),
                    **_memory(outcome.after),
                },
                f"{watched.subject}: {_step_text(relief.victim, outcome)}",
            )
        if relief.relieved:
            after = relief.outcomes[-1].after
            self._tell(
                {"event": "relieved", **_subject(watched), **_memory(after)},
                f"{watched.subject}: the pressure is gone, {_used(after)}",
            )

    def helpless(self, watched: Watched, reading: MemoryReading) -> None:
        """Every step was taken with every victim, and the pressure is still there."""
        self._tell(
            {"event": "helpless", **_subject(watched), **_memory(reading)},
            f"{watched.subject}: no step that is due has helped, {_used(reading)}",
        )

    def resumed(self, waiting: Waiting) -> None:
        """This one was brought back."""
        self._tell(
            {"event": "resumed", "victim": waiting.ref.name, "id": waiting.checkpoint},
            f"{waiting.ref}: goes on from {str(waiting.checkpoint)[:12]}",
        )

    def not_resumed(self, waiting: Waiting, error: CkptError) -> None:
        """This one could not be brought back, and waits on."""
        self._tell(
            {
                "event": "not-resumed",
                "victim": waiting.ref.name,
                "id": waiting.checkpoint,
                "error": {"slug": error.slug, "message": error.message},
            },
            f"{waiting.ref}: could not be brought back, and waits: {error.message}",
        )

    def ended(self, watched: Watched) -> None:
        """There is nothing left to watch there."""
        self._tell({"event": "ended", **_subject(watched)}, f"{watched.subject}: nothing is left to guard")

    def close(self) -> None:
        """Print what was collected."""
        if self.collects and self.output.json:
            self.output.result({"events": self._documents}, "")

    def _tell(self, document: dict[str, Any], text: str) -> None:
        if self.output.json and self.collects:
            self._documents.append(document)
        elif self.output.json:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            _print(json.dumps({"time": stamp, **document}))
        elif not self.output.quiet:
            _print(on_one_line(text))


def _print(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise
    except OSError:  # a log on a full disk: what it says is worth less than what it does
        # Python would keep the line, and fail with it again and again.
        with open(os.devnull, "wb") as nowhere:
            kept = os.dup(sys.stdout.fileno())
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
            sys.stdout.flush()
            os.dup2(kept, sys.stdout.fileno())
            os.close(kept)


def plan_document(plans: Sequence[Plan], policy: Policy) -> dict[str, Any]:
    """What is watched and what would be done, for programs."""
    return {
        "watched": [
            {
                **_subject(watched),
                **_memory(reading),
                "victims": [
                    {"name": each.label, "usage_bytes": each.usage} for each in order_victims(policy, victims)
                ],
                "due": [] if reading is None else [step.name.value for step in policy.due(0, reading, ())],
            }
            for watched, reading, victims in plans
        ],
        "steps": [{"do": step.name.value, "at": str(policy.trigger_of(step))} for step in policy.steps],
        "goal_percent": round(policy.goal * 100, 3),
    }


def plan_text(plans: Sequence[Plan], policy: Policy) -> str:
    """The same for people."""
    lines = []
    for watched, reading, victims in plans:
        place = "" if watched.job is None else f"{watched.cgroup}, "
        lines.append(f"{watched.subject}: {place}{_used(reading)}")
        lines += [
            f"  victim {number}: {each.label}, {human_bytes(each.usage)}"
            for number, each in enumerate(order_victims(policy, victims), start=1)
        ]
    lines += [f"step {step.name} at {policy.trigger_of(step)}" for step in policy.steps]
    lines.append(f"the pressure is gone below {policy.goal:.1%}")
    return "\n".join(lines)


def _subject(watched: Watched) -> dict[str, Any]:
    return {"job": watched.job, "cgroup": watched.cgroup}


def _memory(reading: MemoryReading | None) -> dict[str, Any]:
    if reading is None:
        return {"usage_bytes": None, "limit_bytes": None}
    return {"usage_bytes": reading.usage, "limit_bytes": reading.limit or None}


def _used(reading: MemoryReading | None) -> str:
    if reading is None:
        return "which is gone"
    limit = human_bytes(reading.limit) if reading.limit else "no limit"
    return f"{human_bytes(reading.usage)} used of {limit} ({reading.share:.0%})"


def _outcome(outcome: StepOutcome) -> dict[str, Any]:
    document: dict[str, Any] = {"step": outcome.step.value, "result": outcome.result.value}
    if outcome.checkpoint is not None:
        document["id"] = outcome.checkpoint
    if outcome.result is Result.FAILED:
        document["error"] = {"slug": outcome.slug, "message": outcome.detail}
    return document


def _step_text(victim: Victim, outcome: StepOutcome) -> str:
    what = f"{outcome.step} ({victim.label})"
    match outcome.result:
        case Result.FAILED:
            return f"{what} failed: {outcome.detail}"
        case Result.DONE:
            kept = f" {outcome.checkpoint[:12]}" if outcome.checkpoint else ""
            detail = f" {outcome.detail}" if outcome.detail else ""
            return f"{what}{kept}{detail}, {_used(outcome.after)}"
