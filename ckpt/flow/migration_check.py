"""What speaks against a migration, on both hosts, before anything is touched.

Rule: all reasons at once. What is sent need not be there.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from ckpt.errors import (
    CannotMigrate,
)
from ckpt.flow.migration_call import MigrateCall, MigratePorts
from ckpt.model.findings import Finding, Severity, blockers, in_order
from ckpt.model.needs import KernelFeature, Needs, without_connections
from ckpt.model.target import Target
from ckpt.units import ByteCount

_STAGING_RULE: Final = "staging-space"
_FILE_RULES: Final = ("file-missing", "file-content", "file-size", "file-mode")
_SOCKET_RULE: Final = "unix-directory"
_REMEDIES: Final = {
    "job-runs": "If that is this very host, name another one; else stop it there with 'ckpt stop'.",
    "pid-taken": "End the process that has the pid, or give the workload pids of its own there with --pids new.",
}
"""What stands for the remedies of a restore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a look at both sides gave."""

    needs: Needs
    findings: tuple[Finding, ...]
    ship: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before."""
        return tuple(each.sentence for each in self.findings if each.severity is Severity.WARNING)


def resolve_target(call: MigrateCall, ports: MigratePorts) -> Target:
    """What was named; a job is one also if its process or its cgroup was."""
    target = ports.targets.resolve(call.target)
    return replace(target, job=target.job or ports.jobs.with_root(target.roots))


def look(call: MigrateCall, ports: MigratePorts, target: Target) -> Looked:
    """Look at both sides.

    Raises:
        Usage: a file that is to be sent cannot be.
        PeerFailed: the other host cannot say.
    """
    ports.tell("checking both hosts")
    # What cannot be sent is told before anything else is asked.
    ports.senders.shipping(call.ship, with_open=False)
    needs = replace(ports.needs.needs_of(target), store_bytes=ByteCount(0))
    if call.lazy:
        # What follows is never on a disk. Of the rest nobody knows before the dump how much it is.
        needs = replace(
            needs,
            features=(*needs.features, KernelFeature.USERFAULTFD),
            staging_bytes=ByteCount(max(0, needs.staging_bytes - needs.memory_bytes)),
        )
    if call.options.tcp_close:
        needs = without_connections(needs)
    if call.pids == "new":
        needs = replace(needs, pids=(), features=(*needs.features, KernelFeature.PID_NAMESPACE))
    own = ports.senders.own_directory(target)
    ship = [*call.ship, *(file.path for file in needs.files if own and file.path.startswith(own + "/"))]
    # What is sent need not be there; whether the rest is must be known before it is known what is sent.
    there = ports.far.judge(_without(needs, ship))
    if call.ship_open:
        lacking = {each.subject for each in there if each.rule in _FILE_RULES}
        ship += ports.senders.open_files(needs.files, lacking)
    there = tuple(
        _told_by(call.host, each)
        for each in there
        if not (
            (each.rule in _FILE_RULES and _is_shipped(each.subject, ship))
            or (each.rule == _SOCKET_RULE and _comes_along(os.path.dirname(each.subject), ship))
        )
    )
    here = ports.inspector.check(target, call.options)
    if call.lazy:
        here = tuple(each for each in here if each.rule != _STAGING_RULE)
    return Looked(
        needs=_without(needs, ship), findings=in_order((*here, *there)), ship=tuple(dict.fromkeys(ship))
    )


def _told_by(host: str, finding: Finding) -> Finding:
    """What the other host has found, as it is told on this one: "here" is there."""
    remedy = _REMEDIES.get(finding.rule, finding.remedy)
    if finding.rule in _FILE_RULES:
        remedy = f"Send it (--ship {finding.subject}, or --ship open), or make it there as it is here."
    return replace(finding, message=f"{host}: {finding.message}", remedy=remedy)


def _without(needs: Needs, ship: Collection[str]) -> Needs:
    """What is needed besides what is sent."""
    return replace(needs, files=tuple(file for file in needs.files if not _is_shipped(file.path, ship)))


def _comes_along(directory: str, ship: Collection[str]) -> bool:
    """Whether the directory is made there, as something in it is sent."""
    return _is_shipped(directory, ship) or any(os.path.dirname(path) == directory for path in ship)


def _is_shipped(path: str, ship: Collection[str]) -> bool:
    named = (os.path.normpath(each) for each in ship)
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in named)


def refuse(findings: tuple[Finding, ...], call: MigrateCall, target: Target) -> None:
    """Refuse what will fail, all reasons at once; those that the user allows do not count."""
    grave = tuple(each for each in blockers(findings) if each.rule not in call.allow)
    if grave:
        raise CannotMigrate(
            target=str(target.ref),
            host=call.host,
            reasons=tuple(f"{each.sentence.removesuffix('.')} [{each.rule}]" for each in grave),
            remedy="With --dry-run they are told one by one; to go on in spite of a rule: --allow RULE.",
        )
