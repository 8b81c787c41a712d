"""`ckpt recover`."""

from __future__ import annotations

from typing import Any

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import problem_of
from ckpt.cli.recover_migrations import decide as decide_migration
from ckpt.cli.recover_migrations import recover_migrations
from ckpt.errors import CkptError, Interrupted, Problems
from ckpt.units import human_bytes


@make_command("recover", example="ckpt recover")
@click.option(
    "--decide",
    metavar="ID=commit|abort",
    help="Of a migration whose other host is gone for ever: run the workload here, or drop it here. Make sure of that: "
    "if the other one comes back, there may be two.",
)
@click.pass_obj
def command(call: Call, /, decide: str | None) -> int:
    """After a crash or a power cut: thaw what was left frozen, and finish or undo what was under way.

    Migrations are finished or undone with the other host, if it can be reached. What a living ckpt is at is left alone.
    The exit code is 3 if something could not be mended.
    """
    wiring.require_root("ckpt recover")
    actions, problems = _mend_host()
    moved, doubtful = recover_migrations(call) if decide is None else decide_migration(call, decide)
    actions += moved
    problems += doubtful
    swept, refused = _sweep_store(call.store)
    actions += swept
    problems += refused
    lines = [f"{action['subject']}: {action['done']}" for action in actions]
    output = call.output
    for problem in problems:
        output.warn(
            " ".join(filter(None, (f"{problem['subject']}: {problem['message']}", problem.get("hint"))))
        )
    output.result(
        {"actions": actions, "problems": problems},
        "\n".join(lines) or ("" if problems else "nothing to do"),
        brief="",
    )
    return Problems.exit_code if problems else 0


def _mend_host() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was done on this host, and what could not be."""
    done = wiring.recover()
    return (
        [{"subject": action.subject, "done": action.done} for action in done if not action.problem],
        [
            {
                "slug": "not-recovered",
                "subject": action.subject,
                "message": f"{action.done}: {action.problem}",
            }
            for action in done
            if action.problem
        ],
    )


def _sweep_store(place: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Remove from the store, if there is one, what writers left that died."""
    if not wiring.is_there(place):
        return [], []
    try:
        store = wiring.open_store(place, create=False)
        report = store.remove(())
        wiring.sweep_pins(store)
    except Interrupted:
        raise
    except CkptError as error:
        return [], [problem_of(place, error)]
    if not report.removed_objects:
        return [], []
    what = f"removed {report.removed_objects} object(s) that nothing needs, {human_bytes(report.freed_bytes)}"
    return [{"subject": place, "done": what}], []
