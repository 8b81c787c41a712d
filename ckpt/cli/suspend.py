"""`ckpt suspend`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import click

from ckpt.cli import suggestions, wiring, wiring_suspend
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.documents import plain
from ckpt.cli.dump_options import dump_options, dump_parameters
from ckpt.cli.parameters import duration_above_zero, job_name
from ckpt.cli.progress import telling
from ckpt.cli.restore_options import inodes_option, time_option
from ckpt.cli.side_by_side import Outcome, SideBySide
from ckpt.errors import NoSuchTarget, Problems
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.model.suspended import Owner
from ckpt.units import SECOND, JobName

_AT_ONCE_MIN, _AT_ONCE_MAX = 2, 4
"""One waits for the disk while another one computes; more than a few only fill the memory with images."""

_ID_DIGITS: Final = 12
_WHO_GOES_ON: Final = {
    Owner.CKPT: "",
    Owner.CALLER: "; it is not for 'ckpt resume', but for whoever has started it",
}


@make_command("suspend", example="ckpt suspend --all --timeout 90s")
@click.argument("names", type=job_name, nargs=-1, metavar="[NAME]...", shell_complete=suggestions.jobs)
@click.option("--all", "everything", is_flag=True, help="Every job that runs.")
@click.option(
    "--timeout",
    type=duration_above_zero,
    default="5m",
    show_default=True,
    metavar="DURATION",
    help="What is not durable by then is given up: those jobs run on.",
)
@dump_parameters
@time_option("What the jobs' clocks will make of the time until 'ckpt resume'.")
@inodes_option("What 'ckpt resume' will do about files that changed; see 'ckpt restore --help'.")
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Checkpoint jobs and end them, to bring them back with 'ckpt resume': around a reboot.

    Each is killed once its checkpoint is durable, never before. A job that cannot be checkpointed is told and runs on;
    the exit code is 3 then. A job with a supervisor (ckpt run --every …) is checkpointed as that does it: into its
    store, with its files and its options; the options here are for all others. Files that a job holds in a file system
    in memory, which a reboot empties, are kept with it. The jobs of a group are suspended together.

    What a 'ckpt run' in the foreground supervises is for that to bring back: it exits with 75, and the same command
    line with --resume goes on. A job that somebody gives its input is not brought back by itself either.
    """
    wiring.require_root("ckpt suspend")
    units = _units_of(_jobs_of(given["names"], everything=given["everything"]))
    options = dump_options(given)
    policy, inodes = TimePolicy(given["time"]), InodePolicy(given["inodes"])

    # The bars of several processes would be drawn one over the other.
    of_each = replace(call.output, quiet=not call.output.verbose)

    def act(job: JobName) -> dict[str, Any]:
        with telling(of_each) as announce:
            how = wiring_suspend.How(place=call.store, options=options, time=policy, inodes=inodes)
            if units[job]:
                done = wiring_suspend.suspend_group(units[job], how)
            else:
                done = (wiring_suspend.suspend_job(job, how, announce),)
        return {"jobs": list(map(plain, done))}

    output = call.output
    suspended: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    at_once = min(_AT_ONCE_MAX, max(_AT_ONCE_MIN, os.cpu_count() or 1))
    for outcome in SideBySide(act, at_once=at_once, timeout=given["timeout"]).run(tuple(units)):
        if outcome.document is not None:
            suspended += outcome.document["jobs"]
            continue
        group = units[outcome.job]
        subject = f"group {group}" if group else outcome.job
        if outcome.error is not None and given["everything"] and not _runs(outcome.job, group):
            output.note(f"{subject} has ended by itself")
            continue
        problem = _problem(subject, outcome, given["timeout"] / SECOND)
        output.warn(" ".join(filter(None, (f"{subject}: {problem['message']}", problem["hint"]))))
        problems.append(problem)
    lines = [
        f"{each['job']}: suspended as {each['id'][:_ID_DIGITS]}" + _WHO_GOES_ON[Owner(each["resumed_by"])]
        for each in suspended
    ]
    output.result(
        {"suspended": suspended, "problems": problems},
        "\n".join(lines) or ("" if problems else "no job runs"),
        brief="\n".join(each["job"] for each in suspended),
    )
    return Problems.exit_code if problems else 0


def _jobs_of(names: tuple[JobName, ...], *, everything: bool) -> tuple[JobName, ...]:
    """The jobs that are meant.

    Raises:
        UsageError: none, or both some and all.
        NoSuchTarget: one that is named does not run.
    """
    if bool(names) == everything:
        raise usage("Name the jobs, or give --all.")
    registry = wiring.jobs()
    if everything:
        return tuple(_by_age(view.name for view in registry.list() if view.is_alive))
    for name in names:
        if not registry.look(name).is_alive:
            raise NoSuchTarget(kind="running job", name=name, remedy="'ckpt ps' lists the jobs.")
    return tuple(dict.fromkeys(names))


def _runs(job: JobName, group: str) -> bool:
    """Whether the job runs, or any of its group, if it has one."""
    return any(view.is_alive for view in wiring.jobs().in_group(group)) if group else wiring.runs(job)


def _units_of(jobs: tuple[JobName, ...]) -> dict[JobName, str]:
    """What is suspended together: one job of each group, with the group's name; and those that are in none, with ""."""
    registry = wiring.jobs()
    units: dict[JobName, str] = {}
    for job in jobs:
        group = registry.look(job).record.group
        if not group or group not in units.values():
            units[job] = group
    return units


def _by_age(names: Iterator[JobName]) -> list[JobName]:
    """The youngest first: what was started later may need what was started before."""
    registry = wiring.jobs()
    found = [(registry.look(name).record.created, name) for name in names]
    return [name for _created, name in sorted(found, reverse=True)]


def _problem(subject: str, outcome: Outcome, timeout_s: float) -> dict[str, Any]:
    if outcome.error is None:
        return {
            "slug": "not-in-time",
            "subject": subject,
            "message": f"its checkpoint was not durable within {timeout_s:g} s; it runs on",
            "hint": "Give a longer --timeout.",
        }
    return {
        "slug": outcome.error["slug"],
        "subject": subject,
        "message": outcome.error["message"],
        "hint": outcome.error["hint"],
    }
