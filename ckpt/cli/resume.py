"""`ckpt resume`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import click

from ckpt.cli import suggestions, wiring, wiring_suspend
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.documents import problem_of, rfc3339
from ckpt.cli.output import columns
from ckpt.cli.parameters import job_name
from ckpt.cli.progress import Teller, telling
from ckpt.errors import CkptError, Interrupted, Locked, NoSuchTarget, ObjectMissing, Problems, WrongState
from ckpt.flow.resume import ResumeCall, Resumed
from ckpt.flow.suspend import bring_back, go_on
from ckpt.model.clocks import TimePolicy
from ckpt.model.inodes import InodePolicy
from ckpt.units import JobName

_PATIENCE_S: Final = 60.0
"""How long another ckpt is waited for that is at the job: the unit that has started it may just bring it back."""

_AGAIN_S: Final = 0.2
_ID_DIGITS: Final = 12

Jobs = tuple[JobName, ...]
Found = tuple[Resumed, ...] | None
"""What was restored; None for nothing, as the jobs run already or have lived since."""


@make_command("resume", example="ckpt resume --all")
@click.argument("names", type=job_name, nargs=-1, metavar="[NAME]...", shell_complete=suggestions.jobs)
@click.option("--all", "everything", is_flag=True, help="Every job that was suspended.")
@click.option(
    "--crashed",
    is_flag=True,
    help="With --all: also the jobs with a supervisor in the background that ran when the host went down, from their "
    "newest checkpoint that is whole.",
)
@click.option("--list", "only_list", is_flag=True, help="Only list what was suspended.")
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Bring back what 'ckpt suspend' has ended, each job once, in the order in which they were started.

    First what 'ckpt recover' does on this host is done. A supervisor in the background is started again with its job. A
    job that runs already is left as it is, and the jobs of a group come back together. What cannot be brought back is told and stays suspended; the exit code is 3
    then.
    """
    if given["only_list"]:
        return _list(call)
    wiring.require_root("ckpt resume")
    if bool(given["names"]) == given["everything"] or (given["crashed"] and not given["everything"]):
        raise usage("Name the jobs, or give --all; --crashed goes with --all.")
    suspended = wiring_suspend.suspended_jobs()
    jobs = suspended.names() if given["everything"] else tuple(dict.fromkeys(given["names"]))
    for job in jobs:
        if job not in suspended.names():
            raise NoSuchTarget(kind="suspended job", name=job, remedy="'ckpt resume --list' lists them.")
    crashed = suspended.crashed() if given["crashed"] else ()
    one = _Resuming(call)
    one.mend()
    for unit in _units_of(jobs, suspended.names()):
        one.take(unit, one.bring_back)
    for job in crashed:
        one.take((job,), one.go_on)
    return one.tell()


def _list(call: Call) -> int:
    suspended = wiring_suspend.suspended_jobs()
    entries: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    for job in suspended.names():
        try:
            record = suspended.find(job)
        except CkptError as error:
            call.output.warn(error.message)
            problems.append(problem_of(job, error))
            continue
        if record is not None:
            since = rfc3339(record.since_ns)
            entries.append({"job": job, "id": record.checkpoint, "store": record.store, "suspended": since})
    rows = [
        (each["job"], (each["id"] or "")[:_ID_DIGITS], each["suspended"], each["store"]) for each in entries
    ]
    call.output.result(
        {"suspended": entries, "problems": problems},
        columns(("JOB", "CHECKPOINT", "SUSPENDED", "STORE"), rows),
        brief="\n".join(each["job"] for each in entries),
    )
    return Problems.exit_code if problems else 0


class _Resuming:
    """One call of the command: what was brought back so far, and what could not be."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._output = call.output
        self._suspended = wiring_suspend.suspended_jobs()
        self.resumed: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.problems: list[dict[str, Any]] = []

    def mend(self) -> None:
        """Undo what was under way when the host went down."""
        for action in wiring.recover():
            if action.problem:
                self._output.warn(f"{action.subject}: {action.done}: {action.problem}")
            else:
                self._output.note(f"{action.subject}: {action.done}")

    def take(self, jobs: Jobs, how: Callable[[Jobs, Teller], Found]) -> None:
        """Bring jobs back that belong together, and their supervisors; what goes wrong is noted."""
        subject = f"group {wiring_suspend.group_of(jobs[0])}" if len(jobs) > 1 else jobs[0]
        try:
            with telling(self._output) as announce:
                found = _patiently(jobs, how, announce)
            supervised = {job for job in jobs if wiring_suspend.supervise_again(job)}
        except Interrupted:
            raise
        except CkptError as error:
            self._output.warn(" ".join(filter(None, (f"{subject}: {error.message}", error.advice))))
            self.problems.append(problem_of(subject, error))
            return
        if found is None:
            self.skipped += jobs
            return
        for each in found:
            report = each.report
            for sentence in (*each.damaged, *report.warnings):
                self._output.warn(f"{report.job}: {sentence}")
            self.resumed.append(
                {
                    "job": report.job,
                    "id": report.id,
                    "pid": report.pid,
                    "cgroup": report.cgroup,
                    "supervised": report.job in supervised,
                    "damaged": list(each.damaged),
                    "warnings": list(report.warnings),
                }
            )

    def bring_back(self, jobs: Jobs, announce: Teller) -> Found:
        """A job, or the jobs of a group, that were suspended."""
        record = next(filter(None, map(self._suspended.find, jobs)), None)
        if record is None:  # somebody has just brought them back
            return None
        if group := wiring_suspend.group_of(record.job):
            report = wiring_suspend.resume_group(jobs, group, record.store)
            members = () if report is None else report.members
            return tuple(Resumed(report=each, damaged=()) for each in members) or None
        ports = wiring_suspend.resume_ports(record.store, announce)
        found = bring_back(record.job, ports, older=bool(wiring_suspend.store_of(record.job)))
        return None if found is None else (found,)

    def go_on(self, jobs: Jobs, announce: Teller) -> Found:
        """A job that ran when the host went down.

        Raises:
            ObjectMissing: it has no checkpoint.
        """
        (job,) = jobs
        place = wiring_suspend.store_of(job)
        if wiring_suspend.group_of(job):
            found = wiring_suspend.group_goes_on(job)
        else:
            wanted = ResumeCall(job=job, time=TimePolicy.SUSPEND, inodes=InodePolicy.KEEP)
            found = go_on(wanted, wiring_suspend.resume_ports(place, announce))
        if found is None and not wiring.runs(job):
            raise ObjectMissing(
                place=place,
                kind="checkpoint of job",
                name=job,
                remedy=f"It went down before its first one: start it anew; 'ckpt rm-job {job}' forgets it.",
            )
        return None if found is None else (found,)

    def tell(self) -> int:
        """Print the result; gives the exit code."""
        lines = [
            f"{each['job']} runs again from {each['id'][:_ID_DIGITS]}: pid {each['pid']}"
            + (", supervised" if each["supervised"] else "")
            for each in self.resumed
        ]
        lines += [f"{job} runs already, or has since" for job in self.skipped]
        self._output.result(
            {"resumed": self.resumed, "skipped": self.skipped, "problems": self.problems},
            "\n".join(lines) or ("" if self.problems else "nothing is suspended"),
            brief="\n".join(each["job"] for each in self.resumed),
        )
        return Problems.exit_code if self.problems else 0


def _units_of(jobs: Jobs, suspended: Jobs) -> list[Jobs]:
    """What is brought back together: each job, with all others of its group that are suspended."""
    units: dict[str, Jobs] = {}
    for job in jobs:
        group = wiring_suspend.group_of(job)
        if not group:
            units[f"job {job}"] = (job,)
        elif f"group {group}" not in units:
            units[f"group {group}"] = tuple(
                each for each in suspended if wiring_suspend.group_of(each) == group
            )
    return list(units.values())


def _patiently(jobs: Jobs, how: Callable[[Jobs, Teller], Found], announce: Teller) -> Found:
    """Bring them back; whoever else is just about it is waited for, and then there is nothing left to do."""
    ends = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return how(jobs, announce)
        except (Locked, WrongState) as error:
            # A restore that finds the job running came second: the next look sees that.
            others = isinstance(error, Locked) or all(map(wiring.runs, jobs))
            if not others or time.monotonic() >= ends:
                raise
        time.sleep(_AGAIN_S)
