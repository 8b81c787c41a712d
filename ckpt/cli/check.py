"""`ckpt check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from textwrap import wrap
from typing import Any, Final

import click

from ckpt.cli import wiring
from ckpt.cli.call import Call, make_command
from ckpt.cli.check_ref import check_checkpoint, check_target_on_host, checked_parameters, what_is_meant
from ckpt.cli.documents import check_document
from ckpt.cli.dump_options import dump_options, dump_parameters
from ckpt.cli.output import on_one_line
from ckpt.errors import CannotCheckpoint
from ckpt.flow.check import check
from ckpt.model.findings import Finding, Severity, blockers, few_of_each, in_order

_WIDTH: Final = 100
_INDENT: Final = " " * 9


@make_command("check", example="ckpt check web")
@checked_parameters
@dump_parameters
@click.pass_obj
def command(call: Call, /, **given: Any) -> int:
    """Say what would make a dump of TARGET fail, or the restore after it, and what to do about it.

    A name that is no running job is a checkpoint: whether it could be restored here is told then. With --host the
    other host is asked, over SSH. Nothing is touched, frozen or stopped. The exit code is 30 if there is a blocker.
    """
    wiring.require_root("ckpt check")
    meant = what_is_meant(given)
    if isinstance(meant, str):
        findings = check_checkpoint(call, meant, given)
    else:
        findings = check(meant, dump_options(given), wiring.check_ports())
        if given["host"] is not None:
            findings = in_order((*findings, *check_target_on_host(call, meant, given)))
    call.output.result(check_document(findings), as_text(findings), brief=as_text(blockers(findings)))
    return CannotCheckpoint.exit_code if blockers(findings) else 0


def as_text(findings: Iterable[Finding]) -> str:
    """The findings for people, the gravest first, and a sum at the end; of a rule that found many, the first few."""
    findings = tuple(findings)
    if not findings:
        return "Nothing speaks against it."
    lines: list[str] = []
    for finding, more in few_of_each(findings):
        lines += _wrapped(f"{finding.severity.value:<8} {finding.rule}: {finding.message}.", indent="")
        remedy = f"{finding.remedy} {f'(ckpt dump {finding.option})' if finding.option else ''}".strip()
        lines += _wrapped(remedy, indent=_INDENT)
        if more:
            lines += _wrapped(
                f"{finding.severity.value:<8} {finding.rule}: and {more} more; --json names all.", indent=""
            )
    counted = Counter(finding.severity for finding in findings)
    lines.append(", ".join(f"{counted[severity]} {severity.value}(s)" for severity in Severity))
    return "\n".join(lines)


def _wrapped(text: str, *, indent: str) -> list[str]:
    return wrap(
        on_one_line(text),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
