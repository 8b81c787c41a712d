"""`ckpt doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import click

from ckpt.cli import reporting, wiring
from ckpt.cli.call import Call, make_command, usage
from ckpt.cli.documents import plain
from ckpt.cli.hosts import connected, refuse_without_host, ssh_options
from ckpt.cli.output import on_one_line, paint
from ckpt.cli.progress import telling
from ckpt.errors import CkptError, FeatureMissing
from ckpt.host import doctor, selftest
from ckpt.model.checks import HostCheck, State

COLOURS = {State.OK: "green", State.WARNING: "yellow", State.MISSING: "red"}


@make_command("doctor", example="ckpt doctor --self-test")
@click.argument("host", required=False, metavar="[[USER@]HOST[:PORT]]")
@click.option("--self-test", "self_test", is_flag=True, help="Also dump and restore a small process.")
@click.option(
    "--report",
    type=click.Path(),
    metavar="FILE",
    help="Also write a tar.gz for a bug report to this new file: findings, versions, logs of failures, jobs, the store.",
)
@click.option(
    "--with-secrets", is_flag=True, help="Have the jobs' command lines and environments in the report, too."
)
@ssh_options
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Say what this host, or HOST, can do: CRIU, kernel, cgroups, limits, the store; each lack with its remedy.

    HOST is asked over SSH, and needs a ckpt of its own. The exit code is 0 if dumps and restores can work, and 13 if
    something that they need is missing.
    """
    refuse_without_host(given, given["host"])
    if given["with_secrets"] and given["report"] is None:
        raise usage("--with-secrets is for --report FILE.")
    if given["host"] is not None:
        return _tell_of(call, given["host"], given)
    output = call.output
    with telling(output) as announce:
        announce("probing")
        checks = examine(call.store)
        if given["self_test"]:
            announce("dumping and restoring a process")
            checks = (*checks, selftest.prove())
        if given["report"] is None:
            return _tell(call, checks, {})
        announce("writing the report")
        report = reporting.write(
            given["report"],
            call.store,
            checks,
            key_command=call.key_command,
            with_secrets=given["with_secrets"],
        )
    return _tell(call, checks, {"report": report}, reporting.text_of(report))


def examine(store: str) -> tuple[HostCheck, ...]:
    """Everything that is looked at on this host, the store at this place included."""
    return (*doctor.examine(wiring.state()), _store(store))


def _tell_of(call: Call, host: str, given: dict[str, Any]) -> int:
    for option in ("self_test", "report"):
        if given[option]:
            name = f"--{option.replace('_', '-')}"
            raise usage(f"{name} is for this host: run 'ckpt doctor {name}' there.")
    with telling(call.output) as announce:
        announce(f"asking {host}")
        with connected(call, host, given) as peer:
            facts = peer.facts()
    return _tell(call, facts.checks, {"host": plain(facts.host)})


def _tell(call: Call, checks: Iterable[HostCheck], more: dict[str, Any], end: str = "") -> int:
    checks = tuple(checks)
    missing = any(check.state is State.MISSING for check in checks)
    call.output.result(
        {"ok": not missing, **more, "checks": [plain(check) for check in checks]},
        "\n".join([*(line for check in checks for line in _lines(check)), *([end] if end else [])]),
        brief="\n".join(line for check in checks if check.state is not State.OK for line in _lines(check)),
    )
    return FeatureMissing.exit_code if missing else 0


def _store(place: str) -> HostCheck:
    if wiring.is_there(place):
        try:
            wiring.open_store(place, create=False)
        except CkptError as error:
            # Another user may well be kept out of root's store.
            state = State.MISSING if os.geteuid() == 0 else State.WARNING
            return HostCheck(name="store", state=state, detail=error.message, remedy=error.advice)
    return doctor.directory_finding("store", place, "--store or CKPT_STORE")


def _lines(check: HostCheck) -> list[str]:
    state = paint(f"{check.state.value:<8}", COLOURS[check.state], sys.stdout)
    lines = [f"{state} {check.name:<16} {on_one_line(check.detail)}"]
    if check.remedy:
        lines.append(f"{'':<8} {'':<16} → {on_one_line(check.remedy)}")
    return lines
