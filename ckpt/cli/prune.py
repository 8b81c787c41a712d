"""`ckpt prune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.documents import plain, rfc3339
from ckpt.cli.output import Output, columns
from ckpt.cli.parameters import job_name, size
from ckpt.cli.progress import telling
from ckpt.cli.sizing import over_limit, shrink, shrink_preview
from ckpt.errors import Problems
from ckpt.model.reports import Problem, StoredCheckpoint, SweepReport
from ckpt.model.retention import Decision, RetentionPolicy, decide
from ckpt.store.store import Store
from ckpt.units import ByteCount, CheckpointId, JobName, human_bytes

HEADER = ("", "ID", "JOB", "CREATED", "STORED", "WHY")

_EVERYTHING: Final = RetentionPolicy(keep_last=1_000_000_000)
"""For a prune by size alone."""


def _keep(name: str, what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(f"--keep-{name}", type=click.IntRange(min=0), default=0, metavar="N", help=what)


@make_command("prune", example="ckpt prune --keep-last 3 --keep-hourly 24 --keep-daily 7 --dry-run")
@_keep("last", "Keep the newest N of each job.")
@_keep("hourly", "Keep the newest of each of the last N hours that have any.")
@_keep("daily", "Keep the newest of each of the last N days that have any.")
@_keep("weekly", "Keep the newest of each of the last N weeks that have any.")
@click.option(
    "--max-size",
    type=size,
    metavar="SIZE",
    help="Then remove the oldest, of whatever job, until the whole store takes no more than this.",
)
@click.option("--job", type=job_name, metavar="J", help="Only the checkpoints of this job.")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would go, and how much space that frees.")
@click.pass_obj
def command(
    call: Call, /, *, job: JobName | None, max_size: ByteCount | None, dry_run: bool, **numbers: int
) -> int:
    """Remove the checkpoints that none of the --keep options keeps, and free their space.

    Each job is judged by itself, and so are the checkpoints without one. Hours, days and weeks are those of
    UTC. Tagged checkpoints are always kept, and do not count. The newest of a job is always kept, also with
    --max-size.

    A checkpoint that cannot be read is named on stderr and not removed, and the exit code is 3.
    """
    if max_size is not None and job is not None:
        raise usage("--max-size is about the whole store, --job about a part of it: they exclude each other.")
    by_size_alone = max_size is not None and not any(numbers.values())
    policy = _EVERYTHING if by_size_alone else RetentionPolicy(**numbers)
    output = call.output
    problems: list[Problem] = []
    with telling(output) as announce:
        store = wiring.open_store(call.store)
        store.progress = announce
        announce("reading the checkpoints")
        found = store.list(on_problem=problems.append)
        for problem in problems:
            output.warn(f"{problem.subject[:12]} is not judged: {problem.message}")
        # All are judged: what other jobs keep of a group's instant counts for this one's.
        decisions = tuple(
            each for each in decide(found, policy) if job is None or each.checkpoint.checkpoint.job == job
        )
        removed = tuple(each.checkpoint.id for each in decisions if not each.is_kept)
        announce("adding up" if dry_run else "freeing space")
        report = store.preview(removed) if dry_run else store.remove(removed, spare_tagged=True)
        if max_size is not None:
            removed, report, used = _fit(store, max_size, found, (removed, report), dry_run=dry_run)
            if used > max_size:
                _warn_of_size(output, used, max_size, dry_run=dry_run)
            decisions = tuple(
                replace(each, reasons=()) if each.checkpoint.id in removed else each for each in decisions
            )
        if not dry_run:
            wiring.release_pins(removed, output)
    document = _document(decisions, report, dry_run=dry_run)
    if problems:
        document["problems"] = [plain(problem) for problem in problems]
    output.result(document, _text(decisions, report, dry_run=dry_run), brief="\n".join(removed))
    return Problems.exit_code if problems else 0


def _fit(
    store: Store,
    limit: ByteCount,
    found: Sequence[StoredCheckpoint],
    before: tuple[tuple[CheckpointId, ...], SweepReport],
    *,
    dry_run: bool,
) -> tuple[tuple[CheckpointId, ...], SweepReport, ByteCount]:
    """What goes beside what went before, all that is freed, and what the store takes then."""
    removed, report = before
    if dry_run:
        removed += shrink_preview(store, limit, found, removed)
        report = store.preview(removed)
        return removed, report, ByteCount(store.used_bytes() - report.freed_bytes)
    done = shrink(store, limit)
    report = SweepReport(
        removed_objects=report.removed_objects + done.report.removed_objects,
        freed_bytes=ByteCount(report.freed_bytes + done.report.freed_bytes),
        repacked_bytes=ByteCount(report.repacked_bytes + done.report.repacked_bytes),
    )
    return removed + done.removed, report, done.used_bytes


def _warn_of_size(output: Output, used: ByteCount, limit: ByteCount, *, dry_run: bool) -> None:
    output.warn(over_limit(used, limit, takes="would take" if dry_run else "takes"))


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
