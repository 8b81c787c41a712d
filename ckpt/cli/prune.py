"""`ckpt prune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import plain, rfc3339
from ckpt.cli.output import columns
from ckpt.cli.parameters import job_name
from ckpt.cli.progress import telling
from ckpt.errors import Problems
from ckpt.model.reports import Problem, SweepReport
from ckpt.model.retention import Decision, RetentionPolicy, decide
from ckpt.units import JobName, human_bytes

HEADER = ("", "ID", "JOB", "CREATED", "STORED", "WHY")


def _keep(name: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--keep-{name}", type=click.IntRange(min=0), default=0, metavar="N", help=what)


@make_command("prune", example="ckpt prune --keep-last 3 --keep-hourly 24 --keep-daily 7 --dry-run")
@_keep("last", "Keep the newest N of each job.")
@_keep("hourly", "Keep the newest of each of the last N hours that have any.")
@_keep("daily", "Keep the newest of each of the last N days that have any.")
@_keep("weekly", "Keep the newest of each of the last N weeks that have any.")
@click.option("--job", type=job_name, metavar="J", help="Only the checkpoints of this job.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would go, and how much space that frees.")
@click.pass_obj
def command(call: Call, /, *, job: JobName | None, dry_run: bool, **numbers: int) -> int:
    """Remove the checkpoints that none of the --keep options keeps, and free their space.

    Each job is judged by itself, and so are the checkpoints without one. Hours, days and weeks are those of
    UTC. Tagged checkpoints are always kept, and do not count. The newest of a job is always kept.

    A checkpoint that cannot be read is named on stderr and not removed, and the exit code is 3.
    """
    policy = RetentionPolicy(**numbers)
    output = call.output
    problems: list[Problem] = []
    with telling(output) as announce:
        store = wiring.open_store(call.store)
        store.progress = announce
        announce("reading the checkpoints")
        found = store.list(on_problem=problems.append)
        for problem in problems:
            output.warn(f"{problem.subject[:12]} is not judged: {problem.message}")
        decisions = decide((each for each in found if job is None or each.checkpoint.job == job), policy)
        removed = tuple(each.checkpoint.id for each in decisions if not each.is_kept)
        announce("adding up" if dry_run else "freeing space")
        report = store.preview(removed) if dry_run else store.remove(removed, spare_tagged=True)
        if not dry_run:
            wiring.release_pins(removed, output)
    document = _document(decisions, report, dry_run=dry_run)
    if problems:
        document["problems"] = [plain(problem) for problem in problems]
    output.result(document, _text(decisions, report, dry_run=dry_run), brief="\n".join(removed))
    return Problems.exit_code if problems else 0


def _document(decisions: Sequence[Decision], report: SweepReport, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "kept": [_summary(each) for each in decisions if each.is_kept],
        "removed": [_summary(each) for each in decisions if not each.is_kept],
        "removed_objects": report.removed_objects,
        "freed_bytes": report.freed_bytes,
        "repacked_bytes": report.repacked_bytes,
    }


def _summary(decision: Decision) -> dict[str, Any]:
    stored = decision.checkpoint
    return {
        "id": stored.id,
        "job": stored.checkpoint.job,
        "created": rfc3339(stored.checkpoint.created_ns),
        "reasons": list(decision.reasons),
    }


def _text(decisions: Sequence[Decision], report: SweepReport, *, dry_run: bool) -> str:
    count = sum(not each.is_kept for each in decisions)
    freed = human_bytes(report.freed_bytes)
    summary = (
        f"would remove {count} of {len(decisions)} checkpoint(s) and free about {freed}"
        if dry_run
        else f"removed {count} of {len(decisions)} checkpoint(s); freed {freed}"
    )
    return f"{columns(HEADER, map(_row, decisions))}\n{summary}" if decisions else summary


def _row(decision: Decision) -> tuple[str, ...]:
    stored = decision.checkpoint
    return (
        "keep" if decision.is_kept else "remove",
        stored.id[:12],
        stored.checkpoint.job or "-",
        rfc3339(stored.checkpoint.created_ns)[:19] + "Z",
        human_bytes(stored.stored_bytes),
        ", ".join(decision.reasons),
    )
