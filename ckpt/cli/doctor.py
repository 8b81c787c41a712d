"""`ckpt doctor`."""

from __future__ import annotations

import os
import sys

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.documents import plain
from ckpt.cli.output import paint
from ckpt.cli.progress import telling
from ckpt.errors import CkptError, FeatureMissing
from ckpt.host import doctor, selftest
from ckpt.host.doctor import Finding, State

COLOURS = {State.OK: "green", State.WARNING: "yellow", State.MISSING: "red"}


@make_command("doctor", example="ckpt doctor --self-test")
@click.option("--self-test", "self_test", is_flag=True, help="Also dump and restore a small process.")
@click.pass_obj
def command(call: Call, *, self_test: bool) -> int:
    """Say what this host can do: CRIU, kernel, cgroups, limits, the store; each lack with its remedy.

    The exit code is 0 if dumps and restores can work, and 13 if something that they need is missing.
    """
    output = call.output
    with telling(output) as announce:
        announce("probing")
        findings = (*doctor.examine(wiring.state()), _store(call.store))
        if self_test:
            announce("dumping and restoring a process")
            findings = (*findings, selftest.prove())
    missing = any(finding.state is State.MISSING for finding in findings)
    output.result(
        {"ok": not missing, "checks": [plain(finding) for finding in findings]},
        "\n".join(line for finding in findings for line in _lines(finding)),
        brief="\n".join(
            line for finding in findings if finding.state is not State.OK for line in _lines(finding)
        ),
    )
    return FeatureMissing.exit_code if missing else 0


def _store(place: str) -> Finding:
    if wiring.is_there(place):
        try:
            wiring.open_store(place, create=False)
        except CkptError as error:
            # Another user may well be kept out of root's store.
            state = State.MISSING if os.geteuid() == 0 else State.WARNING
            return Finding(name="store", state=state, detail=error.message, remedy=error.advice)
    return doctor.directory_finding("store", place, "--store or CKPT_STORE")


def _lines(finding: Finding) -> list[str]:
    state = paint(f"{finding.state.value:<8}", COLOURS[finding.state], sys.stdout)
    lines = [f"{state} {finding.name:<16} {finding.detail}"]
    if finding.remedy:
        lines.append(f"{'':<8} {'':<16} → {finding.remedy}")
    return lines
