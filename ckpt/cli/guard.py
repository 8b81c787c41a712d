"""`ckpt guard`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.dump_options import dump_options, dump_parameters
from ckpt.cli.guard_policy import read_policy, trigger
from ckpt.cli.guard_report import GuardTeller, plan_document, plan_text
from ckpt.cli.interruption import SIGNALS
from ckpt.cli.parameters import job_name
from ckpt.cli.progress import telling
from ckpt.errors import Interrupted, Problems
from ckpt.flow.guard import GuardCall, guard
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.guarding import Policy, Watched
from ckpt.units import JobName


@make_command("guard", example="ckpt guard --job sim --at 90%")
@click.option(
    "--job", "jobs", type=job_name, multiple=True, metavar="N", help="Guard this job. Can be repeated."
)
@click.option(
    "--cgroup",
    "cgroups",
    multiple=True,
    metavar="PATH",
    help="Guard all jobs and processes in this cgroup: absolute, or relative to the mounts. Can be repeated.",
)
@click.option(
    "--at",
    metavar="90%|oom|PSI",
    help="When to act: at this share of the limit, when it is reached, or when tasks wait too long for memory: "
    "'psi some 200ms/2s'. Default: what the policy says, or 90%.",
)
@click.option(
    "--policy",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="The steps, the victims and their order (docs/guard.md). Default: reclaim, then checkpoint the largest.",
)
@click.option("--once", is_flag=True, help="Do what is due now, and end; exit code 3 if pressure is left.")
@click.option("--dry-run", is_flag=True, help="Say what is watched and what would be done, and end.")
@dump_parameters
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Answer memory pressure before the OOM killer does: checkpoint a job instead of losing it, and bring it back.

    It watches the nearest memory limit at or above each job or cgroup, and takes one step after the other until the
    pressure is gone. A job that it checkpointed and ended comes back when there is room: when its limit is raised, or
    others have gone. It ends by itself when nothing is left to guard, and by SIGTERM or SIGINT at any time; then
    everything is set back. With --json it prints one document a line, for each thing that happens.
    """
    wiring.require_root("ckpt guard")
    policy = _policy(given)
    watched = _watched(given["jobs"], given["cgroups"])
    if given["dry_run"]:
        return _plan(call, watched, policy)
    teller = GuardTeller(output=call.output, collects=given["once"])
    # A bar that is drawn for months helps nobody.
    told = replace(call.output, quiet=not (call.output.verbose or call.output.json_progress))
    with telling(told) as announce, _noting_stops() as stopping:
        from ckpt.cli.wiring_guard import guard_ports  # noqa: PLC0415 - --dry-run needs no store

        ports = guard_ports(call.store, announce, options=_options(given), stopping=stopping)
        wanted = GuardCall(watched=watched, policy=policy, once=given["once"])
        try:
            relieved = guard(wanted, ports, teller)
        except Interrupted:
            if given["once"]:
                raise
            return 0
    teller.close()
    return 0 if relieved else Problems.exit_code


def _policy(given: dict[str, Any]) -> Policy:
    policy = Policy() if given["policy"] is None else read_policy(given["policy"])
    if given["at"] is not None and all(step.at is not None for step in policy.steps):
        raise usage("--at changes nothing: every step of this policy says itself when it is taken.")
    return policy if given["at"] is None else replace(policy, at=trigger(given["at"]))


def _options(given: dict[str, Any]) -> DumpOptions | None:
    """What was asked for; None, which lets a supervised job's own count, where nothing was."""
    context = click.get_current_context()
    named = ("tcp_established", "tcp_close", "shell_job", "external_unix", "ghost_limit")
    sources = {context.get_parameter_source(name) for name in named}
    if sources == {click.core.ParameterSource.DEFAULT}:
        return None
    return dump_options(given)


def _watched(jobs: tuple[JobName, ...], cgroups: tuple[str, ...]) -> tuple[Watched, ...]:
    from ckpt.host.guard.victims import watched_cgroup, watched_job  # noqa: PLC0415

    if not jobs and not cgroups:
        raise usage("Name what to guard: --job N, or --cgroup PATH.")
    registry = wiring.jobs()
    found = [watched_job(registry, job) for job in jobs]
    found += [watched_cgroup(name) for name in cgroups]
    return tuple(dict.fromkeys(found))


def _plan(call: Call, watched: tuple[Watched, ...], policy: Policy) -> int:
    from ckpt.host.guard.memory import HostMemory  # noqa: PLC0415
    from ckpt.host.guard.victims import HostVictims  # noqa: PLC0415

    memory, victims = HostMemory(), HostVictims(wiring.jobs())
    plans = [(each, memory.read(each.cgroup), victims.of(each)) for each in watched]
    call.output.result(plan_document(plans, policy), plan_text(plans, policy))
    return 0


@contextmanager
def _noting_stops() -> Iterator[Callable[[], bool]]:
    """Whether one of the signals came that end ckpt: while an undo runs they do not interrupt, and must not be lost."""
    asked = False
    former: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if callable(former[signal.Signals(number)]):
            former[signal.Signals(number)](number, frame)

    for each in SIGNALS:
        handler = signal.getsignal(each)
        if handler is not signal.SIG_IGN:
            former[each] = handler
            signal.signal(each, note)
    try:
        yield lambda: asked
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)
