"""Say beforehand whether a workload can be dumped, and restored after that."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt.errors import CannotCheckpoint
from ckpt.flow.ports import Inspector, Targets
from ckpt.model.checkpoint import DumpOptions
from ckpt.model.findings import Finding, Severity
from ckpt.model.target import TargetRef

TARGET_RULE = "target"
"""The rule of what can never be checkpointed, whatever it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPorts:
    """The outside things that a check needs."""

    targets: Targets
    inspector: Inspector


def check(ref: TargetRef, options: DumpOptions, ports: CheckPorts) -> tuple[Finding, ...]:
    """Everything that speaks against a dump of the target with these options; the gravest first.

    Nothing is touched, frozen or stopped.

    Raises:
        NoSuchTarget: there is no such target, or it has no process.
    """
    try:
        target = ports.targets.resolve(ref)
    except CannotCheckpoint as error:
        return tuple(
            Finding(
                rule=TARGET_RULE,
                severity=Severity.BLOCKER,
                pid=None,
                name="",
                subject=error.target,
                message=reason,
                remedy=error.remedy,
                option="",
            )
            for reason in error.reasons
        )
    return ports.inspector.check(target, options)
