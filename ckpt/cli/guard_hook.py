"""`ckpt guard-hook`: other programs that answer memory pressure checkpoint a job where they would kill it.

Rule: all code that a checkpoint needs is in memory before the first notification: under memory pressure nothing
should have to be read from the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from ckpt.cli import suggestions, wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.output import Output
from ckpt.cli.parameters import job_name
from ckpt.cli.progress import telling
from ckpt.errors import NoSuchTarget, Problems
from ckpt.flow.relief import ReliefCall, relieve
from ckpt.model.guard_steps import (
    TakeCheckpoint,
)
from ckpt.model.guarding import (
    Event,
    Relief,
    Victim,
    Watched,
)
from ckpt.units import JobName, Pid

if TYPE_CHECKING:
    from ckpt.host.guard.varlink import VarlinkAnswer

DEFAULT_SOCKET: Final = "/run/systemd/oomd.prekill.hook/ckpt"

# Nobody watches for room where another program decides: who is brought away comes back by 'ckpt restore'.
_STEPS: Final = (TakeCheckpoint(resume=False),)


@make_command("guard-hook", example="ckpt guard-hook --pid $PID")
@click.argument("name", type=job_name, required=False, metavar="[NAME]", shell_complete=suggestions.jobs)
@click.option("--pid", type=click.IntRange(min=1), metavar="N", help="The job that this process belongs to.")
@click.option("--cgroup", metavar="PATH", help="Every job with a process in this cgroup or below it.")
@click.option(
    "--prekill",
    metavar="[SOCKET]",
    is_flag=False,
    flag_value=DEFAULT_SOCKET,
    help=f"Be the pre-kill hook of systemd-oomd, at the socket that systemd passes, or at SOCKET (default: {DEFAULT_SOCKET}).",
)
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Checkpoint and end the jobs that another program would kill for their memory.

    The victim is a job's NAME, the job of process --pid N, or every job in --cgroup PATH. Each is ended when its
    checkpoint is durable, never before; 'ckpt restore' brings it back. The exit code is 0 when all were brought away,
    3 when some run on, and 63 when the victim is no job. With --prekill it waits for what systemd-oomd is about to
    kill, until SIGTERM; with --json it then prints one document a line, for each notification.
    """
    wiring.require_root("ckpt guard-hook")
    if given["prekill"] is not None:
        if any(given[name] is not None for name in ("pid", "cgroup", "name")):
            raise usage("--prekill waits for its victims: name none.")
        _serve(call, given["prekill"])
        return 0
    reliefs = bring_away(_victims(given["pid"], given["cgroup"], given["name"]), call)
    _tell(reliefs, call.output)
    return 0 if all(each.ended for each in reliefs) else Problems.exit_code


def bring_away(victims: Iterable[Victim], call: Call) -> tuple[Relief, ...]:
    """Checkpoint the victims, one after the other, and end each when its checkpoint is durable."""
    from ckpt.cli.wiring_guard import guard_ports  # noqa: PLC0415 - --help is quick

    with telling(call.output) as announce:
        ports = guard_ports(call.store, announce)
        return tuple(
            relieve(
                ReliefCall(
                    watched=Watched(cgroup=victim.cgroup, job=victim.job),
                    victim=victim,
                    steps=_STEPS,
                    event=Event.ASKED,
                    goal=None,
                ),
                ports,
            )
            for victim in victims
        )


def _victims(pid: int | None, cgroup: str | None, name: JobName | None) -> tuple[Victim, ...]:
    from ckpt.host import cgroups  # noqa: PLC0415
    from ckpt.host.guard.meant_jobs import job_called, job_with, jobs_in  # noqa: PLC0415

    match pid, cgroup, name:
        case int(), None, None:
            return (job_with(Pid(pid), wiring.jobs()),)
        case None, str(), None:
            directory = cgroups.find(cgroup)
            if directory is None:
                raise NoSuchTarget(kind="cgroup", name=cgroup)
            found = jobs_in(directory, wiring.jobs())
            if not found:
                raise NoSuchTarget(
                    kind="running job in cgroup",
                    name=directory,
                    remedy="What 'ckpt run' started can be brought away; 'ckpt ps' lists the jobs.",
                )
            return found
        case None, None, str():
            return (job_called(JobName(name), wiring.jobs()),)
        case _:
            raise usage("Give exactly one victim: --pid N, --cgroup PATH, or a job's NAME; or --prekill.")


def _tell(reliefs: tuple[Relief, ...], output: Output) -> None:
    for each in reliefs:
        if not each.ended:
            output.warn(f"job {each.victim.label} was not brought away: {each.outcomes[-1].detail}")
    done = [each for each in reliefs if each.ended]
    output.result(
        _document(reliefs),
        "\n".join(f"{each.checkpoint!s:.12}  {each.victim.label}  checkpointed and ended" for each in done),
        brief="\n".join(str(each.checkpoint) for each in done),
    )


def _document(reliefs: tuple[Relief, ...]) -> dict[str, Any]:
    jobs = []
    for each in reliefs:
        last = each.outcomes[-1]
        error = None if each.ended else {"slug": last.slug, "message": last.detail}
        jobs.append({"job": each.victim.label, "id": each.checkpoint, "error": error})
    return {"jobs": jobs}


def _serve(call: Call, path: str) -> None:
    from ckpt.cli.wiring_guard import guard_ports  # noqa: PLC0415
    from ckpt.host.guard.listening import listening  # noqa: PLC0415
    from ckpt.host.guard.oomd import PrekillHook  # noqa: PLC0415
    from ckpt.host.guard.varlink_server import serve  # noqa: PLC0415

    # It loads what every notification will need, and fails now if CRIU or the store is not there.
    import_module("ckpt.host.guard.meant_jobs")
    with telling(call.output) as announce:
        guard_ports(call.store, announce)
        wiring.dump_ports(call.store, announce)
    with listening(path) as listener:
        call.output.note(f"waiting for systemd-oomd at {listener.getsockname()}")
        serve(listener, PrekillHook(lambda directory: _answer(directory, call)), told=call.output.warn)


def _answer(directory: str, call: Call) -> VarlinkAnswer:
    """Bring away what is in the cgroup, and tell of it; what the hook answers."""
    from ckpt.host.guard.meant_jobs import jobs_in  # noqa: PLC0415
    from ckpt.host.guard.oomd import CHECKPOINT_FAILED  # noqa: PLC0415
    from ckpt.host.guard.varlink import VarlinkAnswer  # noqa: PLC0415

    reliefs = bring_away(jobs_in(directory, wiring.jobs()), call)
    if call.json:
        click.echo(json.dumps({"cgroup": directory, **_document(reliefs)}))
    else:
        _tell(reliefs, call.output)
    failed = [each.victim.label for each in reliefs if not each.ended]
    return VarlinkAnswer(error=CHECKPOINT_FAILED, parameters={"jobs": failed}) if failed else VarlinkAnswer()
