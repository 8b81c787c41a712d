"""`ckpt ps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.output import columns
from ckpt.errors import CkptError, Interrupted
from ckpt.units import CheckpointId, human_bytes

if TYPE_CHECKING:
    from ckpt.host.jobs import JobView

HEADER = ("NAME", "STATE", "PID", "PROCESSES", "MEMORY", "CHECKPOINTS", "LATEST", "COMMAND")
COMMAND_CHARS_MAX = 60


@make_command("ps", example="ckpt ps --json")
@click.pass_obj
def command(call: Call) -> None:
    """List the jobs of this host: name, state, pid, memory, checkpoints in the store."""
    wiring.require_root("ckpt ps")
    output = call.output
    try:
        kept = _checkpoints(call.store)
    except Interrupted:
        raise
    except CkptError as error:
        output.warn(f"the store was not read: {error.message}")
        kept = {}
    views = wiring.jobs().list()
    output.result(
        {
            "jobs": [
                job_document(view, kept.get(view.name, ()))
                | {
                    "volumes": list(wiring.volumes_of(view.name)),
                    "supervisor": wiring.supervisor_of(view.name),
                }
                for view in views
            ]
        },
        columns(HEADER, (_row(view, kept.get(view.name, ())) for view in views)) if views else "",
        brief="\n".join(view.name for view in views),
    )


def job_document(view: JobView, checkpoints: Sequence[CheckpointId]) -> dict[str, Any]:
    """One job; `checkpoints` are its own in the store, oldest first."""
    record = view.record
    ended = view.exit
    return {
        "name": view.name,
        "state": view.state.value,
        "pid": record.root.pid if view.is_alive else None,
        "pids": list(view.pids),
        "command": list(record.argv),
        "cgroup": record.cgroup,
        "memory_bytes": view.memory,
        "checkpoints": len(checkpoints),
        "latest": checkpoints[-1] if checkpoints else None,
        "exit_code": None if ended is None else ended.shell_code,
        "group": record.group or None,
    }


def _checkpoints(place: str) -> Mapping[str, Sequence[CheckpointId]]:
    """The checkpoints of each job, oldest first; a store that is not there has none."""
    found: dict[str, list[CheckpointId]] = {}
    if wiring.is_there(place):
        for stored in wiring.open_store(place, create=False).list(on_problem=lambda _problem: None):
            if stored.checkpoint.job is not None:
                found.setdefault(stored.checkpoint.job, []).append(stored.id)
    return found


def _row(view: JobView, checkpoints: Sequence[CheckpointId]) -> tuple[str, ...]:
    state = view.state.value
    if view.exit is not None and view.state.value == "exited":
        state += f" ({view.exit.shell_code})"
    words = " ".join(view.record.argv)
    return (
        view.name,
        state,
        str(view.record.root.pid) if view.is_alive else "-",
        str(len(view.pids)),
        human_bytes(view.memory) if view.is_alive else "-",
        str(len(checkpoints)),
        checkpoints[-1][:12] if checkpoints else "-",
        words if len(words) <= COMMAND_CHARS_MAX else words[: COMMAND_CHARS_MAX - 1] + "…",
    )
